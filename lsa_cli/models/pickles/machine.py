"""A pickle machine that builds symbols.

A pickle is a program that can import and call anything. This machine imports and calls nothing, so it can read any
pickle safely.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

from lsa_cli.errors import CheckpointError, summary_of
from lsa_cli.models.pickles.symbols import (
    CONTAINERS,
    Call,
    CutShort,
    Global,
    Members,
    Refused,
    StorageSpec,
    Symbols,
    TensorSpec,
    parts_of,
    read_differently,
    shown,
)
from lsa_cli.models.pickles.torch_calls import DICTIONARIES, KNOWN, UNREAD, Storages

LARGEST_PICKLE = 64 * 2**20
# Limits on instructions and copies. A tensor takes 40 instructions; this many take seconds and some hundred megabytes.
_MOST_STEPS = 1_000_000
_MOST_GLOBALS = 10_000
_LARGEST_TREE = 2 * _MOST_STEPS
# No known function of torch takes more; more would be slow to compare.
_MOST_ARGUMENTS = 16
# Keys that are neither text nor plain numbers can share one hash, and then take quadratic time.
_MOST_ODD_KEYS = 1000
_LARGEST_KEY = 2**60
# Instructions that put their argument on the stack, and those that put a new value there.
_VALUES = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Members([]),
}


def read_symbols(data: bytes, where: str) -> Symbols:
    """Interpret one pickle at the start of `data`.

    Raises CheckpointError when it is damaged (CutShort: where `data` ends), or does what no checkpoint needs, such as
    persistent ids of other kinds, out-of-band buffers, extension codes, and structures that repeat themselves without end.
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
                raise Refused("its pickle imports an impossible name; refused")
            action(argument)
            if steps >= _MOST_STEPS:
                raise Refused(
                    f"its pickle has more than {_MOST_STEPS:,} instructions, more than any checkpoint's; refused"
                )
        machine.storages.refuse_odd_views()
        _refuse_bomb(machine.result)
        return Symbols(
            machine.result, tuple(machine.globals), stream.tell(), machine.storages.types, machine.storages.sizes
        )
    except Refused as error:
        raise CheckpointError(f"{where}: {error}") from error
    except (
        ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError,
    ) as error:  # fmt: skip
        kind = CutShort if stream.tell() >= len(data) else CheckpointError
        raise kind(
            f"{where} is a damaged checkpoint (its pickle ends in {summary_of(error)}); copy or download it again"
        ) from error


def _refuse_bomb(root: Any) -> None:
    """Raise Refused for containers that hold one another so often that the content, as a tree, has too many parts.

    After this check the content can be treated as a tree.
    """
    sizes: dict[int, int] = {}
    stack: list[tuple[Any, bool]] = [(root, False)] if isinstance(root, CONTAINERS) else []
    while stack:
        item, done = stack.pop()
        if done:
            size = sizes[id(item)] = 1 + sum(sizes.get(id(part), 1) for part in parts_of(item))
            if size > _LARGEST_TREE:
                raise Refused("its pickle repeats itself into a structure larger than any checkpoint's; refused")
        elif id(item) not in sizes:
            sizes[id(item)] = 1  # until its parts are counted; a container that holds itself counts as 1 inside
            stack.append((item, True))
            stack.extend((part, False) for part in parts_of(item) if part and isinstance(part, CONTAINERS))


class _Machine:
    """Executes the instructions that pickletools lists, on symbols."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.globals: dict[str, Global] = {}
        self.storages = Storages()
        self.copied = self.odd_keys = 0
        self.result: Any = None
        self.actions: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(_VALUES, self._push),
            **{name: partial(self._new, make) for name, make in _NEW.items()},
            **{f"TUPLE{count}": partial(self._tuple, count) for count in (1, 2, 3)},
            **{name[3:].upper(): getattr(self, name) for name in dir(self) if name.startswith("op_")},
        }

    def _push(self, argument: Any) -> None:
        self.stack.append(argument)

    def _new(self, make: Callable[[], Any], argument: Any) -> None:
        self.stack.append(make())

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

    def op_tuple(self, argument: Any) -> None:
        self._push(tuple(self.since_mark()))

    def _tuple(self, count: int, argument: Any) -> None:
        if len(self.stack) < count:
            raise IndexError("stack")
        self.stack[-count:] = [tuple(self.stack[-count:])]

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
        """Keys that are text or numbers stay; others become text that is unique."""
        return {self.key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}

    def key(self, key: Any) -> Any:
        if isinstance(key, (str, float, bytes, type(None))) or (isinstance(key, int) and abs(key) < _LARGEST_KEY):
            return key
        if isinstance(key, int) or (isinstance(key, tuple) and any(isinstance(part, CONTAINERS) for part in key)):
            raise Refused("its pickle uses a key of a kind that no checkpoint needs; refused")
        self.odd_keys += 1
        if self.odd_keys > _MOST_ODD_KEYS:
            raise Refused(
                f"its pickle has more than {_MOST_ODD_KEYS:,} keys that are neither names nor numbers; refused"
            )
        return f"<{type(key).__name__} {self.odd_keys}>"

    def charge(self, size: int) -> None:
        """Count what is copied against one budget, so that a small pickle cannot grow by repeating itself. Raises Refused."""
        self.copied += size
        if self.copied > _MOST_STEPS:
            raise Refused("its pickle copies more than any checkpoint's; refused")

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
        """cls.__new__, which leaves dictionaries and sets empty."""
        arguments, function = self.stack.pop(), self.stack.pop()
        name = _python_3(function)
        if name in DICTIONARIES or name == "builtins.set":
            self.stack.append({} if name in DICTIONARIES else Members([]))
        elif name in KNOWN and name not in ("torch.Size", "builtins.frozenset"):
            raise TypeError(f"{name} is not a class")
        else:
            self._call(function, arguments)

    def op_newobj_ex(self, argument: Any) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Call(function, (arguments, keywords)))

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are not a tuple")
        self.stack.append(self.value_of(function, arguments))

    def value_of(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The result of a call whose meaning is known; otherwise the Call. Raises Refused."""
        name = _python_3(function)
        if name in DICTIONARIES:
            return self._dictionary(function, arguments)
        if name in KNOWN:
            if len(arguments) > _MOST_ARGUMENTS:
                raise TypeError(f"{name} with {len(arguments):,} arguments")
            return KNOWN[name](self, Call(function, arguments), *arguments)
        if UNREAD.fullmatch(name):
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
            raise Refused(f"its pickle makes a dictionary of {shown(content)}, which no checkpoint needs; refused")
        self.charge(len(content))
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in content):
            raise ValueError("the entries of a dictionary are not pairs")
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
        raise Refused("its pickle refers to outside objects by text, which no checkpoint needs; refused")

    def op_binpersid(self, argument: Any) -> None:
        self.stack.append(self.storages.refer(self.stack.pop()))


def _python_3(function: Any) -> str:
    """The name of a function, with the names of Python 2 translated; "" for what is not a name."""
    if not isinstance(function, Global):
        return ""
    return f"builtins.{function.name}" if function.module == "__builtin__" else str(function)


def _article(target: Any) -> str:
    return "a tensor" if isinstance(target, (TensorSpec, StorageSpec)) else f"a {type(target).__name__}"
