"""The ranked cascade against recorded results of the official AutoAttack, sample by sample and in time.

    LSA_DATA_ROOT=... python -m benchmarks.autoattack [--seeds 3] [--patient] [--attack autoattack] [--n 100] [NETWORK ...]
    LSA_DATA_ROOT=... python -m benchmarks.autoattack --norms [NETWORK ...]

The official results have one seed. Every network is attacked from a copy in bfloat16 and from one in float32, on any
processor; times from a copy in bfloat16 only say something where the processor multiplies in it. mnist_mlp has no
convolutions, so there is no copy of it and both runs are alike. Time is process time of one thread in reference passes (one
forward and input-gradient pass over the same rows, just before and just after), as in the records: neither machine was
free of other work. It is divided by the number of robust samples. With --n there is no recorded time to compare with.

--patient: every round attacks all samples, and no run is given up. --attack autoattack: the members of AutoAttack in place
of the ranked cascade. --norms: l2 and l1, for which there is no record, on the first 100 rows: the ranked cascade beside FMN
alone and, on the two fastest networks, our AutoAttack. In parentheses the table has the time in reference passes.
"""

import argparse
import json
import os
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision import datasets

from benchmarks.train_networks import NETWORKS as TRAINED
from benchmarks.train_networks import cifar_resnet8, mnist_mlp
from lsa_cli.attacks import ATTACKS, make_threat, ranked
from lsa_cli.attacks.ensemble import cascade
from lsa_cli.models.classifier import PRESETS, Classifier
from lsa_cli.models.precision import PRECISIONS, make_copy
from tests.foreign_networks import LeNet5, ResNet2b, cifar10_test, small_cnn

CIFAR = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
NETWORKS = {
    "fgsm": (small_cnn, datasets.MNIST, None),
    "lenet_adv": (LeNet5, datasets.MNIST, None),
    "lenet_cln": (LeNet5, datasets.MNIST, None),
    "resnet2b": (ResNet2b, None, CIFAR),
    "fashion": (small_cnn, datasets.FashionMNIST, None),
    "mnist_mlp": (mnist_mlp, datasets.MNIST, None),
    "cifar_resnet8": (cifar_resnet8, None, PRESETS["cifar10"]),
}
QUICK = ("fgsm", "mnist_mlp")  # on the others AutoAttack takes minutes in l2 and l1
ROWS_OF_NORMS, L2_RADII, L1_MNIST, L1_CIFAR = 100, (0.5, 1.0, 1.5), 8.0, 12.0


@dataclass
class Work:
    """What a round did: the samples that it attacked and those that it broke, and process time in seconds."""

    attacked: int = 0
    broken: int = 0
    seconds: float = 0.0


@dataclass
class Run:
    """robust (N,) bool: correct, and robust to the attack. passes: its time. rounds: their work, by name."""

    robust: torch.Tensor
    passes: float
    rounds: dict[str, Work] = field(default_factory=dict)


def load(name, data_root, record, n):
    """The checkpoint as a Classifier, and the first n rows that the record attacked."""
    network, source, normalization = NETWORKS[name]
    ours = TRAINED / f"{name}.pt"
    checkpoint = ours if ours.exists() else data_root / record["checkpoint"]
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    body = network()
    body.load_state_dict(state.get("state_dict", state))
    if source is None:
        images, labels = cifar10_test(data_root)
    else:
        data = source(data_root, train=False)
        images, labels = data.data[:, None], data.targets
    return Classifier(body, normalization).eval().requires_grad_(False), images[:n] / 255, labels[:n].long()


def recorded(name, data_root, oracle, n):
    """What the official implementation left of a network's first n rows, and the network, images and labels."""
    ours = TRAINED / f"{name}.json"
    record = json.loads((ours if ours.exists() else oracle / f"{name}.json").read_text())
    n = min(n or record["n"], record["n"])
    return record, *load(name, data_root, record, n)


def reference_pass(model, x, y):
    """Seconds of one forward and input-gradient pass: the median of at least 7 passes and half a second."""
    seconds = []
    while len(seconds) < 7 or sum(seconds) < 0.5:
        started = time.process_time()
        leaf = x.clone().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def copy_in(precision, model, x, y):
    """The copy of a network in this precision (float32, bfloat16), whatever the processor has."""
    os.environ["LSA_COPY_PRECISION"] = precision
    return make_copy(model, x[:8], y[:8]).model


@contextmanager
def watched():
    """The work of each round of the ranked cascade, by name, that runs in this context."""
    work, by_rank = {}, ranked.by_rank

    def watching(rounds, margin, lot, attack):
        def timed(number, rows):
            started = time.process_time()
            found = attack(number, rows)
            done = work.setdefault(rounds[number].name, Work())
            done.attacked += len(rows)
            done.broken += int((found > 0).sum())
            done.seconds += time.process_time() - started
            return found

        return by_rank(rounds, margin, lot, timed)

    ranked.by_rank = watching
    try:
        yield work
    finally:
        ranked.by_rank = by_rank


