"""`lsa audit`: options -> plan -> run -> files, tables, exit code. A thin layer over `lsa_cli.audit`."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lsa_cli.cli import launch, speaking
from lsa_cli.cli import options as o
from lsa_cli.cli.boundary import boundary
from lsa_cli.cli.console import data_console, emit, foreign_code, note, print_to_stdout, progress_bar, tell_findings
from lsa_cli.cli.harden import harden_flagged, plan_flagged
from lsa_cli.cli.outputs import Github, output_options, split_stdout, tell_github
from lsa_cli.cli.saving import partial_outputs, remove_partial, spare_full_report
from lsa_cli.errors import EXIT_GATE, EXIT_INTERRUPTED, EXIT_USAGE, LsaError, UsageError, printable
from lsa_cli.registry import parse_number
from lsa_cli.wording import plural, setting_as_text

if TYPE_CHECKING:
    from lsa_cli.auditing.journal import Journal
    from lsa_cli.auditing.plan import AuditPlan
    from lsa_cli.config import AuditSettings
    from lsa_cli.report.exporters import Outputs
    from lsa_cli.report.schema import AuditReport


@output_options
def audit(
    checkpoint: o.Checkpoint,
    arch: o.Arch = None,
    arch_args: o.ArchArgs = None,
    weights: o.Weights = None,
    trust_code: o.TrustCode = False,
    normalize: o.Normalize = None,
    input_range: o.InputRange = None,
    returns: o.Returns = None,
    output_index: o.OutputIndex = None,
    data: o.Data = None,
    split: o.Split = None,
    input_size: o.InputSize = None,
    match_classes: o.MatchClasses = None,
    limit: Annotated[
        str | None,
        typer.Option(
            "--limit",
            "-n",
            metavar="N|all",
            help="How many samples, stratified by class (default 1000).",
            rich_help_panel="Data",
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE,...]",
            help="fgsm, pgd, t-pgd, see `lsa list attacks`; none for noises only. Repeatable. Default: all three.",
            rich_help_panel="Attack",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="FGSM and a short APGD on 200 samples: seconds, a loose upper bound.",
            rich_help_panel="Attack",
        ),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="After the default attacks AutoAttack (APGD-CE, APGD-T, FAB-T, Square) on what they left whole.",
            rich_help_panel="Attack",
        ),
    ] = False,
    full_on: Annotated[
        int | None,
        typer.Option(
            metavar="M",
            help="AutoAttack on M of the survivors only, drawn at random, and an estimate with its interval for all.",
            rich_help_panel="Attack",
        ),
    ] = None,
    noise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE,...]",
            help="gaussian, uniform, salt, pepper, speckle; or none. Repeatable. Default: all that apply.",
            rich_help_panel="Attack",
        ),
    ] = None,
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:severity=1..5]",
            help="A common corruption such as fog or gaussian_noise, see `lsa list corruptions`. Repeatable.",
            rich_help_panel="Attack",
        ),
    ] = None,
    norm: o.Norm = None,
    eps: o.Eps = None,
    steps: Annotated[int | None, typer.Option(help="Steps of iterative attacks.", rich_help_panel="Attack")] = None,
    step_size: Annotated[
        str | None, typer.Option(help="Length of a step. Default: 2.5 eps / steps.", rich_help_panel="Attack")
    ] = None,
    restarts: Annotated[
        int | None, typer.Option(help="Random starts, worst case per sample.", rich_help_panel="Attack")
    ] = None,
    eps_grid: Annotated[
        str | None,
        typer.Option(
            metavar="E,E,...", help="Radii of a robustness curve and its R&G score.", rich_help_panel="Attack"
        ),
    ] = None,
    noise_off: Annotated[
        bool,
        typer.Option(
            "--noise-off",
            help="Audit without the noise that learn2perturb put into the network.",
            rich_help_panel="Model",
        ),
    ] = False,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help="Further metrics on a few samples, see `lsa list audit-metrics`: intensity, eni, boundary. Repeatable.",
            rich_help_panel="Attack",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="activations (default), learnable, blocks, a layer's name or a glob, see `lsa layers`; none for no "
            "layers. Repeatable.",
            rich_help_panel="Layers",
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(help="relative-error (default), cosine-distance, l2.", rich_help_panel="Layers"),
    ] = None,
    aggregate: Annotated[
        str | None,
        typer.Option(
            metavar="sample|batch",
            help="batch: one ratio a batch, as the authors' package does.",
            rich_help_panel="Layers",
        ),
    ] = None,
    eta: Annotated[
        str | None,
        typer.Option(
            help="A layer is most vulnerable if its mean - mu > eta * sigma (default 0.5).",
            rich_help_panel="Layers",
        ),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(metavar="samples|layers", help="What sigma is taken over.", rich_help_panel="Layers"),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Name the K largest means instead of using eta.", rich_help_panel="Layers"),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Samples at once; changes no result. auto (default): found, and halved where memory runs out.",
            rich_help_panel="Run",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Spend at most 90s, 10m or 1h30m; the report names what was left out.",
            rich_help_panel="Run",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where the same command was killed.", rich_help_panel="Run"),
    ] = False,
    device: o.Device = None,
    threads: o.Threads = None,
    nproc: o.Nproc = None,  # see launch.on_ranks
    no_fast: Annotated[
        bool,
        typer.Option(
            "--no-fast",
            help="Attack the network itself; default: a faster copy of it, with the network's own verdicts.",
            rich_help_panel="Run",
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Of random starts, noise, subset and bootstrap (default 0).", rich_help_panel="Run"),
    ] = None,
    config: o.Config = None,
    plugin: o.Plugin = None,
    harden: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Then harden the layers just flagged against the attack just used, into this checkpoint; see lsa harden.",
            rich_help_panel="Run",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show model, layers, data, attacks and estimated time; attack nothing.",
            rich_help_panel="Run",
        ),
    ] = False,
    fail_under: o.FailUnder = None,
    fail_on: o.FailOn = None,
    gate_only: Annotated[
        bool,
        typer.Option(
            "--gate-only",
            help="Take samples in random order and stop as soon as every limit is decided, with a guarantee; no layers, "
            "noises or evidence.",
            rich_help_panel="Gate",
        ),
    ] = False,
    alpha: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="With --gate-only: the chance that any limit is decided wrongly, at most (default 0.01).",
            rich_help_panel="Gate",
        ),
    ] = None,
    exit_zero: o.ExitZero = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", metavar="DIR", help="Folder for the report and its journal.", rich_help_panel="Output"
        ),
    ] = None,
    samples: o.SamplesFile = None,
    files: dict[str, str] | None = None,  # an option for each format
    csv: o.CsvFolder = None,
    github: Github = None,
    quiet: o.Quiet = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Say on stderr what is read and written.", rich_help_panel="Output"),
    ] = False,
) -> None:
    """Audit a checkpoint: robust accuracy, most vulnerable layers, classes; under attacks and noise.

    With a file that describes itself (such as sample_models/mnist_cnn.pt) nothing else is needed. The report is
    saved as NAME.audit.json in this folder unless --json says where.
    """
    from lsa_cli.auditing.early import DEFAULT_ALPHA, decide_early
    from lsa_cli.auditing.run import run_audit
    from lsa_cli.config import settings_from
    from lsa_cli.data import location_of
    from lsa_cli.models.architectures import parse_arguments
    from lsa_cli.report.gate import is_breach, parse_limits

    given = settings_from(
        {
            "arch": arch, "arch_args": parse_arguments(arch_args) if arch_args else None, "weights": weights,
            "trust_code": trust_code or None, "normalize": normalize, "input_range": input_range, "returns": returns, "output_index": output_index,
            "data": data, "split": split, "input_size": input_size, "match_classes": match_classes, "limit": limit,
            "attack": attack, "noise": noise, "corruption": corruption, "preset": _preset(quick, full),
            "full_on": full_on, "budget": budget,
            "norm": norm, "eps": eps, "steps": steps, "step_size": step_size, "restarts": restarts,
            "eps_grid": eps_grid, "metrics": o.names_in(metrics), "noise_off": noise_off or None, "layers": o.names_in(layers), "measure": measure, "aggregate": aggregate, "eta": eta,
            "sigma": sigma, "top_k": top_k, "batch_size": batch_size, "device": device, "threads": threads,
            "fast": False if no_fast else None,
            "seed": seed, "plugin": plugin, "gate": parse_limits(fail_under or [], fail_on) or None,
        }
    )  # fmt: skip
    wanted, to_stdout = split_stdout(files or {})
    if dry_run and to_stdout:
        raise UsageError("--dry-run makes no report that --json - could print; leave one of them out")
    if alpha is not None and not gate_only:
        raise UsageError("--alpha belongs to --gate-only; add it, or leave --alpha out")
    if gate_only and (resume or harden is not None):
        which = "--resume goes on from a journal" if resume else "--harden needs the layers"
        raise UsageError(f"{which}, which --gate-only does not have; leave one of them out")

    def outputs_of() -> "Outputs":
        read: list[str | Path] = [path for path in (checkpoint, config, data and location_of(data)) if path is not None]
        others: list[Path] = []
        if harden is not None:
            from lsa_cli.hardening.files import Files, refuse_outputs

            refuse_outputs(Path(harden), read)
            others = Files(Path(harden)).all()
        found = _outputs(checkpoint, "gate" if gate_only else "audit", output, wanted, to_stdout, csv, samples)
        if resume and "json" not in found.files:
            raise UsageError(
                "--resume needs the report file beside which the journal is; say --json FILE or --output DIR"
            )
        if not dry_run:
            found.check(read, others)
        return found

    outputs = launch.first(outputs_of)
    with foreign_code():
        plan = _plan(checkpoint, given, config, verbose, whole=gate_only)
    if samples is not None and not (plan.attacks or plan.cascade):
        raise UsageError(
            "--samples is one row a sample under attack, and no attack is asked for; leave one of them out"
        )
    with foreign_code():
        scans = bool(plan.layers and plan.attacks)
        flagged = None if harden is None else plan_flagged(checkpoint, given, config, scans)
    if dry_run:
        _show_plan(plan)
        return
    named = "json" in wanted or resume
    if not gate_only and speaking.writes():
        spare_full_report(plan, outputs.files, named)
    journal = None if gate_only else _journal(plan, outputs.files, resume, named)
    if not speaking.writes():
        outputs, github = type(outputs)({}, None, None), False
    run = (
        partial(decide_early, alpha=parse_number(DEFAULT_ALPHA if alpha is None else alpha, "--alpha"))
        if gate_only
        else partial(run_audit, journal=journal)
    )
    report = _run(run, plan, outputs, journal, github, to_stdout=to_stdout, quiet=quiet)
    if to_stdout:
        emit(report.to_json())
    else:
        print_to_stdout(report, quiet)
    if quiet or to_stdout:
        tell_findings(report)
    if not quiet and "json" in outputs.files:
        note(f"report saved: {', '.join(outputs.paths())}")
    for gate in report.gates:
        if not gate.passed and (quiet or to_stdout):
            note(f"gate{', a warning' if gate.severity == 'warning' else ''}: {gate.message}")
    if report.gates and harden is None:
        _say_decision(report, to_stdout)
    breached = is_breach(report.gates) and not exit_zero
    if harden is not None and flagged is not None:
        try:
            with boundary(), foreign_code() if to_stdout else nullcontext():  # stdout is the report's alone
                harden_flagged(checkpoint, flagged, report, Path(harden), quiet)
        except typer.Exit as end:
            if not breached or end.exit_code == EXIT_INTERRUPTED:
                raise  # the audit is whole, and its verdict does not depend on what became of the hardening
        finally:
            if report.gates:
                _say_decision(report, to_stdout)
    if breached:
        raise typer.Exit(EXIT_GATE)


def _say_decision(report: "AuditReport", to_stdout: bool) -> None:
    """The last line. On stderr where stdout is the report's alone."""
    from lsa_cli.report.gate import decision
    from lsa_cli.report.terminal import print_decision

    if to_stdout:
        note(decision(report.gates))
    else:
        print_decision(report.gates, data_console())


