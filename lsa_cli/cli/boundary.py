"""The only place where an error becomes a sentence and an exit code."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from lsa_cli.cli import ranks, streams
from lsa_cli.errors import EXIT_BROKEN, EXIT_INTERRUPTED, LsaError, printable

# The base of typer's own usage errors, which print themselves; typer exports no name for it.
_TyperError: type[Exception] = typer.BadParameter.__mro__[2]


def _say(message: str, error: BaseException) -> None:
    """On one line; commands that come next follow, each on its own line, so that it can be copied."""
    if not ranks.prints(error):
        return
    lines = [f"lsa: {' '.join(message.split())}"]
    if isinstance(error, LsaError) and error.commands:
        lines = [f"lsa: error: {error.without_commands}:", *(f"  {command}" for command in error.commands)]
    text = "".join(f"{printable(line)}\n" for line in lines)
    ranks.error_stream().write(text)


@contextmanager
def boundary(say: Callable[[str, BaseException], None] = _say) -> Iterator[None]:
    """Within: an error ends in one sentence and its documented exit code. Python's own for a crash is 1, "gate breached".

    SIGTERM interrupts like Ctrl-C, so that a stopped CI job keeps its results. say: gets the sentence.
    """
    came: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = _handle(interrupt)
    try:
        yield
        sys.stdout.flush()
    except _TyperError as error:
        if isinstance(message := getattr(error, "message", None), str):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise
    except typer.Exit:
        raise
    except LsaError as error:
        say(f"error: {error}", error)
        raise typer.Exit(error.exit_code) from error
    except (KeyboardInterrupt, typer.Abort) as error:
        say("interrupted", error)
        raise typer.Exit(EXIT_INTERRUPTED) from error
    except OSError as error:
        streams.drop_stdout()  # it may be the full one, and Python flushes it again at exit
        if not isinstance(error, BrokenPipeError):
            say(f"error: {error.filename or 'stdout'}: {error.strerror or error}", error)
        raise typer.Exit(EXIT_BROKEN) from error
    except SystemExit as error:
        # rich exits with 1 when the reader of stdout has gone, and a plugin may do so: neither is a breached gate.
        raise typer.Exit(EXIT_BROKEN) from error
    except Exception as error:
        if os.environ.get("LSA_TRACEBACK"):
            traceback.print_exception(error, file=ranks.error_stream())
        if came:  # C code, such as that of numpy while it is imported, replaces an interrupt by an error of its own
            say("interrupted", KeyboardInterrupt())
            raise typer.Exit(EXIT_INTERRUPTED) from error
        say(
            f"error: this is a bug in lsa: {type(error).__name__}: {error}; "
            "please report it with the traceback that LSA_TRACEBACK=1 shows",
            error,
        )
        raise typer.Exit(EXIT_BROKEN) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(interrupt: Callable[[int, Any], None]) -> dict[int, Any]:
    """Handle the signals that interrupt, in the main thread. Returns the handlers before. A Ctrl-C that is ignored stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    return {number: signal.signal(number, interrupt) for number in numbers}
