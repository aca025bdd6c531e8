"""Labelled images, from where people keep them. A source opens a spec such as npz:FILE or imagefolder:DIR."""

import hashlib
import inspect
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsa_cli.errors import DataError, LsaError, UsageError
from lsa_cli.registry import Registry, can_import, load_attribute, unknown

RANGE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class LabelledData:
    """n labelled inputs that are read by index.

    labels: (n,) int64. read: indices -> (N, C, H, W) (or (N, D)) float32, images in [0, 1].
    name: what is known about which data set it is ("mnist", ...), for the usual threat model; may be "".
    transform: what is done to each image on the way, in words.
    """

    spec: str
    labels: np.ndarray
    read: Callable[[np.ndarray], torch.Tensor]
    class_names: tuple[str, ...] | None = None
    name: str = ""
    transform: str = "none"
    split: str = ""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SourceRequest:
    """What a source is asked for: its location, options of the spec, the split, and the images the network takes."""

    location: str
    options: Mapping[str, str]
    split: str | None
    channels: int | None  # None: unknown
    size: tuple[int, int] | None  # (H, W) the network takes; None: unknown

    def option(self, name: str, default: str) -> str:
        return self.options.get(name, default)


Source = Callable[[SourceRequest], LabelledData]
DATA_SOURCES: Registry[Source] = Registry("data source")


def runs_user_code(spec: str) -> bool:
    """Whether opening `spec` imports Python that the user names."""
    return spec.partition(":")[0] not in DATA_SOURCES


def open_data(
    spec: str,
    *,
    split: str | None = None,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    relative_to: Path | None = None,
) -> LabelledData:
    """Open `SOURCE:LOCATION[?option=value&...]`, or a Python factory `pkg.mod:factory`.

    relative_to: the folder that a relative location counts from (a checkpoint's own folder, for the data it
    names). Raises DataError when it cannot be opened, UsageError when the spec makes no sense.
    """
    source, colon, rest = spec.partition(":")
    if not colon:
        raise UsageError(
            f"--data '{spec}' should read SOURCE:LOCATION, with SOURCE one of {', '.join(DATA_SOURCES.names())}"
        )
    location, _, query = rest.partition("?")
    options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=False))
    named_split = options.pop("split", None)
    split = named_split if split is None else split
    if source not in DATA_SOURCES:
        if source.isidentifier() and not can_import(source):
            raise UsageError(f"--data: {unknown('data source', source, DATA_SOURCES.names())}, or pkg.mod:factory")
        return _from_factory(spec, split)
    if relative_to is not None and source != "torchvision":
        location = str(relative_to / location)
    if relative_to is not None and "root" in options:
        options["root"] = str(relative_to / options["root"])
    data = DATA_SOURCES.get(source)(SourceRequest(location, options, split, channels, size))
    return _checked(data)


def _allow(request: SourceRequest, source: str, allowed: Sequence[str]) -> None:
    for key in request.options:
        if key not in (*allowed, "split"):
            raise UsageError(f"--data: {unknown(f'option of {source}', key, [*allowed, 'split'])}")


def _checked(data: LabelledData) -> LabelledData:
    if data.labels.ndim != 1:
        raise DataError(f"{data.spec}: labels have shape {data.labels.shape}; give one class number a sample")
    if len(data) == 0:
        raise DataError(f"{data.spec} holds no samples; check the path and the split")
    if data.labels.dtype.kind not in "iub" and not _whole(data.labels):
        raise DataError(f"{data.spec}: labels are {data.labels.dtype}; give whole class numbers from 0")
    if len(data.labels) and data.labels.min() < 0:
        row = int(data.labels.argmin())
        raise DataError(f"{data.spec}: the label of sample {row} is {data.labels[row]}; classes count from 0")
    return data


def _whole(labels: np.ndarray) -> bool:
    return labels.dtype.kind == "f" and bool((np.isfinite(labels) & (labels == np.floor(labels))).all())


# ---- sources -------------------------------------------------------------------------------------------


