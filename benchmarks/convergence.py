"""Does a self-gradient network converge faster than plain adversarial training, as arXiv 2011.09364 claims (10 times)?

    python -m benchmarks.convergence moons        # or: mnist, which reads torchvision's files under $LSA_DATA_ROOT

Both start from the same random weights and see the same batches. Counted for each until the PGD-20 accuracy on test data
first reaches the best that plain adversarial training has within the epochs allowed: epochs, seconds, and passes of training
batches through the network, in crafting examples and in updates (not of held-out and test samples):

- forward: runs of the wrapped network; a self-gradient network makes two where a plain one makes one;
- backward: times that a gradient arrives at the scores of such a run (the inner gradient, the second run's, and the first
  run's when the outer gradient comes back to it), and times that one arrives at the result of an inner backward pass, which
  is differentiated then. That is four where a plain network has one, and one where it has none.

Prints a table.
"""

import argparse
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.training import RECIPE, harden, make_method
from lsa_cli.attacks import make_threat
from lsa_cli.attacks.gradient import PGD
from lsa_cli.data import LabelledData, open_data
from lsa_cli.layers import Wrapper
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.classifier import Classifier, predicted_class

SAMPLES = Path(__file__).parent.parent / "sample_models"
METHODS = ("at", "self-gradient")
BATCH = 64  # no other samples come in as many


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
    """After each epoch: PGD-20 accuracy on up to 400 test samples; passes and seconds of training so far."""
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
    counts = Counter()
    network = model.body.network if isinstance(model.body, Wrapper) else model.body

    def arrived(gradient) -> None:
        counts["backward"] += 1
        if gradient.requires_grad:  # of an inner backward pass, which will be differentiated
            gradient.register_hook(arrived)

    def count(module, inputs, scores) -> None:
        if len(scores) == BATCH:  # others are held-out or test samples
            counts["forward"] += 1
            if scores.requires_grad:
                scores.register_hook(arrived)

    network.register_forward_hook(count)
    points = []
    spent = [0.0]

    def on_epoch(result, left) -> None:
        spent[0] += result.seconds
        attack = PGD(threat=threat, steps=20)
        x_adv = attack(model, x, y, index=index, seed=seed)
        with torch.no_grad():
            robust = float((predicted_class(model.eval()(x_adv)) == y).float().mean())
        points.append({"robust": robust, "seconds": spent[0], **counts})

    recipe = replace(RECIPE, epochs=epochs, lr=values["lr"], schedule="constant", batch_size=BATCH)
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
    print(
        "| seed | method | best PGD-20 | last PGD-20 | epochs to AT's best | forward + backward passes until then | time |"
    )
    print("|---|---|---|---|---|---|---|")
    for seed in range(arguments.seeds):
        target = None
        for name in METHODS:
            points = curve(name, data, test, values, arguments.epochs, seed)
            best = max(point["robust"] for point in points)
            target = best if target is None else target
            reached = next((i for i, point in enumerate(points) if point["robust"] >= target), None)
            point = points[-1 if reached is None else reached]
            within = " in all" if reached is None else ""
            when = (
                f"not in {len(points)}" if reached is None else str(reached + 1),
                f"{point['forward']:,} + {point['backward']:,}{within}", f"{point['seconds']:.1f} s{within}",
            )  # fmt: skip
            print(f"| {seed} | {name} | {best:.1%} | {points[-1]['robust']:.1%} | {' | '.join(when)} |", flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
