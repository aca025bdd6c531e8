"""The fifteen common corruptions (Hendrycks & Dietterich, arXiv 1903.12261), in five severities each.

The strengths are the published ones, in pixels and in [0, 1]: those of ImageNet-C where the shorter side of an image
has 64 pixels or more, those of CIFAR-10-C below. The threshold is our choice.

The algorithms are those of the authors' code, in batches. These differences are our choice:
- Frost is drawn (needles over a plasma) instead of cut from photographs.
- Images stay in floating point between the steps, except for JPEG.
- A Poisson count comes from one uniform number: exactly below a rate of 12, by the Cornish-Fisher expansion above, where
  at most two counts in a thousand are off by one.
- Motion goes along a sampled Gaussian in steps of a pixel, as in the package imagecorruptions, and beyond the border
  the last pixel repeats.
- The disk of the defocus has sum 1 at any radius.
- The lengths of the elastic transform, published for one size of image, grow with the shorter side.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lsa_cli.attacks.base import CORRUPTIONS
from lsa_cli.attacks.image_transforms import (
    correlate,
    disk,
    enlarged,
    gaussian_blur,
    grey,
    plasma,
    poisson,
    sampled,
    scattered,
    standardised,
    streak,
)
from lsa_cli.attacks.noise import Noise
from lsa_cli.attacks.randomness import normal_like, uniform_like
from lsa_cli.errors import UsageError

LARGE = 64  # the shorter side from which an image gets the strengths of ImageNet-C
SMALLEST = 8
_FROST_TINT = (-0.07, 0.01, 0.06)  # of red, green and blue

Corrupt = Callable[[torch.Tensor, Any], torch.Tensor]


@dataclass(frozen=True)
class Corruption(Noise):
    """Base of the corruptions. imagenet, cifar: the strength of each severity, for large and for small images."""

    severity: int = 3
    imagenet: ClassVar[tuple[Any, ...]] = ()
    cifar: ClassVar[tuple[Any, ...]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.severity, int) or not 1 <= self.severity <= 5:
            raise UsageError(f"the severity of a corruption must be a whole number from 1 to 5, not {self.severity}")
        if self.bounds is None:
            raise UsageError("corruptions need inputs with a known pixel range, and these inputs have none")

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        assert self.bounds is not None
        if x.ndim != 4:
            shape = " x ".join(map(str, x.shape[1:]))
            raise UsageError(f"corruptions take images (channels x height x width), and these inputs are {shape}")
        side = min(x.shape[2:])
        if side < SMALLEST:
            raise UsageError(
                f"corruptions need images of at least {SMALLEST} x {SMALLEST} pixels; a side of these has {side}"
            )
        low, high = self.bounds
        strengths = self.imagenet if side >= LARGE else self.cifar
        image = ((x - low) / (high - low)).clamp(0, 1)
        return low + (high - low) * self.corrupt(image, strengths[self.severity - 1]).clamp(0, 1)

    def corrupt(self, x: torch.Tensor, strength: Any) -> torch.Tensor:
        """(N, C, H, W) in [0, 1] -> the same shape; values outside of [0, 1] are clamped later."""
        raise NotImplementedError


def corruption(imagenet: tuple[Any, ...], cifar: tuple[Any, ...]) -> Callable[[Corrupt], Corrupt]:
    """Decorator: registers a function as `Corruption.corrupt` of a new corruption with these strengths."""

    def register(corrupt: Corrupt) -> Corrupt:
        name = corrupt.__name__
        members = {"imagenet": imagenet, "cifar": cifar, "corrupt": staticmethod(corrupt), "__doc__": corrupt.__doc__}
        # The random numbers depend on the name of the class.
        CORRUPTIONS.register(name)(type(name.title().replace("_", ""), (Corruption,), members))
        return corrupt

    return register


# Noise


@corruption(imagenet=(0.08, 0.12, 0.18, 0.26, 0.38), cifar=(0.04, 0.06, 0.08, 0.09, 0.10))
def gaussian_noise(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Adds normal noise of the given standard deviation."""
    return x + strength * normal_like(x)