def _preset(quick: bool, full: bool) -> str | None:
    if quick and full:
        raise UsageError("--quick and --full are two ways to audit; give one of them")
    return "quick" if quick else "full" if full else None


def _outputs(
    checkpoint: str,
    what: str,
    folder: str | None,
    files: dict[str, str],
    to_stdout: bool,
    csv: str | None,
    samples: str | None,
) -> "Outputs":
    """What to write. The report itself is always saved, unless it goes to stdout."""
    from lsa_cli.report.exporters import Outputs, check_writable

    default = f"{Path(checkpoint).stem}.{what}.json"
    for name, path in (("output", folder), ("csv", csv)):
        if path == "":
            raise UsageError(f"--{name} is empty; name a folder, or leave it out")
    if folder is not None and not to_stdout:
        if "json" in files:
            raise UsageError("--json and --output both say where the report goes; give one of them")
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output {folder} cannot be made: {error.strerror or error}") from error
        files = {"json": str(Path(folder) / default), **files}
    elif "json" not in files and not to_stdout:
        try:
            check_writable("json", default)
        except UsageError as error:
            note(f"the report is not saved here ({error}); say --json FILE to save it elsewhere")
        else:
            files = {"json": default, **files}
    return Outputs(files, csv, samples)


def _journal(plan: "AuditPlan", files: dict[str, str], resume: bool, named: bool) -> "Journal | None":
    """Beside the report, where there is one: what is measured is kept as it is measured.

    Where another audit writes that report now, and the user did not name it, this one takes the next free name. The
    first rank's journal is that of all; one on a machine that does not see it keeps nothing.
    """
    from lsa_cli import distributed
    from lsa_cli.auditing.journal import Journal

    journal: list[Journal | None] = []
    restarted = distributed.restarted()

    def folder() -> Path | None:
        journal.append(_first_journal(plan, files, resume, restarted, named))
        return journal[0].folder if journal[0] is not None else None

    place = distributed.first(folder)
    if journal or place is None or not place.is_dir():
        return journal[0] if journal else None
    return Journal.of_first_rank(place)


