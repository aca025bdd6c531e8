"""What a report does in Python and in a notebook: it shows itself, gives its tables, and is saved, opened and compared.

What renders a report needs the report first, so it is imported in the methods.
"""

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from lsa_cli.registry import unknown

if TYPE_CHECKING:
    import pandas as pd

    from lsa_cli.report.compare import Comparison
    from lsa_cli.report.plots import Figures
    from lsa_cli.report.schema import AuditReport

_HEIGHT = 900  # pixels of the page in a notebook


class _Tables(dict[str, Any]):
    """Tables by name. The error for another name has the nearest one."""

    def __missing__(self, name: str) -> NoReturn:
        raise KeyError(unknown("table", name, self))


class Interactive:
    """A base of AuditReport."""

    @property
    def _report(self) -> "AuditReport":
        return cast("AuditReport", self)

    def __repr__(self) -> str:
        """The verdict in one line."""
        from lsa_cli.report.terminal import one_line

        return one_line(self._report)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """The page of the report in a frame of its own, so that neither changes the other. Its scripts stay in the frame."""
        from lsa_cli.report.html import render

        page = html.escape(render(self._report))
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" width="100%" height="{_HEIGHT}" style="border: 0"></iframe>'

    @property
    def tables(self) -> "dict[str, pd.DataFrame]":
        """The tables that have rows, by name: attacks, layers, classes, ..., samples. Shares are in [0, 1]."""
        import pandas as pd

        from lsa_cli.report.tables import tables

        return _Tables(
            (
                table.title,
                pd.DataFrame([list(row) for row in table.rows], columns=[column.title for column in table.columns]),
            )
            for table in tables(self._report)
        )

    def plot(self) -> "Figures":
        """The figures of `lsa plot` by name, as matplotlib's; a notebook shows them. Raises UsageError without matplotlib."""
        from lsa_cli.report.plots import figures

        return figures([self._report])

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, as `lsa audit --json` does. Raises RunError where it cannot be written."""
        from lsa_cli.report.storage import write_text

        write_text(path, self._report.to_json())

    @staticmethod
    def open(path: str | Path) -> "AuditReport":
        """A saved report. Raises UsageError where the file is no report."""
        from lsa_cli.report.storage import read_report

        return read_report(path)

    def compare(self, other: "AuditReport") -> "Comparison":
        """What changed from this report to the other. Raises UsageError where their settings or samples differ."""
        from lsa_cli.report.compare import compare

        return compare(self._report, other)
