"""Rendered reports, whole. `pytest --update-gold` rewrites them; the diff is then reviewed like code."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from lsa_cli.report.formats import FORMATS
from lsa_cli.report.gate import check
from lsa_cli.report.github import annotations, outputs
from lsa_cli.report.hardening import print_hardening
from lsa_cli.report.schema import AuditReport, CheckMade, Estimate, Evidence, Finding
from lsa_cli.report.storage import read_report
from lsa_cli.report.tables import csv_text, tables
from lsa_cli.report.terminal import one_line, print_report
from lsa_cli.report.text import percent
from tests.report.example import example

GOLD = Path(__file__).parent.parent / "gold"


def gated():
    report = example()
    limits = {"robust": 0.5, "clean": 0.8, "layer.max-error": 0.9, "class.min": 0.3, "class.dog": 0.3}
    report.gates = check(report, {**limits, "layer.relu2": 0.7})
    report.gates[-1].severity = "warning"
    report.evidence = Evidence(
        verdict="doubtful",
        findings=[
            Finding(code="zero-gradient", level="doubtful", message="3 of 100 samples are flat", advice="try square")
        ],
        checks=[
            CheckMade(name="gradient", n=100, saw={"flat": 3}, findings=["zero-gradient"]),
            CheckMade(name="planted", n=50, saw={"found": 49}, statement="pgd finds 98% of 50 (random search: 4%)"),
        ],
    )
    return report


def terminal():
    text = io.StringIO()
    print_report(gated(), Console(file=text, width=120, color_system=None))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def all_tables():
    return "".join(f"# {table.title}\n{csv_text(table)}" for table in tables(gated()))


RENDERED = {
    "report.txt": terminal,
    "annotations.txt": lambda: annotations(gated()),
    "outputs.txt": lambda: outputs(gated(), {"json": "report.json"}),
    "tables.csv": all_tables,
    "line.txt": lambda: one_line(gated()) + "\n",
}
FILES = {
    "json": "report.json", "md": "report.md", "junit": "junit.xml", "sarif": "report.sarif", "gitlab": "gitlab.json",
    "openmetrics": "metrics.txt", "card": "card.md", "badge": "badge.svg",
}  # fmt: skip
RENDERED |= {file: lambda name=name: FORMATS.get(name).render(gated()) for name, file in FILES.items()}


def test_nothing_is_compared_where_one_class_has_samples():
    report = example(empty_class=True)
    text = io.StringIO()
    print_report(report, Console(file=text, width=120, color_system=None))
    assert "Classes, worst first" in text.getvalue()
    assert "max discrepancy" not in text.getvalue()
    text = io.StringIO()
    print_hardening(report, report, None, (), Console(file=text, width=120, color_system=None))
    assert "robust, worst case" in text.getvalue()
    assert "NSD" not in text.getvalue()
    assert "rho" not in text.getvalue()


def test_a_robust_accuracy_that_is_not_measured_bounds_nothing():
    assert "robust accuracy not measured (linf 0.3 set by the checkpoint, n=100), clean" in one_line(
        example(budget=False)
    )
    attacked = example()
    attacked.verdict.proof = None
    assert ", n=100, upper bound), clean" in one_line(attacked)


def test_the_line_has_the_estimate_for_the_whole_cascade():
    report = example()
    report.verdict.estimate = Estimate(value=0.7, low=0.6, high=0.8, survivors=80, checked=20, broken=5)
    assert "; full cascade 70.0% [60.0, 80.0] estimated: it broke 5 of 20 samples" in one_line(report)


def test_every_format_has_a_gold_file():
    assert set(FORMATS.names()) == {*FILES, "html"}  # the page is looked at in tests/test_browser.py


@pytest.mark.parametrize("name", RENDERED)
def test_gold(name, request):
    text, file = RENDERED[name](), GOLD / name
    if request.config.getoption("--update-gold"):
        file.write_text(text)
    assert text == file.read_text()


def test_a_saved_report_of_this_version_still_loads():
    assert read_report(GOLD / "report.json") == gated()


def test_the_schema_describes_the_report():
    jsonschema = pytest.importorskip("jsonschema")
    schema = AuditReport.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(gated().model_dump(mode="json"), schema)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "50.0%"), (0.99999, "99.9%"), (1.0, "100.0%"), (0.0001, "0.1%"), (0.0, "0.0%"), (None, "-")],
)
def test_percentages_never_round_to_all_or_nothing(value, text):
    assert percent(value) == text


def test_hostile_names_break_no_table():
    report = example(names=("a|b\n<script>", "*x*[link](http://y)"))
    text = FORMATS.get("md").render(report)
    assert "<script>" not in text
    assert r"a\|b" in text
    assert r"\[link\]" in text
