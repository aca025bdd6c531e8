"""`python -m lsa_cli`, and the entry point of the `lsa` command."""

import atexit
import os
import sys
from contextlib import suppress

# Read once, when torch is loaded. Threads that wait by spinning take the processor from those they wait for as soon as
# the machine has other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from lsa_cli.cli.main import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command, and leave at once: to take torch's libraries down takes a second that nobody is served by."""
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
