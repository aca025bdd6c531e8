"""The evidence of an audit against networks that hide their weakness, and honest ones: what it finds, and what it costs.

    LSA_DATA_ROOT=... python -m benchmarks.evidence [--seeds 3] [--only NAME ...] [-n 200] [--small]
    python -m benchmarks.evidence --file sample_models/mnist_cnn_at.pt -n 1000    # the cost for the default audit of a file

Every network of tests/zoo is audited with the default attacks. Most defective ones are built around the sample networks, or
with --small around networks that need a fifth of the time. The truth is the robust accuracy that an attack written for
the network leaves. A network counts as missed if its reported robust accuracy is more than 10 points above the truth and
nothing casts doubt on it. Cost is process time of the whole audit over the time without the evidence.
"""

import argparse
import time
from collections import Counter
from contextlib import contextmanager
from unittest import mock

import torch

from lsa_cli.auditing import run
from tests.zoo import defective, honest, judge
from tests.zoo.base import SAMPLE, data_root
from tests.zoo.judge import Row, judged
from tests.zoo.trained import SMALL

HEAD = "| network | radius | clean | truth | reported | verdict | findings | outcome | cost |\n" + "|---" * 9 + "|"
FINDINGS = 80  # characters


@contextmanager
def timed():
    """Process time of the audit and of its evidence: a list that is filled when an audit ran in this context."""
    times = [0.0, 0.0]

    def watching(place, function):
        def watched(*arguments, **named):
            started = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                times[place] += time.process_time() - started

        return watched

    with (
        mock.patch("tests.zoo.judge.audit", watching(0, judge.audit)),
        mock.patch("lsa_cli.auditing.run.examine", watching(1, run.examine)),
    ):
        yield times


def cost(whole: float, evidence: float) -> float:
    return whole / (whole - evidence) if whole > evidence else 0.0


def shown(row: Row, whole: float, evidence: float) -> str:
    radius = f"{row.entry.norm} {row.entry.eps:.3g}"
    numbers = f"{row.clean:.1%} | {row.truth:.1%} | {row.reported:.1%}"
    found = ", ".join(row.findings)[:FINDINGS]
    return f"| {row.entry.name} | {radius} | {numbers} | {row.verdict} | {found} | {row.outcome} | {cost(whole, evidence):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="networks whose name contains one of these")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("-n", type=int, default=200, help="images of each network")
    parser.add_argument("--small", action="store_true", help="defences around smaller networks")
    parser.add_argument("--file", help="the cost for the default audit of this checkpoint, in place of the table")
    arguments = parser.parse_args()
    if arguments.file:
        for seed in range(arguments.seeds):
            with timed() as times:
                report = judge.audit(arguments.file, limit=arguments.n, threads=1, seed=seed)
            verdict = report.evidence.verdict
            print(f"seed {seed}: {verdict}, {times[0]:.1f} s of process time, cost {cost(*times):.2f}", flush=True)
        return
    if data_root() is None:
        parser.error("LSA_DATA_ROOT is not set: no checkpoints and data")
    torch.set_num_threads(1)
    entries = [(entry, False) for entry in defective.table(SMALL if arguments.small else SAMPLE)] + [
        (entry, True) for entry in honest.TABLE
    ]
    wanted = [
        (entry, is_honest)
        for entry, is_honest in entries
        if not arguments.only or any(part in entry.name for part in arguments.only)
    ]
    if not wanted:
        parser.error("no network has such a name")
    counts: Counter[str] = Counter()
    print(HEAD, flush=True)
    for seed in range(arguments.seeds):
        for entry, is_honest in wanted:
            with timed() as times:
                row = judged(entry, is_honest, arguments.n, seed)
            counts[f"{'honest' if is_honest else 'defective'}, {row.outcome}"] += 1
            print(shown(row, *times), flush=True)
    print("\n" + "; ".join(f"{what}: {count}" for what, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
