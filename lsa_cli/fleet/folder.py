"""The folder of a fleet is its state: reports, journals, claims and failures, under the paths of the checkpoints."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.auditing.presets import with_preset
from lsa_cli.errors import LsaError, UsageError
from lsa_cli.files import changed_files, remove_temporaries
from lsa_cli.models.checkpoint import sha256_of
from lsa_cli.models.formats import open_contents
from lsa_cli.report.gate import check
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.storage import read_report, write_text
from lsa_cli.settings import AuditSettings

if TYPE_CHECKING:
    from lsa_cli.report.limits import Limit

REPORT, FAILURE, LOG = ".audit.json", ".failed.json", ".log"
# They decide no sample's number. Limits are decided from the saved report.
_FREE = ("gate", "device", "batch_size", "threads")
_OF_CHECKPOINT = "the checkpoint"


def checkpoints(patterns: Iterable[str]) -> list[str]:
    """The files and folders that the patterns name, in order. Raises UsageError for a pattern that names none."""
    found: set[str] = set()
    for pattern in patterns:
        paths = glob(pattern, recursive=True) if has_magic(pattern) else [pattern] * os.path.exists(pattern)
        if not paths:
            raise UsageError(f"'{pattern}' names no checkpoint: there is no such file")
        found |= {os.path.normpath(path) for path in paths}
    return sorted(found)


def name_of(checkpoint: str) -> str:
    """The name of a model: its path from the working directory, or from the root."""
    path = Path(os.path.abspath(checkpoint))
    here = Path.cwd()
    return path.relative_to(here if path.is_relative_to(here) else path.anchor).as_posix()


@dataclass(eq=False)
class Audit:
    """One audit of a fleet: what to measure, and the files that say how far it is.

    origin: where each setting comes from. kind: a word in the names of the files, for a second audit of the same model.
    limits: those that the report is held against. checked, found: the last look at the report and its result.
    """

    name: str
    checkpoint: str
    settings: AuditSettings
    origin: dict[str, str]
    folder: Path
    kind: str = ""
    limits: "dict[str, Limit]" = field(default_factory=dict)
    _looked_at: Any = field(default=None, repr=False)
    _found: AuditReport | None = field(default=None, repr=False)

    def file(self, ending: str) -> Path:
        """ "x.pt.audit.json"; "x.pt.audit.quick.json" of the kind quick."""
        stem, dot, last = ending.rpartition(".")
        kind = f".{self.kind}" if self.kind else ""
        return self.folder / f"{self.name}{stem}{kind}{dot}{last}"

    def report(self) -> AuditReport | None:
        """The complete report of this file with these settings, if there is one."""
        path = self.file(REPORT)
        try:
            status = path.stat()
        except OSError:
            return None
        if self._looked_at != (status.st_mtime_ns, status.st_size):
            self._looked_at = status.st_mtime_ns, status.st_size
            self._found = self._read(path)
        return self._found

    def _read(self, path: Path) -> AuditReport | None:
        try:
            report = read_report(path)
        except UsageError:
            return None
        is_asked = report.status == "complete" and report.early is None and self._is_same(report)
        return report if is_asked and report.subject.sha256 == self._sha256() else None

    def _is_same(self, report: AuditReport) -> bool:
        """Whether the report is of these settings, and of Python code and a data file as they are now."""
        if not self._has_settings(report):
            return False
        if report.protocol.files is not None:
            return not changed_files(report.protocol.files)
        from lsa_cli.auditing.named_files import names_code  # takes seconds, and new reports do not need it

        return not names_code(self.settings)  # the report of an earlier version does not say what the code was

    def _has_settings(self, report: AuditReport) -> bool:
        """Whether the report is of these settings; what the checkpoint says of itself is the same for the same file."""
        asked = with_preset(self.settings, self.origin)[0]
        free = (*_FREE, "attack") if asked.preset is not None else _FREE  # a preset chooses the attacks by the norm
        saved, origin = report.protocol.settings, report.protocol.settings_from
        before = {name: value for name, value in saved.items() if origin.get(name) != _OF_CHECKPOINT}
        now = json.loads(json.dumps(asked.recorded()))
        return all(before.get(name) == now.get(name) for name in {*before, *now}.difference(free))

    def is_of_other_settings(self) -> bool:
        """Whether the complete report in the folder is of other settings, code or data, so that this audit replaces it."""
        if self.report() is not None:
            return False
        try:
            report = read_report(self.file(REPORT))
        except UsageError:
            return False
        return report.status == "complete" and not self._is_same(report)

    def judged(self, report: AuditReport) -> AuditReport:
        """The report with the limits of now, which may be others than those of the run that made it; saved if they are.

        Raises UsageError for a limit that does not fit the report, and RunError if it cannot be saved.
        """
        settings, origin = dict(report.protocol.settings), dict(report.protocol.settings_from)
        for record, now in ((settings, self.settings.replace(gate=self.limits).recorded()), (origin, self.origin)):
            record.pop("gate", None)
            if self.limits:
                record["gate"] = now["gate"]
        protocol = report.protocol.model_copy(update={"settings": settings, "settings_from": origin})
        judged = report.model_copy(update={"protocol": protocol, "gates": check(report, self.limits)})
        if judged != report:
            write_text(self.file(REPORT), judged.to_json())
        return judged

    def remove_temporaries(self) -> None:
        """Remove what killed processes have left of writing its files. To be called when no process writes them."""
        for kind in (REPORT, FAILURE):
            remove_temporaries(self.file(kind))

    def _sha256(self) -> str | None:
        path = Path(self.checkpoint)
        try:
            is_one_file = path.is_file() and path.suffix != ".json"  # an index of shards is several files
            return sha256_of((path,) if is_one_file else open_contents(path).files)
        except (OSError, LsaError):
            return None  # the audit says why

    # ---- failures --------------------------------------------------------------------------------------

    def fail(self, sentence: str) -> None:
        """Save why the audit cannot be made."""
        write_text(
            self.file(FAILURE), json.dumps({"checkpoint": self.checkpoint, "failure": sentence}, indent=1) + "\n"
        )

    def failure(self, since: int) -> str | None:
        """Why the audit failed in this run. since: when the run began, in nanoseconds on the clock of the folder."""
        path = self.file(FAILURE)
        try:
            return str(json.loads(path.read_text())["failure"]) if path.stat().st_mtime_ns >= since else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def time_of(folder: Path) -> int:
    """The time now in nanoseconds, on the clock of the folder's file system. Raises UsageError if it cannot be written."""
    mark = folder / f".{os.getpid()}.now"
    try:
        mark.touch()
        now = mark.stat().st_mtime_ns
        mark.unlink()
    except OSError as error:
        raise UsageError(f"--output {folder} cannot be written: {error.strerror or error}") from error
    return now
