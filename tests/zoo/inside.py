"""Defences between the layers of a network."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from tests.zoo.base import Defence, Model, hashed


class Inside(Defence):
    """A function of the features behind so many layers of a sample network; it is attacked straight through the function."""

    def __init__(self, net: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], after: int = 11) -> None:
        super().__init__(net)
        self.function, self.after = function, after

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.body[: self.after]((x - self.net.mean) / self.net.std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.body[self.after :](self.function(self.features(x)))

    def bare(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x)
        return self.net.body[self.after :](features + (self.function(features) - features).detach())


def rounded(features: torch.Tensor) -> torch.Tensor:
    return (2 * features).round() / 2 + 0 * features


def hashed_dropout(features: torch.Tensor) -> torch.Tensor:
    """A fifth of the features is left out, which ones depends on every bit of them."""
    keep = hashed(features, features[0].numel()).view_as(features) >= 0.2
    return torch.where(keep, features / 0.8, 0.0)


def rippled(features: torch.Tensor) -> torch.Tensor:
    """Waves of steep slopes and small height."""
    return features + 0.2 * torch.sin(300 * features)


def sawtooth(features: torch.Tensor) -> torch.Tensor:
    """Steep ramps of small height."""
    return features + 0.3 * torch.remainder(50 * features, 1)


class WinnersTakeAll(nn.Module):
    """k-WTA (arXiv 1905.10510): the largest activations of each sample pass, the others are zero, so the network jumps everywhere."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), 1).values[:, -1:]
        return torch.where(flat >= least, flat, 0.0).view_as(x)


class SmoothWinners(Defence):
    """A network of k-WTA layers: attacked through means over noisy inputs of several sizes, and with twice as many winners."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def surrogates(self) -> Sequence[Model]:
        wider = copy.deepcopy(self.net)
        for module in wider.modules():
            if isinstance(module, WinnersTakeAll):
                module.share *= 2

        def averaged(size: float) -> Model:
            return lambda x: torch.stack([self.net(x + size * torch.randn_like(x)) for _ in range(12)]).mean(0)

        return [averaged(0.05), averaged(0.2), wider]


class SteepGates(Defence):
    """Gates of units, which have no gradient: attacked with slopes in their place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def surrogates(self) -> Sequence[Model]:
        return [lambda x, soft=soft: self.net(x, soft) for soft in (4.0, 8.0, 16.0)]
