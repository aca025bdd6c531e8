"""What a model file is once it is opened, and the list of formats, to which every format adds itself."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.sniff import sniff
from lsa_cli.models.pickles.symbols import Call, Members, TensorSpec, parts_of

if TYPE_CHECKING:
    import torch

# Tensors may share stored numbers, but not so that a small file becomes a large network.
_MOST_TIMES_SHARED = 32
_ALWAYS_ALLOWED = 64 * 2**20


@dataclass(frozen=True)
class Contents:
    """A model file opened: root as symbols, and `load` for the tensors in it, each in memory of its own.

    globals: every name that a real unpickling would import. metadata: what stands beside the weights as plain
    values (safetensors metadata, a folder's config.json). files: what it is made of. stored: of a file that
    torch.load may be able to read, the bytes of a part in order. compare: raises CheckpointError where torch.load
    reads that file as anything else, and returns why torch refuses it, if it does; `load` compares first, `peek` reads
    a tensor without asking torch, for a look at a file.
    """

    format: str
    root: Any
    load: Callable[[TensorSpec], "torch.Tensor"]
    globals: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    stored: Callable[[str], Iterator[bytes]] | None = None
    compare: Callable[[], str | None] = lambda: None
    peek: Callable[[TensorSpec], "torch.Tensor"] | None = None


@dataclass(frozen=True)
class Format:
    """A format that lsa reads.

    title: what a person calls it. open: reads the headers of a file of this format, which `sniff` has named. is_program:
    whether using the network of such a file runs code in the file. holds_weights: whether a folder or an index may
    name a file of this format as its weights.
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
    """Open a model file or folder of a format that `sniff` knows. Raises CheckpointError."""
    kind = sniff(path)
    with _told(path):
        contents = FORMATS[kind].open(path)
        _refuse_amplified(contents, path)

    @functools.cache
    def compare() -> str | None:
        with _told(path):
            if contents.stored is None:
                return contents.compare()
            from lsa_cli.models.agreement import refuse_disagreement

            return refuse_disagreement(path, contents.root, kind == "torch-zip", contents.stored)

    def peek(spec: TensorSpec) -> "torch.Tensor":
        with _told(path):
            return contents.load(spec)

    def load(spec: TensorSpec) -> "torch.Tensor":
        compare()
        return peek(spec)

    return replace(contents, load=load, compare=compare, peek=peek)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system says of a file, as a CheckpointError."""
    try:
        yield
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested deeper than any checkpoint; damaged or hostile") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} needs more memory than there is") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _refuse_amplified(contents: Contents, path: Path) -> None:
    """Raises for tensors that need much more memory than the file has bytes, because they share stored numbers."""
    size = sum(file.stat().st_size for file in contents.files)
    needed = sum(max(spec.nbytes, spec.covered[1] - spec.covered[0]) for spec in _specs(contents.root))
    if needed > _MOST_TIMES_SHARED * size + _ALWAYS_ALLOWED:
        raise CheckpointError(
            f"{path} has {size:,} bytes, and its tensors would need {needed:,}: refused as a decompression bomb"
        )


def _specs(root: Any) -> list[TensorSpec]:
    """Every tensor that a tree of symbols refers to, each once."""
    found: list[TensorSpec] = []
    stack, seen = [root], set()
    while stack:
        item = stack.pop()
        if isinstance(item, (TensorSpec, dict, list, tuple, Call, Members)) and id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, TensorSpec):
                found.append(item)
            else:
                stack += parts_of(item)
    return found
