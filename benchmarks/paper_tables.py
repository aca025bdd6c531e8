"""Tables 2, 3 and 4 of arXiv 2202.02626 (AT-LR), trained and judged with our code, beside the published numbers.

    python -m benchmarks.paper_tables moon|mnist|cifar10 [--seeds N] [--rows 'AT-PGD*'] [--jobs 4] [--threads 1] [--out FILE]
    python -m benchmarks.paper_tables moon --search      # what the paper leaves open, tried on held-out training data
    python -m benchmarks.paper_tables cifar10 --check    # models C and D on 512 images: does the loss fall?

Every row is trained from scratch (Algorithm 3) and the epoch with the best robust accuracy on held-out training data is
kept. It is judged on test data by FGSM, as in the paper, by PGD-50 and, for the first seed, by AutoAttack; its layers are
compared under FGSM and PGD-50. Each row and seed is a line of FILE as soon as it is done; a second run goes on from there, and tables
of what FILE holds are printed at the end. On a CPU as many networks are trained at once as there are cores, a thread each; that
changes no number but the seconds. mnist and cifar10 read the files in LSA_DATA_ROOT, laid out as torchvision has them.
"""

import argparse
import fnmatch
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.paper_print import SCANS, print_row, print_tables
from benchmarks.paper_studies import SEED, STUDIES, Trial, trial_of
from benchmarks.published import parse_row, robustness_and_generalisation
from benchmarks.training import harden, make_method
from lsa_cli.attacks import ATTACKS
from lsa_cli.attacks.ensemble import cascade
from lsa_cli.auditing.observation import observe
from lsa_cli.data import stratified_subset
from lsa_cli.hardening.validation import split_validation
from lsa_cli.layers import find_layers, select_layers
from lsa_cli.measures import relative_error
from lsa_cli.models.classifier import Classifier, predicted_class

SEARCH_SEEDS = (100, 101)  # not those of the tables

# ---- training ------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """A network with the weights of its best epoch. validation: places of the held-out training samples; losses: by epoch;
    stopped: the watchdog's words."""

    model: Classifier
    layers: tuple[str, ...]
    validation: np.ndarray
    seconds: float
    epoch: int
    losses: list[float] = field(default_factory=list)
    stopped: str | None = None


def method_of(study, trial, layers, classes, samples, shape):
    """The hardening method of a row. layers: names of the network's activations in order."""
    row = parse_row(trial.row)
    held = () if row.layer is None else (layers[row.layer],)
    # Normal is the same loop with eps 0: the attack then returns its inputs.
    return make_method(
        row.method, {"base": row.base or "fgsm"}, threat=study.threat(trial.eps), steps=study.steps, classes=classes,
        samples=samples, input_shape=shape, layers=held, gammas=() if trial.gamma is None else (trial.gamma,),
    )  # fmt: skip