@corruption(imagenet=(60, 25, 12, 5, 3), cifar=(500, 250, 100, 75, 50))
def shot_noise(x: torch.Tensor, strength: int) -> torch.Tensor:
    """Draws Poisson counts of photons. strength: photons in a white pixel."""
    return poisson(x * strength) / strength


@corruption(imagenet=(0.03, 0.06, 0.09, 0.17, 0.27), cifar=(0.01, 0.02, 0.03, 0.05, 0.07))
def impulse_noise(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Sets the given share of the values to black or white, with equal chance."""
    uniform = uniform_like(x)
    return torch.where(uniform < strength / 2, 0.0, torch.where(uniform > 1 - strength / 2, 1.0, x))


# Blur


@corruption(
    imagenet=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    cifar=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
)
def defocus_blur(x: torch.Tensor, strength: tuple[float, float]) -> torch.Tensor:
    """Takes the mean over a disk. strength: its radius, and the standard deviation that softens its edge."""
    return correlate(x, disk(*strength, like=x), "reflect")


@corruption(
    imagenet=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    cifar=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
)
def glass_blur(x: torch.Tensor, strength: tuple[float, int, int]) -> torch.Tensor:
    """Exchanges near pixels between two Gaussian blurs. strength: standard deviation, reach in pixels, rounds."""
    sigma, reach, rounds = strength
    rows, columns = (gaussian_blur(size, sigma, 4, mirrored=False).to(x) for size in x.shape[2:])
    x = rows @ x @ columns.mT
    for _ in range(rounds):
        source = scattered(x, reach)
        x = x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1)).reshape(x.shape)
    return rows @ x @ columns.mT


@corruption(
    imagenet=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), cifar=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
)
def motion_blur(x: torch.Tensor, strength: tuple[int, float]) -> torch.Tensor:
    """Blurs with half a Gaussian along a line within 45 degrees of the horizontal. strength: radius, standard deviation."""
    return correlate(x, streak(x, *strength, -45, 45))


@corruption(
    imagenet=((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)),
    cifar=((7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)),
)
def zoom_blur(x: torch.Tensor, strength: tuple[int, float]) -> torch.Tensor:
    """Takes the mean of the image and its enlargements. strength: their number, and the step between factors from 1."""
    count, step = strength
    total = x.clone()
    for i in range(count):
        total += enlarged(x, 1 + i * step)
    return total / (count + 1)


# Weather


@corruption(
    imagenet=(
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    cifar=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
)
def snow(x: torch.Tensor, strength: tuple[float, float, float, float, int, float, float]) -> torch.Tensor:
    """Adds flakes, blurred by their fall, to a paler image.

    strength: mean and standard deviation of the flakes, their size, the value below which there is none, radius and
    standard deviation of the fall, and the share of the original image.
    """
    mean, std, size, threshold, radius, sigma, kept = strength
    flakes = enlarged(mean + std * normal_like(x[:, :1]), size)
    flakes = torch.where(flakes < threshold, 0.0, flakes.clamp(0, 1))
    flakes = correlate(flakes, streak(x, radius, sigma, -135, -45))
    pale = torch.maximum(x, 1.5 * grey(x) + 0.5)
    return kept * x + (1 - kept) * pale + flakes + flakes.flip(2, 3)


@corruption(
    imagenet=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    cifar=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
)
def frost(x: torch.Tensor, strength: tuple[float, float]) -> torch.Tensor:
    """Adds ice crystals. strength: the weight of the image and the weight of the ice.

    The ice is needles in three directions over a plasma, with the brightness, the contrast and the bluish tint of the
    photographs that the authors used (means 0.5 to 0.8, standard deviations 0.07 to 0.17).
    """
    length = max(2, min(x.shape[2:]) // 16)
    needles = [correlate(normal_like(x[:, :1]), streak(x, length, length, 0, 180)) for _ in range(3)]
    texture = standardised(standardised(torch.stack(needles).amax(0)) + standardised(plasma(x, 1.7)))
    ice = 0.48 + 0.34 * uniform_like(x[:, :1, :1, :1]) + 0.11 * texture
    if x.shape[1] == 3:
        ice = ice + x.new_tensor(_FROST_TINT).reshape(3, 1, 1)
    return strength[0] * x + strength[1] * ice.clamp(0, 1)


@corruption(
    imagenet=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    cifar=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
)
def fog(x: torch.Tensor, strength: tuple[float, float]) -> torch.Tensor:
    """Adds a plasma; the brightest value stays. strength: the weight of the plasma, and the decay of its octaves."""
    weight, decay = strength
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + weight * plasma(x, decay)) * brightest / (brightest + weight)


@corruption(imagenet=(0.1, 0.2, 0.3, 0.4, 0.5), cifar=(0.05, 0.1, 0.15, 0.2, 0.3))
def brightness(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Raises the value of hue, saturation and value: all channels of a pixel in proportion, black becomes grey."""
    value = x.amax(1, keepdim=True)
    return torch.where(value > 0, x / value, 1.0) * (value + strength).clamp_max(1)


# Digital


@corruption(imagenet=(0.4, 0.3, 0.2, 0.1, 0.05), cifar=(0.75, 0.5, 0.4, 0.3, 0.15))
def contrast(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Multiplies the deviations from the mean of each channel by the given factor."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + strength * (x - mean)


@corruption(
    imagenet=tuple(
        tuple(share * 244 / 224 for share in row)
        for row in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
    ),
    cifar=((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
)
def elastic_transform(x: torch.Tensor, strength: tuple[float, float, float]) -> torch.Tensor:
    """Applies a random affine map, then a smooth random displacement.

    strength: height and smoothness of the displacement, and the largest shift of the three points that fix the map, in
    shares of the shorter side. (The authors of ImageNet-C wrote multiples of 244 for images of 224.)
    """
    height, width = x.shape[2:]
    side = min(height, width)
    lift, sigma, shift = (share * side for share in strength)
    axes = torch.arange(width, device=x.device), torch.arange(height, device=x.device)
    place = torch.stack(torch.meshgrid(*axes, indexing="xy"), 2).to(x)  # (H, W, 2): x, y

    reach = side // 3
    corner = x.new_tensor([width // 2 + reach, height // 2 - reach])
    below, here, left = (shift * (2 * uniform_like(x.new_empty(len(x), 3, 2)) - 1)).unbind(1)  # (N, 2) each
    slope = torch.stack([here - left, below - here], 2) / (2 * reach)
    back = torch.linalg.inv_ex(torch.eye(2).to(x) + slope).inverse
    x = sampled(x, (place - corner - here[:, None, None]) @ back.mT[:, None] + corner, align_corners=True)

    rows, columns = (gaussian_blur(size, sigma, 3, mirrored=True).to(x) for size in (height, width))
    field = rows @ (2 * uniform_like(x.new_empty(len(x), 2, height, width)) - 1) @ columns.mT
    return sampled(x, place + lift * field.movedim(1, 3), align_corners=False)


@corruption(imagenet=(0.6, 0.5, 0.4, 0.3, 0.25), cifar=(0.95, 0.9, 0.85, 0.75, 0.65))
def pixelate(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Shrinks the sides to the given share by means over blocks, and enlarges the image again by repetition."""
    for axis in (2, 3):
        size = x.shape[axis]
        count = int(size * strength)
        block = (2 * torch.arange(size, device=x.device) + 1) * count // (2 * size)  # by the middle of a pixel
        member = (block == torch.arange(count, device=x.device)[:, None]).to(x)
        mean = member / member.sum(1, keepdim=True)
        x = (mean @ x if axis == 2 else x @ mean.mT).index_select(axis, block)
    return x


@corruption(imagenet=(25, 18, 15, 10, 7), cifar=(80, 65, 58, 50, 40))
def jpeg_compression(x: torch.Tensor, strength: int) -> torch.Tensor:
    """Stores the image as JPEG with the given quality; images with other than 1 or 3 channels channel by channel."""
    import numpy as np
    from PIL import Image

    pictures = x if x.shape[1] in (1, 3) else x.flatten(0, 1)[:, None]
    pictures = (pictures * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    stored = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(file, "JPEG", quality=strength)
        stored.append(torch.from_numpy(np.array(Image.open(file))))
    back = torch.stack(stored).to(x) / 255
    return (back if back.ndim == 3 else back.permute(0, 3, 1, 2)).reshape(x.shape)
