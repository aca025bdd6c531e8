"""The symbols that a pickle is read as: names, calls, tensors, and what no checkpoint does.

A global becomes a `Global`, a call a `Call`, and a tensor a `TensorSpec` that knows which bytes of the file it covers.
Only containers and plain values become themselves.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lsa_cli.errors import CheckpointError

# Packages whose networks may be rebuilt from a file: their code is installed, the file only says how it is wired.
INSTALLED = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.")
MOST_DIMENSIONS = 64
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
    """A set: its members may be symbols, so it stays a list."""

    items: list[Any]


@dataclass(frozen=True)
class StorageSpec:
    """numel elements of dtype, in the part of the file called key, from element offset on."""

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
        """One past the last stored element that it covers."""
        if self.numel == 0:
            return 0
        return 1 + self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def covered(self) -> tuple[int, int]:
        """Bytes of the stored part that it covers, from and up to."""
        size = ITEM_SIZES[self.dtype]
        return (self.offset * size, self.end * size) if self.numel else (0, 0)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class Symbols:
    """The root of a pickle as symbols, every global it names in order, and where the pickle ends.

    storages: the type of the elements in each part of the file that it refers to; sizes: the number of them.
    """

    root: Any
    globals: tuple[str, ...]
    end: int
    storages: dict[str, str]
    sizes: dict[str, int]


class CutShort(CheckpointError):
    """A pickle that goes on after the end of the bytes given."""


class Refused(Exception):
    """What no checkpoint does; becomes a CheckpointError that names the file."""


def read_differently(how: str) -> str:
    """The sentence about a file of which one reader takes other weights than another; `how` is where they part."""
    return (
        f"it reads differently in different readers ({how}), so that what is audited may not be what is used; save it "
        "again with torch.save, in an environment that you trust"
    )


def shown(value: Any) -> str:
    """A value of the file in an error message: short, on one line, and never a structure, which may have no end."""
    if isinstance(value, (str, Global)):
        text = str(value)
        return ascii(text if len(text) <= 60 else text[:60] + "...")
    return str(value) if isinstance(value, int) and abs(value) < 2**64 else type(value).__name__


CONTAINERS = (dict, list, tuple, Members, Call)


def parts_of(item: Any) -> Iterable[Any]:
    """What a container or a call holds."""
    if isinstance(item, Call):
        return (item.arguments, item.state, item.items, item.function)
    if isinstance(item, Members):
        return item.items
    return item.values() if isinstance(item, dict) else item


def refuse_oversized(spec: TensorSpec, held: int) -> None:
    """Raises for a tensor that covers more than the `held` stored numbers, or repeats few of them hugely (stride 0).

    An empty one may not be huge in its other dimensions either: they say how wide a network has to be.
    """
    size = spec.numel or math.prod(filter(None, spec.shape))
    if spec.end > held or size > max(held, _LARGEST_REPEAT):
        text = "x".join(shown(part) for part in spec.shape[:8])
        raise Refused(f"it holds a tensor of shape {text} over {held:,} stored numbers; damaged or hostile")
