"""Defences of the backward pass: the outputs are those of the network, the gradients are not."""

from collections.abc import Callable

import torch
from torch import nn

from tests.zoo.base import Defence


class _Backward(torch.autograd.Function):
    """The identity, with a backward pass of its own: (gradient, input) -> gradient."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.save_for_backward(x)
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient, ctx.saved_tensors[0]), None


class ChangedGradient(Defence):
    """change: (gradient, x) -> the gradient that the attacker sees."""

    def __init__(self, net: nn.Module, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(net)
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(_Backward.apply(x, self.change))


class ChangedInside(Defence):
    """The gradient of the features behind the first convolution is changed."""

    def __init__(self, net: nn.Module, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(net)
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body = self.net.body
        features = body[0]((x - self.net.mean) / self.net.std)
        return body[1:](_Backward.apply(features, self.change))


def _fixed(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


def flip_share(share: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The sign is wrong on a share of the pixels."""
    return lambda gradient, x: torch.where(_fixed(gradient.shape[1:]) < share, -gradient, gradient)


def drop_share(share: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """No gradient on a share of the pixels."""
    return lambda gradient, x: torch.where(_fixed(gradient.shape[1:]) < share, 0.0, gradient)


def flip_channels(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The sign is wrong in every third channel."""
    sign = torch.where(torch.arange(gradient.shape[1]) % 3 == 0, -1.0, 1.0)
    return gradient * sign[:, None, None]


def wild_scale(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Each pixel has its own scale, over six orders of magnitude, and a quarter of them the wrong sign."""
    draw = _fixed(gradient.shape[1:])
    return gradient * 10 ** (6 * (4 * draw).frac() - 3) * torch.where(draw < 0.25, -1.0, 1.0)


def noisy(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Three times as much noise as gradient, different in each pass."""
    size = gradient.flatten(1).std(1)[:, None, None, None]
    return gradient + 3 * size * torch.randn_like(gradient)


def moved(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of the pixel two rows and columns away."""
    return gradient.roll((2, 2), (2, 3))


def strongest_only(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Only the eight pixels with the largest gradient have one."""
    flat = gradient.flatten(1)
    least = flat.abs().topk(8, 1).values[:, -1:]
    return torch.where(flat.abs() >= least, flat, 0.0).view_as(gradient)


def off_the_grid(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Right at images with 8 bits, as all clean ones are, and reversed between them."""
    off = ((255 * x - (255 * x).round()).abs() > 1e-3).flatten(1).any(1)
    return torch.where(off[:, None, None, None], -gradient, gradient)


def of_another_sample(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Each sample has the gradient of another one in the batch; a single sample has its own."""
    return gradient.roll(1, 0)


def nearly_nothing(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """So small that most of it is rounded to 0."""
    return gradient * 1e-44


class AnotherNetworks(Defence):
    """The outputs of one network, the gradient of another."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__(net)
        self.other = other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shown = self.other(x)
        return shown + (self.net(x) - shown).detach()


class HalfDetached(Defence):
    """The network proper sees a detached input; another network adds a little, with its gradient."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__(net)
        self.other = other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.detach()) + 0.05 * self.other(x)


class HalfOfTheImage(Defence):
    """The left half of the image is detached."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.split(x.shape[3] // 2, 3)
        return self.net(torch.cat([left.detach(), right], 3))


class NotANumber(Defence):
    """A square root at 0, whose gradient is infinite, adds nothing to the output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + 0 * torch.sqrt((x - x.detach()).abs()).flatten(1).sum(1, keepdim=True)


class NearBoundary(Defence):
    """The gradient of the logits has the wrong sign where the winner leads by less than so much, and attacks turn back there."""

    def __init__(self, net: nn.Module, lead: float) -> None:
        super().__init__(net)
        self.lead = lead

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def turned(gradient: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            first, second = z.topk(2, 1).values.unbind(1)
            return torch.where((first - second < self.lead)[:, None], -gradient, gradient)

        return _Backward.apply(self.net(x), turned)
