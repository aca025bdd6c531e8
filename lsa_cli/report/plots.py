"""Figures of one or several reports for papers and slides, by matplotlib, which is an optional extra.

Layer curves are drawn as in arXiv 2202.02626: the comparison measure over the layer's place in the network. Colours are
Okabe and Ito's, which colour-blind readers can tell apart; lines differ in dashes and marks too, so grey print will do.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.report.charts import short
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import AttackOutcome, AuditReport
from lsa_cli.report.tables import eps_as_text, strongest, weakest_first

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A6D00")
_DASHES = ("-", "--", ":", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1)))
_MARKS = "osD^vP*X"
_STYLE = {
    "font.family": "sans-serif", "font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#d9d9d9", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "lines.linewidth": 1.6, "lines.markersize": 4.5, "figure.constrained_layout.use": True,
    "savefig.dpi": 300, "pdf.fonttype": 42, "svg.hashsalt": "lsa", "text.parse_math": False,
}  # fmt: skip
_NAMED_LAYERS = 24  # more names than that cannot be read on a page
_CLASSES = 30
_WIDTH = 6.3  # inches: a column of A4
_LONGEST = 24  # characters of a name
_CHARACTER = 0.08  # inches that one takes, with some air

Labelled = tuple[str, AuditReport]


def draw(reports: Sequence[AuditReport], form: str) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of each figure that the reports hold numbers for; form is one of FORMATS."""
    import matplotlib.style

    # Whatever the user's own matplotlibrc says; and a letter that the font lacks is drawn as a box, which can be seen.
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, figure in _figures(_labelled(reports)):
            file = io.BytesIO()
            figure.savefig(file, format=form, metadata={"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form))
            yield f"{name}.{form}", file.getvalue()


def _figures(reports: Sequence[Labelled]) -> Iterator[tuple[str, "Figure"]]:
    for label, report in reports:
        yield from _of_one(label, report)
    if len(reports) > 1:
        yield from _across(reports)
    for norm in dict.fromkeys(report.protocol.threat.norm for _, report in reports):
        chosen = [(label, report) for label, report in reports if report.protocol.threat.norm == norm and report.curves]
        if chosen:
            yield f"curve-{norm}", _radius_curves(chosen, norm)


def _of_one(label: str, report: AuditReport) -> Iterator[tuple[str, "Figure"]]:
    name = _file_name(label)
    for what, outcomes in (
        ("attacks", [o for o in report.outcomes if o.kind != "noise"]),
        ("noises", [o for o in report.outcomes if o.kind == "noise"]),
    ):
        lines = [(outcome.name, outcome) for outcome in outcomes if outcome.layers is not None]
        if lines:
            yield (
                f"layers-{what}-{name}",
                _layer_curves(f"{label}: layers under {what}", lines, report.protocol.measure),
            )
    if report.verdict.classes:
        yield f"classes-{name}", _class_bars(label, report)
    top = strongest(report)
    if top is not None:
        shown = [row.name for row in weakest_first(report.verdict.classes)[:_CLASSES]]
        at = [i for i, known in enumerate(report.subject.class_names) if known in shown]
        names = [report.subject.class_names[i] for i in at]
        if top.layers is not None and top.layers.by_class is not None:
            table = [[row[i] for i in at] for row in top.layers.by_class]
            title = f"{label}: mean {report.protocol.measure} under {top.name}"
            yield (
                f"layer-by-class-{name}",
                _heat_map(title, [row.name for row in top.layers.rows], names, table, "class", "", 2),
            )
        moved = [[None if i == j else float(top.confusion[i][j]) for j in at] for i in at]
        title = f"{label}: where {top.name} sends each class"
        yield f"confusion-{name}", _heat_map(title, names, names, moved, "class under the attack", "true class", 0)


def _across(reports: Sequence[Labelled]) -> Iterator[tuple[str, "Figure"]]:
    """What several reports have in common, one next to the other: several networks, or before and after hardening."""
    by_name = [{outcome.name: outcome for outcome in report.outcomes} for _, report in reports]
    common = [name for name in by_name[0] if all(name in outcomes for outcomes in by_name)]
    for attack in common:
        lines = [
            (label, outcomes[attack])
            for (label, _), outcomes in zip(reports, by_name, strict=True)
            if outcomes[attack].layers is not None
        ]
        if len(lines) > 1:
            yield (
                f"layers-models-{_file_name(attack)}",
                _layer_curves(f"Layers under {attack}", lines, reports[0][1].protocol.measure),
            )
    groups: list[tuple[str, list[Rate | None]]] = [("clean", [report.verdict.clean for _, report in reports])]
    groups += [(name, [outcomes[name].robust for outcomes in by_name]) for name in common]
    groups.append(("worst case", [report.verdict.robust for _, report in reports]))
    groups.append(
        (
            "worst class",
            [next((r.robust for r in weakest_first(report.verdict.classes)), None) for _, report in reports],
        )
    )
    yield "models", _grouped_bars("Accuracy", groups, [label for label, _ in reports])
    names = reports[0][1].subject.class_names
    if len(names) <= _CLASSES and all([r.name for r in report.verdict.classes] == names for _, report in reports):
        rows = [[report.verdict.classes[i].robust for _, report in reports] for i in range(len(names))]
        bars: list[tuple[str, list[Rate | None]]] = [(name, list(row)) for name, row in zip(names, rows, strict=True)]
        yield "models-classes", _grouped_bars("Robust accuracy by class", bars, [label for label, _ in reports])


def _layer_curves(title: str, lines: Sequence[tuple[str, AttackOutcome]], measure: str) -> "Figure":
    figure, axes = _axes(3.2)
    rows = [outcome.layers.rows for _, outcome in lines if outcome.layers is not None]
    for number, ((label, _), layers) in enumerate(zip(lines, rows, strict=True)):
        places = range(1, len(layers) + 1)
        axes.plot(places, _numbers([row.mean for row in layers]), label=label, **_line(number))
        low, high = _numbers([row.low for row in layers]), _numbers([row.high for row in layers])
        axes.fill_between(places, low, high, color=_COLOURS[number % len(_COLOURS)], alpha=0.18, linewidth=0)
    names = [row.name for row in rows[0]]
    if len(names) <= _NAMED_LAYERS and all([row.name for row in layers] == names for layers in rows):
        _name_places(axes, range(1, len(names) + 1), names, _WIDTH)
        axes.set_xlabel("layer, in the order they run")
    else:
        axes.set_xlabel("layer index")
    axes.set(title=title, ylabel=f"mean {measure}")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=2 if len(lines) > 4 else 1)
    return figure


def _radius_curves(reports: Sequence[Labelled], norm: str) -> "Figure":
    figure, axes = _axes(3.2)
    number = 0
    for label, report in reports:
        for curve in report.curves:
            radii = [point.eps for point in curve.points]
            name = curve.attack if len(reports) == 1 else f"{label}, {curve.attack}"
            axes.plot(radii, _percents([p.robust.value for p in curve.points]), label=name, **_line(number))
            low, high = (_percents([getattr(p.robust, end) for p in curve.points]) for end in ("low", "high"))
            axes.fill_between(radii, low, high, color=_COLOURS[number % len(_COLOURS)], alpha=0.15, linewidth=0)
            number += 1
    ticks = sorted({point.eps for _, report in reports for curve in report.curves for point in curve.points})
    if len(ticks) <= 8:
        axes.set_xticks(ticks, [eps_as_text(eps) for eps in ticks])
    axes.set(title="Robust accuracy by radius", xlabel=f"eps ({norm})", ylabel="robust accuracy (%)", ylim=(-2, 102))
    axes.legend()
    return figure


def _class_bars(label: str, report: AuditReport) -> "Figure":
    rows = weakest_first(report.verdict.classes)[:_CLASSES]
    more = f" ({len(rows)} weakest of {len(report.verdict.classes)})" if len(rows) < len(report.verdict.classes) else ""
    groups: list[tuple[str, list[Rate | None]]] = [(row.name, [row.clean, row.robust]) for row in rows]
    return _grouped_bars(f"{label}: accuracy by class{more}", groups, ["clean", "robust, worst case"])


def _grouped_bars(title: str, groups: Sequence[tuple[str, Sequence[Rate | None]]], labels: Sequence[str]) -> "Figure":
    """A group of bars for each name, one a label, with 95% intervals; a rate that does not exist has no bar."""
    width = max(_WIDTH, 0.32 * len(groups) * len(labels))
    figure, axes = _axes(3.0, width)
    thick = 0.8 / len(labels)
    for number, label in enumerate(labels):
        known = [(i, rates[number]) for i, (_, rates) in enumerate(groups)]
        there = [(i, r.value, r.low or 0.0, r.high or 0.0) for i, r in known if r is not None and r.value is not None]
        axes.bar(
            [i + thick * (number - (len(labels) - 1) / 2) for i, *_ in there],
            [100 * value for _, value, _, _ in there],
            thick,
            yerr=[[100 * max(0.0, v - low) for _, v, low, _ in there], [100 * max(0.0, high - v) for _, v, _, high in there]],
            label=label, color=_COLOURS[number % len(_COLOURS)], edgecolor="black", linewidth=0.5,
            hatch=("", "///", "...", "xxx", "\\\\\\")[number % 5], error_kw={"linewidth": 1, "capsize": 2},
        )  # fmt: skip
    names = [name for name, _ in groups]
    turned = _name_places(axes, range(len(names)), names, width)
    axes.set(title=title, ylabel="accuracy (%)", ylim=(0, 104))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35 if turned else -0.12), ncols=min(4, len(labels)))
    return figure


