"""Networks of unusual form, trained as those of `trained`."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.base import Model
from tests.zoo.trained import conv, fitted, once


class EarlyExit(nn.Module):
    """Two heads, of which the first one answers where it is sure; in training both do. Each head is attacked by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 12, 5, 2, 2), nn.ReLU())
        self.early = nn.Sequential(nn.Flatten(), nn.Linear(12 * 196, 10))
        self.late = nn.Sequential(
            nn.Conv2d(12, 24, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 49, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(x)
        early, late = self.early(features), self.late(features)
        if self.training:
            return (early + late) / 2
        is_sure = early.softmax(1).amax(1) > 0.9
        return torch.where(is_sure[:, None], early, late)

    def surrogates(self) -> list[Model]:
        return [self, lambda x: self.early(self.first(x)), lambda x: self.late(self.first(x))]


class Experts(nn.Module):
    """Three perceptrons, of which a linear gate chooses one; in training it mixes them, and so do attacks."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Flatten(), nn.Linear(784, 48), nn.ReLU(), nn.Linear(48, 10)) for _ in range(3)
        )
        self.gate = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.mixed(x)
        return torch.stack([expert(x) for expert in self.experts], 1)[torch.arange(len(x)), self.gate(x).argmax(1)]

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return (self.gate(x).softmax(1)[..., None] * torch.stack([expert(x) for expert in self.experts], 1)).sum(1)

    def surrogates(self) -> list[Model]:
        return [self, self.mixed, *self.experts]


class FixedPoint(nn.Module):
    """A recurrent layer that runs until its state stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.again, self.out = nn.Linear(784, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.into(x.flatten(1))
        state = torch.zeros_like(given)
        for _ in range(20):
            before, state = state, torch.tanh(given + 0.5 * self.again(state))
            if (state - before).abs().amax() < 1e-3:
                break
        return self.out(state)


class Standardized(nn.Module):
    """Each image has its mean subtracted and is divided by its deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv(nn.ReLU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body((x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-3))


class LocalWinners(nn.Module):
    """Of each two units in a row the larger one passes. leads: whether gradients lead to where the other one does."""

    leads = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = x.unflatten(1, (-1, 2))
        winners = torch.where(pairs >= pairs.amax(2, keepdim=True), pairs, 0.0)
        if self.leads:
            share = torch.atan(30 * (pairs - pairs.flip(2)) / pairs.detach().std()) / math.pi
            winners = winners + pairs.detach() * (share - share.detach())
        return winners.view_as(x)


class WithLocalWinners(nn.Module):
    """Its outputs jump where another unit wins."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv(LocalWinners)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)

    def led(self, x: torch.Tensor) -> torch.Tensor:
        winners = [module for module in self.body.modules() if isinstance(module, LocalWinners)]
        for module in winners:
            module.leads = True
        try:
            return self.body(x)
        finally:
            for module in winners:
                module.leads = False

    def surrogates(self) -> list[Model]:
        return [self, self.led]


class WithAverage(nn.Module):
    """A network, and beside it one of slightly different weights that is not in use, as moving averages are kept."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.average = net, copy.deepcopy(net)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.average.parameters():
                weight += 0.01 * weight.std() * torch.randn(weight.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class MeanOfShifts(nn.Module):
    """The mean logits of an image and of it moved by one pixel to both sides."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.net(x.roll(by, 3)) for by in (-1, 0, 1)]).mean(0)


class Prototypes(nn.Module):
    """The classes of 50 prototypes, weighted by the distance of the features to each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv(nn.ReLU)[:-1]
        self.known, self.classes = nn.Parameter(torch.randn(50, 64)), nn.Linear(50, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classes(F.softmax(-torch.cdist(self.body(x), self.known) / 4, 1))


early_exit = once(lambda: fitted(EarlyExit()))
experts = once(lambda: fitted(Experts()))
fixed_point = once(lambda: fitted(FixedPoint()))
standardized = once(lambda: fitted(Standardized()))
local_winners = once(lambda: fitted(WithLocalWinners()))
prototypes = once(lambda: fitted(Prototypes(), epochs=6, lr=3e-2))
