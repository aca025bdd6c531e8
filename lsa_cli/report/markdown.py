"""The report as Markdown that fits a pull-request comment: the verdict, then what explains it, tables cut short."""

from lsa_cli.report.schema import AuditReport, Evidence
from lsa_cli.report.tables import (
    QUICK_LOOK,
    draws_text,
    interval,
    metric_text,
    number,
    percent,
    settings_text,
    strongest,
    weakest_first,
)
from lsa_cli.wording import plural

_ROWS = 20


def render(report: AuditReport) -> str:
    """GitHub-flavoured Markdown; long tables show their first 20 rows and say how many follow."""
    subject, verdict, protocol = report.subject, report.verdict, report.protocol
    lines = [f"## lsa audit: {cell(subject.checkpoint.rpartition('/')[2])}", ""]
    if report.status != "complete":
        lines += [
            f"> **This audit is not complete (status: {report.status}).** It shows what was measured.",
            "",
        ]
    evidence = report.evidence
    if evidence is not None and evidence.verdict != "trusted":
        lines += [f"> **Evidence: {evidence.verdict}**{_about(evidence)}", ""]
        lines += [f"> **{f.code}**: {cell(f.message)}; {cell(f.advice)}\n" for f in evidence.findings]
    clean = f"clean accuracy {percent(verdict.clean.value)} {interval(verdict.clean)}"
    if verdict.robust is None:
        lines.append(f"Robust accuracy was not measured; {clean}.")
    else:
        lines.append(
            f"**Robust accuracy {percent(verdict.robust.value)}** {interval(verdict.robust)} "
            f"({protocol.threat.norm} {protocol.threat.text}, n = {verdict.robust.n}, upper bound); {clean}."
        )
    if verdict.draws is not None:
        lines.append(f"\n{draws_text(verdict.draws)}.")
    if verdict.meaning:
        lines.append(f"\nIn words: {cell(verdict.meaning)}.")
    lines += ["", cell(verdict.statement), ""]
    if report.gates:
        lines += ["| gate | limit | measured | |", "|---|---|---|---|"]
        for gate in sorted(report.gates, key=lambda gate: gate.passed)[:_ROWS]:
            state = "held" if gate.passed else f"**{gate.state.upper()}**"
            if not gate.passed and gate.severity == "warning":
                state += " (warning)"
            lines.append(
                f"| {cell(gate.metric)} | {gate.direction} {gate.limit:g} | {number(gate.measured, 4)} | {state} |"
            )
        lines += _more(len(report.gates))
    for warning in report.warnings:
        lines.append(f"> **Warning** ({warning.code}): {cell(warning.message)}")
        lines.append("")
    if evidence is not None and evidence.verdict == "trusted":
        lines += [f"Evidence: {evidence.verdict}{_about(evidence)}", ""]
    if report.not_run:
        lines += [f"> **Not run**, as the time was spent: {names(report.not_run)}", ""]
    lines += _attacks(report)
    lines += _cascade(report)
    top = strongest(report)
    if top is not None and top.layers is not None:
        lines += [
            f"### Layers under {cell(top.name)}",
            "",
            f"Most vulnerable: {names(top.layers.mvl)} ({top.layers.mvl_rule})",
            "",
        ]
        lines += [
            "| layer | mean | 95% interval | gain | amplification | stability | |",
            "|---|--:|---|--:|--:|--:|---|",
        ]
        lines += [
            f"| {cell(row.name)} | {number(row.mean)} | {_span(row.low, row.high)} | {number(row.gain, 2)} | "
            f"{number(row.amplification, 2)} | {percent(row.stability)} | {'MVL' if row.in_mvl else ''} |"
            for row in top.layers.rows[:_ROWS]
        ]
        lines += _more(len(top.layers.rows))
    lines += [
        f"**{cell(metric.name)}**: {cell(metric_text(metric))}; {cell(metric.meaning)}\n" for metric in report.metrics
    ]
    if verdict.classes:
        lines += [
            "### Classes, worst first",
            "",
            "| class | n | clean | robust | 95% interval | mostly taken for |",
            "|---|--:|--:|--:|---|---|",
        ]
        lines += [
            f"| {cell(row.name)} | {row.robust.n} | {percent(row.clean.value)} | {percent(row.robust.value)} | "
            f"{interval(row.robust)} | {cell(row.target or '')} |"
            for row in weakest_first(verdict.classes)[:_ROWS]
        ]
        lines += _more(len(verdict.classes))
    footer = (
        f"<sub>{report.tool}, {report.created}; {cell(subject.architecture)}, sha256 {(subject.sha256 or '-')[:12]}; "
        f"data {cell(report.data.source)}, {report.data.n} of {report.data.available} ({report.data.selection}); "
        f"seed {protocol.seed}, {cell(protocol.device)}, torch {protocol.versions.get('torch', '-')}</sub>"
    )
    return "\n".join([*lines, footer, ""])


def _about(evidence: Evidence) -> str:
    return f" ({plural(len(evidence.checks), 'check')})" + (
        f": {QUICK_LOOK}" if evidence.verdict == "quick look" else ""
    )


def _attacks(report: AuditReport) -> list[str]:
    if not report.outcomes:
        return []
    lines = [
        "### Attacks and noises",
        "",
        "| | settings | accuracy | 95% interval | success rate | most vulnerable layers |",
        "|---|---|--:|---|--:|---|",
    ]
    for outcome in report.outcomes:
        success = f"{percent(outcome.success.value)} of {outcome.success.n}"
        mvl = names(outcome.layers.mvl[:3]) if outcome.layers is not None else ""
        lines.append(
            f"| {cell(outcome.name)} | {cell(settings_text(outcome.settings))} | {percent(outcome.robust.value)} | "
            f"{interval(outcome.robust)} | {success} | {mvl} |"
        )
    return [*lines, ""]


def _cascade(report: AuditReport) -> list[str]:
    if not report.cascade:
        return []
    lines = [
        "### Cascade: each attack on what all before it left whole", "",
        "| attack | settings | tried | broke | left whole | 95% interval |", "|---|---|--:|--:|--:|---|",
    ]  # fmt: skip
    lines += [
        f"| {cell(stage.attack)} | {cell(settings_text(stage.settings))} | {stage.tried} | {stage.broke} | "
        f"{percent(stage.robust.value)} | {interval(stage.robust)} |"
        for stage in report.cascade
    ]
    return [*lines, ""]


def _more(count: int) -> list[str]:
    return ["", f"... and {count - _ROWS} more rows in the saved report", ""] if count > _ROWS else [""]


def names(several: list[str]) -> str:
    """Names from outside in a row, as `cell` makes them safe."""
    return ", ".join(cell(name) for name in several) or "-"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def cell(text: str) -> str:
    """Text from outside, so that it can neither break a table nor become markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return "".join("\\" + c if c in "\\`*_[]|#@" else c for c in escaped)
