"""Data from Python code of the user: arrays, or a data set of pairs."""

import dataclasses
import inspect
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from lsa_cli.data.arrays import Fit, array_data, fit_to_network, to_unit
from lsa_cli.data.base import USUAL_LABELS, LabelledData, checked
from lsa_cli.data.sizes import ImageSize
from lsa_cli.errors import DataError, LsaError, SplitError
from lsa_cli.imports import home_of
from lsa_cli.registry import load_attribute


def from_factory(spec: str, split: str | None, channels: int | None, size: ImageSize | None) -> LabelledData:
    """pkg.mod:factory or file.py:factory: returns (x, y) arrays, or a data set of (input, label) pairs."""
    location, _, query = spec.partition("?")
    factory = load_attribute(location, "--data")
    arguments: dict[str, Any] = dict(urllib.parse.parse_qsl(query))
    if split is not None:
        if not _takes_split(factory):
            raise SplitError(f"{spec} has no argument split for '{split}'; leave --split out")
        arguments["split"] = split
    home = home_of(location)
    try:
        with home:
            made = factory(**arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise DataError(f"{spec} failed: {type(error).__name__}: {error}") from error
    try:
        with home:
            found = from_object(made, spec, split or "", channels=channels, size=size)
    except LsaError:
        raise
    except Exception as error:
        raise DataError(
            f"{spec} returned {type(made).__name__} that cannot be read ({type(error).__name__}: {error}); give (x, y) "
            "arrays, or a data set of (image tensor, label) pairs"
        ) from error

    def read(rows: np.ndarray) -> torch.Tensor:
        with home:
            return found.read(rows)

    return dataclasses.replace(found, read=read)


def _takes_split(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # code in C has no signature
        return True
    return "split" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def from_object(
    made: Any, spec: str, split: str = "", *, channels: int | None = None, size: ImageSize | None = None
) -> LabelledData:
    """(x, y) arrays or tensors, a data set of (input, label) pairs or of mappings, or a DataLoader of one -> LabelledData.

    Of a DataLoader the samples that its sampler takes are read, in the order of the data set and as its collate_fn makes them.
    Inputs can also be images of Pillow. Raises DataError for anything else.

    channels: of the network, where known; a mismatch of grey and colour is refused. size: images are resized to it if it
    is explicit.
    """
    if isinstance(made, LabelledData):
        return checked(made)
    if isinstance(made, DataLoader):
        made = _of_loader(made, spec)
    if isinstance(made, IterableDataset):
        made = list(made)
    if isinstance(made, Mapping):
        image, label = _names(made, spec)
        made = (made[image], made[label])
    elif _gives_mappings(made):
        made = _Pairs(made, *_names(made[0], spec))
    if isinstance(made, (tuple, list)) and len(made) == 2 and _are_classes(made[1]):
        made = (made[0], np.array(made[1]))
    if isinstance(made, (tuple, list)) and len(made) == 2 and all(hasattr(part, "shape") for part in made):
        x, y = (_array(part) for part in made)
        if x.shape[:1] != y.shape[:1] or not x.shape:
            raise DataError(
                f"{spec}: inputs of shape {x.shape} and labels of shape {y.shape}; give one label per sample"
            )
        if x.dtype.kind not in "uifb":
            raise DataError(f"{spec}: inputs are {x.dtype}; give uint8 or floating numbers")
        return checked(dataclasses.replace(array_data(spec, x, y, channels=channels, size=size), split=split))
    if hasattr(made, "__len__") and hasattr(made, "__getitem__"):
        labels = getattr(made, "targets", None)
        if labels is None:
            try:
                labels = [_array(made[row][1]) for row in range(len(made))]
            except Exception as error:
                raise DataError(
                    f"{spec}: {type(made).__name__} does not give (input, label) pairs "
                    f"({type(error).__name__}: {error}); give (x, y) arrays, or a data set of pairs"
                ) from error
        classes = getattr(made, "classes", None)
        class_names = tuple(str(c) for c in classes) if classes is not None else None
        as_is = _pair_reader(made, spec, lambda x: x)
        plain = checked(LabelledData(spec, _stacked(labels, spec), as_is, class_names, transform="", split=split))
        shape = tuple(as_is(np.array([0])).shape[1:])
        fit, said = fit_to_network(shape, spec, channels=channels, size=size)
        transform = "; ".join([*said, *filter(None, [plain.transform.removeprefix("; ")])]) or "none"
        return dataclasses.replace(plain, read=_pair_reader(made, spec, fit), transform=transform)
    raise DataError(f"{spec} returned {type(made).__name__}; give (x, y), or a data set of (input, label) pairs")


def _of_loader(loader: DataLoader[Any], spec: str) -> Any:
    """The data set of a DataLoader, or the samples of it that the loader gives. The audit makes batches of its own."""
    dataset = loader.dataset
    collate = None if loader.collate_fn in (default_collate, default_convert) else loader.collate_fn
    rows: Sequence[int] | None = None if isinstance(dataset, IterableDataset) else _rows(loader)
    if rows is None and collate is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        dataset = list(dataset)
    rows = range(len(dataset)) if rows is None else sorted(rows)
    if len(set(rows)) < len(rows):
        raise DataError(
            f"{spec}: the sampler of the DataLoader takes some samples more than once; give a DataLoader that takes each once, or "
            "the data set"
        )
    return _Taken(dataset, rows, collate)


def _rows(loader: DataLoader[Any]) -> list[int] | None:
    """The places in the data set that the loader takes; None for all of them."""
    sampler, size = loader.sampler, len(loader.dataset)
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return [row for batch in loader.batch_sampler for row in batch]
    if isinstance(sampler, SequentialSampler) and len(sampler) == size:
        return None
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == size:
        return None
    return list(sampler)


class _Taken:
    """Some samples of a data set, as `collate` makes them; None: as they are."""

    def __init__(self, dataset: Any, rows: Sequence[int], collate: Callable[[list[Any]], Any] | None) -> None:
        self._dataset, self._rows, self._collate = dataset, rows, collate
        self.classes = getattr(dataset, "classes", None)
        targets = getattr(dataset, "targets", None)
        if targets is not None and collate is None:
            self.targets = [_array(targets[row]) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Any:
        item = self._dataset[self._rows[place]]
        if self._collate is None:
            return item
        batch = self._collate([item])
        if isinstance(batch, Mapping):
            return {key: value[0] for key, value in batch.items()}
        return tuple(part[0] for part in batch)


_USUAL_IMAGES = ("image", "images", "img", "x", "pixel_values", "inputs", "input", "data")


class _Pairs:
    """A data set of mappings, as many libraries have it, as one of (input, label) pairs."""

    def __init__(self, dataset: Any, image: str, label: str) -> None:
        self._dataset, self._image, self._label = dataset, image, label
        feature = (getattr(dataset, "features", None) or {}).get(label)  # of `datasets`
        self.classes = getattr(feature, "names", None)
        if feature is not None:  # a column is read without decoding the images
            self.targets = list(dataset[label])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        item = self._dataset[row]
        return item[self._image], item[self._label]


def _gives_mappings(made: Any) -> bool:
    try:
        return len(made) > 0 and isinstance(made[0], Mapping)
    except Exception:  # the code of the user; what it does not give is refused later
        return False


def _names(found: Mapping[Any, Any], spec: str) -> tuple[str, str]:
    """The keys of the image and of the label."""
    names = [next((name for name in usual if name in found), None) for usual in (_USUAL_IMAGES, (*USUAL_LABELS, "y"))]
    image, label = names
    if image is None or label is None:
        raise DataError(
            f"{spec}: a mapping with {', '.join(map(str, found))} has no usual name of an image and a label, such as image "
            "and label; give (x, y) arrays, or a data set of (input, label) pairs"
        )
    return image, label


def _are_classes(labels: Any) -> bool:
    """Whether it is a plain list of class numbers or names."""
    return (
        isinstance(labels, (list, tuple))
        and len(labels) > 0
        and all(isinstance(y, (int, np.integer, str)) for y in labels)
    )


def _stacked(labels: Any, spec: str) -> np.ndarray:
    try:
        return np.asarray(labels) if not isinstance(labels, torch.Tensor) else _array(labels)
    except ValueError as error:
        raise DataError(f"{spec}: labels have different shapes ({error}); give one class number per sample") from error


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _pair_reader(dataset: Any, spec: str, fit: Fit) -> Callable[[np.ndarray], torch.Tensor]:
    def read(rows: np.ndarray) -> torch.Tensor:
        try:
            # One by one: images of different sizes get one shape only by an explicit size.
            return torch.cat([fit(_input_of(dataset[int(row)])[None]) for row in rows])
        except Exception as error:
            raise DataError(
                f"{spec}: samples {rows[0]} to {rows[-1]} cannot be read as tensors of one shape: "
                f"{type(error).__name__}: {error}; each sample must be (image as a tensor in [0, 1], label)"
            ) from error

    return read


def _input_of(item: Any) -> torch.Tensor:
    value = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(value, Image.Image):
        pixels = np.asarray(value.convert("L" if value.mode in ("1", "L") else "RGB"))
        value = to_unit(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))
    return torch.as_tensor(value, dtype=torch.float32)
