"""WebDataset tar shards, read by index with the standard library. Nothing is unpacked or unpickled."""

import glob
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsa_cli.data.base import (
    DATA_SOURCES,
    USUAL_LABELS,
    LabelledData,
    SourceRequest,
    Traits,
    check_file,
    number_labels,
    pick_name,
    with_traits,
)
from lsa_cli.data.images import ENDINGS, ImageFiles, image_data
from lsa_cli.errors import DataError, SplitError, UsageError

_LABELS = ("cls", "json", "txt")  # cls: WebDataset's ending for class numbers
_PICKLES = ("pyd", "pickle", "pkl", "pth", "pt")  # unpickling can run code
_LARGEST_LABEL = 1_000_000


@dataclass
class _Sample:
    """The members of a shard with one key. members: offset and length of the content of each ending."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.key} in {self.shard}"

    def read(self, ending: str) -> bytes:
        begin, length = self.members[ending]
        try:
            with self.shard.open("rb") as file:
                file.seek(begin)
                return file.read(length)
        except OSError as error:
            raise DataError(f"{self} cannot be read: {error}") from error


@DATA_SOURCES.register("webdataset")
@with_traits(Traits(suffixes=(".tar",)))
def open_webdataset(request: SourceRequest) -> LabelledData:
    """webdataset:test-{000..003}.tar[?image=jpg&label=cls&key=NAME]: local tar shards, as a brace range or with *.

    Members with the same name up to its first dot are a sample. image: ending of the image (default: the only one);
    label: cls (a number), txt (a number or a class name) or json (the same, or an object with key NAME).
    """
    request.allow("webdataset", "image", "label", "key")
    if request.split is not None:
        raise SplitError(f"--data: shards have no splits; give the shards of '{request.split}' as the location")
    spec = f"webdataset:{request.location}"
    samples = [sample for shard in _shards(request.location, spec) for sample in _index(shard, spec)]
    if not samples:
        raise DataError(f"{spec} holds no samples; the shards have no members")
    image_endings = [_image_ending(sample, request, spec) for sample in samples]
    label_ending = _label_ending(samples[0], request, spec)
    found = [_label(sample, label_ending, request, spec) for sample in samples]
    labels, class_names = number_labels(found, lambda row: f"{spec}: {samples[row]}")
    files = ImageFiles(
        len(samples),
        lambda rows: [samples[row].read(image_endings[row]) for row in rows],
        lambda row: str(samples[row]),
    )
    return image_data(request, spec, labels, files, class_names)


def _shards(pattern: str, spec: str) -> list[Path]:
    """{000..003} is a range, {a,b} a list; *, ? and [...] match existing files."""
    names = _braces(pattern)
    found = [match for name in names for match in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
    missing = [name for name in found if not Path(name).exists()]
    if missing or not found:
        first = missing[0] if missing else pattern
        raise DataError(f"{spec}: there is no shard {first} (you are in {Path.cwd()}); shards are local tar files")
    for name in found:
        check_file(Path(name), spec)
    return [Path(name) for name in found]


def _braces(pattern: str) -> list[str]:
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        return [pattern]
    counted = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", brace[1])
    if counted:
        first, last = int(counted[1]), int(counted[2])
        if last - first >= 1_000_000:
            raise UsageError(
                f"--data: {brace[0]} names {last - first + 1:,} shards, more than lsa reads; check the range"
            )
        pieces = [f"{number:0{len(counted[1])}}" for number in range(first, last + 1)]
    else:
        pieces = brace[1].split(",")
    return [whole for piece in pieces for whole in _braces(pattern[: brace.start()] + piece + pattern[brace.end() :])]


def _index(shard: Path, spec: str) -> list[_Sample]:
    samples: list[_Sample] = []
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, slash, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if not member.isreg() or member.issparse() or not stem:
                    continue  # folders, links, hidden files
                key, ending = f"{folder}{slash}{stem}", ending.lower()
                if not samples or samples[-1].key != key:
                    samples.append(_Sample(shard, key))
                if ending in samples[-1].members:
                    raise DataError(f"{spec}: {samples[-1]} has two members .{ending}")
                samples[-1].members[ending] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{spec}: {shard} cannot be read as a tar file: {error}; unpack a compressed one with gunzip first"
        ) from error
    return samples


def _listed(endings: Sequence[str]) -> str:
    return ", ".join(f".{ending}" for ending in endings) or "nothing"


def _image_ending(sample: _Sample, request: SourceRequest, spec: str) -> str:
    said = request.options.get("image")
    there = [ending for ending in sample.members if ending == said or (said is None and ending in ENDINGS)]
    if len(there) == 1:
        return there[0]
    trouble = "several images" if there else f"no image .{said}" if said else "no image"
    raise DataError(
        f"{spec}: {sample} has {trouble} (it holds {_listed(list(sample.members))}); name its ending with "
        f"{request.adding('image=ENDING')}"
    )


def _label_ending(sample: _Sample, request: SourceRequest, spec: str) -> str:
    said = request.options.get("label")
    if said is not None and said.rpartition(".")[2] in _PICKLES:
        raise UsageError(f"--data: label={said} is a pickle, which can run any code; store labels as cls, txt or json")
    if said is not None and said.rpartition(".")[2] not in _LABELS:
        raise UsageError(f"--data: label={said} must end in {', '.join(_LABELS)}")
    there = [said] if said else [ending for ending in sample.members if ending in _LABELS]
    if len(there) == 1 or "cls" in there:
        return "cls" if "cls" in there else there[0]
    raise DataError(
        f"{spec}: {sample} has {'several labels' if there else 'no label'} (it holds {_listed(list(sample.members))}); "
        f"say which with {request.adding('label=ENDING')}: cls, txt or json (pickles are not read: they can run code)"
    )


def _label(sample: _Sample, ending: str, request: SourceRequest, spec: str) -> Any:
    if ending not in sample.members:
        raise DataError(f"{spec}: {sample} has no label .{ending} (it holds {_listed(list(sample.members))})")
    if sample.members[ending][1] > _LARGEST_LABEL:
        raise DataError(f"{spec}: the label .{ending} of {sample} is larger than {_LARGEST_LABEL:,} bytes")
    try:
        text = sample.read(ending).decode("utf-8")
        value = json.loads(text) if ending.endswith("json") else text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{spec}: the label .{ending} of {sample} cannot be read: {error}") from error
    if isinstance(value, dict):
        value = value[pick_name(list(value), USUAL_LABELS, "key", request, f"{spec}: {sample}")]
    if isinstance(value, (dict, list)):
        raise DataError(f"{spec}: the label of {sample} is a {type(value).__name__}; it must be one number or name")
    return value
