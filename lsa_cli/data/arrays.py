"""Images stored as arrays of one size: .npz files and folders of .npy files in the manner of CIFAR-10-C."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsa_cli.data.base import DATA_SOURCES, MODES, LabelledData, SourceRequest
from lsa_cli.data.sizes import ImageSize
from lsa_cli.errors import DataError, SplitError, UsageError
from lsa_cli.registry import unknown

Fit = Callable[[torch.Tensor], torch.Tensor]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow turns colour into grey


def fit_to_network(
    shape: tuple[int, ...],
    spec: str,
    *,
    channels: int | None,
    size: ImageSize | None,
    asked: int | None = None,
    fix: str = "convert them",
) -> tuple[Fit, list[str]]:
    """What turns (N, C, H, W) images of `shape` (C, H, W) into what the network takes, and words for it.

    channels: of the network. asked: channels that the user asks for. fix: what mends a grey/colour mismatch.
    Only an explicit size resizes: see ImageSize. Raises DataError on a mismatch of grey and colour.
    """
    found = shape[0] if len(shape) == 3 else None
    if asked is not None and found not in (1, 3):
        raise DataError(f"{spec}: inputs of shape {shape} are neither grey nor colour images; leave out mode=")
    if asked is None and found in (1, 3) and channels in (1, 3) and found != channels:
        words = {1: "grey (1 channel)", 3: "in colour (3 channels)"}
        raise DataError(
            f"{spec}: the images are {words[found]} and the network takes {channels} channel{'s' * (channels > 1)}; {fix}"
        )
    if size is not None and size.explicit and found is None:
        raise DataError(f"{spec}: inputs of shape {shape} are no images; leave out --input-size")
    steps: list[Fit] = []
    said = []
    if (found, asked) == (1, 3):
        steps.append(lambda x: x.repeat(1, 3, 1, 1))
        said.append("grey repeated to RGB")
    elif (found, asked) == (3, 1):
        steps.append(lambda x: (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True))
        said.append("colour turned grey by luma")
    if size is not None and size.explicit:
        steps.append(partial(_resized, size=size))
        said.append(size.text)

    def fit(x: torch.Tensor) -> torch.Tensor:
        for step in steps:
            x = step(x)
        return x

    return fit, said


def _resized(x: torch.Tensor, size: ImageSize) -> torch.Tensor:
    """Bicubic curves overshoot: each image is held to the range that it had."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return size.apply(x).clamp(low, high)


def channels_first(array: np.ndarray, spec: str) -> tuple[np.ndarray, str]:
    """(n, H, W), (n, C, H, W) or (n, H, W, C) -> a view with channels first; and what was done."""
    if array.ndim == 3:
        return array[:, None], "grey images (n, H, W)"
    if array.ndim == 4:
        # Grey or colour is likelier than an alpha channel, which is likelier than an image so narrow.
        likely = {1: 2, 3: 2, 4: 1}
        if likely.get(array.shape[3], 0) > likely.get(array.shape[1], 0):
            return array.transpose(0, 3, 1, 2), "channels last, moved first"
        return array, "channels first"
    if array.ndim == 2:
        return array, "vectors (n, D)"
    raise DataError(f"{spec}: inputs have shape {array.shape}; give (n, H, W), (n, C, H, W), (n, H, W, C) or (n, D)")


def to_unit(values: np.ndarray) -> torch.Tensor:
    """uint8 -> float32 in [0, 1]; floating numbers as they are, in float32."""
    if values.dtype == np.uint8:
        return torch.from_numpy(np.divide(values, np.float32(255), dtype=np.float32, order="C"))
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _array_data(
    request: SourceRequest, spec: str, x: np.ndarray, y: np.ndarray, class_names: Any, name: str, split: str
) -> LabelledData:
    images, layout = channels_first(x, spec)
    asked = request.asked_channels()
    mode = next((word for word, channels in MODES.items() if channels == request.channels), "")
    fit, said = fit_to_network(
        images.shape[1:], spec, channels=request.channels, size=request.size, asked=asked,
        fix=f"add {request.adding(f'mode={mode}')} to --data",
    )  # fmt: skip
    transform = "; ".join([layout, *said])
    return LabelledData(spec, y, lambda rows: fit(to_unit(images[rows])), class_names, name, transform, split)


