"""Arrays of numpy in a pickle, as tensors: their numbers stand inside the pickle, so that nothing needs to be unpickled."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from lsa_cli.models.pickles.symbols import (
    ITEM_SIZES,
    Call,
    Refused,
    StorageSpec,
    TensorSpec,
    refuse_impossible,
    size_of,
)

_MADE = re.compile(r"numpy\.(_?core\.multiarray\._reconstruct|_?core\.numeric\._frombuffer)")
DTYPES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8", "u1": "uint8",
    "b1": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Inside(StorageSpec):
    """Numbers that stand in the pickle itself."""

    content: bytes = field(default=b"", repr=False)


def find_arrays(root: Any) -> None:
    """Replace the arrays in dictionaries and lists, at any depth, by tensors. Arrays of other objects stay as they are.

    Raises Refused for an array whose shape and numbers disagree.
    """
    stack, seen = [root], set()
    while stack:
        item = stack.pop()
        if not isinstance(item, (dict, list, tuple)) or id(item) in seen:
            continue
        seen.add(id(item))
        if not isinstance(item, tuple):
            for key, value in list(item.items() if isinstance(item, dict) else enumerate(item)):
                if isinstance(value, Call) and (found := _tensor(value)) is not None:
                    item[key] = found
        stack.extend(item.values() if isinstance(item, dict) else item)


def _tensor(call: Call) -> TensorSpec | None:
    """The array that a call makes; None for another call, or an array of objects or of a foreign byte order."""
    if not _MADE.fullmatch(call.class_name):
        return None
    if call.class_name.endswith("_frombuffer"):  # (bytes, dtype, shape, order)
        parts = call.arguments
        content, kind, shape, by_column = parts if len(parts) == 4 else (None,) * 4
        by_column = by_column == "F"
    else:  # the state is (version, shape, dtype, whether columns come first, bytes)
        parts = call.state if isinstance(call.state, tuple) else ()
        _, shape, kind, by_column, content = parts if len(parts) == 5 else (None,) * 5
    dtype = _dtype(kind)
    if dtype is None or not isinstance(shape, tuple) or not isinstance(content, (bytes, bytearray)):
        return None
    sizes = tuple(map(size_of, shape))
    if len(content) != math.prod(sizes) * ITEM_SIZES[dtype]:
        raise Refused(f"it holds an array of shape {sizes} in {len(content):,} bytes; damaged or hostile")
    return tensor(Inside("numpy", dtype, math.prod(sizes), content=bytes(content)), sizes, bool(by_column))


def tensor(storage: StorageSpec, shape: tuple[int, ...], by_column: bool) -> TensorSpec:
    """The array over these numbers. by_column: the first dimension varies fastest. Raises Refused for impossible sizes."""
    steps, step = [], 1
    for size in shape if by_column else reversed(shape):
        steps.append(step)
        step *= max(size, 1)
    spec = TensorSpec(storage, storage.dtype, shape, tuple(steps if by_column else reversed(steps)), 0)
    refuse_impossible(spec, storage.numel)
    return spec


def _dtype(kind: Any) -> str | None:
    if not isinstance(kind, Call) or kind.class_name != "numpy.dtype" or not kind.arguments:
        return None
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "|"
    return DTYPES.get(str(kind.arguments[0])) if order in ("<", "|", "=") else None