def attacked(attack, model, x, y, precision, seed=0, goal="break"):
    """The run of an attack on the samples that the network classifies correctly, from a copy in this precision."""
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().flatten()
    before = reference_pass(model, x, y)
    started = time.process_time()
    copy = copy_in(precision, model, x, y)
    with watched() as rounds:
        found = cascade([attack], model, x[right], y[right], index=right, seed=seed, goal=goal, copy=copy)
    seconds = time.process_time() - started
    one_pass = (before + reference_pass(model, x, y)) / 2
    assert attack.threat.contains(found.x_adv, x[right]).all()
    robust = torch.zeros(len(y), dtype=torch.bool)
    robust[right[found.broken_by < 0]] = True
    for work in rounds.values():
        work.seconds /= one_pass
    return Run(robust, seconds / one_pass, rounds)


def compare(name, record, model, x, y, attack, seeds, goal):
    """Print what the attack does from each copy. Returns the row of the summary."""
    n = len(y)
    official = torch.tensor(record["robust_correct"][:n], dtype=torch.bool)
    theirs = record["seconds"] / statistics.mean(record["reference_pass_seconds"]) / int(official.sum())
    robust, ratios = [], []
    for precision in PRECISIONS:
        runs = [attacked(attack, model, x, y, precision, seed, goal) for seed in range(seeds)]
        robust.append(shares([run.robust for run in runs]))
        each = statistics.mean(run.passes / max(1, int(run.robust.sum())) for run in runs) / theirs
        ratios.append(f"{each:.3f}" if n == record["n"] else "-")
        only_us = " ".join(str(int((official & ~run.robust).sum())) for run in runs)
        only_them = " ".join(str(int((run.robust & ~official).sum())) for run in runs)
        print(
            f"{name}, {record['norm']} {record['eps']:.3g}, {n} samples, copy in {precision}: robust {robust[-1]}, official "
            f"{shares([official])}; broken only by us: {only_us}, only by the official: {only_them}; "
            f"{statistics.mean(run.passes for run in runs):.0f} passes; time per robust sample over the official's: {ratios[-1]}",
            flush=True,
        )
        for label, work in runs[0].rounds.items():
            print(f"  {label}: broke {work.broken} of {work.attacked}, {work.seconds:.0f} passes", flush=True)
    bfloat16, float32 = robust
    return (
        f"| {name}, {record['eps']:.3g} | {n} | {bfloat16} | {float32} | {shares([official])} | {' / '.join(ratios)} |"
    )


def shares(robust):
    """The mean share of robust samples and, of several runs, the share of each."""
    each = [float(run.float().mean()) for run in robust]
    mean = f"{statistics.mean(each):.1%}"
    return mean if len(each) == 1 else f"{mean} ({' '.join(f'{100 * one:.1f}' for one in each)})"


def compare_norms(name, model, x, y):
    """Print a row for each threat model."""
    for norm, eps in (*(("l2", eps) for eps in L2_RADII), ("l1", L1_MNIST if x.shape[1] == 1 else L1_CIFAR)):
        cells = []
        for attack in ("ranked-cascade", "fmn", "autoattack"):
            if attack == "autoattack" and name not in QUICK:
                cells += ["-"]
                continue
            run = attacked(ATTACKS.get(attack)(make_threat(norm, eps)), model, x, y, "bfloat16")
            cells += [f"{shares([run.robust])} ({run.passes:.0f})"]
        print(f"| {name} | {norm} {eps:g} | {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join(NETWORKS))
    parser.add_argument("--n", type=int, default=0, help="the first rows only")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--patient", action="store_true", help="every round attacks all, and no run is given up")
    parser.add_argument("--attack", choices=("ranked-cascade", "autoattack"), default="ranked-cascade")
    parser.add_argument("--norms", action="store_true", help="l2 and l1, without records")
    parser.add_argument("--oracle", type=Path, help="the records; default: `oracle` beside the data root")
    arguments = parser.parse_args()
    if "LSA_DATA_ROOT" not in os.environ:
        parser.error("LSA_DATA_ROOT is not set: no checkpoints and data")
    data_root = Path(os.environ["LSA_DATA_ROOT"])
    names = arguments.names or list(NETWORKS)
    unknown = set(names) - set(NETWORKS)
    if unknown:
        parser.error(f"there are {', '.join(NETWORKS)}, not {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    oracle = arguments.oracle or data_root.parent / "oracle"
    if arguments.norms:
        print("| network | radius | ranked cascade (passes) | FMN | AutoAttack |\n|---|---|---|---|---|")
        for name in names:
            compare_norms(name, *recorded(name, data_root, oracle, arguments.n or ROWS_OF_NORMS)[1:])
        return
    goal, summary = "patient" if arguments.patient else "break", []
    for name in names:
        record, *network = recorded(name, data_root, oracle, arguments.n)
        attack = ATTACKS.get(arguments.attack)(make_threat(record["norm"], record["eps"]))
        summary.append(compare(name, record, *network, attack, arguments.seeds, goal))
    print("\n| network, radius | n | bfloat16 | float32 | official | time per robust sample, lsa / official |")
    print("|---|---|---|---|---|---|", *summary, sep="\n")


if __name__ == "__main__":
    main()
