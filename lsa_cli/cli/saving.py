"""What becomes of the report that stands where a new one goes: a complete one is not lost to a lesser one unseen."""

from pathlib import Path
from typing import TYPE_CHECKING

from lsa_cli.cli.console import note
from lsa_cli.errors import UsageError

if TYPE_CHECKING:
    from lsa_cli.auditing.plan import AuditPlan
    from lsa_cli.report.exporters import Outputs
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
    if before is None or plan.settings.get("preset") != "quick" or before.protocol.settings.get("preset") == "quick":
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
