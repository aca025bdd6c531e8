"""Images stored as arrays of one size: .npz files, and folders of .npy files like CIFAR-10-C."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsa_cli.data.base import (
    DATA_SOURCES,
    MODES,
    LabelledData,
    SourceRequest,
    Traits,
    check_file,
    pick_split,
    with_traits,
)
from lsa_cli.data.sizes import ImageSize
from lsa_cli.errors import ConvertibleError, DataError, LsaError, SplitError, UsageError
from lsa_cli.files import refuse_irregular
from lsa_cli.registry import unknown
from lsa_cli.wording import plural

Fit = Callable[[torch.Tensor], torch.Tensor]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow turns colour into grey


def fit_to_network(
    shape: tuple[int, ...],
    spec: str,
    *,
    channels: int | None,
    size: ImageSize | None,
    asked: int | None = None,
    fix: str | None = None,
) -> tuple[Fit, list[str]]:
    """A function that converts (N, C, H, W) images of `shape` (C, H, W) for the network, and a description of its steps.

    channels: of the network. asked: channels that the user asks for. fix: advice for a mismatch of grey and colour, which raises
    DataError; None where no option of the data converts them. Only an explicit size resizes: see ImageSize.
    """
    found = shape[0] if len(shape) == 3 else None
    if asked is not None and found not in (1, 3):
        raise DataError(f"{spec}: inputs of shape {shape} are neither grey nor colour images; leave out mode=")
    if asked is None and found in (1, 3) and channels in (1, 3) and found != channels:
        words = {1: "grey (1 channel)", 3: "in colour (3 channels)"}
        mode = next(word for word, number in MODES.items() if number == channels)
        raise ConvertibleError(
            f"{spec}: the images are {words[found]} and the network takes {plural(channels, 'channel')}; "
            f"{fix or 'convert them first'}",
            () if fix is None else (f"mode={mode}",),
        )
    if size is not None and size.explicit and found is None:
        raise DataError(f"{spec}: inputs of shape {shape} are not images; leave out --input-size")
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
    """Bicubic interpolation overshoots, so each image is clamped to its own range."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return size.apply(x).clamp(low, high)


def channels_first(array: np.ndarray, spec: str) -> tuple[np.ndarray, str]:
    """(n, H, W), (n, C, H, W) or (n, H, W, C) -> a view with channels first, and a description of the change."""
    if array.ndim == 3:
        return array[:, None], "grey images (n, H, W)"
    if array.ndim == 4:
        # Grey or colour is likelier than an alpha channel, which is likelier than so narrow an image.
        likely = {1: 2, 3: 2, 4: 1}
        if likely.get(array.shape[3], 0) > likely.get(array.shape[1], 0):
            return array.transpose(0, 3, 1, 2), "channels last, moved first"
        return array, "channels first"
    if array.ndim == 2:
        return array, "vectors (n, D)"
    raise DataError(f"{spec}: inputs have shape {array.shape}; give (n, H, W), (n, C, H, W), (n, H, W, C) or (n, D)")


def to_unit(values: np.ndarray) -> torch.Tensor:
    """uint8 -> float32 in [0, 1]; floating numbers keep their values, in float32."""
    if values.dtype == np.uint8:
        return torch.from_numpy(np.divide(values, np.float32(255), dtype=np.float32, order="C"))
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def array_data(spec: str, x: np.ndarray, y: np.ndarray, **options: Any) -> LabelledData:
    """Data of arrays: x in a layout of `channels_first`, y (n,). options: of `fit_to_network`."""
    images, layout = channels_first(x, spec)
    fit, said = fit_to_network(images.shape[1:], spec, **options)
    return LabelledData(spec, y, lambda rows: fit(to_unit(images[rows])), transform="; ".join([layout, *said]))


def _requested(request: SourceRequest, spec: str, x: np.ndarray, y: np.ndarray, **known: Any) -> LabelledData:
    """Data of arrays as the request asks for it. known: class_names, name, called, split."""
    mode = next((word for word, channels in MODES.items() if channels == request.channels), "")
    fix = f"add {request.adding(f'mode={mode}')} to --data"
    data = array_data(spec, x, y, channels=request.channels, size=request.size, asked=request.asked_channels(), fix=fix)
    return replace(data, **known)


