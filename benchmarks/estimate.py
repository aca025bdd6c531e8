"""The error of `--full-on M`, which draws by margin, and of a uniform draw of M: exact over all draws.

    LSA_DATA_ROOT=... python -m benchmarks.estimate [--oracle DIR] [NETWORK ...]

An audit with the default attacks ranks the samples that it leaves robust by margin. The recorded results of the official
AutoAttack say which of them the whole cascade breaks. Both draws get the same kind of interval, one of them of one stratum.
"""

import argparse
import itertools
import math
import os
from pathlib import Path

import numpy as np
import torch

from benchmarks.autoattack import NETWORKS, recorded
from lsa_cli import audit
from lsa_cli.auditing.draw_by_margin import strata_of
from lsa_cli.stats import Stratum, two_phase

DRAWS = 50, 100
_RARE = 1e-7  # draws of less probability are left out


def ranks_of_broken(name, data_root, oracle):
    """Samples of a network, how many an audit leaves robust, and which of them the official AutoAttack breaks, nearest first."""
    record, model, x, y = recorded(name, data_root, oracle, 0)
    report = audit(
        model, data=(x, y), norm="linf", eps=record["eps"], attack=["fgsm", "pgd", "t-pgd"], noise="none", layers="none",
        threads=1,
    )  # fmt: skip
    rows = report.samples
    robust = np.array([by is None for by in rows.broken_by]) & (np.array(rows.clean) == np.array(rows.label))
    order = np.flatnonzero(robust)
    order = order[np.argsort(np.array(rows.margin, dtype=float)[order], kind="stable")]
    return len(y), ~np.array(record["robust_correct"], dtype=bool)[order]


def over_all_draws(n, broken, strata):
    """Root mean square error, coverage of these n samples and mean width, over all draws of the strata of `broken` (S,)."""
    truth = (len(broken) - broken.sum()) / n
    total = squares = covered = width = 0.0
    sizes = [(len(places), int(broken[places].sum()), drawn) for places, drawn in strata if len(places)]
    for found in itertools.product(*(range(drawn + 1) for *_, drawn in sizes)):
        chance = math.prod(hypergeometric(k, *stratum) for k, stratum in zip(found, sizes, strict=True))
        if chance < _RARE:
            continue
        value, low, high = two_phase(n, [Stratum(s, drawn, k) for k, (s, _, drawn) in zip(found, sizes, strict=True)])
        total += chance
        squares += chance * (value - truth) ** 2
        covered += chance * (low <= truth <= high)
        width += chance * (high - low)
    return math.sqrt(squares / total), covered / total, width / total


def hypergeometric(k, size, ones, drawn):
    """The probability of k ones among `drawn` of `size`, of which `ones` are ones."""
    return math.comb(ones, k) * math.comb(size - ones, drawn - k) / math.comb(size, drawn)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--oracle", type=Path, help="the records; default: `oracle` beside the data root")
    arguments = parser.parse_args()
    if "LSA_DATA_ROOT" not in os.environ:
        parser.error("LSA_DATA_ROOT is not set: no checkpoints and data")
    data_root = Path(os.environ["LSA_DATA_ROOT"])
    torch.set_num_threads(1)
    print(
        "| network | robust after the audit | broken by the cascade, by rank | M | error by margin, uniform (points) ",
        end="",
    )
    print("| their ratio | coverage | width by margin, uniform (points) |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.names:
        n, broken = ranks_of_broken(name, data_root, arguments.oracle or data_root.parent / "oracle")
        for size in DRAWS:
            places = np.arange(len(broken))
            error, covered, width = over_all_draws(n, broken, strata_of(places, size))
            uniform, uniform_covered, uniform_width = over_all_draws(n, broken, [(places, size)])
            print(
                f"| {name} | {len(broken)} of {n} | {' '.join(map(str, np.flatnonzero(broken) + 1))} | {size} | "
                f"{100 * error:.2f}, {100 * uniform:.2f} | {error / uniform:.2f} | {covered:.1%}, {uniform_covered:.1%} | "
                f"{100 * width:.1f}, {100 * uniform_width:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
