"""Calls in a pickle whose meaning is known: those that torch.save writes for tensors and stored numbers."""

import re
from collections.abc import Callable
from typing import Any, Protocol

from lsa_cli.models.pickles.composed import quantised, sparse
from lsa_cli.models.pickles.symbols import (
    ITEM_SIZES,
    Call,
    Global,
    Members,
    Refused,
    StorageSpec,
    TensorSpec,
    read_differently,
    refuse_impossible,
    shown,
    size_of,
)

# Calls that torch.load(weights_only=True) allows and lsa does not read: they could take any memory or have any meaning.
UNREAD = re.compile(
    r"torch\.(cuda\.)?(sparse\.)?\w*(Tensor|Storage)|torch\.storage\.\w+Storage|torch\.nn\.parameter\.Parameter"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
)
# Attributes that are the content of a tensor or belong to its class. Setting one changes the tensor.
_OF_A_TENSOR = {
    "H", "T", "data", "device", "dtype", "grad", "grad_dtype", "grad_fn", "imag", "is_leaf", "layout", "mH", "mT", "name",
    "names", "real", "requires_grad", "retains_grad", "shape", "volatile", "_backward_hooks", "_base", "_cdata", "_grad",
    "_grad_fn", "_post_accumulate_grad_hooks", "_python_dispatch", "_version",
}  # fmt: skip

# Storage classes of torch, and what torch.dtype their elements have; of quantised ones the type of the whole numbers.
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8", "QInt8Storage": "int8", "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}  # fmt: skip


class Storages:
    """The stored numbers that one pickle refers to. types, sizes: type and number of the elements of each part."""

    def __init__(self) -> None:
        self.types: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.views: dict[str, tuple[str, int, int]] = {}

    def refer(self, identity: Any) -> Any:
        """The storage that a persistent id names, or the module, where a legacy file names one.

        Raises Refused for another kind of id, and where two ids of one storage disagree.
        """
        if isinstance(identity, tuple) and identity[:1] == ("module",):  # legacy: (module, class, file, source text)
            return identity[1]
        if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
            raise Refused("its pickle refers to outside objects that are not tensors; refused")
        kind, key, numel = identity[1], identity[2], size_of(identity[4])
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) and kind.module.startswith("torch") else None
        if dtype is None:
            raise Refused(f"it stores numbers as {shown(kind)}, a kind of storage that lsa does not read")
        if not isinstance(key, str):
            raise Refused(f"it names stored numbers by {shown(key)}, which no checkpoint needs; refused")
        if self.types.setdefault(key, dtype) != dtype:
            both = f"{dtype} and as {self.types[key]}"
            raise Refused(f"it reads the same numbers as {both}, which no checkpoint needs; refused")
        if self.sizes.setdefault(key, numel) != numel:
            raise Refused(read_differently(f"it gives the numbers {shown(key)} the length {numel:,} and another"))
        offset = 0
        if len(identity) > 5 and identity[5] is not None:  # a part of them, in a file of before torch 1.6
            name, offset, count = identity[5]
            offset, count = size_of(offset), size_of(count)
            view = (key, offset, count)
            if not isinstance(name, str) or offset + count > numel or self.views.setdefault(name, view) != view:
                raise Refused(read_differently(f"it names parts of the numbers {shown(key)} twice, or past their end"))
            numel = count
        return StorageSpec(key, dtype, numel, offset)

    def refuse_odd_views(self) -> None:
        """Raise Refused where a part of stored numbers has the name of other stored numbers: readers differ there."""
        both = self.views.keys() & self.types.keys()
        if both:
            raise Refused(read_differently(f"{shown(min(both))} names stored numbers and a part of some"))


class Machine(Protocol):
    """The methods of the pickle machine that the calls below use."""

    def charge(self, size: int) -> None: ...
    def key(self, key: Any) -> Any: ...
    def value_of(self, function: Any, arguments: tuple[Any, ...]) -> Any: ...


