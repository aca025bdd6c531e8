"""ONNX: a protobuf, which the package onnx parses. Large tensors may stand in files beside it."""

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.base import Contents, Format, register
from lsa_cli.models.formats.reading import as_tensor, read_exactly
from lsa_cli.models.formats.safetensors import contiguous
from lsa_cli.models.pickles.symbols import ITEM_SIZES, Refused, StorageSpec, TensorSpec, refuse_impossible, shown

if TYPE_CHECKING:
    import torch

# The numbers of the types of elements (onnx.proto, TensorProto.DataType).
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz",
    19: "float8_e5m2", 20: "float8_e5m2fnuz",
}  # fmt: skip
_LARGEST = 2**31  # bytes of a protobuf
_EXTERNAL = 1  # TensorProto.DataLocation


def _open_onnx(path: Path) -> Contents:
    model = _parse(path)
    tensors: dict[str, Any] = {}
    for tensor in (*model.graph.initializer, *_constants(model.graph)):
        if tensor.name in tensors:
            raise CheckpointError(f"{path} is a damaged ONNX model: it has two tensors called {shown(tensor.name)}")
        tensors[tensor.name] = tensor
    external = {name: _place(path, tensor) for name, tensor in tensors.items() if tensor.data_location == _EXTERNAL}
    root = {name: _spec(path, tensor, external.get(name)) for name, tensor in tensors.items()}

    def load(spec: TensorSpec) -> "torch.Tensor":
        key = spec.storage.key
        if key in external:
            file, offset, _ = external[key]
            return as_tensor(spec, lambda start, count: read_exactly(file, offset + start, count))
        return _inside(path, tensors[key], spec)

    files = (path, *sorted({file for file, _, _ in external.values()}))
    return Contents("onnx", root, load, metadata=_metadata(model), files=files, graph=model)


def _parse(path: Path) -> Any:
    """The parsed model. Raises CheckpointError where the packages of the extra `onnx` are not installed."""
    absent = [name for name in ("onnx", "onnxruntime") if not _is_installed(name)]
    if absent:
        raise CheckpointError(
            f"{path} is an ONNX model, and {' and '.join(absent)}, which lsa reads it with, is not installed; run "
            'pip install "lsa-robustness[onnx]"'
        )
    if path.stat().st_size >= _LARGEST:
        raise CheckpointError(f"{path} has more than 2 GB, the most that an ONNX file may have; damaged or hostile")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{path} is a damaged ONNX model; copy or download it again") from error
    if not model.HasField("graph"):
        raise CheckpointError(f"{path} is an ONNX model without a graph; copy or download it again")
    if model.graph.sparse_initializer:
        raise CheckpointError(f"{path} has sparse tensors, which lsa does not read in ONNX; export it with dense ones")
    return model


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # it is in sys.modules, as None
        return False


def _constants(graph: Any) -> list[Any]:
    """Tensors that a node of the graph holds instead of an initializer, under the name of the node's output."""
    found = []
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value" and node.output:
                attribute.t.name = node.output[0]
                found.append(attribute.t)
    return found


def _spec(path: Path, tensor: Any, external: tuple[Path, int, int | None] | None) -> TensorSpec:
    if tensor.data_type not in _DTYPES:
        raise CheckpointError(
            f"{path}: {shown(tensor.name)} has elements of type {tensor.data_type}, which lsa does not read"
        )
    dtype, shape = _DTYPES[tensor.data_type], tuple(tensor.dims)
    numel = math.prod(shape)
    size = ITEM_SIZES[dtype]
    stored = numel
    if external is not None:
        file, offset, length = external
        stored = (file.stat().st_size - offset if length is None else length) // size
    elif tensor.HasField("raw_data"):
        stored = len(tensor.raw_data) // size
    spec = TensorSpec(StorageSpec(tensor.name, dtype, numel), dtype, shape, contiguous(shape), 0)
    try:
        if min(shape, default=0) < 0:
            raise Refused(f"it holds a tensor with {min(shape)} in place of a size; damaged or hostile")
        refuse_impossible(spec, stored)
    except Refused as error:
        raise CheckpointError(f"{path}: {error}") from error
    return spec


def _place(path: Path, tensor: Any) -> tuple[Path, int, int | None]:
    """File, first byte and number of bytes of a tensor outside of the model: only in a regular file beside it."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "").removeprefix("./")
    file = path.parent / name
    if not name or Path(name).name != name or "\\" in name or file.is_symlink():
        raise CheckpointError(
            f"{path} refers to numbers in {shown(entries.get('location', ''))}, which is not a plain file beside it; "
            "refused, as it could be any file of this machine"
        )
    if not file.is_file():
        raise CheckpointError(f"{path} has its numbers in {file}, which is absent; put the file beside the model")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries["length"]) if "length" in entries else None
    except ValueError as error:
        raise CheckpointError(f"{path} is a damaged ONNX model: {shown(tensor.name)} has no valid place") from error
    if offset < 0 or (length or 0) < 0 or offset + (length or 0) > file.stat().st_size:
        raise CheckpointError(f"{file} is cut short; copy or download it again")
    return file, offset, length


def _inside(path: Path, tensor: Any, spec: TensorSpec) -> "torch.Tensor":
    import torch

    if tensor.HasField("raw_data"):
        content = bytearray(tensor.raw_data)
        return as_tensor(spec, lambda start, count: content[start : start + count])
    from onnx import numpy_helper

    try:
        array = numpy_helper.to_array(tensor)
        return torch.from_numpy(array.astype("float32") if spec.dtype == "bfloat16" else array.copy())
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is a damaged ONNX model: {shown(tensor.name)} is cut short") from error


def _metadata(model: Any) -> dict[str, Any]:
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    made_by = f"{model.producer_name} {model.producer_version}".strip()
    return {"producer": made_by, "opset": opsets, **{entry.key: entry.value for entry in model.metadata_props}}


register(Format("onnx", "ONNX model", _open_onnx))
