"""Which training is worth its passes: fine-tunes the MNIST sample by each recipe at equal cost, side by side.

    python -m benchmarks.recipes                                        # all rows, 48 passes a sample, 10,000 images, one seed
    python -m benchmarks.recipes --passes 20 --seeds 3 --rows "pgd-3;fast, first 10"

A pass is one forward and backward pass of one image: an epoch of PGD-k costs k + 1 of them, and the regularizer one more.
So a row with fewer steps has more epochs. Chosen by what stands in the column "held out" (PGD-10 on training images that were
held out); the columns behind it are measured on test images, for the reader and not for the choice. R&G: the sum of FGSM
accuracies at eps 0, 0.1 ... 0.5. cascade: the ranked cascade of `lsa audit --full` at eps 0.3, with its 95% interval.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.training import RECIPE, harden, make_method
from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.attacks.ensemble import cascade
from lsa_cli.attacks.gradient import FGSM, PGD
from lsa_cli.auditing.network import open_network
from lsa_cli.cli.memory import keep_freed_memory
from lsa_cli.hardening.validation import split_validation
from lsa_cli.models.precision import make_copy, multiplies_bfloat16
from lsa_cli.settings import settings_from
from lsa_cli.stats.shares import wilson

SAMPLE = Path(__file__).parent.parent / "sample_models" / "mnist_cnn.pt"
EPS = 0.3


@dataclass(frozen=True)
class Row:
    """base: of adversarial training. steps: of its attack. layers, gamma: of the regularizer, where there is one."""

    base: str = "pgd"
    steps: int = 1
    layers: tuple[str, ...] = ()
    gamma: float = 0.0
    average: str = "none"
    detached: bool = False

    @property
    def passes(self) -> int:
        """Passes of an image in one epoch."""
        return self.steps + 1 + bool(self.layers)


FIRST, LAST = ("relu1",), ("relu4",)
ROWS = {
    **{f"pgd-{steps}": Row(steps=steps) for steps in (1, 2, 3, 5, 7)},
    "pgd-3, ema": Row(steps=3, average="ema"),
    "fast": Row("fast"),
    **{f"fast, first {gamma:g}": Row("fast", layers=FIRST, gamma=gamma) for gamma in (0.5, 2, 5, 10, 20)},
    "fast, first 10, ema": Row("fast", layers=FIRST, gamma=10, average="ema"),
    "fast, first 10, detached": Row("fast", layers=FIRST, gamma=10, detached=True),
    "fast, last 10": Row("fast", layers=LAST, gamma=10),
    "n-fgsm": Row("n-fgsm"),
    "n-fgsm, first 5": Row("n-fgsm", layers=FIRST, gamma=5),
    "pgd-2, first 5": Row(steps=2, layers=FIRST, gamma=5),
    "pgd-3, first 5": Row(steps=3, layers=FIRST, gamma=5),
}


def hardened(row, passes, images, seed):
    """The network trained by one row, and its log."""
    network = open_network(SAMPLE, settings_from({"split": "train"}), {})
    places, validation = split_validation(network.labels, 0.1, 1000, seed)
    places = np.random.default_rng(seed).permutation(places)[:images]
    method = make_method(
        "at-lr" if row.layers else "at", {"base": row.base}, threat=make_threat("linf", EPS), steps=row.steps, classes=10,
        samples=len(places), input_shape=network.input_shape, layers=row.layers, gammas=(row.gamma,) * len(row.layers),
        detach_clean=row.detached,
    )  # fmt: skip
    recipe = replace(
        RECIPE, epochs=passes // row.passes, lr=2e-3, warmup=0.3, average=row.average,
        amp=multiplies_bfloat16(torch.device("cpu")),
    )  # fmt: skip
    model = network.classifier
    trained = harden(model, method, network.data, train_rows=places, validation=validation, recipe=recipe, seed=seed)
    model.load_state_dict(trained.best)
    return model.eval(), trained


def judged(model, count, cascaded):
    """Test accuracies as text: clean, R&G, PGD-40 at 0.3 and 0.35, the ranked cascade at 0.3."""
    network = open_network(SAMPLE, settings_from({}), {})
    x, y = network.data.read(np.arange(count)), torch.from_numpy(network.labels[:count])

    def accuracy(attack):
        moved = attack(model, x, y, goal="break")
        with torch.no_grad():
            return 100 * float((model(moved).argmax(1) == y).float().mean())

    with torch.no_grad():
        right = model(x).argmax(1) == y
    clean = 100 * float(right.float().mean())
    fgsm = [accuracy(FGSM(make_threat("linf", eps))) for eps in (0.1, 0.2, 0.3, 0.4, 0.5)]
    pgd = [accuracy(PGD(make_threat("linf", eps), steps=40)) for eps in (0.3, 0.35)]
    rows = right[:cascaded].nonzero().flatten()
    attack = ATTACKS.get("ranked-cascade")(make_threat("linf", EPS))
    copy = make_copy(model, x[:8], y[:8]).model
    found = cascade([attack], model, x[rows], y[rows], index=rows, goal="break", copy=copy)
    robust = int((found.broken_by < 0).sum())
    low, high = wilson(robust, cascaded)
    whole = f"{100 * robust / cascaded:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return [f"{clean:.1f}", f"{clean + sum(fgsm):.1f}", *(f"{value:.1f}" for value in pgd), whole]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    print("| recipe | seed | epochs | held out | clean | R&G | PGD-40, 0.3 | PGD-40, 0.35 | cascade | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for seed in range(arguments.seeds):
        for name in arguments.rows.split(";"):
            row = ROWS[name.strip()]
            model, trained = hardened(row, arguments.passes, arguments.images, seed)
            held_out = 100 * max(result.robust for result in trained.history)
            seconds = sum(result.seconds for result in trained.history)
            cells = [name, seed, len(trained.history), f"{held_out:.1f}"]
            cells += [*judged(model, arguments.test, arguments.cascade), f"{seconds:.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
