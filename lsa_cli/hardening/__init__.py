"""Hardening. A method registers itself when its module is imported; this module imports all of them."""

from lsa_cli.hardening import (  # noqa: F401  they register themselves
    adversarial_training,
    apart,
    class_fair,
    clat,
    learn2perturb,
    noise_propagation,
    rift,
    self_gradient,
)
from lsa_cli.hardening.methods import HARDENINGS as HARDENINGS
