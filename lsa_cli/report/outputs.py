"""The files that a report is written to: checked before the audit, written after it."""

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lsa_cli.errors import RunError, UsageError
from lsa_cli.files import is_irregular
from lsa_cli.report.formats import FORMATS
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.storage import write_text
from lsa_cli.report.tables import TABLES, check_table_file, write_csv, write_samples


@dataclass(frozen=True)
class Outputs:
    """The outputs of a report. files: path by format; csv: a folder; samples: a table of single samples."""

    files: dict[str, str] = field(default_factory=dict)
    csv: str | None = None
    samples: str | None = None

    def paths(self) -> list[str]:
        return [*self.files.values(), *(path for path in (self.csv, self.samples) if path is not None)]

    def beside(self) -> "Outputs":
        """The same with `.partial` in each name, except files for CI servers and files that are not regular."""
        return Outputs(
            {name: path if FORMATS.get(name).for_servers else _partial(path) for name, path in self.files.items()},
            None if self.csv is None else f"{self.csv.rstrip('/')}.partial",
            None if self.samples is None else _partial(self.samples),
        )

    def write(self, report: AuditReport) -> None:
        """Write everything. If some cannot be written, the others are; then the first RunError is raised."""
        failures: list[RunError] = []
        writers: list[Callable[[], object]] = [
            partial(_write_file, report, name, path) for name, path in self.files.items()
        ]
        if self.csv is not None:
            writers.append(partial(write_csv, report, self.csv))
        if self.samples is not None:
            writers.append(partial(write_samples, report, self.samples))
        for writer in writers:
            try:
                writer()
            except RunError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def check(self, inputs: Iterable[str | Path] = (), others: Iterable[Path] = ()) -> None:
        """Raises UsageError before anything runs for an output that cannot be written, or that would replace another output,
        one of `inputs`, or one of `others`, which a hardening in the same command writes."""
        taken = {os.path.realpath(path): "is a file that the hardening writes" for path in others}
        taken |= {os.path.realpath(path): "is what is read here" for path in inputs}
        files = dict(self.files)
        if self.samples is not None:
            check_table_file("samples", self.samples)
            files["samples"] = self.samples
        for name, path in files.items():
            check_writable(name, path)
            target = os.path.realpath(path)
            if target in taken and (not os.path.exists(target) or os.path.isfile(target)):
                raise UsageError(f"--{name} {path} {taken[target]}; give another file name")
            taken[target] = f"is already where --{name} goes"
        if self.csv is not None:
            self._check_tables(Path(self.csv), taken)

    def _check_tables(self, folder: Path, taken: dict[str, str]) -> None:
        what = f"--csv {self.csv}"
        refuse_file_name("csv", folder)
        if _mode(folder, what) is not None and not folder.is_dir():
            raise UsageError(f"{what} is a file; give a folder, which gets one file a table")
        for table in (folder / f"{name}.csv" for name in TABLES):
            if os.path.realpath(table) in taken:
                raise UsageError(
                    f"{what} would write {table}, which {taken[os.path.realpath(table)]}; give another folder"
                )
            if folder.is_dir():
                check_writable("csv", str(table))
        existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path())
        _try_writing(existing, what)


_FILE_ENDINGS = "csv", "htm", "html", "json", "md", "parquet", "pdf", "png", "svg", "txt", "xml"


def refuse_file_name(name: str, folder: Path, formats: Iterable[str] = ()) -> None:
    """Raises UsageError where --`name` would make a folder of what looks like the name of a file. formats: those that have an
    option, which the error names."""
    ending = folder.suffix.lower().removeprefix(".")
    if ending in _FILE_ENDINGS and not folder.exists():
        own = f", or --{ending} {folder} for one file" if ending in formats else ""
        raise UsageError(f"--{name} {folder} looks like the name of a file; give a folder{own}")


def _partial(path: str) -> str:
    target = Path(path)
    return path if is_irregular(path) else str(target.with_name(f"{target.stem}.partial{target.suffix}"))


def _write_file(report: AuditReport, name: str, path: str) -> None:
    write_text(path, FORMATS.get(name).render(report))


def check_writable(name: str, path: str) -> None:
    """Raises UsageError when the file that --`name` asks for could not be written."""
    what, target = f"--{name} {path}", Path(os.path.realpath(path))
    mode = _mode(path, what)
    if mode is not None and stat.S_ISDIR(mode):
        raise UsageError(f"{what} is a directory; give a file name")
    if not target.parent.is_dir():
        raise UsageError(
            f"{what}: the folder {target.parent if os.path.islink(path) else Path(path).parent} does not exist; make it first"
        )
    if mode is None or stat.S_ISREG(mode):  # a device or pipe has no folder of its own to try
        _try_writing(target.parent, what)


def _mode(path: str | Path, what: str) -> int | None:
    """The mode of the file; None if there is none. Raises UsageError for a name that no file can have."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # a link that leads to itself, a name that is too long, a null character
        raise UsageError(f"{what} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def _try_writing(folder: Path, what: str) -> None:
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{what} cannot be written: {folder}: {error.strerror or error}") from error
