"""The report's page in a real browser: it renders, complains of nothing, fetches nothing, sorts, prints, folds."""

import io
import re
import shutil
import subprocess
from itertools import pairwise

import pytest
from PIL import Image

from lsa_cli.report import comparison_html
from lsa_cli.report.charts import line_chart
from lsa_cli.report.compare import compare
from lsa_cli.report.figures import Line, LineChart
from lsa_cli.report.html import render
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.terms import meaning
from tests.browser import browser  # noqa: F401
from tests.report.example import example
from tests.report.test_compare import paired
from tests.report.test_formats import hostile
from tests.report.test_gold import gated


def pair_page(old, new):
    return comparison_html.render(old, new, compare(old, new))


def before_and_after():
    """All cats and half of the dogs are won; the layers move less."""
    after = paired([True] * 75 + [False] * 25)
    for row in after.outcomes[1].layers.rows:
        row.mean, row.low, row.high = row.mean / 2, row.low / 2, row.high / 2
    return paired([False] * 70 + [True] * 30), after


@pytest.fixture
def shown(browser, tmp_path):  # noqa: F811
    def show(report, **how):
        file = tmp_path / "report.html"
        file.write_text(render(report) if isinstance(report, AuditReport) else pair_page(*report), encoding="utf-8")
        browser.trouble.clear()
        browser.fetched.clear()
        browser.show_as(**how)
        return browser.open(file)

    return show


def column(page, table, number):
    return page.ask(
        f"[...document.querySelectorAll('{table} tbody tr')].map(r => r.cells[{number}].textContent.trim())"
    )


ATTACKS = "section[aria-labelledby=attacks] > .wide:first-of-type table"


@pytest.mark.parametrize(
    "report",
    [
        gated,
        hostile,
        lambda: example(budget=False, status="interrupted"),
        before_and_after,
        lambda: (hostile(), hostile()),
    ],
)
def test_it_renders_in_peace_and_fetches_nothing(shown, report):
    page = shown(report())
    assert page.trouble == []
    assert [address for address in page.fetched if not address.startswith("data:")] == [page.ask("location.href")]
    assert page.ask("document.querySelectorAll('script').length") == 1
    assert page.ask("document.querySelector('#verdict').getBoundingClientRect().height > 0")
    # What is drawn stays inside its drawing.
    outside = page.ask(
        "[...document.querySelectorAll('.chart, .panels svg')].flatMap(s => [...s.querySelectorAll('text, rect, path')].filter(e => {"
        "const a = s.getBoundingClientRect(), b = e.getBoundingClientRect();"
        "return b.left < a.left - 2 || b.right > a.right + 2 || b.top < a.top - 2 || b.bottom > a.bottom + 2})"
        ".map(e => e.outerHTML))"
    )
    assert outside == []


def test_tables_sort_by_a_click_and_by_the_keyboard(shown):
    page = shown(gated())
    assert column(page, ATTACKS, 1) == ["50.0%", "30.0%", "90.0%"]
    page.ask(f"document.querySelector('{ATTACKS} th:nth-child(2) button').click()")
    assert column(page, ATTACKS, 1) == ["30.0%", "50.0%", "90.0%"]
    assert page.ask(f"document.querySelector('{ATTACKS} th:nth-child(2)').ariaSort") == "ascending"
    page.ask(f"document.querySelector('{ATTACKS} th:nth-child(3) button').focus()")
    page.press("Enter", 13)
    page.press("Enter", 13)
    assert column(page, ATTACKS, 2) == ["[85.0, 95.0]", "[45.0, 55.0]", "[25.0, 35.0]"]
    assert page.ask(f"document.querySelectorAll('{ATTACKS} th[aria-sort]').length") == 1


