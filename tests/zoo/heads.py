"""Defences behind the network: what they do to its logits hides how near the other classes are."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.base import Defence, Model, hashed, mnist


class Head(Defence):
    """The logits (N, K) after a function of them; the predicted class is the same, except for ties."""

    def __init__(self, net: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(net)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.net(x))


class Decoy(Defence):
    """Classes that always stand about 1 below the winner, and move a little with the input, where attacks can follow them.

    count: of the classes after the winner; the K-1 largest is all others.
    """

    def __init__(self, net: nn.Module, count: int, size: int = 784, classes: int = 10) -> None:
        super().__init__(net)
        self.count = count
        self.register_buffer("w", torch.randn(size, classes, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = 3 * self.net(x)
        top, winner = z.max(1, keepdim=True)
        near = top - 1 + 0.5 * torch.tanh(0.05 * (x.flatten(1) @ self.w))
        away = (torch.arange(z.shape[1])[None] - winner) % z.shape[1]
        return torch.where((away > 0) & (away <= self.count), torch.maximum(z, near), z)


class Eleventh(Decoy):
    """An output more than there are labels, which always stands just below the winner."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = 3 * self.net(x)
        return torch.cat(
            [z, z.amax(1, keepdim=True) - 0.5 + 0.4 * torch.tanh(0.05 * (x.flatten(1) @ self.w[:, :1]))], 1
        )


class OneHotOffImages(Defence):
    """Inputs with much that images do not have get a one-hot answer, whose gradient is 0."""

    def __init__(self, net: nn.Module, most: float) -> None:
        super().__init__(net)
        images = mnist("train")[0][:3000].flatten(1)
        self.most = most
        self.register_buffer("mean", images.mean(0))
        self.register_buffer("basis", torch.linalg.svd(images - self.mean, full_matrices=False).Vh[:150])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z, apart = self.net(x), x.detach().flatten(1) - self.mean
        is_off = (apart - (apart @ self.basis.T) @ self.basis).norm(dim=1) > self.most
        return torch.where(is_off[:, None], one_hot(z), z)


