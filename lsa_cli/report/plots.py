"""The figures (figures.py) of one or several reports for papers and slides, by matplotlib, which is an optional extra.

Layer curves are drawn as in arXiv 2202.02626: the comparison measure over the layer's place in the network. Lines differ in
dashes and marks too, so that they can be told apart in grey.
"""

import importlib.util
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.errors import UsageError
from lsa_cli.report.charts import short
from lsa_cli.report.figures import (
    COLOURS,
    DARKEST,
    DASHES,
    HEAT,
    LIGHTEST,
    MARKS,
    NO_POINT,
    SHOWN_CLASSES,
    Bar,
    BarChart,
    BarGroup,
    Chart,
    HeatMap,
    LineChart,
    charts_of,
    context_of,
    layer_curves,
    point,
    radius_curves,
)
from lsa_cli.report.ranking import weakest_class
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.text import file_name, numbered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")

_SHAPES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}
_STYLE = {
    "font.family": "sans-serif", "font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#d9d9d9", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "lines.linewidth": 1.6, "lines.markersize": 4.5, "figure.constrained_layout.use": True,
    "savefig.dpi": 300, "pdf.fonttype": 42, "svg.hashsalt": "lsa", "text.parse_math": False,
}  # fmt: skip
_NAMED_LAYERS = 24  # more names cannot be read on a page
_WIDTH = 6.3  # inches: a column of A4
_LONGEST = 24  # characters of a name
_CHARACTER = 0.08  # inches: the width of a character and the space after it

Labelled = tuple[str, AuditReport]


class Figures(dict[str, "Figure"]):
    """matplotlib's figures by name. A notebook shows them below each other."""

    def _repr_html_(self) -> str:
        return "\n".join(f"<div>{_saved(figure, 'svg').decode().partition('?>')[2]}</div>" for figure in self.values())


def draw(reports: Sequence[AuditReport], form: str) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of each figure that the reports hold numbers for; form is one of FORMATS."""
    for name, figure in figures(reports).items():
        yield f"{name}.{form}", _saved(figure, form)


def figures(reports: Sequence[AuditReport]) -> Figures:
    """The figures that the reports hold numbers for. Raises UsageError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("figures need matplotlib, which is not installed: pip install matplotlib")
    with _style():
        return Figures(_figures(_labelled(reports)))


