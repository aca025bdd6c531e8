"""A data set as an audit sees it, the request to a source, and the registry of sources."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsa_cli.data.identity import known_set
from lsa_cli.data.labels import LARGEST_LABEL, class_numbers
from lsa_cli.data.sizes import ImageSize
from lsa_cli.errors import DataError, SplitError, UsageError
from lsa_cli.files import refuse_irregular
from lsa_cli.registry import Registry, unknown
from lsa_cli.wording import plural

MODES = {"rgb": 3, "gray": 1}  # values of ?mode= and the channels they give


@dataclass(frozen=True)
class LabelledData:
    """n labelled inputs that are read by index.

    labels: (n,) int64. read: indices -> (N, C, H, W) (or (N, D)) float32, images in [0, 1].
    class_names: the name of each label from 0, where the source knows it.
    name: of a known data set ("mnist", ...), for its usual threat model; otherwise "". called: the name of its file or folder,
    which can be that of a data set.
    transform: a description of what is done to each image.
    """

    spec: str
    labels: np.ndarray
    read: Callable[[np.ndarray], torch.Tensor]
    class_names: tuple[str, ...] | None = None
    name: str = ""
    transform: str = "none"
    split: str = ""
    called: str = ""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SourceRequest:
    """What a source is asked for: its location, options of the spec, the split, and the images the network takes."""

    location: str
    options: Mapping[str, str]
    split: str | None
    channels: int | None  # None: unknown
    size: ImageSize | None  # None: images keep their size
    threads: int  # that may decode images at once

    def option(self, name: str, default: str) -> str:
        return self.options.get(name, default)

    def allow(self, source: str, *names: str) -> None:
        """Raise UsageError for an option that the source does not have."""
        known = [*names, "split", "mode"]
        for key in self.options:
            if key not in known:
                raise UsageError(f"--data: {unknown(f'option of {source}', key, known)}")

    def adding(self, option: str) -> str:
        """`option` with the character that joins it to the spec of the user."""
        return f"{'&' if self.options else '?'}{option}"

    def asked_channels(self) -> int | None:
        """The channels that ?mode= asks for. Raises UsageError where the network takes another number."""
        mode = self.options.get("mode")
        if mode is None:
            return None
        if mode not in MODES:
            raise UsageError(f"--data: {unknown('mode', mode, MODES)}")
        if self.channels in (1, 3) and self.channels != MODES[mode]:
            raise UsageError(
                f"--data: mode={mode} makes images of {MODES[mode]} channels, but the network takes {self.channels}"
            )
        return MODES[mode]


_WHOLE = re.compile(r"[+-]?[0-9]{1,4000}(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)

Source = Callable[[SourceRequest], LabelledData]
DATA_SOURCES: Registry[Source] = Registry("data source")


@dataclass(frozen=True)
class Traits:
    """Properties of a source, which it states itself.

    runs_code: opening it may run code, so only the user may name it, not a checkpoint or a settings file beside it.
    is_path: the location names a file or folder. suffixes, marks: a file with one of these suffixes, or a folder that
    contains one of these files (patterns), is probably meant for this source. downloads: whether opening (location, options) may
    download data.
    """

    runs_code: bool = False
    is_path: bool = True
    suffixes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    downloads: Callable[[str, Mapping[str, str]], bool] = lambda location, options: False


_TRAITS: dict[Source, Traits] = {}


def with_traits(traits: Traits) -> Callable[[Source], Source]:
    """Decorate a source with its traits."""

    def keep(source: Source) -> Source:
        _TRAITS[source] = traits
        return source

    return keep


def traits_of(name: str) -> Traits:
    """The traits of a registered source. A source that states none counts as running code."""
    return _TRAITS.get(DATA_SOURCES.get(name), Traits(runs_code=True))


def check_file(path: Path, spec: str) -> None:
    """Raises DataError where there is no regular file."""
    try:
        refuse_irregular(path)
    except FileNotFoundError as error:
        raise DataError(f"{spec}: there is no file {path}; check the path (you are in {Path.cwd()})") from error
    except OSError as error:
        raise DataError(f"{spec}: {path} cannot be read: {error.strerror or error}") from error


def checked(data: LabelledData) -> LabelledData:
    """`data` with one class number per sample, see `class_numbers`, and the name of a data set that is known. Raises DataError where it has no samples."""
    if data.labels.size == 0:
        raise DataError(f"{data.spec} holds no samples; check the path and the split")
    labels, said = class_numbers(data.labels, data.spec)
    named = len(data.class_names) if data.class_names is not None else int(labels.max()) + 1
    if labels.max() >= named:
        row = int(labels.argmax())
        raise DataError(
            f"{data.spec}: the label of sample {row} is {labels[row]}, and the data names {plural(named, 'class', 'classes')} "
            f"(0 to {named - 1}); name them all, or correct the label"
        )
    transform = f"{data.transform}; {said}" if said else data.transform
    name = data.name or known_set(labels, data.class_names)
    return dataclasses.replace(data, labels=labels, transform=transform, name=name)


# ---- what several sources need -------------------------------------------------------------------------

USUAL_LABELS = (
    "label", "labels", "class", "class_name", "class_index", "class_id", "target", "category", "diagnosis", "cls", "y",
)  # fmt: skip
TEST_SPLITS = ("test", "validation", "valid", "val", "dev")  # an audit takes the first one that exists


def number_labels(values: Sequence[Any], what: Callable[[int], str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as stored in a file -> class numbers, and the class names where labels are text.

    If all are whole numbers, these are the classes. Otherwise the distinct texts, sorted, are the classes from 0.
    what: names the sample of an index in a DataError.
    """
    texts = ["" if value is None else str(value).strip() for value in values]
    for row, text in enumerate(texts):
        if not text:
            raise DataError(f"{what(row)} has no label; give every sample a label")
    if all(map(_NUMBER.fullmatch, texts)):
        for row, text in enumerate(texts):
            if not _WHOLE.fullmatch(text) or int(text.partition(".")[0]) > LARGEST_LABEL:
                raise DataError(f"{what(row)} has the label {text}; give whole class numbers from 0, or class names")
        return np.array([int(text.partition(".")[0]) for text in texts], dtype=np.int64), None
    names, labels = np.unique(texts, return_inverse=True)
    return labels.astype(np.int64), tuple(str(name) for name in names)


