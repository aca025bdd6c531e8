"""Whether the weights fit images of another size better: LeNet is often trained on images of MNIST resized to 32 x 32."""

import torch
from torch import nn

from lsa_cli.models.contest import Outcome, Read, Standing
from lsa_cli.models.rebuilding.geometry import geometries
from lsa_cli.models.rebuilding.search import Search
from lsa_cli.models.rebuilding.weighing import log_odds_of

SIZE = 32  # pixels; smaller images are resized to it (our choice)
_BEYOND_DOUBT = 6.0  # nats


def fits_resized(search: Search, outcome: Outcome) -> Standing | None:
    """The best network on images resized to SIZE, where it is not beyond doubt worse; else None.

    Only asked where images of that size lead through more usual strides and paddings to the first linear layer.
    """
    best = search.variant_of(outcome.best)
    height, width = search.x.shape[2:]
    usual = next(geometries(best.structure.elements, (SIZE, SIZE)), None)
    if max(height, width) >= SIZE or not best.geometry.steps or usual is None or usual.cost >= best.geometry.cost:
        return None
    trained = None if search.trained is None else (_resize(search.trained[0]), search.trained[1])
    # At the wrong size another normalisation than that of the training can be the best one.
    other = Search(
        [best.structure],
        search.tensors,
        _resized(search.read),
        search.available,
        search.normalizations,
        search.costs,
        trained,
    )
    found = other.best()
    if found is None:
        return None
    losses = [(outcome.best.loss, found.best.loss)]
    mine, theirs = search.on_training_images(outcome.best), other.on_training_images(found.best)
    losses += [(mine, theirs)] if mine is not None and theirs is not None else []
    odds = log_odds_of(losses, search.unrest_of(outcome.best), other.unrest_of(found.best))
    return None if odds >= _BEYOND_DOUBT else found.best


def _resize(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True).clamp(0, 1)


def _resized(read: Read) -> Read:
    def resized(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = read(start, stop)
        return _resize(x), y

    return resized