def _as_images(array: np.ndarray, spec: str) -> tuple[np.ndarray, str]:
    """(n, H, W), (n, C, H, W) or (n, H, W, C) -> channels first; and what was done."""
    if array.ndim == 3:
        return array[:, None], "grey images (n, H, W)"
    if array.ndim == 4:
        # Grey or colour is likelier than an alpha channel, which is likelier than an image so narrow.
        likely = {1: 2, 3: 2, 4: 1}
        if likely.get(array.shape[3], 0) > likely.get(array.shape[1], 0):
            return np.ascontiguousarray(array.transpose(0, 3, 1, 2)), "channels last, moved first"
        return array, "channels first"
    if array.ndim == 2:
        return array, "vectors (n, D)"
    raise DataError(f"{spec}: inputs have shape {array.shape}; give (n, H, W), (n, C, H, W), (n, H, W, C) or (n, D)")


def _to_unit(values: np.ndarray) -> torch.Tensor:
    """uint8 -> float32 in [0, 1]; floating numbers as they are, in float32."""
    if values.dtype == np.uint8:
        return torch.from_numpy(values.astype(np.float32) / 255)
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


@DATA_SOURCES.register("npz")
def open_npz(request: SourceRequest) -> LabelledData:
    """npz:FILE[?split=test]: arrays x and y (or images and labels), or x_test, y_test, x_train, ...; uint8 or float."""
    _allow(request, "npz", ("x", "y"))
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
    images, layout = _as_images(x, spec)
    name = path.stem.lower().replace("_", "-")
    return LabelledData(
        spec, y, lambda rows: _to_unit(images[rows]), class_names, name, transform=layout, split=split or ""
    )


def _pick(names: list[str], stems: tuple[str, ...], split: str | None, spec: str) -> str:
    wanted = [f"{stem}_{split}" if split else stem for stem in stems]
    for name in wanted:
        if name in names:
            return name
    hint = f" for the split '{split}'" if split else ""
    raise DataError(f"{spec}: no array {' or '.join(wanted)}{hint}; it holds {', '.join(names) or 'nothing'}")


def _torch_reader(dataset: Any, spec: str) -> Callable[[np.ndarray], torch.Tensor]:
    def read(rows: np.ndarray) -> torch.Tensor:
        try:
            return torch.stack([_input_of(dataset[int(row)]) for row in rows])
        except Exception as error:
            raise DataError(
                f"{spec}: samples {rows[0]} to {rows[-1]} cannot be read as tensors of one shape: "
                f"{type(error).__name__}: {error}; each sample should be (image as a tensor in [0, 1], label)"
            ) from error

    return read


def _input_of(item: Any) -> torch.Tensor:
    value = item[0] if isinstance(item, (tuple, list)) else item
    return torch.as_tensor(value, dtype=torch.float32)


def _image_transform(request: SourceRequest) -> tuple[Callable[[Any], torch.Tensor], str]:
    """PIL image -> tensor in [0, 1]: grey or colour as the network takes it; resized only if it must be."""
    from torchvision.transforms import v2

    steps: list[Any] = []
    said = []
    if request.channels in (1, 3):
        mode = "L" if request.channels == 1 else "RGB"
        steps.append(v2.Lambda(lambda image: image if image.mode == mode else image.convert(mode)))
    wanted = request.option("size", "")
    if wanted == "native" or (not wanted and request.size is None):
        said.append("native size")
    else:
        try:
            height, width = (int(wanted), int(wanted)) if wanted else request.size or (0, 0)
        except ValueError:
            raise UsageError(f"--data: size '{wanted}' should be a number of pixels or 'native'") from None
        if height == width and height > 64:
            shorter = round(height * 256 / 224)
            steps += [v2.Resize(shorter, antialias=True), v2.CenterCrop(height)]
            said.append(f"shorter side resized to {shorter}, centre {height}x{width} cropped")
        else:
            steps.append(v2.Resize((height, width), antialias=True))
            said.append(f"resized to {height}x{width}")
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose(steps), ", ".join(said)


