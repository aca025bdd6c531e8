"""Which layers have to be trained under noise: ANP with noise at one group of sites at a time (arXiv 1909.09034).

    python -m benchmarks.layer_contribution                   # MNIST sample, 4,000 images, 3 epochs, one seed
    python -m benchmarks.layer_contribution --images 50000 --epochs 6 --seeds 3

The claim of the abstract is that shallow layers matter more. Every row fine-tunes the same checkpoint with the same batches;
`none` trains without noise, with as many updates as the others. Figures are of 1,000 test images; noise is Gaussian, sd 0.3.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.training import RECIPE, harden, make_method
from lsa_cli.attacks import NOISES, make_threat
from lsa_cli.attacks.gradient import FGSM, PGD
from lsa_cli.auditing.network import open_network
from lsa_cli.hardening.validation import split_validation
from lsa_cli.registry import build
from lsa_cli.settings import settings_from

SAMPLE = Path(__file__).parent.parent / "sample_models" / "mnist_cnn.pt"
EPS = 0.1  # at 0.3 no group of sites leaves anything that could be compared
GROUPS = {
    "none": None, "input": "input", "conv1": "conv1", "conv2": "conv2", "shallow: input+conv1+conv2": "input+conv1+conv2",
    "deep: conv3+fc1": "conv3+fc1", "all": "all",
}  # fmt: skip


def trained(sites, images, epochs, seed):
    """The sample, fine-tuned by ANP at these sites; None: as often on the same batches, without noise."""
    network = open_network(SAMPLE, settings_from({"split": "train"}), {})
    places, validation = split_validation(network.labels, 0.1, 100, seed)
    places = np.random.default_rng(seed).permutation(places)[:images]
    method = make_method(
        "anp", {"sites": sites or "input"}, threat=make_threat("linf", EPS), steps=7, classes=10, samples=len(places),
        input_shape=network.input_shape,
    )  # fmt: skip
    model = network.classifier
    method.prepare(model)
    if sites is None:
        method.names = ()
    recipe = replace(RECIPE, epochs=epochs)
    result = harden(model, method, network.data, train_rows=places, validation=validation, recipe=recipe, seed=seed)
    model.load_state_dict(result.last)
    return model.eval()


def judged(model, x, y):
    """Accuracies: clean, FGSM, PGD-10, Gaussian noise."""
    threat = make_threat("linf", EPS)
    attacks = (
        FGSM(threat=threat), PGD(threat=threat, steps=10),
        build(NOISES.get("gaussian"), {"std": "0.3"}, "gaussian", bounds=(0.0, 1.0)),
    )  # fmt: skip
    with torch.no_grad():
        right = [float((model(x).argmax(1) == y).float().mean())]
    for attack in attacks:
        x_adv = attack(model, x, y)
        with torch.no_grad():
            right.append(float((model(x_adv).argmax(1) == y).float().mean()))
    return right


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    test = open_network(SAMPLE, settings_from({"split": "test"}), {})
    rows = np.random.default_rng(0).permutation(len(test.labels))[:1000]
    x, y = test.data.read(rows), torch.from_numpy(test.labels[rows])
    print(
        f"MNIST sample, linf {EPS:g}, {given.images} images, {given.epochs} epochs, {given.seeds} seed(s); means, and sd where there are more"
    )
    print("| noise at | clean | FGSM | PGD-10 | gaussian |\n|---|---|---|---|---|")
    for name, sites in GROUPS.items():
        runs = [judged(trained(sites, given.images, given.epochs, seed), x, y) for seed in range(given.seeds)]
        spread = [f" ({100 * statistics.stdev(c):.1f})" if len(c) > 1 else "" for c in zip(*runs, strict=True)]
        cells = [f"{100 * statistics.mean(c):.1f}{sd}" for c, sd in zip(zip(*runs, strict=True), spread, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
