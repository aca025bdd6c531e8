"""Run an audit and save its report, whole or interrupted. A complete report is never replaced by a partial one."""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from lsa_cli.cli import launch
from lsa_cli.cli.console import emit, foreign_code, note, progress_bar
from lsa_cli.cli.outputs import tell_github
from lsa_cli.errors import EXIT_USAGE, LsaError, UsageError
from lsa_cli.files import is_irregular

if TYPE_CHECKING:
    from collections.abc import Callable

    from lsa_cli.auditing.journal import Journal
    from lsa_cli.auditing.plan import AuditPlan
    from lsa_cli.report.outputs import Outputs
    from lsa_cli.report.schema import AuditReport


def standing(path: str | None) -> "AuditReport | None":
    """The complete report at `path`, if there is one."""
    report = _report_at(path)
    return report if report is not None and report.status == "complete" else None


def _report_at(path: str | None) -> "AuditReport | None":
    from lsa_cli.report.storage import read_report

    if path is None or not Path(path).is_file():
        return None
    try:
        return read_report(path)
    except UsageError:
        return None


def spare_full_report(plan: "AuditPlan", files: dict[str, str], named: bool) -> None:
    """A quick audit leaves the report of a full one alone, and takes NAME.quick.json; where the user named the file, it
    says what it replaces. `files` is changed."""
    before = standing(files.get("json"))
    if before is None or plan.settings.preset != "quick" or before.protocol.settings.get("preset") == "quick":
        return
    path = Path(files["json"])
    attacks = ", ".join(before.verdict.attacks) or "no attack"
    what = f"{path} is the report of a fuller audit ({before.data.n:,} samples, {attacks}, {before.created})"
    if named:
        note(f"{what}, and this quick one replaces it")
        return
    files["json"] = str(path.with_suffix(".quick.json"))
    note(f"{what} and stays; this quick one is saved as {files['json']}")


def partial_outputs(outputs: "Outputs") -> "Outputs":
    """Where a report goes that is not complete: to NAME.partial.json and its like beside complete ones, else to the
    files themselves. What CI servers read is always of this run: old results there would pass for new ones."""
    return outputs.beside() if standing(outputs.files.get("json")) is not None else outputs


def remove_partial(outputs: "Outputs") -> None:
    """The complete report is saved, so that the part of it that an earlier run left is of no use."""
    part = outputs.beside().files.get("json")
    found = _report_at(part)
    if part is not None and found is not None and found.status != "complete":
        Path(part).unlink()


# ---- the journal ------------------------------------------------------------------------------------------


def journal_of(plan: "AuditPlan", files: dict[str, str], resume: bool, named: bool) -> "Journal | None":
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
    if report is None or is_irregular(report):
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


# ---- run and save ------------------------------------------------------------------------------------------


def run_and_save(
    run: "Callable[..., AuditReport]", plan: "AuditPlan", outputs: "Outputs", journal: "Journal | None",
    github: bool | None, *, to_stdout: bool, quiet: bool,
) -> "AuditReport":  # fmt: skip
    """Run; the JSON is saved while the audit runs, every other file at the end, interrupted or not.

    A complete report that stands there is replaced by a complete one alone, see `partial_outputs`.
    """
    from lsa_cli.cli.memory import keep_freed_memory
    from lsa_cli.report.outputs import Outputs

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
        again = "; to continue, run the same command with --resume" if journal is not None else ""
        note(f"what was measured is saved: {', '.join(partly.paths())}{kept}{again}")
