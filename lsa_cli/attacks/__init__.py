"""Attacks, noises and corruptions. An attack knows a network only as a function from images to logits."""

from lsa_cli.attacks import (  # noqa: F401  they register themselves
    apgd,
    corruption,
    cw,
    deepfool,
    ensemble,
    fab,
    fmn,
    gradient,
    noise,
    odi,
    ranked,
    square,
    square_pgd,
)
from lsa_cli.attacks.base import ATTACKS, CORRUPTIONS, NOISES, Attack, input_gradient
from lsa_cli.attacks.randomness import normal_like, uniform_like
from lsa_cli.attacks.threat import NORMS, Threat, make_threat

__all__ = [
    "ATTACKS",
    "CORRUPTIONS",
    "NOISES",
    "NORMS",
    "Attack",
    "Threat",
    "input_gradient",
    "make_threat",
    "normal_like",
    "uniform_like",
]
