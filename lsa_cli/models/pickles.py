"""What a pickle says, without doing it: a machine that turns its instructions into symbols.

A pickle is a program that can import and call anything. Here nothing is imported or called: a global becomes a
`Global`, a call a `Call`, a tensor a `TensorSpec` that knows which bytes of the file it covers. Only containers and
plain values become themselves. So any pickle can be looked at, whatever is in it.
"""

import math
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

from lsa_cli.errors import CheckpointError

# Packages whose networks may be rebuilt from a file: their code is installed, the file only says how it is wired.
INSTALLED = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.")
LARGEST_PICKLE = 64 * 2**20
MOST_DIMENSIONS = 64
_DEEPEST = 200
_MOST_ENTRIES = 200_000
_LONGEST_NAME = 1000
_LARGEST_REPEAT = 2**24
# A tensor takes 40 instructions. So many of anything take seconds and some hundred megabytes.
_MOST_STEPS = 1_000_000
_MOST_GLOBALS = 10_000
_LARGEST_TREE = 2 * _MOST_STEPS
# More would be slow to compare or to repeat; of no function of torch that is known here.
_MOST_ARGUMENTS = 16
# Keys that are neither text nor plain numbers may have one hash, and then take the square of their number.
_MOST_ODD_KEYS = 1000
_LARGEST_KEY = 2**60
# What torch.load(weights_only=True) may call, and what is not read here: it could take any memory or mean anything.
_UNREAD = re.compile(
    r"torch\.(cuda\.)?(sparse\.)?\w*(Tensor|Storage)|torch\.storage\.\w+Storage|torch\.nn\.parameter\.Parameter"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
)
# Attributes of a tensor that are its content or belong to its class: to set one changes what the tensor is.
_OF_A_TENSOR = {
    "H", "T", "data", "device", "dtype", "grad", "grad_dtype", "grad_fn", "imag", "is_leaf", "layout", "mH", "mT", "name",
    "names", "real", "requires_grad", "retains_grad", "shape", "volatile", "_backward_hooks", "_base", "_cdata", "_grad",
    "_grad_fn", "_post_accumulate_grad_hooks", "_python_dispatch", "_version",
}  # fmt: skip

# Storage classes of torch, and what torch.dtype their elements have.
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
ITEM_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex32": 4, "complex64": 8, "complex128": 16, "uint16": 2, "uint32": 4, "uint64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
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


def read_symbols(data: bytes, where: str) -> Symbols:
    """Interpret one pickle at the start of `data`.

    Raises CheckpointError when it is damaged (CutShort: where `data` ends), or does what no checkpoint does
    (persistent ids of other kinds, out-of-band buffers, extension codes, structures that repeat themselves without
    end).
    """
    if len(data) > LARGEST_PICKLE:
        raise CheckpointError(f"{where}: its pickle has {len(data):,} bytes, more than any checkpoint's; refused")
    machine = _Machine()
    stream = BytesIO(data)
    try:
        for steps, (opcode, argument, start) in enumerate(pickletools.genops(stream)):
            action = machine.actions.get(opcode.name)
            if action is None:
                raise Refused(f"its pickle uses {opcode.name}, which no checkpoint needs; refused")
            if opcode.name in ("GLOBAL", "INST") and (
                b"\\" in data[start : stream.tell()] or str(argument).count(" ") != 1
            ):
                raise Refused("its pickle imports what cannot be the name of anything; refused")
            action(argument)
            if steps >= _MOST_STEPS:
                raise Refused(
                    f"its pickle has more than {_MOST_STEPS:,} instructions, more than any checkpoint's; refused"
                )
        machine.refuse_odd_views()
        _refuse_bomb(machine.result)
        return Symbols(machine.result, tuple(machine.globals), stream.tell(), machine.storages, machine.sizes)
    except Refused as error:
        raise CheckpointError(f"{where}: {error}") from error
    except (
        ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError,
    ) as error:  # fmt: skip
        first = (str(error).splitlines() or [""])[0][:100]
        kind = CutShort if stream.tell() >= len(data) else CheckpointError
        raise kind(
            f"{where} is a damaged checkpoint (its pickle ends in {type(error).__name__}: {first}); "
            "copy or download it again"
        ) from error


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


