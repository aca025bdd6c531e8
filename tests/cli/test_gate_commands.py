"""What a CI job does: init, audit --gate-only, gate, compare, doctor."""

import json
import os
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml

from lsa_cli.config import read_config
from lsa_cli.report.limits import Limit
from lsa_cli.report.sequential import decide_in_order
from lsa_cli.settings.schema import config_schema
from tests.cli.conftest import ROOT
from tests.report.example import example
from tests.report.test_compare import paired

MOON = ROOT / "sample_models" / "moon_mlp.pt"
ONE = ("--threads", 1)


def test_init_then_gate(lsa, tmp_path):
    """A policy from a checkpoint is held by that checkpoint, and says what it is made of."""
    made = lsa("init", MOON, "--eps", "0.1", *ONE)
    assert (made.code, made.out) == (0, "written: lsa.yaml, lsa.schema.json\n")
    text = (tmp_path / "lsa.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=lsa.schema.json\n")
    schema = json.loads((tmp_path / "lsa.schema.json").read_text())
    assert schema == config_schema()
    jsonschema.validate(yaml.safe_load(text), schema)
    settings = read_config(tmp_path / "lsa.yaml")
    assert (settings.norm, settings.eps, settings.threads) == ("linf", 0.1, None)
    measured = {m: float(v) for m, v in re.findall(r"(clean|robust): \S+\s+# measured (\S+)", text)}
    assert 0 < settings.gate["robust"].min < measured["robust"]
    assert settings.gate["class.min"].severity == "warning"
    # Commented lines are valid too, once the # is gone.
    commented = re.sub(
        r"^( *)# (limit|attack|layer\.max-error|seconds|robust|class\.min|arch)(: )", r"\1\2\3", text, flags=re.M
    )
    jsonschema.validate(yaml.safe_load(commented), schema)
    run = lsa("audit", MOON, "--gate-only", *ONE)
    assert run.code == 0
    report = json.loads((tmp_path / "moon_mlp.gate.json").read_text())
    assert report["early"]["used"] <= report["early"]["population"] == 400
    assert [gate["decided_by"] for gate in report["gates"] if gate["measured"] is not None] == ["sequence"] * 3
    assert f"{report['early']['used']} of 400 samples" in " ".join(run.out.split())


def test_init_replaces_nothing_unasked(lsa, tmp_path):
    (tmp_path / "lsa.yaml").write_text("seed: 1\n")
    refused = lsa("init", MOON, *ONE)
    assert (refused.code, "lsa.yaml exists; give --force" in refused.err) == (2, True)
    assert (tmp_path / "lsa.yaml").read_text() == "seed: 1\n"
    assert lsa("init", MOON, *ONE, "--force").code == 0
    assert "gate:" in (tmp_path / "lsa.yaml").read_text()


def test_init_keeps_what_was_given_but_no_trust(lsa, tmp_path):
    custom = ROOT / "sample_models" / "custom_cnn.pth"
    arch, data = f"{ROOT}/sample_models/custom_model.py:build", f"npz:{ROOT}/sample_models/mnist.npz"
    made = lsa("init", custom, "--arch", arch, "--normalize", "mnist", "--data", data, *ONE)
    assert made.code == 0, made.err
    settings = read_config(tmp_path / "lsa.yaml")
    assert (settings.arch, settings.normalize, settings.data) == (arch, "mnist", data)
    assert lsa("audit", custom, "--gate-only", "-n", 200, "--attack", "fgsm", *ONE).code in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gate-only"], "there is none"),
        (["--gate-only", "--fail-under", "clean=0.1", "--resume"], "--resume needs a journal"),
        (["--alpha", "0.01"], "--alpha changes nothing here: it belongs to --gate-only"),
        (["--gate-only", "--fail-under", "clean=0.1", "--alpha", "2"], "--alpha 2"),
        (["--gate-only", "--fail-under", "layer.max-error=1"], "needs the full audit"),
        (["--baseline", "a.json"], "--baseline changes nothing here: it belongs to --gate-only"),
        (["--gate-only", "--fail-under", "clean=0.1", "--baseline", "a.json"], "no limit is a drop from it"),
        (["--gate-only", "--fail-under", "drop=0.1"], "the limit drop compares with another report"),
        (["--fail-under", "drop.clean=0.1"], "the limit drop.clean compares with another report"),
        (["--gate-only", "--fail-under", "drop=0.1", "--baseline", "a.json"], "a.json cannot be read"),
        (
            ["--gate-only", "--fail-under", "drop=0.1", "--baseline", "a.json", "--json", "a.json"],
            "is what is read here",
        ),
    ],
)
def test_gate_only_refusals(refused, arguments, says):
    refused("audit", MOON, *ONE, *arguments, says=says)


