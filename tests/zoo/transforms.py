"""Defences in front of the network: they change its input, with steps, chance or long computations that gradients do not pass."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.base import Defence, Model, hashed, mnist


class Transformed(Defence):
    """The network behind a transform (N, C, H, W) -> the same shape.

    It is attacked straight through the transform, and as if there were none (BPDA, arXiv 1802.00420).
    """

    def __init__(self, net: nn.Module, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(net)
        self.transform = transform

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.transform(x))

    def bare(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x + (self.transform(x.detach()) - x).detach())

    def surrogates(self) -> Sequence[Model]:
        return [self.bare, self.net]


class StraightThrough(Transformed):
    """The same with a gradient that passes straight through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bare(x)


class Averaged(Transformed):
    """A transform that changes with the input or by chance: attacked through the mean over eight inputs (EOT)."""

    def averaged(self, x: torch.Tensor) -> torch.Tensor:
        noise = 1e-4 * torch.randn(8, *x.shape)
        return torch.stack([self.net(self.transform(x + one)) for one in noise]).mean(0)

    def surrogates(self) -> Sequence[Model]:
        return [self.averaged, self.bare, self.net]


def levels(count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: (x * (count - 1)).round() / (count - 1)


def thermometer(x: torch.Tensor) -> torch.Tensor:
    """How many of ten thresholds each pixel exceeds (Buckman et al., ICLR 2018)."""
    thresholds = (torch.arange(10) + 0.5) / 10
    return (x[..., None] > thresholds).float().mean(-1)


def steep(x: torch.Tensor) -> torch.Tensor:
    """Black or white, with a sigmoid whose slope is 0 in float32 at both."""
    return torch.sigmoid(400 * (x - 0.5))


def dct(size: int, step: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rounding of the cosine transform of blocks, as JPEG does."""
    place = torch.arange(size)
    matrix = torch.cos(math.pi * (2 * place[None] + 1) * place[:, None] / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)

    def transform(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        blocks = x.view(n, c, h // size, size, w // size, size).transpose(3, 4)
        coded = (matrix @ blocks @ matrix.T / step).round() * step
        return (matrix.T @ coded @ matrix).transpose(3, 4).reshape(n, c, h, w).clamp(0, 1)

    return transform


def median(x: torch.Tensor) -> torch.Tensor:
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    return windows.flatten(4).median(4).values


def ripple(x: torch.Tensor) -> torch.Tensor:
    return x + 0.02 * torch.sin(400 * x)


def low_pass(x: torch.Tensor) -> torch.Tensor:
    """The lowest frequencies, rounded."""
    spectrum = torch.fft.rfft2(x)
    keep = torch.zeros_like(spectrum.real)
    keep[..., :9, :9] = keep[..., -8:, :9] = 1
    return (10 * torch.fft.irfft2(spectrum * keep, s=x.shape[2:])).round() / 10


def _window(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, margin: int) -> torch.Tensor:
    """Each image cut from itself with zeros around it, at its own place."""
    windows = F.pad(x, (margin,) * 4).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
    return windows[torch.arange(len(x)), :, rows, columns]


def hashed_crop(x: torch.Tensor) -> torch.Tensor:
    rows, columns = (5 * hashed(x, 2)).long().unbind(1)
    return _window(x, rows, columns, 2)


def hashed_noise(x: torch.Tensor) -> torch.Tensor:
    return x + 0.8 * (hashed(x, x[0].numel()).float().view_as(x) - 0.5)


def hashed_pixels(x: torch.Tensor) -> torch.Tensor:
    """A fifth of the pixels are replaced by a neighbour (pixel deflection, arXiv 1801.08926)."""
    return torch.where(hashed(x, x[0].numel()).view_as(x) < 0.2, x.roll(1, 3), x)


def noise(x: torch.Tensor) -> torch.Tensor:
    return x + 0.2 * torch.randn_like(x)


def random_resize(x: torch.Tensor) -> torch.Tensor:
    """Smaller by up to four pixels, at a random place (arXiv 1711.01991)."""
    size = x.shape[2] - int(torch.randint(5, ()))
    left, top = (int(torch.randint(x.shape[2] - size + 1, ())) for _ in range(2))
    small = F.interpolate(x, size=(size, size), mode="bilinear")
    return F.pad(small, (left, x.shape[2] - size - left, top, x.shape[2] - size - top))


class Patches(nn.Module):
    """Every patch of 4 x 4 pixels is replaced by the nearest one of training images (image quilting, arXiv 1711.00117)."""

    def __init__(self, count: int = 400) -> None:
        super().__init__()
        patches = self._cut(mnist("train")[0][:200]).flatten(0, 1)
        patches = patches[patches.std(1) > 0.05]
        chosen = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[: count - 1]
        self.register_buffer("book", torch.cat([torch.zeros(1, 16), patches[chosen]]))

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        return F.unfold(x, 4, stride=4).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nearest = torch.cdist(self._cut(x), self.book).argmin(2)
        return F.fold(self.book[nearest].transpose(1, 2), x.shape[2:], 4, stride=4)


class Components(nn.Module):
    """The image from its 60 first principal components, rounded."""

    def __init__(self, step: float) -> None:
        super().__init__()
        images = mnist("train")[0][:3000].flatten(1)
        self.step = step
        self.register_buffer("mean", images.mean(0))
        self.register_buffer("basis", torch.linalg.svd(images - self.mean, full_matrices=False).Vh[:60])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = ((x.flatten(1) - self.mean) @ self.basis.T / self.step).round() * self.step
        return (self.mean + code @ self.basis).view_as(x).clamp(0, 1)


class Sharpened(Defence):
    """Moves each input towards the class that it has already (anti-adversary, arXiv 2103.14347), and hides the moves."""

    def __init__(self, net: nn.Module, length: float, steps: int) -> None:
        super().__init__(net)
        self.length, self.steps = length, steps

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        moved = x.detach()
        for _ in range(self.steps):
            leaf = moved.clone().requires_grad_(True)
            with torch.enable_grad():
                z = self.net(leaf)
                (gradient,) = torch.autograd.grad(F.cross_entropy(z, z.argmax(1), reduction="sum"), leaf)
            moved = (moved - self.length / self.steps * gradient.sign()).clamp(0, 1)
        return moved

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x + (self.moved(x) - x).detach())


class Voting(Defence):
    """The classes of a network for several fixed changes of the input, counted; attacked through the mean of its logits."""

    def __init__(self, net: nn.Module, count: int, size: float, soft: float = 0.0) -> None:
        super().__init__(net)
        self.soft = soft
        self.register_buffer("noise", size * torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(1)))

    def each(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.net(x + one) for one in self.noise]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        votes = [(self.soft * z).softmax(1) if self.soft else F.one_hot(z.argmax(1), 10) + 0 * z for z in self.each(x)]
        return torch.stack(votes).sum(0)

    def bare(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.each(x)).mean(0)


class Majority(Defence):
    """The classes that several networks vote for, counted; attacked through the mean of their logits."""

    def __init__(self, *nets: nn.Module) -> None:
        super().__init__(nets[0])
        self.nets = nn.ModuleList(nets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([F.one_hot((z := net(x)).argmax(1), 10) + 0 * z for net in self.nets]).sum(
            0
        ) + 1e-3 * self.nets[0](x).softmax(1)

    def bare(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([net(x).log_softmax(1) for net in self.nets]).mean(0)


class Masked(Defence):
    """Pixels that are darker than 1.2 times the mean of their image do not count; attacked with a slope for the mask."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x * (x > self.least(x)).float())

    def least(self, x: torch.Tensor) -> torch.Tensor:
        return 1.2 * x.mean((1, 2, 3), keepdim=True)

    def softly(self, x: torch.Tensor) -> torch.Tensor:
        least = self.least(x)
        soft = torch.sigmoid(20 * (x - least))
        return self.net(x * ((x > least).float() + soft - soft.detach()))

    def surrogates(self) -> list[Model]:
        return [self.softly, self.net]


class Blackened(Masked):
    """The same by assignment, past which no attack of the audit has a slope."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x.clone()
        kept[x <= self.least(x)] = 0
        return self.net(kept)
