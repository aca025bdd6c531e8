"""The report as metrics in the OpenMetrics text format: gauges only, which readers of Prometheus's older format accept too.

Shares are in [0, 1]; a number that does not exist has no line.
"""

from collections.abc import Mapping

from lsa_cli.report.ranking import strongest
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import AuditReport

_HELP = {
    "lsa_audit_info": "What was audited, and how; always 1.",
    "lsa_audit_complete": "1 if the audit is complete.",
    "lsa_audit_seconds": "Duration of the audit.",
    "lsa_audit_samples": "Audited samples.",
    "lsa_clean_accuracy_ratio": "Share of samples that are classified correctly; bound: value, or an end of its 95% interval.",
    "lsa_robust_accuracy_ratio": "Share of all samples that are classified correctly, by attack; worst-case: under all of them.",
    "lsa_proven_accuracy_ratio": "Share of all samples that are proven to be classified correctly within the budget.",
    "lsa_class_robust_accuracy_ratio": "The worst case, by class.",
    "lsa_layer_measure": "Mean comparison measure of a layer under the strongest attack.",
    "lsa_layer_most_vulnerable": "1 for a most vulnerable layer under the strongest attack.",
    "lsa_evidence_findings": "Reasons to doubt the robust accuracy, by level.",
    "lsa_gate_passed": "1 if the limit holds, 0 if it is breached or not decided.",
    "lsa_gate_limit": "The limit itself.",
}


def render(report: AuditReport) -> str:
    """Metric families in a fixed order, each line with the checkpoint as a label, and the end mark."""
    table = _Families({"checkpoint": report.subject.checkpoint})
    threat = report.protocol.threat
    table.add(
        "lsa_audit_info", 1, tool=report.tool, architecture=report.subject.architecture, created=report.created,
        sha256=report.subject.sha256 or "", norm=threat.norm, eps=threat.text, data=report.data.source,
        evidence=report.evidence.verdict if report.evidence is not None else "",
    )  # fmt: skip
    table.add("lsa_audit_complete", int(report.status == "complete"))
    table.add("lsa_audit_seconds", report.seconds)
    table.add("lsa_audit_samples", report.data.n)
    table.rate("lsa_clean_accuracy_ratio", report.verdict.clean)
    if report.verdict.robust is not None:
        table.rate("lsa_robust_accuracy_ratio", report.verdict.robust, attack="worst-case")
    if report.verdict.proven is not None:
        table.rate("lsa_proven_accuracy_ratio", report.verdict.proven)
    for outcome in report.outcomes:
        table.rate("lsa_robust_accuracy_ratio", outcome.robust, attack=outcome.name)
    for row in report.verdict.classes:
        table.rate("lsa_class_robust_accuracy_ratio", row.robust, **{"class": row.name})
    top = strongest(report)
    for layer in top.layers.rows if top is not None and top.layers is not None else ():
        table.add("lsa_layer_measure", layer.mean, layer=layer.name, measure=report.protocol.measure)
        table.add("lsa_layer_most_vulnerable", int(layer.in_mvl), layer=layer.name)
    if report.evidence is not None:
        for level in ("doubtful", "invalid"):
            count = sum(finding.level == level for finding in report.evidence.findings)
            table.add("lsa_evidence_findings", count, level=level)
    for gate in report.gates:
        table.add("lsa_gate_passed", int(gate.passed), metric=gate.metric, severity=gate.severity)
        table.add("lsa_gate_limit", gate.limit, metric=gate.metric, severity=gate.severity)
    return table.text()


class _Families:
    """Lines by family: the format requires the lines of a family in one block."""

    def __init__(self, common: Mapping[str, str]) -> None:
        self.common = common
        self.lines: dict[str, dict[str, float]] = {name: {} for name in _HELP}

    def add(self, name: str, value: float | None, **labels: str) -> None:
        if value is not None:
            pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in {**self.common, **labels}.items())
            self.lines[name][f"{name}{{{pairs}}}"] = value

    def rate(self, name: str, rate: Rate, **labels: str) -> None:
        for bound, value in (("value", rate.value), ("low", rate.low), ("high", rate.high)):
            self.add(name, value, **labels, bound=bound)

    def text(self) -> str:
        lines = []
        for name, values in self.lines.items():
            if values:
                unit = [f"# UNIT {name} {suffix}" for suffix in ("ratio", "seconds") if name.endswith(f"_{suffix}")]
                lines += [f"# TYPE {name} gauge", *unit, f"# HELP {name} {_HELP[name]}"]
                lines += [f"{series} {value:.10g}" for series, value in values.items()]
        return "\n".join([*lines, "# EOF", ""])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