def _first_journal(
    plan: "AuditPlan", files: dict[str, str], resume: bool, restarted: bool, named: bool
) -> "Journal | None":
    """restarted: torchrun has started the ranks again, and they go on where there is something to go on from."""
    from lsa_cli.auditing.journal import Journal, JournalInUse
    from lsa_cli.auditing.provenance import identity_of

    report = files.get("json")
    if report is None or (Path(report).exists() and not Path(report).is_file()):
        return None  # a pipe or a device has nothing beside it
    for number in count(2):
        folder = Path(f"{files['json']}.journal")
        try:
            journal = Journal(folder, identity_of(plan), resume or (restarted and folder.is_dir()))
        except JournalInUse:
            if named:
                raise
            files["json"] = str(Path(report).with_suffix(f".{number}.json"))
        else:
            break
    if files["json"] != report:
        note(f"another audit writes {report} now; this one writes {files['json']}")
    return journal


def _plan(checkpoint: str, given: "AuditSettings", config: str | None, verbose: bool, whole: bool) -> "AuditPlan":
    """whole: all samples unless a limit is given."""
    from lsa_cli import distributed
    from lsa_cli.auditing.plan import make_plan
    from lsa_cli.config import configurations, merge

    files = configurations(config, checkpoint)
    for name, _ in files if verbose or config is None else ():
        note(f"settings from {name}")
    settings, origin = merge(("option", given), *files)
    if whole and settings.limit is None:
        settings = settings.model_copy(update={"limit": "all"})
    plan = distributed.agreed(lambda: make_plan(checkpoint, settings, origin, say=note))
    if verbose:
        for message in plan.notes:
            note(message)
        note(
            f"{plural(len(plan.layers), 'layer')}, batches of {plan.batch_size}, {plan.device}, {plural(plan.threads, 'thread')}"
        )
    return plan


