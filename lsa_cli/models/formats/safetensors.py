"""safetensors: a header in JSON, then the numbers. The library of that name checks the header.

Two things are done here. The library accepts a header in which a key occurs twice. And it maps the numbers into memory,
where a file that shrinks ends the process with a bus error.
"""

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.base import Contents, Format, register
from lsa_cli.models.formats.reading import LARGEST_HEADER, as_tensor, json_of, read_exactly
from lsa_cli.models.pickles.symbols import Refused, StorageSpec, TensorSpec, refuse_impossible, shown

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "C64": "complex64",
}  # fmt: skip


def _open_safetensors(path: Path) -> Contents:
    header, begin = _header(path)
    try:
        with safe_open(path, "numpy"):  # checks the sizes and places of all tensors
            pass
    except SafetensorError as error:
        why = shown(str(error).removeprefix("Error while deserializing header: "))
        raise CheckpointError(f"{path} is a damaged safetensors file ({why}); copy or download it again") from error
    metadata = header.pop("__metadata__", None) or {}
    root = {name: _tensor(path, name, entry) for name, entry in header.items()}

    def load(spec: TensorSpec) -> "torch.Tensor":
        start = begin + header[spec.storage.key]["data_offsets"][0]
        return as_tensor(spec, lambda skipped, count: read_exactly(path, start + skipped, count))

    if "lsa_checkpoint" in metadata:
        described = json_of(metadata["lsa_checkpoint"], str(path), "lsa_checkpoint metadata")
        return Contents("safetensors", {**described, "state_dict": root}, load, metadata=metadata, files=(path,))
    return Contents("safetensors", root, load, metadata=metadata, files=(path,))


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the position of the first number."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > LARGEST_HEADER:
            raise CheckpointError(
                f"{path} has a safetensors header of {length:,} bytes, more than any checkpoint's; damaged or hostile"
            )
        content = file.read(length)
    if len(content) < length:
        raise CheckpointError(f"{path} is a damaged safetensors file (cut short); copy or download it again")
    return json_of(content, str(path), "safetensors header"), 8 + length


def _tensor(path: Path, name: str, entry: dict[str, Any]) -> TensorSpec:
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(f"{path}: {shown(name)} is of type {entry['dtype']}, which lsa does not read")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    numel = math.prod(shape)
    spec = TensorSpec(StorageSpec(name, dtype, numel), dtype, shape, contiguous(shape), 0)
    try:
        refuse_impossible(spec, numel)
    except Refused as error:
        raise CheckpointError(f"{path}: {error}") from error
    return spec


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor of this shape whose numbers stand one after the other."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


register(Format("safetensors", "safetensors", _open_safetensors, holds_weights=True))
