"""Every hardening method on one start: what it buys and what it costs, as `lsa harden` and `lsa audit` give it to a user.

    python -m benchmarks.methods mnist      # fine-tunes sample_models/mnist_cnn.pt, linf 0.3
    python -m benchmarks.methods cifar10    # a ResNet-10, linf 8/255; reads torchvision's files under $LSA_DATA_ROOT

All rows of a seed see the same start and the same images, and have the same cost: about --passes forward passes of each image
in updates and their attacks, counted as the plan of `lsa harden` does. So a method with cheaper epochs has more of them. Each
row has the settings that `lsa harden` chooses, but for what the first line printed says. Nothing is tuned for any row. Columns,
in percent:

clean; PGD-20 and, under it, worst class (the least robust one), rho (what that and the mean over classes gain together over those of
the row "at", relative) and NSD (sd / mean over classes); cascade: what AutoAttack would leave of that, estimated from
--cascade survivors of PGD-20 drawn by margin (`lsa audit --full-on`); corruptions: right clean and under the corruption, mean over
the fifteen. All are of the same --test test images. doubts: runs whose evidence calls the number doubtful or
invalid. epochs: with passes in each. seconds: of the whole training, the median. A stochastic network (learn2perturb) is attacked with
EoT, 10 passes in PGD-20 and AutoAttack's version for stochastic networks, and its accuracies are means over 10 evaluations
of each image; its worst class and its cascade are of single ones.
One run: a 95% interval behind shares of images. Several: mean and, in brackets, standard deviation over seeds.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.paper_studies import cifar_batches, wide_resnet
from lsa_cli import audit, harden
from lsa_cli.attacks import CORRUPTIONS
from lsa_cli.cli.memory import keep_freed_memory
from lsa_cli.data import open_data
from lsa_cli.hardening.augmentation import AUGMENTATIONS
from lsa_cli.hardening.cost import epoch_cost
from lsa_cli.hardening.files import Files
from lsa_cli.hardening.method_settings import attack_settings_used
from lsa_cli.hardening.plan import make_harden_plan
from lsa_cli.hardening.run import job_of
from lsa_cli.models.checkpoint import Description, write_checkpoint
from lsa_cli.models.classifier import PRESETS, Classifier
from lsa_cli.registry import parse_spec
from lsa_cli.report.hardening import rho
from lsa_cli.report.schema import ClassSummary
from lsa_cli.settings import IN_PYTHON, HardenSettings, settings_from
from lsa_cli.settings.declare import keys_of, read_settings
from lsa_cli.wording import eps_as_text

SAMPLES = Path(__file__).parent.parent / "sample_models"
PLAIN = "plain"
# What --method is given. at-lr holds the first hidden layer with gamma 0.5, its default.
ROWS = (
    PLAIN, "at", "at-lr", "at:base=trades", "at:base=apart", "learn2perturb", "anp", "anp+at", "self-gradient",
    "class-fair", "class-fair:offset=true",
)  # fmt: skip
SEVERITY = 5


@dataclass(frozen=True)
class Study:
    """network: how `harden` and `audit` build it; training: of every hardening, beside the number of epochs; steps only of those whose base takes them."""

    eps: float
    images: int
    passes: int
    seeds: int
    test: int
    cascade: int
    network: dict
    training: dict


STUDIES = {
    "mnist": Study(
        eps=0.3, images=4000, passes=40, seeds=2, test=500, cascade=40, network={}, training={"batch_size": 32}
    ),
    "cifar10": Study(
        eps=8 / 255, images=3000, passes=20, seeds=1, test=500, cascade=10,
        network={"arch": "benchmarks.paper_studies:wide_resnet", "arch_args": {"depth": 10, "width": 1}},
        training={"batch_size": 64, "steps": 5},
    ),
}  # fmt: skip
SETTINGS = {
    "images": "training images", "passes": "of each image in each hardening", "seeds": "runs of each row",
    "test": "test images", "cascade": "survivors of PGD-20 that meet AutoAttack",
}  # fmt: skip
START_EPOCHS = 15  # of the CIFAR-10 start


def write_data(name, images, seed, path):
    """So many training images, and all test images, as a file for --data."""
    if name == "mnist":
        with np.load(SAMPLES / "mnist.npz") as archive:
            arrays = {key: archive[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    else:
        arrays = {}
        for split, names in (("train", ["data_batch_1"]), ("test", ["test_batch"])):
            arrays[f"x_{split}"], arrays[f"y_{split}"] = (np.asarray(part) for part in cifar_batches(names))
    chosen = np.random.default_rng(seed).permutation(len(arrays["y_train"]))[:images]
    arrays |= {key: arrays[key][chosen] for key in ("x_train", "y_train")}
    np.savez(path, **arrays)


def plain_network(study, data, seed, path):
    """The CIFAR-10 start: trained on the same images without an attack; the last epoch."""
    torch.manual_seed(seed)
    model = Classifier(wide_resnet(**study.network["arch_args"]), PRESETS["cifar10"]).train()
    samples = open_data(data, split="train")
    count = len(samples) // 64 * 64
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=START_EPOCHS * count // 64)
    for epoch in range(START_EPOCHS):
        for rows in np.random.default_rng([seed, epoch]).permutation(len(samples))[:count].reshape(-1, 64):
            x = AUGMENTATIONS["crop-flip"](samples.read(rows), torch.from_numpy(rows), seed * 1000 + epoch)
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.from_numpy(samples.labels[rows].astype(np.int64))).backward()
            optimizer.step()
            schedule.step()
    mean, std = PRESETS["cifar10"]
    about = Description(architecture="", mean=list(mean), std=list(std), input_shape=[3, 32, 32], data_name="cifar10")
    write_checkpoint(path, model.body, about)


class Run(NamedTuple):
    """cells: {column: (value, its interval or None)}; doubts: whether the evidence leaves any; epochs: their number, and the
    passes of each; seconds: of the training. Both None where nothing is trained."""

    cells: dict
    doubts: bool
    classes: ClassSummary
    epochs: str | None
    seconds: float | None


def judged(checkpoint, study, given, epochs=None, seconds=None):
    """The run that made this checkpoint."""
    options = {**study.network, **given, "eps": study.eps, "split": "test", "layers": ["none"], "noise": ["none"]}
    corruptions = [f"{name}:severity={SEVERITY}" for name in CORRUPTIONS.names()]
    report = audit(
        checkpoint, attack=["pgd:steps=20", "autoattack"], corruption=corruptions, limit=study.test,
        full_on=study.cascade, **options,
    )  # fmt: skip
    attacked, *corrupted = report.outcomes
    verdict = report.verdict
    found = {"clean": verdict.clean, "PGD-20": attacked.robust, "cascade": verdict.estimate or verdict.robust}
    cells = {name: (share.value, (share.low, share.high)) for name, share in found.items()}
    summary = attacked.class_summary
    cells["worst class"] = summary.worst, None
    cells["NSD"] = summary.nsd, None
    cells["corruptions"] = statistics.mean(outcome.robust.value for outcome in corrupted), None
    return Run(cells, report.evidence.verdict != "trusted", summary, epochs, seconds)


def training_of(row, study):
    """Without the steps of an attack where the row's base takes none."""
    used = attack_settings_used(*parse_spec(row, "method"))
    return {name: value for name, value in study.training.items() if name != "steps" or name in used}


