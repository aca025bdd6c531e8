"""The report on a terminal: the verdict first, then what explains it. Readable in a log file too."""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lsa_cli.report.gate import decision
from lsa_cli.report.schema import AttackOutcome, AuditReport, Evidence, GateResult
from lsa_cli.report.tables import (
    QUICK_LOOK,
    draws_text,
    estimate_text,
    interval,
    is_of_others,
    listed,
    metric_text,
    number,
    percent,
    settings_text,
    strongest,
    weakest_first,
)
from lsa_cli.wording import eps_as_text, plural

_CLASSES = 20
_LAYERS = 40
_BAR = 16
_FOLDED = 14
_BARS = " "  # the heading of the column with bars


def print_report(report: AuditReport, console: Console) -> None:
    """Print everything a reader needs to judge the model; long tables fold, the saved report has the rest."""
    parts = (_header, _verdict, _attacks, _cascade, _layers, _classes)
    for part in (make(report) for make in parts):
        if part is not None:
            console.print(part)
            console.print()
    for curve in report.curves:
        points = "  ".join(f"{eps_as_text(point.eps)}: {percent(point.robust.value)}" for point in curve.points)
        console.print(Text(f"Robustness curve, {curve.attack}   {points}   R&G score {curve.score:.1f}"))
    if report.curves:
        console.print()
    for metric in report.metrics:
        console.print(Text(f"{metric_text(metric)}; {metric.meaning}"))
    if report.metrics:
        console.print()
    for warning in report.warnings:
        console.print(Text.assemble(("Warning ", "bold yellow"), f"({warning.code}): {warning.message}"))
    print_gates(report.gates, console)


def print_gates(results: Sequence[GateResult], console: Console) -> None:
    """A line for each limit: whether it holds, and what that was read from."""
    words = {"held": "held", "breached": "BREACHED", "undecided": "NOT DECIDED"}
    for gate in results:
        style = "green" if gate.passed else "bold red" if gate.severity == "error" else "bold yellow"
        which = "Gate " if gate.severity == "error" else "Gate (warning) "
        console.print(Text.assemble(which, (words[gate.state], style), f": {gate.message}"))


def print_decision(results: Sequence[GateResult], console: Console) -> None:
    """The last line of an output with limits: PASSED, FAILED or NOT DECIDED."""
    line = decision(results)
    style = {"P": "bold green", "F": "bold red", "N": "bold yellow"}[line[0]]
    console.print(Text(line, style=style), soft_wrap=not console.is_terminal)  # one line for whoever greps


def one_line(report: AuditReport) -> str:
    """The verdict in one line, for --quiet and logs."""
    verdict, threat = report.verdict, report.protocol.threat
    robust = "not measured" if verdict.robust is None else f"{percent(verdict.robust.value)} {interval(verdict.robust)}"
    failed = [gate.metric for gate in report.gates if not gate.passed and gate.severity == "error"]
    gates = "" if not report.gates else f"; gates {'not held: ' + ', '.join(failed) if failed else 'held'}"
    others = [part for part in report.protocol.settings_from.get("gate", "").split(", ") if is_of_others(part)]
    gates += f" (limits set by {', '.join(others)})" if gates and others else ""
    state = "" if report.status == "complete" else f" ({report.status})"
    source = f" set by {threat.origin}" if is_of_others(threat.origin) else ""
    meaning = f"; {verdict.meaning}" if verdict.meaning else ""
    return (
        f"{report.subject.checkpoint}{state}: {_doubts(report)}robust accuracy {robust} ({threat.norm} {threat.text}{source}, "
        f"n={verdict.clean.n}, upper bound), clean {percent(verdict.clean.value)}{meaning}{gates}"
    )


def _doubts(report: AuditReport) -> str:
    """What the evidence says against the number, before it."""
    evidence = report.evidence
    if evidence is None or evidence.verdict == "trusted":
        return ""
    return evidence.verdict + (f" ({', '.join(f.code for f in evidence.findings)})" if evidence.findings else "") + ", "


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _header(report: AuditReport) -> RenderableType:
    subject, data, protocol = report.subject, report.data, report.protocol
    normalize = "none" if subject.mean is None else f"mean {listed(subject.mean)}, std {listed(subject.std or [])}"
    grid = _grid()
    rows = {
        "checkpoint": f"{subject.checkpoint}" + (f"  sha256 {subject.sha256[:12]}" if subject.sha256 else ""),
        "architecture": f"{subject.architecture}, {subject.parameters:,} parameters, input {'x'.join(map(str, subject.input_shape))}",
        "normalisation": normalize,
        "data": f"{data.source}"
        + (f" ({data.split})" if data.split else "")
        + f", {data.n:,} of {data.available:,} samples ({data.selection})",
        "images": data.transform,
        "threat": f"{protocol.threat.norm} eps {protocol.threat.text} ({protocol.threat.origin})",
        "attacked": protocol.attacked,
        "run": f"{protocol.device}, {plural(protocol.threads, 'thread')}, seed {protocol.seed}, torch {protocol.versions.get('torch', '-')}, "
        f"{report.tool}, {report.seconds:.1f} s",
    }
    for note in subject.notes:
        rows.setdefault("note", "")
        rows["note"] += ("; " if rows["note"] else "") + note
    for key, value in rows.items():
        grid.add_row(key, Text(value))
    return grid


