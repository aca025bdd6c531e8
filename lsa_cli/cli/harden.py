"""`lsa harden`: settings -> plan -> train -> checkpoint, with the audits before and after."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lsa_cli.cli import launch, ranks
from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, emit, foreign_code, note, progress_bar
from lsa_cli.errors import EXIT_BROKEN
from lsa_cli.settings import AuditSettings, HardenSettings

if TYPE_CHECKING:
    from lsa_cli.hardening.files import Files
    from lsa_cli.hardening.plan import HardenPlan
    from lsa_cli.hardening.run import Hardened
    from lsa_cli.report.schema import AuditReport

OF_AUDITS = (
    *o.NETWORK, "limit", "norm", "eps", "measure", "resume", "device", "threads", "nproc", "seed", "config", "plugin", "quiet",
)  # fmt: skip


@o.takes(*OF_AUDITS, hardening=True, limit="Number of samples of both audits, stratified by class. Default: 1000.")
def harden(checkpoint: o.Checkpoint, given: AuditSettings) -> None:
    """Fine-tune a checkpoint so that it becomes more robust, and audit it before and after.

    Without options: adversarial training on the checkpoint's own training data, with a recipe that works for inputs of this
    kind. Beside the result FILE.pt stand FILE.last.pt, FILE.before.json, FILE.after.json, FILE.compare.json
    and FILE.log.jsonl.
    """
    from lsa_cli.config import find_config
    from lsa_cli.hardening.files import inputs_of, refuse_outputs
    from lsa_cli.hardening.unused import tell_unused

    settings, origin = o.with_config(given, checkpoint)
    for message in tell_unused(settings, origin):
        note(message)
    own = settings.harden or HardenSettings()
    out = Path(f"{Path(checkpoint).stem}.hard.pt" if own.out is None else own.out)
    inputs = inputs_of(checkpoint, find_config(given.config, checkpoint)[0], settings)
    launch.first(lambda: refuse_outputs(out, inputs, own.html))
    _train(checkpoint, settings, origin, out, bool(given.resume), own.html)


def _train(
    checkpoint: str,
    settings: AuditSettings,
    origin: dict[str, str],
    out: Path,
    resume: bool = False,
    html: str | None = None,
) -> None:
    """Plan, train and write; the table of before and after goes to stdout. Exit 3 where the training is stopped early."""
    from lsa_cli import distributed
    from lsa_cli.cli.memory import keep_freed_memory
    from lsa_cli.hardening.files import Files
    from lsa_cli.hardening.plan import make_harden_plan
    from lsa_cli.hardening.run import run_harden

    keep_freed_memory()
    quiet = bool(settings.quiet)
    say = (lambda message: None) if quiet else note
    with foreign_code():
        plan = distributed.agreed(lambda: make_harden_plan(checkpoint, settings, origin, say=note))
    for message in plan.notes:
        say(message)
    if ranks.writes() and out.is_file() and not resume:
        note(f"{out} of {_written(out)} and the files beside it will be replaced by those of this run")
    try:
        with progress_bar(not quiet) as progress, foreign_code():
            hardened = run_harden(plan, out, resume=resume, progress=progress, say=say)
    except KeyboardInterrupt:
        if ranks.writes():
            _tell_how_to_go_on(Files(out))
        raise
    if html is not None and ranks.writes():
        hardened.write_page(html)
    _tell(plan, hardened, html, quiet)
    if hardened.stopped is not None:
        note(f"stopped early: {hardened.stopped}")
        raise typer.Exit(EXIT_BROKEN)


def _written(path: Path) -> str:
    """When a file was written, in local time."""
    return datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def _tell_how_to_go_on(files: "Files") -> None:
    """After an interrupt."""
    if files.state.exists():
        note(f"the state is in {files.state}; to continue, run the same command with --resume")
    elif files.started.exists():
        note(
            "nothing is trained yet; to start again, run the same command; with --resume it keeps the audit before, if that "
            "was finished"
        )
    else:
        note("nothing is trained yet; to start again, run the same command")


def settings_of_hardening(checkpoint: str, given: AuditSettings, scans: bool) -> tuple[AuditSettings, dict[str, str]]:
    """For `lsa audit --harden`, before the audit: the settings, and where each comes from. What can be refused is refused now.

    scans: see `settings_before_audit`.
    """
    from lsa_cli import distributed
    from lsa_cli.hardening.layer_selection import settings_before_audit
    from lsa_cli.hardening.plan import make_harden_plan

    settings, origin = o.with_config(given.replace(split=None), checkpoint, say=lambda message: None)
    own, notes = settings_before_audit(settings.harden or HardenSettings(), scans)
    settings = settings.replace(harden=own)
    distributed.agreed(lambda: make_harden_plan(checkpoint, settings, origin))
    for message in notes:
        note(message)
    return settings, origin


def harden_after(
    report: "AuditReport", checkpoint: str, settings: AuditSettings, origin: dict[str, str], out: Path
) -> None:
    """Harden the most vulnerable layers of the report against its strongest attack. settings: of `settings_of_hardening`."""
    from lsa_cli.hardening.layer_selection import settings_after_audit

    own, notes = settings_after_audit(settings.harden or HardenSettings(), report)
    for message in notes:
        note(message)
    _train(checkpoint, settings.replace(harden=own), origin, out)


def _tell(plan: "HardenPlan", hardened: "Hardened", html: str | None, quiet: bool) -> None:
    from lsa_cli.hardening.run import epoch_in_words
    from lsa_cli.report.answers import command_for
    from lsa_cli.report.hardening import less_robust, one_line, print_hardening

    if hardened.incomparable is not None:
        page = "" if html is None else f", and no {html}"
        note(f"no comparison is written{page}: {hardened.incomparable}")
    worse = None if hardened.compared is None else less_robust(hardened.before, hardened.compared)
    if worse is not None:
        note(worse)
    if quiet:
        emit(one_line(hardened.before, hardened.after) + "\n")
        return
    print_hardening(hardened.before, hardened.after, hardened.compared, hardened.layers, data_console())
    held = epoch_in_words(hardened.best_epoch)
    if hardened.best_epoch:
        held += f" of {hardened.epochs}, the best by {plan.kind.chosen_by} on held-out samples"
    audits = "both audits" if hardened.compared is None else "both audits, their comparison"
    note(f"saved: {hardened.out} ({held}), and beside it the last epoch, {audits} and the log")
    if html is not None and hardened.compared is not None:
        note(f"written: {html}")
    note(f"to audit it: {command_for(hardened.after, 'audit', *_options_given(plan))}")


def _options_given(plan: "HardenPlan") -> list[str]:
    """The options of the command line that no report holds: a file of settings, and trust in a pickled network."""
    given = plan.given
    config = [] if given.config is None else ["--config", given.config]
    trust = ["--trust-code"] if plan.network.is_pickled and given.trust_code else []
    return [*trust, *config]
