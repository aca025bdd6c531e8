"""A report in Python: what it shows of itself, its tables, and what is saved is what is opened."""

import html
import re
from io import StringIO

import pytest
from rich.console import Console

from lsa_cli import audit
from lsa_cli.auditing.progress import in_lines, progress_bar
from lsa_cli.errors import UsageError
from lsa_cli.report.html import render
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.terminal import one_line
from tests.cli.test_terminals import ESCAPE, MOON, terminal
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
    with pytest.raises(KeyError, match="unknown table 'layer': did you mean 'layers'"):
        tables["layer"]
    assert list(tables["attacks"]["attack"]) == [outcome.name for outcome in report.outcomes]
    layers = report.outcomes[0].layers.rows
    assert list(tables["layers"]["layer"][: len(layers)]) == [layer.name for layer in layers]


def test_a_report_plots_the_figures_of_lsa_plot():
    """The names and numbers are those of the files; a notebook shows every figure as it would be saved."""
    pytest.importorskip("matplotlib")
    from lsa_cli.report.plots import draw

    report = example()
    drawn, files = report.plot(), dict(draw([report], "svg"))
    assert [f"{name}.svg" for name in drawn] == list(files)
    shown = drawn._repr_html_()
    assert shown.count("<svg") == len(files)
    assert all(content.decode()[-2000:] in shown for content in files.values())


@pytest.mark.parametrize(("asked", "shows"), [("None", False), ("False", False), ("True", True)])
def test_a_bar_shows_how_far_an_audit_is_where_it_is_asked_for(tmp_path, asked, shows):
    code = f"import lsa_cli; print(lsa_cli.audit({str(MOON)!r}, n=40, attack='fgsm', progress={asked}))"
    exit_code, out = terminal(tmp_path, "-c", code, columns=100, module=False)
    assert exit_code == 0
    assert ("% done," in ESCAPE.sub("", out)) == shows
    assert "robust accuracy " in ESCAPE.sub("", out)


def test_a_file_or_pipe_gets_lines():
    lines, quiet = StringIO(), StringIO()
    with progress_bar(Console(file=lines)) as told:
        told("proof", 1, 4)
    assert lines.getvalue() == ""  # a short audit has none
    for console in (Console(file=lines), Console(file=quiet, quiet=True)):
        told = in_lines(console, every=0)
        for done in (0, 1, 4):
            told("proof", done, 4)
    first, last = lines.getvalue().splitlines()
    assert re.fullmatch(r"lsa: proof: 25% done, about \d+ s left", first)
    assert last.startswith("lsa: proof: 100% done")
    assert quiet.getvalue() == ""


def test_a_function_gets_the_progress(capsys):
    told = []
    audit(MOON, n=40, attack="fgsm", progress=lambda *what: told.append(what))
    assert {what for what, _, _ in told} >= {"clean accuracy", "fgsm"}
    assert all(0 <= done <= total for _, done, total in told)
    assert told[-1][1] > told[0][1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [("epsilon", "eps"), ("attacks", "attack"), ("batchsize", "batch_size"), ("max_steps", "steps")],
)
def test_a_keyword_that_does_not_exist_suggests_one(keyword, meant):
    with pytest.raises(UsageError, match=f"unknown option '{keyword}': did you mean '{meant}'"):
        audit(MOON, **{keyword: 1})


def test_what_is_saved_is_what_is_opened_and_does_not_differ(tmp_path):
    report = example()
    report.save(tmp_path / "r.json")
    opened = AuditReport.open(tmp_path / "r.json")
    assert opened == report
    assert not [change for change in report.compare(opened).changes if change.beyond_noise]


@pytest.mark.parametrize("name", ["tables", "plot", "save", "open", "compare"])
def test_no_field_of_a_report_hides_what_it_does(name):
    assert name not in AuditReport.model_fields