@DATA_SOURCES.register("imagefolder")
def open_imagefolder(request: SourceRequest) -> LabelledData:
    """imagefolder:DIR[?split=test&size=224]: one folder a class, named after it; size=native keeps images as they are."""
    from torchvision.datasets import ImageFolder

    _allow(request, "imagefolder", ("size",))
    root = Path(request.location)
    if request.split:
        root = root / request.split
    spec = f"imagefolder:{root}"
    if not root.is_dir():
        raise DataError(f"{spec}: there is no folder {root}; it should hold one folder of images for each class")
    transform, said = _image_transform(request)
    try:
        dataset = ImageFolder(str(root), transform=transform, allow_empty=True)
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"{spec}: {error}; it should hold one folder of images for each class") from error

    def read(rows: np.ndarray) -> torch.Tensor:
        images = []
        for row in rows:
            try:
                images.append(dataset[int(row)][0])
            except Exception as error:
                raise DataError(f"{dataset.samples[int(row)][0]} cannot be read as an image: {error}") from error
        try:
            return torch.stack(images)
        except RuntimeError as error:
            raise DataError(
                f"{spec}: images differ in size (for example {tuple(images[0].shape[1:])} and "
                f"{next(tuple(i.shape[1:]) for i in images if i.shape != images[0].shape)}); say ?size=224"
            ) from error

    labels = np.asarray(dataset.targets, dtype=np.int64)
    return LabelledData(spec, labels, read, tuple(dataset.classes), root.name.lower(), said, request.split or "")