def _run(
    run: "Callable[..., AuditReport]", plan: "AuditPlan", outputs: "Outputs", journal: "Journal | None",
    github: bool | None, *, to_stdout: bool, quiet: bool,
) -> "AuditReport":  # fmt: skip
    """Run; the JSON is on disk after every attack, every other file at the end, interrupted or not.

    A complete report that stands there is replaced by a complete one alone, see `partial_outputs`.
    """
    from lsa_cli.cli.memory import keep_freed_memory
    from lsa_cli.files import is_irregular
    from lsa_cli.report.exporters import Outputs

    partly = partial_outputs(outputs)
    latest: list[AuditReport] = []

    def keep(report: "AuditReport") -> None:
        latest[:] = [report]
        path = partly.files.get("json")
        if path is not None and report.status == "running" and not is_irregular(path):  # a pipe gets one report
            Outputs({"json": path}).write(report)

    keep_freed_memory()
    try:
        with progress_bar(not quiet) as progress, foreign_code():
            report = run(plan, progress=progress, on_update=keep)
    except BaseException as error:
        launch.let_save()
        if journal is not None and isinstance(error, LsaError) and error.exit_code == EXIT_USAGE:
            journal.remove()  # the next run will be another one
            journal = None
        if latest:
            _save_part(latest[0], outputs, partly, journal, github, error, to_stdout)
        if journal is not None:
            journal.close()
        raise
    outputs.write(report)
    remove_partial(outputs)
    tell_github(report, outputs.files, github)
    if journal is not None:
        journal.remove()
    return report


