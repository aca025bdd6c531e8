"""The standard streams of this process: closed or full ones lead to no traceback and no wrong exit code."""

import io
import os
import sys
from contextlib import suppress
from typing import Any


class _Lossy(io.FileIO):
    """Drops what cannot be written: a lost message does not change the exit code."""

    def write(self, content: Any, /) -> int:
        try:
            written = super().write(content)
        except OSError:
            written = None
        return len(content) if written is None else written


def prepare() -> bool:
    """Open /dev/null for each closed descriptor, and let stderr drop what it cannot write. Returns whether stdout was open.

    Otherwise the next file to be opened gets the number of the closed stream, and libraries print into it.
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
    """Flush both streams. Returns whether stdout could be written; if not, the rest is dropped."""
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError:
        drop_stdout()
        return False
    return True


def drop_stdout() -> None:
    """Discard what is written to stdout from here on: it is full, or its reader has gone."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
