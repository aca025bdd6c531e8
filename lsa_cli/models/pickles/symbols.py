"""Symbols: what the content of a pickle is read as.

A global becomes a `Global`, a call a `Call`, a tensor a `TensorSpec` that says which bytes of the file it covers.
Containers and plain values stay themselves.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsa_cli.errors import CheckpointError

# Packages whose networks are rebuilt from a file. Their code is installed; the file only says how it is combined.
INSTALLED = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.")
_MOST_DIMENSIONS = 64
_LARGEST_REPEAT = 2**24
ITEM_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex32": 4, "complex64": 8, "complex128": 16, "uint16": 2, "uint32": 4, "uint64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip


@dataclass(eq=False, slots=True)
class Global:
    """A name that unpickling would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class Call:
    """A call that unpickling would make; state is what it would set on the result."""

    function: Any
    arguments: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)

    @property
    def class_name(self) -> str:
        return str(self.function) if isinstance(self.function, Global) else "?"


@dataclass(eq=False, repr=False, slots=True)
class Members:
    """A set. Its members can be symbols, which have no hash, so they are a list."""

    items: list[Any]


@dataclass(frozen=True)
class StorageSpec:
    """`numel` elements of type `dtype`, in the part `key` of the file, from element `offset`."""

    key: str
    dtype: str
    numel: int
    offset: int = 0


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as a view of stored numbers."""

    storage: StorageSpec
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The index after the last stored element that the tensor covers."""
        if self.numel == 0:
            return 0
        return 1 + self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def covered(self) -> tuple[int, int]:
        """The first byte of the stored part that the tensor covers, and the byte after the last."""
        size = ITEM_SIZES[self.dtype]
        return (self.offset * size, self.end * size) if self.numel else (0, 0)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class Symbols:
    """A pickle as symbols.

    root: its content. globals: the names that it would import, in order. end: the length of the pickle in bytes. storages,
    sizes: the type and the number of the elements in each part of the file that it refers to.
    """

    root: Any
    globals: tuple[str, ...]
    end: int
    storages: dict[str, str]
    sizes: dict[str, int]


class CutShort(CheckpointError):
    """A pickle that is longer than the bytes given."""


class Refused(Exception):
    """The pickle does what no checkpoint needs. It becomes a CheckpointError that names the file."""


def read_differently(how: str) -> str:
    """The message for a file that different programs read differently. how: the difference."""
    return (
        f"it reads differently in different readers ({how}), so that what is audited may not be what is used; save it "
        "again with torch.save, in an environment that you trust"
    )


def ambiguous(path: Path | str, how: str) -> CheckpointError:
    return CheckpointError(f"{path}: {read_differently(how)}")


def shown(value: Any) -> str:
    """A value of the file for an error message: short, on one line. A structure may be endless, so its type is shown."""
    if isinstance(value, (str, Global)):
        text = str(value)
        return ascii(text if len(text) <= 60 else text[:60] + "...")
    return str(value) if isinstance(value, int) and abs(value) < 2**64 else type(value).__name__


CONTAINERS = (dict, list, tuple, Members, Call)


def parts_of(item: Any) -> Iterable[Any]:
    """The parts of a container or a call."""
    if isinstance(item, Call):
        return (item.arguments, item.state, item.items, item.function)
    if isinstance(item, Members):
        return item.items
    return item.values() if isinstance(item, dict) else item


def size_of(value: Any) -> int:
    """A size, stride or offset of a tensor in the file. Raises Refused for what is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise Refused(f"it holds a tensor with {shown(value)} in place of a size; damaged or hostile")
    return value


def refuse_impossible(spec: TensorSpec, stored: int) -> None:
    """Raise Refused for a tensor that covers more than the `stored` numbers, or repeats few of them very often (stride 0).

    An empty tensor must not be large in its other dimensions either, since they decide the size of the network.
    """
    if len(spec.shape) != len(spec.stride) or len(spec.shape) > _MOST_DIMENSIONS:
        raise Refused("it holds a tensor whose shape and strides disagree; damaged or hostile")
    size = spec.numel or math.prod(filter(None, spec.shape))
    if spec.end > stored or size > max(stored, _LARGEST_REPEAT):
        text = "x".join(shown(part) for part in spec.shape[:8])
        raise Refused(f"it holds a tensor of shape {text} over {stored:,} stored numbers; damaged or hostile")
