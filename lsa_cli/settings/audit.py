"""Every setting of an audit, once. The order here is the order in `lsa audit --help`."""

# ruff: noqa: RUF009  a call declares a field

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lsa_cli.errors import UsageError
from lsa_cli.report.formats import FORMATS
from lsa_cli.settings.declare import Option, SettingError, Settings, checked, flag, panel, read_settings
from lsa_cli.settings.harden import HardenSettings
from lsa_cli.settings.values import (
    Arguments,
    BatchSize,
    ClassOrder,
    Count,
    Duration,
    Names,
    Number,
    NumberOrName,
    Numbers,
    Pixels,
    Range,
    Reads,
    Samples,
    Seed,
    Texts,
    Threads,
)

if TYPE_CHECKING:
    from lsa_cli.report.limits import Limit
else:
    Limit = Any  # `_limits` checks them; pydantic, which declares Limit, is imported then

# Each declares a setting in its panel of --help.
_MODEL, _DATA, _ATTACK, _LAYERS, _RUN, _GATE, _OUTPUT = map(
    panel, ("Model", "Data", "Attack", "Layers", "Run", "Gate", "Output")
)


def _limits(value: Any) -> Any:
    """{metric: limit} -> {metric: Limit}; SettingError names the metric."""
    from lsa_cli.report.limits import limit_of

    if not isinstance(value, Mapping):
        return value
    limits: dict[str, Limit] = {}
    for metric, limit in value.items():
        try:
            limits[str(metric)] = limit_of(str(metric), limit)
        except UsageError as error:
            raise SettingError(("gate", str(metric)), str(error), whole=True) from error
    return limits


def _by_glob(value: Any) -> Any:
    """{glob: settings} -> {glob: AuditSettings}; SettingError names the glob and the setting."""
    if not isinstance(value, Mapping):
        return value
    found: dict[str, AuditSettings] = {}
    for glob, part in value.items():
        if not isinstance(part, Mapping):
            raise SettingError(("checkpoints", str(glob)), f"must be a mapping, such as {{eps: 4/255}}, not {part}")
        try:
            found[str(glob)] = read_settings(AuditSettings, part, "key", ("measured",))
        except SettingError as error:
            error.key = ("checkpoints", str(glob), *error.key)
            raise
    return found


def _places(value: Any) -> Any:
    """{glob: number, date or text}, all of one kind, because only these can be put in order."""
    if not isinstance(value, Mapping):
        return value
    kinds = {int, float}, {datetime.date}, {datetime.datetime}, {str}
    if not any({type(place) for place in value.values()} <= kind for kind in kinds):
        raise SettingError(("history",), "must be numbers for all globs, dates for all, or texts for all")
    return {str(glob): place for glob, place in value.items()}


def _at_least(value: Any) -> Any:
    """["robust=0.4"] or {"robust": 0.4}."""
    from lsa_cli.report.limits import parse_limits

    if isinstance(value, Mapping):
        return _limits(value)
    return parse_limits(checked(list[str], [value] if isinstance(value, str) else value))


def _no_finding(value: Any) -> Any:
    from lsa_cli.report.limits import parse_limits

    return parse_limits([], str(value))


def _formats() -> tuple[Option, ...]:
    """One option for each format that is registered, those of plugins included."""
    return tuple(Option(one.name, one.help, one.metavar, read=_in_format(one.name)) for one in FORMATS.registered())


def _in_format(name: str) -> Callable[[Any], dict[str, str]]:
    return lambda path: {name: checked(str, path)}


