"""The number of threads: the cores that this process may use, less those that other processes use now."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from lsa_cli import distributed
from lsa_cli.distributed import affinity
from lsa_cli.wording import plural

_LOOKS, _PAUSE = 10, 0.01  # at the run queue, and seconds between them


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by the quotas of its control groups. torch counts neither well.

    Ranks on one machine have equal parts of them.
    """
    return max(1, int(min([affinity(), *_quotas(Path("/"))])) // distributed.local_world())


def others_load() -> float:
    """How many of this process's cores others keep busy now, or would: the processes and threads that run or wait to.

    The mean of a few looks over a tenth of a second, less the ranks of this run, which are taken to be running. Of the
    machine's load this is the share of the cores that this process may use. Where the system does not show its run
    queue, its load average over a minute.
    """
    running = []
    for _ in range(_LOOKS):
        now = _running()
        if now is None:
            running = [os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0]
            break
        running.append(now - distributed.local_world())
        time.sleep(_PAUSE)
    return max(0.0, sum(running) / len(running)) * affinity() / (os.cpu_count() or 1)


def free_cores(load: float) -> int:
    """Cores this process may use less the `load` of others, at least 1; ranks have equal parts.

    More threads make a run much slower, because all threads of a step wait for the slowest one.
    """
    return max(1, min(usable_cores(), round((affinity() - load) / distributed.local_world())))


def choose_threads(asked: int | None) -> tuple[int, str | None]:
    """The threads to compute with, and a sentence where others keep this machine busy and that makes a difference.

    asked: the number that the user gives, which is taken as it is; None: the cores that are free now.
    """
    if asked == 1:
        return 1, None
    load, cores = others_load(), usable_cores()
    free = free_cores(load)
    busy = busy_in_words(load)
    if asked is not None:
        slower = f"{busy}, so --threads {asked} may take many times as long as --threads {free}"
        return asked, slower if asked > free and load > 0.5 else None
    overloaded = affinity() - load < 0.5
    if free == cores and not overloaded:
        return free, None
    return free, f"{busy}, so this run computes with {plural(free, 'thread')} and takes longer than on an idle one"


def busy_in_words(load: float) -> str:
    """ "this machine is busy: 3.9 other processes, on average, run or wait for 2 cores"."""
    return f"this machine is busy: {load:.1f} other processes, on average, run or wait for {plural(affinity(), 'core')}"


def _running() -> float | None:
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("procs_running "))
    except (OSError, ValueError, StopIteration):
        return None


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each of this process's control groups allows, of both versions, up to the topmost that is seen."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    places = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in groups if line.count(":") >= 2}
    first = next((path for names, path in places.items() if "cpu" in names.split(",")), "/")
    for folder in _upwards(root / "sys/fs/cgroup", places.get("", "/")):
        yield from _quota(folder, "cpu.max")
    for folder in _upwards(root / "sys/fs/cgroup/cpu", first):
        yield from _quota(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us")


def _upwards(top: Path, path: str) -> list[Path]:
    """The folder of a group, and of those around it. In a container the path may be the host's: then only `top` is there."""
    inside = top / path.lstrip("/")
    return [folder for folder in (inside, *inside.parents) if folder.is_relative_to(top)]


def _quota(folder: Path, *files: str) -> Iterator[float]:
    try:
        quota, period = " ".join((folder / file).read_text() for file in files).split()
        if float(quota) > 0 and float(period) > 0:
            yield float(quota) / float(period)
    except (OSError, ValueError):  # "max", or no such group
        return
