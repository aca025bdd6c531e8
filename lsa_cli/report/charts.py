"""Figures (figures.py) as SVG text for the page, without a plotting library.

The page's style colours the classes s0 .. s7, which are the places in COLOURS. Every text from outside is escaped. The label
of a figure says in words what the figure shows.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lsa_cli.errors import printable
from lsa_cli.report.figures import COLOURS, DASHES, MARKS, BarChart, Chart, HeatMap, LineChart, Point
from lsa_cli.report.text import percent

# A mark of half-width 1 around the origin.
_PATHS = {
    "circle": "M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0",
    "square": "M-.9-.9h1.8v1.8h-1.8z",
    "triangle": "M0-1.15L1.1.8H-1.1z",
    "diamond": "M0-1.25L1.25 0 0 1.25-1.25 0z",
}
_LEFT, _RIGHT, _TOP, _HEIGHT = 56, 24, 12, 240
_CHARACTER = 6.6  # width of one at 12 px, about
_DESCRIBED = 8  # groups of bars in the label


def draw(chart: Chart) -> Markup:
    if isinstance(chart, LineChart):
        return line_chart(chart)
    return bar_chart(chart) if isinstance(chart, BarChart) else heat_map(chart)


def svg_of(width: float, height: float, title: str, words: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}"><title>{}</title>{}</svg>').format(
        round(width), round(height), round(width), f"{title}. {words}", title, Markup("").join(parts)
    )


def text_at(x: float, y: float, text: object, anchor: str = "middle", extra: str = "") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}" {}>{}</text>').format(
        f"{x:.1f}", f"{y:.1f}", anchor, Markup(extra), text
    )


def rule(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(
        f"{x1:.1f}", f"{y1:.1f}", f"{x2:.1f}", f"{y2:.1f}", css
    )


def _mark(number: int, x: float, y: float, size: float, css: str, colour: int, hint: str = "") -> Markup:
    return Markup('<path d="{}" transform="translate({} {}) scale({})" class="{} s{}">{}</path>').format(
        _PATHS[MARKS[number % len(MARKS)]], f"{x:.1f}", f"{y:.1f}", size, css, colour, _title(hint)
    )


def _title(hint: str) -> Markup:
    return Markup("<title>{}</title>").format(hint) if hint else Markup()


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


@dataclass(frozen=True)
class _Plane:
    """Where the places and values of a line chart lie on the drawing."""

    chart: LineChart

    @property
    def width(self) -> int:
        count = len(self.chart.labels)
        return 720 if self.chart.places is not None else max(560, min(1080, 90 + 46 * count))

    @property
    def ticks(self) -> list[float]:
        ends = [v for line in self.chart.lines for p in line.points for v in (p[0], p[2]) if v is not None]
        return round_ticks(1.0 if self.chart.percent else max(ends, default=1.0))

    def x(self, place: int) -> float:
        places = self.chart.places
        share = (place + 0.5) / max(1, len(self.chart.labels))
        if places is not None:
            share = places[place] / max(places) if max(places) else 0.0
        return _LEFT + (self.width - _LEFT - _RIGHT) * (0.01 + 0.98 * share)

    def y(self, value: float) -> float:
        return _TOP + _HEIGHT * (1 - value / self.ticks[-1])

    def text(self, value: float) -> str:
        return percent(value) if self.chart.percent else f"{value:.3f}"


def line_chart(chart: LineChart) -> Markup:
    """Lines with their intervals as bands, and a legend."""
    plane = _Plane(chart)
    parts, below = _axes(plane)
    for number in range(len(chart.lines)):
        parts += _line(plane, number)
    for name, value, colour in chart.limits:
        y, right = plane.y(value), plane.width - _RIGHT
        parts += [
            Markup('<path d="M{},{}H{}" class="line limit-line s{}"/>').format(
                _LEFT, f"{y:.1f}", right, colour % len(COLOURS)
            )
        ]
        parts += [text_at(right, y - 5, f"{name} {plane.text(value)}", "end", 'class="over"')]
    legend, bottom = _legend(plane, below + 22)
    middle = _TOP + _HEIGHT / 2
    parts += [*legend, text_at(12, middle, chart.y_title, "middle", f'transform="rotate(-90 12 {middle:.0f})"')]
    words = [
        f"{line.name} from {plane.text(v[0])} to {plane.text(v[-1])}"
        for line in chart.lines
        if (v := [p[0] for p in line.points if p[0] is not None])
    ]
    return svg_of(plane.width, bottom + 12, chart.title, "; ".join(words), parts)


def _axes(plane: _Plane) -> tuple[list[Markup], float]:
    """The grid with its labels, and the y below them."""
    chart, parts = plane.chart, []
    for tick in plane.ticks:
        parts.append(rule(_LEFT, plane.y(tick), plane.width - _RIGHT, plane.y(tick), "grid"))
        parts.append(
            text_at(_LEFT - 6, plane.y(tick) + 4, f"{100 * tick:.0f}%" if chart.percent else f"{tick:g}", "end")
        )
    turned = len(chart.labels) > 10 or any(len(name) > 9 for name in chart.labels)
    foot, last = _TOP + _HEIGHT + (14 if turned else 18), -1e9
    for place, label in enumerate(chart.labels):
        x = plane.x(place)
        if x - last >= (15 if turned else _length(short(label)) * 0.9):  # otherwise labels overlap
            at = f'transform="rotate(-50 {x:.1f} {foot})"' if turned else ""
            parts.append(text_at(x, foot, short(label), "end" if turned else "middle", at))
            last = x
    longest = max((_length(short(name)) for name in chart.labels), default=0)
    below = foot + (longest * 0.75 + 6 if turned else 6)
    if chart.x_title:
        parts.append(text_at(_LEFT + (plane.width - _LEFT - _RIGHT) / 2, below + 12, chart.x_title))
        below += 18
    return parts, below


def _line(plane: _Plane, number: int) -> list[Markup]:
    """The band, the line and the marks of one line."""
    line, colour, parts = plane.chart.lines[number], plane.chart.colour(number), []
    for run in runs_of(line.points):
        around = [(plane.x(i), *(plane.y(v) for v in line.points[i][1:] if v is not None)) for i in run]
        band = [place for place in around if len(place) == 3]
        if band:
            edge = [f"{at:.1f},{low:.1f}" for at, low, _ in band]
            edge += [f"{at:.1f},{high:.1f}" for at, _, high in reversed(band)]
            parts.append(Markup('<path d="M{}Z" class="band s{}"/>').format("L".join(edge), colour))
        path = "L".join(f"{plane.x(i):.1f},{plane.y(line.points[i][0] or 0.0):.1f}" for i in run)
        parts.append(_stroke(f"M{path}", number, colour))
    for i, (value, _, _) in enumerate(line.points):
        if value is not None:
            x, y = plane.x(i), plane.y(value)
            if i in line.stressed:
                parts.append(_mark(0, x, y, 7, "ring", colour))
            hint = f"{line.name}, {plane.chart.labels[i]}: {plane.text(value)}"
            parts.append(_mark(number, x, y, 3, "dot", colour, hint))
    return parts


def _stroke(path: str, number: int, colour: int) -> Markup:
    dashes = " ".join(map(str, DASHES[number % len(DASHES)]))
    return Markup('<path d="{}" class="line s{}" stroke-dasharray="{}"/>').format(path, colour, dashes)


def _legend(plane: _Plane, y: float) -> tuple[list[Markup], float]:
    """A sample of each line with its name, and the y of the last row."""
    parts, x = [], float(_LEFT)
    for number, line in enumerate(plane.chart.lines):
        colour, room = plane.chart.colour(number), 50 + _length(short(line.name))
        if x + room > plane.width and x > _LEFT:
            x, y = float(_LEFT), y + 19
        parts.append(_stroke(f"M{x:.1f},{y:.1f}h28", number, colour))
        parts.append(_mark(number, x + 14, y, 3, "dot", colour))
        parts.append(text_at(x + 34, y + 4, short(line.name), "start"))
        x += room
    return parts, y


def bar_chart(chart: BarChart) -> Markup:
    """Horizontal bars from 0 to 100% with their intervals. The name of a group and the value of its last bar are on their left,
    where a narrow screen shows them."""
    names = 16 + max((_length(short(group.name, 26)) for group in chart.groups), default=0)
    width, left, height = 720, names + 64, 30
    plot_w, bottom = width - left - 24, _TOP + height * len(chart.groups)
    thick = 22 // len(chart.bars) - 1
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1.0):
        x = left + plot_w * tick
        parts += [rule(x, _TOP, x, bottom, "grid"), text_at(x, bottom + 16, f"{100 * tick:.0f}%")]
    for i, group in enumerate(chart.groups):
        y, shown = _TOP + height * i, group.points[-1][0]
        parts.append(text_at(names, y + 19, short(group.name, 26), "end"))
        parts.append(text_at(left - 8, y + 19, "" if shown is None else percent(shown), "end", 'class="strong"'))
        for number, (bar, at) in enumerate(zip(chart.bars, group.points, strict=True)):
            colour = bar.colour if group.colour is None else group.colour
            hint = ", ".join(filter(None, (group.name, bar.name)))
            parts += _bar(at, colour, hint, (left, y + 4 + number * (thick + 1), plot_w, thick))
        if group.limit is not None:
            x, hint = left + plot_w * group.limit, f"limit: {100 * group.limit:.4g}%"
            parts.append(
                Markup('<path d="M{0},{1}v24m0,-22l-5-6h10z" class="limit"><title>{2}</title></path>').format(
                    f"{x:.1f}", y + 3, hint
                )
            )
    named = [bar for bar in chart.bars if bar.name]
    x = left
    for bar in named:
        what = f"{bar.name}; line: 95% interval" if bar is named[-1] else bar.name
        parts += [_rect(x, bottom + 26, 12, 10, bar.colour), text_at(x + 18, bottom + 35, what, "start")]
        x += 40 + len(what) * _CHARACTER
    return svg_of(width, bottom + (44 if named else 24), chart.title, _bars_in_words(chart), parts)


def _bar(at: Point, colour: int, hint: str, room: tuple[float, float, float, float]) -> list[Markup]:
    """One bar with its interval. room: left, top, width of 100%, height."""
    (value, low, high), (left, y, width, thick) = at, room
    middle = y + thick / 2
    if value is None:
        return [text_at(left + 4, middle + 4, "no samples", "start", 'class="faint"')]
    parts = [_rect(left, y, width * value, thick, colour, f"{hint}: {percent(value)}")]
    if low is not None and high is not None:
        a, b = left + width * low, left + width * high
        ends = [rule(x, middle - 4, x, middle + 4, "error") for x in (a, b)]
        parts += [rule(a, middle, b, middle, "error"), *ends]
    return parts


def _rect(x: float, y: float, width: float, height: float, colour: int, hint: str = "") -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="1" class="bar s{}">{}</rect>').format(
        f"{x:.1f}", f"{y:.1f}", f"{width:.1f}", height, colour, _title(hint)
    )


def _bars_in_words(chart: BarChart) -> str:
    words = []
    for group in chart.groups[:_DESCRIBED]:
        known = [(bar.name, at[0]) for bar, at in zip(chart.bars, group.points, strict=True) if at[0] is not None]
        words.append(f"{group.name} " + ", ".join(f"{percent(value)} {what}".rstrip() for what, value in known))
    more = [f"and {len(chart.groups) - _DESCRIBED} more"] if len(chart.groups) > _DESCRIBED else []
    return "; ".join([*words, *more])


def heat_map(chart: HeatMap) -> Markup:
    """Cells shaded by value / largest, with the numbers in them while there is room; no value: a dash."""
    rows, columns, digits = chart.rows, chart.columns, chart.digits
    wide = len(columns) <= 14
    left = 20 + max((_length(short(name, 22)) for name in rows), default=0)
    head = 18 + max((_length(short(name, 12)) for name in columns), default=0) * 0.72
    cell_w, cell_h = (max(46, min(58, 800 // max(1, len(columns)))) if wide else max(14, 840 // len(columns))), 24
    width, height = left + cell_w * len(columns) + 0.7 * head, head + cell_h * len(rows) + 6
    parts = []
    for j, name in enumerate(columns):
        x = left + cell_w * (j + 0.5)
        parts.append(text_at(x, head - 6, short(name, 12), "start", f'transform="rotate(-45 {x:.1f} {head - 6:.1f})"'))
    for i, name in enumerate(rows):
        y = head + cell_h * i
        parts.append(text_at(left - 8, y + 16, short(name, 22), "end"))
        for j, value in enumerate(chart.values[i]):
            share = 0.0 if value is None else max(0.0, min(1.0, value / chart.largest))
            text = "-" if value is None else f"{value:.{digits}f}"
            hint = _title(f"{name} / {columns[j]}: {text}")
            parts.append(
                Markup('<rect x="{}" y="{}" width="{}" height="{}" class="cell" fill-opacity="{}">{}</rect>').format(
                    f"{left + cell_w * j:.1f}", f"{y:.1f}", cell_w - 1, cell_h - 1, f"{0.04 + 0.9 * share:.3f}", hint
                )
            )
            if wide:
                # The shade decides between dark and light ink, and not at the same share in both colour schemes.
                css = 'class="on"' if share > 0.85 else 'class="mid"' if share > 0.7 else ""
                parts.append(text_at(left + cell_w * (j + 0.5), y + 16, text, "middle", css))
    found = [
        (rows[i], columns[j]) for i, row in enumerate(chart.values) for j, v in enumerate(row) if v == chart.largest
    ]
    words = f"Largest: {chart.largest:.{digits}f}, {' / '.join(found[0])}" if found else ""
    return svg_of(width, height, chart.title, words, parts)
