"""Types of settings: the values they allow, how text is read, and their JSON Schema.

pydantic checks these types (`typing.Literal`, and the bounds of `annotated_types`, as in `Field(gt=0)`). It is imported when
a value is checked, so that `--help` is fast.
"""

import ast
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from lsa_cli.errors import UsageError, is_plain
from lsa_cli.registry import read_number

_MOST_THREADS = 1024  # torch crashes on many times that
_MOST_PIXELS = 4096
_HOURS, _MINUTES, _SECONDS = (rf"(?:(\d+\.?\d*)\s*{unit})?" for unit in ("h", "m(?:in)?", "s"))
_DURATION = re.compile(rf"{_HOURS}\s*{_MINUTES}\s*{_SECONDS}")

_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")  # of a JSON Schema; they bind numbers alone


class Reads:
    """In `Annotated[T, Reads(read)]`: `read` converts the given value before its type is checked.

    read: raises ValueError for a wrong value. schema: JSON Schema of the given value, where more than T is allowed.
    """

    def __init__(self, read: Callable[[Any], Any], schema: dict[str, Any] | None = None) -> None:
        self.read, self.schema = read, schema

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        own = handler(core)
        if self.schema is None:
            return own
        return {**self.schema, **{word: own[word] for word in _BOUNDS if word in own}}


# ---- how values are read -------------------------------------------------------------------------------


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


def _names(value: Any) -> Any:
    """["a,b", "c"] or "a,b,c" -> ["a", "b", "c"]."""
    entries = _one_or_more(value)
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        return entries
    names = [name.strip() for entry in entries for name in entry.split(",") if name.strip()]
    if not names:
        raise ValueError("is empty; give a value, or leave it out")
    return names


def _numbers(value: Any) -> list[float]:
    """[0, "1/255"], "0,1/255" or ["0,1/255"] -> [0.0, 0.0039]."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return [read_number(part.strip()) for item in items for part in str(item).split(",")]


def _as_text(value: Any) -> Any:
    """12 -> "12", [0, 255] -> "0,255"."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _pixels(value: Any) -> Any:
    text = _as_text(value)
    if text != "native" and not (isinstance(text, str) and text.isdecimal() and 0 < int(text) <= _MOST_PIXELS):
        raise ValueError(f"must be native, or a number of pixels up to {_MOST_PIXELS}, not '{value}'")
    return text


def _class_order(value: Any) -> Any:
    """[2, 0, 1] or "2,0,1" -> "2,0,1"; "name" and "number" stay."""
    text = _as_text(value)
    if text in ("name", "number"):
        return text
    numbers = [part.strip() for part in text.split(",")] if isinstance(text, str) else []
    is_order = len(numbers) > 1 and all(part.isdecimal() and len(part) < 10 for part in numbers)
    if not is_order or len({int(part) for part in numbers}) < len(numbers):
        raise ValueError(
            f"must be name, number, or the output for each class of the data, such as 2,0,1, not '{value}'"
        )
    return ",".join(str(int(part)) for part in numbers)


def _count_or(word: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value == word:
            return value
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"must be a whole number of at least 1, or {word}, not {value}")
        return value

    return read


def _duration(value: Any) -> float:
    """90, "90s", "10m" or "1h30m" -> seconds."""
    text = str(value).strip()
    match = _DURATION.fullmatch(f"{text}s" if re.fullmatch(r"\d+\.?\d*", text) else text)
    parts = zip(match.groups(), (3600, 60, 1), strict=True) if match else ()
    seconds = sum(float(number or 0) * unit for number, unit in parts)
    if seconds <= 0:
        raise ValueError(f"must be a time such as 90s, 10m or 1h30m, not {value}")
    return seconds


def parse_arguments(pairs: list[str]) -> dict[str, Any]:
    """["num_classes=10", "norm='batch'"] -> {"num_classes": 10, "norm": "batch"}; plain words stay text."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--arch-args: '{pair}' must read name=value")
        if key in arguments:
            raise UsageError(f"--arch-args: {key} is given twice")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = {"true": True, "false": False, "none": None}.get(value.lower(), value)
    return arguments


def _arguments(value: Any) -> Any:
    value = _one_or_more(value)
    if isinstance(value, list) and all(isinstance(pair, str) for pair in value):
        value = parse_arguments(value)
    if isinstance(value, Mapping) and not is_plain(value):
        raise ValueError("must be finite numbers, text, true, false, null, and lists and mappings of those")
    return value


# ---- the types -----------------------------------------------------------------------------------------

_NUMBER = {"type": ["number", "string"]}
_LIST = {"type": ["array", "string"], "items": {"type": "string"}}

Count = Annotated[int, Ge(1), Reads(_not_bool)]
Threads = Annotated[int, Ge(1), Le(_MOST_THREADS), Reads(_not_bool)]
Seed = Annotated[int, Ge(0), Lt(2**31), Reads(_not_bool)]
Samples = Annotated[int | Literal["all"], Reads(_count_or("all"), {"type": ["integer", "string"]})]
BatchSize = Annotated[int | Literal["auto"], Reads(_count_or("auto"), {"type": ["integer", "string"]})]
Number = Annotated[float, Reads(read_number, _NUMBER)]
Positive = Annotated[float, Gt(0), Reads(read_number, _NUMBER)]
NotNegative = Annotated[float, Ge(0), Reads(read_number, _NUMBER)]
Share = Annotated[float, Ge(0), Lt(1), Reads(read_number, _NUMBER)]
Numbers = Annotated[list[float], Reads(_numbers, {"type": ["array", "number", "string"], "items": _NUMBER})]
Duration = Annotated[float, Reads(_duration, _NUMBER)]
NumberText = Annotated[str, Reads(_as_text, _NUMBER)]
Range = Annotated[str, Reads(_as_text, {"type": ["string", "array"]})]
NumberOrName = Annotated[str, Reads(_as_text, {"type": ["string", "integer"]})]
ClassOrder = Annotated[str, Reads(_class_order, {"type": ["string", "array"]})]
Pixels = Annotated[str, Reads(_pixels, {"type": ["string", "integer"]})]
Texts = Annotated[list[str], Reads(_one_or_more, _LIST)]
Names = Annotated[list[str], Reads(_names, _LIST)]
Arguments = Annotated[dict[str, Any], Reads(_arguments, {"type": ["object", "array", "string"]})]
