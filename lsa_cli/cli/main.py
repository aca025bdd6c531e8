"""The `lsa` command and its sub-commands."""

import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from lsa_cli._version import __version__
from lsa_cli.cli.boundary import boundary
from lsa_cli.cli.options import Command, brings_formats, sign

_with_formats: dict[str, Command] = {}  # the commands that have an option for each format


class PlainHelp:
    """A command whose help shows values by their names alone: no type of flags and arguments, and no braces."""

    def get_params(self, ctx: Any) -> Any:
        parameters = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = lambda ctx: None
        return parameters

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [re.sub(r"^\{(.*)\}(\.\.\.)?$", r"\1", piece) for piece in pieces]


class LsaCommand(PlainHelp, TyperCommand):
    pass


class ErrorBoundary(PlainHelp, TyperGroup):
    """Every command ends as `boundary` says."""

    def invoke(self, ctx: Any) -> Any:
        with boundary():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command; with an option for each format of a plugin, where the words name one that is not known."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in _with_formats and brings_formats(rest):
            again = typer.Typer(add_completion=False, rich_markup_mode="rich")
            again.command(name, cls=LsaCommand)(sign(_with_formats[name]))
            command = typer.main.get_command(again)
        return name, command, rest


app = typer.Typer(
    name="lsa",
    cls=ErrorBoundary,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Audit the adversarial robustness of a saved PyTorch image classifier, layer by layer and class by class; "
    "and harden it.\n\n"
    "Exit codes: 0 every limit holds; 1 a limit is breached or not decided; 2 usage or input error (options, "
    "configuration, a checkpoint or data set that cannot be used); 3 the run broke; 130 interrupted.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lsa {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def _register() -> None:
    from lsa_cli.cli import audit, check, compare, doctor, gate, harden, init, inspect, layers, list_names, plot, report
    from lsa_cli.cli.fleet import fleet
    from lsa_cli.cli.history import history
    from lsa_cli.cli.launch import on_ranks
    from lsa_cli.cli.schema import schema

    _with_formats.update(audit=on_ranks(audit.audit), report=report.report)
    commands: dict[str, Command] = {
        "audit": _with_formats["audit"], "init": init.init, "harden": on_ranks(harden.harden), "inspect": inspect.inspect,
        "layers": layers.layers, "list": list_names.list_names, "report": report.report, "compare": compare.compare,
        "fleet": fleet, "history": history,
        "gate": gate.gate, "check": check.check, "schema": schema, "doctor": doctor.doctor, "plot": plot.plot,
    }  # fmt: skip
    for name, command in commands.items():
        app.command(name, cls=LsaCommand)(command)


_register()