def test_tables_of_a_comparison_sort_by_change_and_by_chance(shown):
    page = shown(before_and_after())
    table = "section[aria-labelledby=layers] > .wide:nth-of-type(2) table"
    assert column(page, table, 5) == ["-0.250", "-0.400"]
    page.ask(f"document.querySelector('{table} th:nth-child(6) button').click()")
    assert column(page, table, 5) == ["-0.400", "-0.250"]
    table = "section[aria-labelledby=accuracies] table"
    before = column(page, table, 5)
    page.ask(f"document.querySelector('{table} th:nth-child(6) button').click()")
    assert column(page, table, 5) == sorted(before, key=float)  # a plus does not make it a word
    page.ask(f"document.querySelector('{table} th:nth-child(9) button').click()")
    shown_p = column(page, table, 8)
    known = [float(p.removeprefix("< ")) for p in shown_p if p != "-"]
    assert known == sorted(known)
    assert shown_p[len(known) :] == ["-"] * (len(shown_p) - len(known))


@pytest.mark.parametrize(("report", "head"), [(gated, "Accuracy"), (before_and_after, "Before")])
def test_the_keyboard_reaches_the_verdict_the_tables_and_the_folds(shown, report, head):
    page = shown(report())
    met = []
    for _ in range(80):
        page.press("Tab", 9)
        met.append(
            page.ask(
                "document.activeElement.tagName + ' ' + (document.activeElement.textContent || '').trim().slice(0, 30)"
            )
        )
    assert met[0] == "A To the verdict"
    assert any(entry.startswith("SUMMARY") for entry in met)
    assert any(entry.startswith(f"BUTTON {head}") for entry in met)
    assert page.ask(
        "[...document.querySelectorAll('svg[role=img], img, .wide')].every(e => e.ariaLabel || e.alt)"
    )  # what cannot be seen can be heard
    assert page.ask("[...document.querySelectorAll('th')].every(e => e.scope)")
    levels = page.ask("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("report", [gated, before_and_after])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_schemes(shown, scheme, report):
    page = shown(report(), scheme=scheme)
    page_colour = page.ask("getComputedStyle(document.body).backgroundColor")
    assert (luminance(page_colour) > 0.9) == (scheme == "light")
    pairs = page.ask(
        "[...document.querySelectorAll('p, span, td, th, b, summary, a, h1, h2, h3, strong')].filter(e => e.textContent.trim()).map(e => {"
        "let ground = e; while (ground && /, 0\\)$|transparent/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;"
        "return [getComputedStyle(e).color, ground ? getComputedStyle(ground).backgroundColor : '', e.textContent.slice(0, 40)]})"
    )
    for ink, ground, text in pairs:
        if ground.startswith("rgb("):  # others are a tint of the page's own colour
            bright, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, ink, ground)
    picture = Image.open(io.BytesIO(page.picture()))
    assert len(picture.getcolors(1 << 24)) > 200


@pytest.mark.parametrize("several", [False, True], ids=["audit", "comparison"])
def test_a_narrow_window_scrolls_tables_and_not_the_page(shown, several):
    report = example(names=("a-class-with-a-very-long-name-indeed", "dog"))
    report.data.source = f"npz:{'a-folder/' * 9}data.npz"
    page = shown((report, report) if several else report, width=380)
    assert page.ask("document.documentElement.scrollWidth") <= 380


def test_it_prints_unfolded_and_light(shown):
    page = shown(gated(), scheme="dark", media="print")
    assert luminance(page.ask("getComputedStyle(document.body).backgroundColor")) > 0.9
    page.ask("dispatchEvent(new Event('beforeprint'))")
    assert page.ask("[...document.querySelectorAll('details')].every(d => d.open)")
    page.ask("dispatchEvent(new Event('afterprint'))")
    assert page.ask("[...document.querySelectorAll('details')].every(d => !d.open)")
    assert page.pdf().startswith(b"%PDF")


def test_scripts_of_others_do_not_run_even_if_they_got_in(shown, browser, tmp_path):  # noqa: F811
    shown(gated())
    file = tmp_path / "hurt.html"
    file.write_text(
        render(gated()).replace(
            "</main>", "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'></main>"
        )
    )
    browser.open(file)
    assert browser.ask("window.hurt") is None


def test_a_thousand_classes_stay_quick_and_small(shown):
    page = shown(example(names=tuple(f"n{i:08d}" for i in range(1000))))
    assert page.trouble == []
    assert len(render(example(names=tuple(f"n{i:08d}" for i in range(1000))))) < 3_000_000


