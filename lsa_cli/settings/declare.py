"""How a setting is declared, as a field of a dataclass, and how given values become such a dataclass.

`setting(...)` declares a field once, and `panel(title)(...)` in a panel of --help. From it come the option of the command line (`cli/options.py`), the key of lsa.yaml
and its check (`config.py`), the keyword argument of `lsa_cli.audit` and `lsa_cli.harden`, the JSON Schema and the
reference page (`settings/schema.py`, `settings/reference.py`).
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

from lsa_cli.errors import LsaError, UsageError
from lsa_cli.registry import unknown

S = TypeVar("S", bound="Settings")
# Where a setting may be given, and whether the report holds it:
# measured   everywhere; the report lists it, because it can change a number
# written    everywhere; it decides which files are written, or when the audit stops
# told       on the command line and in lsa.yaml; it decides what the terminal shows, or the exit code
# once       on the command line alone; it belongs to one run
Scope = Literal["measured", "written", "told", "once"]
EVERYWHERE: tuple[Scope, ...] = ("measured", "written", "told", "once")
IN_A_FILE: tuple[Scope, ...] = ("measured", "written", "told")
IN_PYTHON: tuple[Scope, ...] = ("measured", "written")


@dataclasses.dataclass(frozen=True)
class Option:
    """One name under which a setting is given: --name on the command line, `key` in lsa.yaml and in Python.

    flag: it takes no value on the command line. off: the flag that says the opposite. read: turns the given value into
    the setting's; raises ValueError or UsageError.
    """

    name: str
    help: str
    metavar: str | None = None
    short: str | None = None
    flag: bool = False
    repeatable: bool = False
    off: str | None = None
    read: Callable[[Any], Any] | None = None
    field: str | None = None

    @property
    def key(self) -> str:
        return self.field or self.name.replace("-", "_")

    @property
    def declarations(self) -> tuple[str, ...]:
        long = f"--{self.name}" if self.off is None else f"--{self.name}/--{self.off}"
        return (long,) if self.short is None else (long, f"-{self.short}")


def flag(name: str, help: str, sets: str | None = None) -> Option:
    """An option without a value that sets its setting to `sets`, by default its name."""
    return Option(name, help, flag=True, read=lambda value: (sets or name) if checked(bool, value) else None)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A declared field. type: of its value. options: the names under which it is given."""

    name: str
    type: Any
    help: str
    panel: str
    scope: Scope
    default: str | None
    options: tuple[Option, ...]

    @property
    def is_whole(self) -> bool:
        """Whether its value is a whole number and nothing else."""
        return _bare(self.type) is int


def setting(
    panel: str,
    help: str,
    *,
    default: str | None = None,
    scope: Scope = "measured",
    options: tuple[Option, ...] | Callable[[], tuple[Option, ...]] | None = None,
    **own: str,
) -> Any:
    """Declare a field, which gets an option of its own name.

    default: in words, where it is the same for every checkpoint. own: fields of that option: metavar, short, off, name.
    options: these take its place, and the field's name is a key alone; a function is called each time.
    """
    said = {"panel": panel, "help": help, "default": default, "scope": scope, "options": options, "own": own}
    return dataclasses.field(default=None, metadata=said)


def panel(title: str) -> Callable[..., Any]:
    """`setting` for one panel of --help."""
    return functools.partial(setting, title)


class SettingError(UsageError):
    """A wrong value. key: the names that lead to it, such as ("harden", "epochs"). whole: the sentence already names it."""

    def __init__(self, key: tuple[str, ...], sentence: str, whole: bool = False) -> None:
        super().__init__(sentence if whole else f"--{key[-1].replace('_', '-')}: {sentence}")
        self.key, self.sentence, self.whole = key, sentence, whole


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the dataclasses of settings. None: not given."""

    def replace(self: S, **changes: Any) -> S:
        return dataclasses.replace(self, **changes)

    def given(self, *scopes: Scope) -> dict[str, Any]:
        """The given values by name; with scopes, of those alone. Sections are left out."""
        values = {
            one.name: getattr(self, one.name) for one in settings_of(type(self)) if one.scope in scopes or not scopes
        }
        return {name: value for name, value in values.items() if value is not None and not isinstance(value, Settings)}

    def recorded(self) -> dict[str, Any]:
        """Plain values for the report, of the settings that can change a number."""
        return {name: _plain(value) for name, value in self.given("measured").items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value.model_dump() if hasattr(value, "model_dump") else value


# ---- what is declared ----------------------------------------------------------------------------------


def settings_of(kind: type[Settings]) -> tuple[Setting, ...]:
    """Every setting that `kind` declares, in order."""
    return tuple(_setting(field) for field in dataclasses.fields(kind))


def _setting(field: "dataclasses.Field[Any]") -> Setting:
    said, kind = field.metadata, typing.get_args(field.type)[0]  # of `kind | None`
    options = said["options"]() if callable(said["options"]) else said["options"]
    if options is None:
        options = (_own_option(field, kind),)
    return Setting(field.name, kind, said["help"], said["panel"], said["scope"], said["default"], options)


def _own_option(field: "dataclasses.Field[Any]", kind: Any) -> Option:
    said, bare = field.metadata, _bare(kind)
    values = {
        "name": field.name.replace("_", "-"),
        "help": said["help"] + ("" if said["default"] is None else f" Default: {said['default']}."),
        "metavar": "|".join(typing.get_args(kind)) if typing.get_origin(kind) is Literal else None,
        "flag": kind is bool,
        "repeatable": typing.get_origin(bare) in (list, dict) and bare != list[float],
        "field": field.name,
    }
    return Option(**{**values, **said["own"]})


def _bare(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def keys_of(kind: type[Settings]) -> dict[str, tuple[Setting, Option | None]]:
    """Every name that a value may be given by, with _ for -; without an option where it is the field's own name."""
    keys: dict[str, tuple[Setting, Option | None]] = {}
    for one in settings_of(kind):
        for option in one.options:
            keys[option.key] = (one, option)
            if option.short is not None:
                keys[option.short] = (one, option)
        keys.setdefault(one.name, (one, None))
    return keys