def passes_of_epoch(start, options, folder):
    """Forward passes of each image in an epoch of `lsa harden` with these options."""
    own = read_settings(
        HardenSettings, {k: v for k, v in options.items() if k in keys_of(HardenSettings)}, scopes=IN_PYTHON
    )
    others = {name: value for name, value in options.items() if name not in keys_of(HardenSettings)}
    plan = make_harden_plan(start, settings_from({**others, "harden": own}), {})
    layers = (plan.layer_by_place,) if plan.needs_layers else ()
    job = job_of(plan, plan.make_method(layers), layers, Files(folder / "trial.pt"), resume=False, say=print)
    return epoch_cost(job).passes


def one_run(row, seed, start, study, data, threads, folder):
    given = {"data": data, "threads": threads}
    if row == PLAIN:
        return judged(start, study, given)
    options = {
        "method": row, "seed": seed, "eps": study.eps, "limit": 10, **training_of(row, study), **study.network, **given,
    }  # fmt: skip
    passes = passes_of_epoch(start, options, folder)
    hardened = harden(
        start, folder / "hard.pt", epochs=max(1, round(study.passes / passes)), attack=["none"], **options
    )
    epochs = f"{len(hardened.history)} x {passes:.1f}"
    return judged(hardened.out, study, given, epochs, sum(epoch.seconds for epoch in hardened.history))


