"""Which training is worth its passes: fine-tunes one network by each recipe at equal cost, side by side.

    python -m benchmarks.recipes                                        # all rows, 48 passes a sample, 10,000 images, one seed
    python -m benchmarks.recipes --passes 20 --seeds 3 --rows "pgd-3;fast, first 10"
    LSA_DATA_ROOT=... python -m benchmarks.recipes --network fashion    # a small CNN for Fashion-MNIST, eps 0.1
    LSA_DATA_ROOT=... python -m benchmarks.recipes --network cifar      # a ResNet-8 for CIFAR-10, eps 4/255

A pass is one forward and backward pass of one image: an epoch of PGD-k costs k + 1 of them, and the regularizer one more.
So a row with fewer steps has more epochs. On training images that were held out there are the accuracies under PGD-10 with the
cross-entropy loss, which chooses the epoch, the same attack with the margin loss, and one run of odi-pgd; beneath the table
stands how well each ranks the rows as the cascade does. All other columns are of test images. R&G: the sum of FGSM
accuracies at 0, 1/3, 2/3, 1, 4/3 and 5/3 eps. cascade: the ranked cascade of `lsa audit --full` at eps, with its 95% interval.
won, lost: test images that are robust under it with this row alone, and with the first row of the same seed alone, and the exact
p-value of McNemar's test. Networks train in bfloat16 where the processor multiplies in it, but for the row with "float32". A row
with "awp" costs one pass more.
eps is 0.3 for the MNIST sample, and the other networks are first trained on the same images without attacks.
"""

import argparse
import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.layer_choice import HELD_OUT, NETWORKS, accuracy_under, images_of, robust_accuracy, trained_on_clean
from benchmarks.paper_tables import activations
from benchmarks.training import RECIPE, harden, make_method
from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.attacks.ensemble import cascade
from lsa_cli.attacks.gradient import FGSM, PGD
from lsa_cli.attacks.odi import ODI
from lsa_cli.auditing.network import open_network
from lsa_cli.cli.memory import keep_freed_memory
from lsa_cli.data import LabelledData
from lsa_cli.hardening.clat import mean_squared_error
from lsa_cli.hardening.recipes import trains_in_bfloat16
from lsa_cli.hardening.validation import split_validation
from lsa_cli.measures import Measure, relative_error
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.precision import make_copy
from lsa_cli.settings import settings_from
from lsa_cli.stats.shares import mcnemar, spearman, wilson

SAMPLE = Path(__file__).parent.parent / "sample_models" / "mnist_cnn.pt"


@dataclass(frozen=True)
class Start:
    """model: a normally trained network. train, held_out: places in data. test: images and labels."""

    model: Classifier
    data: LabelledData
    train: np.ndarray
    held_out: np.ndarray
    test: tuple[torch.Tensor, torch.Tensor]
    eps: float


def mnist(images, seed, count):
    """The MNIST sample."""
    network, tested = (open_network(SAMPLE, settings_from({"split": split}), {}) for split in ("train", "test"))
    places, held_out = split_validation(network.labels, 0.1, 1000, seed)
    places = np.random.default_rng(seed).permutation(places)[:images]
    test = tested.data.read(np.arange(count)), torch.from_numpy(tested.labels[:count])
    return Start(network.classifier, network.data, places, held_out, test, 0.3)


def small_network(name, images, seed, count):
    """A small network, after five epochs on clean images, of which HELD_OUT are not trained on. Fewer are taken where the files
    have fewer."""
    network, source, normalization, eps = NETWORKS[name]
    (x, y), test = images_of(source, Path(os.environ["LSA_DATA_ROOT"]), images)
    images = len(x) - HELD_OUT
    torch.manual_seed(seed)
    model = trained_on_clean(Classifier(network(), normalization), x[:images], y[:images], seed)
    data = LabelledData("images", y.numpy().astype(np.int64), lambda rows: x[torch.from_numpy(np.asarray(rows))])
    places = np.arange(len(x))
    return Start(model, data, places[:images], places[images:], tuple(part[:count] for part in test), eps)