def _refuse_bomb(root: Any) -> None:
    """Containers may hold one another many times, so that few bytes say more than fits anywhere once written out.

    Counts what the tree below each container would have when written out; what follows may then take it for a tree.
    """
    sizes: dict[int, int] = {}
    stack: list[tuple[Any, bool]] = [(root, False)] if isinstance(root, _CONTAINERS) else []
    while stack:
        item, done = stack.pop()
        if done:
            size = sizes[id(item)] = 1 + sum(sizes.get(id(part), 1) for part in parts_of(item))
            if size > _LARGEST_TREE:
                raise Refused("its pickle repeats itself into a structure larger than any checkpoint's; refused")
        elif id(item) not in sizes:
            sizes[id(item)] = 1  # until it is done, and for good where it holds itself
            stack.append((item, True))
            stack.extend((part, False) for part in parts_of(item) if part and isinstance(part, _CONTAINERS))


_CONTAINERS = (dict, list, tuple, Members, Call)


def parts_of(item: Any) -> Iterable[Any]:
    """What a container or a call holds."""
    if isinstance(item, Call):
        return (item.arguments, item.state, item.items, item.function)
    if isinstance(item, Members):
        return item.items
    return item.values() if isinstance(item, dict) else item


class _Machine:
    """The pickle machine of the standard library's pickletools, on symbols."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.globals: dict[str, Global] = {}
        self.storages: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.views: dict[str, tuple[str, int, int]] = {}
        self.copied = self.odd_keys = 0
        self.result: Any = None
        self.actions: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(_VALUES, self._push),
            **{name: partial(self._constant, value) for name, value in _CONSTANTS.items()},
            **{name[3:].upper(): getattr(self, name) for name in dir(self) if name.startswith("op_")},
        }

    def _push(self, argument: Any) -> None:
        self.stack.append(argument)

    def _constant(self, value: Any, argument: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        taken, self.stack = self.stack, self.outer.pop()
        return taken

    # -- the stack and the memo
    def op_proto(self, argument: Any) -> None:
        pass

    op_frame = op_proto

    def op_stop(self, argument: Any) -> None:
        self.result = self.stack.pop()

    def op_mark(self, argument: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def op_pop(self, argument: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def op_pop_mark(self, argument: Any) -> None:
        self.since_mark()

    def op_dup(self, argument: Any) -> None:
        self.stack.append(self.stack[-1])

    def op_put(self, argument: Any) -> None:
        if not 0 <= argument < 2**32:
            raise ValueError(f"number {shown(argument)} of the memo")
        self.memo[argument] = self.stack[-1]

    op_binput = op_long_binput = op_put

    def op_memoize(self, argument: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_get(self, argument: Any) -> None:
        self.stack.append(self.memo[argument])

    op_binget = op_long_binget = op_get

    # -- containers
    def op_empty_list(self, argument: Any) -> None:
        self.stack.append([])

    def op_list(self, argument: Any) -> None:
        self._push(self.since_mark())

    def op_append(self, argument: Any) -> None:
        value = self.stack.pop()
        self._extend(self.stack[-1], [value])

    def op_appends(self, argument: Any) -> None:
        values = self.since_mark()
        self._extend(self.stack[-1], values)

    op_additems = op_appends

    @staticmethod
    def _extend(target: Any, values: list[Any]) -> None:
        if isinstance(target, (Call, Members)):
            target.items.extend(values)
        else:
            target.extend(values)

    def op_empty_tuple(self, argument: Any) -> None:
        self.stack.append(())

    def op_tuple(self, argument: Any) -> None:
        self._push(tuple(self.since_mark()))

    def _tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("stack")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def op_tuple1(self, argument: Any) -> None:
        self._tuple(1)

    def op_tuple2(self, argument: Any) -> None:
        self._tuple(2)

    def op_tuple3(self, argument: Any) -> None:
        self._tuple(3)

    def op_empty_dict(self, argument: Any) -> None:
        self.stack.append({})

    def op_dict(self, argument: Any) -> None:
        values = self.since_mark()
        self.stack.append(self._pairs(values))

    def op_setitem(self, argument: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update(self.stack[-1], [key, value])

    def op_setitems(self, argument: Any) -> None:
        values = self.since_mark()
        self._update(self.stack[-1], values)

    def _update(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, Call):
            target.items.extend(zip(values[::2], values[1::2], strict=True))
        else:
            target.update(self._pairs(values))

    def _pairs(self, values: list[Any]) -> dict[Any, Any]:
        """Keys that are names or numbers stay; others become text that tells them apart."""
        return {self.key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}

    def key(self, key: Any) -> Any:
        if isinstance(key, (str, float, bytes, type(None))) or (isinstance(key, int) and abs(key) < _LARGEST_KEY):
            return key
        if isinstance(key, int) or (isinstance(key, tuple) and any(isinstance(part, _CONTAINERS) for part in key)):
            raise Refused("its pickle uses what no checkpoint does as a key; refused")
        self.odd_keys += 1
        if self.odd_keys > _MOST_ODD_KEYS:
            raise Refused(f"its pickle has more than {_MOST_ODD_KEYS:,} keys that are no names or numbers; refused")
        return f"<{type(key).__name__} {self.odd_keys}>"

    def charge(self, size: int) -> None:
        """A small pickle must not grow by repeating itself: everything that is copied comes off one budget."""
        self.copied += size
        if self.copied > _MOST_STEPS:
            raise Refused("its pickle copies more than any checkpoint's; refused")

    def op_empty_set(self, argument: Any) -> None:
        self.stack.append(Members([]))

    def op_frozenset(self, argument: Any) -> None:
        self._push(Members(self.since_mark()))

    # -- what would run
    def op_global(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self._global(module, name)

    def op_stack_global(self, argument: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Refused("its pickle computes the name of what it imports; refused")
        self._global(module, name)

    def _global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in self.globals and len(self.globals) >= _MOST_GLOBALS:
            raise Refused(f"its pickle imports more than {_MOST_GLOBALS:,} things; refused")
        found = self.globals.setdefault(full, Global(module, name))
        self.stack.append(found if found.module == module else Global(module, name))

    def op_inst(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        arguments = self.since_mark()
        self._global(module, name)
        self._call(self.stack.pop(), tuple(arguments))

    def op_obj(self, argument: Any) -> None:
        function, *arguments = self.since_mark()
        self._call(function, tuple(arguments))

    def op_reduce(self, argument: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self._call(function, arguments)

    def op_newobj(self, argument: Any) -> None:
        """cls.__new__, which fills no dictionary and no set."""
        arguments, function = self.stack.pop(), self.stack.pop()
        name = _python_3(function)
        if name in _DICTIONARIES or name == "builtins.set":
            self.stack.append({} if name in _DICTIONARIES else Members([]))
        elif name in _KNOWN and name not in ("torch.Size", "builtins.frozenset"):
            raise TypeError(f"{name} is no class")
        else:
            self._call(function, arguments)

    def op_newobj_ex(self, argument: Any) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Call(function, (arguments, keywords)))

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are no tuple")
        self.stack.append(self.value_of(function, arguments))

    def value_of(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """What a call returns, where its meaning is known; else the Call."""
        name = _python_3(function)
        if name in _DICTIONARIES:
            return self._dictionary(function, arguments)
        if name in _KNOWN:
            if len(arguments) > _MOST_ARGUMENTS:
                raise TypeError(f"{name} with {len(arguments):,} arguments")
            return _KNOWN[name](self, Call(function, arguments), *arguments)
        if name.startswith("torch._utils._rebuild_qtensor"):
            raise Refused(_QUANTISED)
        if _UNREAD.fullmatch(name):
            raise Refused(f"it holds a tensor made by {name}, which lsa does not read; save plain tensors on the CPU")
        return Call(function, arguments)

    def _dictionary(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if str(function) == "collections.defaultdict":
            arguments = arguments[1:]
        if len(arguments) > 1:
            raise TypeError(f"{function} with {len(arguments):,} arguments")
        content = arguments[0] if arguments else {}
        if isinstance(content, Call):
            return Call(function, arguments)
        if isinstance(content, dict):
            self.charge(len(content))
            return dict(content)
        if not isinstance(content, (list, tuple)) or str(function) == "collections.Counter":
            raise Refused(f"its pickle makes a dictionary of {shown(content)}, as no checkpoint does; refused")
        self.charge(len(content))
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in content):
            raise ValueError("a dictionary of what are no pairs")
        return self._pairs([part for pair in content for part in pair])

    def op_build(self, argument: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Call) and target.state is None:
            target.state = state
        elif isinstance(target, dict):  # attributes of an OrderedDict, such as the versions of a state_dict
            if not isinstance(state, dict) or not all(
                isinstance(name, str) and not hasattr(OrderedDict, name) for name in state
            ):
                raise Refused(read_differently("its pickle replaces functions of a dictionary"))
        else:
            raise Refused(read_differently(f"its pickle changes {_article(target)} after it was made"))

    def op_persid(self, argument: Any) -> None:
        raise Refused("its pickle refers to outside objects by text, which no checkpoint does; refused")

    def op_binpersid(self, argument: Any) -> None:
        identity = self.stack.pop()
        if isinstance(identity, tuple) and identity[:1] == ("module",):  # legacy: (module, class, file, source text)
            self.stack.append(identity[1])
            return
        if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
            raise Refused("its pickle refers to outside objects that are no tensors; refused")
        kind, key, numel = identity[1], identity[2], _count(identity[4])
        if isinstance(kind, Global) and kind.module.startswith("torch") and _QUANTISED_STORAGE.fullmatch(kind.name):
            raise Refused(_QUANTISED)
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) and kind.module.startswith("torch") else None
        if dtype is None:
            raise Refused(f"it stores numbers as {shown(kind)}, which is no kind of storage that lsa reads")
        if not isinstance(key, str):
            raise Refused(f"it names stored numbers by {shown(key)}, as no checkpoint does; refused")
        if self.storages.setdefault(key, dtype) != dtype:
            told = f"it reads the same numbers as {dtype} and as {self.storages[key]}, as no checkpoint does; refused"
            raise Refused(told)
        if self.sizes.setdefault(key, numel) != numel:
            raise Refused(read_differently(f"it says of the numbers {shown(key)} that they are {numel:,} and others"))
        offset = 0
        if len(identity) > 5 and identity[5] is not None:  # a part of them, in a file of before torch 1.6
            name, offset, count = identity[5]
            offset, count = _count(offset), _count(count)
            view = (key, offset, count)
            if not isinstance(name, str) or offset + count > numel or self.views.setdefault(name, view) != view:
                raise Refused(read_differently(f"it names parts of the numbers {shown(key)} twice, or past their end"))
            numel = count
        self.stack.append(StorageSpec(key, dtype, numel, offset))

    def refuse_odd_views(self) -> None:
        """Raises where a part of stored numbers has the name of other stored numbers: one reader takes these."""
        both = self.views.keys() & self.storages.keys()
        if both:
            raise Refused(read_differently(f"{shown(min(both))} names stored numbers and a part of some"))


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise Refused(f"it holds a tensor with {shown(value)} where a size should be; damaged or hostile")
    return value


# ---- calls whose meaning is known ----------------------------------------------------------------------


_QUANTISED_STORAGE = re.compile(r"QU?Int\w+Storage")
_QUANTISED = (
    "it holds a quantised network, whose steps of rounding leave an attack no gradient: give the float checkpoint from "
    "before the quantisation"
)


def _python_3(function: Any) -> str:
    """The name of a function, also where Python 2 pickled it; of what is no name, nothing."""
    if not isinstance(function, Global):
        return ""
    return f"builtins.{function.name}" if function.module == "__builtin__" else str(function)


def _article(target: Any) -> str:
    return "a tensor" if isinstance(target, (TensorSpec, StorageSpec)) else f"a {type(target).__name__}"


def _tensor(
    machine: _Machine, call: Call, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any, dtype: Any = None
) -> Any:  # fmt: skip
    if isinstance(storage, Call) and storage.class_name == "torch.storage._load_from_bytes":
        return Call(storage, (offset, shape, stride))  # pickled without torch.save: a pickle within the pickle
    if not isinstance(storage, StorageSpec) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise Refused("it holds a tensor without storage, shape or strides; damaged or hostile")
    name = dtype if isinstance(dtype, str) else storage.dtype
    if len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS:
        raise Refused("it holds a tensor whose shape and strides disagree; damaged or hostile")
    if any(isinstance(part, dict) and any(part.get(bit) for bit in ("conj", "neg")) for part in rest):
        raise Refused("it holds a tensor that is conjugated or negated only when it is read; save it resolved")
    spec = TensorSpec(
        storage, name, tuple(map(_count, shape)), tuple(map(_count, stride)), _count(offset) + storage.offset
    )
    held = storage.numel * ITEM_SIZES[storage.dtype] // ITEM_SIZES[name]
    refuse_oversized(spec, held + storage.offset)
    return spec


def refuse_oversized(spec: TensorSpec, held: int) -> None:
    """Raises for a tensor that covers more than the `held` stored numbers, or repeats few of them hugely (stride 0).

    An empty one may not be huge in its other dimensions either: they say how wide a network has to be.
    """
    size = spec.numel or math.prod(filter(None, spec.shape))
    if spec.end > held or size > max(held, _LARGEST_REPEAT):
        text = "x".join(shown(part) for part in spec.shape[:8])
        raise Refused(f"it holds a tensor of shape {text} over {held:,} stored numbers; damaged or hostile")


def _tensor_v2(
    machine: _Machine, call: Call, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any,
    metadata: Any = None,
) -> Any:  # fmt: skip
    return _tensor(machine, call, storage, offset, shape, stride, metadata)


def _tensor_v3(
    machine: _Machine, call: Call, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any,
    dtype: Any, metadata: Any = None,
) -> Any:  # fmt: skip
    name = dtype.name if isinstance(dtype, Global) and dtype.module == "torch" else None
    if name not in ITEM_SIZES:
        raise Refused(f"it holds a tensor of {shown(dtype)}, which lsa does not read")
    return _tensor(machine, call, storage, offset, shape, stride, metadata, dtype=name)


def _parameter(machine: _Machine, call: Call, data: Any, grad: Any, hooks: Any, state: Any = None) -> Any:
    if not isinstance(data, (TensorSpec, Call)):
        raise TypeError("a parameter of what is no tensor")
    _refuse_content(state)
    return data


def _of_type(machine: _Machine, call: Call, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes. One of a class of the user's own stays a call: only that class knows its numbers."""
    if not isinstance(arguments, tuple):
        raise TypeError("arguments are no tuple")
    data = machine.value_of(function, arguments)
    if isinstance(data, Call) or str(kind) not in _PLAIN_TENSORS:
        return call
    return _parameter(machine, call, data, None, None, state)


