"""Run an audit and save its report, complete or partial. A partial report never replaces a complete one."""

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


def complete_report(path: str | None) -> "AuditReport | None":
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
    """A quick audit does not replace the report of a full one: it changes `files` to write NAME.quick.json. If the user
    named the file, it is replaced, with a note."""
    before = complete_report(files.get("json"))
    if before is None or plan.settings.preset != "quick" or before.protocol.settings.get("preset") == "quick":
        return
    path = Path(files["json"])
    attacks = ", ".join(before.verdict.attacks) or "no attack"
    what = f"{path} is the report of a fuller audit ({before.data.n:,} samples, {attacks}, {before.created})"
    if named:
        note(f"{what}; this quick audit replaces it")
        return
    files["json"] = str(path.with_suffix(".quick.json"))
    note(f"{what} and is kept; this quick audit is saved as {files['json']}")


def partial_outputs(outputs: "Outputs") -> "Outputs":
    """The files of a partial report: NAME.partial.json and so on where a complete report exists, otherwise the files
    themselves. Files for CI servers are always of this run: old results there would pass for new ones."""
    return outputs.beside() if complete_report(outputs.files.get("json")) is not None else outputs


def remove_partial(outputs: "Outputs") -> None:
    """Remove the partial report of an earlier run, once the complete one is saved."""
    part = outputs.beside().files.get("json")
    found = _report_at(part)
    if part is not None and found is not None and found.status != "complete":
        Path(part).unlink()


def finished(plan: "AuditPlan", outputs: "Outputs") -> "AuditReport | None":
    """For --resume: the report of this very audit, where it is complete and no journal is left, with its limits decided anew.

    So a job that is started again after its end ends as it did. Raises UsageError if its code or its data have changed.
    """
    from lsa_cli.auditing.provenance import changed_since, finished_report, has_settings_of
    from lsa_cli.report.gate import check

    path = outputs.files.get("json")
    before = complete_report(path)
    if before is None or Path(f"{path}.journal").exists():
        return None
    changed = changed_since(before, plan) if has_settings_of(before, plan) else []
    if changed:
        raise UsageError(
            f"--resume: {path} is complete, but of another {', '.join(changed)}; leave --resume out to audit again"
        )
    report = finished_report(plan, Path(str(path)))
    if report is None:
        return None
    report.gates = check(report, plan.limits)
    note(f"{path} is the complete report of this audit: nothing is left to resume")
    return report


# ---- the journal ------------------------------------------------------------------------------------------


def journal_of(plan: "AuditPlan", files: dict[str, str], resume: bool, named: bool) -> "Journal | None":
    """The journal beside the report, where there is one.

    If another audit is writing that report, and the user did not name it, this one takes the next free name. All ranks use
    the first rank's journal; a rank on a machine without access to it has none.
    """
    from lsa_cli import distributed
    from lsa_cli.auditing.journal import Journal

    is_first, restarted = distributed.rank() == 0, distributed.restarted()
    own = distributed.agreed(lambda: _first_journal(plan, files, resume, restarted, named) if is_first else None)
    folder = distributed.gather_objects(None if own is None else own.folder)[0]
    return own if is_first or folder is None or not folder.is_dir() else Journal.of_first_rank(folder)


def _first_journal(
    plan: "AuditPlan", files: dict[str, str], resume: bool, restarted: bool, named: bool
) -> "Journal | None":
    """restarted: torchrun has started the ranks again, so they resume from a journal that exists."""
    from lsa_cli.auditing.journal import Journal, JournalInUse
    from lsa_cli.auditing.provenance import identity_of

    report = files.get("json")
    if report is None or is_irregular(report):
        return None  # a pipe or a device has no journal
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
        note(f"another audit is writing {report}; this one writes {files['json']}")
    return journal


# ---- run and save ------------------------------------------------------------------------------------------


def run_and_save(
    run: "Callable[..., AuditReport]", plan: "AuditPlan", outputs: "Outputs", journal: "Journal | None",
    github: bool | None, *, to_stdout: bool, quiet: bool,
) -> "AuditReport":  # fmt: skip
    """Run the audit. The JSON report is saved while it runs, every other file at its end, also if it is interrupted.

    Only a complete report replaces a complete one, see `partial_outputs`.
    """
    from lsa_cli.cli.memory import keep_freed_memory
    from lsa_cli.report.outputs import Outputs

    partly = partial_outputs(outputs)
    latest: list[AuditReport] = []

    def keep(report: "AuditReport") -> None:
        latest[:] = [report]
        path = partly.files.get("json")
        if (
            path is not None and report.status == "running" and not is_irregular(path)
        ):  # a pipe gets only the last report
            Outputs({"json": path}).write(report)

    keep_freed_memory()
    try:
        with progress_bar(not quiet) as progress, foreign_code():
            report = run(plan, progress=progress, on_update=keep)
    except BaseException as error:
        launch.let_save()
        if journal is not None and isinstance(error, LsaError) and error.exit_code == EXIT_USAGE:
            journal.remove()  # the next run has other settings
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
    """Save what was measured before the audit broke, and say where."""
    try:
        partly.write(report)
        tell_github(report, partly.files, github)
    except LsaError as second:
        note(str(second))
        return
    if to_stdout and isinstance(error, KeyboardInterrupt):
        emit(report.to_json())
    elif partly.files:
        kept = "" if partly is outputs else f"; {outputs.files['json']} is a complete report and is kept"
        again = "; to continue, run the same command with --resume" if journal is not None else ""
        note(f"what was measured is saved: {', '.join(partly.paths())}{kept}{again}")