COLUMNS = ("clean", "PGD-20", "cascade", "worst class", "rho", "NSD", "corruptions")
BASELINE = "at"  # of rho


def shown(runs, baselines):
    """The cells of a row, from its runs by seed; baselines: those of the baseline, none before it has run."""
    cells = []
    for seed, run in runs.items():
        run.cells["rho"] = rho(baselines[seed].classes, run.classes) if baselines else None, None
    for name in COLUMNS:
        found = [run.cells[name] for run in runs.values()]
        values, interval = [100 * value for value, _ in found if value is not None], found[0][1]
        if len(values) > 1:
            cells.append(f"{statistics.mean(values):.1f} ({statistics.stdev(values):.1f})")
        elif values:
            between = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
            cells.append(f"{values[0]:.1f}{between}")
        else:
            cells.append("-")
    seconds = [run.seconds for run in runs.values() if run.seconds is not None]
    return [
        *cells,
        f"{sum(run.doubts for run in runs.values())} of {len(runs)}",
        next(iter(runs.values())).epochs or "-",
        f"{statistics.median(seconds):.0f}" if seconds else "-",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=STUDIES)
    parser.add_argument("--rows", help="by commas; default: all")
    for name, words in SETTINGS.items():
        usual = ", ".join(f"{getattr(study, name)} for {data}" for data, study in STUDIES.items())
        parser.add_argument(f"--{name}", type=int, help=f"{words}; default {usual}")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    said = {name: value for name in SETTINGS if (value := getattr(arguments, name)) is not None}
    study = replace(STUDIES[arguments.data], **said)
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    described = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in study.training.items())
    print(
        f"{arguments.data}, linf {eps_as_text(study.eps)}, {study.images} training images (a tenth held out), "
        f"about {study.passes} passes of each, {described}; {study.seeds} seed(s), {study.test} test images, cascade on "
        f"{study.cascade} survivors, corruptions of severity {SEVERITY}\n"
    )
    print(f"| method | {' | '.join(COLUMNS)} | doubts | epochs | seconds |\n|{'---|' * (len(COLUMNS) + 4)}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, starts, baselines = Path(name), [], {}
        for seed in range(study.seeds):
            write_data(arguments.data, study.images, seed, folder / f"{seed}.npz")
            data, start = f"npz:{folder / f'{seed}.npz'}", SAMPLES / "mnist_cnn.pt"
            if arguments.data == "cifar10":
                start = folder / f"start-{seed}.pt"
                plain_network(study, data, seed, start)
            starts.append((seed, start, data))
        for row in arguments.rows.split(",") if arguments.rows else ROWS:
            seeds = starts[:1] if row == PLAIN and arguments.data == "mnist" else starts  # one file, one network
            runs = {
                seed: one_run(row, seed, start, study, data, arguments.threads, folder) for seed, start, data in seeds
            }
            baselines = runs if row == BASELINE else baselines
            print(f"| {row} | {' | '.join(shown(runs, baselines))} |", flush=True)


if __name__ == "__main__":
    main()
