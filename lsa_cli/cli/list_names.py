"""`lsa list`: the names that options take."""

import dataclasses
import inspect
from typing import Annotated, Any

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.completion import REGISTRIES, registry, words
from lsa_cli.cli.console import emit
from lsa_cli.errors import UsageError
from lsa_cli.registry import unknown
from lsa_cli.report.formats import Format

_KINDS = (*REGISTRIES, "metrics")


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help=f"{', '.join(_KINDS[:-1])} or {_KINDS[-1]}.",
            show_default=False,
            autocompletion=words(*_KINDS),
        ),
    ] = None,
    plugin: o.Plugin = None,
) -> None:
    """List attacks, noises, corruptions, layer selectors, measures, metrics of an audit, data sources, formats, hardening methods or base objectives.

    `lsa list metrics` lists the metrics that a limit can name, and `lsa list` alone what can be listed.
    """
    if kind is None:
        emit("".join(f"lsa list {one}\n" for one in _KINDS))
        return
    if kind not in _KINDS:
        raise UsageError(unknown("list", kind, _KINDS))
    o.load_plugins(plugin or [])
    if kind == "metrics":
        from lsa_cli.report.limits import METRICS

        emit("".join(f"{metric.name:18} {metric.meaning}\n" for metric in METRICS))
        return
    found = registry(kind)
    for name in found.names():
        emit(f"{name:16} {_summary(found.get(name))}\n")
        if parameters := _parameters(found.get(name)):
            emit(f"{'':16}   {parameters}\n")


def _summary(thing: Any) -> str:
    if isinstance(thing, Format):
        return thing.help
    text = inspect.cleandoc(thing.__doc__ or "")
    return " ".join(text.split("\n\n")[0].split())


def _parameters(thing: Any) -> str:
    """Fields that a spec can set, with their defaults; the threat model's as norm and eps."""
    if not isinstance(thing, type) or not dataclasses.is_dataclass(thing):
        return ""
    parts = []
    for field in dataclasses.fields(thing):
        if field.name == "threat":
            parts.append("norm, eps (default: the audit's)")
        elif field.name not in ("bounds", "task") and field.init:
            default = "" if field.default is dataclasses.MISSING else f"={str(field.default).lower()}"
            parts.append(f"{field.name}{default}")
    return ", ".join(parts)