def test_a_drop_from_a_baseline_is_decided_early(lsa, refused, tmp_path):
    """The baseline itself holds a limit; with a quarter of its results made better, the same network breaches it."""
    attack = ("--attack", "pgd", *ONE)
    assert lsa("audit", MOON, *attack, "--noise", "none", "--json", "a.json").code == 0
    gate = ("--gate-only", "--fail-under", "drop=0.1", "--fail-under", "drop.clean=0.1", "--baseline")
    held = lsa("audit", MOON, *attack, *gate, "a.json")
    assert (held.code, held.out.splitlines()[-1]) == (0, "PASSED: 2 of 2 limits hold")
    assert json.loads((tmp_path / "moon_mlp.gate.json").read_text())["early"]["used"] < 200
    better = json.loads((tmp_path / "a.json").read_text())
    rows = better["samples"]
    broken = [place for place, by in enumerate(rows["broken_by"]) if by is not None]
    assert len(broken) > 100
    for place in broken[:100]:
        rows["broken_by"][place] = None
    (tmp_path / "b.json").write_text(json.dumps(better))
    breached = lsa("audit", MOON, *attack, *gate, "b.json")
    assert (breached.code, breached.out.splitlines()[-1]) == (1, "FAILED: 1 of 2 limits is breached")
    saved = {"leaves": ()}
    refused("audit", MOON, *attack, *gate, "a.json", "-n", 40, says="samples differ", **saved)
    refused("audit", MOON, *attack, *gate, "a.json", "--eps", 0.2, says="eps differ", **saved)
    refused("audit", MOON, "--attack", "fgsm", *ONE, *gate, "a.json", says="attacks differ", **saved)
    refused("audit", MOON, *attack, *gate, "moon_mlp.gate.json", "--json", "c.json", says="is of a --gate-only run")
    assert lsa("gate", "a.json", "--fail-under", "drop=0.1").code == 1


def test_severity_and_exit_zero(lsa, tmp_path):
    (tmp_path / "a.json").write_text(example().to_json())
    breached = lsa("gate", "a.json", "--fail-under", "robust=0.9")
    assert (breached.code, breached.out.split(":")[0]) == (1, "Gate BREACHED")
    assert lsa("gate", "a.json", "--fail-under", "robust=0.9", "--exit-zero").code == 0
    assert lsa("gate", "a.json", "--fail-under", "rubost=0.9", "--exit-zero").code == 2
    assert lsa("gate", "a.json", "--fail-on", "doubtful").code == 1  # not checked: not decided
    (tmp_path / "lsa.yaml").write_text("gate:\n  robust: {min: 0.9, severity: warning}\n  clean: 0.5\n")
    warned = lsa("gate", "a.json")
    assert (warned.code, "Gate (warning) BREACHED: robust" in warned.out) == (0, True)
    assert lsa("gate", "a.json", "--quiet").out == "PASSED: 1 of 1 limit holds; 1 of 1 warning does not hold\n"
    assert read_config(tmp_path / "lsa.yaml").gate["robust"] == Limit(min=0.9, severity="warning")


def test_audit_warns_and_exits_zero(lsa):
    result = lsa(
        "audit", MOON, "-n", 40, "--attack", "fgsm", "--noise", "none", *ONE, "--fail-under", "robust=1", "--exit-zero"
    )
    assert (result.code, "Gate NOT DECIDED: robust" in result.out or "Gate BREACHED: robust" in result.out) == (0, True)


