"""A report in a GitHub workflow: annotations, the step's summary, the step's outputs."""

import os
from collections.abc import Mapping

from lsa_cli.errors import RunError
from lsa_cli.files import open_without_waiting
from lsa_cli.report.markdown import render as markdown
from lsa_cli.report.problems import Level, Problem, place, problems
from lsa_cli.report.ranking import strongest
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.terminal import one_line
from lsa_cli.report.text import percent

_SUMMARY_LIMIT = 1024 * 1024  # bytes a step; GitHub drops a longer summary whole
_ANNOTATIONS = 10  # a level and step; GitHub drops the rest
_CUT = "\n\n*The rest does not fit in a step summary.*\n"


def in_workflow() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def tell(report: AuditReport, files: Mapping[str, str]) -> str:
    """Append the summary and the outputs to the workflow's files; return the annotations, one command per line.

    files: what was written, by format. Raises RunError when one of the workflow's files cannot be written.
    """
    _append("GITHUB_STEP_SUMMARY", summary(report, _size("GITHUB_STEP_SUMMARY")))
    _append("GITHUB_OUTPUT", outputs(report, files))
    return annotations(report)


def annotations(report: AuditReport) -> str:
    """Workflow commands for the errors and warnings, ten of each, and one notice with the verdict."""
    found = problems(report)
    lines = []
    levels: tuple[Level, ...] = ("error", "warning")
    for level in levels:
        some = [problem for problem in found if problem.level == level]
        shown = some if len(some) <= _ANNOTATIONS else some[: _ANNOTATIONS - 1]
        lines += [_command(report, problem) for problem in shown]
        if len(some) > len(shown):
            lines.append(f"::{level} title=lsa::{_data(f'and {len(some) - len(shown)} more in the saved report')}")
    return "\n".join([*lines, f"::notice title=lsa::{_data(one_line(report))}", ""])


def _command(report: AuditReport, problem: Problem) -> str:
    return (
        f"::{problem.level} file={_property(place(report, problem))},title={_property(f'lsa {problem.rule}')}::"
        f"{_data(problem.message)}"
    )


def summary(report: AuditReport, taken: int = 0) -> str:
    """The Markdown report, cut at the end of a line if it does not fit; the step has already written `taken` bytes."""
    text = markdown(report) + "\n"
    room = _SUMMARY_LIMIT - taken
    if len(text.encode()) <= room:
        return text
    kept = text.encode()[: max(0, room - len(_CUT))].decode(errors="ignore").rpartition("\n")[0]
    return kept + _CUT if kept else ""


def outputs(report: AuditReport, files: Mapping[str, str]) -> str:
    """`key=value` lines for later steps; a number that does not exist is empty."""
    verdict, top = report.verdict, strongest(report)
    failed = report.failed_gates
    values = {
        "status": report.status,
        "passed": str(not failed and report.status == "complete").lower(),
        "failed-gates": str(len(failed)),
        "robust-accuracy": _share(verdict.robust.value if verdict.robust else None),
        "robust-accuracy-low": _share(verdict.robust.low if verdict.robust else None),
        "robust-accuracy-text": percent(verdict.robust.value if verdict.robust else None),
        "clean-accuracy": _share(verdict.clean.value),
        "evidence": report.evidence.verdict if report.evidence else "",
        "worst-class": (verdict.class_summary.worst_class if verdict.class_summary else None) or "",
        "most-vulnerable-layers": ",".join(top.layers.mvl) if top is not None and top.layers is not None else "",
        "report": files.get("json", ""),
    }
    return "".join(f"{key}={' '.join(value.split())}\n" for key, value in values.items())


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _size(variable: str) -> int:
    path = os.environ.get(variable)
    return os.path.getsize(path) if path and os.path.exists(path) else 0


def _append(variable: str, text: str) -> None:
    path = os.environ.get(variable)
    if path:
        try:
            with open(path, "a", encoding="utf-8", newline="\n", opener=open_without_waiting) as file:
                file.write(text)
        except OSError as error:
            raise RunError(f"{variable} ({path}) could not be written: {error.strerror or error}") from error


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
