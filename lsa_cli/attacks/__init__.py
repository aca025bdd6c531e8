"""What moves an input. An attack knows a network only as a callable from images to logits."""

from lsa_cli.attacks import corruption, gradient, noise
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
    "corruption",
    "gradient",
    "input_gradient",
    "make_threat",
    "noise",
    "normal_like",
    "uniform_like",
]
