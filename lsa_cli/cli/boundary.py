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
    if ranks.prints(error):
        ranks.error_stream().write(f"lsa: {printable(' '.join(message.split()))}\n")


@contextmanager
def boundary(say: Callable[[str, BaseException], None] = _say) -> Iterator[None]:
    """Within: an error ends in one sentence and its documented exit code. Python's own for a crash is 1, "gate breached".

    say: gets the sentence.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if is_main else None  # a stopped CI job keeps its results
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
        say(
            f"error: this is a bug in lsa: {type(error).__name__}: {error}; "
            "please report it with the traceback that LSA_TRACEBACK=1 shows",
            error,
        )
        raise typer.Exit(EXIT_BROKEN) from error
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
