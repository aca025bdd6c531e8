"""The history of a folder: what the pages hold, and that a reader's browser shows and compares it."""

import json
import re
import subprocess
from html import unescape

import numpy as np
import pytest

from lsa_cli.errors import UsageError
from lsa_cli.report.history import epoch_of, site
from lsa_cli.report.schema import GateResult
from lsa_cli.report.text import percent
from lsa_cli.report.trends import by_class, by_layer, by_mvl, draw_panel
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


def test_trends_are_in_the_order_of_epochs_or_commits():
    reports = several(4)
    names = {f"{letter}-epoch_{number}.pt": f"runs/a/epoch-{3 - number}.pt" for number, letter in enumerate("dbca")}
    text = index_of({name: reports[old] for name, old in names.items()}, "epoch")
    assert [label[-1] for label in re.findall(r"<title>robust, (\S+):", text)] == list("0123")
    assert (epoch_of("run-7/epoch12-of-90"), epoch_of("run-7/last-31")) == (12, 31)
    commits = {name: (number * 7 % 5, f"c{number}") for number, name in enumerate(reports)}
    _, text = next(site("lsa 0", reports, "commit", commits))
    assert re.findall(r"<title>robust, (c\d) epoch-\d:", text) == ["c0", "c3", "c1", "c2"]
    with pytest.raises(UsageError, match="the name best has no number"):
        index_of({"a/best.pt": reports["runs/a/epoch-0.pt"], "a/epoch-1.pt": reports["runs/a/epoch-1.pt"]}, "epoch")


def test_limits_are_lines_where_the_accuracy_would_be():
    reports = several(3)
    gate = GateResult(metric="robust", limit=0.4, direction="at least", measured=0.5, passed=True, message="")
    for report in reports.values():
        report.gates = [gate, gate.model_copy(update={"metric": "seconds", "direction": "at most"})]
    text = index_of(reports)
    assert re.findall(r">(limit [^<]+)<", text) == ["limit robust 40.0%"]
    (drawn,) = re.findall(r'<line x1="0.00%" y1="([\d.]+)" x2="100.00%" y2="\1" class="line limit-line s0"/>', text)
    grid = {share: y for y, share in re.findall(r'<text x="-6" y="([\d.]+)"[^>]*>(\d+)%<', text)}
    assert float(drawn) == pytest.approx(float(grid["40"]) - 4, abs=0.11)


def test_each_class_and_layer_has_a_figure_with_its_numbers():
    reports = list(several(3).values())
    for number, report in enumerate(reports):
        report.verdict.classes[0].robust.value = 0.2 + 0.1 * number
        report.outcomes[1].layers.rows[1].mean = 0.5 - 0.1 * number
        report.outcomes[1].layers.rows[1].in_mvl = number == 1
    classes, layers = by_class(reports), by_layer(reports)
    assert [panel.name for panel in classes.panels] == [row.name for row in reports[0].verdict.classes]
    assert classes.panels[0].values == pytest.approx([0.2, 0.3, 0.4])
    assert "under pgd" in layers.title
    panel = next(panel for panel in layers.panels if panel.name == reports[0].outcomes[1].layers.rows[1].name)
    assert panel.values == pytest.approx([0.5, 0.4, 0.3])
    assert panel.stressed == {1}
    (mvl,) = by_mvl(reports).panels
    assert mvl.values == [0.0, 0.5, 0.0]
    drawn = draw_panel(layers, panel, ["a", "b", "c"])
    assert re.findall(r'd="([^"]*)" stroke-width="7" class="mvl-dots"', drawn) == ["M110,16.4h0"]
    assert "0.500 in a to 0.300 in c; lowest 0.300, highest 0.500" in drawn


def test_names_that_want_to_be_code_stay_text():
    evil = "<img src=x onerror=alert(1)>"
    reports = {f"{evil}{number}": report for number, report in enumerate(several(2).values())}
    for path, text in site("lsa 0", reports, "name"):
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", path)
        assert evil not in text
    assert [model["name"] for model in data_of(index_of(reports))] == [f"{evil}1", f"{evil}0"]


def with_many(report, classes=10, layers=24):
    """The report with so many classes and layers; its own page is not made."""
    row = report.verdict.classes[0]
    report.verdict.classes = [row.model_copy(update={"name": f"class {number}"}) for number in range(classes)]
    for outcome in report.outcomes:
        layer = outcome.layers.rows[0]
        outcome.layers.rows = [
            layer.model_copy(update={"name": f"features.{number}.relu", "mean": 0.1 * number, "in_mvl": True})
            for number in range(layers)
        ]