def test_compare_two_audits(lsa, tmp_path):
    for name, options in (("a", []), ("b", ["--seed", 1]), ("c", ["--eps", "0.2"])):
        assert (
            lsa("audit", MOON, "--attack", "pgd", "--noise", "none", *ONE, "--json", f"{name}.json", *options).code == 0
        )
    same = lsa("compare", "a.json", "b.json", "--fail-on-regression")
    assert same.code == 0
    assert "Nothing changed beyond noise" in same.out
    refused = lsa("compare", "a.json", "c.json")
    assert (refused.code, "eps differ" in refused.err) == (2, True)
    worse = json.loads((tmp_path / "a.json").read_text())
    rows = worse["samples"]
    for i, label in enumerate(rows["label"][:120]):
        rows["clean"][i] = 1 - label
    worse["verdict"]["clean"] = {"count": 270, "n": 400, "value": 0.675, "low": 0.63, "high": 0.72}
    (tmp_path / "w.json").write_text(json.dumps(worse))
    fell = lsa("compare", "a.json", "w.json", "--fail-on-regression")
    assert fell.code == 1
    assert fell.out.index("Changed beyond noise") < fell.out.index("clean") < fell.out.index("Accuracy")
    found = json.loads(lsa("compare", "a.json", "w.json", "--json", "-").out)
    assert "clean" in found["regressions"]
    assert (found["changes"][0]["name"], found["changes"][0]["lost"] >= 100) == ("clean", True)
    assert lsa("compare", "a.json", "w.json", "--quiet").out.count("\n") == 1
    assert lsa("compare", "a.json", "w.json", "--json", "d.json").code == 0
    assert json.loads((tmp_path / "d.json").read_text()) == found


def test_the_command_says_how_few_samples_decide(lsa, refused, tmp_path):
    old, new = paired([True] * 100), paired([False] * 30 + [True] * 70)
    for name, report in (("a", old), ("b", new), ("c", example())):
        (tmp_path / f"{name}.json").write_text(report.to_json())
    used = decide_in_order(old, new)[1].used
    sentence = f"robust: {used} of 100 decide that the old one is better"
    result = lsa("compare", "a.json", "b.json", "--sequential", "--html", "c.html", "--json", "d.json")
    assert (result.code, sentence in result.out) == (0, True)
    assert sentence in (tmp_path / "c.html").read_text()
    assert json.loads((tmp_path / "d.json").read_text())["sequential"][1]["used"] == used
    assert "decide that" not in lsa("compare", "a.json", "b.json").out
    refused("compare", "a.json", "c.json", "--sequential", says="--sequential compares sample by sample")
    refused("compare", "a.json", "b.json", "c.json", "--sequential", says="--sequential needs two reports")


def test_doctor_measures_and_advises(lsa):
    result = lsa("doctor")
    assert result.code == 0, result.err
    for words in ("torch", "threads", "bfloat16", "this folder"):
        assert re.search(rf"^{words}\s+\S", result.out, flags=re.M)
    assert re.search(r"^(fast|slow): ", result.out, flags=re.M)


def test_doctor_says_what_an_audit_does(lsa, monkeypatch):
    """The threads and the precision of the copy, from the functions that audits ask."""
    monkeypatch.setattr("lsa_cli.auditing.cores.others_load", lambda: 1000.0)
    monkeypatch.setenv("LSA_COPY_PRECISION", "float32")
    result = lsa("doctor")
    assert re.search(r"^threads +an audit takes 1 now; ", result.out, flags=re.M)
    assert "an audit attacks a copy of the network in float32 " in result.out
    audit = lsa(
        "audit", ROOT / "sample_models" / "moon_mlp.pt", "-n", 20, "--attack", "fgsm", "--noise", "none", "--json", "-"
    )
    assert json.loads(audit.out)["protocol"]["threads"] == 1
    assert re.search(r"^lsa: this machine is busy: 1000\.0 other processes.* with 1 thread ", audit.err, flags=re.M)


def test_metrics_are_listed(lsa):
    assert "class.discrepancy" in lsa("list", "metrics").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell):
    """The script that `lsa --install-completion` installs, and what is answered when the shell asks."""
    code = "import sys; sys.argv[0] = 'lsa'; from lsa_cli.__main__ import app; app()"

    def ask(**env):
        whole = {**os.environ, "PYTHONPATH": str(ROOT), **env}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=whole, timeout=60
        ).stdout

    assert "_LSA_COMPLETE" in ask(_LSA_COMPLETE=f"source_{shell}")
    asked = {
        "bash": {"COMP_WORDS": "lsa ga", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "lsa ga"},
        "fish": {"_TYPER_COMPLETE_ARGS": "lsa ga", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    assert "gate" in ask(_LSA_COMPLETE=f"complete_{shell}", **asked)
