"""Names that users type and what they stand for: "pgd:steps=20" -> PGD(steps=20).

A registry maps a name to a factory, which registers itself with a decorator. Plugins come from an entry point (group
`lsa_cli.plugins`) or `--plugin file.py`; the same code lists, describes, parses and tests them.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from lsa_cli.errors import UsageError
from lsa_cli.imports import import_named
from lsa_cli.wording import first_of

T = TypeVar("T")
# Sources of architectures whose code is installed; any other source names Python code of the user.
SHIPPED = ("lsa", "torchvision", "timm")
_LISTED_WITH_A_SUGGESTION = 20
_MOST_LISTED = 80  # all of torchvision's networks, but not the thousand names of timm


def into(table: dict[str, T]) -> Callable[..., Callable[[T], T]]:
    """A decorator that puts a function into the table under the names that it is given."""

    def under(*names: str) -> Callable[[T], T]:
        def put(function: T) -> T:
            table.update(dict.fromkeys(names, function))
            return function

        return put

    return under


class Registry(Generic[T]):
    """An ordered table name -> factory. Its errors list the names."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: register a factory as `name`. Raises UsageError if the name is taken."""

        def add(factory: T) -> T:
            if name in self._entries:
                raise UsageError(f"the {self.noun} '{name}' is registered twice; choose another name")
            self._entries[name] = factory
            return factory

        return add

    def registered(self) -> list[T]:
        """What is registered so far; entry points are not loaded."""
        return list(self._entries.values())

    def names(self) -> list[str]:
        load_entry_points()
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str) -> T:
        """The factory called `name`. Raises UsageError with the nearest name if there is none."""
        if name not in self._entries:
            load_entry_points()
        if name not in self._entries:
            raise UsageError(unknown(self.noun, name, self._entries))
        return self._entries[name]


def unknown(noun: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown name: the nearest known one, and all of them unless they are many."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    if near and len(names) > _LISTED_WITH_A_SUGGESTION:
        return f"unknown {noun} '{name}': did you mean '{near[0]}'?"
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {noun} '{name}': {hint}there are {first_of(names, _MOST_LISTED) or 'none'}"


_entry_points_loaded = False


def load_entry_points() -> None:
    """Import every module that an installed package announces under `lsa_cli.plugins`; a second call does nothing."""
    global _entry_points_loaded
    if not _entry_points_loaded:
        _entry_points_loaded = True
        from importlib.metadata import entry_points

        for entry in entry_points(group="lsa_cli.plugins"):
            entry.load()


def load_attribute(spec: str, what: str) -> Any:
    """`pkg.mod:name` or `path/to/file.py:name` -> that object. The user named it, so its code may run."""
    module_name, _, attribute = spec.rpartition(":")
    if not module_name or not attribute:
        raise UsageError(f"{what}: '{spec}' must read pkg.mod:name or path/to/file.py:name")
    module = import_named(module_name, what)
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise UsageError(f"{what}: {unknown('name in ' + module_name, attribute, public)}")
    return getattr(module, attribute)


# ---- specs ---------------------------------------------------------------------------------------------


def read_number(text: str | float) -> float:
    """0.03, "8/255", "1e-3" -> float. Raises ValueError for anything else, NaN and infinity included."""
    try:
        if isinstance(text, bool):
            raise ValueError
        numerator, slash, denominator = str(text).partition("/")
        value = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"'{text}' is not a number; write for example 0.03 or 8/255") from None
    if not math.isfinite(value):
        raise ValueError(f"'{text}' is not a finite number")
    return value


def parse_number(text: str | float, what: str = "value") -> float:
    """As `read_number`; raises UsageError that begins with `what`."""
    try:
        return read_number(text)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None


def parse_spec(spec: str, noun: str) -> tuple[str, dict[str, str]]:
    """ "pgd:steps=20,eps=8/255" -> ("pgd", {"steps": "20", "eps": "8/255"})."""
    name, _, rest = spec.strip().partition(":")
    options: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"{noun} '{spec}': '{part}' must read key=value")
        if key in options:
            raise UsageError(f"{noun} '{spec}': {key} is given twice")
        options[key] = value.strip()
    return name, options


def _convert(value: Any, annotation: Any, what: str) -> Any:
    """Text from a spec -> the type that a field is annotated with."""
    choices = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    kinds = choices or (annotation,)
    if type(None) in kinds and (value is None or str(value).lower() == "none"):
        return None
    if bool in kinds:
        text = str(value).lower()
        if text not in ("true", "false", "yes", "no", "1", "0"):
            raise UsageError(f"{what}: '{value}' must be true or false")
        return text in ("true", "yes", "1")
    if float in kinds:
        return parse_number(value, what)
    if int in kinds:
        number = parse_number(value, what)
        if number != int(number):
            raise UsageError(f"{what}: '{value}' must be a whole number")
        return int(number)
    return str(value)


def build(factory: type, options: dict[str, Any], what: str, **given: Any) -> Any:
    """Construct the dataclass `factory` from text options; `given` fills fields that users do not set.

    Raises UsageError for an option without a field, a value of the wrong type, and a field without a value.
    """
    if not dataclasses.is_dataclass(factory):
        raise UsageError(
            f"{what}: {factory.__name__} is no dataclass; put @dataclass(frozen=True) under its register line"
        )
    hints = typing.get_type_hints(factory)
    fields = {field.name: field for field in dataclasses.fields(factory) if field.init}
    settable = [name for name in fields if name not in given]
    for key in options:
        if key not in settable:
            raise UsageError(f"{what}: {unknown('option', key, settable)}")
    missing = [name for name, field in fields.items() if _is_required(field) and name not in {*options, *given}]
    if missing:
        raise UsageError(f"{what}: {' and '.join(missing)} must be given, as {missing[0]}=...")
    converted = {key: _convert(value, hints[key], f"{what}: {key}") for key, value in options.items()}
    return factory(**converted, **{key: value for key, value in given.items() if key in fields})


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
