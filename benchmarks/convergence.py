"""Does a self-gradient network converge faster than plain adversarial training, as arXiv 2011.09364 claims (10 times)?

    python -m benchmarks.convergence moons        # or: mnist, which reads torchvision's files under $LSA_DATA_ROOT

Both start from the same random weights and see the same batches. Counted for each: epochs, forward passes of training (a
self-gradient network makes two where a plain one makes one) and seconds until the PGD-20 accuracy on test data first
reaches the best that plain adversarial training has within the epochs allowed. Prints a table.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.training import RECIPE, harden, make_method
from lsa_cli.attacks import make_threat
from lsa_cli.attacks.gradient import PGD
from lsa_cli.data import LabelledData, open_data
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.classifier import Classifier, predicted_class

SAMPLES = Path(__file__).parent.parent / "sample_models"
METHODS = ("at", "self-gradient")


def moons() -> tuple[LabelledData, LabelledData, dict]:
    train_data, test = (open_data(f"npz:{SAMPLES / 'moons.npz'}", split=split) for split in ("train", "test"))
    return train_data, test, {"arch": "lsa:moon-mlp", "eps": 0.3, "steps": 10, "lr": 1e-3, "n": 1600, "bounds": None}


def mnist() -> tuple[LabelledData, LabelledData, dict]:
    spec = f"torchvision:MNIST?root={os.environ['LSA_DATA_ROOT']}"
    train_data, test = (open_data(spec, split=split) for split in ("train", "test"))
    return (
        train_data,
        test,
        {"arch": "lsa:mnist-cnn", "eps": 0.1, "steps": 5, "lr": 1e-3, "n": 1000, "bounds": (0.0, 1.0)},
    )


def curve(method_name: str, data: LabelledData, test: LabelledData, values: dict, epochs: int, seed: int) -> list[dict]:
    """After each epoch: PGD-20 accuracy on up to 400 test samples, forward passes and seconds of training so far."""
    threat = make_threat("linf", values["eps"], values["bounds"])
    torch.manual_seed(seed)
    model = Classifier(build_architecture(values["arch"], {}))
    chosen = np.random.default_rng(seed).permutation(len(data))[: values["n"]]
    some = np.random.default_rng(0).permutation(len(test))[:400]
    x, y, index = test.read(some), torch.from_numpy(test.labels[some].astype(np.int64)), torch.from_numpy(some)
    method = make_method(
        method_name, {}, threat=threat, steps=values["steps"], classes=int(test.labels.max()) + 1, samples=len(chosen),
        input_shape=tuple(x.shape[1:]),
    )  # fmt: skip
    method.prepare(model)
    counts = {"passes": 0, "on": True}
    first = next(m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) and m.bias is not None)

    def count(*_) -> None:
        counts["passes"] += counts["on"]

    first.register_forward_pre_hook(count)
    points = []
    spent = [0.0]

    def on_epoch(result, left) -> None:
        spent[0] += result.seconds
        counts["on"] = False
        attack = PGD(threat=threat, steps=20)
        x_adv = attack(model, x, y, index=index, seed=seed)
        with torch.no_grad():
            robust = float((predicted_class(model.eval()(x_adv)) == y).float().mean())
        points.append({"robust": robust, "passes": counts["passes"], "seconds": spent[0]})
        counts["on"] = True

    recipe = replace(RECIPE, epochs=epochs, lr=values["lr"], schedule="constant", batch_size=64)
    harden(
        model, method, data, train_rows=chosen[8:], validation=chosen[:8], recipe=recipe, seed=seed, on_epoch=on_epoch,
    )  # fmt: skip
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=("moons", "mnist"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data, test, values = {"moons": moons, "mnist": mnist}[arguments.data]()
    began = time.monotonic()
    print("| seed | method | best PGD-20 | last PGD-20 | epochs to AT's best | forward passes | time |")
    print("|---|---|---|---|---|---|---|")
    for seed in range(arguments.seeds):
        target = None
        for name in METHODS:
            points = curve(name, data, test, values, arguments.epochs, seed)
            best = max(point["robust"] for point in points)
            target = best if target is None else target
            reached = next((i for i, point in enumerate(points) if point["robust"] >= target), None)
            if reached is None:
                when = f"not in {len(points)}", "-", f"{points[-1]['seconds']:.1f} s in all"
            else:
                when = str(reached + 1), f"{points[reached]['passes']:,}", f"{points[reached]['seconds']:.1f} s"
            print(f"| {seed} | {name} | {best:.1%} | {points[-1]['robust']:.1%} | {' | '.join(when)} |", flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
