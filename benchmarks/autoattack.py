"""Our AutoAttack against recorded results of the official implementation, sample by sample and in time.

    LSA_DATA_ROOT=... python -m benchmarks.autoattack [--n 100] [--patient] [--seeds 5] [--oracle DIR] [NETWORK ...]

Time is told in reference passes (one forward + input-gradient pass over the same rows on the same thread, just before
and just after), as the record does: neither machine was free of other work. With --n the first rows only, and then
the record has no time to compare with. --patient: no run is given up as hopeless; a verdict that differs from that
of the run without it would be the price of giving up.
Every network is attacked twice, from a copy in float32 and from one in bfloat16, on any processor. --seeds 5: with each
of 5 seeds from both copies and without a copy, and only the samples that are robust are compared.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision import datasets

from benchmarks.train_networks import NETWORKS as TRAINED
from benchmarks.train_networks import cifar_resnet8, mnist_mlp
from lsa_cli.attacks import make_threat
from lsa_cli.attacks.ensemble import AutoAttack, cascade
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.search import Search
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


def reference_pass(model, x, y):
    """Seconds of one forward + input-gradient pass: the median of some."""
    seconds = []
    for _ in range(7):
        started = time.process_time()
        leaf = x.clone().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def recorded(name, data_root, oracle, n):
    """What the official implementation left of a network's first n rows, and the network, images and labels."""
    ours = TRAINED / f"{name}.json"
    record = json.loads((ours if ours.exists() else oracle / f"{name}.json").read_text())
    n = min(n or record["n"], record["n"])
    return record, *load(name, data_root, record, n)


def copy_in(precision, model, x, y):
    """The copy of a network in this precision (float32, bfloat16), whatever the processor has."""
    os.environ["LSA_COPY_PRECISION"] = precision
    return make_copy(model, x[:8], y[:8]).model


def survivors(attack, model, x, y, copy, seed):
    """Which rows the network classifies correctly and the cascade leaves so: (N,) bool."""
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().flatten()
    found = cascade(attack.members, model, x[right], y[right], index=right, seed=seed, copy=copy)
    left = torch.zeros(len(y), dtype=torch.bool)
    left[right[found.broken_by < 0]] = True
    return left


def compare_seeds(name, data_root, oracle, n, seeds):
    """What is left from each copy and without one, and the samples that are left from a copy with every seed alone."""
    record, model, x, y = recorded(name, data_root, oracle, n)
    attack = AutoAttack(make_threat(record["norm"], record["eps"]))
    left = {
        precision: torch.stack(
            [
                survivors(attack, model, x, y, copy_in(precision, model, x, y) if precision else None, seed)
                for seed in range(seeds)
            ]
        )
        for precision in ("", *PRECISIONS)
    }
    itself = left.pop("")
    print(f"{name}, {len(y)} samples, seeds 0 to {seeds - 1}: robust", shares(itself), "without a copy")
    for precision, runs in left.items():
        always, never = int((runs.all(0) & ~itself.any(0)).sum()), int((itself.all(0) & ~runs.any(0)).sum())
        more, fewer = int((runs & ~itself).sum()), int((itself & ~runs).sum())
        print(
            f"  {shares(runs)} from a copy in {precision}; left with every seed here and with none there: {always}, the "
            f"reverse: {never}; pairs of runs of one sample that only this one, only that one leaves: {more}, {fewer}",
            flush=True,
        )


def shares(left):
    return " ".join(f"{share:.1%}" for share in left.float().mean(1).tolist())


def compare(name, data_root, oracle, n, precision):
    record, model, x, y = recorded(name, data_root, oracle, n)
    n = len(y)
    official = torch.tensor(record["robust_correct"][:n], dtype=torch.bool)
    attack = AutoAttack(make_threat(record["norm"], record["eps"]))
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().flatten()
    before = reference_pass(model, x, y)
    started = time.process_time()
    copy = copy_in(precision, model, x, y)
    found = cascade(attack.members, model, x[right], y[right], index=right, copy=copy)
    with torch.no_grad():
        whole = margin(model(found.x_adv), y[right]) <= 0
    seconds = time.process_time() - started
    after = reference_pass(model, x, y)
    ours = torch.zeros(n, dtype=torch.bool)
    ours[right[whole]] = True
    assert attack.threat.contains(found.x_adv, x[right]).all()
    by = torch.bincount(found.broken_by[found.broken_by >= 0].long(), minlength=len(attack.members)).tolist()
    print(
        f"{name}, {n} samples, from a copy in {precision}: robust {ours.float().mean():.2%}, official {official.float().mean():.2%}; "
        f"broken by us only {int((official & ~ours).sum())}, by the official only {int((ours & ~official).sum())}"
    )
    print("  broken by", ", ".join(f"{type(m).__name__} {count}" for m, count in zip(attack.members, by, strict=True)))
    passes = seconds / ((before + after) / 2)
    print(f"  {seconds:.1f} s = {passes:.0f} reference passes of {before:.4f} and {after:.4f} s", end="")
    if n == record["n"]:
        theirs = record["seconds"] / statistics.mean(record["reference_pass_seconds"])
        print(f"; official {theirs:.0f}: ratio {passes / theirs:.2f}", end="")
        each = (passes / max(1, int(ours.sum()))) / (theirs / int(official.sum()))
        print(f", per robust sample {each:.2f}", end="")
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join(NETWORKS))
    parser.add_argument("--n", type=int, default=0, help="the first rows only")
    parser.add_argument("--patient", action="store_true", help="every run takes all its steps")
    parser.add_argument(
        "--seeds", type=int, default=0, help="compare the runs of so many seeds, with and without a copy"
    )
    parser.add_argument("--oracle", type=Path, help="the records; default: `oracle` beside the data root")
    arguments = parser.parse_args()
    if "LSA_DATA_ROOT" not in os.environ:
        parser.error("LSA_DATA_ROOT is not set: no checkpoints and data")
    data_root = Path(os.environ["LSA_DATA_ROOT"])
    unknown = set(arguments.names) - set(NETWORKS)
    if unknown:
        parser.error(f"there are {', '.join(NETWORKS)}, not {', '.join(sorted(unknown))}")
    if arguments.patient:
        Search.milestones = lambda *_: {}
    torch.set_num_threads(1)
    oracle = arguments.oracle or data_root.parent / "oracle"
    for name in arguments.names or NETWORKS:
        if arguments.seeds:
            compare_seeds(name, data_root, oracle, arguments.n, arguments.seeds)
            continue
        for precision in PRECISIONS:
            compare(name, data_root, oracle, arguments.n, precision)


if __name__ == "__main__":
    main()
