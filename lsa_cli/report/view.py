"""Table, which every renderer draws; and the tables of a report for people: terminal, Markdown, model card and page.

Cells of tables for people are text. A renderer may leave out columns or rows; it writes no words of its own. Tables for
programs, whose cells are plain values, are in tables.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from lsa_cli.report.ranking import weakest_first
from lsa_cli.report.schema import AttackOutcome, AuditReport, Evidence, LayerAnalysis, LayerRow, Stage
from lsa_cli.report.text import has_several_classes, interval, length, number, percent, settings_text
from lsa_cli.wording import first_of, plural

Tone = Literal["", "good", "warn", "bad"]


@dataclass(frozen=True)
class Mark:
    """Text with a tone, which a renderer may show as colour."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Bar:
    """A bar of length `share`, in [0, 1], for outputs that can draw one."""

    share: float


@dataclass(frozen=True)
class Link:
    """Text that leads to a page of the same site."""

    text: str
    target: str


Cell = str | float | None | Mark | Bar | Link


@dataclass(frozen=True)
class Column:
    """kind: names, of attacks too, and prose may wrap, and a name comes from outside; prose is of less weight. detail: only for outputs with room for everything.
    spare: narrow outputs leave out columns with the largest number first; 0 always stays."""

    title: str
    kind: Literal["text", "number", "name", "attack", "prose", "bar"] = "text"
    detail: bool = False
    spare: int = 0


