"""Which layer to hold, with which weight, on which base: fine-tunes the MNIST sample by each recipe, side by side.

    python -m benchmarks.recipes                              # all rows, 10,000 images, 4 epochs, one seed
    python -m benchmarks.recipes --rows at,last-0.5 --images 29000 --epochs 5 --seeds 2

Chosen by what stands in the column "held out" (PGD-10 on training images that were held out); the columns behind it are
measured on test images, for the reader and not for the choice. R&G: the sum of FGSM accuracies at eps 0, 0.1 ... 0.5.
AutoAttack: the standard cascade at eps 0.3, on as many of the first test images as --cascade says.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.training import RECIPE, harden, make_method
from lsa_cli.attacks import make_threat
from lsa_cli.attacks.ensemble import AutoAttack, cascade
from lsa_cli.attacks.gradient import FGSM, PGD
from lsa_cli.attacks.losses import margin
from lsa_cli.auditing.network import open_network
from lsa_cli.hardening.validation import split_validation
from lsa_cli.settings import settings_from

SAMPLE = Path(__file__).parent.parent / "sample_models" / "mnist_cnn.pt"
EPS = 0.3
# name: (method, options, layers, gamma, detached)
ROWS = {
    "at": ("at", {}, (), 0.0, False),
    "first-0.5": ("at-lr", {}, ("relu1",), 0.5, False),
    "first-2": ("at-lr", {}, ("relu1",), 2.0, False),
    "last-0.2": ("at-lr", {}, ("relu4",), 0.2, False),
    "last-0.5": ("at-lr", {}, ("relu4",), 0.5, False),
    "last-1.5": ("at-lr", {}, ("relu4",), 1.5, False),
    "last-0.5-detached": ("at-lr", {}, ("relu4",), 0.5, True),
    "last-two-0.2": ("at-lr", {}, ("relu3", "relu4"), 0.2, False),
    "all-0.05": ("at-lr", {}, ("relu1", "relu2", "relu3", "relu4"), 0.05, False),
    "trades": ("at", {"base": "trades", "beta": "2"}, (), 0.0, False),
    "trades-last-0.5": ("at-lr", {"base": "trades", "beta": "2"}, ("relu4",), 0.5, False),
}


def hardened(row, images, epochs, seed):
    """The network trained by one row, and its log."""
    name, options, layers, gamma, detached = ROWS[row]
    network = open_network(SAMPLE, settings_from({"split": "train"}), {})
    places, validation = split_validation(network.labels, 0.1, 1000, seed)
    places = np.random.default_rng(seed).permutation(places)[:images]
    method = make_method(
        name, options, threat=make_threat("linf", EPS), steps=7, classes=10, samples=len(places),
        input_shape=network.input_shape, layers=layers, gammas=(gamma,) * len(layers), detach_clean=detached,
    )  # fmt: skip
    recipe = replace(RECIPE, epochs=epochs, lr=2e-3, warmup=0.3)
    model = network.classifier
    trained = harden(model, method, network.data, train_rows=places, validation=validation, recipe=recipe, seed=seed)
    model.load_state_dict(trained.best)
    return model.eval(), trained


def judged(model, count, cascaded):
    """Test accuracies in percent: clean, R&G, FGSM at 0.5, PGD-40 at 0.3 and 0.35, AutoAttack at 0.3."""
    network = open_network(SAMPLE, settings_from({}), {})
    x, y = network.data.read(np.arange(count)), torch.from_numpy(network.labels[:count])

    def accuracy(attack=None):
        moved = x if attack is None else attack(model, x, y, goal="break")
        with torch.no_grad():
            return 100 * float((model(moved).argmax(1) == y).float().mean())

    fgsm = [accuracy()] + [accuracy(FGSM(make_threat("linf", eps))) for eps in (0.1, 0.2, 0.3, 0.4, 0.5)]
    pgd = [accuracy(PGD(make_threat("linf", eps), steps=40)) for eps in (0.3, 0.35)]
    with torch.no_grad():
        right = (model(x[:cascaded]).argmax(1) == y[:cascaded]).nonzero().flatten()
    found = cascade(AutoAttack(make_threat("linf", EPS)).members, model, x[right], y[right], index=right)
    with torch.no_grad():
        whole = int((margin(model(found.x_adv), y[right]) <= 0).sum())
    return fgsm[0], sum(fgsm), fgsm[-1], *pgd, 100 * whole / cascaded


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test", type=int, default=1000, help="test images")
    parser.add_argument("--cascade", type=int, default=200, help="test images for AutoAttack")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        "| recipe | seed | held out | clean | R&G | FGSM 0.5 | PGD-40 0.3 | PGD-40 0.35 | AutoAttack | seconds an epoch |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for seed in range(arguments.seeds):
        for row in arguments.rows.split(","):
            model, trained = hardened(row, arguments.images, arguments.epochs, seed)
            held_out = 100 * max(result.robust for result in trained.history)
            seconds = float(np.median([result.seconds for result in trained.history]))
            figures = " | ".join(f"{value:.1f}" for value in judged(model, arguments.test, arguments.cascade))
            print(f"| {row} | {seed} | {held_out:.1f} | {figures} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