@DATA_SOURCES.register("npz")
@with_traits(Traits(suffixes=(".npz",)))
def open_npz(request: SourceRequest) -> LabelledData:
    """npz:FILE[?split=test&x=NAME&y=NAME]: arrays x and y (images and labels, ...), or x_test, test_images, ...; uint8 or float.

    Without a split: the arrays without a split in their names, otherwise the test split, otherwise the validation split.
    """
    request.allow("npz", "x", "y")
    spec = f"npz:{request.location}"
    path = Path(request.location)
    if path.is_dir():
        raise DataError(f"{spec}: {path} is a folder, not an .npz file; for images in folders use imagefolder:{path}")
    check_file(path, spec)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return named_arrays(archive, list(archive.files), request, spec)
    except LsaError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise errors of their own for a damaged file
        raise DataError(f"{spec} cannot be read as an .npz of plain arrays: {error}") from error


@DATA_SOURCES.register("npy")
@with_traits(Traits(suffixes=(".npy",)))
def open_npy(request: SourceRequest) -> LabelledData:
    """npy:IMAGES.npy: images, with the labels in an .npy file beside it that has the same split in its name: x_test.npy and y_test.npy."""
    request.allow("npy")
    path, spec = Path(request.location), f"npy:{request.location}"
    check_file(path, spec)
    stems = [other.stem for other in sorted(path.parent.glob("*.npy"))]
    split = next(iter(_by_split([path.stem], _ARRAYS["x"])), None)
    labels = _by_split(stems, _ARRAYS["y"]).get("" if split is None else split, [])
    if split is None or len(labels) != 1:
        raise DataError(
            f"{spec}: lsa finds images and labels by names such as x_test.npy and y_test.npy; put them into one file: python -c "
            f"\"import numpy as n; n.savez('data.npz', x=n.load('{path}'), y=n.load('LABELS.npy'))\", and give --data data.npz"
        )
    if request.split not in (None, split):
        raise SplitError(f"--split '{request.split}': {spec} holds the split '{split}' only; leave --split out")
    request = replace(request, options={**request.options, "x": path.stem, "y": labels[0]}, split=split or None)
    arrays = {name: _mapped(path.with_name(f"{name}.npy")) for name in (path.stem, labels[0])}
    return named_arrays(arrays, list(arrays), request, spec)


def named_arrays(arrays: Mapping[str, np.ndarray], names: list[str], request: SourceRequest, spec: str) -> LabelledData:
    """Data of the arrays whose names say images and labels. names: of all arrays, which are read only where they are needed."""
    x_name, y_name, split = _pick_arrays(names, request, spec)
    x, y = arrays[x_name], arrays[y_name]
    class_names = tuple(str(name) for name in arrays["class_names"]) if "class_names" in names else None
    if x.shape[:1] != y.shape[:1] or not x.shape:
        raise DataError(f"{spec}: {x_name} has shape {x.shape} and {y_name} {y.shape}; give one label per sample")
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise DataError(f"{spec}: {x_name} holds {x.dtype}; give uint8 (0..255) or floating numbers in [0, 1]")
    called = Path(request.location).stem
    return _requested(request, spec, x, y, class_names=class_names, called=called, split=split)


# Names of arrays, in upper or lower case, with or without punctuation: x, X_test, test_images, imagesVal, ...
_ARRAYS = {
    "x": ("x", "images", "image", "imgs", "img", "data", "inputs", "input", "arr0"),
    "y": ("y", "labels", "label", "targets", "target", "arr1"),
}
_SPLITS = {"train": ("train", "training", "tr"), "test": ("test", "te"), "val": ("val", "valid", "validation", "dev")}


