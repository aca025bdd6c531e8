"""How the numbers of several models change from one to the next: the trend of a group, and a small figure a class and a layer.

All small figures of one row share their scale, so that they can be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lsa_cli.report.charts import rule, runs_of, svg_of
from lsa_cli.report.figures import CLEAN, NO_POINT, ROBUST, SHOWN_CLASSES, Line, LineChart, Point, point
from lsa_cli.report.fleet import FleetRow
from lsa_cli.report.ranking import strongest
from lsa_cli.report.schema import AttackOutcome, AuditReport
from lsa_cli.report.text import number, percent

_PROVEN, _WORST = 2, 3  # places in COLOURS
_KINDS = (
    ("clean", "clean", CLEAN, "clean"), ("robust", "robust", ROBUST, "robust"), ("proven", "proven", _PROVEN, "proven"),
    ("worst", "worst class", _WORST, "class.min"),
)  # fmt: skip
SHOWN_LAYERS = 24
_WIDTH, _HEIGHT, _EDGE = 220, 64, 6
_FEW = 30  # models whose dots do not touch each other


@dataclass(frozen=True)
class Panel:
    """One small figure: a value for each model, in order. stressed: the models that get a dot."""

    name: str
    values: Sequence[float | None]
    stressed: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Panels:
    """Small figures with one scale. percent: values are shares."""

    title: str
    note: str
    panels: Sequence[Panel]
    percent: bool = False

    @property
    def largest(self) -> float:
        """The upper end of the scale."""
        known = [value for one in self.panels for value in one.values if value is not None]
        return 1.0 if self.percent else max(known, default=0.0) or 1.0

    def in_words(self, value: float | None) -> str:
        return percent(value) if self.percent else number(value)


def trend(rows: Sequence[FleetRow], labels: Sequence[str]) -> LineChart | None:
    """Clean, robust, proven and worst-class accuracy of the models of one group in order; None for a single model.

    Limits are those of the last model.
    """
    if len(rows) < 2:
        return None
    limits = {gate.metric: gate.limit for gate in rows[-1].gates if gate.direction == "at least"}
    lines: list[Line] = []
    drawn: list[tuple[str, float, int]] = []
    for name, title, colour, metric in _KINDS:
        points: list[Point] = [point(getattr(row, name)) for row in rows]
        if any(value is not None for value, _, _ in points):
            lines.append(Line(title, points, colour=colour))
            if metric in limits:
                drawn.append((f"limit {metric}", limits[metric], colour))
    return LineChart(rows[0].protocol, labels, lines, "share of all samples", percent=True, limits=drawn)


def by_class(reports: Sequence[AuditReport]) -> Panels | None:
    """The robust accuracy of each class; of many classes those that are the weakest in the last model."""
    rows = [{row.name: row.robust.value for row in report.verdict.classes} for report in reports]
    last = [(value, name) for name, value in rows[-1].items() if value is not None]
    names = {name for _, name in sorted(last)[:SHOWN_CLASSES]}
    panels = [Panel(name, [row.get(name) for row in rows]) for name in rows[-1] if name in names]
    hidden = len(rows[-1]) - len(panels)
    note = f"the {len(panels)} weakest of {len(rows[-1])} in the last model" if hidden else ""
    return Panels("Robust accuracy of each class", note, panels, percent=True) if panels else None


def by_layer(reports: Sequence[AuditReport]) -> Panels | None:
    """The mean of each layer under one attack, the strongest of the last model. Dots: the layer is most vulnerable."""
    top = strongest(reports[-1], scanned=True)
    if top is None or top.layers is None:
        return None
    several = [layers_of(report, top.name) for report in reports]
    names = sorted(several[-1], key=lambda name: -(several[-1][name][0] or 0))[:SHOWN_LAYERS]
    panels = [
        Panel(
            row.name, [found.get(row.name, NO_LAYER)[0] for found in several],
            frozenset(place for place, found in enumerate(several) if found.get(row.name, NO_LAYER)[1]),
        )
        for row in top.layers.rows
        if row.name in names
    ]  # fmt: skip
    hidden = len(top.layers.rows) - len(panels)
    note = "a dot: the layer is among the most vulnerable ones (MVL)"
    note += f"; the {len(panels)} of {len(top.layers.rows)} layers with the largest means" if hidden else ""
    return Panels(f"Mean {reports[-1].protocol.measure} of each layer under {top.name}", note, panels)


def by_mvl(reports: Sequence[AuditReport]) -> Panels | None:
    """The share of the layers that are most vulnerable under one attack, the strongest of the last model."""
    top = strongest(reports[-1], scanned=True)
    if top is None:
        return None
    several = [layers_of(report, top.name).values() for report in reports]
    shares = [sum(in_mvl for _, in_mvl in found) / len(found) if found else None for found in several]
    return Panels(
        "Most vulnerable layers (MVL)", "", [Panel(f"share of layers under {top.name}", shares)], percent=True
    )


NO_LAYER: tuple[float | None, bool] = (None, False)


def layers_of(report: AuditReport, attack: str) -> Mapping[str, tuple[float | None, bool]]:
    """The mean of each layer under an attack, and whether the layer is most vulnerable."""
    found: AttackOutcome | None = next((one for one in report.outcomes if one.name == attack), None)
    if found is None or found.layers is None:
        return {}
    return {row.name: (row.mean, row.in_mvl) for row in found.layers.rows}


def draw_panel(panels: Panels, panel: Panel, labels: Sequence[str]) -> Markup:
    """A small figure as SVG, with the first, the lowest, the highest and the last value in its label."""
    places = [_EDGE + (_WIDTH - 2 * _EDGE) * (i / max(1, len(labels) - 1)) for i in range(len(labels))]

    def at(place: int) -> tuple[float, float]:
        return places[place], _EDGE + (_HEIGHT - 2 * _EDGE) * (1 - (panel.values[place] or 0.0) / panels.largest)

    parts = [rule(str(_EDGE), y, str(_WIDTH - _EDGE), y, "grid") for y in (_EDGE, _HEIGHT - _EDGE)]
    points: list[Point] = [NO_POINT if value is None else (value, None, None) for value in panel.values]
    for run in runs_of(points):
        path = "L".join("{:.0f},{:.1f}".format(*at(place)) for place in run)
        parts.append(Markup('<path d="M{}h.1" class="line s{}"/>').format(path, ROBUST if panels.percent else CLEAN))
    if panel.stressed:  # a line without length has round ends, which are a dot
        dots = "".join("M{:.0f},{:.1f}h0".format(*at(place)) for place in sorted(panel.stressed))
        size = 7 if len(labels) <= _FEW else 3
        parts.append(Markup('<path d="{}" stroke-width="{}" class="mvl-dots"/>').format(dots, size))
    own = [value for value in panel.values if value is not None]
    words = (
        f"{panels.in_words(own[0])} in {labels[0]} to {panels.in_words(own[-1])} in {labels[-1]}" if own else "no value"
    )
    if own:
        words += f"; lowest {panels.in_words(min(own))}, highest {panels.in_words(max(own))}"
    return svg_of(_WIDTH, _HEIGHT, panel.name, words, parts)
