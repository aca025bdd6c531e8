"""The figures of a report as numbers: which lines, bars and cells, under which names, in which colours.

charts.py draws them as SVG for the page, plots.py by matplotlib for `lsa plot`. `context` of a figure says what it was measured on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lsa_cli.report.ranking import strongest, weakest_first
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import AttackOutcome, AuditReport, Curve
from lsa_cli.report.text import data_name
from lsa_cli.wording import eps_as_text

# Colour-blind readers can tell these apart, and all stand out from white. Lines differ in dashes and marks too.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#b8578f", "#8a6d00", "#3c97c9", "#555b61", "#a04000")
DASHES = ((), (6, 3), (2, 3), (8, 3, 2, 3), (1, 4), (10, 4), (4, 2, 1, 2), (3, 6))  # drawn, left out, drawn, ...
MARKS = ("circle", "square", "triangle", "diamond")
ROBUST, CLEAN, OTHER = 0, 1, 6  # places in COLOURS
HEAT, LIGHTEST, DARKEST = 1, 0.04, 0.94  # of a heat map: a place in COLOURS, and how much of it a cell has
SHOWN_CLASSES = 30  # in one figure; the tables list all classes
_SHOWN_ATTACKS = 8

Point = tuple[float | None, float | None, float | None]  # value, low, high
NO_POINT: Point = (None, None, None)


@dataclass(frozen=True)
class Line:
    """points: one for each place on the x axis; stressed: the places that get a ring; colour: a place in COLOURS,
    None for the line's own place in the chart."""

    name: str
    points: Sequence[Point]
    stressed: frozenset[int] = frozenset()
    colour: int | None = None


@dataclass(frozen=True)
class LineChart:
    """Lines with their intervals as bands. labels: of the places on the x axis; places: their x, None for equal distances.
    percent: values are shares. limits: horizontal lines, each with its name, value and place in COLOURS."""

    title: str
    labels: Sequence[str]
    lines: Sequence[Line]
    y_title: str
    x_title: str = ""
    places: Sequence[float] | None = None
    percent: bool = False
    limits: Sequence[tuple[str, float, int]] = ()
    context: str = ""

    def colour(self, number: int) -> int:
        """The place in COLOURS of a line."""
        own = self.lines[number].colour
        return (number if own is None else own) % len(COLOURS)


@dataclass(frozen=True)
class Bar:
    """One bar of each group; colour: a place in COLOURS."""

    name: str
    colour: int


@dataclass(frozen=True)
class BarGroup:
    """points: one for each bar. colour: instead of the bar's own; limit: the least that a gate asks. is_foreign: the name, such as
    that of a class, comes from outside."""

    name: str
    points: Sequence[Point]
    colour: int | None = None
    limit: float | None = None
    is_foreign: bool = False


@dataclass(frozen=True)
class BarChart:
    """Groups of bars for shares, each bar with its interval."""

    title: str
    bars: Sequence[Bar]
    groups: Sequence[BarGroup]
    context: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Cells shaded by value / largest; digits: decimals of the numbers in them."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    digits: int
    x_title: str = ""
    y_title: str = ""
    context: str = ""

    @property
    def largest(self) -> float:
        """The largest value; 1 if there is none above zero."""
        return max((value for row in self.values for value in row if value is not None), default=0.0) or 1.0


Chart = LineChart | BarChart | HeatMap


def charts_of(report: AuditReport, label: str = "", most_layers: int | None = None) -> dict[str, Chart]:
    """The figures of one report, by name: those that it has numbers for.

    label: begins each title. most_layers: the map of layers and classes shows only so many layers, the first ones.
    """
    measure, top = report.protocol.measure, strongest(report)
    attacks = [(outcome.name, outcome) for outcome in report.outcomes if outcome.kind != "noise"]
    noises = [(outcome.name, outcome) for outcome in report.outcomes if outcome.kind == "noise"]
    count = len(report.verdict.classes)
    which = f" ({SHOWN_CLASSES} weakest of {count})" if count > SHOWN_CLASSES else ""

    def titled(text: str) -> str:
        return f"{label}: {text}" if label else text[:1].upper() + text[1:]

    charts: dict[str, Chart | None] = {
        "layers-attacks": layer_curves(titled("mean comparison measure by layer, under attacks"), attacks, measure),
        "layers-noises": layer_curves(titled("mean comparison measure by layer, under noises"), noises, measure),
        "classes": _class_bars(titled(f"accuracy by class{which}"), report),
    }
    if top is not None:
        title = titled(f"mean {measure} by layer and class under {top.name}")
        charts["layer-by-class"] = _layer_by_class(title, report, top, most_layers)
        charts["confusion"] = _confusion(titled(f"predicted classes under {top.name}"), report, top)
    contexts = {"layers-noises": context_of(report, attacked=False)}
    own = context_of(report)
    return {
        name: replace(chart, context=contexts.get(name, own)) for name, chart in charts.items() if chart is not None
    }


