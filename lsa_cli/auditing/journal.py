"""Journal: what an audit has measured so far, on disk, so that an interrupted run can be resumed."""

import io
import json
import os
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from lsa_cli.errors import RunError, UsageError
from lsa_cli.files import claim

_PLAN, _LOCK = "plan.json", "lock"
_DIGEST = re.compile("[0-9a-f]{64}")
Arrays = dict[str, np.ndarray]


class JournalInUse(UsageError):
    """Another running audit writes to this journal."""


class Journal:
    """A folder with one file of plain arrays for each stage and block.

    A file is written whole or not at all. plan: everything that decides the numbers, as plain values; what was measured
    under one plan is never used for another.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], resume: bool) -> None:
        """Start over, or resume. Raises UsageError where there is nothing to resume, or another plan."""
        self.folder = folder
        described = json.loads(json.dumps(plan))
        if resume:
            _refuse_another_plan(folder, described)
            self._lock: IO[bytes] | None = _claim(folder)
            return
        try:
            self._lock = _claim(folder)
            for file in folder.iterdir():
                if file.name != _LOCK:
                    file.unlink()
            self._write(_PLAN, json.dumps(described, indent=1).encode())
        except OSError as error:
            raise UsageError(
                f"the journal {folder} cannot be written: {error.strerror or error}; use --output DIR"
            ) from error

    @classmethod
    def of_first_rank(cls, folder: Path) -> "Journal":
        """The journal of the first rank, for another one, which adds to it and neither claims nor removes it."""
        journal = cls.__new__(cls)
        journal.folder, journal._lock = folder, None
        return journal

    def get(self, stage: str, batch: int) -> Arrays | None:
        """What was measured, or None."""
        path = self.folder / _name(stage, batch)
        try:
            with np.load(path, allow_pickle=False) as saved:
                return {name: saved[name] for name in saved.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # absent, or damaged: measure again
            return None

    def put(self, stage: str, batch: int, arrays: Arrays) -> None:
        """Save what was measured. Raises RunError where that fails."""
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        try:
            self._write(_name(stage, batch), content.getvalue())
        except OSError as error:
            raise RunError(f"the journal {self.folder} cannot be written: {error.strerror or error}") from error

    def _write(self, name: str, content: bytes) -> None:
        unfinished = self.folder / f"{name}.{os.getpid()}.part"
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.folder / name)
        finally:
            unfinished.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the folder, so that another run can resume from it."""
        if self._lock is not None:
            self._lock.close()

    def remove(self) -> None:
        """Delete the journal, once the report is complete and saved."""
        if self._lock is not None:
            # It is renamed first: another audit could claim a folder that is being emptied, and lose its files.
            gone = self.folder.with_name(f"{self.folder.name}.{os.getpid()}.done")
            with suppress(OSError):
                self.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            self.close()


def _claim(folder: Path) -> IO[bytes]:
    """Lock the folder until the file is closed or this process ends."""
    try:
        return claim(folder / _LOCK)
    except BlockingIOError as error:
        raise JournalInUse(f"another running audit writes to {folder}; use --output DIR for this one") from error


def _name(stage: str, batch: int) -> str:
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in stage)[:80]
    return f"{plain}-{batch:06d}.npz"


def _refuse_another_plan(folder: Path, plan: dict[str, Any]) -> None:
    try:
        before = json.loads((folder / _PLAN).read_text())
    except FileNotFoundError as error:
        raise UsageError(f"--resume: there is no interrupted run in {folder}; leave --resume out") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"--resume: {folder / _PLAN} cannot be read ({error}); leave --resume out") from error
    refuse_changes(before, plan)


def _change(key: str, before: Any, now: Any) -> str:
    """One change. A digest says nothing to a reader."""
    if all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (before, now)):
        return f"{key}: another content"
    return f"{key} was {before!r} and is {now!r}"


def refuse_changes(before: dict[str, Any], plan: dict[str, Any]) -> None:
    """Raises UsageError, naming what changed, unless both say the same."""
    changed = [key for key in {**before, **plan} if before.get(key) != plan.get(key)]
    if changed:
        shown = "; ".join(_change(key, before.get(key), plan.get(key)) for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UsageError(
            f"--resume: not the run that was interrupted: {shown}{more}; leave --resume out to start again"
        )
