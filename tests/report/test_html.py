import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from lsa_cli.report.html import render
from lsa_cli.report.schema import AuditReport
from tests.report.example import example

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Checker(HTMLParser):
    """Every element that opens closes, in order; collects text and what would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.fetched, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "action", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def checked(report):
    page = render(report)
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    for drawing in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawing)
    return page, " ".join(" ".join(checker.text).split()), checker


def test_the_page_says_what_the_report_says():
    _, text, _ = checked(example())
    for fact in (
        "30.0%", "[25.0, 35.0]", "90.0%", "cat: 20.0%", "relu2", "ab" * 32, "mean [0.1307], std [0.3081]", "0.800",
        "[0.790, 0.810]", "120.0", "verdict-mismatch", "prefix 'module.' removed", "upper bound", "seed 0",
        "100 of 1,000 (stratified by class, seed 0)", "eps = 0.3 (the checkpoint)",
    ):  # fmt: skip
        assert fact in text, fact


def test_nothing_is_fetched():
    page, _, checker = checked(example())
    assert checker.fetched == []
    assert not re.search(r"https?://|@import|url\(", page)


def test_hostile_names_stay_text():
    evil = '<script>alert("x")</script>'
    report = example(names=(evil, "b\"'><img src=x onerror=alert(1)>"))
    report.subject.checkpoint = f"/tmp/{evil}.pt"
    report.outcomes[1].layers.rows[0].name = "</svg><script>y</script>"
    page, _, checker = checked(report)
    assert checker.tags.count("script") == 1
    assert "img" not in checker.tags
    assert "<script>alert" not in page


@pytest.mark.parametrize(
    "report",
    [
        example(budget=False),
        example(outcomes=[], pairs=[], curves=[], status="interrupted", budget=False),
        example(empty_class=True),
        example(blind_layer=True),
        example(names=tuple(f"class-with-a-long-name-{i}" for i in range(40))),
    ],
    ids=["no budget attack", "interrupted at once", "empty class", "no measure", "many classes"],
)
def test_every_gap_in_a_report_is_shown_as_one(report):
    report = AuditReport.model_validate(report.model_dump())
    for outcome in report.outcomes:
        outcome.layers = outcome.layers if outcome.name != "gaussian" else None
    _, text, _ = checked(report)
    assert "nan" not in text.lower()
    assert "None" not in text
    if report.status != "complete":
        assert "not complete (status: interrupted)" in text


def test_a_thousand_classes_are_folded():
    page, text, _ = checked(example(names=tuple(f"n{i:08d}" for i in range(1000))))
    assert "the 30 worst of 1000 classes" in text
    assert "All 1000 classes" in text
    assert len(page) < 3_000_000


@pytest.mark.slow
def test_a_real_browser_shows_it(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    page = tmp_path / "report.html"
    # A click on the first column's button, as a reader would, once the page's own script has run.
    click = "<script>document.querySelector('table.sortable th button').click()</script></body>"
    page.write_text(render(example()).replace("</body>", click))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    done = subprocess.run(
        [browser, *flags.split(), "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    for section in ("verdict", "attacks", "layers", "classes", "facts", "reading"):
        assert f'id="{section}"' in done.stdout
    assert 'aria-sort="ascending"' in done.stdout
    order = re.findall(r"<td>(fgsm|pgd|gaussian)", done.stdout)
    assert order[:3] == sorted(order[:3])
    assert "CONSOLE" not in done.stderr
