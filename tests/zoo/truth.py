"""Attacks written for the networks of the zoo: PGD on what each network is without its defence, judged by the network itself."""

from collections.abc import Iterator

import torch

from lsa_cli.attacks import Threat, make_threat
from lsa_cli.attacks.losses import cross_entropy, margin
from tests.zoo.base import Entry, Model

STEPS = 40
JUDGED = 4  # every so many steps
LEVELS = 255


def survivors(entry: Entry, network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """(N,) bool: the samples that the network classifies correctly, also under the attacks written for it.

    Each of its surrogates is attacked on two losses, from the sample and from a random start. Every fourth iterate is
    judged as it is and as an image with 8 bits, which stays within the budget of an image.
    """
    threat = make_threat(entry.norm, entry.eps)
    left = entry.decide(network, x) == y
    surrogates = network.surrogates() if hasattr(network, "surrogates") else [network]
    torch.manual_seed(seed)
    for surrogate in surrogates:
        for loss, random_start in ((cross_entropy, False), (margin, True), (margin, False)):
            rows = left.nonzero().flatten()
            if not len(rows):
                return left
            for x_adv in _path(surrogate, x[rows], y[rows], threat, loss, random_start):
                for candidate in (x_adv, _image(x_adv, x[rows])):
                    left[rows] &= entry.decide(network, candidate) == y[rows]
    return left


def _path(
    model: Model, x: torch.Tensor, y: torch.Tensor, threat: Threat, loss, random_start: bool
) -> Iterator[torch.Tensor]:
    """Iterates of PGD, of shrinking steps."""
    x_adv = threat.project(x + threat.eps * torch.randn_like(x), x) if random_start else x
    for step in range(1, STEPS + 1):
        leaf = x_adv.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(model(leaf), y).sum(), leaf)
        length = 4 * threat.eps / STEPS * (1 - 0.75 * step / STEPS)
        x_adv = threat.project(leaf.detach() + length * threat.steepest(gradient, x_adv), x)
        if step % JUDGED == 0:
            yield x_adv


def _image(x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The image with 8 bits between x_adv and x that is nearest to x_adv."""
    return x + ((x_adv - x) * LEVELS).trunc() / LEVELS
