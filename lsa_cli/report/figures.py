"""The figures of a report: which lines, bars and cells, under which names, in which colours.

The page draws them as SVG (charts.py), `lsa plot` by matplotlib (plots.py). Both take every number and colour from here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lsa_cli.report.ranking import weakest_first
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import AttackOutcome, AuditReport, Curve
from lsa_cli.wording import eps_as_text

# Colour-blind readers can tell these apart, and all stand out from white. Lines differ in dashes and marks too.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#b8578f", "#8a6d00", "#3c97c9", "#555b61", "#a04000")
DASHES = ((), (6, 3), (2, 3), (8, 3, 2, 3), (1, 4), (10, 4), (4, 2, 1, 2), (3, 6))  # drawn, left out, drawn, ...
MARKS = ("circle", "square", "triangle", "diamond")
ROBUST, CLEAN, OTHER = 0, 1, 6  # the colours of what they name
SHOWN_CLASSES = 30  # in a figure; more than a reader can compare, and the tables have all

Point = tuple[float | None, float | None, float | None]  # value, low, high
NO_POINT: Point = (None, None, None)


@dataclass(frozen=True)
class Line:
    """One line of a line chart: its name, a point for each place on the x axis, and the places to stress.

    colour: a place in COLOURS; None for the place of the line among the others.
    """

    name: str
    points: Sequence[Point]
    stressed: frozenset[int] = frozenset()
    colour: int | None = None


@dataclass(frozen=True)
class LineChart:
    """Lines with their intervals as bands. labels: of the places on the x axis; places: where they are, None for equal
    distances. percent: values are shares."""

    title: str
    labels: Sequence[str]
    lines: Sequence[Line]
    y_title: str
    x_title: str = ""
    places: Sequence[float] | None = None
    percent: bool = False

    def colour(self, number: int) -> int:
        """The place in COLOURS of a line."""
        own = self.lines[number].colour
        return (number if own is None else own) % len(COLOURS)


@dataclass(frozen=True)
class Bar:
    """What one of the bars of each group of a bar chart stands for."""

    name: str
    colour: int


@dataclass(frozen=True)
class BarChart:
    """Groups of bars for shares, each with its interval: (name of the group, a point for each of `bars`)."""

    title: str
    bars: Sequence[Bar]
    groups: Sequence[tuple[str, Sequence[Point]]]


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


def point(rate: Rate | None) -> Point:
    return NO_POINT if rate is None else (rate.value, rate.low, rate.high)


def layer_curves(title: str, named: Sequence[tuple[str, AttackOutcome]], measure: str) -> LineChart | None:
    """The mean of each layer, a line for each of `named`, those without layers left out. None without a line.

    Layers are numbered where not all lines are of layers with the same names.
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


def radius_curves(title: str, named: Sequence[tuple[str, Curve]], norm: str) -> LineChart | None:
    """Robust accuracy over all radii that a curve has a point at. None without a curve."""
    radii = sorted({at.eps for _, curve in named for at in curve.points})
    if not named:
        return None
    lines = []
    for name, curve in named:
        known = {at.eps: point(at.robust) for at in curve.points}
        lines.append(Line(name, [known.get(eps, NO_POINT) for eps in radii]))
    labels = [eps_as_text(eps) for eps in radii]
    return LineChart(title, labels, lines, "robust accuracy", f"eps ({norm})", radii, percent=True)


def class_bars(title: str, report: AuditReport) -> BarChart | None:
    """Clean and robust accuracy of the weakest classes, worst first."""
    rows = weakest_first(report.verdict.classes)[:SHOWN_CLASSES]
    bars = Bar("clean", CLEAN), Bar("robust (worst case)", ROBUST)
    return BarChart(title, bars, [(row.name, (point(row.clean), point(row.robust))) for row in rows]) if rows else None


def layer_by_class(title: str, report: AuditReport, top: AttackOutcome, most: int | None = None) -> HeatMap | None:
    """The mean of each layer and class under one attack. most: only so many layers, the first ones."""
    if top.layers is None or top.layers.by_class is None:
        return None
    shown, names = _shown_classes(report), report.subject.class_names
    values = [[row[place] for place in shown] for row in top.layers.by_class[:most]]
    rows = [row.name for row in top.layers.rows[:most]]
    return HeatMap(title, rows, [names[place] for place in shown], values, 2, "class")


def confusion(title: str, report: AuditReport, top: AttackOutcome) -> HeatMap:
    """Where one attack sends the samples of each class. The diagonal, which would outshine the rest, is left out."""
    shown = _shown_classes(report)
    names = [report.subject.class_names[place] for place in shown]
    values = [[None if i == j else float(top.confusion[i][j]) for j in shown] for i in shown]
    return HeatMap(title, names, names, values, 0, "class under the attack", "true class")


def _shown_classes(report: AuditReport) -> list[int]:
    """The classes that a map has room for: all in order, or the weakest ones."""
    names = report.subject.class_names
    if len(names) <= SHOWN_CLASSES:
        return list(range(len(names)))
    weakest = {row.name for row in weakest_first(report.verdict.classes)[:SHOWN_CLASSES]}
    return [place for place, name in enumerate(names) if name in weakest][:SHOWN_CLASSES]
