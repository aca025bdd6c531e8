"""A report in Python: what it shows of itself, its tables, and what is saved is what is opened."""

import html
import re

import pytest

from lsa_cli.report.html import render
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.terminal import one_line
from tests.report.example import example


def test_a_report_shows_its_verdict_in_one_line():
    report = example()
    assert repr(report) == str(report) == one_line(report)
    assert "\n" not in repr(report)


def test_a_notebook_shows_the_page_in_a_frame_of_its_own():
    """Nothing of the report is markup of the notebook: a name that looks like a tag stays text."""
    report = example()
    report.subject.checkpoint = '"><script>alert(1)</script>.pt'
    shown = report._repr_html_()
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts" [^>]*></iframe>', shown)
    assert frame is not None
    assert html.unescape(frame[1]) == render(report)


def test_the_tables_hold_the_numbers_of_the_report():
    report = example()
    tables = report.tables
    assert {"attacks", "layers", "classes"} <= set(tables)
    assert list(tables["attacks"]["attack"]) == [outcome.name for outcome in report.outcomes]
    layers = report.outcomes[0].layers.rows
    assert list(tables["layers"]["layer"][: len(layers)]) == [layer.name for layer in layers]


def test_what_is_saved_is_what_is_opened_and_does_not_differ(tmp_path):
    report = example()
    report.save(tmp_path / "r.json")
    opened = AuditReport.open(tmp_path / "r.json")
    assert opened == report
    assert not [change for change in report.compare(opened).changes if change.beyond_noise]


@pytest.mark.parametrize("name", ["tables", "save", "open", "compare"])
def test_no_field_of_a_report_hides_what_it_does(name):
    assert name not in AuditReport.model_fields
