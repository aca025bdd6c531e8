"""A report in Python: what it shows of itself, its tables, and what is saved is what is opened."""

import html
import itertools
import re
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

from lsa_cli import audit, harden
from lsa_cli.auditing.progress import in_lines, progress_bar
from lsa_cli.errors import ForwardError, UsageError
from lsa_cli.report.html import render
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.terminal import one_line
from lsa_cli.settings.in_python import renamed
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
    shares = [done / total for _, done, total in told]
    assert max(after - before for before, after in itertools.pairwise(shares)) < 0.6  # where the rest is estimated anew
    assert max(after - before for before, after in itertools.pairwise(shares[-100:])) < 0.1
    assert 0.6 < shares[-1] <= 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n": 0}, "^n: must be"),
        ({"batch_size": 0}, "^batch_size: must be"),
        ({"quick": True, "full": True}, "^quick and full set the same thing"),
        ({"eps": "far"}, "^eps: 'far' is not a number"),
        ({"resume": True}, "^resume: belongs to the command line"),
        ({"n": 3000}, '^limit=3000 asks for more samples than .*; use limit="all"$'),
        ({"full": True, "attack": "pgd"}, "^full chooses the attacks; leave out attack, or full$"),
        ({"device": "cpuu"}, "^device 'cpuu'"),
    ],
)
def test_errors_name_options_as_python_does(given, says):
    with pytest.raises(UsageError, match=says):
        audit(MOON, **given)


def test_errors_of_harden_name_options_as_python_does(tmp_path):
    with pytest.raises(UsageError, match=r"^val_fraction: must be below 1"):
        harden(MOON, tmp_path / "h.pt", val_fraction=2)
    with pytest.raises(UsageError, match=r"^budget decides how many epochs there are; give budget or epochs$"):
        harden(MOON, tmp_path / "h.pt", budget="1m", epochs=3)


def test_only_what_python_has_is_renamed():
    assert renamed("run it with --max-restarts 3 and --no-prove") == "run it with --max-restarts 3 and prove=False"
    assert renamed("--split train, --returns logits and --top-k 99") == 'split train, returns="logits" and top_k=99'
    assert renamed("give --arch, or run: lsa audit x --trust-code") == "give arch, or run: lsa audit x --trust-code"


@pytest.mark.parametrize(("dtype", "name"), [(torch.float64, "float64"), (torch.bfloat16, "bfloat16")])
def test_a_network_of_another_precision_is_answered_with_what_to_do(dtype, name):
    net, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype), torch.rand(20, 2)
    with pytest.raises(ForwardError, match=rf"its weights are {name} .*: give model\.float\(\)$"):
        audit(net, data=(x, torch.arange(20) % 2), eps=0.1)
    assert audit(net.float(), data=(x, torch.arange(20) % 2), eps=0.1, attack="fgsm", threads=1).data.n == 20


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