@DATA_SOURCES.register("npz")
def open_npz(request: SourceRequest) -> LabelledData:
    """npz:FILE[?split=test]: arrays x and y (or images and labels), or x_test, y_test, x_train, ...; uint8 or float."""
    request.allow("npz", "x", "y")
    spec = f"npz:{request.location}"
    path = Path(request.location)
    if not path.is_file():
        raise DataError(f"{spec}: there is no file {path}; check the path (you are in {Path.cwd()})")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            split = request.split
            if split is None and not ({"x", "images"} & set(names)):
                split = "test"
            x_name = request.options.get("x") or _pick(names, ("x", "images"), split, spec)
            y_name = request.options.get("y") or _pick(names, ("y", "labels"), split, spec)
            for name in (x_name, y_name):
                if name not in names:
                    raise DataError(f"{spec}: {unknown('array', name, names)}")
            x, y = archive[x_name], archive[y_name]
            class_names = tuple(str(name) for name in archive["class_names"]) if "class_names" in names else None
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile and zlib each have their own for a damaged file
        raise DataError(f"{spec} cannot be read as an .npz of plain arrays: {error}") from error
    if y.ndim != 1 or x.shape[:1] != y.shape:
        raise DataError(
            f"{spec}: {x_name} has shape {x.shape} and {y_name} {y.shape}; there must be one label a sample"
        )
    if x.dtype.kind not in "uif":
        raise DataError(f"{spec}: {x_name} holds {x.dtype}; give uint8 or floating numbers")
    if x.dtype.kind in "ui" and x.dtype != np.uint8:
        raise DataError(f"{spec}: {x_name} holds {x.dtype}; give uint8 (0..255) or floating numbers in [0, 1]")
    return _array_data(request, spec, x, y, class_names, path.stem.lower().replace("_", "-"), split or "")


def _pick(names: list[str], stems: tuple[str, ...], split: str | None, spec: str) -> str:
    wanted = [f"{stem}_{split}" if split else stem for stem in stems]
    for name in wanted:
        if name in names:
            return name
    hint = f" for the split '{split}'" if split else ""
    kind = SplitError if split else DataError
    raise kind(f"{spec}: no array {' or '.join(wanted)}{hint}; it holds {', '.join(names) or 'nothing'}")


_SEVERITIES = 5
_CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@DATA_SOURCES.register("cifar-c")
def open_cifar_c(request: SourceRequest) -> LabelledData:
    """cifar-c:DIR?corruption=fog&severity=3: NAME.npy with severities 1 to 5 in order, and labels.npy; read from disk."""
    request.allow("cifar-c", "corruption", "severity")
    folder = Path(request.location)
    spec = f"cifar-c:{folder}"
    if request.split not in (None, "test"):
        raise SplitError(f"--split '{request.split}': {spec} holds test images only")
    if not (folder / "labels.npy").is_file():
        raise DataError(f"{spec}: there is no {folder / 'labels.npy'}; give the folder of CIFAR-10-C's .npy files")
    names = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")
    corruption, severity = request.options.get("corruption"), request.options.get("severity")
    if corruption is None:
        raise UsageError(f"{spec}: add {request.adding('corruption=NAME')} with one of {', '.join(names)}")
    if corruption not in names:
        raise UsageError(f"{spec}: {unknown('corruption', corruption, names)}")
    if severity not in [str(number) for number in range(1, _SEVERITIES + 1)]:
        said = "no severity is given" if severity is None else f"severity={severity} makes no sense"
        raise UsageError(f"{spec}: {said}; add {request.adding('severity=N')}, 1 (weakest) to {_SEVERITIES}")
    spec += f"?corruption={corruption}&severity={severity}"
    images, labels = _mapped(folder / f"{corruption}.npy"), _mapped(folder / "labels.npy")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(f"{spec}: {corruption}.npy holds {images.dtype} of shape {images.shape}; it should be uint8 "
                        "images (n, H, W, C)")  # fmt: skip
    if labels.shape != images.shape[:1] or len(labels) % _SEVERITIES:
        raise DataError(
            f"{spec}: {len(images)} images and labels of shape {labels.shape}; there must be one label an image, and "
            f"{_SEVERITIES} severities of as many images each"
        )
    block = len(labels) // _SEVERITIES
    part = slice((int(severity) - 1) * block, int(severity) * block)
    labels = np.array(labels[part])
    classes = int(labels.max()) + 1 if len(labels) else 0
    is_cifar_10 = classes == 10 and images.shape[1:] == (32, 32, 3)
    return _array_data(
        request, spec, images[part], labels, _CIFAR_10 if is_cifar_10 else None, "cifar10" if is_cifar_10 else "",
        "test",
    )  # fmt: skip


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an .npy of plain numbers: {error}") from error