def _refuse_content(state: Any) -> None:
    """Raises for attributes of a tensor that are its numbers, or stand in place of what its class does."""
    for part in state if isinstance(state, tuple) else (state,):
        for name in part or ():
            if not isinstance(name, str) or name.startswith("__") or name in _OF_A_TENSOR:
                raise Refused(read_differently(f"a tensor is made and then given another {shown(name)}"))


def _members(machine: _Machine, call: Call, members: Any = ()) -> Any:
    if isinstance(members, Call):
        return call
    if not isinstance(members, (list, tuple)):
        raise Refused(f"its pickle makes a set of {shown(members)}, as no checkpoint does; refused")
    machine.charge(len(members))
    for member in members:
        if not isinstance(member, (list, dict, Members, Call)):
            machine.key(member)
    return Members(list(members))


def _size(machine: _Machine, call: Call, sizes: Any = ()) -> Any:
    if not isinstance(sizes, (list, tuple)):
        raise TypeError("a size of what is no list")
    machine.charge(len(sizes))
    return tuple(sizes)


def _bytes(machine: _Machine, call: Call, content: Any = b"", encoding: Any = None) -> Any:
    """bytes, which protocol 2 writes as text that is to be encoded, and bytearray, which holds either."""
    if isinstance(content, Call):
        return call
    if isinstance(content, str) and encoding in ("latin1", "latin-1"):
        content = content.encode("latin1")
    elif not isinstance(content, bytes) or encoding is not None:
        raise Refused(f"its pickle makes bytes of {shown(content)}, as no checkpoint does; refused")
    machine.charge(len(content) // 64)
    return content


_DICTIONARIES = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
_PLAIN_TENSORS = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
_KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": _size,
    "builtins.set": _members,
    "builtins.frozenset": _members,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _bytes,
}


