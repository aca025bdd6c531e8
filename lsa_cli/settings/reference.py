"""What is made from the declarations of the settings: docs/reference.md, and keywords.pyi for editors."""

from collections.abc import Container, Iterator
from textwrap import fill
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from lsa_cli.settings.audit import AuditSettings
from lsa_cli.settings.declare import IN_PYTHON, Option, Setting, Settings, keys_of, settings_of
from lsa_cli.settings.harden import HardenSettings

_HEAD = """\
# Reference of settings

This page is made from the code: `pytest tests/test_docs.py --update-gold` writes it.

A setting has one name. `--full-on 100` on the command line is `full-on: 100` (or `full_on: 100`) in `lsa.yaml` and
`audit(..., full_on=100)` in Python. A flag is `true` there: `--quick`, `quick: true`, `quick=True`. A short name such as `-n` works
too: `n: 100`. The command line wins over `lsa.yaml`, which wins over what the checkpoint says.

Marks: ¹ on the command line and in `lsa.yaml` only; ² on the command line only.
"""
_HARDEN = (
    "The settings below belong to the section `harden:` of `lsa.yaml`. Outside of it, `lsa harden` also takes these settings of "
    "an audit: {}."
)
_FLEET = (
    "`lsa fleet` takes these settings of an audit, for each of its audits: {}. Its own options are in [fleet.md](fleet.md) and in "
    "`lsa fleet --help`."
)
_STUB = """\
# Made from the code: `pytest tests/test_docs.py --update-gold` writes it.
from typing import Any, Literal, TypedDict

class AuditKeywords(TypedDict, total=False):"""
_OWN = ("data", "harden")  # an argument of its own, and settings of `lsa_cli.harden`
_MARKS = {"told": "¹", "once": "²"}
_BOUNDS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}


def reference(of_hardening: Container[str], of_fleets: Container[str]) -> str:
    """The page, as Markdown. of_hardening, of_fleets: the settings of an audit that `lsa harden` and `lsa fleet` take."""
    harden, fleet = _sentence(_HARDEN, of_hardening), _sentence(_FLEET, of_fleets)
    lines = [_HEAD, "## `lsa audit`\n", *_tables(AuditSettings), "## `lsa fleet`\n", fleet]
    lines += ["## `lsa harden`\n", harden, *_tables(HardenSettings)]
    return "\n".join(lines).rstrip() + "\n"


def _sentence(text: str, taken: Container[str]) -> str:
    settings = [one for one in settings_of(AuditSettings) if one.name in taken]
    names = [f"`--{option.name}`{_MARKS.get(one.scope, '')}" for one in settings for option in one.options]
    return fill(text.format(", ".join(names)), 140, break_on_hyphens=False) + "\n"


def keywords() -> str:
    """The stub with the keyword arguments of `lsa_cli.audit`, which are those that its own signature lacks."""
    keys = {key: of for key, of in keys_of(AuditSettings).items() if of[0].scope in IN_PYTHON and key not in _OWN}
    lines = [f"    {key}: {_annotation(*of)}" for key, of in keys.items()]
    return "\n".join([_STUB, *lines]) + "\n"


def _annotation(one: Setting, option: Option | None) -> str:
    if one.type is bool or (option is not None and option.flag):
        return "bool"
    words = ", ".join(f'"{word}"' for word in get_args(one.type))
    return f"Literal[{words}]" if get_origin(one.type) is Literal else "Any"


def _tables(kind: type[Settings]) -> Iterator[str]:
    settings = settings_of(kind)
    for panel in dict.fromkeys(one.panel for one in settings):
        rows = [row for one in settings if one.panel == panel for row in _rows(one)]
        yield f"### {f'Hardening: {panel.lower()}' if kind is HardenSettings else panel}\n"
        yield "| option | value | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _rows(one: Setting) -> Iterator[str]:
    for option in one.options:
        names = ", ".join(f"`{name}`" for name in option.declarations[::-1])
        yield _row(f"{names}{_MARKS.get(one.scope, '')}", _value(one, option), option.help)
    if all(option.key != one.name for option in one.options) and one.name not in ("harden", "files"):
        where = "`lsa.yaml` and Python" if one.scope in IN_PYTHON else "`lsa.yaml`"
        yield _row(f"`{one.name}:` in {where}", "|".join(_words(one.type)), one.help)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _value(one: Setting, option: Option) -> str:
    if option.flag:
        return ""
    shown = f"`{option.metavar}`" if option.metavar else "whole number" if one.is_whole else _kind(one.type)
    return ", ".join([shown, *_bounds(one.type)])


def _kind(hint: Any) -> str:
    return "number" if get_args(hint)[:1] == (float,) else "text"


def _words(hint: Any) -> list[str]:
    return [f"`{word}`" for word in get_args(hint) if isinstance(word, str)] or [
        "`true`, `false`" if hint is bool else ""
    ]


def _bounds(hint: Any) -> Iterator[str]:
    for part in get_args(hint)[1:]:
        if type(part) in _BOUNDS:
            word, name = _BOUNDS[type(part)]
            yield f"{word} {getattr(part, name)}"
