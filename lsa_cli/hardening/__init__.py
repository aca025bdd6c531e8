"""What trains. A method registers itself when its module is imported: here is the one place where all are."""

import lsa_cli.hardening.adversarial_training
import lsa_cli.hardening.apart
import lsa_cli.hardening.class_fair
import lsa_cli.hardening.learn2perturb
import lsa_cli.hardening.noise_propagation
import lsa_cli.hardening.self_gradient  # noqa: F401
from lsa_cli.hardening.methods import HARDENINGS as HARDENINGS
