"""Defences behind the network: what they do to its logits hides how near the other classes are."""

from collections.abc import Callable

import torch

from tests.zoo.base import Defence


class Head(Defence):
    """The logits (N, K) after a function of them; the predicted class is often the same."""

    def __init__(self, net: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(net)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.net(x))


def _wave(x: torch.Tensor, count: int) -> torch.Tensor:  # (N, ...) -> (N, count) in [-1, 1]
    """Small functions of the input that an attack can increase without an effect."""
    weight = torch.randn(x[0].numel(), count, generator=torch.Generator().manual_seed(3))
    return torch.tanh(0.05 * x.flatten(1) @ weight)


class DecoyNext(Defence):
    """The class after the winner always stands about 1 below it, and moves a little with the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = 3 * self.net(x)
        top, winner = z.max(1, keepdim=True)
        after = (winner + 1) % z.shape[1]
        return z.scatter(1, after, torch.maximum(z.gather(1, after), top - 1 + 0.5 * _wave(x, 1)))


class DecoyAll(Defence):
    """All classes but the winner stand about 1 below it, and move a little with the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = 3 * self.net(x)
        top, winner = z.max(1, keepdim=True)
        return (top - 1 + 0.5 * _wave(x, z.shape[1])).scatter(1, winner, top)


class Eleventh(Defence):
    """An output more than there are labels, which always stands just below the winner."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = 3 * self.net(x)
        return torch.cat([z, z.amax(1, keepdim=True) - 0.5 + 0.4 * _wave(x, 1)], 1)


def inverted_losers(z: torch.Tensor) -> torch.Tensor:
    """The class that is farthest away has the second largest logit."""
    top, winner = z.max(1, keepdim=True)
    return (z.amin(1, keepdim=True) - z).scatter(1, winner, top.abs() + 1)


def stairs(z: torch.Tensor) -> torch.Tensor:
    """Whole numbers, with a slope of 1% between them."""
    return z.floor() + 0.01 * (z - z.floor()) + 0.01 * z


def one_hot(z: torch.Tensor) -> torch.Tensor:
    return 10 * torch.nn.functional.one_hot(z.argmax(1), z.shape[1]).float()


def reversed_margin(z: torch.Tensor) -> torch.Tensor:
    """The nearer the second class, the larger its distance looks."""
    first, second = z.topk(2, 1).values.unbind(1)
    shown = 5 / (first - second + 0.5)
    winner = torch.nn.functional.one_hot(z.argmax(1), z.shape[1]).float()
    return winner * shown[:, None] + 0.01 * (z - z.amax(1, keepdim=True))