@DATA_SOURCES.register("torchvision")
def open_torchvision(request: SourceRequest) -> LabelledData:
    """torchvision:NAME?root=DIR[&split=test]: a torchvision data set already on disk; nothing is downloaded."""
    from torchvision import datasets

    _allow(request, "torchvision", ("root", "size"))
    names = [
        name
        for name, thing in vars(datasets).items()
        if isinstance(thing, type) and issubclass(thing, datasets.VisionDataset) and name != "VisionDataset"
    ]
    by_lower = {name.lower(): name for name in names}
    name = by_lower.get(request.location.lower())
    if name is None:
        raise UsageError(f"--data: {unknown('torchvision data set', request.location, sorted(names))}")
    factory = getattr(datasets, name)
    split = request.split or "test"
    accepted = inspect.signature(factory).parameters
    transform, said = _image_transform(request)
    arguments: dict[str, Any] = {"root": request.option("root", "."), "transform": transform}
    if "train" in accepted:
        if split not in ("train", "test"):
            raise UsageError(f"--split '{split}': {name} has train and test")
        arguments["train"] = split == "train"
    elif "split" in accepted:
        arguments["split"] = split
    if "download" in accepted:
        arguments["download"] = False
    spec = f"torchvision:{name}?root={arguments['root']}"
    try:
        dataset = factory(**arguments)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{spec} ({split}): {first}; lsa downloads nothing, put the files there first") from error
    labels = next((getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None)
    if labels is None:
        labels = [dataset[row][1] for row in range(len(dataset))]
    classes = getattr(dataset, "classes", None)
    return LabelledData(
        spec,
        np.asarray(labels),
        _torch_reader(dataset, spec),
        tuple(str(c) for c in classes) if classes is not None else None,
        name.lower(),
        said,
        split,
    )


def _from_factory(spec: str, split: str | None) -> LabelledData:
    """pkg.mod:factory or file.py:factory: returns (x, y) arrays, or a data set of (input, label) pairs."""
    location, _, query = spec.partition("?")
    factory = load_attribute(location, "--data")
    arguments: dict[str, Any] = dict(urllib.parse.parse_qsl(query))
    if split is not None:
        arguments["split"] = split
    try:
        made = factory(**arguments)
    except (Exception, SystemExit) as error:
        raise DataError(f"{spec} failed: {type(error).__name__}: {error}") from error
    try:
        return from_object(made, spec, split or "")
    except LsaError:
        raise
    except Exception as error:
        raise DataError(
            f"{spec} gave {type(made).__name__} that cannot be read ({type(error).__name__}: {error}); give (x, y) "
            "arrays, or a data set of (image tensor, label) pairs"
        ) from error


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def from_object(made: Any, spec: str, split: str = "") -> LabelledData:
    """(x, y) arrays or tensors, or a data set of (input, label) pairs -> LabelledData; DataError for anything else."""
    if isinstance(made, LabelledData):
        return _checked(made)
    if isinstance(made, (tuple, list)) and len(made) == 2 and all(hasattr(part, "shape") for part in made):
        x, y = (_array(part) for part in made)
        if y.ndim != 1 or x.shape[:1] != y.shape:
            raise DataError(f"{spec}: inputs of shape {x.shape} and labels of shape {y.shape}; one label a sample")
        if x.dtype.kind not in "uifb":
            raise DataError(f"{spec}: inputs are {x.dtype}; give uint8 or floating numbers")
        images, layout = _as_images(x, spec)
        return _checked(LabelledData(spec, y, lambda rows: _to_unit(images[rows]), transform=layout, split=split))
    if hasattr(made, "__len__") and hasattr(made, "__getitem__"):
        labels = getattr(made, "targets", None)
        if labels is None:
            try:
                labels = [int(made[row][1]) for row in range(len(made))]
            except Exception as error:
                raise DataError(
                    f"{spec}: {type(made).__name__} does not give (input, label) pairs "
                    f"({type(error).__name__}: {error}); give (x, y) arrays, or a data set of pairs"
                ) from error
        classes = getattr(made, "classes", None)
        class_names = tuple(str(c) for c in classes) if classes is not None else None
        return _checked(LabelledData(spec, np.asarray(labels), _torch_reader(made, spec), class_names, split=split))
    raise DataError(f"{spec} gave {type(made).__name__}; give (x, y), or a data set of (input, label) pairs")


# ---- subsets and batches -------------------------------------------------------------------------------


def stratified_subset(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """`limit` indices, ascending: each class in proportion to its share, which samples decided by the seed.

    Left-over places go to the classes with the largest remainder, ties to the smaller class number.
    """
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * limit / len(labels)
    take = np.floor(exact).astype(int)
    order = np.lexsort((classes, -(exact - take)))
    take[order[: limit - take.sum()]] += 1
    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def batches(index: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(index), size):
        yield index[start : start + size]


def check_inputs(x: torch.Tensor, rows: np.ndarray, bounds: tuple[float, float] | None, spec: str) -> torch.Tensor:
    """x (N, ...) with every number finite and within range; what is past the range by rounding is clamped.

    Raises DataError that names the first offending sample, and the mend.
    """
    finite = torch.isfinite(x.flatten(1)).all(1)
    if not finite.all():
        row = int(rows[int((~finite).nonzero()[0])])
        raise DataError(f"{spec}: sample {row} holds NaN or infinity; remove or repair it")
    if bounds is None:
        return x
    low, high = bounds
    smallest, largest = float(x.min()), float(x.max())
    if smallest < low - RANGE_TOLERANCE or largest > high + RANGE_TOLERANCE:
        advice = (
            "divide by 255, or store uint8"
            if smallest >= 0 and largest > 2
            else "undo the normalisation in the data and name it with --normalize: it belongs inside the model"
        )
        raise DataError(
            f"{spec}: inputs run from {smallest:.4g} to {largest:.4g}, outside [{low:g}, {high:g}]; {advice}"
        )
    return x.clamp(low, high)


def fingerprint(data: LabelledData, index: np.ndarray) -> str:
    """A hash of which samples were used: source, split, indices and labels. Not of the pixels."""
    digest = hashlib.sha256(f"{data.spec.rpartition('/')[2]}|{data.split}".encode())
    digest.update(np.asarray(index, dtype="<i8").tobytes())
    digest.update(np.asarray(data.labels[index], dtype="<i8").tobytes())
    return digest.hexdigest()
