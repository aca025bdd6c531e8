"""Completion of values in bash, zsh and fish: names, norms, words that an option takes, and the layers of a checkpoint.

Nothing that a checkpoint or an option names as code is run.
"""

import io
import typing
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any

import typer

from lsa_cli.errors import LsaError
from lsa_cli.settings import AuditSettings, settings_from
from lsa_cli.settings.declare import Option, Setting, settings_of

Complete = Callable[[typer.Context, str], list[str]]

# Kind: module and name of its registry, which is imported when it is asked for.
REGISTRIES = {
    "attacks": ("attacks", "ATTACKS"),
    "noises": ("attacks", "NOISES"),
    "corruptions": ("attacks", "CORRUPTIONS"),
    "layers": ("layers", "SELECTORS"),
    "measures": ("measures", "MEASURES"),
    "audit-metrics": ("auditing.metrics", "METRICS"),
    "sources": ("data", "DATA_SOURCES"),
    "formats": ("report.formats", "FORMATS"),
    "methods": ("hardening", "HARDENINGS"),
    "bases": ("hardening.objectives", "OBJECTIVES"),
}


def registry(kind: str) -> Any:
    module, table = REGISTRIES[kind]
    return getattr(import_module(f"lsa_cli.{module}"), table)


def words(*known: str) -> Complete:
    """Complete one of these words."""
    return lambda ctx, incomplete: _beginning(incomplete, known)


def names(kind: str, *others: str) -> Complete:
    """Complete a name of a registry."""
    return lambda ctx, incomplete: _beginning(incomplete, [*registry(kind).names(), *others])


def _beginning(incomplete: str, known: Iterable[str]) -> list[str]:
    return [word for word in known if word.startswith(incomplete)]


def _several(complete: Complete) -> Complete:
    """Complete the last name of NAME,NAME."""

    def last(ctx: typer.Context, incomplete: str) -> list[str]:
        before, comma, name = incomplete.rpartition(",")
        return [before + comma + found for found in complete(ctx, name)]

    return last


def _limits(ctx: typer.Context, incomplete: str) -> list[str]:
    from lsa_cli.report.limits import METRICS

    return _beginning(incomplete, [f"{kind.name}=" for kind in METRICS if not kind.is_open])


def _layers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Selectors, and the layers of the checkpoint on the command line."""
    hidden = io.StringIO()
    with redirect_stdout(hidden), redirect_stderr(hidden):
        try:
            own = _layers_of(ctx)
        except LsaError:
            own = []
    return _beginning(incomplete, [*registry("layers").names(), "none", *own])


def _layers_of(ctx: typer.Context) -> list[str]:
    from lsa_cli.auditing.network import open_network
    from lsa_cli.cli import options as o
    from lsa_cli.config import merged
    from lsa_cli.data import runs_user_code
    from lsa_cli.models.architectures import runs_user_code as is_user_code

    # The words are parsed up to the option without a value: until then, arguments are not yet named.
    checkpoint = ctx.params.get("checkpoint") or next(iter(ctx.args), None)
    if checkpoint is None:
        return []
    chosen = [one for one in settings_of(AuditSettings) if one.name in o.NETWORK]
    given = settings_from(o.taken(dict(ctx.params), chosen))
    settings, origin, _ = merged(given, ctx.params.get("config"), checkpoint)
    code = settings.trust_code or settings.plugin or (settings.arch and is_user_code(settings.arch))
    if code or (settings.data and runs_user_code(settings.data)):
        return []
    return [layer.name for layer in open_network(checkpoint, settings, origin).layers if not layer.is_output]


_BY_KEY: dict[str, Complete] = {
    "attack": names("attacks", "none"), "noise": names("noises", "none"), "corruption": names("corruptions"),
    "measure": names("measures"), "metrics": _several(names("audit-metrics")), "layers": _several(_layers),
    "method": names("methods"), "base": names("bases"), "fail_under": _limits, "fail_on": words("doubtful", "invalid"),
    "norm": lambda ctx, incomplete: _beginning(incomplete, import_module("lsa_cli.attacks").NORMS),
    "normalize": lambda ctx, incomplete: _beginning(
        incomplete, [*import_module("lsa_cli.models.classifier").PRESETS, "auto", "none"]
    ),
    "device": words("auto", "cpu", "cuda"),
}  # fmt: skip


def completion_of(one: Setting, option: Option) -> Complete | None:
    """How the value of an option is completed; None: as a file name."""
    if typing.get_origin(one.type) is typing.Literal and not option.flag:
        return words(*typing.get_args(one.type))
    return _BY_KEY.get(option.key)