def test_two_hundred_models_fit_into_a_megabyte():
    reports = several(200, n=1000)
    for report in reports.values():
        with_many(report)
    text = index_of(reports)
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
    layers = page.ask(
        "[...document.querySelectorAll('#compared table')[1].tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent))"
    )
    expected = [(row.name, f"{row.mean:.3f}", "MVL" * row.in_mvl) for row in one.outcomes[1].layers.rows]
    assert [tuple(cells[:3]) for cells in layers] == expected
    assert all(cells[1] == cells[3] and cells[5] == "+0.000" for cells in layers)
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
    quick = several(1, n=20)["runs/a/epoch-0.pt"].to_json()
    for name in ("settled.pt", "runs/a/epoch-0.pt"):  # of a triage; the second model has a full audit too
        (folder / f"{name}.audit.quick.json").write_text(quick)
    done = lsa("history", folder, "-o", "site")
    assert done.code == 0, done.err
    assert "3 models" in done.err
    assert len(list((tmp_path / "site" / "models").iterdir())) == 3
    assert "half.pt.audit.json is left out: its audit is running" in done.err
    assert "bad.pt.audit.json is left out" in done.err
    empty = lsa("history", tmp_path / "site")
    assert (empty.code, "holds no complete report" in empty.err) == (2, True)
    assert lsa("history", folder, "--order", "size").code == 2
    nowhere = lsa("history", tmp_path / "nowhere")
    assert (nowhere.code, "nowhere does not exist; give a folder of reports" in nowhere.err) == (2, True)


def test_commits_are_those_of_the_names_or_of_the_reports(lsa, tmp_path, monkeypatch):  # noqa: F811
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    git("init", "-q")
    reports = list(several(3, n=20).values())
    for number in (2, 0, 1):
        (tmp_path / f"m{number}.audit.json").write_text(reports[number].to_json())
        git("add", ".")
        git("commit", "-qm", "x")
    hashes = git("log", "--reverse", "--format=%h")
    assert lsa("history", ".", "-o", "site", "--order", "commit").code == 0

    def order():
        return re.findall(r"<title>robust, (\w+) (\S+):", (tmp_path / "site" / "index.html").read_text())

    assert order() == [(hashes[0], "m2"), (hashes[1], "m0"), (hashes[2], "m1")]
    for number in range(3):
        (tmp_path / f"m{number}.audit.json").rename(tmp_path / f"net-{hashes[2 - number]}.audit.json")
    assert lsa("history", ".", "-o", "site", "--order", "commit").code == 0
    assert [commit for commit, _ in order()] == hashes
    (tmp_path / "new.audit.json").write_text(reports[0].to_json())
    done = lsa("history", ".", "-o", "site", "--order", "commit")
    assert (done.code, "names no commit of the repository here" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ("20, 3, 100", ["3 m1", "20 m0", "100 m2"]),
        ("2026-03-01, 2026-01-31, 2026-02-01", ["2026-01-31 m1", "2026-02-01 m2", "2026-03-01 m0"]),
    ],
)
def test_models_are_in_the_order_of_the_key_in_the_configuration(lsa, tmp_path, places, expected):  # noqa: F811
    report = several(1, n=20)["runs/a/epoch-0.pt"].to_json()
    for number in range(3):
        (tmp_path / f"m{number}.pt.audit.json").write_text(report)
    keys = [f"  'm{number}.pt': {place.strip()}" for number, place in enumerate(places.split(","))]
    (tmp_path / "lsa.yaml").write_text("\n".join(["history:", "  '*.pt': " + places.split(",")[0], *keys]))
    done = lsa("history", ".", "-o", "site", "--order", "key")
    assert done.code == 0, done.err
    text = (tmp_path / "site" / "index.html").read_text()
    assert [" ".join(found) for found in re.findall(r"<title>robust, (\S+) (\S+):", text)] == expected
    (tmp_path / "other.yaml").write_text("history: {'m0.*': 1, m1.pt: 2}")
    done = lsa("history", ".", "-o", "site", "--order", "key", "--config", "other.yaml")
    assert done.code == 2
    assert "no glob of `history` in other.yaml fits m2.pt; write history: {'m2.pt': 1}" in " ".join(done.err.split())
