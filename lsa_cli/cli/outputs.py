"""Where a report goes: one option a format, the same for every command that makes or reads one; and GitHub's own files."""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsa_cli.errors import UsageError

if TYPE_CHECKING:
    from lsa_cli.report.schema import AuditReport

# As in `lsa list exporters`, which cannot be asked here: --help imports nothing heavy.
FORMATS = {
    "json": ("FILE|-", "The report; - is stdout."),
    "md": ("FILE", "Markdown for a pull request."),
    "html": ("FILE", "One page with plots."),
    "junit": ("FILE.xml", "JUnit XML: a test case a limit, and one a class."),
    "sarif": ("FILE", "SARIF 2.1.0 for code scanning."),
    "gitlab": ("FILE.json", "GitLab code quality."),
    "openmetrics": ("FILE", "OpenMetrics text for Prometheus."),
    "card": ("FILE.md", "A Hugging Face model card section."),
    "badge": ("FILE.svg", "A badge with the robust accuracy."),
}

Github = Annotated[
    bool | None,
    typer.Option(
        "--github/--no-github",
        help="Annotations, step summary and outputs of a GitHub workflow (default of an audit: where it runs in one).",
        rich_help_panel="Output",
        show_default=False,
    ),
]


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each of FORMATS in place of its parameter `files`, which gets {format: path}."""
    signature = inspect.signature(command)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "files":
            parameters.append(parameter)
            continue
        for name, (metavar, help_text) in FORMATS.items():
            option = typer.Option(f"--{name}", metavar=metavar, help=help_text, rich_help_panel="Output")
            parameters.append(parameter.replace(name=name, default=None, annotation=Annotated[str | None, option]))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        files = {name: given.pop(name) for name in FORMATS}
        command(files={name: path for name, path in files.items() if path is not None}, **given)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def split_stdout(files: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """The formats that go to files, and whether the report goes to stdout. UsageError for another format there."""
    other = [name for name, path in files.items() if path == "-" and name != "json"]
    if other:
        raise UsageError(f"--{other[0]} - : only --json can go to stdout with -; give a file name")
    return {name: path for name, path in files.items() if path != "-"}, files.get("json") == "-"


def tell_github(report: "AuditReport", files: Mapping[str, str], asked: bool | None) -> None:
    """asked: True, False, or None for where a workflow runs this. Commands go to stderr, which the runner reads too:
    stdout is for data."""
    from lsa_cli.report.github import in_workflow, tell

    if asked or (asked is None and in_workflow()):
        sys.stderr.write(tell(report, files))
        sys.stderr.flush()
