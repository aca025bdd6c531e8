"""The size to which images are resized, and where it comes from."""

from dataclasses import dataclass
from typing import Any

from lsa_cli.errors import UsageError


@dataclass(frozen=True)
class ImageSize:
    """How an image becomes height x width pixels.

    resize: the shorter side is scaled to so many pixels, then the centre is cropped; None: the image is stretched.
    interpolation: torchvision's name ("bilinear", "bicubic", ...), always antialiased. origin: where the size comes from,
    for the report. explicit: the user asked for it.

    Image files are resized unless all have the size. Arrays of one size (npz, CIFAR-10-C, torchvision's MNIST) are resized
    only to an explicit size: networks are trained on their pixels. Raises UsageError where the crop exceeds the image.
    """

    height: int
    width: int
    resize: int | None
    interpolation: str = "bilinear"
    origin: str = ""
    explicit: bool = False

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise UsageError(f"an image size must be at least 1 x 1 pixels, not {self.height} x {self.width}")
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise UsageError(
                f"cannot crop {self.height} x {self.width} pixels from images that are resized to {self.resize}"
            )

    @property
    def text(self) -> str:
        """A description for the report."""
        size = f"{self.height} x {self.width}"
        if self.resize is None:
            done = f"resized to {size} ({self.interpolation})"
        else:
            done = f"shorter side resized to {self.resize} ({self.interpolation}), centre {size} cropped"
        return f"{done}, by {self.origin}" if self.origin else done

    def apply(self, image: Any) -> Any:
        """A Pillow image, or a (..., C, H, W) tensor, resized with torchvision's functions."""
        from torchvision.transforms import InterpolationMode, functional

        target = [self.height, self.width] if self.resize is None else [self.resize]
        resized = functional.resize(image, target, InterpolationMode(self.interpolation), antialias=True)
        return resized if self.resize is None else functional.center_crop(resized, [self.height, self.width])


def usual_size(height: int, width: int, origin: str, explicit: bool = False) -> ImageSize:
    """The usual policy: a large square is the centre 224/256 of the image; other sizes are stretched."""
    if height == width and height > 64:
        return ImageSize(height, width, round(height * 256 / 224), origin=origin, explicit=explicit)
    return ImageSize(height, width, None, origin=origin, explicit=explicit)


def square_size(n: int) -> ImageSize:
    """The policy of --input-size n: n x n pixels."""
    return usual_size(n, n, f"--input-size {n}", explicit=True)


def torchvision_size(name: str, file_name: str) -> ImageSize | None:
    """The size at which torchvision evaluates its weights of architecture `name`; None if it classifies no images.

    file_name: of the checkpoint; weights published under this name decide, otherwise the first that torchvision lists.
    """
    from torchvision import models
    from torchvision.transforms._presets import ImageClassification

    try:
        every = list(models.get_model_weights(name))
    except ValueError:
        return None
    if not every:
        return None
    named = [weights for weights in every if weights.url.rpartition("/")[2] == file_name]
    weights = (named or every)[0]
    preset = weights.transforms()
    if not isinstance(preset, ImageClassification):
        return None
    origin = f"torchvision's {weights}"
    if not named and len(every) > 1:
        origin += f" (the first of {len(every)}; the file's name is none of theirs)"
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    return ImageSize(crop, crop, resize, preset.interpolation.value, origin)
