"""What an attack climbs: losses per sample, (N, K) logits and (N,) labels -> (N,). Larger is worse for the network."""

from collections.abc import Callable

import torch

from lsa_cli.registry import Registry

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: Registry[Loss] = Registry("loss")
DLR_CLASSES = 4  # from which on the targeted DLR is a ratio


@LOSSES.register("ce")
def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy as an attack should see it: log-odds against the true class.

    With d = logsumexp of the wrong logits minus the true one, the cross-entropy is log(1 + exp(d)): a rising
    function of d, so its gradient points the same way and steps of fixed length are the same. The gradient of d
    itself neither vanishes nor loses its true-class part when float32 rounds the true probability to 1, which
    makes textbook PGD blind on confident networks.
    """
    true, wrong = _split(logits, y)
    return wrong.logsumexp(1) - true


@LOSSES.register("margin")
def margin(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Best wrong logit minus the true one (Carlini & Wagner, arXiv 1608.04644): positive where fooled."""
    true, wrong = _split(logits, y)
    return wrong.amax(1) - true


@LOSSES.register("dlr")
def dlr(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Difference of logits ratio (arXiv 2003.01690, eq. 6): the margin, divided by first minus third logit.

    A shift or a rescaling of the logits changes nothing. With two classes there is no third, and every ratio of
    differences is a constant: it is the margin itself there (our choice).
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / _apart(top[:, 0] - top[:, 2])


def targeted_dlr(logits: torch.Tensor, y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """DLR towards the classes `target` (N,) (arXiv 2003.01690, eq. 7): positive where the target beats y.

    Divided by the first logit minus the mean of third and fourth. With fewer than four classes it is the plain
    difference (our choice): over first minus third, a target that is last of three would give -1 whatever the input.
    """
    difference = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    if logits.shape[1] < DLR_CLASSES:
        return difference
    top = logits.topk(4, dim=1).values
    return difference / _apart(top[:, 0] - top[:, 2:].mean(1))


def _apart(size: torch.Tensor) -> torch.Tensor:
    """What a difference of sorted logits can be divided by where they all tie, too."""
    return size.clamp_min(1e-12)


def tempered(temperature: float) -> Loss:
    """Cross-entropy of logits / temperature (Temperature-PGD, arXiv 2105.14240).

    The formula is our reading: of the paper only the idea could be read. Steps of fixed length drop the global
    factor 1/temperature, so the temperature decides how much each wrong class pulls: towards 0 only the nearest
    one does (the margin), towards infinity all alike. Taken as log-odds it needs no fall-back for small
    temperatures, at which the probabilities themselves underflow.
    """

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits / temperature, y)

    return loss


def _split(logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The true class's logit (N,), and the logits (N, K) with that one at minus infinity."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    return true, logits.scatter(1, y[:, None], -torch.inf)
