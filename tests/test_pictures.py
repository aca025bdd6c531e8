"""Pictures of the three kinds of pages on a desk and on a phone, light and dark: nothing is cut, letters can be read.

`pytest tests/test_pictures.py --pictures DIR` keeps the pictures, to be looked at.
"""

from pathlib import Path

import pytest

from lsa_cli.report import comparison_html, html
from lsa_cli.report.compare import compare
from lsa_cli.report.history import site
from tests.browser import browser  # noqa: F401
from tests.report.example import rate
from tests.report.test_gold import gated
from tests.report.test_history import several
from tests.test_browser import before_and_after, luminance


def report():
    """Limits on two accuracies; one class at 88% and one at 99%."""
    found = gated()
    for row, count in zip(found.verdict.classes, (88, 99), strict=True):
        row.robust = rate(count, 100)
    return html.render(found)


def comparison():
    old, new = before_and_after()
    return comparison_html.render(old, new, compare(old, new))


def history():
    return next(site("lsa 0", several(), "name"))[1]


PAGES = {"report": report, "comparison": comparison, "history": history}
# Text that ends beyond the window and does not lie in a part that scrolls by itself; or beyond its own figure.
CUT = """[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
.filter(e => { const box = e.getBoundingClientRect(), scrolls = e.closest('.wide'), frame = e.closest('.chart');
if (box.width < 2 || e.closest('title, .skip')) return false;
if (frame) { const f = frame.getBoundingClientRect(); return box.left < f.left - 2 || box.right > f.right + 2; }
return !scrolls && (box.left < 0 || box.right > innerWidth + 1); }).map(e => e.outerHTML.slice(0, 200))"""
SMALL = """[...document.querySelectorAll('.chart text, .chart span, .chart b, .chart p')].filter(e => e.getBoundingClientRect().width)
.map(e => parseFloat(getComputedStyle(e).fontSize) * (e.getScreenCTM ? Math.abs(e.getScreenCTM().a ** 2 + e.getScreenCTM().b ** 2) ** .5 : 1))"""
BARS = "[...document.querySelectorAll('.bars .plot')].flatMap(s => [...s.querySelectorAll('rect')].map(r => [r.getBoundingClientRect().width / s.getBoundingClientRect().width, r.textContent]))"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window(browser, tmp_path, request, name, width, scheme):  # noqa: F811
    file = tmp_path / "page.html"
    file.write_text(PAGES[name](), encoding="utf-8")
    browser.show_as(width=width, scheme=scheme)
    page = browser.open(file)
    assert page.ask("document.documentElement.scrollWidth <= innerWidth")
    assert page.ask(CUT) == []
    assert min(page.ask(SMALL)) >= 11
    for share, hint in page.ask(BARS):  # a bar is as long as its number says, of the width of the figure
        assert share == pytest.approx(float(hint.rpartition(" ")[2].rstrip("%")) / 100, abs=0.01), hint
    charts = page.ask(
        "[...document.querySelectorAll('section > .wide > .chart:not([style])')].map(c => c.clientWidth / c.closest('main').clientWidth)"
    )
    assert all(share > 0.99 for share in charts)
    ground = page.ask("getComputedStyle(document.body).backgroundColor")
    for colour in page.ask("[...document.querySelectorAll('.bar, .dot')].map(e => getComputedStyle(e).fill)"):
        bright, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 3, (colour, ground)
    if request.config.getoption("--pictures"):
        folder = Path(request.config.getoption("--pictures"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-{width}-{scheme}.png").write_bytes(page.picture())


def test_88_and_99_percent_look_different_on_a_phone(browser, tmp_path):  # noqa: F811
    file = tmp_path / "page.html"
    file.write_text(report(), encoding="utf-8")
    browser.show_as(width=400)
    ends = browser.open(file).ask(
        "[...document.querySelectorAll('[aria-labelledby=classes] .bars .plot')].slice(0, 2).map(s => s.querySelectorAll('rect')[1].getBoundingClientRect().right)"
    )
    assert ends[1] - ends[0] > 30


def test_the_legend_names_the_limit_where_one_is_drawn(browser, tmp_path):  # noqa: F811
    file = tmp_path / "page.html"
    for text, drawn in ((report(), True), (html.render(before_and_after()[0]), False)):
        file.write_text(text, encoding="utf-8")
        page = browser.open(file)
        assert page.ask("!!document.querySelector('.bars .limit')") is drawn
        assert page.ask("[...document.querySelectorAll('.legend li')].some(e => e.textContent === 'limit')") is drawn
