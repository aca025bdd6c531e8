"""Claims: which worker audits a checkpoint now. Workers on any number of machines share a folder and nothing else.

A claim is a file REPORT.claim-N. The first one is N = 1, and whoever takes over from a dead worker creates N + 1, so that
the file system decides between two that try at once. The owner renews its claim; a claim that is not renewed for the time
of a lease is dead. Claims stay until the audit is settled: a number is never used twice by workers that run together.
"""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LEASE = 120.0  # seconds; longer than the attribute cache of NFS (our choice)
_RENEWALS = 6  # in a lease


@dataclass
class Claim:
    """A claim of this process. renewed: when, on the clock of this process."""

    report: Path
    number: int
    lease: float
    renewed: float

    @property
    def file(self) -> Path:
        return _file(self.report, self.number)

    def renew(self) -> bool:
        """Renew it if it is time. Returns False where the claim is lost: this process was stopped for longer than a lease."""
        now = time.monotonic()
        if now - self.renewed < self.lease / _RENEWALS:
            return True
        self.renewed = now
        try:
            os.utime(self.file)
        except FileNotFoundError:
            return False
        return not _file(self.report, self.number + 1).exists()

    def release(self) -> None:
        """Leave the audit to the next worker."""
        with suppress(OSError):
            os.utime(self.file, (0, 0))

    def settle(self) -> None:
        """Remove all claims, once the report or the failure is saved."""
        remove_claims(self.report, self.number)


@dataclass
class Claims:
    """The claims of one worker. lease: seconds.

    No two clocks are compared: a claim is dead when this worker has seen no renewal for a lease. A claim of a process that
    has ended on this machine is dead at once.
    """

    lease: float = LEASE
    _seen: dict[Path, tuple[float, float]] = field(default_factory=dict)

    def is_held(self, report: Path) -> bool:
        """Whether another worker audits it now."""
        number = _newest(report)
        return number > 0 and self._is_alive(_file(report, number))

    def take(self, report: Path) -> Claim | None:
        """Claim an audit that nobody holds; None where another worker was faster. Raises OSError for an unusable folder."""
        number = _newest(report)
        if number and self._is_alive(_file(report, number)):
            return None
        file = _file(report, number + 1)
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "w") as opened:
            json.dump({"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}, opened)
        return Claim(report, number + 1, self.lease, time.monotonic())

    def _is_alive(self, file: Path) -> bool:
        try:
            renewed = file.stat().st_mtime
        except FileNotFoundError:
            return False
        if renewed == 0 or _has_ended_here(file):
            return False
        now = time.monotonic()
        before, since = self._seen.get(file, (renewed, now))
        if before != renewed:
            since = now
        self._seen[file] = renewed, since
        return now - since < self.lease


def _file(report: Path, number: int) -> Path:
    return report.with_name(f"{report.name}.claim-{number}")


def remove_claims(report: Path, newest: int | None = None) -> int:
    """Remove the claims of an audit that is settled; returns their number. newest: the number of the last one, if known."""
    newest = _newest(report) if newest is None else newest
    for number in range(1, newest + 1):
        _file(report, number).unlink(missing_ok=True)
    return newest


def _newest(report: Path) -> int:
    number = 0
    while _file(report, number + 1).exists():
        number += 1
    return number


# ---- processes of this machine -------------------------------------------------------------------------


def _has_ended_here(file: Path) -> bool:
    try:
        owner = json.loads(file.read_text())
    except (OSError, ValueError):  # it is being written
        return False
    if owner.get("machine") != _machine():
        return False
    return _started(owner.get("pid")) != owner.get("started")


def _machine() -> str:
    """A name of this machine since it was started, and of the container in which process numbers are valid."""
    parts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            parts.append(read().strip())
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process was started, in ticks of the system; "" where that cannot be known; None if it has ended."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return ""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else rest[18]