STARTS = {
    "mnist": mnist,
    "fashion": partial(small_network, "fashion_cnn"),
    "cifar": partial(small_network, "cifar_resnet8"),
}


@dataclass(frozen=True)
class Row:
    """base: of adversarial training. steps: of its attack. hold, gamma, detached, measure: of the regularizer, where there is
    one: the first or the last hidden activation. recipe: what differs from the recipe of the other rows."""

    base: str = "pgd"
    steps: int = 1
    hold: str | None = None
    gamma: float = 0.0
    detached: bool = False
    measure: Measure = relative_error
    recipe: dict = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """Passes of an image in one epoch."""
        return self.steps + 1 + (self.hold is not None) + ("awp" in self.recipe)


ROWS = {
    **{f"pgd-{steps}": Row(steps=steps) for steps in (3, 1, 2, 5, 7)},
    **{
        f"pgd-3, {name}": Row(steps=3, recipe=recipe)
        for name, recipe in {
            "ema": {"average": "ema"}, "no ramp": {"warmup": 0.0}, "float32": {"amp": False},
            "batch 32": {"batch_size": 32}, "batch 64": {"batch_size": 64}, "batch 256": {"batch_size": 256}, "lr 1e-3": {"lr": 1e-3},
            "lr 4e-3": {"lr": 4e-3}, "smoothing 0.1": {"label_smoothing": 0.1}, "awp 0.005": {"awp": 0.005},
        }.items()
    },
    **{f"pgd-{steps}, batch 32": Row(steps=steps, recipe={"batch_size": 32}) for steps in (1, 2)},
    "fast": Row("fast"),
    **{f"fast, first {gamma:g}": Row("fast", hold="first", gamma=gamma) for gamma in (0.5, 2, 5, 10, 20)},
    "fast, first 10, ema": Row("fast", hold="first", gamma=10, recipe={"average": "ema"}),
    "fast, first 10, batch 32": Row("fast", hold="first", gamma=10, recipe={"batch_size": 32}),
    "fast, first 10, batch 64": Row("fast", hold="first", gamma=10, recipe={"batch_size": 64}),
    "fast, first 10, lr 4e-3": Row("fast", hold="first", gamma=10, recipe={"lr": 4e-3}),
    "fast, first 20, batch 32": Row("fast", hold="first", gamma=20, recipe={"batch_size": 32}),
    "fast, first 10, no ramp": Row("fast", hold="first", gamma=10, recipe={"warmup": 0.0}),
    "fast, first 10, detached": Row("fast", hold="first", gamma=10, detached=True),
    "fast, first 100, squared": Row("fast", hold="first", gamma=100, measure=mean_squared_error),
    "fast, last 10": Row("fast", hold="last", gamma=10),
    "n-fgsm": Row("n-fgsm"),
    "n-fgsm, first 5": Row("n-fgsm", hold="first", gamma=5),
    "pgd-2, first 5": Row(steps=2, hold="first", gamma=5),
    "pgd-3, first 5": Row(steps=3, hold="first", gamma=5),
}  # fmt: skip


def hardened(row, start, passes, seed):
    """The network trained by one row, and its log."""
    model = start.model
    hidden = activations(model, start.data, "cpu")
    layers = {None: (), "first": hidden[:1], "last": hidden[-1:]}[row.hold]
    usual = replace(
        RECIPE, epochs=passes // row.passes, lr=2e-3, warmup=0.3, amp=trains_in_bfloat16(model, torch.device("cpu"))
    )
    recipe = replace(usual, **row.recipe)
    method = make_method(
        "at-lr" if layers else "at", {"base": row.base}, threat=make_threat("linf", start.eps), steps=row.steps, classes=10,
        samples=len(start.train), input_shape=tuple(start.test[0].shape[1:]), layers=layers,
        gammas=(row.gamma,) * len(layers), detach_clean=row.detached, measure=row.measure,
        label_smoothing=recipe.label_smoothing, awp=recipe.awp,
    )  # fmt: skip
    trained = harden(
        model, method, start.data, train_rows=start.train, validation=start.held_out, recipe=recipe, seed=seed
    )
    model.load_state_dict(trained.best)
    return model.eval(), trained


