"""What an attack climbs: losses per sample, (N, K) logits and (N,) labels -> (N,). Larger is worse for the network."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from lsa_cli.registry import Registry

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: Registry[Loss] = Registry("loss")

# Beyond this gap exp() of the other logits leaves float32's normal range and the gradient of the
# cross-entropy is zero.
_UNDERFLOW = 80.0


@LOSSES.register("ce")
def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the softmax."""
    return F.cross_entropy(logits, y, reduction="none")


@LOSSES.register("margin")
def margin(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Best wrong logit minus the true one (Carlini & Wagner, arXiv 1608.04644): positive where fooled."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - true


def tempered(temperature: float) -> Loss:
    """Cross-entropy of logits / temperature (Temperature-PGD, arXiv 2105.14240).

    The formula is our reading: the paper's text gives the idea only. A sign step drops the global factor
    1/temperature, so the temperature decides how much each wrong class pulls: towards 0 only the nearest
    one does, towards infinity all alike. Where the division drives every other probability to zero in float32
    the gradient would vanish; there the margin is climbed instead.
    """

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scaled = logits / temperature
        gap = margin(scaled, y)
        return torch.where(gap < -_UNDERFLOW, gap, cross_entropy(scaled, y))

    return loss