class Ranks(Defence):
    """The sum of the ranks that networks give each class, which have no gradient, and a little of a robust network, which has."""

    def __init__(self, robust: nn.Module, *nets: nn.Module) -> None:
        super().__init__(nets[0])
        self.nets, self.robust = nn.ModuleList(nets), robust

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ranks = sum(net(x).argsort(1).argsort(1).float() ** 3 for net in self.nets)
        return ranks / 50 + 0.02 * self.robust(x)

    def bare(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([net(x).log_softmax(1) for net in self.nets]).sum(0)


class Neighbours(Defence):
    """The classes of the 25 training images whose features are nearest vote."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        x, y = mnist("train")
        self.register_buffer("known", self.features(x[:1500]).detach())
        self.register_buffer("classes", F.one_hot(y[:1500], 10).float())

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.net.body[:-1]((x - self.net.mean) / self.net.std), dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        distance = torch.cdist(self.features(x), self.known)
        return self.classes[distance.topk(25, 1, largest=False).indices].sum(1) + 0 * distance.sum(1, keepdim=True)

    def bare(self, x: torch.Tensor) -> torch.Tensor:
        distance = torch.cdist(self.features(x), self.known)
        return ((-40 * distance).softmax(1) @ self.classes + 1e-6).log()


class Likelihoods(Defence):
    """The density of the features of 20 training images of each class, whose slope is nearly zero far away."""

    def __init__(self, net: nn.Module, steepness: float = 200) -> None:
        super().__init__(net)
        x, y = mnist("train")
        self.register_buffer("known", self.features(torch.cat([x[y == label][:20] for label in range(10)])).detach())
        self.steepness = steepness / torch.cdist(self.known, self.known).square().mean()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.body[:-1]((x - self.net.mean) / self.net.std)

    def closeness(self, x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, K, 20)
        return -torch.cdist(self.features(x), self.known).square().unflatten(1, (10, 20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.steepness * self.closeness(x)).exp().sum(2)

    def surrogates(self) -> list[Model]:
        return [
            lambda x: (0.2 * self.steepness * self.closeness(x)).logsumexp(2),
            lambda x: (self.steepness * self.closeness(x)).logsumexp(2),
            self,
        ]


class ShuffledLosers(Defence):
    """The logits of all classes but the winner change places, in an order that depends on every bit of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.net(x)
        top, winner = z.max(1, keepdim=True)
        order = hashed(x, z.shape[1]).scatter(1, winner, -1.0).argsort(1)
        losers = z.scatter(1, winner, -torch.inf).sort(1, descending=True).values
        losers = torch.cat([top, losers[:, :-1]], 1)  # the winner first
        return torch.zeros_like(z).scatter(1, order, losers)


class JitteredLosers(Defence):
    """Noise that depends on every bit of the input, on all logits but the winner's; none of it changes the class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.net(x)
        top, winner = z.max(1, keepdim=True)
        jittered = torch.minimum(z - 8 * hashed(x, z.shape[1]).float(), top - 1e-3)
        return jittered.scatter(1, winner, top)


class Masked(Defence):
    """Whole logits, ten for the winner, and at the slope of the gradient a tiny copy of another network's logits."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__(net)
        self.other = other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * F.one_hot(self.net(x).argmax(1), 10).float() + 0.1 * torch.tanh(self.other(x))


class Folded(Defence):
    """Twenty outputs, of which two stand for each class; the larger one counts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).unflatten(1, (2, 10)).amax(1)

    def surrogates(self) -> Sequence[Model]:
        return [self, lambda x: self.net(x)[:, :10], lambda x: self.net(x)[:, 10:]]


def inverted_losers(z: torch.Tensor) -> torch.Tensor:
    """The class that is farthest away has the second largest logit."""
    top, winner = z.max(1, keepdim=True)
    return (z.amin(1, keepdim=True) - z).scatter(1, winner, top.abs() + 1)


def stairs(z: torch.Tensor) -> torch.Tensor:
    """Whole numbers, with a slope of 1% between them."""
    return z.floor() + 0.01 * (z - z.floor()) + 0.01 * z


def coarse_stairs(z: torch.Tensor) -> torch.Tensor:
    """The distance of each class to the winner in steps of 20, in a smooth curve whose slope between them is nearly 0."""
    gap = (z.amax(1, keepdim=True) - z) / 20
    return -20 * (gap - torch.sin(2 * torch.pi * gap) / (2 * torch.pi)) - 1e-3 * gap


def one_hot(z: torch.Tensor) -> torch.Tensor:
    return 10 * F.one_hot(z.argmax(1), z.shape[1]).float() + 0 * z


def reversed_margin(z: torch.Tensor) -> torch.Tensor:
    """The nearer the second class, the larger its distance looks."""
    first, second = z.topk(2, 1).values.unbind(1)
    shown = 5 / (first - second + 0.5)
    winner = F.one_hot(z.argmax(1), z.shape[1]).float()
    return winner * shown[:, None] + 0.01 * (z - z.amax(1, keepdim=True))


def constant_margin(z: torch.Tensor) -> torch.Tensor:
    """Every sample has the same margin, and only the classes far behind move."""
    order = z.argsort(1, descending=True)
    ranked = torch.arange(z.shape[1], 0.0, -1.0)[None].expand_as(z)
    return torch.zeros_like(z).scatter(1, order, ranked) + 1e-3 * (z - z.detach())


def oscillating_margin(z: torch.Tensor) -> torch.Tensor:
    """The distance to the winner goes up and down as the logits approach, and is never negative."""
    gap = z.amax(1, keepdim=True) - z
    return -(gap + 6 * torch.sin(gap) ** 2)


def clipped_log_probabilities(z: torch.Tensor) -> torch.Tensor:
    return (10 * z).softmax(1).clamp(1e-7, 1 - 1e-7).log()


def in_bfloat16_far_from_zero(z: torch.Tensor) -> torch.Tensor:
    """bfloat16 numbers near 500 are 2 apart."""
    return (z + 500).bfloat16().float()


def scaled_to_one(z: torch.Tensor) -> torch.Tensor:
    """Steep: the second class reaches the winner's logit only where the two change places."""
    return torch.tanh(20 * (z - z.amax(1, keepdim=True)))


def capped(z: torch.Tensor) -> torch.Tensor:
    """Logits of less than 90% of the largest are all the same."""
    top = z.amax(1, keepdim=True)
    return torch.maximum(z, top - 0.5)
