"""The history of a folder: what the pages hold, and that a reader's browser shows and compares it."""

import json
import re
from html import unescape

import numpy as np
import pytest

from lsa_cli.report.history import site
from lsa_cli.report.text import percent
from lsa_cli.stats import mcnemar
from tests.browser import browser  # noqa: F401
from tests.cli.conftest import lsa  # noqa: F401
from tests.report.test_fleet_tables import report_of


def several(count=12, n=200, folder="runs/a"):
    draw = np.random.default_rng(0)
    hardness = draw.random(n)
    reports = {}
    for number in range(count):
        right = hardness + 0.2 * draw.standard_normal(n) < 0.2 + 0.5 * number / count
        report = report_of(right, created=f"2026-11-{28 - number % 28:02d}T00:00:00+00:00")
        reports[f"{folder}/epoch-{number}.pt"] = report
    return reports


def index_of(reports, order="name"):
    path, text = next(site("lsa 0", reports, order))
    assert path == "index.html"
    return text


def data_of(text):
    return json.loads(unescape(re.search(r'<div id="data" hidden>(.*?)</div>', text, re.S)[1]))


def labels_of(text):
    """The models along the trends."""
    return re.findall(r"<title>robust, (?:\S+ )?(epoch-\d+):", text)


def test_every_model_has_a_page_and_the_page_of_all_leads_to_it():
    pages = dict(site("lsa 0", several(3), "name"))
    assert len(pages) == 4
    links = re.findall(r'<a href="(models/[^"]+)">(epoch-\d)</a>', pages["index.html"])
    assert {path for path, _ in links} == pages.keys() - {"index.html"}
    for path, name in links:
        assert f"{name[-1]}" in path
        assert '<a href="../index.html">All models</a>' in pages[path]
        assert "Adversarial" in pages[path] or "Robust accuracy" in pages[path]


def test_trends_are_in_the_order_of_names_or_of_dates():
    reports = several(12)
    assert labels_of(index_of(reports)) == [f"epoch-{number}" for number in range(12)]
    assert labels_of(index_of(reports, "date")) == [f"epoch-{number}" for number in reversed(range(12))]


def test_names_that_want_to_be_code_stay_text():
    evil = "<img src=x onerror=alert(1)>"
    reports = {f"{evil}{number}": report for number, report in enumerate(several(2).values())}
    for path, text in site("lsa 0", reports, "name"):
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", path)
        assert evil not in text
    assert [model["name"] for model in data_of(index_of(reports))] == [f"{evil}1", f"{evil}0"]


def test_two_hundred_models_fit_into_a_megabyte():
    text = index_of(several(200, n=1000))
    assert len(text.encode()) < 1_000_000
    assert all("bits" in model for model in data_of(text))
    large = report_of([True] * 25_000)
    many = index_of({str(number): large for number in range(150)})
    assert len(many.encode()) < 1_000_000
    assert not any("bits" in model for model in data_of(many))


@pytest.fixture
def shown(browser, tmp_path):  # noqa: F811
    def show(reports, **how):
        for path, text in site("lsa 0", reports, "name"):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
        browser.trouble.clear()
        browser.fetched.clear()
        browser.show_as(**how)
        return browser.open(tmp_path / "index.html")

    return show


def choose(page, number, model):
    page.ask(
        f"{{ const s = document.querySelectorAll('select')[{number}]; s.value = [...s.options].findIndex(o => o.text === '{model}');"
        "s.dispatchEvent(new Event('change')); 0 }"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_shows_in_peace_fetches_nothing_and_fits_the_window(shown, width, scheme):
    page = shown(several(), width=width, scheme=scheme)
    assert page.trouble == []
    assert page.fetched == [page.ask("location.href")]
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("document.querySelectorAll('#models ~ .wide tbody tr, .wide tbody tr').length") >= 12
    assert len(page.picture()) > 20_000
    assert page.pdf().startswith(b"%PDF")


def test_any_two_are_compared_as_the_reports_say(shown):
    reports = several()
    page = shown(reports)
    choose(page, 0, "epoch-3")
    choose(page, 1, "epoch-7")
    one, other = (reports[f"runs/a/epoch-{number}.pt"] for number in (3, 7))
    right = [np.array([broken is None for broken in report.samples.broken_by]) for report in (one, other)]
    won, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    said = page.ask("document.querySelector('#compared p').textContent")
    assert f"Of 200 samples, {won} are robust only in the second model and {lost} only in the first" in said
    assert float(re.search(r"p = ([\d.e-]+)", said)[1]) == pytest.approx(mcnemar(won, lost), rel=0.01)
    assert ("epoch-7 is ahead beyond noise" in said) == (mcnemar(won, lost) <= 0.05 and won > lost)
    cells = page.ask("[...document.querySelectorAll('#compared tbody tr')[0].cells].map(c => c.textContent)")
    shares = [report.verdict.robust.value for report in (one, other)]
    assert cells[0::2][:2] == ["Robust", cells[2]]
    assert (cells[1], cells[3]) == tuple(map(percent, shares))
    assert float(cells[5]) == pytest.approx(100 * (shares[1] - shares[0]), abs=0.06)
    choose(page, 1, "epoch-3")
    assert page.ask("document.querySelector('#compared p').textContent") == "Choose two models."


def test_tables_sort_and_the_keyboard_reaches_every_model_and_choice(shown):
    page = shown(several())
    column = "[...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[1].textContent)"
    assert page.ask(column)[0] == "epoch-11"
    page.ask("document.querySelector('table.sortable th:nth-child(3) button').click()")
    assert page.ask(column)[0] == "epoch-0"
    met = []
    for _ in range(60):
        page.press("Tab", 9)
        met.append(page.ask("document.activeElement.tagName + ' ' + document.activeElement.textContent.trim()"))
    assert met[0] == "A To the models"
    assert {f"A epoch-{number}" for number in range(12)} <= set(met)
    assert sum(entry.startswith("SELECT") for entry in met) >= 2
    assert page.ask("[...document.querySelectorAll('th')].every(e => e.scope && e.textContent.trim())")


def test_the_command_leaves_out_what_is_no_complete_report(lsa, tmp_path):  # noqa: F811
    folder = tmp_path / "audits"
    for name, report in several(2, n=20).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.audit.json").write_text(report.to_json())
    broken = several(1, n=20)["runs/a/epoch-0.pt"].model_copy(update={"status": "running"})
    (folder / "half.pt.audit.json").write_text(broken.to_json())
    (folder / "bad.pt.audit.json").write_text("{")
    done = lsa("history", folder, "-o", "site")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "site" / "models").iterdir())) == 2
    assert "half.pt.audit.json is left out: its audit is running" in done.err
    assert "bad.pt.audit.json is left out" in done.err
    empty = lsa("history", tmp_path / "site")
    assert (empty.code, "holds no complete report" in empty.err) == (2, True)
    assert lsa("history", folder, "--order", "size").code == 2
