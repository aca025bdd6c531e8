"""The time that --dry-run estimates, against the time of the whole command: both in processor time of one thread.

    python -m benchmarks.dry_run [-n 100] CHECKPOINT [OPTION=VALUE ...]

The command runs with the default attacks, with --quick and with --full. OPTION=VALUE are settings such as data=npz:images.npz.
-n: samples of the default and of --full; --quick takes twice as many.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.proving import estimated
from lsa_cli.cli.memory import keep_freed_memory
from lsa_cli.settings import settings_from

ROOT = Path(__file__).parent.parent


def seconds_of(command):
    """Processor time of a command and of the processes that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("options", nargs="*")
    parser.add_argument("-n", type=int, default=100)
    arguments = parser.parse_args()
    keep_freed_memory()
    imports = time.process_time()
    checkpoint = arguments.checkpoint.resolve()
    options = {**dict(option.split("=", 1) for option in arguments.options), "threads": "1"}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    for preset, n in ((None, arguments.n), ("quick", 2 * arguments.n), ("full", arguments.n)):
        settings = settings_from({**options, "threads": 1, "limit": n, **({preset: True} if preset else {})})
        began = time.process_time()
        plan = make_plan(checkpoint, settings, {})
        prepared = imports + time.process_time() - began
        with mock.patch("time.monotonic", time.process_time):
            estimate = prepared + estimated(plan)[1]
        flags = [*([f"--{preset}"] if preset else []), "--limit", str(n), *given]
        spent = seconds_of([sys.executable, "-m", "lsa_cli", "audit", str(checkpoint), *flags])
        what = f"--{preset}" if preset else "default"
        print(
            f"{what}, {n} samples: estimate {estimate:.1f} s, command {spent:.1f} s, ratio {estimate / spent:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
