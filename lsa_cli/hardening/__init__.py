"""What trains. A method registers itself when its module is imported: here is the one place where all are."""

import lsa_cli.hardening.adversarial_training  # noqa: F401
from lsa_cli.hardening.base import HARDENINGS as HARDENINGS