def train_row(study, trial, data, device):
    """From scratch, as Algorithm 3 has it."""
    torch.manual_seed(trial.seed)
    model = Classifier(study.network(), study.normalization).to(device)
    layers = activations(model, data, device)
    shape = tuple(data.read(np.arange(1)).shape[1:])
    train_rows, validation = split_validation(data.labels, *study.validation, SEED)
    method = method_of(study, trial, layers, len(np.unique(data.labels)), len(train_rows), shape)
    started = time.perf_counter()
    done = harden(
        model, method, data, train_rows=train_rows, validation=validation, recipe=study.recipe, seed=trial.seed,
        device=device,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    model.load_state_dict(done.best)
    losses = [result.loss for result in done.history]
    return Trained(
        model.eval().requires_grad_(False), layers, validation, seconds, done.best_epoch, losses, done.stopped
    )


def activations(model, data, device):
    """Names of the hidden activations in order: Li is the i-th."""
    x = data.read(np.arange(2)).to(device)
    model.eval()
    return tuple(layer.name for layer in select_layers(find_layers(model.body, lambda: model(x), 2), ["activations"]))


# ---- judging -------------------------------------------------------------------------------------------


def attack_of(name, threat):
    if name == "cascade":
        return ATTACKS.get("autoattack")(threat=threat).members
    return (ATTACKS.get(name)(threat=threat, **({"steps": 50} if name == "pgd" else {})),)


def batches_of(study, data, rows, device):
    for start in range(0, len(rows), study.batch):
        part = rows[start : start + study.batch]
        yield data.read(part).to(device), torch.from_numpy(data.labels[part]).to(device), torch.from_numpy(part)


def robust_curve(study, model, data, rows, name, device):
    """Accuracy in percent at every eps of the grid, clean first, under fgsm, pgd or cascade: what is right without an attack
    and not broken by it."""
    right = np.zeros(len(study.grid))
    for x, y, index in batches_of(study, data, rows, device):
        standing = (predicted_class(model(x)) == y).nonzero().flatten()
        right[0] += len(standing)
        count = whole_by_eps_in_turn if name == "cascade" else whole_by_eps
        right[1:] += count(study, model, name, x[standing], y[standing], index.to(device)[standing])
    return [round(float(100 * one / len(rows)), 4) for one in right]


def whole_by_eps(study, model, name, x, y, index):
    """How many are whole at each eps above 0: all are tried at once, each copy of a sample with its own."""
    radii = torch.tensor(study.grid[1:], device=x.device)
    many, labels, places = (t.repeat(len(radii), *[1] * (t.ndim - 1)) for t in (x, y, index))
    threat = study.threat(radii.repeat_interleave(len(x)))
    found = cascade(attack_of(name, threat), model, many, labels, index=places, goal="break")
    return (found.broken_by < 0).reshape(len(radii), len(x)).sum(1).cpu().numpy()


def whole_by_eps_in_turn(study, model, name, x, y, index):
    """The same from the largest eps down: what is whole there is not attacked with less, which takes most of the time."""
    whole = []
    for eps in reversed(study.grid[1:]):
        count = whole[-1] if whole else 0
        if len(x):
            found = cascade(attack_of(name, study.threat(eps)), model, x, y, index=index, goal="break")
            broken = found.broken_by >= 0
            count += int((~broken).sum())
            x, y, index = x[broken], y[broken], index[broken]
        whole.append(count)
    return np.array(whole[::-1])


def layer_curves(study, trained, data, rows, device):
    """Mean relative error of every activation at scan_eps, by attack."""
    threat, curves = study.threat(study.scan_eps), {}
    for name in SCANS:
        (attack,) = attack_of(name, threat)
        seen = []
        for x, y, index in batches_of(study, data, rows, device):
            moved = attack(trained.model, x, y, index=index)
            one = observe(trained.model, trained.layers, relative_error, threat, x, moved, index, with_yardstick=False)
            seen.append(one.layers)
        curves[name] = [round(float(mean), 4) for mean in np.nanmean(np.concatenate(seen), 0)]
    return curves


def judge(study, trained, test, device, with_cascade):
    rows = {
        name: stratified_subset(test.labels, len(test) if count is None else min(count, len(test)), SEED)
        for name, count in study.judged.items()
    }
    found = {name: robust_curve(study, trained.model, test, rows[name], name, device) for name in SCANS}
    if with_cascade and len(rows["cascade"]):
        found["cascade"] = robust_curve(study, trained.model, test, rows["cascade"], "cascade", device)
    return {**found, "layers": layer_curves(study, trained, test, rows["pgd"], device)}


# ---- runs, and what they leave -------------------------------------------------------------------------


def settings_of(study, trial):
    shown = {key: getattr(study, key) for key in ("steps", "scan_eps", "judged", "images")}
    return {"model": study.model, **asdict(trial), **shown, "recipe": asdict(study.recipe)}


def run_tables(study, names, arguments, out):
    """Seed by seed, so that an interrupted run has whole tables of fewer seeds."""
    trials = [trial_of(study, name, seed) for seed in range(arguments.seeds or study.seeds) for name in names]
    kept = {json.dumps(record["settings"]): record for record in read(out)}
    missing = [trial for trial in trials if json.dumps(settings_of(study, trial)) not in kept]
    for record in records_of(study, missing, arguments):
        write(out, record)
        kept[json.dumps(record["settings"])] = record
        settings, score = record["settings"], robustness_and_generalisation(record["pgd"])
        note = f"; stopped: {record['stopped']}" if record["stopped"] else ""
        print(f"{study.model} {settings['row']}, seed {settings['seed']}: R&G under PGD-50 {score:.1f}, {record['train_seconds']:.0f} s{note}", file=sys.stderr)  # fmt: skip
    print_tables(study, names, [kept[json.dumps(settings_of(study, trial))] for trial in trials])


def records_of(study, trials, arguments):
    """The line of each trial, as it is done."""
    jobs = min(arguments.jobs, len(trials))
    if jobs <= 1:
        yield from (record_of(arguments, study.model, trial) for trial in trials)
        return
    with torch.multiprocessing.get_context("spawn").Pool(jobs) as pool:  # ends its processes where anything is raised
        yield from pool.imap_unordered(partial(record_of, arguments, study.model), trials)


def record_of(arguments, model, trial):
    """One network, trained and judged. arguments: those of the command, which a process of its own has to be told."""
    torch.set_num_threads(arguments.threads)
    (study,) = (one for one in studies_of(arguments) if one.model == model)
    train_data, test_data = study.data(study.images)
    device = torch.device(arguments.device)
    trained = train_row(study, trial, train_data, device)
    started = time.perf_counter()
    found = judge(study, trained, test_data, device, with_cascade=trial.seed == 0)
    return {
        "settings": settings_of(study, trial), **found, "train_seconds": round(trained.seconds, 1),
        "judge_seconds": round(time.perf_counter() - started, 1), "epoch": trained.epoch, "stopped": trained.stopped,
    }  # fmt: skip


def run_search(study, names, out, device):
    """The learning rate (on AT-PGD), then eps of every base without the regularizer, then gamma of every row with it: each
    by the R&G score under PGD-50 on held-out training samples, the mean of two seeds. Prints all that was tried."""
    kept = read(out)
    data, _ = study.data(study.images)

    def score(name, lr, eps, gamma=None):
        one = replace(study, recipe=replace(study.recipe, lr=lr))
        scores = []
        for seed in SEARCH_SEEDS:
            trial = Trial(name, seed, eps, gamma)
            settings = {"search": True, **settings_of(one, trial)}
            record = next((record for record in kept if record["settings"] == settings), None)
            if record is None:
                trained = train_row(one, trial, data, device)
                curves = {a: robust_curve(one, trained.model, data, trained.validation, a, device) for a in SCANS}
                record = {"settings": settings, **curves}
                write(out, record)
                kept.append(record)
            scores.append([robustness_and_generalisation(record[attack]) for attack in SCANS])
        fgsm, pgd = np.mean(scores, 0)
        shown = [study.model, name, f"{lr:g}", f"{eps:.3g}", "" if gamma is None else f"{gamma:g}"]
        print_row([*shown, f"{fgsm:.1f}", f"{pgd:.1f}"])
        return pgd

    def best(values, score_of):
        return max(values, key=score_of) if len(values) > 1 else values[0]

    print_row(["model", "row", "lr", "eps", "gamma", "R&G under FGSM", "R&G under PGD-50"])
    print_row(["---"] * 7)
    rows = [parse_row(name) for name in names]
    lr = best(study.search_lr, lambda value: score("AT-PGD", value, study.eps["pgd"]))
    eps, gamma = dict(study.eps), {}
    for row in rows:
        if row.base is not None and row.layer is None:
            eps[row.base] = best(study.search_eps, lambda value, row=row: score(row.name, lr, value))
    for row in rows:
        if row.layer is not None:
            trials = {value: score(row.name, lr, eps[row.base], value) for value in study.search_gamma}
            gamma[row.name] = max(trials, key=trials.__getitem__)
    print(f"\nlr {lr:g}; eps {eps}; gamma {gamma}")


def run_check(study, device):
    """Whether AT-FGSM-LR-L1 learns: on 512 images, the loss of the second epoch is below that of the first."""
    recipe = replace(study.recipe, epochs=2, batch_size=32, warmup=0.0, lr=0.02)
    small = replace(study, recipe=recipe, validation=(0.1, 20))
    data, _ = study.data(512)
    trained = train_row(small, Trial("AT-FGSM-LR-L1", 0, 2 / 255, 0.1), data, device)
    fell = trained.losses[-1] < trained.losses[0]
    losses = ", ".join(f"{loss:.3f}" for loss in trained.losses)
    print(
        f"model {study.model}, {len(trained.layers)} activations, AT-FGSM-LR-L1 on 512 images: loss by epoch {losses}; "
        f"it {'falls' if fell else 'does not fall'} ({trained.seconds:.0f} s)",
        flush=True,
    )
    return fell


def read(out):
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


def write(out, record):
    with out.open("a") as file:
        file.write(json.dumps(record) + "\n")


# ---- the command ---------------------------------------------------------------------------------------


def chosen_rows(parser, studies, glob):
    names = {s.model: [name for name in s.rows if fnmatch.fnmatchcase(name, glob)] for s in studies}
    if not any(names.values()):
        parser.error(f"--rows '{glob}' matches none of {', '.join(dict.fromkeys(n for s in studies for n in s.rows))}")
    return names


def studies_of(arguments):
    """The table's models as the command changed them."""
    studies = []
    for study in STUDIES[arguments.table]:
        recipe = replace(study.recipe, epochs=arguments.epochs or study.recipe.epochs)
        judged = dict(study.judged)
        if arguments.cascade_images is not None:
            judged["cascade"] = arguments.cascade_images
        eps = study.eps if arguments.eps is None else dict.fromkeys(study.eps, arguments.eps)
        studies.append(replace(study, recipe=recipe, judged=judged, images=arguments.images or study.images, eps=eps))
    return studies


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=STUDIES)
    parser.add_argument(
        "--seeds", type=positive, help="networks a row, seeded 0, 1, ...; default: 5, for mnist 1, whose rows take long"
    )
    parser.add_argument("--rows", default="*", metavar="GLOB", help="the rows whose names match")
    parser.add_argument(
        "--images", type=positive, help="training images, a stratified part; default 10000 of mnist, all of cifar10"
    )
    parser.add_argument("--epochs", type=positive, help="default: 20 for moon, 5 for mnist, 30 for cifar10")
    parser.add_argument("--eps", type=float, help="of the training attack, instead of the study's own")
    parser.add_argument(
        "--cascade-images",
        type=int,
        metavar="N",
        help="test samples that AutoAttack judges the first seed's networks on, 0 for none; default: all for moon, 100 for "
        "mnist, 500 for cifar10",
    )
    parser.add_argument("--jobs", type=positive, help="networks at once; default: a core each, one on CUDA")
    parser.add_argument("--threads", type=positive, default=1, help="of each job")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--out", type=Path, help="lines of results; default: paper_TABLE.jsonl in the working directory"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--search", action="store_true", help="try eps and gamma on held-out training data")
    mode.add_argument("--check", action="store_true", help="cifar10: 512 images, 2 epochs; does the loss fall?")
    arguments = parser.parse_args()
    if arguments.table == "moon" and arguments.images is not None:
        parser.error("--images is for images; moon trains on all its points")
    if arguments.table != "cifar10" and arguments.check:
        parser.error(f"--check is for cifar10; {arguments.table} is quick enough for --rows Normal --seeds 1")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.jobs is None:
        arguments.jobs = 1 if device.type != "cpu" else max(1, len(os.sched_getaffinity(0)) // arguments.threads)
    if arguments.check:
        learnt = [run_check(study, device) for study in STUDIES[arguments.table]]
        sys.exit(0 if all(learnt) else 1)
    studies = studies_of(arguments)
    out = arguments.out or Path(f"paper_{arguments.table}.jsonl")
    names = chosen_rows(parser, studies, arguments.rows)
    for study in studies:
        if not names[study.model]:
            continue
        if arguments.search:
            run_search(study, names[study.model], out, device)
        else:
            run_tables(study, names[study.model], arguments, out)


if __name__ == "__main__":
    main()
