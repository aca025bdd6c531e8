"""The standard streams of this process, so that no state they come in leads to a traceback or a wrong exit code."""

import io
import os
import sys
from contextlib import suppress
from typing import Any


class _Lossy(io.FileIO):
    """What cannot be written is dropped: a message that nobody can read is no reason for another exit code."""

    def write(self, content: Any, /) -> int:
        try:
            written = super().write(content)
        except OSError:
            written = None
        return len(content) if written is None else written


def prepare() -> bool:
    """Put /dev/null where a descriptor is closed, and let stderr lose what it cannot write. Whether stdout was open.

    Without it the next file that is opened would get the number of the closed stream, and what a library prints.
    """
    is_open = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one
    if not is_open:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  until the process ends
    raw = io.BufferedWriter(_Lossy(2, "w", closefd=False))
    encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
    sys.stderr = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)
    return is_open


def flush() -> bool:
    """Write out what is left. Whether stdout took it; if not, what is left is dropped, and Python does not try again."""
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError:
        drop_stdout()
        return False
    return True


def drop_stdout() -> None:
    """From here on stdout goes nowhere: it is full, or its reader has gone."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
