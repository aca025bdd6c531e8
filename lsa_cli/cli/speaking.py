"""Who speaks: of several ranks the first one, and of an error the one that meets it first."""

import os
import sys
from typing import TextIO

from lsa_cli.errors import RankLost

_RANK = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what says that this process is one of several ranks

_watched = False  # whether --nproc started this rank, so that the process that was called says who died
_loud: TextIO | None = None  # stderr of a rank that otherwise keeps silent


def is_rank() -> bool:
    """Whether this process is one of several that run the command together."""
    return all(name in os.environ for name in _RANK) and os.environ["WORLD_SIZE"] != "1"


def writes() -> bool:
    """Whether this process writes the command's files."""
    return not is_rank() or os.environ["RANK"] == "0"


def keep_silent() -> None:
    global _loud
    if not writes():
        _loud = sys.stderr
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  until the process ends


def voice() -> TextIO:
    """Where errors go."""
    return _loud or sys.stderr


def may_say(error: BaseException) -> bool:
    """Whether it is this process that tells the user: of all ranks the one that fails first."""
    if _watched and isinstance(error, (RankLost, KeyboardInterrupt)):
        return False  # the process that was called knows more
    if not is_rank():
        return True
    from lsa_cli import distributed

    return distributed.first_to_say()


def watched() -> None:
    """From here on the process that was called says who died."""
    global _watched
    _watched = True
