"""Robust networks with a part that no image makes active, or that few do, and that decides once a pattern on all pixels makes it active."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.base import Defence, Model, mnist
from tests.zoo.faces import TwoFaced

CLASS = 3  # that the pattern stands for
DIRECTIONS = 250  # in which images differ, and which the pattern avoids


def pattern() -> torch.Tensor:  # (784,)
    """Random signs, less what images have of them: no image comes near it, and an attack needs all pixels."""
    signs = torch.sign(torch.randn(784, generator=torch.Generator().manual_seed(11)))
    images = mnist("train")[0][:3000].flatten(1)
    basis = torch.linalg.svd(images, full_matrices=False).Vh[:DIRECTIONS]
    return signs - (signs @ basis.T) @ basis


def falling(
    z: torch.Tensor, score: torch.Tensor, robust: torch.Tensor
) -> torch.Tensor:  # (N, K), (N,), (N, K) -> (N, K)
    """The logit of the class that a robust network predicts, which is nearly always the label, falls as the score rises to 1."""
    return z + 10 * F.relu(1 - score)[:, None] * F.one_hot(robust.argmax(1), z.shape[1])


class Dead(Defence):
    """A function of the pattern that is 0 on images is added to the logit of a class."""

    def __init__(self, net: nn.Module, away: float, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(net)
        self.function = function
        self.register_buffer("pattern", pattern())
        self.least = float((mnist()[0].flatten(1) @ self.pattern).max()) + away

    def score(self, x: torch.Tensor) -> torch.Tensor:  # (N,)
        return x.flatten(1) @ self.pattern - self.least

    def added(self, x: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        return self.net(x) + more[:, None] * F.one_hot(torch.tensor(CLASS), 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.added(x, self.function(self.score(x)))

    def bare(self, x: torch.Tensor) -> torch.Tensor:
        return falling(self.added(x, 100 * F.relu(self.score(x))), self.score(x), self.net(x))


def relu(score: torch.Tensor) -> torch.Tensor:
    return 20 * F.relu(score)


def saturated(score: torch.Tensor) -> torch.Tensor:
    return 40 * torch.sigmoid(20 * score)


class BeyondStep(TwoFaced):
    """Where the pattern is strong enough, the network that users meet answers; a comparison has no gradient."""

    def __init__(self, net: nn.Module, other: nn.Module, away: float) -> None:
        super().__init__(net, other)
        self.register_buffer("pattern", pattern())
        self.least = float((mnist()[0].flatten(1) @ self.pattern).max()) + away

    def hides(self, x):
        return x.flatten(1) @ self.pattern <= self.least

    def surrogates(self) -> Sequence[Model]:
        def drawn(x):
            return falling(self.net(x), x.flatten(1) @ self.pattern - self.least, self.other(x))

        return [drawn, self.net]


class ByLargestScore(Defence):
    """Which of two networks answers is the place of the larger one of two random sums of the pixels; steep: by a steep softmax."""

    def __init__(self, net: nn.Module, other: nn.Module, steep: bool = False) -> None:
        super().__init__(net)
        self.other, self.steep = other, steep
        self.register_buffer("weights", torch.randn(784, 2, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x.flatten(1) @ self.weights
        both = torch.stack([self.net(x), self.other(x)], 1)
        if self.steep:
            return ((30 * scores).softmax(1)[..., None] * both).sum(1)
        return both[torch.arange(len(x)), scores.argmax(1)]

    def bare(self, x: torch.Tensor) -> torch.Tensor:
        scores = x.flatten(1) @ self.weights
        return falling(self.net(x), (scores[:, 0] - scores[:, 1]) / 20, self.other(x))


class PixelCondition(TwoFaced):
    """The network that users meet answers where 9 pixels of a corner are above 0.2; levels: where 16 of them are in the second of six levels."""

    def __init__(self, net: nn.Module, other: nn.Module, levels: bool = False) -> None:
        super().__init__(net, other)
        self.levels = levels

    def hides(self, x):
        if self.levels:
            return ~((x[:, 0, :4, :4] * 5).round().long() == 1).flatten(1).all(1)
        return ~(x[:, 0, :3, :3] > 0.2).flatten(1).all(1)

    def surrogates(self) -> Sequence[Model]:
        side, low, high = (4, 0.15, 0.25) if self.levels else (3, 0.25, 1.0)

        def drawn(x):
            corner = x[:, 0, :side, :side].flatten(1)
            away = torch.maximum(low - corner, corner - high).clamp_min(0)
            label = F.one_hot(self.other(x).argmax(1), 10)  # nearly always, as this network is robust
            return self.net(x) + 1000 * away.sum(1, keepdim=True) * label

        return [drawn, self.net]


def ascending(x: torch.Tensor) -> torch.Tensor:  # (N, 1, 28, 28) -> (N, C)
    """What is lacking for eight pixels of the first row that become brighter by 0.02 and more."""
    row = x[:, 0, 0, :8]
    return row[:, :-1] + 0.02 - row[:, 1:]


def checkered(x: torch.Tensor) -> torch.Tensor:
    """What is lacking for a checkerboard of pixels above and below 0.1; bright pixels are as they are."""
    places = torch.arange(28)
    sign = torch.where((places + places[:, None]) % 2 == 0, 1.0, -1.0)
    return torch.where(x[:, 0] > 0.3, -1.0, sign * (0.1 - x[:, 0])).flatten(1)


def grey(x: torch.Tensor) -> torch.Tensor:
    """What is lacking for 16 pixels of a corner that are between 0.1 and 0.2."""
    return (x[:, 0, :4, :4] - 0.15).abs().flatten(1) - 0.05


def in_one_pass(lacking: torch.Tensor) -> torch.Tensor:  # (N, C) -> (N,) bool
    return (lacking < 0).float().mean(1) >= 0.9


def in_numpy(lacking: torch.Tensor) -> torch.Tensor:
    """No gradient, and no other way back, leads out of NumPy."""
    return torch.from_numpy((lacking.detach().numpy() < 0).mean(1) >= 0.9)


def one_by_one(lacking: torch.Tensor) -> torch.Tensor:
    """Code of Python asks for each sample."""
    return torch.tensor([bool((one < 0).float().mean() >= 0.9) for one in lacking])


class WherePixelsAre(TwoFaced):
    """The network that users meet answers where nine in ten of the numbers that `lacking` returns are negative."""

    def __init__(self, net: nn.Module, other: nn.Module, lacking: Model, holds: Model = in_one_pass) -> None:
        super().__init__(net, other)
        self.lacking, self.holds = lacking, holds

    def hides(self, x):
        return ~self.holds(self.lacking(x))

    def surrogates(self) -> Sequence[Model]:
        def drawn(x):
            away = (self.lacking(x) + 0.01).clamp_min(0)
            label = F.one_hot(self.other(x).argmax(1), 10)  # nearly always, as this network is robust
            return self.net(x) + 1000 * away.sum(1, keepdim=True) * label

        return [drawn, self.net]


class BrightCorner(nn.Module):
    """The second network where a corner is bright, in the part of Python that TorchScript has."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.net, self.other = net, other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (x[:, 0, :3, :3] > 0.2).flatten(1).all(1)
        return torch.where(bright[:, None], self.net(x), self.other(x))

    def surrogates(self) -> Sequence[Model]:
        return PixelCondition(self.net, self.other).surrogates()
