"""Contents of an opened model file, and the table of formats, in which every format registers itself."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.reading import as_tensor
from lsa_cli.models.formats.sniff import sniff
from lsa_cli.models.pickles.arrays import Inside, find_arrays
from lsa_cli.models.pickles.composed import QUANTISED, QuantisedSpec, SparseSpec
from lsa_cli.models.pickles.symbols import CONTAINERS, Refused, TensorSpec, parts_of

if TYPE_CHECKING:
    import torch

# Tensors may share stored numbers, but a small file must not become a large network.
_MOST_TIMES_SHARED = 32
_ALWAYS_ALLOWED = 64 * 2**20


@dataclass(frozen=True)
class Contents:
    """An opened model file.

    root: its content as symbols. load: reads one tensor, into memory of its own. globals: the names that unpickling would
    import. metadata: plain values beside the weights (safetensors metadata, config.json of a folder). files: the files
    that it consists of. stored: yields the bytes of one part in order; None where torch.load cannot read the format.
    compare: raises CheckpointError where torch.load reads the file differently, and returns the reason where torch
    refuses it. graph: the parsed model of an ONNX file. `load` compares first; `peek` reads a tensor without the comparison, to inspect a file.
    """

    format: str
    root: Any
    load: Callable[[TensorSpec], "torch.Tensor"]
    globals: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    stored: Callable[[str], Iterator[bytes]] | None = None
    compare: Callable[[], str | None] = lambda: None
    graph: Any = None
    peek: Callable[[TensorSpec], "torch.Tensor"] | None = None


@dataclass(frozen=True)
class Format:
    """A format that lsa reads.

    name: as `sniff` returns it. title: as messages show it. open: reads the headers of a file of this format. is_program:
    whether the file is a program, so that using its network runs code of the file. holds_weights: whether a folder or an
    index may name a file of this format as its weights.
    """

    name: str
    title: str
    open: Callable[[Path], Contents]
    is_program: bool = False
    holds_weights: bool = False


FORMATS: dict[str, Format] = {}


def register(*formats: Format) -> None:
    FORMATS.update({each.name: each for each in formats})


def open_contents(path: Path) -> Contents:
    """Open a model file or folder. Raises CheckpointError for an unknown format, and for a damaged or hostile file."""
    kind = sniff(path)
    with _with_path_in_errors(path):
        contents = FORMATS[kind].open(path)
        try:
            find_arrays(contents.root)
        except Refused as error:
            raise CheckpointError(f"{path}: {error}") from error
        _refuse_quantised_objects(contents, path)
        _refuse_amplified(contents, path)

    @functools.cache
    def compare() -> str | None:
        with _with_path_in_errors(path):
            if contents.stored is None:
                return contents.compare()
            from lsa_cli.models.agreement import refuse_disagreement

            return refuse_disagreement(path, contents.root, kind == "torch-zip", contents.stored)

    def peek(spec: TensorSpec) -> "torch.Tensor":
        with _with_path_in_errors(path):
            if isinstance(spec, (SparseSpec, QuantisedSpec)):
                try:
                    return spec.load(peek)
                except Refused as error:
                    raise CheckpointError(f"{path}: {error}") from error
            if isinstance(spec.storage, Inside):
                content = spec.storage.content
                return as_tensor(spec, lambda start, count: bytearray(content[start : start + count]))
            return contents.load(spec)

    def load(spec: TensorSpec) -> "torch.Tensor":
        compare()
        return peek(spec)

    return replace(contents, load=load, compare=compare, peek=peek)


@contextmanager
def _with_path_in_errors(path: Path) -> Iterator[None]:
    """A context that turns errors of the system into a CheckpointError that names the file."""
    try:
        yield
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested deeper than any checkpoint; damaged or hostile") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} needs more memory than is available") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _refuse_amplified(contents: Contents, path: Path) -> None:
    """Raise CheckpointError for tensors that share stored numbers and need much more memory than the file has bytes."""
    size = sum(file.stat().st_size for file in contents.files)
    needed = sum(max(spec.nbytes, spec.covered[1] - spec.covered[0]) for spec in _specs(contents.root))
    if needed > _MOST_TIMES_SHARED * size + _ALWAYS_ALLOWED:
        raise CheckpointError(
            f"{path} has {size:,} bytes, and its tensors would need {needed:,}: refused as a decompression bomb"
        )


def _refuse_quantised_objects(contents: Contents, path: Path) -> None:
    """Raise CheckpointError for quantised numbers inside of objects, which compute with them as only their classes know."""
    specs = {id(spec) for spec in _specs(contents.root) if isinstance(spec, QuantisedSpec)}
    if specs - {id(spec) for spec in _specs(contents.root, (dict, list, tuple))}:
        raise CheckpointError(f"{path}: {QUANTISED}")


def _specs(root: Any, within: tuple[type, ...] = CONTAINERS) -> list[TensorSpec]:
    """All tensors in a tree of symbols, each once. within: the kinds of symbols whose parts are looked at."""
    found: list[TensorSpec] = []
    stack, seen = [root], set()
    while stack:
        item = stack.pop()
        if isinstance(item, (TensorSpec, *within)) and id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, TensorSpec):
                found.append(item)
            else:
                stack += parts_of(item)
    return found