@dataclass(frozen=True, kw_only=True)
class AuditSettings(Settings):
    """The settings of an audit."""

    # ---- Model
    arch: str | None = _MODEL(
        "Architecture: torchvision:NAME, timm:NAME, pkg.mod:factory or path/to/file.py:factory. A Python factory is your own "
        "code and is run. Default: the one that the file names, or the known architecture that fits its weights.",
        metavar="NAME",
    )
    arch_args: Arguments | None = _MODEL("An argument of the architecture's factory. Repeatable.", metavar="NAME=VALUE")
    weights: str | None = _MODEL(
        "The set of weights to read, such as model_ema, where the file has several; see `lsa inspect`.",
        metavar="PLACE",
    )
    trust_code: bool | None = _MODEL(
        "Run the code in the checkpoint: unpickle the whole file, or run its program. Only for files whose authors you trust."
    )
    normalize: str | None = _MODEL(
        "auto, mnist, fashion-mnist, cifar10, imagenet, none, or MEAN/STD such as 0.5,0.5,0.5/0.25,0.25,0.25. It becomes part "
        "of the model; attacks and eps use images in [0, 1]. auto finds it on labelled images.",
        metavar="PRESET|MEAN/STD",
        default="what the file states, else auto",
    )
    input_range: Range | None = _MODEL(
        "Inputs of the network for black and for white, before normalisation: 0,255 or -1,1.",
        metavar="LOW,HIGH",
        default="0,1",
    )
    returns: Literal["logits", "probabilities"] | None = _MODEL(
        "What the network returns. For probabilities, attacks use their logarithm."
    )
    output_index: NumberOrName | None = _MODEL(
        "The output with the logits, where the network returns several. Default: the output that has one number per "
        "class and agrees with the labels.",
        metavar="N|NAME",
    )
    noise_off: bool | None = _MODEL("Switch off the noise that learn2perturb added to the network.")

    # ---- Data
    data: str | None = _DATA(
        "imagefolder:DIR, csv:FILE, npz:FILE, torchvision:NAME?root=DIR, hf:FOLDER_OR_NAME, webdataset:x-{000..003}.tar, "
        "cifar-c:DIR?corruption=fog&severity=3, or pkg.mod:factory (your own code, which is run); ?mode=rgb|gray converts "
        "images.",
        metavar="SOURCE:PATH",
    )
    split: str | None = _DATA(
        "Part of the data, such as test, train or val. Audits use the test split by default, training the train split.",
        metavar="NAME",
    )
    input_size: Pixels | None = _DATA(
        "Resize and crop images to N x N pixels, or keep their size. Default: the size in the checkpoint or of torchvision's "
        "own weights.",
        metavar="N|native",
    )
    match_classes: ClassOrder | None = _DATA(
        "How labels are matched to outputs of the network: name: by class name; number: label k is output k; or the output for each "
        "class of the data, such as 2,0,1.",
        metavar="ORDER",
        default="name",
    )
    limit: Samples | None = _DATA(
        "Number of samples to audit, stratified by class. Default: 1000; with --quick 200, with --gate-only all, with --baseline its samples.",
        metavar="N|all",
        short="n",
    )

    # ---- Attack
    attack: Texts | None = _ATTACK(
        "fgsm, pgd, t-pgd, ..., see `lsa list attacks`; or none, to test noises only. Repeatable. Default: fgsm, pgd and "
        "t-pgd; in l2 and l1 also fmn.",
        metavar="NAME[:KEY=VALUE,...]",
    )
    preset: Literal["quick", "full"] | None = _ATTACK(
        "The attacks to run where none is named.",
        options=(
            flag("quick", "FGSM and a short APGD on 200 samples. It takes seconds and gives a loose upper bound."),
            flag(
                "full",
                "After the default attacks, the ranked cascade on the samples that are still robust: stronger attacks "
                "on those that are nearer to the decision boundary, see docs/attacks.md.",
            ),
        ),
    )
    full_on: Count | None = _ATTACK(
        "Run the whole cascade on M of the samples that are still robust, drawn by margin, and estimate the result for all, "
        "with its interval.",
        metavar="M",
    )
    patient: bool | None = _ATTACK(
        "Run every attack of the cascade on all samples that are still robust, and no run is given up. It takes several "
        "times as long.",
    )
    prove: bool | None = _ATTACK(
        "Before the attacks, prove for as many samples as possible that no input within the radius changes their class: a lower "
        "bound of the robust accuracy, in linf and l2. Default: with --full, if it takes at most a fifth of the time of the rest of the audit.",
        off="no-prove",
    )
    noise: Texts | None = _ATTACK(
        "gaussian, uniform, salt, pepper, speckle; or none. Repeatable. Default: all that apply.",
        metavar="NAME[:KEY=VALUE,...]",
    )
    corruption: Texts | None = _ATTACK(
        "A common corruption such as fog or gaussian_noise, see `lsa list corruptions`. Repeatable.",
        metavar="NAME[:severity=1..5]",
    )
    norm: str | None = _ATTACK(
        "Norm of the threat model: linf, l2 or l1. Default: the checkpoint's own, otherwise linf.",
        metavar="NORM",
    )
    eps: Number | None = _ATTACK(
        "Radius of the threat model in units of images in [0, 1], such as 8/255. Default: the checkpoint's own, otherwise "
        "the usual one for the data set.",
        metavar="EPS",
    )
    steps: Count | None = _ATTACK("Number of steps of iterative attacks.")
    step_size: Number | None = _ATTACK("Length of a step.", default="2.5 eps / steps")
    restarts: Count | None = _ATTACK("Number of random restarts; the worst result of each sample counts.")
    eps_grid: Numbers | None = _ATTACK(
        "Radii of a robustness curve, from which the R&G score is computed.", metavar="E,E,..."
    )
    metrics: Names | None = _ATTACK(
        "Further metrics, measured on a few samples: intensity, eni, boundary; see `lsa list audit-metrics`. Repeatable.",
        metavar="NAME,...",
    )

    # ---- Layers
    layers: Names | None = _LAYERS(
        "activations (default), learnable, blocks, a layer's name or a glob, see `lsa layers`; or none. Repeatable.",
        metavar="NAME,...",
    )
    measure: str | None = _LAYERS(
        "Comparison measure of layers: relative-error, cosine-distance or l2.",
        metavar="NAME",
        default="relative-error",
    )
    aggregate: Literal["sample", "batch"] | None = _LAYERS(
        "Take the measure for each sample, or once for each batch as the authors' package does.", default="sample"
    )
    eta: Number | None = _LAYERS(
        "A layer is most vulnerable if mean - mu > eta * sigma. Default: 0.5, with --sigma layers 0.8."
    )
    sigma: Literal["samples", "layers"] | None = _LAYERS(
        "Over what the standard deviation sigma is computed.", default="samples"
    )
    top_k: Count | None = _LAYERS("Name the K layers with the largest means, instead of using eta.")

    # ---- Run
    batch_size: BatchSize | None = _RUN(
        "Number of samples in a batch; it changes no result. auto finds a size and halves it where memory runs out.",
        metavar="N|auto",
        default="auto",
    )
    budget: Duration | None = _RUN(
        "Time budget, such as 90s, 10m or 1h30m. The report then covers the samples so far.", metavar="TIME"
    )
    resume: bool | None = _RUN("Resume an interrupted run.", scope="once")
    device: str | None = _RUN("auto, cpu, cuda or cuda:1.", metavar="DEVICE", default="auto")
    threads: Threads | None = _RUN(
        "CPU threads of each process. Default: the available cores that other processes do not use."
    )
    nproc: str | None = _RUN(
        "Number of processes on this machine that share the work. auto: one for each CUDA device, otherwise one for each "
        "core, at most 8. For several machines use torchrun.",
        metavar="N|auto",
        scope="once",
    )
    fast: bool | None = _RUN(
        "Start attacks on an optimized copy of the network.",
        default="true",
        options=(
            Option(
                "no-fast",
                "Run attacks on the original network only. By default they start on an optimized copy; the original network "
                "always decides the result.",
                flag=True,
                read=lambda value: not checked(bool, value),
            ),
        ),
    )
    seed: Seed | None = _RUN("Random seed.", default="0")
    config: str | None = _RUN(
        "File with settings. Default: lsa.yaml beside the checkpoint, otherwise in the working directory.",
        metavar="FILE",
        scope="once",
    )
    plugin: Texts | None = _RUN(
        "Python file that registers attacks, noises, measures, layer selectors, data sources or formats. It is your own code "
        "and is run. Repeatable.",
        metavar="FILE.py",
    )
    harden_to: str | None = _RUN(
        "After the audit, harden the most vulnerable layers against the strongest attack, and write this checkpoint; see "
        "`lsa harden`.",
        name="harden",
        metavar="FILE",
        scope="once",
    )
    dry_run: bool | None = _RUN(
        "Show model, layers, data, attacks and the estimated time, without attacking.", scope="once"
    )
    harden: HardenSettings | None = _RUN("Settings of `lsa harden`.", options=())
    checkpoints: Annotated[dict[str, Any], Reads(_by_glob)] | None = _RUN(
        "Settings of the checkpoints whose path fits a glob, as {glob: {eps: 4/255}}. They win over the rest of the file; "
        "of several globs that fit, the last one wins.",
        scope="told",
        options=(),
    )
    history: Annotated[dict[str, Any], Reads(_places)] | None = _RUN(
        "Where the models whose path fits a glob stand in the trends of `lsa history --order key`, as {glob: 12}: numbers, dates "
        "or texts. Of several globs that fit, the last one counts.",
        scope="told",
        options=(),
    )

    # ---- Gate
    gate: Annotated[dict[str, Limit], Reads(_limits)] | None = _GATE(
        "Limits. metric: limit, or metric: {min or max, severity, by, allow_not_run}.",
        options=(
            Option(
                "fail-under",
                "Exit 1 unless the metric is at least VALUE: robust=0.40, robust.pgd=, clean=, class.min=, class.NAME=; or at "
                "most VALUE: layer.max-error=, layer.NAME=, class.discrepancy=, mvl.LAYER=, drop=, seconds=; see `lsa list "
                "metrics`. Repeatable.",
                metavar="METRIC=VALUE",
                repeatable=True,
                read=_at_least,
            ),
            Option(
                "fail-on",
                "Exit 1 if the evidence is doubtful, or invalid.",
                metavar="doubtful|invalid",
                read=_no_finding,
            ),
        ),
    )
    gate_only: bool | None = _GATE(
        "Take samples in random order and stop as soon as every limit is decided, with a guarantee. Layers, noises and "
        "evidence are left out.",
        scope="written",
    )
    alpha: Number | None = _GATE(
        "With --gate-only: the largest probability that any limit is decided wrongly.",
        metavar="P",
        default="0.01",
        scope="written",
    )
    baseline: str | None = _GATE(
        "With --gate-only: the saved report that the limits drop and drop.clean compare with, sample by sample.",
        metavar="FILE.json",
        scope="written",
    )
    exit_zero: bool | None = _GATE("Exit 0 even if a limit does not hold. Errors keep their exit codes.", scope="told")

    # ---- Output
    output: str | None = _OUTPUT("Folder for the report and its journal.", metavar="DIR", short="o", scope="told")
    samples: str | None = _OUTPUT(
        "Table with one row per sample: the attack that broke it, number of queries, margin, distance.",
        metavar="FILE.csv|.parquet",
        scope="written",
    )
    files: dict[str, str] | None = _OUTPUT("Files by format.", scope="written", options=_formats)
    csv: str | None = _OUTPUT("Folder for tidy tables, one CSV file each.", metavar="DIR", scope="written")
    github: bool | None = _OUTPUT(
        "Write annotations, step summary and outputs of a GitHub workflow. Default: where the audit runs in one.",
        scope="told",
        off="no-github",
    )
    quiet: bool | None = _OUTPUT(
        "Print only a one-line summary and, where the command decides limits, whether they hold.",
        short="q",
        scope="told",
    )
    verbose: bool | None = _OUTPUT("Print on stderr what is read and written.", short="v", scope="told")
