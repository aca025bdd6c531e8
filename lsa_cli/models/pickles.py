"""What a pickle says, without doing it: a machine that turns its instructions into symbols.

A pickle is a program that can import and call anything. Here nothing is imported or called: a global becomes a
`Global`, a call a `Call`, a tensor a `TensorSpec` that knows which bytes of the file it covers. Only containers and
plain values become themselves. So any pickle can be looked at, whatever is in it.
"""

import math
import pickletools
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
_MARK = object()


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

    storages: the type of the elements in each part of the file that it refers to.
    """

    root: Any
    globals: tuple[str, ...]
    end: int
    storages: dict[str, str]


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
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            action = machine.actions.get(opcode.name)
            if action is None:
                raise Refused(f"its pickle uses {opcode.name}, which no checkpoint needs; refused")
            action(argument)
            if steps >= _MOST_STEPS:
                raise Refused(
                    f"its pickle has more than {_MOST_STEPS:,} instructions, more than any checkpoint's; refused"
                )
        _refuse_bomb(machine.result)
        return Symbols(machine.result, tuple(machine.globals), stream.tell(), machine.storages)
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
        self.memo: dict[int, Any] = {}
        self.globals: dict[str, Global] = {}
        self.storages: dict[str, str] = {}
        self.converted: dict[int, tuple[list[Any], dict[Any, Any]]] = {}
        self.result: Any = None
        self.actions: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(_VALUES, self.stack.append),
            **{name: partial(self._constant, value) for name, value in _CONSTANTS.items()},
            **{name[3:].upper(): getattr(self, name) for name in dir(self) if name.startswith("op_")},
        }

    def _constant(self, value: Any, argument: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                taken = self.stack[position + 1 :]
                del self.stack[position:]
                return taken
        raise ValueError("no mark")

    # -- the stack and the memo
    def op_proto(self, argument: Any) -> None:
        pass

    op_frame = op_proto

    def op_stop(self, argument: Any) -> None:
        self.result = self.stack.pop()

    def op_mark(self, argument: Any) -> None:
        self.stack.append(_MARK)

    def op_pop(self, argument: Any) -> None:
        self.stack.pop()

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
        self.stack.append(self.since_mark())

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
        self.stack.append(tuple(self.since_mark()))

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
        self.stack.append(_pairs(values))

    def op_setitem(self, argument: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update(self.stack[-1], [key, value])

    def op_setitems(self, argument: Any) -> None:
        values = self.since_mark()
        self._update(self.stack[-1], values)

    @staticmethod
    def _update(target: Any, values: list[Any]) -> None:
        if isinstance(target, Call):
            target.items.extend(zip(values[::2], values[1::2], strict=True))
        else:
            target.update(_pairs(values))

    def op_empty_set(self, argument: Any) -> None:
        self.stack.append(Members([]))

    def op_frozenset(self, argument: Any) -> None:
        self.stack.append(Members(self.since_mark()))

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
        self.op_reduce(argument)

    def op_newobj_ex(self, argument: Any) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Call(function, (arguments, keywords)))

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are no tuple")
        name = str(function) if isinstance(function, Global) else ""
        if name in _DICTIONARIES:
            self.stack.append(self._dictionary(arguments[-1] if arguments else None))
        elif name in _KNOWN:
            self.stack.append(_known(name, arguments))
        else:
            self.stack.append(Call(function, arguments))

    def _dictionary(self, content: Any) -> dict[Any, Any]:
        """No copies, and each list of pairs is turned once: a small pickle must not grow by repeating itself."""
        if not isinstance(content, list):
            return content if isinstance(content, dict) else {}
        if id(content) not in self.converted:
            pairs: list[Any] = []
            for pair in content:
                if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                    raise ValueError("a dictionary of what are no pairs")
                pairs += pair
            self.converted[id(content)] = content, _pairs(pairs)  # kept alive, so that its id stays its own
        return self.converted[id(content)][1]

    def op_build(self, argument: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Call):
            target.state = state  # of a dictionary or a tensor it is bookkeeping only

    def op_persid(self, argument: Any) -> None:
        raise Refused("its pickle refers to outside objects by text, which no checkpoint does; refused")

    def op_binpersid(self, argument: Any) -> None:
        identity = self.stack.pop()
        if isinstance(identity, tuple) and identity[:1] == ("module",):  # legacy: (module, class, file, source text)
            self.stack.append(identity[1])
            return
        if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
            raise Refused("its pickle refers to outside objects that are no tensors; refused")
        kind, key, numel = identity[1], identity[2], identity[4]
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) and kind.module.startswith("torch") else None
        if dtype is None:
            raise Refused(f"it stores numbers as {shown(kind)}, which is no kind of storage that lsa reads")
        if not isinstance(key, str):
            raise Refused(f"it names stored numbers by {shown(key)}, as no checkpoint does; refused")
        if self.storages.setdefault(key, dtype) != dtype:
            raise Refused(
                f"it reads the same numbers as {dtype} and as {self.storages[key]}, as no checkpoint does; refused"
            )
        view = identity[5] if len(identity) > 5 and identity[5] is not None else (None, 0, None)
        self.stack.append(StorageSpec(key, dtype, _count(numel), _count(view[1])))


def _pairs(values: list[Any]) -> dict[Any, Any]:
    """Keys that are names or numbers stay; others become text that tells them apart.

    Others are symbols, tuples of tuples, and integers so large that many could share one hash.
    """
    plain = (str, float, bytes, type(None))
    return {
        key
        if isinstance(key, plain) or (isinstance(key, int) and abs(key) < 2**60)
        else f"<{type(key).__name__} {number}>": value
        for number, (key, value) in enumerate(zip(values[::2], values[1::2], strict=True))
    }


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise Refused(f"it holds a tensor with {shown(value)} where a size should be; damaged or hostile")
    return value


# ---- calls whose meaning is known ----------------------------------------------------------------------


def _known(name: str, arguments: tuple[Any, ...]) -> Any:
    if len(arguments) > _MOST_ARGUMENTS:
        raise TypeError(f"{name} with {len(arguments):,} arguments")
    return _KNOWN[name](*arguments)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any, dtype: Any = None) -> Any:
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


def _tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    name = dtype.name if isinstance(dtype, Global) and dtype.module == "torch" else None
    if name not in ITEM_SIZES:
        raise Refused(f"it holds a tensor of {shown(dtype)}, which lsa does not read")
    return _tensor(storage, offset, shape, stride, dtype=name)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _subclass(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    if isinstance(function, Global) and str(function) in _KNOWN and isinstance(arguments, tuple):
        return _known(str(function), arguments)
    return Call(function, arguments if isinstance(arguments, tuple) else (arguments,), state)


def _members(*arguments: Any) -> Any:
    return Members(arguments[0] if arguments and isinstance(arguments[0], list) else [])


def _size(*arguments: Any) -> Any:
    return arguments[0] if arguments and isinstance(arguments[0], tuple) else ()


_DICTIONARIES = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
_KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _size,
    **{f"{module}.{name}": _members for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
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
