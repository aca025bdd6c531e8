"""Ranks: processes that share the work of a command. `--nproc` starts them on this machine, torchrun on several.

Every rank runs the same command on its share of the work and gets the same result. The first one writes files and
prints; the others print only an error that they meet first. With --nproc, the calling process computes nothing: torch's
elastic agent in it starts the ranks, ends them all when one dies, and returns the exit code of the first.
"""

import functools
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import typer

from lsa_cli.cli import streams
from lsa_cli.cli.boundary import boundary
from lsa_cli.cli.ranks import has_launcher, is_rank, silence_other_ranks, writes
from lsa_cli.errors import EXIT_BROKEN, EXIT_INTERRUPTED, EXIT_USAGE, RankLost, RunError, UsageError

T = TypeVar("T")
Command = Callable[..., None]

_MOST = 8  # ranks that "auto" starts without CUDA; each one holds torch and the network in memory
_TO_BE_ENDED = 5  # seconds for the agent to notice the dead rank before the ranks that wait for it end too


def let_save() -> None:
    """Ignore SIGTERM: the agent ends all ranks when one fails, and this one still has a report to save."""
    if is_rank():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def on_ranks(command: Command) -> Command:
    """`command`, with options nproc and device, on the ranks of torchrun or on those that --nproc asks for."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        if options["nproc"] is not None:
            count = _count(options["nproc"], options["device"])
            if count > 1:
                raise typer.Exit(_start(count, command, {**options, "nproc": None}))
        if not is_rank():
            command(**options)
            return
        silence_other_ranks()
        from lsa_cli import distributed

        with distributed.joined():
            try:
                command(**options)
            except typer.Exit:
                if writes():  # the exit code of every rank is the same, and one is enough
                    raise

    return run


def first(work: Callable[[], T]) -> T:
    """The result of `work`, which only the first rank does. Without ranks, torch is not imported."""
    if not is_rank():
        return work()
    from lsa_cli import distributed

    return distributed.first(work)


# ---- starting them -------------------------------------------------------------------------------------


def _count(asked: str, device: str | None) -> int:
    if is_rank():
        raise UsageError("--nproc starts ranks on one machine, and this process is a rank already; leave it out")
    return processes("--nproc", asked, device)


def processes(option: str, asked: str, device: str | None) -> int:
    """The number of processes that an option N|auto asks for: auto is one for each CUDA device, otherwise for each core."""
    if asked != "auto":
        if not asked.isdecimal() or not 0 < int(asked) < 10_000:
            raise UsageError(f"{option} '{asked}': give a number of processes from 1, or auto")
        return int(asked)
    import torch

    from lsa_cli.auditing.cores import free_cores, others_load

    devices = 0 if device == "cpu" else torch.cuda.device_count()
    return devices or min(_MOST, free_cores(others_load()))


def _start(count: int, command: Command, options: dict[str, Any]) -> int:
    """Run the command in `count` ranks and return the exit code of the first. Raises RunError when one dies."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # the message of torch's agent about a dead rank; ours is below
    _stay_on_this_machine()
    try:
        with tempfile.TemporaryDirectory(prefix="lsa-") as folder:  # the agent would leave its own behind
            config = LaunchConfig(
                min_nodes=1, max_nodes=1, nproc_per_node=count, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
                local_addr="localhost", run_id=f"lsa-{os.getpid()}", max_restarts=0, start_method="spawn",
                monitor_interval=0.1, logs_specs=DefaultLogsSpecs(log_dir=folder),
            )  # fmt: skip
            codes: Mapping[int, int] = elastic_launch(config, _rank)(command, options)
    except ChildFailedError as error:
        number, failure = next(iter(error.failures.items()))
        if failure.exitcode == EXIT_INTERRUPTED:
            raise KeyboardInterrupt from None
        if failure.exitcode in (EXIT_USAGE, EXIT_BROKEN):
            return int(failure.exitcode)  # the rank has printed the error
        how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
        raise RunError(
            f"rank {number} of {count} {how}, and the others were stopped; to continue, run the same command with --resume"
        ) from None
    except SignalException:
        raise KeyboardInterrupt from None
    return codes[0]


def _stay_on_this_machine() -> None:
    """Ranks talk through the loopback interface, which no other machine reaches."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if names:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])


def _rank(command: Command, options: dict[str, Any]) -> int:
    """One rank from start to end: returns its exit code. After an error it exits with it, and the agent ends the others."""
    streams.prepare()
    has_launcher()
    signal.signal(signal.SIGINT, _once)
    try:
        with boundary():
            on_ranks(command)(**options)
    except typer.Exit as end:
        cause = end.__cause__
        if isinstance(cause, RankLost):
            time.sleep(_TO_BE_ENDED)
        if cause is not None:
            sys.exit(end.exit_code)
        return end.exit_code
    return 0


def _once(*_: Any) -> None:
    """One Ctrl-C comes twice, from the terminal and from the agent. The second one must not interrupt the saving."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
