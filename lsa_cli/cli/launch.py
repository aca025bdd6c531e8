"""Ranks: `--nproc` starts them on this machine, torchrun and its like on many; each runs the command, one speaks.

Every rank runs the same command on its share of the work and ends with the same result. The first one writes files and
speaks; what another one prints goes nowhere, but for an error that it meets first. With --nproc the process that was
called computes nothing: torch's elastic agent in it starts the ranks, ends them all when one dies, and hands back the
first one's exit code.
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
from lsa_cli.cli.speaking import is_rank, keep_silent, watched, writes
from lsa_cli.errors import EXIT_BROKEN, EXIT_INTERRUPTED, EXIT_USAGE, RankLost, RunError, UsageError

T = TypeVar("T")
Command = Callable[..., None]

_MOST = 8  # ranks that "auto" starts without CUDA: each holds torch and the network in memory
_TO_BE_ENDED = 5  # seconds in which the agent surely notices the rank that died, before those that miss it end, too


def let_save() -> None:
    """What a failed rank has to save is not broken by the agent, which ends the ranks meanwhile."""
    if is_rank():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def on_ranks(command: Command) -> Command:
    """`command`, which has options nproc and device, on as many ranks as there are or are asked for."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        if options["nproc"] is not None:
            count = _count(options["nproc"], options["device"])
            if count > 1:
                raise typer.Exit(_start(count, command, {**options, "nproc": None}))
        if not is_rank():
            command(**options)
            return
        keep_silent()
        from lsa_cli import distributed

        with distributed.joined():
            try:
                command(**options)
            except typer.Exit:
                if writes():  # every rank comes to the same end, and one exit code says it
                    raise

    return run


def first(work: Callable[[], T]) -> T:
    """What `work` gives on the first rank, which alone does it; without ranks torch is not imported for it."""
    if not is_rank():
        return work()
    from lsa_cli import distributed

    return distributed.first(work)


# ---- starting them -------------------------------------------------------------------------------------


def _count(asked: str, device: str | None) -> int:
    if is_rank():
        raise UsageError("--nproc starts ranks on one machine, and this process is a rank already; leave it out")
    if asked != "auto":
        if not asked.isdecimal() or not 0 < int(asked) < 10_000:
            raise UsageError(f"--nproc '{asked}': give a number of processes from 1, or auto")
        return int(asked)
    import torch

    from lsa_cli.auditing.cores import free_cores, others_load

    devices = 0 if device == "cpu" else torch.cuda.device_count()
    return devices or min(_MOST, free_cores(others_load()))


def _start(count: int, command: Command, options: dict[str, Any]) -> int:
    """Run the command in `count` ranks of this machine; the exit code of the first. Raises RunError when one dies."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # what torch's agent says of a rank's end is said below
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
            return int(failure.exitcode)  # the rank has said what it was
        how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
        raise RunError(
            f"rank {number} of {count} {how}, and the others were stopped; the same command with --resume goes on from "
            "what is on disk"
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
    """One rank from start to end. It returns its exit code; where it met an error it leaves with it, upon which the agent
    ends the others."""
    streams.prepare()
    watched()
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
    """A terminal and the agent both tell of one Ctrl-C; the second would break what is being saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
