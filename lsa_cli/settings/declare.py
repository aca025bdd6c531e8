"""What a setting is: a field of a dataclass, with all that is said of it; and how given values become such a dataclass.

`setting(...)` declares a field once. From it come the option of the command line (`cli/options.py`), the key of lsa.yaml
and its check (`config.py`), the keyword argument of `lsa_cli.audit` and `lsa_cli.harden`, the JSON Schema and the
reference page (`settings/schema.py`).
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from lsa_cli.errors import LsaError, UsageError
from lsa_cli.registry import unknown

T = TypeVar("T")
S = TypeVar("S", bound="Settings")
# Where a setting may be given, and whether the report holds it:
# measured   everywhere; the report lists it, because it can change a number
# written    everywhere; it decides which files are written, or when the audit stops
# told       on the command line and in lsa.yaml; it decides what the terminal shows, or the exit code
# once       on the command line alone; it belongs to one run
Scope = Literal["measured", "written", "told", "once"]


@dataclasses.dataclass(frozen=True)
class Option:
    """One name under which a setting is given: --name, and `name` in lsa.yaml and in Python.

    read: turns what is given under this name into the setting's value; raises ValueError or UsageError. As a flag the
    option takes no value on the command line. off: the flag that says the opposite. key: the name in lsa.yaml and Python.
    """

    name: str
    help: str
    metavar: str | None = None
    short: str | None = None
    panel: str = ""
    flag: bool = False
    repeatable: bool = False
    off: str | None = None
    read: Callable[[Any], Any] | None = None
    key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name.replace("-", "_"))

    @property
    def declarations(self) -> tuple[str, ...]:
        long = f"--{self.name}" if self.off is None else f"--{self.name}/--{self.off}"
        return (long,) if self.short is None else (long, f"-{self.short}")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field and what is said of it. options: the names under which it is given; a key alone has no option."""

    name: str
    hint: Any
    help: str
    panel: str
    scope: Scope
    default: str | None
    options: tuple[Option, ...]

    @property
    def type(self) -> Any:
        """The hint without None."""
        kinds = [kind for kind in typing.get_args(self.hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else self.hint

    @property
    def is_whole(self) -> bool:
        """Whether its value is a whole number and nothing else."""
        return _bare(self.type) is int


def setting(
    panel: str,
    help: str,
    *,
    metavar: str | None = None,
    short: str | None = None,
    default: str | None = None,
    scope: Scope = "measured",
    name: str | None = None,
    off: str | None = None,
    options: tuple[Option, ...] | Callable[[], tuple[Option, ...]] | None = None,
) -> Any:
    """Declare a field. default: in words, where it is the same for every checkpoint. options: instead of one of its own
    name; the field's name is then a key without an option. A function gives those that there are when it is called. name: of the option, where it is not the field's."""
    said = {
        "panel": panel, "help": help, "metavar": metavar, "short": short, "default": default, "scope": scope, "name": name,
        "off": off, "options": options,
    }  # fmt: skip
    return dataclasses.field(default=None, metadata=said)


class SettingError(UsageError):
    """A value that cannot be. key: the names that lead to it, such as ("harden", "epochs"). whole: the sentence names it."""

    def __init__(self, key: tuple[str, ...], sentence: str, whole: bool = False) -> None:
        super().__init__(sentence if whole else f"--{key[-1].replace('_', '-')}: {sentence}")
        self.key, self.sentence, self.whole = key, sentence, whole


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the dataclasses of settings. None: not given, so that the next in line decides."""

    def replace(self: S, **changes: Any) -> S:
        return dataclasses.replace(self, **changes)

    def given(self, *scopes: Scope) -> dict[str, Any]:
        """The values that are given, by name; with scopes, of those alone. What a section holds is not among them."""
        return {
            one.name: value
            for one in settings_of(type(self))
            if (value := getattr(self, one.name)) is not None
            and not isinstance(value, Settings)
            and (not scopes or one.scope in scopes)
        }

    def recorded(self) -> dict[str, Any]:
        """What a report says of them: plain values of the settings that can change a number."""
        return {name: _plain(value) for name, value in self.given("measured").items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value.model_dump() if hasattr(value, "model_dump") else value


# ---- what is declared ----------------------------------------------------------------------------------


def _cached(work: Callable[[type[Settings]], T]) -> Callable[[type[Settings]], T]:
    return functools.cache(work)  # type: ignore[return-value]  # mypy takes a class for unhashable


def settings_of(kind: type[Settings]) -> tuple[Setting, ...]:
    """Every setting that `kind` declares, in order."""
    return tuple(_with_options(one, make) for one, make in _declared(kind))


def _with_options(one: Setting, make: Callable[[], tuple[Option, ...]] | None) -> Setting:
    if make is None:
        return one
    return dataclasses.replace(one, options=tuple(dataclasses.replace(option, panel=one.panel) for option in make()))


@_cached
def _declared(kind: type[Settings]) -> list[tuple[Setting, Callable[[], tuple[Option, ...]] | None]]:
    """The settings, and for those whose options can become more the function that makes these."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [(field, field.metadata["options"]) for field in dataclasses.fields(kind)]
    return [(_setting(field, hints[field.name]), made if callable(made) else None) for field, made in fields]


def _setting(field: "dataclasses.Field[Any]", hint: Any) -> Setting:
    said = field.metadata
    one = Setting(field.name, hint, said["help"], said["panel"], said["scope"], said["default"], ())
    if callable(said["options"]):
        return one
    if said["options"] is not None:
        options = tuple(dataclasses.replace(option, panel=said["panel"]) for option in said["options"])
        return dataclasses.replace(one, options=options)
    default = "" if one.default is None else f" Default: {one.default}."
    own = Option(
        said["name"] or field.name.replace("_", "-"), one.help + default, said["metavar"] or _choices(one.type),
        said["short"], one.panel, one.type is bool, _is_list(one.type), said["off"], None,
        field.name,
    )  # fmt: skip
    return dataclasses.replace(one, options=(own,))


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _is_list(hint: Any) -> bool:
    bare = _bare(hint)
    return typing.get_origin(bare) in (list, dict) and bare != list[float]


def _choices(hint: Any) -> str | None:
    return "|".join(typing.get_args(hint)) if typing.get_origin(hint) is Literal else None


def keys_of(kind: type[Settings]) -> dict[str, tuple[Setting, Option | None]]:
    """Every name that a value may be given by, with _ for -; without an option where it is the field's own name."""
    keys: dict[str, tuple[Setting, Option | None]] = {}
    for one in settings_of(kind):
        for option in one.options:
            for name in (option.key, option.short):
                if name is not None:
                    keys[name] = (one, option)
        keys.setdefault(one.name, (one, None))
    return keys


# ---- from values as they are given ---------------------------------------------------------------------


EVERYWHERE: tuple[Scope, ...] = ("measured", "written", "told", "once")
IN_A_FILE: tuple[Scope, ...] = ("measured", "written", "told")
IN_PYTHON: tuple[Scope, ...] = ("measured", "written")


def stands_for(meaning: Any) -> Callable[[Any], Any]:
    """How a flag is read: true stands for `meaning`, false for nothing."""
    return lambda value: meaning if checked(bool, value) else None


def read_settings(
    kind: type[S], values: Mapping[str, Any], noun: str = "option", scopes: tuple[Scope, ...] = EVERYWHERE
) -> S:
    """`values` by name, as they are given, checked. None is not given.

    noun: what a name is called in messages. Raises SettingError with the key for an unknown name, a value that cannot be,
    two names of one setting, and a setting of another scope.
    """
    found: dict[str, Any] = {}
    by: dict[str, str] = {}
    for key, value in values.items():
        if value is None:
            continue
        one, new = _read(kind, key, value, noun, scopes)
        if new is None:
            continue
        if one.name in found:
            found[one.name] = _both(by[one.name], found[one.name], key, new)
        else:
            found[one.name], by[one.name] = new, key
    return kind(**found)


def _read(kind: type[Settings], key: str, value: Any, noun: str, scopes: tuple[Scope, ...]) -> tuple[Setting, Any]:
    name = key.replace("-", "_")
    known = keys_of(kind)
    if name not in known:
        raise SettingError((key,), unknown(noun, key, [name for name in known if len(name) > 1]), whole=True)
    one, option = known[name]
    if one.scope not in scopes:
        whose = "an audit" if one.scope == "written" else "the command line"
        raise SettingError((key,), f"belongs to {whose}; leave it out here")
    section = one.type if isinstance(one.type, type) and issubclass(one.type, Settings) else None
    if section is not None and option is None:
        return one, _section(section, key, value, noun, scopes)
    try:
        if any(isinstance(part, str) and not part.strip() for part in (value if isinstance(value, list) else [value])):
            raise ValueError("is empty; give a value, or leave it out")
        if option is not None and option.read is not None:
            value = option.read(value)
        return one, None if value is None else checked(one.type, value)
    except SettingError as error:
        error.key = (key, *error.key[1:])
        raise
    except LsaError as error:
        raise SettingError((key,), str(error), whole=True) from error
    except ValueError as error:
        raise SettingError((key,), str(error)) from error


def _section(kind: type[S], key: str, value: Any, noun: str, scopes: tuple[Scope, ...]) -> S:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise SettingError((key,), f"should be a mapping, such as {{epochs: 5}}, not {value}")
    try:
        return read_settings(kind, {str(name): part for name, part in value.items()}, f"{noun} of {key}", scopes)
    except SettingError as error:
        error.key = (key, *error.key)
        raise


def _both(first: str, value: Any, second: str, other: Any) -> Any:
    """Two names of one setting in one place: mappings of different keys add up."""
    if isinstance(value, dict) and isinstance(other, dict):
        if twice := sorted(value.keys() & other.keys()):
            raise SettingError((second,), f"{twice[0]} is given twice")
        return {**value, **other}
    names = [f"--{name.replace('_', '-')}" for name in (first, second)]
    raise SettingError((second,), f"{' and '.join(names)} set the same; give one of them", whole=True)


@functools.cache
def adapter(hint: Any) -> Any:
    """pydantic's check of a type."""
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def checked(hint: Any, value: Any) -> Any:
    """`value` as `hint` has it. Raises ValueError with a sentence, and what the type's own reader raises."""
    from pydantic import ValidationError

    if isinstance(hint, types.UnionType):
        hint = typing.Union[hint.__args__]  # noqa: UP007
    try:
        return adapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(_sentence(error.errors()[0])) from error


def _sentence(problem: Any) -> str:
    """pydantic's message in our words."""
    value, context = problem.get("input"), problem.get("ctx", {})
    shown = f"{value:g}" if isinstance(value, float) else f"'{value}'" if isinstance(value, str) else f"{value}"
    match problem["type"]:
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return f"should be {context['expected'].replace(', ', ' or ').replace(chr(39), '')}, not {shown}"
        case "greater_than_equal":
            return f"should be at least {context['ge']:g}, not {shown}"
        case "greater_than":
            return f"should be above {context['gt']:g}, not {shown}"
        case "less_than_equal":
            return f"should be at most {context['le']:g}, not {shown}"
        case "less_than":
            return f"should be below {context['lt']:g}, not {shown}"
        case "int_parsing" | "int_type" | "int_from_float":
            return f"should be a whole number, not {shown}"
        case "bool_parsing" | "bool_type":
            return f"should be true or false, not {shown}"
        case "string_type":
            return f"should be text, not {shown}"
        case "list_type":
            return f"should be a list, not {shown}"
        case "dict_type":
            return f"should be a mapping, not {shown}"
        case _:
            return f"{problem['msg'].lower()}, not {shown}"
