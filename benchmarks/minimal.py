"""How far the nearest adversarial is that attacks of the smallest change find: ours beside those of adv-lib.

    LSA_DATA_ROOT=... python -m benchmarks.minimal [--n 50] [NETWORK ...]

For l2 and l1: the median and the mean distance over the first n rows that the network classifies correctly, each
checked by the network, and the number that an attack does not break at all. Every attack takes 100 steps with the
defaults of its authors; ALMA for l1 is also run with a smaller first distance, which suits these networks better.
"""

import argparse
import os
from pathlib import Path

import adv_lib.attacks as peer
import torch

from benchmarks.autoattack import NETWORKS, recorded
from lsa_cli.attacks import ATTACKS, make_threat

STEPS = 100


def attacks(norm):
    """By name: (model, x, y) -> x_adv."""

    def ours(model, x, y):
        return ATTACKS.get("fmn")(threat=make_threat(norm, 1.0), steps=STEPS)(model, x, y)

    def theirs(attack, **options):
        return lambda model, x, y: attack(model, x, y, **options)

    yield "lsa fmn", ours
    yield "adv-lib fmn", theirs(peer.fmn, norm=2 if norm == "l2" else 1, steps=STEPS)
    if norm == "l2":
        yield "adv-lib ddn", theirs(peer.ddn, steps=STEPS)
        yield "adv-lib alma", theirs(peer.alma, num_steps=STEPS, distance="l2", init_lr_distance=1.0)
    else:
        yield "adv-lib alma", theirs(peer.alma, num_steps=STEPS, distance="l1", init_lr_distance=10.0, α=0.5)
        yield "adv-lib alma, 5", theirs(peer.alma, num_steps=STEPS, distance="l1", init_lr_distance=5.0, α=0.5)


def compare(name, model, x, y):
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    for norm in ("l2", "l1"):
        for label, attack in attacks(norm):
            x_adv = attack(model, x, y)
            with torch.no_grad():
                broken = model(x_adv).argmax(1) != y
            distances = torch.linalg.vector_norm((x_adv - x).flatten(1), ord=2 if norm == "l2" else 1, dim=1)
            median = torch.where(broken, distances, torch.inf).median()
            mean, unbroken = distances[broken].mean(), int((~broken).sum())
            print(f"| {name} | {norm} | {label} | {median:.3f} | {mean:.3f} | {unbroken} of {len(y)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join(NETWORKS))
    parser.add_argument("--n", type=int, default=50, help="the first rows only")
    arguments = parser.parse_args()
    if "LSA_DATA_ROOT" not in os.environ:
        parser.error("LSA_DATA_ROOT is not set: no checkpoints and data")
    data_root = Path(os.environ["LSA_DATA_ROOT"])
    torch.set_num_threads(1)
    print("| network | norm | attack | median | mean | not broken |\n|---|---|---|---|---|---|")
    for name in arguments.names or NETWORKS:
        _, *network = recorded(name, data_root, data_root.parent / "oracle", arguments.n)
        compare(name, *network)


if __name__ == "__main__":
    main()
