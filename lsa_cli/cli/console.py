"""Output: data on stdout, everything else on stderr; plain text unless it is a terminal."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from rich.console import Console

from lsa_cli.errors import printable

if TYPE_CHECKING:
    from lsa_cli.report.schema import AuditReport

_FILE_WIDTH = 160


def data_console() -> Console:
    """stdout. In a file or pipe, tables are 160 columns wide instead of 80."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # an old encoding lacks some characters of tables
    width = _FILE_WIDTH if not sys.stdout.isatty() and "COLUMNS" not in os.environ else None
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def note(message: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"lsa: {printable(' '.join(message.split()))}\n")


def emit(text: str) -> None:
    """Write text to stdout in UTF-8, unchanged: JSON never goes through rich."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def foreign_code() -> Iterator[None]:
    """Within: what the user's code prints goes to stderr, because stdout is for data."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Callable[[str, float, float], None]]:
    """A bar on stderr with the current step and the time left; in a file or pipe, a line each minute."""
    from lsa_cli.auditing.progress import progress_bar

    with progress_bar(Console(stderr=True, quiet=not enabled)) as report:
        yield report


def tell_findings(report: "AuditReport") -> None:
    """Print the findings of the evidence on stderr, where the report itself is not shown."""
    for finding in report.evidence.findings if report.evidence is not None else ():
        note(f"{finding.level}: {finding.message}; {finding.advice}")


def print_to_stdout(report: "AuditReport", quiet: bool) -> None:
    from lsa_cli.report.terminal import one_line, print_report

    if quiet:
        emit(one_line(report) + "\n")
    else:
        print_report(report, data_console())