def _save_part(
    report: "AuditReport", outputs: "Outputs", partly: "Outputs", journal: "Journal | None", github: bool | None,
    error: BaseException, to_stdout: bool,
) -> None:  # fmt: skip
    """Save what was measured before the audit ended early, and say where."""
    try:
        partly.write(report)
        tell_github(report, partly.files, github)
    except LsaError as second:
        note(str(second))
        return
    if to_stdout and isinstance(error, KeyboardInterrupt):
        emit(report.to_json())
    elif partly.files:
        kept = "" if partly is outputs else f"; {outputs.files['json']} is a complete report and stays as it was"
        again = "; the same command with --resume goes on from there" if journal is not None else ""
        note(f"what was measured is saved: {', '.join(partly.paths())}{kept}{again}")


def _show_plan(plan: "AuditPlan") -> None:
    from lsa_cli.auditing.cost import estimate_seconds
    from lsa_cli.auditing.outcome import rule_in_words, settings_of
    from lsa_cli.auditing.provenance import data_of, subject_of

    subject, data = subject_of(plan), data_of(plan)
    lines = [
        f"checkpoint  {subject.checkpoint}" + (f"  sha256 {subject.sha256[:12]}" if subject.sha256 else ""),
        f"model       {subject.architecture}, {subject.parameters:,} parameters, {len(subject.class_names)} classes",
        f"input       {subject.input_shape}, range {subject.input_range}",
        f"data        {data.source}, {data.n:,} of {data.available:,} samples ({data.selection}), {data.transform}",
        f"threat      {plan.threat.norm} eps {plan.eps_text} ({plan.eps_origin})",
    ]
    for what, several in (("attack", plan.attacks), ("cascade", plan.cascade), ("noise", plan.noises)):
        for named in several:
            settings = ", ".join(
                f"{key}={setting_as_text(key, value)}" for key, value in settings_of(named.attack).items()
            )
            lines.append(f"{what:11} {named.label}  {settings}")
    lines.append(f"layers      {len(plan.layers)}: {', '.join(layer.name for layer in plan.layers) or 'none'}")
    lines.append(f"rule        {plan.measure_name}, {rule_in_words(plan.rule, True)}")
    lines.append(
        f"device      {plan.device}, {plural(plan.threads, 'thread')}, batches of {plan.batch_size}, seed {plan.seed}"
    )
    lines += [f"gate        {metric} {limit.direction} {limit.value:g}" for metric, limit in plan.limits.items()]
    lines += [f"note        {message}" for message in plan.notes]
    lines += [f"warning     {warning.message}" for warning in plan.warnings]
    lines.append(
        f"estimate    {_duration(estimate_seconds(plan))}, from one timed batch; nothing was attacked or written"
    )
    emit("\n".join(map(printable, lines)) + "\n")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
