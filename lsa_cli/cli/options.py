"""Options of commands, made from the declared settings; and those few that are no settings. Nothing heavy is imported."""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any

import typer

from lsa_cli.cli.completion import completion_of
from lsa_cli.cli.console import foreign_code, note
from lsa_cli.registry import load_entry_points
from lsa_cli.report.formats import FORMATS
from lsa_cli.settings import AuditSettings, HardenSettings, settings_from
from lsa_cli.settings.declare import Option, Setting, settings_of

Command = Callable[..., None]

Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="The model file, or a folder that holds one.", show_default=False)
]

NETWORK = (
    "arch", "arch_args", "weights", "trust_code", "normalize", "input_range", "returns", "output_index", "data", "split",
    "input_size", "match_classes",
)  # fmt: skip
GATE = ("gate", "exit_zero")
REPORT = ("samples", "files", "csv", "github", "plugin")


def takes(*names: str, hardening: bool = False, limit: str | None = None) -> Callable[[Command], Command]:
    """Decorator: the command gets its parameter `given`, an `AuditSettings`, from one option for each of its settings.

    names: which settings; all without any. hardening: those of `HardenSettings` too, before the others.
    limit: the help of --limit, where the options that the usual one names are not there.
    """

    def decorate(command: Command) -> Command:
        own_parameters = inspect.signature(command).parameters.values()

        def declared() -> tuple[list[Setting], list[Setting]]:
            chosen = [one for one in settings_of(AuditSettings) if not names or one.name in names]
            if limit is not None:
                chosen = [_with_help(one, limit) if one.name == "limit" else one for one in chosen]
            return list(settings_of(HardenSettings)) if hardening else [], chosen

        def parameters() -> list[inspect.Parameter]:
            found: list[inspect.Parameter] = []
            for parameter in own_parameters:
                if parameter.name == "given":
                    found += [made for settings in declared() for made in _parameters(settings)]
                else:
                    found.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            return found

        @functools.wraps(command)
        def run(**given: Any) -> None:
            if given.keys() - {parameter.name for parameter in parameters()}:
                load_plugins(given["plugin"])  # in a process that --nproc starts
            own, chosen = declared()
            settings = taken(given, chosen)
            if hardening:
                settings["harden"] = taken(given, own)
            command(given=settings_from(settings), **given)

        run.parameters = parameters  # type: ignore[attr-defined]
        return sign(run)

    return decorate


def sign(command: Command) -> Command:
    """Give the command a parameter for each option that is declared now: a plugin may have brought a format."""
    parameters = command.parameters()  # type: ignore[attr-defined]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def load_plugins(files: Iterable[str]) -> None:
    """Run the user's files, and what installed packages announce."""
    from lsa_cli.imports import load_python_file

    load_entry_points()
    with foreign_code():
        for file in files:
            load_python_file(file, "--plugin")


def brings_formats(words: list[str]) -> bool:
    """Load the plugins of a command line that has an option which is not known; whether they brought a format."""
    options = [option for one in settings_of(AuditSettings) for option in one.options]
    known = {name for option in options for names in option.declarations for name in names.split("/")}
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    if asked <= known:
        return False
    before = len(FORMATS.registered())
    pairs = zip(words, [*words[1:], ""], strict=True)
    files = [word.partition("=")[2] or after for word, after in pairs if word.partition("=")[0] == "--plugin"]
    load_plugins(files)
    return len(FORMATS.registered()) > before


def taken(given: dict[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    """Move the options that were given out of `given`. A flag that was not given is False, a list that was not is empty."""
    found = {}
    for option in (option for one in settings for option in one.options):
        value = given.pop(option.key, None)
        if value is not None and value != [] and (value is not False or option.off is not None):
            found[option.key] = value
    return found


def _parameters(settings: Iterable[Setting]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(option.key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation(one, option))
        for one in settings
        for option in one.options
    ]


def _with_help(one: Setting, help: str) -> Setting:
    return replace(one, options=tuple(replace(option, help=help) for option in one.options))


def _metavar(one: Setting, option: Option) -> str | None:
    if option.flag or option.metavar is not None:
        return option.metavar
    return "N" if one.is_whole else "NUMBER"


def annotation(one: Setting, option: Option) -> Any:
    """What typer reads: the type of the option's value, its names, help and panel."""
    kind: Any = bool if option.flag else list[str] if option.repeatable else int if one.is_whole else str
    said = typer.Option(
        *option.declarations, metavar=_metavar(one, option), help=option.help.replace("[0, 1]", r"\[0, 1]"),
        rich_help_panel=one.panel, show_default=False, autocompletion=completion_of(one, option),
    )  # fmt: skip
    return Annotated[kind | None, said]


def option_of(name: str) -> Any:
    """The annotation of one setting of an audit, for a command that takes little else."""
    one = next(one for one in settings_of(AuditSettings) if one.name == name)
    return annotation(one, one.options[0])


Quiet = option_of("quiet")
Plugin = option_of("plugin")
Threads = option_of("threads")


def _check(settings: AuditSettings) -> None:
    from lsa_cli.auditing.names import refuse_unknown_in_file

    refuse_unknown_in_file(settings)


def with_config(
    given: AuditSettings, checkpoint: str, say: Callable[[str], None] = note
) -> tuple[AuditSettings, dict[str, str]]:
    """The options over the settings of lsa.yaml, and where each comes from. say: told which file was found."""
    from lsa_cli.config import merged

    if given.plugin:
        load_plugins(given.plugin)  # a file may use their names
    settings, origin, files = merged(given, given.config, checkpoint, _check)
    for name in files if settings.verbose or given.config is None else ():
        say(f"settings from {name}")
    return settings, origin
