"""Options of commands, made from the declared settings; and those few that are no settings. Nothing heavy is imported."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from lsa_cli.settings import AuditSettings, HardenSettings, settings_from
from lsa_cli.settings.declare import Option, Setting, settings_of

Command = Callable[..., None]

Checkpoint = Annotated[str, typer.Argument(help="The model file, or a folder that holds one.", show_default=False)]

NETWORK = (
    "arch", "arch_args", "weights", "trust_code", "normalize", "input_range", "returns", "output_index", "data", "split",
    "input_size", "match_classes",
)  # fmt: skip
GATE = ("gate", "exit_zero")
REPORT = ("samples", "files", "csv", "github")


def takes(*names: str, hardening: bool = False) -> Callable[[Command], Command]:
    """Decorator: the command gets its parameter `given`, an `AuditSettings`, from one option for each of its settings.

    names: which settings; all without any. hardening: those of `HardenSettings` too, before the others.
    """

    def decorate(command: Command) -> Command:
        chosen = [one for one in settings_of(AuditSettings) if not names or one.name in names]
        own = list(settings_of(HardenSettings)) if hardening else []
        signature = inspect.signature(command)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            own_one = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            parameters += [own_one] if parameter.name != "given" else [*_parameters(own), *_parameters(chosen)]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            settings: dict[str, Any] = _taken(given, chosen)
            if hardening:
                settings["harden"] = _taken(given, own)
            command(given=settings_from(settings), **given)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _taken(given: dict[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    """The options that were given, out of `given`. A flag that was not given is False, a list without entries is one that
    was not given."""
    options = [option for one in settings for option in one.options]
    values = [(option, given.pop(option.key, None)) for option in options]
    return {
        option.key: value
        for option, value in values
        if value is not None and value != [] and (value is not False or option.off is not None)
    }


def _parameters(settings: Iterable[Setting]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(option.key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation(one, option))
        for one in settings
        for option in one.options
    ]


def annotation(one: Setting, option: Option) -> Any:
    """What typer reads: the type of the option's value, its names, help and panel."""
    kind: Any = bool if option.flag else list[str] if option.repeatable else int if one.is_whole else str
    said = typer.Option(
        *option.declarations, metavar=option.metavar, help=option.help.replace("[0, 1]", r"\[0, 1]"),
        rich_help_panel=option.panel, show_default=False,
    )  # fmt: skip
    return Annotated[kind | None, said]


def option_of(name: str) -> Any:
    """The annotation of one setting of an audit, for a command that takes little else."""
    one = next(one for one in settings_of(AuditSettings) if one.name == name)
    return annotation(one, one.options[0])


Quiet = option_of("quiet")
Plugin = option_of("plugin")