def test_a_line_is_not_drawn_through_a_gap():
    points = [(0.1, 0.0, 0.2), (None, None, None), (0.3, 0.2, 0.4), (0.4, None, None)]
    drawing = line_chart(LineChart("t", ["a", "b", "c", "d"], [Line("x", points)], "y"))
    assert [path.count("L") for path in re.findall(r'<path d="M([^"]*)" class="line s0"', drawing)][:2] == [0, 1]
    assert drawing.count('class="band') == 2


MEANT = "document.querySelector('#meaning').matches(':popover-open') && document.querySelector('#meaning').textContent"


def test_terms_have_their_meaning_on_hover_on_focus_and_in_print(shown):
    page = shown(gated())
    page.send("Emulation.setFocusEmulationEnabled", enabled=True)
    cell = f"{ATTACKS} td:first-child abbr"
    assert page.ask(f"document.querySelector('{cell}').textContent") == "fgsm"
    page.ask(f"document.querySelector('{cell}').focus()")
    assert page.ask(MEANT) == meaning("fgsm")
    page.press("Escape", 27)
    assert page.ask(MEANT) is False
    box = page.ask(
        "(e => (e.scrollIntoView({behavior: 'instant', block: 'center'}), e.getBoundingClientRect().toJSON()))"
        f"(document.querySelector('{cell}'))"
    )
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + 2, y=box["y"] + 2)
    assert page.ask(MEANT) == meaning("fgsm")
    head = "[...document.querySelectorAll('th button')].find(b => b.textContent == 'Gain')"
    page.ask(f"{head}.focus()")
    assert page.ask(MEANT) == meaning("gain")
    page.ask("[...document.querySelectorAll('summary')].find(s => s.textContent.includes('gaussian')).focus()")
    assert page.ask(MEANT) == meaning("gaussian")
    met = page.ask("[...document.querySelectorAll('abbr')].map(e => e.textContent.toLowerCase())")
    assert {"fgsm", "pgd", "linf", "eps", "gain", "mvl", "r&g", "nsd", "amplification", "stability", "interval"} <= set(
        met
    )
    page.show_as(media="print")
    printed = page.ask(
        "document.querySelector('#attacks ~ .wide + .meanings').checkVisibility() && document.querySelector('#attacks ~ .wide + .meanings').textContent"
    )
    assert f"fgsm: {meaning('fgsm')}" in printed


def test_a_class_that_is_called_like_a_term_has_no_meaning(shown):
    page = shown(example(names=("margin", "gain")))
    assert (
        page.ask("[...document.querySelectorAll('abbr')].filter(e => /^(margin|gain)$/.test(e.textContent)).length")
        == 0
    )


def test_print_repeats_the_heads_of_tables_and_strands_no_heading(shown, tmp_path):
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed")
    report = gated()
    many = [
        check.model_copy(update={"name": f"check {number}"})
        for number in range(120)
        for check in report.evidence.checks[:1]
    ]
    report.evidence.checks = many
    page = shown(report, media="")
    headings = set(page.ask("[...document.querySelectorAll('h2, h3, h4')].map(h => h.textContent.trim())"))
    (tmp_path / "page.pdf").write_bytes(page.pdf())
    text = subprocess.run(
        ["pdftotext", "-layout", tmp_path / "page.pdf", "-"], capture_output=True, text=True, check=True
    ).stdout
    sheets = [[line.strip() for line in sheet.splitlines() if line.strip()] for sheet in text.split("\f")[:-1]]
    of_checks = [sheet for sheet in sheets if any(re.match(r"check \d+ ", line) for line in sheet)]
    assert len(of_checks) > 2
    for sheet in of_checks:
        first = next(place for place, line in enumerate(sheet) if re.match(r"check \d+ ", line))
        assert re.match(r"Check +N +Measured +Findings", sheet[first - 1]), sheet[:first]
    assert [sheet[-1] for sheet in sheets if sheet[-1] in headings] == []
