"""The report as Markdown that fits a pull-request comment: the verdict, then what explains it, tables cut short."""

import re
from collections.abc import Iterator

from lsa_cli.report import view
from lsa_cli.report.ranking import strongest
from lsa_cli.report.schema import AuditReport, Evidence
from lsa_cli.report.text import (
    QUICK_LOOK,
    between,
    draws_text,
    file_name,
    interval,
    metric_text,
    percent,
    proof_text,
)
from lsa_cli.wording import plural

_ROWS = 20
_PLAIN = re.compile(r"[-+\w .,%/\[\]]*")  # numbers and intervals: no markup can be made of these


def render(report: AuditReport) -> str:
    """GitHub-flavoured Markdown; long tables show their first 20 rows and say how many follow."""
    parts = [*_verdict(report), *_limits(report), *_notices(report)]
    for table in _tables(report):
        parts += [f"### {cell(table.title)}", *table_lines(table), ""]
    parts += [
        f"**{cell(metric.name)}**: {cell(metric_text(metric))}; {cell(metric.meaning)}\n" for metric in report.metrics
    ]
    return "\n".join([*parts, _footer(report), ""])


def _verdict(report: AuditReport) -> list[str]:
    subject, verdict, threat, evidence = report.subject, report.verdict, report.protocol.threat, report.evidence
    lines = [f"## lsa audit: {cell(file_name(subject.checkpoint))}", ""]
    if report.status != "complete":
        lines += [f"> **This audit is not complete (status: {report.status}).** It shows what was measured.", ""]
    if evidence is not None and evidence.verdict != "trusted":
        lines += [f"> **Evidence: {evidence.verdict}**{_about(evidence)}", ""]
        lines += [f"> **{f.code}**: {cell(f.message)}; {cell(f.advice)}\n" for f in evidence.findings]
    clean = f"clean accuracy {percent(verdict.clean.value)} {interval(verdict.clean)}"
    if verdict.robust is None:
        lines.append(f"Robust accuracy was not measured; {clean}.")
    else:
        lines.append(
            f"**Robust accuracy {percent(verdict.robust.value)}** {interval(verdict.robust)} "
            f"({threat.norm} {threat.text}, n = {verdict.robust.n}, upper bound); {clean}."
        )
    if between(verdict):
        lines.append(f"\n**Verdict: {between(verdict)}.**")
    if verdict.proof is not None:
        lines.append(f"\nProven: {cell(proof_text(verdict))}.")
    if verdict.draws is not None:
        lines.append(f"\n{draws_text(verdict.draws)}.")
    if verdict.meaning:
        lines.append(f"\nIn words: {cell(verdict.meaning)}.")
    return [*lines, "", cell(verdict.statement), ""]


def _limits(report: AuditReport) -> list[str]:
    """Those that do not hold first."""
    first = report.model_copy(update={"gates": sorted(report.gates, key=lambda gate: gate.passed)})
    table = view.limits(first)
    return [] if table is None else [*table_lines(table.brief()), ""]


def _notices(report: AuditReport) -> list[str]:
    lines = [f"> **Warning** ({warning.code}): {cell(warning.message)}\n" for warning in report.warnings]
    if report.evidence is not None and report.evidence.verdict == "trusted":
        lines += [f"Evidence: {report.evidence.verdict}{_about(report.evidence)}", ""]
        lines += [f"{cell(statement)}\n" for statement in report.evidence.statements]
    if report.not_run:
        lines += [f"> **Not run**, as {report.why_not_run}: {names(report.not_run)}", ""]
    return lines


def _tables(report: AuditReport) -> Iterator[view.Table]:
    attacks, cascade, classes = view.attacks(report), view.cascade(report), view.classes(report)
    if attacks is not None:
        yield attacks.without("median distance", "largest distance", "time", "kind")
    if cascade is not None:
        yield cascade.without("time")
    top = strongest(report)
    if top is not None and top.layers is not None:
        yield view.layers(report, top, _ROWS).brief()
    if classes is not None:
        yield classes.brief()


def table_lines(table: view.Table) -> list[str]:
    """The table with at most 20 rows, its caption above and its notes below, without bars."""
    table = table.without(*(column.title for column in table.columns if column.kind == "bar")).filled().first(_ROWS)
    lines = ["", *([f"{cell(table.caption)}", ""] if table.caption else [])]
    lines.append(f"| {' | '.join(cell(column.title) for column in table.columns)} |")
    lines.append(f"|{'|'.join('--:' if column.kind == 'number' else '---' for column in table.columns)}|")
    for row in table.rows:
        cells = [_text(each, column) for each, column in zip(row, table.columns, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    for note in table.notes:
        lines += ["", cell(note)]
    return lines


def _text(each: view.Cell, column: view.Column) -> str:
    text = view.text_of(each)
    if column.kind in ("name", "attack", "prose") or not _PLAIN.fullmatch(text):
        text = cell(text)
    return f"**{text}**" if isinstance(each, view.Mark) and each.tone in ("bad", "warn") else text


def _footer(report: AuditReport) -> str:
    subject, protocol, data = report.subject, report.protocol, report.data
    return (
        f"<sub>{report.tool}, {report.created}; {cell(subject.architecture)}, sha256 {(subject.sha256 or '-')[:12]}; "
        f"data {cell(data.source)}, {data.n} of {data.available} ({data.selection}); "
        f"seed {protocol.seed}, {cell(protocol.device)}, torch {protocol.versions.get('torch', '-')}</sub>"
    )


def _about(evidence: Evidence) -> str:
    return f" ({plural(len(evidence.checks), 'check')})" + (
        f": {QUICK_LOOK}" if evidence.verdict == "quick look" else ""
    )


def names(several: list[str]) -> str:
    """Names from outside in a row, as `cell` makes them safe."""
    return ", ".join(cell(name) for name in several) or "-"


def cell(text: str) -> str:
    """Text from outside, so that it can neither break a table nor become markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return "".join("\\" + c if c in "\\`*_[]|#@" else c for c in escaped)