def tensors_of(root: Any) -> dict[str, TensorSpec]:
    """Weights of a module that was pickled whole or scripted, under the names its state_dict would have.

    Of an eager module: parameters and persistent buffers. Of a TorchScript one: every tensor attribute.
    """
    found: dict[str, TensorSpec] = {}
    _collect(root, "", found, 0, iter(range(_MOST_ENTRIES)))
    return found


def _collect(module: Any, prefix: str, found: dict[str, TensorSpec], depth: int, budget: Iterator[int]) -> None:
    state = module.state if isinstance(module, Call) else None
    if isinstance(state, tuple) and state and isinstance(state[0], dict):
        state = state[0]
    if not isinstance(state, dict):
        return
    if depth > _DEEPEST:
        raise CheckpointError(_ENDLESS)
    groups, children = [state], [state]
    hidden: set[Any] = set()
    if is_module(module):
        groups = [state["_parameters"], state["_buffers"]]
        children = [state["_modules"]]
        listed = state.get("_non_persistent_buffers_set")
        if isinstance(listed, Members):
            hidden = {name for name in _charged(listed.items, budget) if isinstance(name, str)}
    for group in groups:
        for name, value in _charged(_items(group), budget):
            if isinstance(value, TensorSpec) and name not in hidden:
                found[_joined(prefix, name)] = value
    for group in children:
        for name, child in _charged(_items(group), budget):
            if isinstance(child, Call):
                _collect(child, _joined(prefix, name) + ".", found, depth + 1, budget)


def _joined(prefix: str, name: Any) -> str:
    text = str(name)
    if len(prefix) + len(text) > _LONGEST_NAME:
        raise CheckpointError(_ENDLESS)
    return prefix + text


_ENDLESS = "the module in the file is nested without end; damaged or hostile"


def _charged(items: Iterable[Any], budget: Iterator[int]) -> Iterator[Any]:
    """Modules may hold each other, or themselves: every entry that is looked at comes off one budget."""
    for item in items:
        if next(budget, None) is None:
            raise CheckpointError(_ENDLESS)
        yield item


def _items(mapping: Any) -> Iterable[tuple[Any, Any]]:
    return mapping.items() if isinstance(mapping, dict) else ()


def is_module(symbol: Any) -> bool:
    """Whether a symbol stands for a torch.nn.Module that was pickled whole."""
    state = symbol.state if isinstance(symbol, Call) else None
    return isinstance(state, dict) and all(name in state for name in ("_parameters", "_buffers", "_modules"))