def _heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], x: str, y: str,
    digits: int,
) -> "Figure":  # fmt: skip
    figure, axes = _axes(max(1.8, 0.24 * len(rows) + 1.2), max(_WIDTH, 0.42 * len(columns) + 1.6))
    image = axes.imshow([_numbers(row) for row in values], cmap="cividis", aspect="auto", vmin=0)
    axes.set_xticks(range(len(columns)), [short(name, _LONGEST) for name in columns], rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [short(name, _LONGEST) for name in rows])
    axes.grid(visible=False)
    axes.set(title=title, xlabel=x, ylabel=y)
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    largest = max((value for row in values for value in row if value is not None), default=0.0) or 1.0
    if len(columns) <= 12 and len(rows) <= 40:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                text = "-" if value is None else f"{value:.{digits}f}"
                dark = value is None or value < 0.55 * largest
                axes.text(
                    j,
                    i,
                    text,
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="black" if value is None else "white" if dark else "black",
                )
    return figure


def _axes(height: float, width: float = _WIDTH) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _name_places(axes: "Axes", places: Sequence[int], several: Sequence[str], width: float) -> bool:
    """Write names under places of the x axis, aslant where they would run into each other; whether they are.

    width: the figure's, in inches.
    """
    names = [short(name, _LONGEST) for name in several]
    room = width * 0.85 / max(1, len(names))
    aslant = max((len(name) for name in names), default=0) * _CHARACTER > room
    axes.set_xticks(places, names, rotation=45 if aslant else 0, ha="right" if aslant else "center")
    return aslant


def _line(number: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKS[number % len(_MARKS)],
    }


def _numbers(values: Sequence[float | None]) -> list[float]:
    """With gaps where there is no number."""
    return [float("nan") if value is None else value for value in values]


def _percents(values: Sequence[float | None]) -> list[float]:
    return [100 * value for value in _numbers(values)]


def _labelled(reports: Sequence[AuditReport]) -> list[Labelled]:
    """Each report under its checkpoint's name, with the threat model where they differ, told apart by a number."""
    threats = [f"{report.protocol.threat.norm} {report.protocol.threat.text}" for report in reports]
    names = [Path(report.subject.checkpoint.replace("\\", "/")).stem or "model" for report in reports]
    if len(set(threats)) > 1:
        names = [f"{name}, {threat}" for name, threat in zip(names, threats, strict=True)]
    return [
        (name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})", report)
        for place, (name, report) in enumerate(zip(names, reports, strict=True))
    ]


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label).strip("-.") or "model"