def _pick_arrays(names: list[str], request: SourceRequest, spec: str) -> tuple[str, str, str]:
    """The arrays of images and of labels of one split, and the split ("" for arrays of no split)."""
    said = {option: request.options[option] for option in _ARRAYS if option in request.options}
    for name in said.values():
        if name not in names:
            raise DataError(f"{spec}: {unknown('array', name, names)}")
    found = {option: _by_split(names, words) for option, words in _ARRAYS.items() if option not in said}
    if not found:
        return said["x"], said["y"], request.split or ""
    split = _pick_array_split(names, [set(of) for of in found.values()], request, spec)
    for option, of in found.items():
        if len(of[split]) > 1:
            what = {"x": "images", "y": "labels"}[option]
            raise UsageError(
                f"{spec}: {' and '.join(of[split])} could all be the {what}; add {request.adding(f'{option}=NAME')}"
            )
        said[option] = of[split][0]
    return said["x"], said["y"], split


def _by_split(names: list[str], words: tuple[str, ...]) -> dict[str, list[str]]:
    """The names that consist of one of the words, with or without a split, grouped by split ("" for none)."""
    plain = {name: re.sub("[^a-z0-9]", "", name.lower()) for name in names}
    found: dict[str, list[str]] = {}
    for split, spellings in {"": ("",), **_SPLITS}.items():
        known = {made for word in words for spelled in spellings for made in (word + spelled, spelled + word)}
        matching = [name for name in names if plain[name] in known]
        if matching:
            found[split] = matching
    return found


def _pick_array_split(names: list[str], found: list[set[str]], request: SourceRequest, spec: str) -> str:
    there = set.intersection(*found)
    asked = request.split
    if asked is None and "" in there:
        return ""
    if asked is None and there == {"train"}:
        raise SplitError(f"{spec} holds only training data; to audit on it, give --split train")
    if asked is None and there:
        return pick_split(sorted(there), request, spec)
    split = next((split for split, spellings in _SPLITS.items() if asked in spellings), asked)
    if split in there and split is not None:
        return split
    behind = f"_{asked}" if asked else ""
    missing = [
        stems for stems, of in zip((("x", "images"), ("y", "labels")), found, strict=False) if (split or "") not in of
    ]
    wanted = " or ".join(stem + behind for stem in (missing or [("x", "images")])[0])
    hint = f" for the split '{asked}'" if asked else ""
    kind = SplitError if asked else DataError
    raise kind(
        f"{spec}: no array {wanted}{hint}; it holds {', '.join(names) or 'nothing'}; "
        f"name the images and the labels with {request.adding('x=NAME&y=NAME')}"
    )


_SEVERITIES = 5
_CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@DATA_SOURCES.register("cifar-c")
@with_traits(Traits(marks=("labels.npy",)))
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
        said = "no severity is given" if severity is None else f"there is no severity {severity}"
        raise UsageError(f"{spec}: {said}; add {request.adding('severity=N')}, 1 (weakest) to {_SEVERITIES}")
    spec += f"?corruption={corruption}&severity={severity}"
    images, labels = _mapped(folder / f"{corruption}.npy"), _mapped(folder / "labels.npy")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(f"{spec}: {corruption}.npy holds {images.dtype} of shape {images.shape}; it must be uint8 "
                        "images (n, H, W, C)")  # fmt: skip
    if labels.shape != images.shape[:1] or len(labels) % _SEVERITIES:
        raise DataError(
            f"{spec}: {len(images)} images and labels of shape {labels.shape}; give one label per image, and "
            f"{_SEVERITIES} severities of as many images each"
        )
    block = len(labels) // _SEVERITIES
    part = slice((int(severity) - 1) * block, int(severity) * block)
    labels = np.array(labels[part])
    is_cifar_10 = len(labels) > 0 and labels.max() == len(_CIFAR_10) - 1 and images.shape[1:] == (32, 32, 3)
    known = {"class_names": _CIFAR_10, "name": "cifar10"} if is_cifar_10 else {}
    return _requested(request, spec, images[part], labels, split="test", **known)


def _mapped(path: Path) -> np.ndarray:
    try:
        refuse_irregular(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an .npy of plain numbers: {error}") from error
