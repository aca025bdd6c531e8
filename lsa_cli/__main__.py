"""`python -m lsa_cli`, and the entry point of the `lsa` command."""

import os

# Read once, when torch is loaded. Threads that wait by spinning take the processor from those they wait for as soon as
# the machine has other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from lsa_cli.cli.main import app

__all__ = ["app"]

if __name__ == "__main__":
    app()