@dataclass(frozen=True)
class Table:
    """rows: a cell for each column. marked: rows to stress. notes: sentences below the table."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    notes: tuple[str, ...] = ()
    marked: frozenset[int] = frozenset()

    def without(self, *titles: str) -> "Table":
        return self.chosen(column.title not in titles for column in self.columns)

    def brief(self) -> "Table":
        """Without the columns of detail."""
        return self.chosen(not column.detail for column in self.columns)

    def filled(self) -> "Table":
        """Without the columns that have no value in any row: a dash in each of them says nothing."""
        several = zip(*self.rows, strict=True) if self.rows else iter([["rows"]] * len(self.columns))
        return self.chosen(
            any(isinstance(cell, Bar) or text_of(cell) not in ("", "-") for cell in cells) for cells in several
        )

    def chosen(self, which: Iterable[bool]) -> "Table":
        """The columns for which `which` is true."""
        kept = [place for place, chosen in enumerate(which) if chosen]
        rows = tuple(tuple(row[place] for place in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[place] for place in kept), rows=rows)

    def first(self, count: int) -> "Table":
        """The first `count` rows; a note says how many more the saved report holds."""
        hidden = len(self.rows) - count
        if hidden <= 0:
            return self
        note = f"{plural(hidden, 'more row')} in the saved report"
        return replace(self, rows=self.rows[:count], notes=(*self.notes, note))


def text_of(cell: Cell) -> str:
    """The words of a cell; a bar has none."""
    return cell.text if isinstance(cell, (Mark, Link)) else "" if cell is None or isinstance(cell, Bar) else str(cell)


def span(low: float | None, high: float | None) -> str:
    """ "[0.490, 0.510]"; empty where there is no interval."""
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


# ---- the verdict -------------------------------------------------------------------------------------------


def summary(report: AuditReport, data: str) -> Table:
    """The numbers to quote. data: the name of the samples in the heading."""
    verdict, threat = report.verdict, report.protocol.threat
    rows: list[tuple[Cell, ...]] = [("clean accuracy", percent(verdict.clean.value), interval(verdict.clean))]
    if verdict.robust is not None:
        name = f"robust accuracy, worst of {', '.join(verdict.attacks) or '-'} ({threat.norm}, eps {threat.text})"
        rows.append((name, percent(verdict.robust.value), interval(verdict.robust)))
    if verdict.proven is not None and verdict.proof is not None:
        name = f"proven robust accuracy, a lower bound ({verdict.proof.threat})"
        rows.append((name, percent(verdict.proven.value), interval(verdict.proven)))
    if verdict.meaning:
        rows.append(("in words", verdict.meaning, ""))
    if report.evidence is not None:
        made = plural(len(report.evidence.checks), "check")
        rows.append((f"evidence ({made})", report.evidence.verdict, ""))
    for row in weakest_first(verdict.classes)[:1]:
        rows.append((f"worst class, {row.name}", percent(row.robust.value), interval(row.robust)))
    columns = (
        Column(f"on {data} ({plural(report.data.n, 'sample')})", "name"),
        Column("", "number"),
        Column("95% interval"),
    )
    return Table("Adversarial robustness", columns, tuple(rows))


def limits(report: AuditReport) -> Table | None:
    """Each limit and whether it holds."""
    rows: list[tuple[Cell, ...]] = []
    for gate in report.gates:
        result = Mark("not measured" if gate.allowed_unmeasured else "held", "good")
        if not gate.passed:
            warning = gate.severity == "warning"
            result = Mark(gate.state.upper() + (" (warning)" if warning else ""), "warn" if warning else "bad")
        why = gate.message if gate.measured is None or gate.state == "undecided" else ""
        required = f"{gate.direction} {gate.limit:g}"
        rows.append((gate.metric, required, number(gate.measured, 4), span(gate.low, gate.high), result, why))
    columns = (
        Column("limit", "name"), Column("required"), Column("measured", "number"), Column("95% interval"),
        Column("result"), Column("reason", "prose", detail=True),
    )  # fmt: skip
    if not rows:
        return None
    table = Table("Limits", columns, tuple(rows))
    return table if any(row[-1] for row in rows) else table.without("reason")


def checks(evidence: Evidence) -> Table:
    """A row for each check of the evidence."""
    rows: list[tuple[Cell, ...]] = []
    for check in evidence.checks:
        seen = "; ".join(f"{what} {'-' if value is None else f'{value:.4g}'}" for what, value in check.saw.items())
        found = Mark(", ".join(check.findings), "bad") if check.findings else "none"
        rows.append((check.name, str(check.n), seen, found))
    columns = Column("check", "name"), Column("n", "number"), Column("measured", "name"), Column("findings", "name")
    caption = "reasons to trust or doubt the robust accuracy"
    return Table("Checks of the evidence", columns, tuple(rows), caption)


# ---- attacks -----------------------------------------------------------------------------------------------

_KINDS = {"budget": "fixed budget", "minimal": "minimal norm", "noise": "noise"}


def attacks(report: AuditReport) -> Table | None:
    """A row for each attack and noise that ran on all samples."""
    threat = report.protocol.threat
    rows: list[tuple[Cell, ...]] = []
    for outcome in report.outcomes:
        distance = outcome.distance
        sizes = [
            f"{distance.norm} {length(size, distance.norm, threat)}" if distance.n else "-"
            for size in (distance.median, distance.largest)
        ]
        rows.append(
            (
                outcome.name, percent(outcome.robust.value), interval(outcome.robust),
                f"{outcome.success.count}/{outcome.success.n}", *sizes, f"{outcome.seconds:.1f} s",
                _KINDS[outcome.kind], settings_text(outcome.settings),
                first_of(outcome.layers.mvl, 3) if outcome.layers is not None else "",
            )
        )  # fmt: skip
    columns = (
        Column("attack", "attack"), Column("accuracy", "number"), Column("95% interval"), Column("success", "number"),
        Column("median distance", "number", spare=1), Column("largest distance", "number", detail=True),
        Column("time", "number", spare=3), Column("kind", detail=True), Column("settings", "prose", spare=2),
        Column("most vulnerable layers", "name", detail=True),
    )  # fmt: skip
    caption = "accuracy: of all samples; success: of those classified correctly"
    return Table("Attacks and noises", columns, tuple(rows), caption) if rows else None


def cascade(report: AuditReport) -> Table | None:
    """A row for each attack of the cascade that had samples to run on, in order. The caption names the others."""
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            stage.attack, _tried(stage), str(stage.broke), percent(stage.robust.value), interval(stage.robust),
            f"{stage.seconds:.1f} s", settings_text(stage.settings),
        )
        for stage in report.cascade
        if stage.tried
    )  # fmt: skip
    columns = (
        Column("attack", "attack"), Column("tried", "number"), Column("broke", "number"), Column("still robust", "number"),
        Column("95% interval"), Column("time", "number", spare=2), Column("settings", "prose", spare=1),
    )  # fmt: skip
    caption = "each attack runs on the samples that are still robust; still robust: of all samples"
    if report.verdict.estimate is not None:
        caption = "each attack runs on those of the drawn samples that are still robust; still robust: of all samples"
    if any(stage.ranked is not None for stage in report.cascade):
        caption = (
            "each round attacks the nearest of the samples that are still robust, and random far ones; still robust: of all "
            "samples"
        )
    if report.verdict.proven is not None:
        caption = caption.replace("still robust", "still robust and not proven", 1)
    if len(rows) < len(report.cascade):
        idle = ", ".join(stage.attack for stage in report.cascade if not stage.tried)
        caption += f"; without a sample to run on: {idle}"
    return Table("Cascade", columns, rows, caption) if rows else None


def _tried(stage: Stage) -> str:
    """How many samples an attack of the cascade ran on, and of how many that were still robust."""
    ranked = stage.ranked
    if ranked is None or ranked.robust == stage.tried:
        return str(stage.tried)
    grown = f", at first {ranked.first + ranked.far}" if ranked.last > ranked.first else ""
    return f"{stage.tried} of {ranked.robust}{grown}"


def metrics(report: AuditReport) -> Table | None:
    """A row for each further metric."""
    rows: list[tuple[Cell, ...]] = []
    for metric in report.metrics:
        quantiles = ", ".join(f"{share}: {number(value)}" for share, value in metric.quantiles.items())
        rows.append((metric.name, number(metric.value), metric.unit, quantiles, str(metric.n), metric.attack))
    columns = (
        Column("metric", "name"), Column("value", "number"), Column("unit", "name"), Column("spread"), Column("n", "number"),
        Column("attack", "attack"),
    )  # fmt: skip
    notes = tuple(dict.fromkeys(metric.meaning for metric in report.metrics))
    return Table("Metrics", columns, tuple(rows), notes=notes) if rows else None


def pairs(report: AuditReport) -> Table | None:
    """A row for each pair of attacks that are compared by class."""
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (pair.weaker, pair.stronger, number(pair.spearman, 2), str(pair.gain), percent(pair.gain_on_weak_classes))
        for pair in report.pairs
    )
    columns = (
        Column("weaker", "attack"), Column("stronger", "attack"), Column("rank correlation of classes", "number"),
        Column("samples gained", "number"), Column("share of the gain on weak classes", "number"),
    )  # fmt: skip
    return Table("Attacks compared by class", columns, rows) if rows else None


# ---- layers ------------------------------------------------------------------------------------------------


def scanned(report: AuditReport) -> list[tuple[AttackOutcome, LayerAnalysis]]:
    """The attacks and noises under which layers were measured, with the result."""
    return [(outcome, outcome.layers) for outcome in report.outcomes if outcome.layers is not None]


def layers(report: AuditReport, outcome: AttackOutcome, most: int | None = None) -> Table:
    """The layers under one attack, in the order they run. most: only that many, those with the largest means."""
    analysis = outcome.layers
    assert analysis is not None
    shown = analysis.rows
    if most is not None and len(shown) > most:
        least = sorted((row.mean or 0.0 for row in shown), reverse=True)[most - 1]
        shown = [row for row in shown if (row.mean or 0.0) >= least][:most]
    largest = max((row.mean for row in analysis.rows if row.mean is not None), default=0.0) or 1.0
    columns = (
        Column("layer", "name"), Column("kind", "name", detail=True), Column(" ", "bar", spare=6), Column("mean", "number"),
        Column("95% interval", spare=1), Column("sd", "number", spare=5), Column("gain", "number", spare=2),
        Column("amplification", "number", spare=3), Column("stability", "number", spare=4), Column("MVL"),
    )  # fmt: skip
    return Table(
        f"Layers under {outcome.name}", columns, tuple(_layer(row, largest) for row in shown),
        f"{report.protocol.measure}, clean against perturbed",
        tuple(_layer_notes(report, analysis, shown)), frozenset(i for i, row in enumerate(shown) if row.in_mvl),
    )  # fmt: skip


def _layer(row: LayerRow, largest: float) -> tuple[Cell, ...]:
    return (
        row.name, row.kind, Bar(0.0 if row.mean is None else row.mean / largest), number(row.mean),
        span(row.low, row.high), number(row.sd), number(row.gain, 2), number(row.amplification, 2),
        percent(row.stability), Mark("MVL", "bad") if row.in_mvl else "",
    )  # fmt: skip


def _layer_notes(report: AuditReport, analysis: LayerAnalysis, shown: list[LayerRow]) -> Iterable[str]:
    noun = ("batch", "batches") if report.protocol.aggregate == "batch" else ("sample", "samples")
    over = plural(analysis.observations, *noun)
    yield f"rule: {analysis.mvl_rule}; mu {number(analysis.mu)}, sigma {number(analysis.sigma)} over {over}"
    floors = [f"{row.name} {number(row.noise_floor)}" for row in shown if row.noise_floor is not None]
    if floors:
        yield f"noise floor (two clean passes), subtracted before layers are ranked: {', '.join(floors)}"
    if len(shown) < len(analysis.rows):
        yield f"{plural(len(analysis.rows) - len(shown), 'layer')} with smaller means in the saved report"


def layer_means(report: AuditReport) -> Table:
    """The mean of each layer under each attack and noise."""
    found = scanned(report)
    rows: list[tuple[Cell, ...]] = []
    for place, row in enumerate(found[0][1].rows):
        means = [analysis.rows[place] for _, analysis in found]
        rows.append((row.name, *(f"{number(cell.mean)}{'*' if cell.in_mvl else ' '}" for cell in means)))
    columns = [Column(outcome.name, "number", spare=place) for place, (outcome, _) in enumerate(found)]
    return Table(
        "Mean by attack and noise", (Column("layer", "name"), *columns), tuple(rows), "* most vulnerable"
    )  # fmt: skip


def vulnerable_by_class(report: AuditReport, analysis: LayerAnalysis) -> Table:
    """The most vulnerable layers of each class."""
    several = zip(report.subject.class_names, analysis.mvl_by_class or [], strict=False)
    rows = tuple((name, ", ".join(mvl) or "-") for name, mvl in several)
    columns = Column("class", "name"), Column("layers, worst first", "name")
    return Table("Most vulnerable layers of each class", columns, rows)


# ---- classes -----------------------------------------------------------------------------------------------


def classes(report: AuditReport) -> Table | None:
    """The classes by robust accuracy, worst first."""
    rows: list[tuple[Cell, ...]] = []
    for row in weakest_first(report.verdict.classes):
        target = "" if row.target is None else f"{row.target} ({percent(row.concentration)})"
        clean, robust = percent(row.clean.value), percent(row.robust.value)
        proven = ("", "") if row.proven is None else (percent(row.proven.value), interval(row.proven))
        rows.append(
            (row.name, str(row.robust.n), clean, interval(row.clean), *proven, robust, interval(row.robust), target)
        )
    columns = (
        Column("class", "name"), Column("n", "number"), Column("clean", "number"),
        Column("clean, 95% interval", detail=True), Column("proven", "number"), Column("proven, 95% interval", spare=2),
        Column("robust", "number"), Column("95% interval"), Column("mostly mistaken for", "name", spare=1),
    )  # fmt: skip
    with_proof = any(row.proven is not None for row in report.verdict.classes)
    caption = "robust: worst case over the budget attacks" + ("; proven: no attack can find less" if with_proof else "")
    summary = report.verdict.class_summary
    notes = []
    if summary is not None and has_several_classes(report.verdict):
        spread = f"max discrepancy {percent(summary.max_discrepancy)}, sd {percent(summary.sd)}"
        spread += "" if summary.nsd is None else f", NSD {number(summary.nsd)}"
        notes.append(spread if summary.max_discrepancy else "all classes are equally robust")
    table = Table("Classes, worst first", columns, tuple(rows), caption, tuple(notes))
    return (table if with_proof else table.without("proven", "proven, 95% interval")) if rows else None
