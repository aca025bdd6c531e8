"""`lsa audit`: settings -> plan -> run -> files, tables, exit code."""

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lsa_cli.cli import launch, ranks
from lsa_cli.cli import options as o
from lsa_cli.cli.boundary import boundary
from lsa_cli.cli.console import data_console, emit, foreign_code, note, print_to_stdout, tell_findings
from lsa_cli.cli.dry_run import show_plan
from lsa_cli.cli.harden import harden_after, settings_of_hardening
from lsa_cli.cli.outputs import audit_outputs, split_stdout
from lsa_cli.cli.saving import finished, journal_of, run_and_save, spare_full_report
from lsa_cli.errors import EXIT_GATE, EXIT_INTERRUPTED, UsageError
from lsa_cli.settings import AuditSettings
from lsa_cli.wording import plural

if TYPE_CHECKING:
    from lsa_cli.auditing.plan import AuditPlan
    from lsa_cli.report.outputs import Outputs
    from lsa_cli.report.schema import AuditReport


@o.takes()
def audit(checkpoint: o.Checkpoint, given: AuditSettings) -> None:
    """Audit a checkpoint: robust accuracy, most vulnerable layers and classes, under attacks and noise.

    A file that describes itself (such as sample_models/mnist_cnn.pt) needs no other option.
    The report is saved as NAME.audit.json (with --gate-only NAME.gate.json) in the working directory, or where --json
    says.
    """
    from lsa_cli.report.gate import is_breach

    began = time.monotonic()
    settings, origin = o.with_config(given, checkpoint)
    _, to_stdout = split_stdout(settings.files or {})
    _refuse_contradictions(given, settings, to_stdout)
    outputs = launch.first(lambda: _outputs(checkpoint, given, settings, to_stdout))
    with foreign_code():
        plan = _plan(checkpoint, settings, origin)
        scans = bool(plan.layers and plan.attacks)
        hardening = None if given.harden_to is None else settings_of_hardening(checkpoint, given, scans)
    if given.dry_run:
        show_plan(plan, time.monotonic() - began)
        return
    report = _run(plan, given, settings, outputs, to_stdout)
    _print(report, outputs, settings, to_stdout)
    breached = is_breach(report.gates) and not settings.exit_zero
    try:
        if given.harden_to is not None and hardening is not None:
            with boundary(), foreign_code() if to_stdout else nullcontext():  # stdout has only the JSON
                harden_after(report, checkpoint, *hardening, Path(given.harden_to))
    except typer.Exit as end:
        if not breached or end.exit_code == EXIT_INTERRUPTED:
            raise  # the audit is complete, and its exit code does not depend on the hardening
    finally:
        _print_decision(report, to_stdout)
    if breached:
        raise typer.Exit(EXIT_GATE)


def _refuse_contradictions(given: AuditSettings, settings: AuditSettings, to_stdout: bool) -> None:
    if given.dry_run and to_stdout:
        raise UsageError("--dry-run makes no report for --json -; leave one of them out")
    if settings.gate_only and (given.resume or given.harden_to is not None):
        which = "--resume needs a journal" if given.resume else "--harden needs the layers"
        raise UsageError(f"{which}, which --gate-only does not have; leave one of them out")


def _outputs(checkpoint: str, given: AuditSettings, settings: AuditSettings, to_stdout: bool) -> "Outputs":
    """The files to write. Raises UsageError for a file that cannot be written, or that would replace another one."""
    from lsa_cli.config import find_config
    from lsa_cli.data import location_of

    config = find_config(given.config, checkpoint)[0]
    named = (checkpoint, config, settings.data and location_of(settings.data), settings.baseline)
    read: list[str | Path] = [path for path in named if path is not None]
    others: list[Path] = []
    if given.harden_to is not None:
        from lsa_cli.hardening.files import Files, refuse_outputs

        refuse_outputs(Path(given.harden_to), read)
        others = Files(Path(given.harden_to)).all()
    outputs = audit_outputs(checkpoint, settings, to_stdout)
    if given.resume and "json" not in outputs.files:
        raise UsageError(
            "--resume needs a report file, because the journal is beside it; give --json FILE or --output DIR"
        )
    if not given.dry_run:
        outputs.check(read, others)
    return outputs


def _plan(checkpoint: str, settings: AuditSettings, origin: dict[str, str]) -> "AuditPlan":
    from lsa_cli import distributed
    from lsa_cli.auditing.early import attacks_that_run
    from lsa_cli.auditing.plan import make_plan

    plan = distributed.agreed(lambda: make_plan(checkpoint, settings, origin, say=note))
    if settings.verbose:
        for message in plan.network.notes:
            note(message)
        layers, threads = plural(len(plan.layers), "layer"), plural(plan.threads, "thread")
        note(f"{layers}, batches of {plan.batch_size}, {plan.network.device}, {threads}")
    attacks = attacks_that_run(plan) if settings.gate_only else plan.budget_attacks
    if settings.samples is not None and not attacks:
        raise UsageError("--samples has one row per attacked sample, and no attack runs; leave --samples out")
    return plan


def _run(
    plan: "AuditPlan", given: AuditSettings, settings: AuditSettings, outputs: "Outputs", to_stdout: bool
) -> "AuditReport":
    """Run the plan and write `outputs`; of several ranks the first one writes."""
    from lsa_cli import distributed
    from lsa_cli.auditing.early import decide_early
    from lsa_cli.auditing.run import run_audit

    if given.resume:
        done = distributed.first(lambda: finished(plan, outputs))
        if done is not None:
            if ranks.writes():
                outputs.write(done)
            return done
    named = "json" in (settings.files or {}) or bool(given.resume)
    if settings.gate_only:
        journal = None
        run = partial(decide_early, alpha=settings.alpha)
    else:
        if ranks.writes():
            spare_full_report(plan, outputs.files, named)
        journal = journal_of(plan, outputs.files, bool(given.resume), named)
        run = partial(run_audit, journal=journal)
    github = settings.github
    if not ranks.writes():
        outputs, github = type(outputs)({}, None, None), False
    return run_and_save(run, plan, outputs, journal, github, to_stdout=to_stdout, quiet=bool(settings.quiet))


def _print(report: "AuditReport", outputs: "Outputs", settings: AuditSettings, to_stdout: bool) -> None:
    """The report on stdout; on stderr findings and breached limits, where --quiet or --json - would hide them."""
    if to_stdout:
        emit(report.to_json())
    else:
        print_to_stdout(report, bool(settings.quiet))
    if settings.quiet or to_stdout:
        tell_findings(report)
    if not settings.quiet and "json" in outputs.files and ranks.writes():
        note(f"report saved: {', '.join(outputs.paths())}")
    for gate in report.gates:
        if not gate.passed and (settings.quiet or to_stdout):
            note(f"gate{', a warning' if gate.severity == 'warning' else ''}: {gate.message}")


def _print_decision(report: "AuditReport", to_stdout: bool) -> None:
    """The last line, if there are limits; on stderr if stdout has the JSON."""
    from lsa_cli.report.gate import decision
    from lsa_cli.report.terminal import print_decision

    if report.gates and to_stdout:
        note(decision(report.gates))
    elif report.gates:
        print_decision(report.gates, data_console())