def _tensor(
    machine: Machine, call: Call, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any, dtype: Any = None
) -> Any:  # fmt: skip
    if isinstance(storage, Call) and storage.class_name == "torch.storage._load_from_bytes":
        return Call(storage, (offset, shape, stride))  # pickled without torch.save: a pickle within the pickle
    if not isinstance(storage, StorageSpec) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise Refused("it holds a tensor without storage, shape or strides; damaged or hostile")
    name = dtype if isinstance(dtype, str) else storage.dtype
    if any(isinstance(part, dict) and any(part.get(bit) for bit in ("conj", "neg")) for part in rest):
        raise Refused("it holds a tensor that is conjugated or negated only when it is read; save it resolved")
    sizes, steps = tuple(map(size_of, shape)), tuple(map(size_of, stride))
    spec = TensorSpec(storage, name, sizes, steps, size_of(offset) + storage.offset)
    held = storage.numel * ITEM_SIZES[storage.dtype] // ITEM_SIZES[name]
    refuse_impossible(spec, held + storage.offset)
    return spec


def _tensor_v2(
    machine: Machine, call: Call, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any,
    metadata: Any = None,
) -> Any:  # fmt: skip
    return _tensor(machine, call, storage, offset, shape, stride, metadata)


def _tensor_v3(
    machine: Machine, call: Call, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any,
    dtype: Any, metadata: Any = None,
) -> Any:  # fmt: skip
    name = dtype.name if isinstance(dtype, Global) and dtype.module == "torch" else None
    if name not in ITEM_SIZES:
        raise Refused(f"it holds a tensor of {shown(dtype)}, which lsa does not read")
    return _tensor(machine, call, storage, offset, shape, stride, metadata, dtype=name)


def _parameter(machine: Machine, call: Call, data: Any, grad: Any, hooks: Any, state: Any = None) -> Any:
    if not isinstance(data, (TensorSpec, Call)):
        raise TypeError("a parameter of what is not a tensor")
    _refuse_content(state)
    return data


def _of_type(machine: Machine, call: Call, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes. A tensor of a user's class stays a Call, since only that class knows its numbers."""
    if not isinstance(arguments, tuple):
        raise TypeError("arguments are not a tuple")
    data = machine.value_of(function, arguments)
    if isinstance(data, Call) or str(kind) not in _PLAIN_TENSORS:
        return call
    return _parameter(machine, call, data, None, None, state)


def _refuse_content(state: Any) -> None:
    """Raise Refused for attributes that replace the numbers of a tensor or the methods of its class."""
    for part in state if isinstance(state, tuple) else (state,):
        for name in part or ():
            if not isinstance(name, str) or name.startswith("__") or name in _OF_A_TENSOR:
                raise Refused(read_differently(f"a tensor is made and then given another {shown(name)}"))


def _members(machine: Machine, call: Call, members: Any = ()) -> Any:
    if isinstance(members, Call):
        return call
    if not isinstance(members, (list, tuple)):
        raise Refused(f"its pickle makes a set of {shown(members)}, which no checkpoint needs; refused")
    machine.charge(len(members))
    for member in members:
        if not isinstance(member, (list, dict, Members, Call)):
            machine.key(member)
    return Members(list(members))


def _size(machine: Machine, call: Call, sizes: Any = ()) -> Any:
    if not isinstance(sizes, (list, tuple)):
        raise TypeError("a size of what is not a list")
    machine.charge(len(sizes))
    return tuple(sizes)


def _bytes(machine: Machine, call: Call, content: Any = b"", encoding: Any = None) -> Any:
    """bytes and bytearray. Protocol 2 stores bytes as text that is encoded."""
    if isinstance(content, Call):
        return call
    if isinstance(content, str) and encoding in ("latin1", "latin-1"):
        content = content.encode("latin1")
    elif not isinstance(content, bytes) or encoding is not None:
        raise Refused(f"its pickle makes bytes of {shown(content)}, which no checkpoint needs; refused")
    machine.charge(len(content) // 64)
    return content


DICTIONARIES = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
_PLAIN_TENSORS = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_sparse_tensor": sparse,
    "torch._utils._rebuild_qtensor": quantised,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": _size,
    "builtins.set": _members,
    "builtins.frozenset": _members,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _bytes,
}