def pick_name(names: Sequence[str], usual: Sequence[str], option: str, request: SourceRequest, spec: str) -> str:
    """The one of `names` (columns, keys) that the option names, or the usual one. UsageError for none or several."""
    said = request.options.get(option)
    listed = ", ".join(names) or "none"
    if said is not None:
        if said not in names:
            raise UsageError(f"{spec}: there is no '{said}' for {option}=; there are {listed}")
        return said
    likely = [name for name in names if name.strip().lower().replace(" ", "_").replace("-", "_") in usual]
    if len(likely) == 1:
        return likely[0]
    trouble = f"{' and '.join(likely)} could all be the {option}" if likely else f"none is recognised as the {option}"
    raise UsageError(f"{spec}: {trouble}; add {request.adding(f'{option}=NAME')}, with one of {listed}")


def pick_split(names: Sequence[str], request: SourceRequest, spec: str) -> str:
    """The split that the user names, otherwise the test split, otherwise the validation split; never the training data.

    Raises SplitError where there is no such split.
    """
    if request.split is not None:
        if request.split not in names:
            raise SplitError(f"{spec}: there is no split '{request.split}'; there are {', '.join(names)}")
        return request.split
    for name in (*TEST_SPLITS, *(names if len(names) == 1 else ())):
        if name in names:
            return name
    raise SplitError(f"{spec}: no split is called test or validation; give one with --split: {', '.join(names)}")
