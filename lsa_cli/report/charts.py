"""Figures (figures.py) as HTML with SVG for the page, without a plotting library.

A figure takes the width that it is given: what depends on the width is stated in percent of it, and letters keep their size on
every screen. The page's style colours the classes s0 .. s7, which are the places in COLOURS. Every text from outside is escaped.
The label of a figure describes what it shows, for readers who do not see it.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lsa_cli.errors import printable
from lsa_cli.report.figures import (
    COLOURS,
    DARKEST,
    DASHES,
    LIGHTEST,
    MARKS,
    BarChart,
    BarGroup,
    Chart,
    HeatMap,
    LineChart,
    Point,
)
from lsa_cli.report.text import percent

# A mark of half-width 1 around the origin.
_PATHS = {
    "circle": "M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0",
    "square": "M-.9-.9h1.8v1.8h-1.8z",
    "triangle": "M0-1.15L1.1.8H-1.1z",
    "diamond": "M0-1.25L1.25 0 0 1.25-1.25 0z",
}
_LIMIT = Markup('<path d="M0,0v24m0,-22l-5-6h10z" class="limit"/>')
_TOP, _HEIGHT, _SPAN = 12, 240, 1000  # of a line chart; _SPAN: units of a line's x over the whole width
_ROW = 30  # height of a group of bars
_NARROW, _ROOMY = 270, 600  # pixels between the axes, on a phone and on the narrowest other screen
_CHARACTER = 6.6  # width of one at 12 px, about
_DESCRIBED = 8  # groups of bars in the label


def draw(chart: Chart) -> Markup:
    if isinstance(chart, LineChart):
        return line_chart(chart)
    return bar_chart(chart) if isinstance(chart, BarChart) else heat_map(chart)


def svg_of(width: float, height: float, title: str, words: str, parts: Sequence[Markup]) -> Markup:
    """A drawing that grows and shrinks as a whole. Its letters would, too: it has none."""
    return Markup('<svg viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}"><title>{}</title>{}</svg>').format(
        round(width), round(height), round(width), f"{title}. {words}", title, Markup("").join(parts)
    )


def _plot(height: float, sides: tuple[float, float], label: str, parts: Sequence[Markup]) -> Markup:
    """A drawing as wide as its place, less the space on its left and right, into which only words reach.

    label: "" for one whose words stand beside it."""
    left, right = map(round, sides)
    said = Markup('role="img" aria-label="{}"').format(label) if label else Markup('aria-hidden="true"')
    return Markup(
        '<svg class="plot" height="{}" style="margin: 0 {}px 0 {}px; width: calc(100% - {}px)" {}>{}</svg>'
    ).format(round(height), right, left, left + right, said, Markup("").join(parts))


def _at(x: float | str, y: float, content: Markup, extra: str = "") -> Markup:
    """A drawing around a point. x: a share of the width, or pixels as text."""
    return Markup('<svg class="at{}" x="{}" y="{}">{}</svg>').format(
        extra, x if isinstance(x, str) else _share(x), f"{y:.1f}", content
    )


def _share(x: float) -> str:
    return f"{100 * x:.2f}%"


def text_at(x: float | str, y: float, text: object, anchor: str = "middle", extra: str = "") -> Markup:
    """Text at a share of the width, or at pixels given as text."""
    return Markup('<text x="{}" y="{}" text-anchor="{}"{}>{}</text>').format(
        x if isinstance(x, str) else _share(x), f"{y:.1f}", anchor, Markup(f" {extra}" if extra else ""), text
    )


def rule(x1: float | str, y1: float, x2: float | str, y2: float, css: str) -> Markup:
    """A line between two points; x as in text_at."""
    a, b = (x if isinstance(x, str) else _share(x) for x in (x1, x2))
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(a, f"{y1:.1f}", b, f"{y2:.1f}", css)


def _mark(number: int, size: float, css: str, colour: int, hint: str = "") -> Markup:
    return Markup('<path d="{}" transform="scale({})" class="{} s{}">{}</path>').format(
        _PATHS[MARKS[number % len(MARKS)]], size, css, colour, _title(hint)
    )


def _title(hint: str) -> Markup:
    return Markup("<title>{}</title>").format(hint) if hint else Markup()


def _head(what: str, context: str) -> Markup:
    """What is drawn, and on what it was measured, which comes from outside."""
    parts = [Markup("<span>{}</span>").format(what)] if what else []
    parts += [Markup('<span class="foreign known">{}</span>').format(context)] if context else []
    return Markup('<p class="axis head">{}</p>').format(Markup("").join(parts)) if parts else Markup()


def _legend(items: Sequence[tuple[Markup, str]]) -> Markup:
    """A sample of each line, bar or mark, 28 pixels wide around the middle of its height, with its name."""
    rows = [
        Markup('<li><svg width="28" height="14" aria-hidden="true">{}</svg><span>{}</span></li>').format(sample, name)
        for sample, name in items
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(rows)) if rows else Markup()


def short(name: str, length: int = 18) -> str:
    """A name that is as wide as `length` usual characters at most; a wider one is cut in the middle, where names differ least."""
    name, room = printable(name), 1.1 * length * _CHARACTER
    if len(name) <= length and _length(name) <= room:
        return name
    for count in range(min(length, len(name)), 2, -1):
        head = (count - 1) // 2
        cut = f"{name[:head]}…{name[-(count - 1 - head) :]}"
        if _length(cut) <= room:
            break
    return cut


def _length(text: str) -> float:
    """The approximate width of a text in pixels; East Asian characters are twice as wide as most."""
    wide = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 * (c in "%…@mwMW") for c in text)
    return (len(text) + wide) * _CHARACTER


def round_ticks(top: float) -> list[float]:
    """Round numbers from 0 to at least `top`, four to seven of them."""
    if top <= 0:
        return [0.0, 1.0]
    magnitude = 10.0 ** (len(str(int(top))) - 1) if top >= 1 else 0.1
    while top < magnitude:
        magnitude /= 10
    step = next(s * magnitude for s in (0.2, 0.25, 0.5, 1, 2, 5) if top / (s * magnitude) <= 6)
    count = int(top / step - 1e-9) + 1
    return [round(step * i, 10) for i in range(count + 1)]


def runs_of(points: Sequence[Point]) -> list[list[int]]:
    """The places that have a value, in runs without a gap: no line is drawn through a gap."""
    runs: list[list[int]] = [[]]
    for i, (value, _, _) in enumerate(points):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(i)
    return [run for run in runs if run]


# ---- lines -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plane:
    """Where the places and values of a line chart lie on the drawing: x as a share of its width, y in pixels."""

    chart: LineChart

    @property
    def ticks(self) -> list[float]:
        ends = [v for line in self.chart.lines for p in line.points for v in (p[0], p[2]) if v is not None]
        return round_ticks(1.0 if self.chart.percent else max(ends, default=1.0))

    def x(self, place: int) -> float:
        places = self.chart.places
        share = (place + 0.5) / max(1, len(self.chart.labels))
        if places is not None:
            share = places[place] / max(places) if max(places) else 0.0
        return 0.01 + 0.98 * share

    def y(self, value: float) -> float:
        return _TOP + _HEIGHT * (1 - value / self.ticks[-1])

    def text(self, value: float) -> str:
        return percent(value) if self.chart.percent else f"{value:.3f}"


def line_chart(chart: LineChart) -> Markup:
    """Lines with their intervals as bands, and a legend."""
    plane = _Plane(chart)
    grid, below, left = _axes(plane)
    strokes = [stroke for number in range(len(chart.lines)) for stroke in _strokes(plane, number)]
    marks = [mark for number in range(len(chart.lines)) for mark in _marks(plane, number)]
    stretched = Markup(
        '<svg viewBox="0 0 {0} {1}" preserveAspectRatio="none" width="100%" height="{1}">{2}</svg>'
    ).format(_SPAN, round(below), Markup("").join(strokes))
    samples = [
        (
            _stroke("M0,7h28", number, chart.colour(number))
            + _at("14", 7, _mark(number, 3, "dot", chart.colour(number))),
            line.name,
        )
        for number, line in enumerate(chart.lines)
    ]
    limits = []
    for name, value, colour in chart.limits:
        css = f"line limit-line s{colour % len(COLOURS)}"
        limits.append(rule(0, plane.y(value), 1, plane.y(value), css))
        samples.append((rule("0", 7, "28", 7, css), f"{name} {plane.text(value)}"))
    words = [
        f"{line.name} from {plane.text(v[0])} to {plane.text(v[-1])}"
        for line in chart.lines
        if (v := [p[0] for p in line.points if p[0] is not None])
    ]
    label = f"{chart.title}. {'; '.join(words)}"
    drawing = _plot(below, (left, 24), label, [*grid, stretched, *marks, *limits])
    x_title = Markup('<p class="axis x">{}</p>').format(chart.x_title) if chart.x_title else Markup()
    return Markup('<div class="chart">{}{}{}{}</div>').format(
        _head(chart.y_title, chart.context), drawing, x_title, _legend(samples)
    )


def _axes(plane: _Plane) -> tuple[list[Markup], float, float]:
    """The grid with its labels, the y below them, and the space that they need on the left."""
    chart, parts = plane.chart, []
    for tick in plane.ticks:
        text = f"{100 * tick:.0f}%" if chart.percent else f"{tick:g}"
        parts += [rule(0, plane.y(tick), 1, plane.y(tick), "grid"), text_at("-6", plane.y(tick) + 4, text, "end")]
    names = [short(name) for name in chart.labels]
    turned = len(names) > 10 or any(len(name) > 9 for name in names)
    foot = _TOP + _HEIGHT + (14 if turned else 18)
    last = {_NARROW: -1e9, _ROOMY: -1e9}
    for place, name in enumerate(names):
        x, need = plane.x(place), 16 if turned else _length(name) * 0.95
        fits = {width: x * width - before >= need for width, before in last.items()}  # otherwise labels overlap
        if not fits[_ROOMY]:
            continue
        last = {width: x * width if fits[width] else before for width, before in last.items()}
        css = "" if fits[_NARROW] else "roomy"
        if turned:
            words = text_at("0", 0, name, "end", 'transform="rotate(-55)"')
            parts.append(_at(x, foot, words, f" {css}" if css else ""))
        else:
            parts.append(text_at(x, foot, name, "middle", f'class="{css}"' if css else ""))
    longest = max(map(_length, names), default=0)
    if not turned:
        return parts, foot + 6, 50
    return parts, foot + longest * 0.82 + 4, max(50, longest * 0.58 - plane.x(0) * _NARROW)


def _strokes(plane: _Plane, number: int) -> list[Markup]:
    """The band and the line, with x in units of the stretched drawing."""
    line, colour, parts = plane.chart.lines[number], plane.chart.colour(number), []
    for run in runs_of(line.points):
        around = [(_SPAN * plane.x(i), *(plane.y(v) for v in line.points[i][1:] if v is not None)) for i in run]
        band = [place for place in around if len(place) == 3]
        if band:
            edge = [f"{at:.1f},{low:.1f}" for at, low, _ in band]
            edge += [f"{at:.1f},{high:.1f}" for at, _, high in reversed(band)]
            parts.append(Markup('<path d="M{}Z" class="band s{}"/>').format("L".join(edge), colour))
        path = "L".join(f"{_SPAN * plane.x(i):.1f},{plane.y(line.points[i][0] or 0.0):.1f}" for i in run)
        parts.append(_stroke(f"M{path}", number, colour))
    return parts


def _marks(plane: _Plane, number: int) -> list[Markup]:
    line, colour, parts = plane.chart.lines[number], plane.chart.colour(number), []
    for i, (value, _, _) in enumerate(line.points):
        if value is not None:
            ring = _mark(0, 7, "ring", colour) if i in line.stressed else Markup()
            hint = f"{line.name}, {plane.chart.labels[i]}: {plane.text(value)}"
            parts.append(_at(plane.x(i), plane.y(value), ring + _mark(number, 3, "dot", colour, hint)))
    return parts


def _stroke(path: str, number: int, colour: int) -> Markup:
    dashes = " ".join(map(str, DASHES[number % len(DASHES)]))
    return Markup('<path d="{}" class="line s{}" stroke-dasharray="{}"/>').format(path, colour, dashes)


# ---- bars --------------------------------------------------------------------------------------------------


def bar_chart(chart: BarChart) -> Markup:
    """Horizontal bars from 0 to 100% with their intervals, each group behind its name and the value of its last bar. On a
    narrow screen name and value stand above the bars, so that these have the whole width."""
    rows = []
    for group in chart.groups:
        shown = group.points[-1][0]
        value = "" if shown is None else percent(shown)
        css = "foreign" if group.is_foreign else "foreign known"
        rows.append(
            Markup('<span class="{}">{}</span><b>{}</b>{}').format(
                css, short(group.name, 40), value, _group(chart, group)
            )
        )
    ticks = [text_at(share, 12, f"{100 * share:.0f}%") for share in (0, 0.25, 0.5, 0.75, 1.0)]
    samples = [(_rect("8", 2, "12", 10, bar.colour), bar.name) for bar in chart.bars if bar.name]
    samples.append((_interval(("4", "24"), 7), "95% interval"))
    if any(group.limit is not None for group in chart.groups):
        samples.append(
            (Markup('<svg class="at" x="14" y="6"><path d="M0,0v8m0,-6l-5-6h10z" class="limit"/></svg>'), "limit")
        )
    return Markup('<div class="chart" role="group" aria-label="{}">{}<div class="bars">{}{}</div>{}</div>').format(
        f"{chart.title}. {_bars_in_words(chart)}",
        _head("accuracy", chart.context),
        Markup("").join(rows),
        _plot(16, _SIDES, "", ticks),
        _legend(samples),
    )


_SIDES = (10, 20)


def _group(chart: BarChart, group: BarGroup) -> Markup:
    thick = 22 // len(chart.bars) - 1
    parts = [rule(share, 0, share, _ROW, "grid") for share in (0, 0.25, 0.5, 0.75, 1.0)]
    for number, (bar, at) in enumerate(zip(chart.bars, group.points, strict=True)):
        colour = bar.colour if group.colour is None else group.colour
        parts += _bar(at, colour, ", ".join(filter(None, (group.name, bar.name))), 4 + number * (thick + 1), thick)
    if group.limit is not None:
        parts.append(_at(group.limit, 3, _LIMIT + _title(f"limit: {100 * group.limit:.4g}%")))
    return _plot(_ROW, _SIDES, "", parts)


def _bar(at: Point, colour: int, hint: str, y: float, thick: int) -> list[Markup]:
    """One bar with its interval."""
    value, low, high = at
    if value is None:
        return [text_at("4", y + thick / 2 + 4, "no samples", "start", 'class="faint"')]
    parts = [_rect("0", y, _share(value), thick, colour, f"{hint}: {percent(value)}")]
    return parts if low is None or high is None else [*parts, _interval((_share(low), _share(high)), y + thick / 2)]


def _interval(ends: tuple[str, str], y: float) -> Markup:
    parts = [rule(ends[0], y, ends[1], y, "error"), *(rule(x, y - 4, x, y + 4, "error") for x in ends)]
    return Markup("").join(parts)


def _rect(x: str, y: float, width: str, height: float, colour: int, hint: str = "") -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="1" class="bar s{}">{}</rect>').format(
        x, f"{y:.1f}", width, height, colour, _title(hint)
    )


def _bars_in_words(chart: BarChart) -> str:
    words = []
    for group in chart.groups[:_DESCRIBED]:
        known = [(bar.name, at[0]) for bar, at in zip(chart.bars, group.points, strict=True) if at[0] is not None]
        words.append(f"{group.name} " + ", ".join(f"{percent(value)} {what}".rstrip() for what, value in known))
    more = [f"and {len(chart.groups) - _DESCRIBED} more"] if len(chart.groups) > _DESCRIBED else []
    return "; ".join([*words, *more])


# ---- cells -------------------------------------------------------------------------------------------------


def heat_map(chart: HeatMap) -> Markup:
    """Cells shaded by value / largest, with the numbers in them while there is room; no value: a dash. The columns are as wide
    as there is room, within bounds; beyond these the map scrolls."""
    rows, columns, digits = chart.rows, chart.columns, chart.digits
    wide, count, cell_h = len(columns) <= 14, max(1, len(columns)), 24
    left = 12 + max((_length(short(name, 22)) for name in rows), default=0)
    head = 18 + max((_length(short(name, 12)) for name in columns), default=0) * 0.72
    parts = []
    for j, name in enumerate(columns):
        words = text_at("0", 0, short(name, 12), "start", 'transform="rotate(-45)"')
        parts.append(_at((j + 0.5) / count, head - 6, words))
    for i, name in enumerate(rows):
        y = head + cell_h * i
        parts.append(text_at("-8", y + 16, short(name, 22), "end"))
        for j, value in enumerate(chart.values[i]):
            share = 0.0 if value is None else max(0.0, min(1.0, value / chart.largest))
            text = "-" if value is None else f"{value:.{digits}f}"
            hint = _title(f"{name} / {columns[j]}: {text}")
            parts.append(
                Markup('<rect x="{}" y="{}" width="{}" height="{}" class="cell" fill-opacity="{}">{}</rect>').format(
                    _share(j / count),
                    f"{y:.1f}",
                    _share(1 / count),
                    cell_h,
                    f"{LIGHTEST + (DARKEST - LIGHTEST) * share:.3f}",
                    hint,
                )
            )
            if wide:
                # The shade decides between dark and light ink, and not at the same share in both colour schemes.
                ink = 'class="on"' if share > 0.85 else 'class="mid"' if share > 0.7 else ""
                parts.append(text_at((j + 0.5) / count, y + 16, text, "middle", ink))
    found = [
        (rows[i], columns[j]) for i, row in enumerate(chart.values) for j, v in enumerate(row) if v == chart.largest
    ]
    largest = f"Largest: {chart.largest:.{digits}f}, {' / '.join(found[0])}" if found else ""
    least, most, sides = 28 if wide else 14, 62 if wide else 30, left + 0.7 * head
    drawing = _plot(head + cell_h * len(rows) + 2, (left, 0.7 * head), f"{chart.title}. {largest}", parts)
    return Markup('<div class="chart" style="min-width: {:.0f}px; max-width: {:.0f}px">{}{}</div>').format(
        least * count + sides, most * count + sides, _head(chart.y_title, chart.context), drawing
    )