def _saved(figure: "Figure", form: str) -> bytes:
    file = io.BytesIO()
    with _style():
        figure.savefig(file, format=form, metadata={"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form))
    return file.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """Within: the user's own matplotlibrc does not count. A letter that the font lacks is drawn as a box, without a warning."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _figures(reports: Sequence[Labelled]) -> Iterator[tuple[str, "Figure"]]:
    for label, report in reports:
        for name, chart in charts_of(report, label).items():
            yield f"{name}-{_file_name(label)}", _drawn(chart)
    if len(reports) > 1:
        for name, chart in _across(reports):
            yield name, _drawn(chart)
    for norm in dict.fromkeys(report.protocol.threat.norm for _, report in reports):
        chosen = [(label, report) for label, report in reports if report.protocol.threat.norm == norm and report.curves]
        several = [
            (curve.attack if len(chosen) == 1 else f"{label}, {curve.attack}", curve)
            for label, report in chosen
            for curve in report.curves
        ]
        curves = radius_curves("Robust accuracy by radius", several, norm, _contexts(chosen, attacked=False))
        if curves is not None:
            yield f"curve-{norm}", _drawn(curves)


def _contexts(reports: Sequence[Labelled], attacked: bool = True) -> str:
    """What several reports were measured on: once where it is the same."""
    own = {label: context_of(report, attacked) for label, report in reports}
    if len(set(own.values())) == 1:
        return next(iter(own.values()))
    return "\n".join(f"{label}: {context}" for label, context in own.items())


def _across(reports: Sequence[Labelled]) -> Iterator[tuple[str, Chart]]:
    """The figures that show several networks together, or one before and after hardening."""
    by_name = [{outcome.name: outcome for outcome in report.outcomes} for _, report in reports]
    common = [name for name in by_name[0] if all(name in outcomes for outcomes in by_name)]
    for attack in common:
        several = [(label, outcomes[attack]) for (label, _), outcomes in zip(reports, by_name, strict=True)]
        curves = layer_curves(f"Layers under {attack}", several, reports[0][1].protocol.measure)
        if curves is not None and len(curves.lines) > 1:
            attacked = by_name[0][attack].kind != "noise"
            yield f"layers-models-{_file_name(attack)}", replace(curves, context=_contexts(reports, attacked))
    bars = [Bar(label, number % len(COLOURS)) for number, (label, _) in enumerate(reports)]
    verdicts = [report.verdict for _, report in reports]
    weakest = [weakest_class(report) for _, report in reports]
    rates = [("clean", [verdict.clean for verdict in verdicts])]
    rates += [(name, [outcomes[name].robust for outcomes in by_name]) for name in common]
    groups = [BarGroup(name, [point(rate) for rate in found]) for name, found in rates]
    groups.append(BarGroup("worst case", [point(verdict.robust) for verdict in verdicts]))
    groups.append(BarGroup("worst class", [NO_POINT if row is None else point(row.robust) for row in weakest]))
    yield "models", BarChart("Accuracy", bars, groups, _contexts(reports))
    names = reports[0][1].subject.class_names
    if len(names) <= SHOWN_CLASSES and all([row.name for row in verdict.classes] == names for verdict in verdicts):
        groups = [BarGroup(name, [point(v.classes[i].robust) for v in verdicts]) for i, name in enumerate(names)]
        yield "models-classes", BarChart("Robust accuracy by class", bars, groups, _contexts(reports))


# ---- drawing -----------------------------------------------------------------------------------------------


def _drawn(chart: Chart) -> "Figure":
    """With its context below the title."""
    if isinstance(chart, LineChart):
        figure = _lines(chart)
    else:
        figure = _bars(chart) if isinstance(chart, BarChart) else _heat_map(chart)
    figure.axes[0].set_title(f"{chart.title}\n{chart.context}" if chart.context else chart.title)
    return figure


def _lines(chart: LineChart) -> "Figure":
    figure, axes = _axes(3.2)
    scale = 100 if chart.percent else 1
    x = chart.places if chart.places is not None else range(1, len(chart.labels) + 1)
    for number, line in enumerate(chart.lines):
        colour = COLOURS[chart.colour(number)]
        # On a numeric axis a line connects all its points; on an axis of names it has a gap where a point is missing.
        kept = [i for i, at in enumerate(line.points) if at[0] is not None or chart.places is None]
        where = [x[i] for i in kept]
        middle, low, high = ([_scaled(line.points[i][end], scale) for i in kept] for end in range(3))
        axes.plot(where, middle, label=line.name, color=colour, **_style_of(number))
        axes.fill_between(where, low, high, color=colour, alpha=0.16, linewidth=0)
    for name, limit, place in chart.limits:
        axes.axhline(scale * limit, label=name, color=COLOURS[place % len(COLOURS)], linewidth=1, linestyle=":")
    axes.set_xlabel(chart.x_title)
    if chart.places is not None:
        if len(chart.places) <= 8:
            axes.set_xticks(chart.places, chart.labels)
    elif len(chart.labels) <= _NAMED_LAYERS:
        _name_places(axes, range(1, len(chart.labels) + 1), chart.labels, _WIDTH)
    else:
        axes.set_xlabel("layer index")
    axes.set(ylabel=f"{chart.y_title} (%)" if chart.percent else chart.y_title)
    axes.set_ylim(*((-2, 102) if chart.percent else (0, None)))
    axes.legend(ncols=2 if len(chart.lines) > 4 else 1)
    return figure


def _style_of(number: int) -> dict[str, Any]:
    dashes = DASHES[number % len(DASHES)]
    return {"linestyle": (0, dashes) if dashes else "-", "marker": _SHAPES[MARKS[number % len(MARKS)]]}


def _bars(chart: BarChart) -> "Figure":
    """A group of bars for each name, with 95% intervals; a rate that does not exist has no bar."""
    width = max(_WIDTH, 0.32 * len(chart.groups) * len(chart.bars))
    figure, axes = _axes(3.0, width)
    thick = 0.8 / len(chart.bars)
    for number, bar in enumerate(chart.bars):
        known = [(i, group.points[number]) for i, group in enumerate(chart.groups)]
        there = [(i, value, low or 0.0, high or 0.0) for i, (value, low, high) in known if value is not None]
        axes.bar(
            [i + thick * (number - (len(chart.bars) - 1) / 2) for i, *_ in there],
            [100 * value for _, value, _, _ in there],
            thick,
            yerr=[[100 * max(0.0, v - low) for _, v, low, _ in there], [100 * max(0.0, high - v) for _, v, _, high in there]],
            label=bar.name, color=COLOURS[bar.colour], edgecolor="black", linewidth=0.5,
            hatch=("", "///", "...", "xxx", "\\\\\\")[number % 5], error_kw={"linewidth": 1, "capsize": 2},
        )  # fmt: skip
    names = [group.name for group in chart.groups]
    turned = _name_places(axes, range(len(names)), names, width)
    axes.set(ylabel="accuracy (%)", ylim=(0, 104))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35 if turned else -0.12), ncols=min(4, len(chart.bars)))
    return figure


def _heat_map(chart: HeatMap) -> "Figure":
    rows, columns = chart.rows, chart.columns
    figure, axes = _axes(max(1.8, 0.24 * len(rows) + 1.2), max(_WIDTH, 0.42 * len(columns) + 1.6))
    cells = [[_scaled(value, 1) for value in row] for row in chart.values]
    image = axes.imshow(cells, cmap=_shades(), aspect="auto", vmin=0, vmax=chart.largest)
    axes.set_xticks(range(len(columns)), [short(name, _LONGEST) for name in columns], rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [short(name, _LONGEST) for name in rows])
    axes.grid(visible=False)
    axes.set(xlabel=chart.x_title, ylabel=chart.y_title)
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    if len(columns) <= 12 and len(rows) <= 40:
        for i, row in enumerate(chart.values):
            for j, value in enumerate(row):
                text = "-" if value is None else f"{value:.{chart.digits}f}"
                ink = "white" if value is not None and value > 0.85 * chart.largest else "black"
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color=ink)
    return figure


def _shades() -> "LinearSegmentedColormap":
    """Those of the page: of one colour, from almost white."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    full = to_rgb(COLOURS[HEAT])
    ends = [tuple(1 - share * (1 - part) for part in full) for share in (LIGHTEST, DARKEST)]
    return LinearSegmentedColormap.from_list("lsa", ends)


def _axes(height: float, width: float = _WIDTH) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _name_places(axes: "Axes", places: Sequence[int], several: Sequence[str], width: float) -> bool:
    """Write names under places of the x axis, turned if they would overlap. Returns whether they are turned.

    width: the figure's, in inches.
    """
    names = [short(name, _LONGEST) for name in several]
    room = width * 0.85 / max(1, len(names))
    turned = max((len(name) for name in names), default=0) * _CHARACTER > room
    axes.set_xticks(places, names, rotation=45 if turned else 0, ha="right" if turned else "center")
    return turned


def _scaled(value: float | None, scale: float) -> float:
    """NaN where there is no number: matplotlib leaves a gap."""
    return float("nan") if value is None else scale * value


def _labelled(reports: Sequence[AuditReport]) -> list[Labelled]:
    """Each report with its checkpoint's name, the threat model where these differ, and a number where two names are equal."""
    threats = [f"{report.protocol.threat.norm} {report.protocol.threat.text}" for report in reports]
    names = [Path(file_name(report.subject.checkpoint)).stem or "model" for report in reports]
    if len(set(threats)) > 1:
        names = [f"{name}, {threat}" for name, threat in zip(names, threats, strict=True)]
    return list(zip(numbered(names), reports, strict=True))


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label).strip("-.") or "model"
