"""`lsa harden`: options -> plan -> train -> checkpoint, with the audits before and after. A thin layer over `lsa_cli.harden`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lsa_cli.cli import launch, speaking
from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, emit, foreign_code, note, progress_bar
from lsa_cli.errors import EXIT_BROKEN, UsageError

if TYPE_CHECKING:
    from lsa_cli.auditing.network import Say
    from lsa_cli.config import AuditSettings
    from lsa_cli.hardening.plan import HardenPlan
    from lsa_cli.hardening.run import Hardened
    from lsa_cli.report.schema import AuditReport

_METHOD, _ATTACK, _RECIPE = "Method", "Training attack", "Recipe"


def harden(
    checkpoint: o.Checkpoint,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The hardened checkpoint. Default: NAME.hard.pt in this folder."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE,...]",
            help="at-lr (default): adversarial training that holds layers; at: without; see `lsa list methods`.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="fgsm, pgd (default), apgd, fast, free, trades, mart or apart.", rich_help_panel=_METHOD),
    ] = None,
    mvl: Annotated[
        str | None,
        typer.Option(
            metavar="AUDIT.json", help="Hold the most vulnerable layers of this saved report.", rich_help_panel=_METHOD
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Hold these layers: names or globs with commas, see `lsa layers`.", rich_help_panel=_METHOD),
    ] = None,
    hold: Annotated[
        str | None,
        typer.Option(
            metavar="first|last|mvl",
            help="Which layers, where none are named: the first hidden one (default), the last, or those that a scan flags.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="How many layers the scan flags.", rich_help_panel=_METHOD)] = None,
    gamma: Annotated[
        str | None,
        typer.Option(
            metavar="G|LAYER=G,...", help="Weight of the regularizer, for all layers or each.", rich_help_panel=_METHOD
        ),
    ] = None,
    detach_clean: Annotated[
        bool,
        typer.Option("--detach-clean", help="The clean branch is a fixed target.", rich_help_panel=_METHOD),
    ] = False,
    measure: Annotated[
        str | None,
        typer.Option(help="What is held: relative-error (default), cosine-distance, l2.", rich_help_panel=_METHOD),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB,...", help="Parameters or modules that stay as they are. Repeatable.", rich_help_panel=_METHOD
        ),
    ] = None,
    train_only: Annotated[
        str | None,
        typer.Option(
            metavar="flagged|all", help="flagged: only the weights of the held layers.", rich_help_panel=_METHOD
        ),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1.", rich_help_panel=_ATTACK)] = None,
    eps: Annotated[
        str | None,
        typer.Option(
            help="Radius, such as 8/255. Default: the checkpoint's or the data set's usual one.",
            rich_help_panel=_ATTACK,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the training attack.", rich_help_panel=_ATTACK)] = None,
    step_size: Annotated[
        str | None, typer.Option(help="Length of a step. Default: 2.5 eps / steps.", rich_help_panel=_ATTACK)
    ] = None,
    attack_mode: Annotated[
        str | None,
        typer.Option(
            metavar="eval|train",
            help="Mode the network is in while it is attacked (default eval).",
            rich_help_panel=_ATTACK,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.", rich_help_panel=_RECIPE)] = None,
    lr: Annotated[str | None, typer.Option(help="Highest learning rate.", rich_help_panel=_RECIPE)] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam, adamw or sgd.", rich_help_panel=_RECIPE)] = None,
    weight_decay: Annotated[str | None, typer.Option(help="Decay of weights.", rich_help_panel=_RECIPE)] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Of the learning rate: one-cycle, cosine or constant; of anp: ours or official.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples an update.", rich_help_panel=_RECIPE)] = None,
    val_fraction: Annotated[
        str | None,
        typer.Option(
            help="Share of the training data held out to choose the best epoch (default 0.1, then at most 1000 samples).",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    warmup: Annotated[
        str | None,
        typer.Option(help="Share of the training in which eps and gamma rise (default 0.3).", rich_help_panel=_RECIPE),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Hand out an exponential average of the weights.", rich_help_panel=_RECIPE)
    ] = False,
    swa: Annotated[
        bool,
        typer.Option("--swa", help="Hand out the mean of the second half's weights.", rich_help_panel=_RECIPE),
    ] = False,
    awp: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Adversarial weight perturbation, such as 0.005.", rich_help_panel=_RECIPE),
    ] = None,
    clip: Annotated[str | None, typer.Option(help="Largest norm of a gradient.", rich_help_panel=_RECIPE)] = None,
    label_smoothing: Annotated[str | None, typer.Option(help="Of the loss.", rich_help_panel=_RECIPE)] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="none|crop-flip", help="Of training images; default by their kind.", rich_help_panel=_RECIPE
        ),
    ] = None,
    amp: Annotated[
        bool, typer.Option("--amp", help="bfloat16 where autocast has it.", rich_help_panel=_RECIPE)
    ] = False,
    arch: o.Arch = None,
    arch_args: o.ArchArgs = None,
    weights: o.Weights = None,
    trust_code: o.TrustCode = False,
    normalize: o.Normalize = None,
    input_range: o.InputRange = None,
    returns: o.Returns = None,
    output_index: o.OutputIndex = None,
    data: o.Data = None,
    split: Annotated[
        str | None, typer.Option(help="Which part of the data is trained on (default train).", rich_help_panel="Data")
    ] = None,
    input_size: o.InputSize = None,
    match_classes: o.MatchClasses = None,
    limit: Annotated[
        str | None,
        typer.Option(
            "--limit", "-n", metavar="N|all", help="Samples of the audits before and after.", rich_help_panel="Data"
        ),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="One page with plots, before and after.", rich_help_panel="Output"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the same command was killed.", rich_help_panel="Run")
    ] = False,
    device: o.Device = None,
    threads: o.Threads = None,
    nproc: o.Nproc = None,  # see launch.on_ranks
    seed: Annotated[
        int | None, typer.Option(help="Of order, attacks and the held-out part (default 0).", rich_help_panel="Run")
    ] = None,
    config: o.Config = None,
    plugin: o.Plugin = None,
    quiet: o.Quiet = False,
) -> None:
    """Fine-tune a checkpoint so that its layers hold under attack, and prove it.

    Without options: the checkpoint's own data, its first hidden layer held, a recipe that is known to work there. Beside
    the result FILE.pt stand FILE.last.pt, FILE.before.json, FILE.after.json, FILE.compare.json and FILE.log.jsonl.
    """
    from lsa_cli.config import settings_from
    from lsa_cli.models.architectures import parse_arguments

    if ema and swa:
        raise UsageError("--ema and --swa are two averages; give one of them")
    given = settings_from(
        {
            "arch": arch, "arch_args": parse_arguments(arch_args) if arch_args else None, "weights": weights,
            "trust_code": trust_code or None, "normalize": normalize, "input_range": input_range, "returns": returns, "output_index": output_index,
            "data": data, "split": split, "input_size": input_size, "match_classes": match_classes, "limit": limit,
            "norm": norm, "eps": eps, "measure": measure, "device": device, "threads": threads, "seed": seed, "plugin": plugin,
            "harden": {
                "method": method, "base": base, "mvl": mvl, "layers": o.names_in(layers), "hold": hold, "top_k": top_k, "gamma": gamma,
                "detach_clean": detach_clean or None, "attack_mode": attack_mode, "steps": steps, "step_size": step_size,
                "epochs": epochs, "lr": lr, "optimizer": optimizer, "weight_decay": weight_decay, "schedule": schedule,
                "batch_size": batch_size, "val_fraction": val_fraction, "freeze": o.names_in(freeze), "train_only": train_only,
                "average": "ema" if ema else "swa" if swa else None, "amp": amp or None, "warmup": warmup, "clip": clip,
                "label_smoothing": label_smoothing, "awp": awp, "augment": augment,
            },
        }
    )  # fmt: skip
    target = Path(f"{Path(checkpoint).stem}.hard.pt" if out is None else out)
    run(checkpoint, given, config, target, resume, quiet, html)


def run(
    checkpoint: str, given: "AuditSettings", config: str | None, out: Path, resume: bool, quiet: bool,
    html: str | None = None,
) -> None:  # fmt: skip
    """Merge, plan and train."""
    from lsa_cli.config import find_config
    from lsa_cli.hardening.files import inputs_of

    settings, origin = _merged(checkpoint, given, config, note)
    inputs = inputs_of(checkpoint, find_config(config, checkpoint)[0], settings)
    launch.first(lambda: _refuse_outputs(out, inputs, html))
    _train(checkpoint, settings, origin, out, resume, quiet, html)


def _merged(
    checkpoint: str, given: "AuditSettings", config: str | None, say: "Say"
) -> tuple["AuditSettings", dict[str, str]]:
    from lsa_cli.config import configurations, merge

    files = configurations(config, checkpoint)
    for name, _ in files if config is None else ():
        say(f"settings from {name}")
    return merge(("option", given), *files)


def _train(
    checkpoint: str, settings: "AuditSettings", origin: dict[str, str], out: Path, resume: bool, quiet: bool,
    html: str | None = None,
) -> None:  # fmt: skip
    """Plan and train; the before/after table on stdout. Exit 3 where the watchdog ended the training early."""
    from lsa_cli import distributed
    from lsa_cli.hardening.files import Files
    from lsa_cli.hardening.plan import make_harden_plan
    from lsa_cli.hardening.run import run_harden

    say = (lambda message: None) if quiet else note
    with foreign_code():
        plan = distributed.agreed(lambda: make_harden_plan(checkpoint, settings, origin, say=note))
    for message in plan.notes:
        say(message)

    try:
        with progress_bar(not quiet) as progress, foreign_code():
            hardened = run_harden(plan, out, resume=resume, progress=progress, say=say)
    except KeyboardInterrupt:
        if speaking.writes() and Files(out).state.exists():
            note(f"the state is in {Files(out).state}; the same command with --resume goes on from there")
        raise
    if html is not None and speaking.writes():
        _write_page(hardened, html)
    _tell(plan, hardened, html, quiet)
    if hardened.stopped is not None:
        note(f"stopped early: {hardened.stopped}")
        raise typer.Exit(EXIT_BROKEN)


def plan_flagged(
    checkpoint: str, given: "AuditSettings", config: str | None, scans: bool
) -> tuple["AuditSettings", dict[str, str]]:
    """`lsa audit --harden`, before the audit: what can be refused is refused now. scans: see `before_audit`.

    Returns the settings that `harden_flagged` completes, and where each comes from.
    """
    from lsa_cli import distributed
    from lsa_cli.config import HardenSettings
    from lsa_cli.hardening.following import before_audit
    from lsa_cli.hardening.plan import make_harden_plan

    settings, origin = _merged(checkpoint, given.model_copy(update={"split": None}), config, lambda message: None)
    own, notes = before_audit(settings.harden or HardenSettings(), scans)
    settings = settings.model_copy(update={"harden": own})
    distributed.agreed(lambda: make_harden_plan(checkpoint, settings, origin))
    for message in notes:
        note(message)
    return settings, origin


def harden_flagged(
    checkpoint: str, flagged: tuple["AuditSettings", dict[str, str]], report: "AuditReport", out: Path, quiet: bool
) -> None:
    """`lsa audit --harden`, after it: hold the layers that it flagged, against the attack that was strongest in it."""
    from lsa_cli.config import HardenSettings
    from lsa_cli.hardening.following import after_audit

    settings, origin = flagged
    own, notes = after_audit(settings.harden or HardenSettings(), report)
    for message in notes:
        note(message)
    _train(checkpoint, settings.model_copy(update={"harden": own}), origin, out, False, quiet)


def _refuse_outputs(out: Path, inputs: "list[str | Path]", html: str | None) -> None:
    """Every file that is going to be written can be, and none is one that is read, or another of them."""
    from lsa_cli.hardening.files import Files, refuse_outputs
    from lsa_cli.report.exporters import Outputs

    refuse_outputs(out, inputs)
    if html == "-":
        raise UsageError("--html - : a page does not go to stdout; give a file name")
    if html is not None:
        Outputs({"html": html}).check(inputs, Files(out).all())


def _write_page(hardened: "Hardened", html: str) -> None:
    from lsa_cli.report.comparison_html import render
    from lsa_cli.report.storage import write_text

    if hardened.compared is not None:
        write_text(html, render(hardened.before, hardened.after, hardened.compared))


def _tell(plan: "HardenPlan", hardened: "Hardened", html: str | None, quiet: bool) -> None:
    from lsa_cli.hardening.run import epoch_in_words
    from lsa_cli.report.hardening import one_line, print_hardening

    if hardened.incomparable is not None:
        page = "" if html is None else f", and no {html}"
        note(f"no comparison is written{page}: {hardened.incomparable}")
    if quiet:
        emit(one_line(hardened.before, hardened.after) + "\n")
        return
    print_hardening(hardened.before, hardened.after, hardened.compared, hardened.layers, data_console())
    held = epoch_in_words(hardened.best_epoch)
    if hardened.best_epoch:
        held += f" of {plan.recipe.epochs}, the best by {plan.chosen_by} on held-out samples"
    audits = "both audits" if hardened.compared is None else "both audits, their comparison"
    note(f"saved: {hardened.out} ({held}), and beside it the last epoch, {audits} and the log")
    if html is not None and hardened.compared is not None:
        note(f"written: {html}")
