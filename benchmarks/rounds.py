"""What attacks break after PGD on the margin, and what they cost: the order of the rounds of the ranked cascade.

    LSA_DATA_ROOT=... python -m benchmarks.rounds [NETWORK ...]

After the first round of the cascade (`pgd-margin`), each attack runs alone on the nearest quarter of the samples that are
still robust, at least on 40. The table has the number of samples that it breaks and its time in reference passes over all
samples that the network classifies correctly, each as the mean of two seeds. No attack runs on a copy of the network.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch

from benchmarks.autoattack import NETWORKS, recorded, reference_pass
from lsa_cli.attacks import make_threat
from lsa_cli.attacks.apgd import APGD, APGDDLR, TargetedAPGD
from lsa_cli.attacks.ensemble import cascade
from lsa_cli.attacks.fab import FABT
from lsa_cli.attacks.losses import LOSSES
from lsa_cli.attacks.odi import ODI
from lsa_cli.attacks.ranked import rounds_of
from lsa_cli.attacks.square import Square

SHARE, LEAST, SEEDS = 0.25, 40, (0, 1)


@LOSSES.register("probability margin")
def probability_margin(logits, y):
    """(N, K) logits -> (N,): the largest wrong probability minus the true one (PMA, arXiv 2411.15210)."""
    probabilities = logits.softmax(1)
    true = probabilities.gather(1, y[:, None]).squeeze(1)
    return probabilities.scatter(1, y[:, None], -torch.inf).amax(1) - true


def attacks(threat):
    """The attacks by name. PGD is that of the cascade, whose steps shrink along a cosine."""

    def pgd(steps, loss):
        return ODI(threat, steps, spread=0, loss=loss)

    return {
        "PGD, margin, 20 steps": pgd(20, "margin"),
        "PGD, cross-entropy, 20 steps": pgd(20, "ce"),
        "PGD, cross-entropy, 40 steps": pgd(40, "ce"),
        "PGD, DLR, 20 steps": pgd(20, "dlr"),
        "PGD, probability margin, 40 steps": pgd(40, "probability margin"),
        "ODI-PGD, 3 runs": ODI(threat, restarts=3),
        "ODI-PGD, 9 runs": ODI(threat, restarts=9),
        "APGD-CE, 75 steps": APGD(threat, 75),
        "APGD-DLR, 75 steps": APGDDLR(threat, 75),
        "APGD-T, 9 x 25 steps": TargetedAPGD(threat, 25),
        "APGD-T, 9 x 50 steps": TargetedAPGD(threat, 50),
        "FAB-T, 9 x 20 steps": FABT(threat, 20),
        "Square, 1,000 queries": Square(threat, 1000),
    }


def measure(record, model, x, y):
    """The number of samples that each attack has to break, and "broken / passes" by its name."""
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    index = right.nonzero().flatten()
    threat = make_threat(record["norm"], record["eps"])
    one_pass = reference_pass(model, x, y)
    first = cascade([rounds_of(threat)[0].attack], model, x, y, index=index)
    order = first.margin.argsort(descending=True)
    order = order[first.margin[order] <= 0]
    part = order[: max(LEAST, int(SHARE * len(order)))]
    cells = {}
    for name, attack in attacks(threat).items():
        broken, passes = [], []
        for seed in SEEDS:
            started = time.process_time()
            found = cascade([attack], model, x[part], y[part], index=index[part], seed=seed)
            passes.append((time.process_time() - started) / one_pass)
            broken.append(int((found.broken_by == 0).sum()))
        cells[name] = f"{statistics.mean(broken):.1f} / {statistics.mean(passes):.0f}"
    return len(part), cells


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    arguments = parser.parse_args()
    if "LSA_DATA_ROOT" not in os.environ:
        parser.error("LSA_DATA_ROOT is not set: no checkpoints and data")
    data_root = Path(os.environ["LSA_DATA_ROOT"])
    torch.set_num_threads(1)
    measured = {name: measure(*recorded(name, data_root, data_root.parent / "oracle", 0)) for name in arguments.names}
    print("| attack |", " | ".join(f"{name} ({size})" for name, (size, _) in measured.items()), "|")
    print("|---|" + "---|" * len(measured))
    for label in attacks(make_threat("linf", 0.1)):
        print(f"| {label} |", " | ".join(cells[label] for _, cells in measured.values()), "|")


if __name__ == "__main__":
    main()
