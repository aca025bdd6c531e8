"""Data sets of other libraries: torchvision's by name, and Hugging Face's from disk or by name."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lsa_cli.data.base import (
    DATA_SOURCES,
    TEST_SPLITS,
    USUAL_LABELS,
    LabelledData,
    SourceRequest,
    Traits,
    number_labels,
    pick_name,
    pick_split,
    with_traits,
)
from lsa_cli.data.folders import path_files
from lsa_cli.data.images import ImageFiles, Picture, image_data
from lsa_cli.errors import DataError, SplitError, UsageError
from lsa_cli.imports import can_import
from lsa_cli.registry import unknown


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@DATA_SOURCES.register("torchvision")
@with_traits(Traits(is_path=False, downloads=lambda location, options: options.get("download", "false") != "false"))
def open_torchvision(request: SourceRequest) -> LabelledData:
    """torchvision:NAME?root=DIR[&split=test&download=true]: a torchvision data set; downloaded only with download=true."""
    from torchvision import datasets

    request.allow("torchvision", "root", "download")
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
    arguments: dict[str, Any] = {"root": request.option("root", ".")}
    if "train" in accepted:
        if split not in ("train", "test"):
            raise SplitError(f"--split '{split}': {name} has train and test")
        arguments["train"] = split == "train"
    elif "split" in accepted:
        arguments["split"] = split
    download = request.option("download", "false")
    if download not in ("true", "false"):
        raise UsageError(f"--data: download={download} must be true or false")
    if "download" in accepted:
        arguments["download"] = download == "true"
    elif download == "true":
        raise UsageError(f"--data: torchvision does not download {name}; put its files in {arguments['root']} yourself")
    spec = f"torchvision:{name}?root={arguments['root']}"
    try:
        dataset = factory(**arguments)
    except Exception as error:
        fetch = f", or add {request.adding('download=true')}" if arguments.get("download") is False else ""
        raise DataError(f"{spec} ({split}): {_first_line(error)}; put its files there{fetch}") from error
    labels = _torchvision_labels(dataset, spec)
    if isinstance(dataset, datasets.DatasetFolder):
        files = path_files([Path(path) for path, _ in dataset.samples])
    else:
        files = _decoded_files(dataset, spec)
    if hasattr(dataset, "data") and not (request.size and request.size.explicit):
        request = dataclasses.replace(request, size=None)  # an array of images of one size: see ImageSize
    classes = [str(label) for label in dataset.classes] if hasattr(dataset, "classes") else None
    return image_data(request, spec, labels, files, classes, name.lower(), split)


def _torchvision_labels(dataset: Any, spec: str) -> np.ndarray:
    for key in ("targets", "labels", "_labels"):
        if hasattr(dataset, key):
            return np.asarray(getattr(dataset, key))
    try:
        samples = getattr(dataset, "samples", None) or getattr(dataset, "_samples", None)
        return np.asarray([label for _, label in samples or dataset])
    except Exception as error:
        raise DataError(f"{spec} does not give (image, label) pairs: {_first_line(error)}") from error


def _decoded_files(dataset: Any, spec: str) -> ImageFiles:
    """Images that the data set decodes itself, one by one: it may not be safe to use from several threads."""

    def fetch(rows: np.ndarray) -> list[Picture]:
        pictures = []
        for row in rows:
            try:
                pictures.append(dataset[int(row)][0])
            except Exception as error:
                raise DataError(f"{spec}: sample {row} cannot be read: {_first_line(error)}") from error
        return pictures

    return ImageFiles(len(dataset), fetch, lambda row: f"{spec}: sample {row}")


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Within: `datasets` and huggingface_hub show no progress bars and no log lines."""
    from huggingface_hub.utils import logging as hub_logging

    loggers = (datasets.logging, hub_logging)
    before = [log.get_verbosity() for log in loggers]
    bars = datasets.is_progress_bar_enabled()
    for log in loggers:
        log.set_verbosity(log.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for log, verbosity in zip(loggers, before, strict=True):
            log.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


@DATA_SOURCES.register("hf")
@with_traits(
    Traits(
        suffixes=(".parquet",),
        marks=("dataset_dict.json", "state.json", "*.parquet", "data/*.parquet"),
        downloads=lambda location, options: not Path(location).exists(),
    )
)
def open_hugging_face(request: SourceRequest) -> LabelledData:
    """hf:FOLDER_OR_FILE_OR_NAME[?split=test&config=NAME&image=COLUMN&label=COLUMN]: needs `pip install datasets`; runs no code of the data set.

    A folder of save_to_disk, a folder that load_dataset reads, a .parquet file, or a name on the Hugging Face hub, which is downloaded into
    the library's cache.
    """
    request.allow("hf", "config", "image", "label")
    if not can_import("datasets"):
        raise UsageError("--data hf: needs the package datasets; install it with pip install datasets")
    import datasets

    spec = f"hf:{request.location}"
    with _quiet(datasets):
        dataset, split = _pick_dataset(_load(datasets, request, spec), request, spec)
        for name, feature in dataset.features.items():
            is_file = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
            if is_file or feature in (datasets.Value("binary"), datasets.Value("large_binary")):
                # Images, without a note that they are.
                dataset = dataset.cast_column(name, datasets.Image(decode=False))
        image = _column_of(dataset, datasets.Image, (), "image", request, spec)
        label = _column_of(dataset, datasets.ClassLabel, USUAL_LABELS, "label", request, spec)
        if not isinstance(dataset.features[image], datasets.Image):
            raise DataError(f"{spec}: the column {image} is not an image but {dataset.features[image]}")
        feature = dataset.features[label]
        values = dataset.select_columns([label])[:][label]
        # Undecoded: the bytes of the image files, which are then decoded as those of any other source.
        images = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    if values and isinstance(values[0], (list, dict)):
        raise DataError(f"{spec}: the column {label} holds {type(values[0]).__name__}; a label is one number or name")
    labels, class_names = number_labels(values, lambda row: f"{spec}: sample {row}")
    if isinstance(feature, datasets.ClassLabel):
        class_names = tuple(feature.names)

    def fetch(rows: np.ndarray) -> list[Picture]:
        found = images[[int(row) for row in rows]][image]
        for row, item in zip(rows, found, strict=True):
            if item is None or not (item["bytes"] or item["path"]):
                raise DataError(f"{spec}: sample {row} has no image")
        return [item["bytes"] or Path(item["path"]) for item in found]

    files = ImageFiles(len(images), fetch, lambda row: f"{spec}: sample {row}")
    is_file, called = Path(request.location).exists(), Path(request.location).stem
    data = image_data(request, spec, labels, files, class_names, "" if is_file else called, split)
    return dataclasses.replace(data, called=called)


def _load(datasets: Any, request: SourceRequest, spec: str) -> Any:
    path = Path(request.location)
    try:
        if path.suffix == ".parquet" and path.is_file():
            split = re.split("[^a-z]", path.stem)[0]  # of train-00000-of-00001.parquet
            return datasets.Dataset.from_parquet(
                str(path), split=datasets.NamedSplit(split if split in ("train", *TEST_SPLITS) else "unnamed")
            )
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return datasets.load_from_disk(str(path))
        # Current versions have no scripts, and False is their default; older ones would run the script of a data set.
        return datasets.load_dataset(request.location, request.options.get("config"), trust_remote_code=False)
    except Exception as error:
        where = "" if path.exists() else "; this is no folder here, and a name needs access to the hub"
        raise DataError(f"{spec} cannot be opened: {_first_line(error)}{where}") from error


def _pick_dataset(loaded: Any, request: SourceRequest, spec: str) -> tuple[Any, str]:
    """One split, without the format that it was saved with."""
    if isinstance(loaded, dict):
        split = pick_split(list(loaded), request, spec)
        return loaded[split].with_format(None), split
    own = str(loaded.split or "")
    if request.split is not None and request.split != own:
        raise SplitError(f"{spec} has no split '{request.split}'; leave --split out")
    return loaded.with_format(None), own


def _column_of(dataset: Any, kind: type, usual: tuple[str, ...], option: str, request: SourceRequest, spec: str) -> str:
    """The column that the option names, otherwise the only one of the kind, otherwise the one with a usual name."""
    of_kind = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if option not in request.options and len(of_kind) == 1:
        return of_kind[0]
    return pick_name(list(dataset.features), of_kind or usual, option, request, spec)
