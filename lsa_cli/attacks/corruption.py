"""The fifteen common corruptions (Hendrycks & Dietterich, arXiv 1903.12261), in five severities each.

The strengths are the published ones, in pixels and in [0, 1]: those of ImageNet-C where the shorter side of an image
has 64 pixels or more, those of CIFAR-10-C below. The threshold is our choice.

Each is computed as its authors did, in batches, except for what follows, which is our choice. Frost is drawn (needles
over a plasma) instead of cut from photographs. Images stay in floating point between the steps (JPEG apart). Poisson
counts come from a uniform number each: exactly below a rate of 12, by the Cornish-Fisher expansion above, where at
most two counts in a thousand are off by one. Motion goes along a sampled Gaussian in steps of a pixel, as in the
package imagecorruptions, and beyond the border the last pixel repeats. The disk of the defocus has sum 1 at any
radius. The lengths of the elastic transform, published for one size of image, grow with the shorter side.
"""

import io
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


@dataclass(frozen=True)
class Corruption(Noise):
    """Base of the corruptions: `corrupt` sees images (N, C, H, W) in [0, 1] and the strength of the severity."""

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
        """(N, C, H, W) in [0, 1] -> the same shape; what leaves [0, 1] is cut afterwards."""
        raise NotImplementedError


# Noise


