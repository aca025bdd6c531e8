"""The before/after page: its facts, its verdict, and that nothing in it is fetched or run."""

import re

import pytest

from lsa_cli.errors import UsageError
from lsa_cli.report.compare import compare
from lsa_cli.report.comparison_html import render
from lsa_cli.report.row import Draws
from lsa_cli.report.schema import AuditReport, Curve, CurvePoint, Evidence, Finding
from tests.cli.conftest import lsa  # noqa: F401  a fixture
from tests.report.example import example, rate
from tests.report.test_compare import paired
from tests.report.test_formats import hostile
from tests.report.test_html import Checker


def checked(old, new):
    page = render(old, new, compare(old, new))
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return page, " ".join("".join(checker.text).split()), checker


def pair():
    """30 of 100 samples robust before, 75 after; the second layer leaves the most vulnerable ones under pgd."""
    old, new = paired([False] * 70 + [True] * 30), paired([True] * 75 + [False] * 25)
    new.subject.checkpoint = "models/hard.pt"
    layers = new.outcomes[1].layers
    layers.rows[1].mean, layers.rows[1].low, layers.rows[1].high, layers.rows[1].in_mvl = 0.3, 0.29, 0.31, False
    layers.rows[0].in_mvl, layers.mvl = True, ["relu1"]
    new.outcomes[0].robust, new.outcomes[1].robust = rate(80, 100), rate(75, 100)
    after = [CurvePoint(eps=0, robust=rate(90, 100)), CurvePoint(eps=0.3, robust=rate(75, 100))]
    new.curves = [Curve(attack="pgd", points=after, score=165.0)]
    return old, new


def cells(page, section, first):
    """The cells of the row of a section's table that begins with `first`."""
    part = page[page.index(f'aria-labelledby="{section}"') :]
    row = part[part.index(f'<td class="break">{first}</td>') :]
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row[: row.index("</tr>")])]


def test_every_number_stands_before_and_after_with_its_interval():
    page, text, _ = checked(*pair())
    assert cells(page, "accuracies", "robust, worst case")[1:8] == [
        "30.0%", "[25.0, 35.0]", "75.0%", "[70.0, 80.0]", "+45.0", "70", "25",
    ]  # fmt: skip
    assert cells(page, "accuracies", "robust, worst case")[9:] == ["34.2", "better"]
    assert cells(page, "accuracies", "worst class")[1:6] == ["0.0%", "[0.0, 5.0]", "50.0%", "[45.0, 55.0]", "+50.0"]
    assert cells(page, "accuracies", "worst class")[10] == "not tested"
    assert cells(page, "classes", "cat")[1:8] == ["0.0%", "[0.0, 5.0]", "100.0%", "[95.0, 100.0]", "+100.0", "50", "0"]
    relu2 = cells(page, "layers", "relu2")
    assert (relu2[1], relu2[3], relu2[5:]) == ("0.800", "0.300", ["-0.500", "&lt; 0.001", "moves less", "before"])
    for fact in ("hard.pt, compared with example.pt", "pgd 120.0 165.0 +45.0", "new relu1; no longer relu2"):
        assert fact in text, fact


@pytest.mark.parametrize(
    ("old", "new", "mood", "sentence"),
    [
        (0, 100, "good", "Robust accuracy rose beyond noise. No accuracy fell beyond noise"),
        (50, 53, "plain", "Robust accuracy did not change beyond noise. No accuracy fell beyond noise"),
        (100, 0, "bad", "Robust accuracy fell beyond noise. Worse, too: class cat, class dog"),
    ],
)
def test_the_page_opens_with_what_changed_beyond_noise(old, new, mood, sentence):
    page, text, _ = checked(*(paired([True] * held + [False] * (100 - held)) for held in (old, new)))
    assert f'<div class="verdict {mood}">' in page
    assert text.index(sentence) < text.index("Accuracies that" if mood != "plain" else "Clean accuracy")


def test_evidence_that_fell_and_chance_are_told():
    old, new = pair()
    old.evidence = Evidence(verdict="trusted", findings=[], checks=[])
    finding = Finding(code="random-forward", level="doubtful", message="it is stochastic", advice="use EoT")
    new.evidence = Evidence(verdict="doubtful", findings=[finding], checks=[])
    new.verdict.draws = Draws(n=10, mean=0.75, sd=0.02, worst=rate(60, 100))
    page, text, _ = checked(old, new)
    assert '<div class="verdict bad">' in page
    for fact in (
        "evidence: trusted -> doubtful",
        "it is stochastic",
        "mean of 10 evaluations of a stochastic network",
    ):
        assert fact in text, fact


