"""What an attack climbs: losses per sample, (N, K) logits and (N,) labels -> (N,). Larger is worse for the network."""

from collections.abc import Callable

import torch

from lsa_cli.registry import Registry

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: Registry[Loss] = Registry("loss")


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