@CORRUPTIONS.register("gaussian_noise")
@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Normal noise of the given standard deviation."""

    imagenet = (0.08, 0.12, 0.18, 0.26, 0.38)
    cifar = (0.04, 0.06, 0.08, 0.09, 0.10)

    def corrupt(self, x: torch.Tensor, strength: float) -> torch.Tensor:
        return x + strength * normal_like(x)


@CORRUPTIONS.register("shot_noise")
@dataclass(frozen=True)
class ShotNoise(Corruption):
    """Poisson counts of the light, with so many photons in a white pixel."""

    imagenet = (60, 25, 12, 5, 3)
    cifar = (500, 250, 100, 75, 50)

    def corrupt(self, x: torch.Tensor, strength: int) -> torch.Tensor:
        return poisson(x * strength) / strength


@CORRUPTIONS.register("impulse_noise")
@dataclass(frozen=True)
class ImpulseNoise(Corruption):
    """The given share of the values becomes black or white, evenly."""

    imagenet = (0.03, 0.06, 0.09, 0.17, 0.27)
    cifar = (0.01, 0.02, 0.03, 0.05, 0.07)

    def corrupt(self, x: torch.Tensor, strength: float) -> torch.Tensor:
        uniform = uniform_like(x)
        return torch.where(uniform < strength / 2, 0.0, torch.where(uniform > 1 - strength / 2, 1.0, x))


# Blur


@CORRUPTIONS.register("defocus_blur")
@dataclass(frozen=True)
class DefocusBlur(Corruption):
    """Mean over a disk: its radius, and the standard deviation with which its edge is softened."""

    imagenet = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
    cifar = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))

    def corrupt(self, x: torch.Tensor, strength: tuple[float, float]) -> torch.Tensor:
        return correlate(x, disk(*strength, like=x), "reflect")


@CORRUPTIONS.register("glass_blur")
@dataclass(frozen=True)
class GlassBlur(Corruption):
    """Pixels take the value of a near one, between two Gaussian blurs: standard deviation, reach, rounds."""

    imagenet = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
    cifar = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))

    def corrupt(self, x: torch.Tensor, strength: tuple[float, int, int]) -> torch.Tensor:
        sigma, reach, rounds = strength
        rows, columns = (gaussian_blur(size, sigma, 4, mirrored=False).to(x) for size in x.shape[2:])
        x = rows @ x @ columns.mT
        for _ in range(rounds):
            source = scattered(x, reach)
            x = x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1)).reshape(x.shape)
        return rows @ x @ columns.mT


@CORRUPTIONS.register("motion_blur")
@dataclass(frozen=True)
class MotionBlur(Corruption):
    """Half a Gaussian along a line within 45 degrees of the horizontal: radius and standard deviation."""

    imagenet = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    cifar = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))

    def corrupt(self, x: torch.Tensor, strength: tuple[int, float]) -> torch.Tensor:
        return correlate(x, streak(x, *strength, -45, 45))


@CORRUPTIONS.register("zoom_blur")
@dataclass(frozen=True)
class ZoomBlur(Corruption):
    """Mean of the image and of its enlargements: how many, beginning at 1, and the step between their factors."""

    imagenet = ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))
    cifar = ((7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01))

    def corrupt(self, x: torch.Tensor, strength: tuple[int, float]) -> torch.Tensor:
        count, step = strength
        total = x.clone()
        for i in range(count):
            total += enlarged(x, 1 + i * step)
        return total / (count + 1)


# Weather


@CORRUPTIONS.register("snow")
@dataclass(frozen=True)
class Snow(Corruption):
    """Flakes, blurred by their fall, over a paler image.

    Mean and standard deviation of the flakes, their size, the value below which there is none, radius and standard
    deviation of the fall, and the share that the image keeps of itself.
    """

    imagenet = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )
    cifar = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )

    def corrupt(self, x: torch.Tensor, strength: tuple[float, float, float, float, int, float, float]) -> torch.Tensor:
        mean, std, size, threshold, radius, sigma, kept = strength
        flakes = enlarged(mean + std * normal_like(x[:, :1]), size)
        flakes = torch.where(flakes < threshold, 0.0, flakes.clamp(0, 1))
        flakes = correlate(flakes, streak(x, radius, sigma, -135, -45))
        pale = torch.maximum(x, 1.5 * grey(x) + 0.5)
        return kept * x + (1 - kept) * pale + flakes + flakes.flip(2, 3)


@CORRUPTIONS.register("frost")
@dataclass(frozen=True)
class Frost(Corruption):
    """Ice crystals over the image: the weight of the image and the weight of the ice.

    Ours is drawn: needles in three directions over a plasma, with the brightness, the contrast and the bluish tint
    of the photographs that the authors used (means 0.5 to 0.8, standard deviations 0.07 to 0.17).
    """

    imagenet = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
    cifar = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    tint: ClassVar[tuple[float, float, float]] = (-0.07, 0.01, 0.06)

    def corrupt(self, x: torch.Tensor, strength: tuple[float, float]) -> torch.Tensor:
        length = max(2, min(x.shape[2:]) // 16)
        needles = torch.stack(
            [correlate(normal_like(x[:, :1]), streak(x, length, length, 0, 180)) for _ in range(3)]
        ).amax(0)
        texture = standardised(standardised(needles) + standardised(plasma(x, 1.7)))
        ice = 0.48 + 0.34 * uniform_like(x[:, :1, :1, :1]) + 0.11 * texture
        if x.shape[1] == 3:
            ice = ice + x.new_tensor(self.tint).reshape(3, 1, 1)
        return strength[0] * x + strength[1] * ice.clamp(0, 1)


@CORRUPTIONS.register("fog")
@dataclass(frozen=True)
class Fog(Corruption):
    """A plasma added to the image: its weight, and how fast its detail fades; the brightest value stays."""

    imagenet = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
    cifar = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))

    def corrupt(self, x: torch.Tensor, strength: tuple[float, float]) -> torch.Tensor:
        weight, decay = strength
        brightest = x.amax((1, 2, 3), keepdim=True)
        return (x + weight * plasma(x, decay)) * brightest / (brightest + weight)


@CORRUPTIONS.register("brightness")
@dataclass(frozen=True)
class Brightness(Corruption):
    """The value of hue, saturation and value is raised: all channels of a pixel in proportion, black to grey."""

    imagenet = (0.1, 0.2, 0.3, 0.4, 0.5)
    cifar = (0.05, 0.1, 0.15, 0.2, 0.3)

    def corrupt(self, x: torch.Tensor, strength: float) -> torch.Tensor:
        value = x.amax(1, keepdim=True)
        return torch.where(value > 0, x / value, 1.0) * (value + strength).clamp_max(1)


# Digital


@CORRUPTIONS.register("contrast")
@dataclass(frozen=True)
class Contrast(Corruption):
    """Deviations from the mean of each channel shrink by the given factor."""

    imagenet = (0.4, 0.3, 0.2, 0.1, 0.05)
    cifar = (0.75, 0.5, 0.4, 0.3, 0.15)

    def corrupt(self, x: torch.Tensor, strength: float) -> torch.Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return mean + strength * (x - mean)


@CORRUPTIONS.register("elastic_transform")
@dataclass(frozen=True)
class ElasticTransform(Corruption):
    """A random affine map, then a smooth random displacement.

    Height and smoothness of the displacement and the largest shift of the three points that fix the map, in shares
    of the shorter side. (The authors of ImageNet-C wrote multiples of 244 for images of 224.)
    """

    imagenet = tuple(
        tuple(share * 244 / 224 for share in row)
        for row in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
    )
    cifar = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))

    def corrupt(self, x: torch.Tensor, strength: tuple[float, float, float]) -> torch.Tensor:
        height, width = x.shape[2:]
        side = min(height, width)
        lift, sigma, shift = (share * side for share in strength)
        place = torch.stack(
            torch.meshgrid(torch.arange(width, device=x.device), torch.arange(height, device=x.device), indexing="xy"),
            2,
        ).to(x)  # (H, W, 2): x, y

        reach = side // 3
        corner = x.new_tensor([width // 2 + reach, height // 2 - reach])
        below, here, left = (shift * (2 * uniform_like(x.new_empty(len(x), 3, 2)) - 1)).unbind(1)  # (N, 2) each
        slope = torch.stack([here - left, below - here], 2) / (2 * reach)
        back = torch.linalg.inv_ex(torch.eye(2).to(x) + slope).inverse
        x = sampled(x, (place - corner - here[:, None, None]) @ back.mT[:, None] + corner, align_corners=True)

        rows, columns = (gaussian_blur(size, sigma, 3, mirrored=True).to(x) for size in (height, width))
        field = rows @ (2 * uniform_like(x.new_empty(len(x), 2, height, width)) - 1) @ columns.mT
        return sampled(x, place + lift * field.movedim(1, 3), align_corners=False)


@CORRUPTIONS.register("pixelate")
@dataclass(frozen=True)
class Pixelate(Corruption):
    """Shrunk to the given share of the sides by means over blocks, and enlarged again by repetition."""

    imagenet = (0.6, 0.5, 0.4, 0.3, 0.25)
    cifar = (0.95, 0.9, 0.85, 0.75, 0.65)

    def corrupt(self, x: torch.Tensor, strength: float) -> torch.Tensor:
        for axis in (2, 3):
            size = x.shape[axis]
            count = int(size * strength)
            block = (2 * torch.arange(size, device=x.device) + 1) * count // (2 * size)  # by the middle of a pixel
            member = (block == torch.arange(count, device=x.device)[:, None]).to(x)
            mean = member / member.sum(1, keepdim=True)
            x = (mean @ x if axis == 2 else x @ mean.mT).index_select(axis, block)
        return x


@CORRUPTIONS.register("jpeg_compression")
@dataclass(frozen=True)
class JpegCompression(Corruption):
    """Stored as JPEG with the given quality; other images than grey and colour channel by channel."""

    imagenet = (25, 18, 15, 10, 7)
    cifar = (80, 65, 58, 50, 40)

    def corrupt(self, x: torch.Tensor, strength: int) -> torch.Tensor:
        import numpy as np
        from PIL import Image

        pictures = x if x.shape[1] in (1, 3) else x.flatten(0, 1)[:, None]
        pictures = (pictures * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        stored = []
        for picture in pictures:
            file = io.BytesIO()
            Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(
                file, "JPEG", quality=strength
            )
            stored.append(torch.from_numpy(np.array(Image.open(file))))
        back = torch.stack(stored).to(x) / 255
        return (back if back.ndim == 3 else back.permute(0, 3, 1, 2)).reshape(x.shape)