def test_curves_of_other_radii_are_not_put_side_by_side():
    old, new = pair()
    new.curves[0].points[1].eps = 0.2
    _, text, _ = checked(old, new)
    assert "the two reports measured at other radii: pgd" in text
    assert "165.0" not in text


def test_layers_of_one_network_alone_have_one_side():
    old, new = pair()
    new.outcomes[1].layers.rows[1].name = "extra"
    page, _, _ = checked(old, new)
    assert cells(page, "layers", "relu2")[1:6] == ["0.800", "[0.790, 0.810]", "-", "", "-"]
    assert cells(page, "layers", "extra")[1:4] == ["-", "", "0.300"]


def test_where_the_second_was_made_from_the_first_it_says_how():
    old, new = pair()
    new.subject.history = [{"method": "at-lr", "base": "pgd", "layers": ["relu2"], "epochs": 5, "parent_sha256": "0"}]
    assert "Hardened by" not in checked(old, new)[1]
    new.subject.history[0]["parent_sha256"] = old.subject.sha256
    assert "method at-lr, base pgd, epochs 5, layers relu2" in checked(old, new)[1]


def test_hostile_names_stay_text_and_nothing_is_fetched():
    evil = '<script>alert("x")</script>'
    old, new = (example(names=(evil, "b\"'><img src=x onerror=alert(1)>")) for _ in range(2))
    new.subject.checkpoint = f"/tmp/{evil}.pt"
    new.subject.history = [{"method": evil, "layers": [evil], "parent_sha256": old.subject.sha256}]
    new.outcomes[1].layers.rows[0].name = "</svg><script>y</script>"
    for reports in ((old, new), (hostile(), hostile())):
        page, _, checker = checked(*reports)
        assert checker.tags.count("script") == 1
        assert "img" not in checker.tags
        assert "<script>alert" not in page
        assert [address for address in checker.fetched if address[0] != "#"] == []
        assert not re.search(r"https?://|@import|url\(", page)


@pytest.mark.parametrize(
    "report",
    [example(budget=False), example(outcomes=[], pairs=[], curves=[], budget=False), example(empty_class=True),
     example(blind_layer=True)],
    ids=["no budget attack", "clean alone", "empty class", "no measure"],
)  # fmt: skip
def test_every_gap_in_a_report_is_shown_as_one(report):
    report = AuditReport.model_validate(report.model_dump())
    _, text, _ = checked(report, report)
    assert "nan" not in text.lower()
    assert "None" not in text


def test_a_thousand_classes_are_folded():
    names = tuple(f"n{i:08d}" for i in range(1000))
    page, text, _ = checked(example(names=names), example(names=names))
    assert "All 1000 classes" in text
    assert len(page) < 3_000_000


def test_the_command_writes_it_and_replaces_nothing(lsa, tmp_path):  # noqa: F811
    old, new = pair()
    for name, report in (("a.json", old), ("b.json", new)):
        (tmp_path / name).write_text(report.to_json())
    result = lsa("compare", "a.json", "b.json", "--html", "c.html", "--json", "c.json")
    assert result.code == 0, result.err
    assert (tmp_path / "c.html").read_text() == render(old, new, compare(old, new))
    assert (tmp_path / "c.json").read_text() == compare(old, new).to_json()
    before = {path.name for path in tmp_path.iterdir()}
    for options, says in (
        (("--html", "a.json"), "--html a.json is what is read here"),
        (("--html", "-"), "only --json can go to stdout"),
        (("--html", "d.html", "--json", "d.html"), "is already where --json goes"),
        (("--html", "no/d.html"), "does not exist"),
        (("--html", "d.html", "--consistency"), "--html needs two reports"),
    ):
        refused = lsa("compare", "a.json", "b.json", *options)
        assert (refused.code, says in refused.err) == (2, True), refused.err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_what_cannot_be_compared_has_no_page():
    old, new = pair()
    new.protocol.threat.eps = 0.1
    with pytest.raises(UsageError, match="eps differ"):
        checked(old, new)
