"""The formats of a report. One entry makes a format: its name, its option, its help, and what renders it.

A plugin registers a format in the same way, and gets an option in the same way:

    @register("toml", "FILE.toml", "TOML, for our dashboards.")
    def to_toml(report): ...  # -> str
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from lsa_cli.registry import Registry

if TYPE_CHECKING:
    from lsa_cli.report.schema import AuditReport

Render = Callable[["AuditReport"], str]


@dataclass(frozen=True)
class Format:
    """A format. metavar: what its option takes. help: one sentence. for_servers: a CI server reads the file by its name, so
    that the part of an interrupted audit goes there too."""

    name: str
    metavar: str
    help: str
    render: Render
    for_servers: bool = False


FORMATS: Registry[Format] = Registry("format")


def register(name: str, metavar: str, help: str, for_servers: bool = False) -> Callable[[Render], Render]:
    """Decorator: the function, report -> text, renders the format `name`, which gets the option --name."""

    def add(render: Render) -> Render:
        FORMATS.register(name)(Format(name, metavar, help, render, for_servers))
        return render

    return add


def _renders(module: str) -> Render:
    """The function `render` of a module of this package, imported when it is used."""
    return lambda report: import_module(f"lsa_cli.report.{module}").render(report)


register("json", "FILE|-", "The report, as lsa reads it back; - writes it to stdout.")(lambda report: report.to_json())
register("md", "FILE", "Markdown for a pull request.")(_renders("markdown"))
register("html", "FILE", "One self-contained page with plots.")(_renders("html"))
register("junit", "FILE.xml", "JUnit XML: a test case per limit, and one per class.", for_servers=True)(
    _renders("junit")
)
register("sarif", "FILE", "SARIF 2.1.0 for code scanning.", for_servers=True)(_renders("sarif"))
register("gitlab", "FILE.json", "GitLab code quality, for a merge request.", for_servers=True)(_renders("gitlab"))
register("openmetrics", "FILE", "OpenMetrics text for Prometheus.", for_servers=True)(_renders("openmetrics"))
register("card", "FILE.md", "A section of a Hugging Face model card, with its metadata.")(_renders("card"))
register("badge", "FILE.svg", "A badge with the robust accuracy.")(_renders("badge"))