def _verdict(report: AuditReport) -> RenderableType:
    verdict, top = report.verdict, strongest(report)
    grid = _grid()
    if report.status != "complete":
        grid.add_row("status", Text(f"{report.status}: this shows what was measured", style="bold red"))
    if report.evidence is not None and report.evidence.findings:
        _add_evidence(grid, report.evidence)
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
            Text(f"{', '.join(top.layers.mvl) or '-'}  under {top.name} ({top.layers.mvl_rule})"),
        )
    if report.evidence is not None and not report.evidence.findings:
        _add_evidence(grid, report.evidence)
    if report.not_run:
        grid.add_row("not run", Text(f"{', '.join(report.not_run)}: the time was spent", style="yellow"))
    return grid


def _add_evidence(grid: Table, evidence: Evidence) -> None:
    """No colour says "trusted": it is the absence of a reason for doubt, and no praise of the number."""
    style = {"trusted": "", "quick look": "yellow", "doubtful": "yellow", "invalid": "bold red"}[evidence.verdict]
    made = "  " + ", ".join(
        plural(len(rows), noun) for noun, rows in (("check", evidence.checks), ("finding", evidence.findings))
    )
    why = f"; {QUICK_LOOK}" if evidence.verdict == "quick look" else ""
    grid.add_row("evidence", Text.assemble((evidence.verdict, style), made, why))
    for finding in evidence.findings:
        grid.add_row("", Text(f"{finding.code}: {finding.message}; {finding.advice}", style=style))


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


class _Fitting:
    """A table without the columns, in this order, that the terminal is too narrow for; and a word on which those are."""

    def __init__(self, table: Table, spare: Sequence[str]) -> None:
        self.table, self.spare = table, spare

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table, left_out = self.table, []
        for name in self.spare:
            if _width_needed(table, console, options) <= options.max_width:
                break
            table = _without(table, name)
            left_out.append(name)
        yield table
        shown = [name for name in left_out if name != _BARS]
        if shown:
            yield Text(f"left out, for want of width: {', '.join(shown)}", style="dim")


def _without(table: Table, name: str) -> Table:
    kept = [column for column in table.columns if column.header != name]
    smaller = _table()
    for column in kept:
        smaller.add_column(
            column.header, justify=column.justify, overflow=column.overflow, no_wrap=column.no_wrap, style=column.style
        )
    for cells in zip(*(column.cells for column in kept), strict=True):
        smaller.add_row(*cells)
    return smaller


def _width_needed(table: Table, console: Console, options: ConsoleOptions) -> int:
    """Columns in which nothing is cut; those that fold may be as narrow as _FOLDED."""
    widest = Measurement.get(console, options.update(max_width=1000), table).maximum
    folding = [column for column in table.columns if column.overflow == "fold"]
    widths = [max(cell_len(str(cell)) for cell in (column.header, *column.cells)) for column in folding]
    return widest - sum(max(0, width - _FOLDED) for width in widths)


def _titled(title: str, table: RenderableType, notes: list[str] | None = None) -> RenderableType:
    """A table under its title and above its notes, which wrap at the terminal's width, not at the table's."""
    parts: list[RenderableType] = [Text(title, style="bold"), table]
    return Group(*parts, *(Text(note, style="dim") for note in notes or []))


