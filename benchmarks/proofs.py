"""What share of samples is proven robust, and how much processor time that takes.

    LSA_DATA_ROOT=... python -m benchmarks.proofs [--n 100] [NETWORK ...]

On the first n rows of the test set, with one thread; networks and radii are those of tests/proofs/test_shared_networks.py. The
share is of all rows, the time is per row, and rows that are classified wrongly are not tried.
"""

import argparse
import os
import time
from pathlib import Path

import torch

from lsa_cli.proofs import AT_ONCE, Prover
from tests.proofs.test_shared_networks import NETWORKS, opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--n", type=int, default=100, help="the first rows only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names:
        model, x, y, threat = opened(name, Path(os.environ["LSA_DATA_ROOT"]), given.n)
        prover = Prover.of(model, x[:4])
        with torch.no_grad():
            right = model(x).argmax(1) == y
        began = time.process_time()
        proven = sum(
            int(prover.proves(images, labels, threat).sum())
            for images, labels in zip(x[right].split(AT_ONCE), y[right].split(AT_ONCE), strict=True)
        )
        seconds = (time.process_time() - began) / len(x)
        print(f"| {name} | {threat.eps:.4g} | {proven} of {len(x)} | {seconds:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
