"""The report on a terminal or in a log file: the verdict first, then the tables that explain it."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from lsa_cli.report import view
from lsa_cli.report.answers import next_step
from lsa_cli.report.curves import expected_robustness
from lsa_cli.report.facts import facts
from lsa_cli.report.gate import decision
from lsa_cli.report.origin import is_of_others
from lsa_cli.report.ranking import strongest
from lsa_cli.report.schema import AuditReport, Evidence, GateResult
from lsa_cli.report.text import (
    QUICK_LOOK,
    between,
    draws_text,
    estimate_text,
    evidence_text,
    interval,
    metric_text,
    percent,
    proof_text,
)
from lsa_cli.wording import eps_as_text, plural

_CLASSES = 20
_LAYERS = 40
_BAR = 16
_FOLDED = 14
_GAP = 3  # between columns
_FOLDING = ("name", "attack", "prose")
_STYLES = {"": "", "good": "green", "warn": "yellow", "bad": "bold red"}


def print_report(report: AuditReport, console: Console) -> None:
    """Print the report. Long tables are cut; the saved report has the rest."""
    for part in (_header(report), _verdict(report)):
        console.print(part)
        console.print()
    print_tables([table for table in _tables(report) if table is not None], console)
    for curve in report.curves:
        points = "  ".join(f"{eps_as_text(point.eps)}: {percent(point.robust.value)}" for point in curve.points)
        expected = expected_robustness(curve, report.protocol.threat.eps)
        mean = "" if expected is None else f"   expected robustness {percent(expected)}"
        console.print(Text(f"Robustness curve, {curve.attack}   {points}   R&G score {curve.score:.1f}{mean}"))
    if report.curves:
        console.print()
    for metric in report.metrics:
        console.print(Text(f"{metric_text(metric)}; {metric.meaning}"))
    if report.metrics:
        console.print()
    for warning in report.warnings:
        console.print(Text.assemble(("Warning ", "bold yellow"), f"({warning.code}): {warning.message}"))
    print_gates(report.gates, console)


def _tables(report: AuditReport) -> Iterator[view.Table | None]:
    yield view.attacks(report)
    yield view.cascade(report)
    found, top = view.scanned(report), strongest(report)
    if found:
        yield view.layers(report, top if top is not None and top.layers is not None else found[0][0], _LAYERS)
    if len(found) > 1:
        yield view.layer_means(report).first(_LAYERS)
    classes = view.classes(report)
    yield classes.first(_CLASSES) if classes is not None else None


def print_gates(results: Sequence[GateResult], console: Console) -> None:
    """A line for each limit: whether it holds, and the number that decides."""
    words = {"held": "held", "breached": "BREACHED", "undecided": "NOT DECIDED"}
    for gate in results:
        style = "green" if gate.passed else "bold red" if gate.severity == "error" else "bold yellow"
        which = "Gate " if gate.severity == "error" else "Gate (warning) "
        word = "not measured" if gate.allowed_unmeasured else words[gate.state]
        console.print(Text.assemble(which, (word, style), f": {gate.message}"))


def print_decision(results: Sequence[GateResult], console: Console) -> None:
    """The last line of an output with limits: PASSED, FAILED or NOT DECIDED."""
    line = decision(results)
    style = {"P": "bold green", "F": "bold red", "N": "bold yellow"}[line[0]]
    console.print(Text(line, style=style), soft_wrap=not console.is_terminal)  # one line, so that grep finds it


def one_line(report: AuditReport) -> str:
    """The verdict in one line, for --quiet and logs."""
    verdict, threat = report.verdict, report.protocol.threat
    robust = "not measured" if verdict.robust is None else f"{percent(verdict.robust.value)} {interval(verdict.robust)}"
    robust, bound = f"robust accuracy {robust}", "" if verdict.robust is None else ", upper bound"
    if between(verdict):
        robust, bound = between(verdict), ""
    failed = [gate.metric for gate in report.failed_gates]
    gates = "" if not report.gates else f"; gates {'not held: ' + ', '.join(failed) if failed else 'held'}"
    others = [part for part in report.protocol.settings_from.get("gate", "").split(", ") if is_of_others(part)]
    gates += f" (limits set by {', '.join(others)})" if gates and others else ""
    state = "" if report.status == "complete" else f" ({report.status})"
    source = f" set by {threat.origin}" if is_of_others(threat.origin) else ""
    estimate = "" if verdict.estimate is None else f"; full cascade {estimate_text(verdict.estimate)}"
    meaning = f"; {verdict.meaning}" if verdict.meaning else ""
    return (
        f"{report.subject.checkpoint}{state}: {_doubts(report)}{robust} ({threat.norm} {threat.text}{source}, "
        f"n={verdict.clean.n}{bound}), clean {percent(verdict.clean.value)}{estimate}{meaning}{gates}"
    )


def _doubts(report: AuditReport) -> str:
    """The verdict of the evidence and its findings, in front of the number; empty for trusted."""
    evidence = report.evidence
    if evidence is None or evidence.verdict == "trusted":
        return ""
    return f"{evidence_text(evidence)}, "


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _header(report: AuditReport) -> RenderableType:
    grid = _grid()
    for fact in facts(report):
        if not fact.detail:
            grid.add_row(fact.name, Text(fact.text))
    return grid


def _verdict(report: AuditReport) -> RenderableType:
    verdict, top = report.verdict, strongest(report)
    grid = _grid()
    if report.status != "complete":
        grid.add_row("status", Text(f"{report.status}: this shows what was measured", style="bold red"))
    if report.evidence is not None and report.evidence.findings:
        _add_evidence(grid, report.evidence)
    if between(verdict):
        grid.add_row("verdict", Text(between(verdict), style="bold"))
    if verdict.proof is not None:
        grid.add_row("proven", Text(proof_text(verdict)))
    if verdict.robust is not None:
        text = Text.assemble(
            (percent(verdict.robust.value), "bold"),
            f" {interval(verdict.robust)}  n = {verdict.robust.n:,}, upper bound, worst of {', '.join(verdict.attacks)}",
        )
        grid.add_row(Text("robust accuracy", style="bold"), text)
        if verdict.meaning:
            grid.add_row("in words", Text(verdict.meaning))
    else:
        grid.add_row("robust accuracy", Text(verdict.statement))
    if verdict.draws is not None:
        grid.add_row("", Text(draws_text(verdict.draws)))
    if verdict.estimate is not None:
        grid.add_row("full cascade", Text(estimate_text(verdict.estimate)))
    grid.add_row("clean accuracy", Text(f"{percent(verdict.clean.value)} {interval(verdict.clean)}"))
    if verdict.clean_draws is not None:
        grid.add_row("", Text(draws_text(verdict.clean_draws)))
    if verdict.class_summary is not None and verdict.class_summary.worst_class is not None:
        worst = next(row for row in verdict.classes if row.name == verdict.class_summary.worst_class)
        grid.add_row(
            "worst class",
            Text(f"{worst.name}: {percent(worst.robust.value)} {interval(worst.robust)}  n = {worst.robust.n}"),
        )
    if top is not None and top.layers is not None:
        grid.add_row(
            "vulnerable layers",
            Text(f"{', '.join(top.layers.mvl) or '-'}  under {top.name}; {top.layers.mvl_rule}"),
        )
    if report.evidence is not None and not report.evidence.findings:
        _add_evidence(grid, report.evidence)
    if report.not_run:
        grid.add_row("not run", Text(f"{', '.join(report.not_run)}: {report.why_not_run}", style="yellow"))
    grid.add_row("next step", Text(str(next_step(report))))
    return grid


def _add_evidence(grid: Table, evidence: Evidence) -> None:
    """ "trusted" has no colour: it is no proof."""
    style = {"trusted": "", "quick look": "yellow", "doubtful": "yellow", "invalid": "bold red"}[evidence.verdict]
    made = "  " + ", ".join(
        plural(len(rows), noun) for noun, rows in (("check", evidence.checks), ("finding", evidence.findings))
    )
    why = f"; {QUICK_LOOK}" if evidence.verdict == "quick look" else ""
    grid.add_row("evidence", Text.assemble((evidence.verdict, style), made, why))
    for statement in evidence.statements:
        grid.add_row("", Text(statement))
    for finding in evidence.findings:
        grid.add_row("", Text(f"{finding.code}: {finding.message}; {finding.advice}", style=style))


class _Fitting:
    """A table without the columns for which the terminal is too narrow. left_out: the titles of these columns, once drawn."""

    def __init__(self, table: view.Table, tight: bool) -> None:
        self.table, self.tight = table, tight
        self.left_out: list[str] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns, left_out = self.table.columns, []
        room = sum(_width_needed(self.table, place) + _GAP for place in range(len(columns))) - 1
        for place in sorted(range(len(columns)), key=lambda place: -columns[place].spare):
            if not columns[place].spare or room <= options.max_width:
                break
            room -= _width_needed(self.table, place) + _GAP
            left_out.append(place)
        self.left_out = [columns[place].title for place in left_out if columns[place].kind != "bar"]
        yield _drawn(self.table.chosen(place not in left_out for place in range(len(columns))), self.tight)


def _width_needed(table: view.Table, place: int) -> int:
    """The width at which nothing in the column is cut. A column that folds may be as narrow as _FOLDED."""
    column = table.columns[place]
    if column.kind == "bar":
        return _BAR
    width = max(cell_len(text) for text in (column.title, *(view.text_of(row[place]) for row in table.rows)))
    return min(width, _FOLDED) if column.kind in _FOLDING else width


def _drawn(table: view.Table, tight: bool) -> Table:
    drawn = Table(
        box=None if tight else box.SIMPLE_HEAD, pad_edge=False, padding=(0, 3 if tight else 1, 0, 0 if tight else 1)
    )
    for column in table.columns:
        folds = column.kind in _FOLDING
        drawn.add_column(
            Text(column.title), justify="right" if column.kind == "number" else "left", no_wrap=not folds,
            overflow="fold" if folds else "ellipsis", style="dim" if column.kind == "prose" else "",
        )  # fmt: skip
    for place, row in enumerate(table.rows):
        drawn.add_row(*(_cell(cell, place in table.marked) for cell in row))
    return drawn


def _cell(cell: view.Cell, marked: bool) -> Text:
    if isinstance(cell, view.Bar):
        return Text("█" * round(_BAR * cell.share), style="red" if marked else "cyan")
    return Text(view.text_of(cell), style=_STYLES[cell.tone] if isinstance(cell, view.Mark) else "")


def print_table(table: view.Table, console: Console) -> None:
    """A table under its title and above its notes, which wrap at the terminal's width, not at the table's."""
    print_tables([table], console)


def print_tables(tables: Iterable[view.Table], console: Console, tight: bool = False) -> None:
    """Tables under their titles, and above their notes.

    tight: without the lines around a table and below its head; the columns that are left out are named once, below all tables.
    """
    left_out: list[str] = []
    for table in tables:
        console.print(Text(f"{table.title} ({table.caption})" if table.caption else table.title, style="bold"))
        fitting = _Fitting(table.brief().filled(), tight)
        console.print(fitting)
        left_out += fitting.left_out
        if not tight:
            _name(left_out, console)
            left_out = []
        for note in table.notes:
            console.print(Text(note, style="dim"))
        console.print()
    _name(left_out, console)


def _name(left_out: Iterable[str], console: Console) -> None:
    titles = ", ".join(dict.fromkeys(left_out))
    if titles:
        console.print(Text(f"columns left out because the terminal is narrow: {titles}", style="dim"))
