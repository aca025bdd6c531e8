"""Which of several ranks writes files, and which one prints an error."""

import os
import sys
from typing import TextIO

from lsa_cli.errors import RankLost

_RANK = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set for a process that is one of several ranks

_has_launcher = False  # whether --nproc started this rank: then the process that started it reports a lost rank
_stderr: TextIO | None = None  # of a rank that prints nothing but errors


def is_rank() -> bool:
    """Whether this process is one of several that run the command together."""
    return all(name in os.environ for name in _RANK) and os.environ["WORLD_SIZE"] != "1"


def writes() -> bool:
    """Whether this process writes the command's files."""
    return not is_rank() or os.environ["RANK"] == "0"


def silence_other_ranks() -> None:
    """Discard what a rank other than the first one prints; `error_stream` is as before."""
    global _stderr
    if not writes():
        _stderr = sys.stderr
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  until the process ends


def error_stream() -> TextIO:
    return _stderr or sys.stderr


def prints(error: BaseException) -> bool:
    """Whether this process prints the error: of all ranks, the one that fails first does."""
    if _has_launcher and isinstance(error, (RankLost, KeyboardInterrupt)):
        return False
    if not is_rank():
        return True
    from lsa_cli import distributed

    return distributed.is_first_error()


def has_launcher() -> None:
    """From here on, the process that started this rank reports a lost rank."""
    global _has_launcher
    _has_launcher = True
