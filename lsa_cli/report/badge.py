"""The verdict as a badge: an SVG for a README. Its colour is the gate's, never a judgement of the number itself."""

from xml.sax.saxutils import escape, quoteattr

from lsa_cli.report.headline import headline_of
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.text import percent

# White text on each of them has a contrast of at least 4.5.
_COLOURS = {"good": "#1a7f37", "bad": "#b3261e", "warn": "#8a5a00", "plain": "#0f5c99"}
_GREY = "#59636e"
_CHARACTER = 6.6  # mean width at 11 px; textLength makes it exact whatever font is there
_LABEL = "robust accuracy"


def render(report: AuditReport) -> str:
    """One SVG of 20 px height, without scripts, fonts or addresses."""
    value, colour, why = _value(report)
    left, right = (round(len(text) * _CHARACTER) + 12 for text in (_LABEL, value))
    title = f"{_LABEL}: {value}; {why}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" aria-label={quoteattr(title)}>\n'
        f"<title>{escape(title)}</title>\n"
        f'<clipPath id="r"><rect width="{left + right}" height="20" rx="3"/></clipPath>\n'
        f'<g clip-path="url(#r)"><rect width="{left}" height="20" fill="#3d444d"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{colour}"/></g>\n'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">\n'
        f'<text x="{left / 2:g}" y="14" textLength="{left - 12}">{escape(_LABEL)}</text>\n'
        f'<text x="{left + right / 2:g}" y="14" textLength="{right - 12}">{escape(value)}</text>\n'
        "</g>\n</svg>\n"
    )


def _value(report: AuditReport) -> tuple[str, str, str]:
    """The text, the colour, and the reason for the colour."""
    robust, threat = report.verdict.robust, report.protocol.threat
    if robust is None or robust.value is None:
        return "not measured", _GREY, "no budget attack was run"
    mood, why = headline_of(report)
    colour = _COLOURS[mood] if report.status == "complete" else _GREY
    return f"{percent(robust.value)} ({threat.norm} {threat.text})", colour, why
