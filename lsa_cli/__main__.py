"""`python -m lsa_cli`, and the entry point of the `lsa` command."""

import atexit
import os
import signal
import sys
import traceback

# GNU OpenMP reads this once, when torch is loaded. Threads that spin for long take the processor from the threads they wait
# for when the machine has other work; threads that sleep at once wake too late when it has none.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# An interrupt while modules are loaded ends the process without a traceback.
_on_interrupt = signal.getsignal(signal.SIGINT)
if _on_interrupt is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from lsa_cli.cli import streams  # noqa: E402
from lsa_cli.cli.main import app  # noqa: E402
from lsa_cli.errors import EXIT_BROKEN, EXIT_OK, EXIT_USAGE  # noqa: E402

signal.signal(signal.SIGINT, _on_interrupt)

__all__ = ["app", "main"]


def main() -> None:
    """Run the command and exit at once: unloading torch's libraries takes time."""
    code = _run() if streams.prepare() else _refuse_closed_stdout()
    atexit._run_exitfuncs()
    if not streams.flush() and code == EXIT_OK:
        code = EXIT_BROKEN
    os._exit(code)


def _run() -> int:
    """The exit code. `boundary` handles errors of a command; here are those of the options and of --help."""
    try:
        app()
    except SystemExit as end:
        if isinstance(end.__context__, OSError):  # typer exits with 1 when the reader of --help has gone
            streams.drop_stdout()
            return EXIT_BROKEN
        return end.code if isinstance(end.code, int) else EXIT_OK if end.code is None else EXIT_BROKEN
    except OSError as error:
        streams.drop_stdout()
        sys.stderr.write(f"lsa: error: stdout: {error.strerror or error}\n")
        return EXIT_BROKEN
    except BaseException:
        traceback.print_exc()
        return EXIT_BROKEN
    return EXIT_OK


def _refuse_closed_stdout() -> int:
    sys.stderr.write("lsa: error: stdout is closed; redirect it, to /dev/null where its content is not wanted\n")
    return EXIT_USAGE


if __name__ == "__main__":
    main()
