"""Image files in folders, tables or archives, decoded in parallel; pixels are those of torchvision's transforms."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lsa_cli.data.base import LabelledData, SourceRequest
from lsa_cli.data.sizes import ImageSize
from lsa_cli.errors import ConvertibleError, DataError
from lsa_cli.files import refuse_irregular

# Decoders that only read pixels. Pillow's EPS reader, for example, starts Ghostscript on the file.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
ENDINGS = ("jpg", "jpeg", "png", "ppm", "pgm", "bmp", "gif", "tif", "tiff", "webp")
# Channels of the modes with 8 bits; Pillow's other modes hold 16 bits and more, which convert() clips.
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "RGBX": 3, "CMYK": 3, "YCbCr": 3}
_CHECKED = 8  # images whose channels and size are read before the audit
_WORDS = {1: "grey", 3: "colour"}

Picture = Path | bytes | Image.Image  # a file, a file's content, or what another library decoded


@dataclass(frozen=True)
class ImageFiles:
    """Image files. fetch: undecoded images of some indices; one thread calls it. where: the name of an image in errors."""

    count: int
    fetch: Callable[[np.ndarray], Sequence[Picture]]
    where: Callable[[int], str]


def image_data(
    request: SourceRequest,
    spec: str,
    labels: np.ndarray,
    files: ImageFiles,
    class_names: Sequence[str] | None = None,
    name: str = "",
    split: str = "",
) -> LabelledData:
    """Data of image files, in grey or colour and at the size that the network takes.

    A few images are checked first. Raises DataError for a mismatch of grey and colour, and for different sizes.
    """
    if files.count == 0:
        raise DataError(f"{spec} holds no images; check the path and the split")
    rows = np.unique(np.linspace(0, files.count - 1, _CHECKED).round().astype(int))
    heads = [_read_head(picture, files.where(row)) for picture, row in zip(files.fetch(rows), rows, strict=True)]
    channels, strict, colours_said = _choose_channels(request, spec, [found for found, _ in heads])
    size, size_said = _choose_size(request, spec, [shape for _, shape in heads])
    read = ImageReader(spec, files, channels, strict, request.adding(""), size, request.threads)
    names = tuple(class_names) if class_names is not None else None
    return LabelledData(spec, labels, read, names, name, f"{colours_said}; {size_said}", split)


def _read_head(picture: Picture, where: str) -> tuple[int, tuple[int, int]]:
    """Channels and (height, width) of an image; only its header is read."""
    image = _open(picture, where)
    try:
        return _channels_of(image, where), (image.height, image.width)
    finally:
        if image is not picture:
            image.close()


def _choose_channels(request: SourceRequest, spec: str, found: Sequence[int]) -> tuple[int, bool, str]:
    """Channels to read; whether an image with other channels is an error; a description of the conversion."""
    asked = request.asked_channels()
    colour, grey = request.adding("mode=rgb"), request.adding("mode=gray")
    if asked is None and request.channels == 3 and 3 not in found:
        raise ConvertibleError(
            f"{spec}: the images are grey and the network takes colour; add {colour} to --data", ("mode=rgb",)
        )
    if asked is None and request.channels == 1 and 3 in found:
        raise ConvertibleError(
            f"{spec}: the images are in colour and the network takes grey; add {grey} to --data", ("mode=gray",)
        )
    if asked is None and request.channels not in (1, 3) and len(set(found)) == 2:
        raise ConvertibleError(
            f"{spec}: {found.count(1)} of {len(found)} checked images are grey, the others in colour; add {colour} "
            f"or {grey} to --data",
            ("mode=rgb", "mode=gray"),
        )
    channels = asked or (request.channels if request.channels in (1, 3) else found[0])
    strict = asked is None and request.channels != 3
    if channels == 1:
        return 1, strict, "grey, alpha dropped" if strict else "grey, colour images turned grey by luma, alpha dropped"
    said = "RGB" if strict else "RGB, images of other modes converted"
    if 1 in found:
        said += f" ({found.count(1)} of {len(found)} checked images are grey)"
    return 3, strict, f"{said}, alpha dropped"


def _choose_size(request: SourceRequest, spec: str, found: Sequence[tuple[int, int]]) -> tuple[ImageSize | None, str]:
    """The size policy, None to leave the size unchanged; and a description of it."""
    size, every = request.size, sorted(set(found))
    if size is not None and (size.explicit or every != [(size.height, size.width)]):
        return size, size.text
    if len(every) > 1:
        raise DataError(_differ(spec, every[0], every[1]))
    return None, f"images are {every[0][0]} x {every[0][1]}, left as they are"


def _differ(spec: str, one: tuple[int, int], other: tuple[int, int]) -> str:
    return (
        f"{spec}: images differ in size ({one[0]} x {one[1]} and {other[0]} x {other[1]}); "
        "resize them with --input-size N, for example 224"
    )


def _open(picture: Picture, where: str) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    try:
        if isinstance(picture, Path):
            refuse_irregular(picture)
        return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS)
    except Exception as error:  # Pillow's decoders raise many kinds of errors for a damaged file
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> DataError:
    said = (
        "unknown image format"
        if isinstance(error, Image.UnidentifiedImageError)
        else getattr(error, "strerror", None) or str(error)
    )
    return DataError(f"{where} cannot be read as an image: {said or type(error).__name__}; remove or repair it")


def _channels_of(image: Image.Image, where: str) -> int:
    if image.mode not in _CHANNELS:
        raise DataError(
            f"{where} holds pixels of Pillow's mode {image.mode}, which is not 8 bits a channel; save it as 8-bit "
            "grey or RGB, scaled as the network was trained"
        )
    return _CHANNELS[image.mode]


@dataclass(frozen=True)
class ImageReader:
    """Indices -> (N, C, H, W) float32 in [0, 1], decoded by several threads: Pillow releases Python's lock."""

    spec: str
    files: ImageFiles
    channels: int
    strict: bool
    joint: str
    size: ImageSize | None
    threads: int

    def __call__(self, rows: np.ndarray) -> torch.Tensor:
        pictures = self.files.fetch(rows)
        with ThreadPoolExecutor(max(1, min(self.threads, len(rows)))) as pool:
            arrays = list(pool.map(self.decode, pictures, map(int, rows)))
        for array in arrays:
            if array.shape != arrays[0].shape:
                raise DataError(_differ(self.spec, arrays[0].shape[1:], array.shape[1:]))
        return torch.from_numpy(np.stack(arrays))

    def decode(self, picture: Picture, row: int) -> np.ndarray:
        """One image as (C, H, W). numpy, not torch: each thread would start a team of torch's own threads."""
        where = self.files.where(row)
        image = _open(picture, where)
        found = _channels_of(image, where)
        if self.strict and found != self.channels:
            mode = "rgb" if self.channels == 3 else "gray"
            raise ConvertibleError(
                f"{where} is {_WORDS[found]} and others are {_WORDS[self.channels]}; add {self.joint}mode={mode} to "
                "--data",
                (f"mode={mode}",),
            )
        mode = "L" if self.channels == 1 else "RGB"
        try:
            image.load()
            image.info.pop("transparency", None)  # dropped anyway; convert() would warn about it
            pixels = image.convert(mode)
        except Exception as error:
            raise _unreadable(where, error) from error
        finally:
            if image is not picture:
                image.close()
        if self.size is not None:
            pixels = self.size.apply(pixels)
        values = np.asarray(pixels).reshape(pixels.height, pixels.width, self.channels).transpose(2, 0, 1)
        return np.divide(values, np.float32(255), dtype=np.float32, order="C")