def _attacks(report: AuditReport) -> RenderableType | None:
    if not report.outcomes:
        return None
    table = _table()
    table.add_column("attack", overflow="fold")
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("95%", justify="left", no_wrap=True)
    table.add_column("success", justify="right", no_wrap=True)
    table.add_column("median distance", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold", style="dim")
    for outcome in report.outcomes:
        distance = outcome.distance
        table.add_row(
            Text(outcome.name),
            percent(outcome.robust.value),
            Text(interval(outcome.robust)),
            f"{outcome.success.count}/{outcome.success.n}",
            f"{distance.norm} {number(distance.median)}" if distance.n else "-",
            f"{outcome.seconds:.1f} s",
            Text(settings_text(outcome.settings)),
        )
    return _titled(
        "Attacks and noises (accuracy: of all samples; success: of those right clean)",
        _Fitting(table, ("time", "settings", "median distance")),
    )


def _cascade(report: AuditReport) -> RenderableType | None:
    if not report.cascade:
        return None
    table = _table()
    table.add_column("attack", overflow="fold")
    table.add_column("tried", justify="right", no_wrap=True)
    table.add_column("broke", justify="right", no_wrap=True)
    table.add_column("left whole", justify="right", no_wrap=True)
    table.add_column("95%", justify="left", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold", style="dim")
    for stage in report.cascade:
        table.add_row(
            Text(stage.attack), f"{stage.tried}", f"{stage.broke}", percent(stage.robust.value),
            Text(interval(stage.robust)), f"{stage.seconds:.1f} s", Text(settings_text(stage.settings)),
        )  # fmt: skip
    return _titled(
        "Cascade: each on the samples that all before it left whole (left whole: of all samples)",
        _Fitting(table, ("time", "settings")),
    )


def _layers(report: AuditReport) -> RenderableType | None:
    top = strongest(report)
    scanned = [outcome for outcome in report.outcomes if outcome.layers is not None]
    if not scanned:
        return None
    shown = top if top is not None and top.layers is not None else scanned[0]
    parts: list[RenderableType] = [_layer_table(report, shown)]
    if len(scanned) > 1:
        parts += [Text(""), _side_by_side(report, scanned)]
    return Group(*parts)


_SPARE = (_BARS, "sd", "stability", "amplification", "gain", "95%")


def _layer_table(report: AuditReport, outcome: AttackOutcome) -> RenderableType:
    layers = outcome.layers
    assert layers is not None
    table = _table()
    table.add_column("layer", overflow="fold")
    table.add_column(_BARS, no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("95%", no_wrap=True)
    table.add_column("sd", justify="right", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("amplification", justify="right", no_wrap=True)
    table.add_column("stability", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    largest = max((row.mean for row in layers.rows if row.mean is not None), default=0.0) or 1.0
    rows = layers.rows
    if len(rows) > _LAYERS:  # the most vulnerable ones matter; order of execution is kept
        cut = sorted((row.mean or 0.0 for row in rows), reverse=True)[_LAYERS - 1]
        rows = [row for row in rows if (row.mean or 0.0) >= cut][:_LAYERS]
    for row in rows:
        length = 0 if row.mean is None else round(_BAR * row.mean / largest)
        table.add_row(
            Text(row.name),
            Text("█" * length, style="red" if row.in_mvl else "cyan"),
            number(row.mean),
            "" if row.low is None or row.high is None else Text(f"[{row.low:.3f}, {row.high:.3f}]"),
            number(row.sd),
            number(row.gain, 2),
            number(row.amplification, 2),
            percent(row.stability),
            Text("MVL", style="bold red") if row.in_mvl else "",
        )
    hidden = len(layers.rows) - len(rows)
    notes = [
        f"mu {number(layers.mu)}, sigma {number(layers.sigma)} over {plural(layers.observations, 'sample')}; {layers.mvl_rule}"
    ]
    floors = [f"{row.name} {number(row.noise_floor)}" for row in rows if row.noise_floor is not None]
    if floors:
        notes.append(
            f"noise floor (clean against clean again), taken off before layers are ranked: {', '.join(floors)}"
        )
    if hidden:
        notes.append(f"{plural(hidden, 'layer')} with smaller means: in the saved report")
    return _titled(
        f"Layers under {outcome.name}: {report.protocol.measure}, clean against perturbed",
        _Fitting(table, _SPARE),
        notes,
    )


def _side_by_side(report: AuditReport, scanned: list[AttackOutcome]) -> RenderableType:
    table = _table()
    table.add_column("layer", overflow="fold")
    for outcome in scanned:
        table.add_column(escape(outcome.name), justify="right", no_wrap=True)
    first = scanned[0].layers
    assert first is not None
    for position, row in enumerate(first.rows[:_LAYERS]):
        cells = []
        for outcome in scanned:
            cell = outcome.layers.rows[position] if outcome.layers is not None else None
            cells.append("-" if cell is None else f"{number(cell.mean)}{'*' if cell.in_mvl else ' '}")
        table.add_row(Text(row.name), *cells)
    return _titled(
        "Mean by attack and noise (* most vulnerable)",
        _Fitting(table, [escape(outcome.name) for outcome in scanned[:0:-1]]),
    )


def _classes(report: AuditReport) -> RenderableType | None:
    rows = weakest_first(report.verdict.classes)
    if not rows:
        return None
    table = _table()
    table.add_column("class", overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("clean", justify="right", no_wrap=True)
    table.add_column("robust", justify="right", no_wrap=True)
    table.add_column("95%", no_wrap=True)
    table.add_column("mostly taken for", overflow="fold")
    shown = rows if len(rows) <= _CLASSES else rows[:_CLASSES]
    for row in shown:
        target = "" if row.target is None else f"{row.target} ({percent(row.concentration)})"
        table.add_row(
            Text(row.name), str(row.robust.n), percent(row.clean.value), percent(row.robust.value),
            Text(interval(row.robust)), Text(target),
        )  # fmt: skip
    summary = report.verdict.class_summary
    notes = []
    if summary is not None:
        notes.append(
            f"max discrepancy {percent(summary.max_discrepancy)}, sd {percent(summary.sd)}, NSD {number(summary.nsd)}"
        )
    if len(rows) > len(shown):
        notes.append(f"{plural(len(rows) - len(shown), 'more class', 'more classes')} in the saved report")
    fitting = _Fitting(table, ("mostly taken for",))
    return _titled("Classes, worst first (robust: worst case over the budget attacks)", fitting, notes)
