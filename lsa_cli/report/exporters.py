"""The formats a saved report can be turned into. One function a format: report -> text."""

from collections.abc import Callable
from pathlib import Path

from lsa_cli.errors import RunError, UsageError
from lsa_cli.registry import Registry
from lsa_cli.report.schema import AuditReport, write_text
from lsa_cli.report.tables import write_csv

EXPORTERS: Registry[Callable[[AuditReport], str]] = Registry("exporter")


@EXPORTERS.register("json")
def to_json(report: AuditReport) -> str:
    """The whole report, the format that lsa reads back; `lsa schema report` prints its JSON Schema."""
    return report.to_json()


@EXPORTERS.register("md")
def to_markdown(report: AuditReport) -> str:
    """Markdown that fits a pull-request comment."""
    from lsa_cli.report.markdown import render

    return render(report)


@EXPORTERS.register("html")
def to_html(report: AuditReport) -> str:
    """One self-contained page with plots, readable without network."""
    from lsa_cli.report.html import render

    return render(report)


def export(report: AuditReport, files: dict[str, str], csv: str | None) -> None:
    """Write each `files` entry (format: path) and the CSV folder; all are tried before the first failure is raised."""
    failures: list[RunError] = []
    for name, path in files.items():
        try:
            write_text(path, EXPORTERS.get(name)(report))
        except RunError as error:
            failures.append(error)
    if csv is not None:
        try:
            write_csv(report, csv)
        except RunError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def check_writable(files: dict[str, str], csv: str | None) -> None:
    """Raises UsageError now for an output that could not be written after hours of work."""
    for name, path in files.items():
        target = Path(path)
        if target.is_dir():
            raise UsageError(f"--{name} {path} is a directory; give a file name")
        if not target.parent.is_dir():
            raise UsageError(f"--{name} {path}: the folder {target.parent} does not exist; make it first")
        if not target.exists() or target.is_file():  # a device or pipe has no folder of its own to try
            _try_writing(target.parent, f"--{name} {path}")
    if csv is not None:
        target = Path(csv)
        if target.exists() and not target.is_dir():
            raise UsageError(f"--csv {csv} is a file; give a folder, which gets one file a table")
        existing = next((parent for parent in (target, *target.parents) if parent.exists()), Path())
        _try_writing(existing, f"--csv {csv}")


def _try_writing(folder: Path, what: str) -> None:
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{what} cannot be written: {folder}: {error.strerror or error}") from error