# ---- from values as they are given ---------------------------------------------------------------------


def read_settings(
    kind: type[S], values: Mapping[str, Any], noun: str = "option", scopes: tuple[Scope, ...] = EVERYWHERE
) -> S:
    """`values` by name, as they are given, checked. None is not given.

    noun: for a name, in messages. Raises SettingError with the key for an unknown name, a wrong value, two names of one
    setting, and a setting of another scope.
    """
    found: dict[str, Any] = {}
    by: dict[str, str] = {}
    known = keys_of(kind)
    for key, given in values.items():
        if given is None:
            continue
        name = key.replace("-", "_")
        if name not in known:
            raise SettingError((key,), _unknown_key(noun, key, given, known), whole=True)
        one, option = known[name]
        if one.scope not in scopes:
            whose = "an audit" if one.scope == "written" else "the command line"
            raise SettingError((key,), f"belongs to {whose}; leave it out here")
        if option is None and isinstance(one.type, type) and issubclass(one.type, Settings):
            value: Any = _section(one.type, key, given, noun, scopes)
        else:
            value = _value(one, option, key, given)
        if value is None:
            continue
        if one.name in found:
            value = _both(by[one.name], found[one.name], key, value)
        found[one.name], by[one.name] = value, by.get(one.name, key)
    return kind(**found)


def _value(one: Setting, option: Option | None, key: str, value: Any) -> Any:
    """The checked value; None for a flag that is false."""
    try:
        if any(isinstance(part, str) and not part.strip() for part in (value if isinstance(value, list) else [value])):
            raise ValueError("is empty; give a value, or leave it out")
        if option is not None and option.read is not None:
            value = option.read(value)
        return None if value is None else checked(one.type, value)
    except SettingError as error:
        error.key = (key, *error.key[1:])
        raise
    except LsaError as error:
        raise SettingError((key,), str(error), whole=True) from error
    except ValueError as error:
        raise SettingError((key,), str(error)) from error


def _unknown_key(noun: str, key: str, value: Any, known: Iterable[str]) -> str:
    names = [name for name in known if len(name) > 1]
    if key in ("limits", "thresholds") and isinstance(value, Mapping) and "gate" in known:
        return f"unknown {noun} '{key}': did you mean 'gate'?"  # and not limit, a number of samples
    if "gate" not in known:
        return unknown(noun, key, names)

    from lsa_cli.report.limits import find_metric  # not above: it imports pydantic, and most commands start without it

    if find_metric(key) is not None:
        limit = f"{key}: {value}" if isinstance(value, (int, float, str)) else f"{key}: 0.4"
        return f"unknown {noun} '{key}': limits stand under gate, for example `gate: {{{limit}}}`"
    return unknown(noun, key, names)


def _section(kind: type[S], key: str, value: Any, noun: str, scopes: tuple[Scope, ...]) -> S:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise SettingError((key,), f"must be a mapping, such as {{epochs: 5}}, not {value}")
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
    raise SettingError((second,), f"{' and '.join(names)} set the same thing; give one of them", whole=True)


# pydantic's kinds of errors in our words; a message of another kind is pydantic's own.
SENTENCES = {
    "value_error": "{error}",
    "literal_error": "must be {expected}, not {value}",
    "greater_than_equal": "must be at least {ge:g}, not {value}",
    "greater_than": "must be above {gt:g}, not {value}",
    "less_than_equal": "must be at most {le:g}, not {value}",
    "less_than": "must be below {lt:g}, not {value}",
    "int_parsing": "must be a whole number, not {value}",
    "int_type": "must be a whole number, not {value}",
    "int_from_float": "must be a whole number, not {value}",
    "bool_parsing": "must be true or false, not {value}",
    "bool_type": "must be true or false, not {value}",
    "string_type": "must be text, not {value}",
    "list_type": "must be a list, not {value}",
    "dict_type": "must be a mapping, not {value}",
}


@functools.cache
def adapter(hint: Any) -> Any:
    """pydantic's check of a type."""
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def checked(hint: Any, value: Any) -> Any:
    """`value` converted to the type. Raises ValueError with a sentence, and the errors of the type's own reader."""
    from pydantic import ValidationError

    try:
        return adapter(hint).validate_python(value)
    except ValidationError as error:
        problem: Any = error.errors()[0]
    given, context = problem["input"], problem.get("ctx", {})
    shown = f"{given:g}" if isinstance(given, float) else f"'{given}'" if isinstance(given, str) else str(given)
    if "expected" in context:  # "'a', 'b' or 'c'"
        context["expected"] = context["expected"].replace(", ", " or ").replace("'", "")
    if problem["type"] in SENTENCES:
        raise ValueError(SENTENCES[problem["type"]].format(**context, value=shown))
    raise ValueError(f"{problem['msg'].lower()}, not {shown}")
