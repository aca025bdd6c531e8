"""The report as a section of a Hugging Face model card, with the metadata that puts its numbers on the model's page."""

from typing import Any

import yaml

from lsa_cli.report import view
from lsa_cli.report.markdown import cell, names, table_lines
from lsa_cli.report.ranking import strongest, weakest_first
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.text import between, data_name, file_name, percent

_CLASSES = 20


def render(report: AuditReport) -> str:
    """YAML between two rules, then Markdown: a README.md, or a part of one."""
    verdict, protocol = report.verdict, report.protocol
    table = view.summary(report, data_name(report.data.source))
    lines = [f"## {table.title}", ""]
    if report.status != "complete":
        lines += [f"> This audit is not complete (status: {report.status}); it shows what was measured.", ""]
    lines += [*table_lines(table)[1:], ""]
    rows = weakest_first(verdict.classes)
    if verdict.robust is not None:
        lines += [
            "Robust accuracy is an upper bound, for this threat model only: a stronger attack can find a lower value.", "",
        ]  # fmt: skip
    if between(verdict):
        lines += [f"Verdict: {between(verdict)}. No attack within the radius can find less than what is proven.", ""]
    if report.evidence is not None and report.evidence.findings:
        lines += [f"- {cell(f.code)}: {cell(f.message)}; {cell(f.advice)}" for f in report.evidence.findings] + [""]
    top = strongest(report)
    if top is not None and top.layers is not None:
        lines += [f"Most vulnerable layers under {cell(top.name)}: {names(top.layers.mvl)}.", ""]
    if rows:
        several = ", ".join(f"{cell(row.name)} {percent(row.robust.value)}" for row in rows[:_CLASSES])
        more = f" and {len(rows) - _CLASSES} more" if len(rows) > _CLASSES else ""
        lines += [f"Robust accuracy by class, worst first: {several}{more}.", ""]
    lines += [f"Measured by {report.tool} on {report.created[:10]}, seed {protocol.seed}.", ""]
    head = yaml.safe_dump(_metadata(report), sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{head}---\n\n" + "\n".join(lines)


def _metadata(report: AuditReport) -> dict[str, Any]:
    subject, verdict, threat = report.subject, report.verdict, report.protocol.threat
    metrics: list[dict[str, Any]] = []
    if verdict.clean.value is not None:
        metrics.append({"type": "accuracy", "name": "clean accuracy", "value": verdict.clean.value})
    if verdict.robust is not None and verdict.robust.value is not None:
        # Each metric has its own type: the page shows one metric per type.
        name = f"robust accuracy ({threat.norm}, eps {threat.text})"
        metrics.append({"type": "robust_accuracy", "name": name, "value": verdict.robust.value})
    if verdict.proven is not None and verdict.proof is not None and verdict.proven.value is not None:
        name = f"proven robust accuracy ({verdict.proof.threat})"
        metrics.append({"type": "proven_robust_accuracy", "name": name, "value": verdict.proven.value})
    dataset = {"type": data_name(report.data.source), "name": data_name(report.data.source)}
    if report.data.split:
        dataset["split"] = report.data.split
    file = file_name(subject.checkpoint)
    results = [{"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}]
    return {
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness"],
        "model-index": [{"name": file.rpartition(".")[0] or file or "model", "results": results if metrics else []}],
    }
