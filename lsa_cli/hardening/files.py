"""The files that a hardening writes, and the check that it does not replace a file that it reads."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lsa_cli.data import location_of
from lsa_cli.errors import UsageError
from lsa_cli.files import claim, is_irregular
from lsa_cli.report.outputs import Outputs, check_writable
from lsa_cli.settings import AuditSettings


class Files:
    """The files that a hardening writes, all beside the checkpoint `out`.

    started: the identity of the run, while it is not finished. It tells a run that ended before its first state from an
    older result. new_before, new_log: `before` and `log` of a run that has no result yet, so that an interrupted run leaves
    an older result whole. lock: held by the process that writes the files, while it runs.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.last = self.beside("last.pt")
        self.started = self.beside("started.json")
        self.state = self.beside("state.pt")
        self.log = self.beside("log.jsonl")
        self.before = self.beside("before.json")
        self.after = self.beside("after.json")
        self.compare = self.beside("compare.json")
        self.new_before = self.beside("started.before.json")
        self.new_log = self.beside("started.log.jsonl")
        self.lock = self.beside("lock")

    def beside(self, ending: str) -> Path:
        return self.out.with_name(f"{self.out.stem}.{ending}")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """A context in which no other hardening can write these files. Raises UsageError where one does."""
        try:
            lock = claim(self.lock)
        except BlockingIOError as error:
            raise UsageError(
                f"another running hardening writes to {self.out}; wait until it ends, or use --out FILE for this one"
            ) from error
        except OSError as error:
            raise UsageError(f"{self.lock} cannot be written: {error.strerror or error}; use --out FILE") from error
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no file that is open
                self.lock.unlink()
            lock.close()

    def forget_run(self) -> None:
        """Remove what only a run that is not finished needs."""
        for file in (self.started, self.state, self.new_before, self.new_log):
            file.unlink(missing_ok=True)

    def replace_old(self) -> None:
        """Once `out` is written: put what the run has made so far in place of an older result."""
        for new, old in ((self.new_before, self.before), (self.new_log, self.log)):
            if new.exists():
                os.replace(new, old)
        for old in (self.after, self.compare):
            old.unlink(missing_ok=True)

    def all(self) -> list[Path]:
        return list(vars(self).values())


def inputs_of(checkpoint: str | Path, config: str | Path | None, settings: AuditSettings) -> list[str | Path]:
    """The files that the command reads."""
    mvl = settings.harden.mvl if settings.harden is not None else None
    data = location_of(settings.data) if settings.data is not None else None
    return [path for path in (checkpoint, config, mvl, data, *(settings.plugin or ())) if path is not None]


def refuse_outputs(out: Path, inputs: Iterable[str | Path], html: str | None = None) -> None:
    """Raise UsageError if `out`, a file beside it or the page `html` cannot be written or would replace one of `inputs`, or if
    another hardening writes them.
    """
    inputs = list(inputs)
    if out.suffix not in (".pt", ".pth"):
        raise UsageError(f"--out {out}: a checkpoint's name ends in .pt or .pth")
    read = {os.path.realpath(path) for path in inputs}
    for file in Files(out).all():
        what = "a folder" if file.is_dir() else "not a regular file" if is_irregular(file) else None
        what = "a file that this run reads" if os.path.realpath(file) in read else what
        if what is not None:
            which = "" if file == out else f"also writes {file}, which "
            raise UsageError(f"--out {out} {which}is {what}; give another file name")
    check_writable("out", str(out))
    with Files(out).claimed():  # the run claims them again: this refuses before the network is read
        pass
    if html == "-":
        raise UsageError("--html - : a page does not go to stdout; give a file name")
    if html is not None:
        Outputs({"html": html}).check(inputs, Files(out).all())