def judged(model, start, cascaded):
    """Test accuracies as text (clean, R&G, PGD-40 at eps and 7/6 eps, the ranked cascade at eps), and which of the images are
    robust under the cascade."""
    (x, y), eps = start.test, start.eps

    with torch.no_grad():
        right = model(x).argmax(1) == y
    clean = 100 * float(right.float().mean())
    fgsm = [accuracy_under(FGSM(make_threat("linf", eps * third / 3)), model, x, y) for third in range(1, 6)]
    pgd = [accuracy_under(PGD(make_threat("linf", radius), steps=40), model, x, y) for radius in (eps, eps * 7 / 6)]
    rows = right[:cascaded].nonzero().flatten()
    attack = ATTACKS.get("ranked-cascade")(make_threat("linf", eps))
    copy = make_copy(model, x[:8], y[:8]).model
    found = cascade([attack], model, x[rows], y[rows], index=rows, goal="break", copy=copy)
    robust = torch.zeros(cascaded, dtype=torch.bool)
    robust[rows] = found.broken_by < 0
    low, high = wilson(int(robust.sum()), cascaded)
    whole = f"{100 * float(robust.float().mean()):.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return [f"{clean:.1f}", f"{clean + sum(fgsm):.1f}", *(f"{value:.1f}" for value in pgd), whole], robust


def held_out_accuracies(model, start):
    """In percent, under PGD-10 with the margin loss and under odi-pgd, beside the accuracy that has chosen the epoch."""
    x, y = start.data.read(start.held_out), torch.from_numpy(start.data.labels[start.held_out].astype(np.int64))
    threat = make_threat("linf", start.eps)
    return robust_accuracy(model, threat, x, y, steps=10), accuracy_under(ODI(threat), model, x, y)


def compared(robust, first):
    """won, lost and p-value as text; first: which images are robust with the first row, None for itself."""
    if first is None:
        return "-"
    won, lost = int((robust & ~first).sum()), int((first & ~robust).sum())
    return f"{won}, {lost} (p = {mcnemar(won, lost):.2g})"


CHOOSERS = ("PGD-10", "margin", "odi-pgd")
COLUMNS = (
    "recipe", "seed", "epochs", *CHOOSERS, "clean", "R&G", "PGD-40", "PGD-40, 7/6 eps", "cascade", "won, lost", "seconds"
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=STARTS, default="mnist")
    parser.add_argument("--rows", default=";".join(ROWS), help="names, separated by semicolons")
    parser.add_argument("--passes", type=int, default=48, help="of each image")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test", type=int, default=1000, help="test images")
    parser.add_argument("--cascade", type=int, default=500, help="test images for the cascade")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    ranked = []
    for seed in range(arguments.seeds):
        first = None
        for name in arguments.rows.split(";"):
            row = ROWS[name.strip()]
            start = STARTS[arguments.network](arguments.images, seed, arguments.test)
            model, trained = hardened(row, start, arguments.passes, seed)
            chosen = trained.history[trained.best_epoch - 1].robust if trained.best_epoch else 0.0
            held_out = [100 * chosen, *held_out_accuracies(model, start)]
            seconds = sum(result.seconds for result in trained.history)
            cells = [name, seed, len(trained.history), *(f"{value:.1f}" for value in held_out)]
            shown, robust = judged(model, start, arguments.cascade)
            cells += [*shown, compared(robust, first), f"{seconds:.0f}"]
            first = robust if first is None else first
            ranked.append([*held_out, float(robust.float().mean())])
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    *choosers, cascades = np.array(ranked).T
    correlations = [spearman(chooser, cascades) for chooser in choosers]
    if None not in correlations:
        shown = zip(CHOOSERS, correlations, strict=True)
        print("\nrank correlation with the cascade: " + ", ".join(f"{name} {value:.2f}" for name, value in shown))


if __name__ == "__main__":
    main()
