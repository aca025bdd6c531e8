"""The problems in a report: SARIF, GitHub and GitLab show them beside the code.

A limit that holds is no problem. Rule names are stable: they are made of what was limited or of the finding's code.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lsa_cli.report.limits import find_metric
from lsa_cli.report.origin import BESIDE
from lsa_cli.report.ranking import strongest
from lsa_cli.report.schema import AuditReport, GateResult
from lsa_cli.report.text import number

Level = Literal["error", "warning", "note"]
Kind = Literal["layer", "class", ""]

_WHAT = {
    "gate": "A limit that does not hold, or that is not decided",
    "evidence": "A reason to doubt the robust accuracy",
    "warning": "A warning about the audit",
    "audit": "The audit is not complete",
    "layer": "A layer whose output moves most when the input is perturbed",
}


@dataclass(frozen=True)
class Problem:
    """rule: its stable name. about: the metric, code or layer it is about. kind: what `about` is, if it has a place
    inside the network: "layer" or "class"."""

    rule: str
    level: Level
    message: str
    about: str
    kind: Kind = ""

    def what(self) -> str:
        """The rule in words."""
        family, _, rest = self.rule.partition("-")
        return f"{_WHAT[family]}: {rest.replace('-', ' ')}"


def problems(report: AuditReport) -> list[Problem]:
    """Errors first, then warnings, then notes; each in the report's order."""
    order: tuple[Level, ...] = ("error", "warning", "note")
    return sorted(_problems(report), key=lambda problem: order.index(problem.level))


def _problems(report: AuditReport) -> Iterator[Problem]:
    if report.status != "complete":
        message = f"the audit is not complete (status: {report.status}); it shows what was measured"
        yield Problem("audit-incomplete", "error", message, "status")
    for gate in report.gates:
        if not gate.passed:
            yield _of_gate(gate)
    if report.evidence is not None:
        for finding in report.evidence.findings:
            level: Level = "error" if finding.level == "invalid" else "warning"
            message = f"evidence {finding.level}: {finding.message}; {finding.advice}"
            yield Problem(f"evidence-{finding.code}", level, message, finding.code)
    for warning in report.warnings:
        yield Problem(f"warning-{warning.code}", "warning", warning.message, warning.message.partition(":")[0])
    if report.not_run:
        message = f"not run, as {report.why_not_run}: {', '.join(report.not_run)}"
        yield Problem("audit-not-run", "warning", message, "budget")
    top = strongest(report)
    if top is not None and top.layers is not None:
        means = {row.name: row.mean for row in top.layers.rows}
        for name in top.layers.mvl:
            message = (
                f"most vulnerable layer under {top.name}: {name}, mean {report.protocol.measure} {number(means[name])}"
            )
            yield Problem("layer-most-vulnerable", "note", message, name, "layer")


def _of_gate(gate: GateResult) -> Problem:
    metric = find_metric(gate.metric)
    if metric is not None and metric.family in ("layer", "class") and metric.names:
        kind: Kind = "layer" if metric.family == "layer" else "class"
        return Problem(f"gate-{metric.family}", gate.severity, gate.message, metric.target, kind)
    family = gate.metric.partition(".")[0]
    return Problem(f"gate-{family}", gate.severity, gate.message, gate.metric)


def fingerprint(report: AuditReport, problem: Problem) -> str:
    """The same in every audit of a checkpoint at the same place, so that a known problem is not shown as new."""
    where = in_repository(report.subject.checkpoint)
    return hashlib.sha256("\0".join((where, problem.rule, problem.about)).encode()).hexdigest()


def place(report: AuditReport, problem: Problem) -> str:
    """The file at which a problem is shown: for a limit its lsa.yaml, else the checkpoint."""
    origin = report.protocol.settings_from.get("gate", "").removesuffix(BESIDE)
    of_gate = problem.rule.startswith("gate-") and origin.endswith((".yaml", ".yml"))
    return in_repository(origin if of_gate else report.subject.checkpoint)


def in_repository(path: str) -> str:
    """The path with slashes, relative to the working directory, which in a CI job is the repository; as it is if outside."""
    with suppress(ValueError):
        return Path(path).relative_to(Path.cwd()).as_posix()
    return (Path(path).as_posix() if Path(path).is_absolute() else path.removeprefix("./")) or "checkpoint"