def context_of(report: AuditReport, attacked: bool = True) -> str:
    """What a figure was measured on: "npz:mnist.npz, n = 300, linf, eps 0.3". attacked: with norm and eps."""
    threat = f", {report.protocol.threat.norm}, eps {report.protocol.threat.text}" if attacked else ""
    return f"{data_name(report.data.source)}, n = {report.data.n:,}{threat}"


def point(rate: Rate | None) -> Point:
    return NO_POINT if rate is None else (rate.value, rate.low, rate.high)


def layer_curves(title: str, named: Sequence[tuple[str, AttackOutcome]], measure: str) -> LineChart | None:
    """The mean of each layer: a line for each of `named` that has layers. None without a line.

    Layers are numbered if the lines have layers of different names.
    """
    several = [(name, outcome.layers.rows) for name, outcome in named if outcome.layers is not None]
    if not several:
        return None
    lines = [
        Line(
            name, [(row.mean, row.low, row.high) for row in rows],
            frozenset(place for place, row in enumerate(rows) if row.in_mvl),
        )
        for name, rows in several
    ]  # fmt: skip
    labels = [[row.name for row in rows] for _, rows in several]
    if any(others != labels[0] for others in labels):
        labels[0] = [str(place) for place in range(1, max(map(len, labels)) + 1)]
    return LineChart(title, labels[0], lines, f"mean {measure}", "layer, in the order they run")


def radius_curves(title: str, named: Sequence[tuple[str, Curve]], norm: str, context: str) -> LineChart | None:
    """Robust accuracy over all radii at which a curve has a point. None without a curve."""
    radii = sorted({at.eps for _, curve in named for at in curve.points})
    if not named:
        return None
    lines = []
    for name, curve in named:
        known = {at.eps: point(at.robust) for at in curve.points}
        lines.append(Line(name, [known.get(eps, NO_POINT) for eps in radii]))
    labels = [eps_as_text(eps) for eps in radii]
    return LineChart(title, labels, lines, "robust accuracy", f"eps ({norm})", radii, percent=True, context=context)


def accuracy_bars(report: AuditReport) -> BarChart:
    """Clean accuracy, that under each attack, the worst case and the worst class, with the limits on them."""
    verdict = report.verdict
    limits = {gate.metric: gate.limit for gate in report.gates if gate.direction == "at least"}
    groups = [BarGroup("clean", [point(verdict.clean)], CLEAN, limits.get("clean"))]
    for outcome in [outcome for outcome in report.outcomes if outcome.kind != "noise"][:_SHOWN_ATTACKS]:
        limit = limits.get(f"robust.{outcome.name}", limits.get(f"robust.{outcome.spec}"))
        groups.append(BarGroup(outcome.name, [point(outcome.robust)], OTHER, limit))
    if verdict.robust is not None:
        groups.append(BarGroup("robust, worst case", [point(verdict.robust)], ROBUST, limits.get("robust")))
    if verdict.proven is not None:
        groups.append(BarGroup("proven", [point(verdict.proven)], ROBUST, limits.get("proven")))
    if verdict.robust is not None:
        for row in weakest_first(verdict.classes)[:1]:
            limit = limits.get(f"class.{row.name}", limits.get("class.min"))
            groups.append(BarGroup(f"worst class: {row.name}", [point(row.robust)], ROBUST, limit, True))
    return BarChart("Accuracy with 95% intervals", [Bar("", OTHER)], groups, context_of(report))


def _class_bars(title: str, report: AuditReport) -> BarChart | None:
    """Clean and robust accuracy of the weakest classes, worst first."""
    rows = weakest_first(report.verdict.classes)[:SHOWN_CLASSES]
    bars = Bar("clean", CLEAN), Bar("robust (worst case)", ROBUST)
    groups = [BarGroup(row.name, (point(row.clean), point(row.robust)), is_foreign=True) for row in rows]
    return BarChart(title, bars, groups) if groups else None


def _layer_by_class(title: str, report: AuditReport, top: AttackOutcome, most: int | None) -> HeatMap | None:
    """The mean of each layer and class under one attack."""
    if top.layers is None or top.layers.by_class is None:
        return None
    shown, names = _shown_classes(report), report.subject.class_names
    values = [[row[place] for place in shown] for row in top.layers.by_class[:most]]
    rows = [row.name for row in top.layers.rows[:most]]
    return HeatMap(title, rows, [names[place] for place in shown], values, 2, "class")


def _confusion(title: str, report: AuditReport, top: AttackOutcome) -> HeatMap:
    """The classes predicted under one attack. The diagonal is left out: it would outshine the rest."""
    shown = _shown_classes(report)
    names = [report.subject.class_names[place] for place in shown]
    values = [[None if i == j else float(top.confusion[i][j]) for j in shown] for i in shown]
    return HeatMap(title, names, names, values, 0, "class under the attack", "true class")


def _shown_classes(report: AuditReport) -> list[int]:
    """All classes in order; the weakest ones where there are more than SHOWN_CLASSES."""
    names = report.subject.class_names
    if len(names) <= SHOWN_CLASSES:
        return list(range(len(names)))
    weakest = {row.name for row in weakest_first(report.verdict.classes)[:SHOWN_CLASSES]}
    return [place for place, name in enumerate(names) if name in weakest][:SHOWN_CLASSES]
