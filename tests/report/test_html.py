import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from pydantic import ValidationError

from lsa_cli.auditing.examples import example as picture
from lsa_cli.report.html import render
from lsa_cli.report.row import Proof
from lsa_cli.report.schema import AuditReport
from tests.report.example import example, rate

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Checker(HTMLParser):
    """Every element that opens closes, in order; collects text and what would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.fetched, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._part(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "action", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def _part(self, tag):
        """Every tag parts words, but for that of a term."""
        self.text += [] if tag == "abbr" else [" "]

    def handle_endtag(self, tag):
        self._part(tag)
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def drawings(page):
    """The outermost svg elements as text."""
    begin, depth = 0, 0
    for tag in re.finditer(r"<svg\b|</svg>", page):
        begin = tag.start() if depth == 0 else begin
        depth += 1 if tag[0] == "<svg" else -1
        if depth == 0:
            yield page[begin : tag.end()]


def checked(report):
    page = render(report)
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    for drawing in drawings(page):
        ElementTree.fromstring(drawing)
    return page, " ".join("".join(checker.text).split()), checker


def test_the_page_says_what_the_report_says():
    _, text, _ = checked(example())
    for fact in (
        "30.0%", "[25.0, 35.0]", "90.0%", "cat: 20.0%", "relu2", "ab" * 32, "mean 0.1307, std 0.3081", "0.800",
        "[0.790, 0.810]", "120.0", "verdict-mismatch", "prefix 'module.' removed", "upper bound", "seed 0",
        "100 of 1,000 samples (stratified by class, seed 0)", "eps = 0.3 (the checkpoint)",
    ):  # fmt: skip
        assert fact in text, fact


def test_the_page_says_what_is_proven_and_why_nothing_is():
    report = example()
    text = checked(report)[1]
    assert "25.0% to 30.0%" in text
    assert "robust between 25.0% (proven) and 30.0% (attacked) [20.0, 35.0]" in text
    report.verdict.proof.robust = rate(30, 100)
    assert "robust 30.0% (both proven and attacked) [25.0, 35.0]" in checked(report)[1]
    report.verdict.proof = Proof(robust=None, threat="linf 0.3", seconds=0.0, left_out="it takes too long")
    text = checked(report)[1]
    assert "not computed: it takes too long" in text
    assert "robust between" not in text


def test_no_two_tables_have_the_same_caption():
    page, _, _ = checked(example())
    captions = re.findall("<caption>(.*?)</caption>", page)
    assert len(set(captions)) == len(captions) > 5


def test_nothing_is_fetched():
    page, _, checker = checked(with_examples())
    assert [address[:22] for address in checker.fetched if address[0] != "#"] == ["data:image/png;base64,"] * 6
    assert not re.search(r"https?://|@import|url\(", page)


def with_examples():
    image = np.random.default_rng(0).random((3, 8, 8), dtype=np.float32)
    shown = [
        picture(image, 1 - image, index=i, label="<i>cat", predicted="dog", attack="pgd", margin=2.5, distance=0.3)
        for i in range(2)
    ]
    return example(examples=shown)


def test_examples_are_shown_with_what_they_are_taken_for():
    page, text, _ = checked(with_examples())
    assert "<i>cat mistaken for dog (sample 0, margin -2.50)" in text
    assert 'alt="sample 1 as it is: &lt;i&gt;cat"' in page
    assert "<i>cat" not in page


def test_a_picture_is_a_picture_and_nothing_else():
    report = with_examples().model_dump()
    for evil in (
        "http://there/x.png",
        "data:text/html;base64,AAAA",
        'data:image/png;base64,AA" onerror="x',
        "data:image/png;base64," + "A" * 50_000,
    ):
        report["examples"][0]["clean"] = evil
        with pytest.raises(ValidationError):
            AuditReport.model_validate(report)


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
