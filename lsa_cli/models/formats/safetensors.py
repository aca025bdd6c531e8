"""safetensors: a header in JSON, then the numbers.

lsa reads the format itself and does not use the library of the same name, for two reasons. The library maps the file
into memory, and a file that shrinks while it is mapped ends the process with a bus error. And it accepts a header in
which a key occurs twice.
"""

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.base import Contents, Format, register
from lsa_cli.models.formats.reading import as_tensor, contiguous, json_of, shape_of, whole
from lsa_cli.models.formats.zip import LARGEST_HEADER, read_exactly
from lsa_cli.models.pickles.symbols import ITEM_SIZES, Refused, StorageSpec, TensorSpec, refuse_oversized, shown

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
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > LARGEST_HEADER:
            raise CheckpointError(
                f"{path} has a safetensors header of {length:,} bytes, more than any checkpoint's; damaged or hostile"
            )
        if length > size - 8:
            raise CheckpointError(f"{path} is a damaged safetensors file (cut short); copy or download it again")
        header = json_of(file.read(length), str(path), "safetensors header")
    begin = 8 + length
    metadata = header.pop("__metadata__", {})
    root: dict[str, TensorSpec] = {}
    ranges: list[tuple[int, int]] = []
    for name, entry in header.items():
        try:
            dtype = _DTYPES[entry["dtype"]]
            shape = shape_of(entry["shape"])
            start, end = map(whole, entry["data_offsets"])
            numel = math.prod(shape)
            root[name] = TensorSpec(StorageSpec(name, dtype, numel), dtype, shape, contiguous(shape), 0)
            refuse_oversized(root[name], numel)
        except (KeyError, TypeError, ValueError, Refused) as error:
            raise CheckpointError(
                f"{path} is a damaged safetensors file: {shown(name)} has no valid description"
            ) from error
        if numel * ITEM_SIZES[dtype] != end - start:
            raise CheckpointError(
                f"{path} is a damaged safetensors file: {shown(name)} is not as large as its shape says"
            )
        ranges.append((start, end))
    places = dict(zip(root, ranges, strict=True))
    if [0, *(end for _, end in sorted(ranges))] != [*(start for start, _ in sorted(ranges)), size - begin]:
        raise CheckpointError(
            f"{path} is a damaged safetensors file: its tensors overlap, leave gaps or do not end where it ends; "
            "copy or download it again"
        )

    def load(spec: TensorSpec) -> "torch.Tensor":
        def part(start: int, count: int) -> bytearray:
            with path.open("rb") as file:
                return read_exactly(file, begin + places[spec.storage.key][0] + start, count)

        return as_tensor(spec, part)

    described = _self_description(metadata, path)
    content = {**described, "state_dict": root} if described is not None else root
    return Contents(
        "safetensors", content, load, metadata=metadata if isinstance(metadata, dict) else {}, files=(path,)
    )


def _self_description(metadata: Any, path: Path) -> dict[str, Any] | None:
    text = metadata.get("lsa_checkpoint") if isinstance(metadata, dict) else None
    return None if text is None else json_of(text, str(path), "lsa_checkpoint metadata")


register(Format("safetensors", "safetensors", _open_safetensors, holds_weights=True))
