"""`python -m lsa_cli`, and the entry point of the `lsa` command."""

import atexit
import os
import signal
import sys
from contextlib import suppress

# Read once, when torch is loaded with GNU OpenMP. Threads that spin for long while they wait take the processor from those
# they wait for as soon as the machine has other work; threads that sleep at once are woken too late on one that has not.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# An interrupt while modules are loaded ends the process as it would any other program: no traceback.
_on_interrupt = signal.getsignal(signal.SIGINT)
if _on_interrupt is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from lsa_cli.cli.main import app  # noqa: E402

signal.signal(signal.SIGINT, _on_interrupt)

__all__ = ["app", "main"]


def main() -> None:
    """Run the command, and leave at once: to take torch's libraries down takes time that serves nobody."""
    try:
        app()
    except SystemExit as end:
        if "torch" not in sys.modules or not isinstance(end.code, int):
            raise
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the command has flushed what counts
                stream.flush()
        os._exit(end.code)


if __name__ == "__main__":
    main()
