"""Plots of a report as SVG text: plain functions of numbers, no plotting library, colours from the page's style.

Colours are the classes s0 .. s7 of the Okabe-Ito palette, which colour-blind readers can tell apart, and lines
differ in dashes too. Every text from outside is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float | None, float | None, float | None]  # value, low, high

_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4", "4 2 1 2", "3 6")
_LEFT, _TOP, _BOTTOM = 52, 12, 34


@dataclass(frozen=True)
class Line:
    """One line of a line chart: its name, and a point for each place on the x axis."""

    name: str
    points: Sequence[Point]


def _svg(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    body = Markup("").join(parts)
    return Markup('<svg viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}"><title>{}</title>{}</svg>').format(
        width, height, width, title, title, body
    )


def _text(x: float, y: float, text: object, anchor: str = "middle", extra: str = "") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}" {}>{}</text>').format(
        f"{x:.1f}", f"{y:.1f}", anchor, Markup(extra), text
    )


def _rule(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(
        f"{x1:.1f}", f"{y1:.1f}", f"{x2:.1f}", f"{y2:.1f}", css
    )


def short(name: str, length: int = 18) -> str:
    """A name cut in the middle, where long names differ least."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[-(length - 1 - head) :]}"


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to at least `top`, four to seven of them."""
    if top <= 0:
        return [0.0, 1.0]
    magnitude = 10.0 ** (len(str(int(top))) - 1) if top >= 1 else 0.1
    while top < magnitude:
        magnitude /= 10
    step = next(s * magnitude for s in (0.2, 0.25, 0.5, 1, 2, 5) if top / (s * magnitude) <= 6)
    count = int(top / step - 1e-9) + 1
    return [round(step * i, 10) for i in range(count + 1)]


def line_chart(title: str, labels: Sequence[str], lines: Sequence[Line], y_title: str, percent: bool = False) -> Markup:
    """Lines over named places, with whiskers for the intervals and a legend."""
    width, turned = max(560, min(1080, 90 + 46 * len(labels))), len(labels) > 8 or any(len(n) > 9 for n in labels)
    foot = 110 if turned else _BOTTOM
    plot_h, plot_w = 230, width - _LEFT - 16
    highest = max((v for line in lines for p in line.points for v in (p[0], p[2]) if v is not None), default=1.0)
    ticks = _ticks(1.0 if percent else highest)
    top = ticks[-1]
    every = max(1, len(labels) // 48 + 1)

    def x(i: int) -> float:
        return _LEFT + plot_w * ((i + 0.5) / max(1, len(labels)))

    def y(v: float) -> float:
        return _TOP + plot_h * (1 - v / top)

    parts = []
    for tick in ticks:
        parts.append(_rule(_LEFT, y(tick), width - 16, y(tick), "grid"))
        parts.append(_text(_LEFT - 6, y(tick) + 4, f"{100 * tick:.0f}%" if percent else f"{tick:g}", "end"))
    for i, label in enumerate(labels):
        if i % every == 0:
            at = f'transform="rotate(-50 {x(i):.1f} {_TOP + plot_h + 14:.1f})"' if turned else ""
            parts.append(_text(x(i), _TOP + plot_h + 14, short(label), "end" if turned else "middle", at))
    for number, line in enumerate(lines):
        css = f"s{number % 8}"
        path, pen = [], "M"
        for i, (value, low, high) in enumerate(line.points):
            if value is None:
                pen = "M"  # a gap, not a line through nothing
                continue
            path.append(f"{pen}{x(i):.1f},{y(value):.1f}")
            pen = "L"
            if low is not None and high is not None:
                parts.append(_rule(x(i), y(low), x(i), y(high), f"whisker {css}"))
            hint = Markup("<title>{}, {}: {}</title>").format(line.name, labels[i], f"{value:.3f}")
            parts.append(
                Markup('<circle cx="{}" cy="{}" r="2.6" class="dot {}">{}</circle>').format(
                    f"{x(i):.1f}", f"{y(value):.1f}", css, hint
                )
            )
        parts.append(
            Markup('<path d="{}" class="line {}" stroke-dasharray="{}"/>').format(
                " ".join(path), css, _DASHES[number % len(_DASHES)]
            )
        )
    per_row = max(1, (width - _LEFT) // 150)
    base = _TOP + plot_h + foot
    for number, line in enumerate(lines):
        at_x, at_y = _LEFT + 150 * (number % per_row), base + 18 * (number // per_row)
        parts.append(
            Markup('<path d="M{0},{1}h24" class="line s{2}" stroke-dasharray="{3}"/>').format(
                at_x, at_y, number % 8, _DASHES[number % len(_DASHES)]
            )
        )
        parts.append(_text(at_x + 30, at_y + 4, short(line.name), "start"))
    parts.append(_text(12, _TOP + plot_h / 2, y_title, "middle", f'transform="rotate(-90 12 {_TOP + plot_h / 2:.0f})"'))
    rows = (len(lines) + per_row - 1) // per_row
    return _svg(width, base + 18 * rows, title, parts)


def bar_chart(title: str, rows: Sequence[tuple[str, Point, Point]]) -> Markup:
    """Horizontal pairs of bars in [0, 1], each with its interval: (name, clean, robust) from top to bottom."""
    width, left, height = 760, 150, 30
    plot_w = width - left - 70
    parts = []
    bottom = _TOP + height * len(rows)
    for tick in (0, 0.25, 0.5, 0.75, 1.0):
        x = left + plot_w * tick
        parts += [_rule(x, _TOP, x, bottom, "grid"), _text(x, bottom + 16, f"{100 * tick:.0f}%")]
    for i, (name, *bars) in enumerate(rows):
        y = _TOP + height * i
        parts.append(_text(left - 8, y + 19, short(name, 20), "end"))
        for j, (value, low, high) in enumerate(bars):
            at = y + 4 + 11 * j
            if value is None:
                parts.append(_text(left + 4, at + 9, "no samples", "start", 'class="faint"'))
                continue
            hint = Markup("<title>{}, {}: {}</title>").format(name, ("clean", "robust")[j], f"{100 * value:.1f}%")
            parts.append(
                Markup('<rect x="{}" y="{}" width="{}" height="10" class="bar s{}">{}</rect>').format(
                    left, at, f"{plot_w * value:.1f}", (1, 0)[j], hint
                )
            )
            if low is not None and high is not None:
                parts.append(_rule(left + plot_w * low, at + 5, left + plot_w * high, at + 5, "error"))
        shown = bars[1][0]
        parts.append(_text(width - 62, y + 19, "" if shown is None else f"{100 * shown:.1f}%", "start"))
    parts += [
        Markup('<rect x="{}" y="{}" width="12" height="10" class="bar s1"/>').format(left, bottom + 26),
        _text(left + 18, bottom + 35, "clean", "start"),
        Markup('<rect x="{}" y="{}" width="12" height="10" class="bar s0"/>').format(left + 80, bottom + 26),
        _text(left + 98, bottom + 35, "robust (worst case); line: 95% interval", "start"),
    ]
    return _svg(width, bottom + 44, title, parts)


def heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], digits: int
) -> Markup:
    """Cells shaded by value / largest, with the numbers in them while there is room; no value: a dash."""
    wide = len(columns) <= 14
    cell_w, cell_h, left = (58 if wide else max(14, 840 // max(1, len(columns)))), 24, 160
    head = 70
    largest = max((v for row in values for v in row if v is not None), default=0.0) or 1.0
    width, height = left + cell_w * len(columns) + 10, head + cell_h * len(rows) + 6
    parts = []
    for j, name in enumerate(columns):
        x = left + cell_w * (j + 0.5)
        parts.append(_text(x, head - 6, short(name, 12), "start", f'transform="rotate(-45 {x:.1f} {head - 6})"'))
    for i, name in enumerate(rows):
        y = head + cell_h * i
        parts.append(_text(left - 8, y + 16, short(name, 22), "end"))
        for j, value in enumerate(values[i]):
            share = 0.0 if value is None else max(0.0, min(1.0, value / largest))
            text = "-" if value is None else f"{value:.{digits}f}"
            hint = Markup("<title>{} / {}: {}</title>").format(name, columns[j], text)
            parts.append(
                Markup('<rect x="{}" y="{}" width="{}" height="{}" class="cell" fill-opacity="{}">{}</rect>').format(
                    left + cell_w * j, y, cell_w - 1, cell_h - 1, f"{0.04 + 0.9 * share:.3f}", hint
                )
            )
            if wide:
                css = 'class="on"' if share > 0.55 else ""
                parts.append(_text(left + cell_w * (j + 0.5), y + 16, text, "middle", css))
    return _svg(width, height, title, parts)


__all__ = ["Line", "Point", "bar_chart", "heat_map", "line_chart", "short"]
