"""What the commands print and write."""

import importlib.util
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import typer

from lsa_cli.attacks import make_threat
from lsa_cli.attacks.ranked import rounds_of
from lsa_cli.cli.main import app
from lsa_cli.report.formats import FORMATS
from tests.cli.conftest import ROOT

SAMPLES = ROOT / "sample_models"
MOON, MNIST = SAMPLES / "moon_mlp.pt", SAMPLES / "mnist_cnn.pt"
QUICK = ("-n", 40, "--attack", "fgsm", "--noise", "gaussian", "--threads", 1)


def imported(shell, *arguments):
    """Top-level packages that the command imports."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lsa_cli", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "import time:" in line}


def test_help_and_version_stay_light(shell):
    for arguments in (["--help"], ["--version"], ["audit", "--help"]):
        assert not imported(shell, *arguments) & {"torch", "torchvision", "pandas", "numpy", "yaml", "jinja2"}


COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_whole_at_80_columns(lsa, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    result = lsa(name, "--help")
    assert (result.code, result.out) == (0, lsa(name, "-h").out)
    assert max(map(len, result.out.splitlines())) <= 80
    assert not re.search(r"…|<|\{[^0]", result.out)  # a cut word, a type, braces of the usage; {000..003} are shards
    parameters = COMMANDS[name].params
    for parameter in parameters:
        assert (parameter.metavar or "") in result.out, parameter.metavar
    own = {word for parameter in parameters for word in [*parameter.opts, *parameter.secondary_opts]}
    named = {word for each in parameters for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", each.help or "")}
    assert named <= own | {"--help"}


def test_the_kinds_of_names_are_listed_and_each_has_a_list(lsa):
    kinds = [line.removeprefix("lsa list ") for line in lsa("list").out.splitlines()]
    assert {"attacks", "methods", "metrics"} <= set(kinds)
    assert all(lsa("list", kind).out for kind in kinds)


def test_saved_reports_are_read_without_torch(shell, tmp_path):
    saved = ROOT / "tests" / "gold" / "report.json"
    for arguments in (
        ["report", saved], ["report", saved, "--html", tmp_path / "r.html"], ["gate", saved, "--fail-under", "robust=0.9"],
        ["compare", saved, saved], ["schema", "config"], ["plot", "--help"],
    ):  # fmt: skip
        assert not imported(shell, *arguments) & {"torch", "torchvision"}


def test_the_first_command_needs_no_flag(lsa, tmp_path):
    result = lsa("audit", MOON, "--threads", 1)
    assert result.code == 0
    assert re.search(
        r"robust accuracy\s+\d+\.\d% \[\d+\.\d, \d+\.\d\]\s+n = 400, upper bound, worst of fgsm, pgd, t-pgd", result.out
    )
    for words in (
        "clean accuracy",
        "worst class",
        "vulnerable layers  elu3",
        "Classes, worst first",
        "gaussian",
        "speckle",
    ):
        assert words in result.out
    assert "\x1b" not in result.out + result.err
    report = json.loads((tmp_path / "moon_mlp.audit.json").read_text())
    assert report["status"] == "complete"
    assert [path.name for path in tmp_path.iterdir()] == ["moon_mlp.audit.json"]


def test_stdout_is_one_json_document_whatever_the_environment(shell):
    result = shell("audit", MOON, *QUICK, "--json", "-", env={"FORCE_COLOR": "1", "GITHUB_ACTIONS": "true"})
    assert json.loads(result.out)["schema_version"] == "1.4"
    assert "\x1b" not in result.out


def test_json_is_what_the_schema_says(lsa):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(lsa("schema", "report").out)
    report = json.loads(lsa("audit", MNIST, *QUICK, "--eps-grid", "0,0.1", "--json", "-").out)
    jsonschema.validate(report, schema)


def test_every_output_is_written_also_when_a_gate_is_breached(lsa, tmp_path):
    result = lsa(
        "audit", MNIST, *QUICK, "--json", "a.json", "--csv", "out", "--md", "a.md", "--html", "a.html",
        "--fail-under", "robust=0.99", "--fail-under", "clean=0.5",
    )  # fmt: skip
    assert result.code == 1
    assert "Gate BREACHED: robust: measured" in result.out
    assert "Gate held: clean: measured" in result.out
    report = json.loads((tmp_path / "a.json").read_text())
    attacks = pd.read_csv(tmp_path / "out" / "attacks.csv")
    assert attacks["robust"].tolist() == [outcome["robust"]["value"] for outcome in report["outcomes"]]
    layers = pd.read_csv(tmp_path / "out" / "layers.csv")
    assert layers["mean"].tolist() == [row["mean"] for o in report["outcomes"] for row in o["layers"]["rows"]]
    confusion = pd.read_csv(tmp_path / "out" / "confusion.csv")
    assert confusion["count"].sum() == sum(sum(map(sum, o["confusion"])) for o in report["outcomes"])
    assert "Robust accuracy" in (tmp_path / "a.md").read_text()
    assert "<svg" in (tmp_path / "a.html").read_text()
    again = lsa("gate", "a.json", "--fail-under", "robust=0.99", "--fail-under", "clean=0.5")
    assert again.code == 1
    assert [line.split(":")[0] for line in again.out.splitlines()] == ["Gate BREACHED", "Gate held", "FAILED"]
    assert lsa("gate", "a.json", "--fail-under", "clean=0.5").code == 0
    (tmp_path / "lsa.yaml").write_text("gate:\n  clean: 0.5\n  layer.max-error: 0.001\n")
    assert lsa("gate", "a.json", "--config", "lsa.yaml").code == 1
    assert lsa("report", "a.json").code == 0
    assert lsa("report", "a.json", "--md", "b.md").code == 0
    assert (tmp_path / "b.md").read_text() == (tmp_path / "a.md").read_text()


def test_gates_in_the_configuration_decide(lsa, tmp_path):
    (tmp_path / "lsa.yaml").write_text("gate:\n  robust: 0.999\nattack: fgsm\nnoise: none\nlimit: 40\n")
    assert lsa("audit", MOON, "--threads", 1).code == 1
    assert lsa("audit", MOON, "--threads", 1, "--fail-under", "robust=0.001").code == 0


def test_settings_come_from_the_nearest_word(lsa, tmp_path):
    (tmp_path / "lsa.yaml").write_text("eps: 0.05\nseed: 3\n")
    report = json.loads(lsa("audit", MOON, *QUICK, "--seed", "4", "--json", "-").out)
    assert report["protocol"]["threat"] == {
        "norm": "linf",
        "eps": 0.05,
        "text": "0.05",
        "origin": str(tmp_path / "lsa.yaml"),
    }
    assert report["protocol"]["seed"] == 4
    origin = report["protocol"]["settings_from"]
    assert (origin["seed"], origin["eps"], origin["data"]) == ("option", str(tmp_path / "lsa.yaml"), "the checkpoint")


def test_dry_run_attacks_and_writes_nothing(lsa, tmp_path):
    result = lsa("audit", MNIST, "--dry-run", "--json", "r.json", "--threads", 1)
    assert result.code == 0
    for words in (
        "1,000 of 10,000",
        "relu1, relu2, relu3, relu4",
        "step_size=0.0375",
        "estimate",
        "about",
        "input 1x28x28",
    ):
        assert words in result.out
    assert list(tmp_path.iterdir()) == []


def test_quiet_is_one_line(lsa):
    result = lsa("audit", MOON, *QUICK, "-q")
    assert len(result.out.splitlines()) == 1
    assert result.err == ""


def test_layers_and_lists(lsa):
    out = lsa("layers", MNIST).out
    assert re.search(r"relu1\s+ReLU\s+16x24x24\s+activations", out)
    assert re.search(r"fc2\s+Linear\s+10\s+\(output\)", out)
    wanted = {
        "attacks": ["fgsm", "pgd", "t-pgd", "steps=20", "temperature=0.2"],
        "noises": ["gaussian", "uniform", "salt", "pepper", "speckle", "density=0.01"],
        "layers": ["activations", "learnable", "blocks"],
        "measures": ["relative-error", "cosine-distance", "l2"],
        "sources": ["npz", "imagefolder", "torchvision"],
        "formats": FORMATS.names(),
    }
    for kind, words in wanted.items():
        result = lsa("list", kind)
        assert result.code == 0
        assert all(word in result.out for word in words)
        assert all(len(line.split(maxsplit=1)) == 2 for line in result.out.splitlines() if not line.startswith(" "))
    assert lsa("list", "atacks").code == 2
    for kind in ("attacks", "metrics"):
        missing = lsa("list", kind, "--plugin", "nofile.py")
        assert (missing.code, "nofile.py" in missing.err) == (2, True)


@pytest.mark.parametrize(
    "options",
    [
        ["--norm", "l2", "--eps", "2"],
        ["--norm", "L1", "--eps", "10"],
        ["--layers", "relu*"],
        ["--layers", "learnable,relu4"],
        ["--top-k", "2"],
        ["--sigma", "layers", "--eta", "0.8"],
        ["--aggregate", "batch"],
        ["--measure", "cosine-distance"],
        ["--measure", "l2"],
        ["--attack", "pgd:steps=3,eps=0.1", "--attack", "pgd:steps=3,eps=0.2"],
    ],
)
def test_named_alternatives(lsa, options):
    result = lsa("audit", MNIST, *QUICK, *options, "--json", "-")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    analysis = report["outcomes"][0]["layers"]
    if "--top-k" in options:
        assert len(analysis["mvl"]) == 2
    if "batch" in options:
        assert (analysis["observations"], analysis["by_class"]) == (1, None)
    if "relu4" in options[-1]:
        assert [row["name"] for row in analysis["rows"]] == ["conv1", "conv2", "conv3", "fc1", "relu4"]
    if options[0] == "--norm":
        assert report["outcomes"][0]["distance"]["largest"] <= float(options[3]) * 1.0001
    if len(options) == 4 and options[0] == "--attack":
        names = [o["name"] for o in report["outcomes"] if o["kind"] == "budget"]
        assert names == ["fgsm", "pgd:steps=3,eps=0.1", "pgd:steps=3,eps=0.2"]


def test_batch_size_and_threads_change_no_number_that_is_counted(lsa):
    reports = [
        json.loads(
            lsa("audit", MNIST, "-n", 60, "--steps", 5, "--threads", threads, "--batch-size", size, "--json", "-").out
        )
        for size, threads in ((60, 1), (17, 2))
    ]
    for one, other in zip(*(report["outcomes"] for report in reports), strict=True):
        assert one["robust"] == other["robust"]
        assert one["confusion"] == other["confusion"]
        assert one["layers"]["mvl"] == other["layers"]["mvl"]


def test_a_network_of_the_user_s_own(lsa):
    result = lsa(
        "audit", SAMPLES / "custom_cnn.pth", "--arch", f"{SAMPLES / 'custom_model.py'}:build", "--normalize", "mnist",
        "--data", f"npz:{SAMPLES / 'mnist.npz'}", *QUICK, "--json", "-",
    )  # fmt: skip
    report = json.loads(result.out)
    assert report["verdict"]["clean"]["count"] >= 38
    rows = report["outcomes"][0]["layers"]["rows"]
    assert [row["name"] for row in rows] == [":relu", "block1:relu", "block1:relu#2", "block2:relu", "block2:relu#2"]
    assert report["protocol"]["threat"]["origin"] == "usual for mnist"


PLUGIN = """
from dataclasses import dataclass
import torch
from lsa_cli.attacks import ATTACKS, Attack, Threat

@ATTACKS.register("sign-noise")
@dataclass(frozen=True)
class SignNoise(Attack):
    \"\"\"A random corner of the budget.\"\"\"
    threat: Threat
    strength: float = 1.0

    def perturb(self, model, x, y):
        return self.threat.project(x + self.strength * self.threat.eps * torch.randn_like(x).sign(), x)
"""


def test_a_plugin_is_listed_parsed_and_run(shell, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    listed = shell("list", "attacks", "--plugin", "mine.py").out
    assert "A random corner of the budget." in listed
    assert "strength=1.0" in listed
    command = ["audit", MOON, *QUICK, "--plugin", "mine.py", "--attack", "sign-noise:strength=0.5", "--json", "-"]
    one, two = json.loads(shell(*command).out), json.loads(shell(*command).out)
    assert one["outcomes"][1]["settings"] == {"norm": "linf", "eps": 0.3, "strength": 0.5}
    assert one["outcomes"][1]["robust"] == two["outcomes"][1]["robust"]


def test_compare_refuses_other_protocols_and_names_the_difference(lsa, tmp_path):
    few = (*QUICK, "-n", 16)
    lsa("audit", MNIST, *few, "--json", "a.json")
    lsa("audit", SAMPLES / "mnist_cnn_at.pt", *few, "--json", "b.json")
    lsa("audit", MNIST, *few, "--eps", "0.1", "--json", "c.json")
    result = lsa("compare", "a.json", "b.json")
    assert result.code == 0
    assert re.search(r"robust: .* samples won", result.out)
    refused = lsa("compare", "a.json", "c.json")
    assert (refused.code, "eps differs (0.3 against 0.1)" in refused.err) == (2, True)


def test_reports_of_another_kind_are_refused(lsa, tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert "no schema_version" in lsa("report", "x.json").err
    (tmp_path / "x.json").write_text('{"schema_version": "9.0"}')
    assert "report version 9.0" in lsa("report", "x.json").err
    (tmp_path / "x.json").write_text("nothing")
    assert "is not JSON" in lsa("report", "x.json").err
    assert lsa("gate", "gone.json").code == 2
    assert "nothing to decide" in lsa("gate", ROOT / "tests" / "gold" / "report.json").err


@pytest.mark.slow
def test_adversarial_training_shows_at_once(lsa):
    """The two shipped networks: one that PGD breaks for every image, one that mostly holds."""
    counts = {}
    for name in ("mnist_cnn", "mnist_cnn_at"):
        report = json.loads(
            lsa("audit", SAMPLES / f"{name}.pt", "-n", 100, "--noise", "none", "--threads", 1, "--json", "-").out
        )
        assert report["verdict"]["clean"]["value"] > 0.98
        counts[name] = report["verdict"]["robust"]["count"]
    assert counts["mnist_cnn"] == 0
    assert counts["mnist_cnn_at"] > 0.9 * 100


def test_presets_files_of_samples_and_an_output_folder(lsa, samples):
    model = samples / "mnist_cnn_at.pt"
    result = lsa("audit", model, "--quick", "-n", 30, "--output", "out", "--samples", "s.csv", "--fail-on", "doubtful")
    assert result.code == 0, result.err
    report = json.loads(Path("out/mnist_cnn_at.audit.json").read_text())
    assert report["protocol"]["attacks"] == ["fgsm", "apgd-ce:steps=10"]
    assert "quick" in {warning["code"] for warning in report["warnings"]}
    assert [gate["metric"] for gate in report["gates"]] == ["evidence.doubtful"]
    lines = Path("s.csv").read_text().splitlines()
    assert lines[0] == "index,label,clean,broken_by,look,margin,distance,proven,held_fgsm,held_apgd-ce"
    assert len(lines) == 31
    assert sorted(path.name for path in Path().rglob("*") if path.is_file()) == ["mnist_cnn_at.audit.json", "s.csv"]
    plan = lsa("audit", model, "--full", "--dry-run")
    assert [line.split()[1] for line in plan.out.splitlines() if line.startswith("cascade")] == [
        one.name.split()[0] for one in rounds_of(make_threat("linf", 0.3))
    ]


def test_a_job_that_is_resumed_after_its_end_ends_as_it_did(lsa, samples):
    arguments = ["audit", samples / "moon_mlp.pt", "-n", 8, "--attack", "fgsm", "--noise", "none", "--threads", 1,
                 "--json", "r.json", "--fail-under", "robust=1"]  # fmt: skip
    first = lsa(*arguments)
    saved = json.loads(Path("r.json").read_text())
    again = lsa(*arguments, "--resume", "--md", "r.md")
    assert (first.code, again.code, again.out) == (1, 1, first.out)
    assert "r.json is the complete report of this audit: nothing is left to resume" in again.err
    assert json.loads(Path("r.json").read_text()) == saved
    assert Path("r.md").is_file()
    other = lsa(*arguments, "--resume", "--seed", 2)
    assert (other.code, "no interrupted run" in other.err) == (2, True)


def test_ways_to_ask_for_two_things_at_once_are_refused(refused, samples):
    model = samples / "mnist_cnn.pt"
    refused("audit", model, "--quick", "--full", says="one of them")
    refused("audit", model, "--full", "--attack", "pgd", says="leave out --attack")
    refused("audit", model, "--json", "a.json", "--output", "out", says="one of them")
    refused("audit", model, "--samples", "s.txt", says=".csv or .parquet")
    refused("audit", model, "--resume", says="no interrupted run")
    refused("audit", model, "--resume", "--json", "-", says="--resume needs a report file")
    refused("audit", model, "--full-on", 5, "--attack", "pgd", says="--full-on")
    refused("audit", model, "--attack", "none", "--samples", "s.csv", says="no attack runs")
    refused("audit", model, "--gate-only", "--fail-under", "clean=0.5", "--samples", "s.csv", says="no attack runs")
    Path("lsa.yaml").write_text("gate: {clean: 0.5, layer.max-error: {max: 1, allow_not_run: true}}")
    refused("audit", model, "--gate-only", "--samples", "s.csv", says="no attack runs")


def test_every_format_is_written_on_a_breach_and_again_from_the_saved_report(lsa, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output.txt"))
    given = [word for name in FORMATS.names() for word in (f"--{name}", f"a.{name}")]
    result = lsa("audit", MNIST, *QUICK, "--fail-under", "robust=0.99", *given, "--samples", "a.parquet")
    assert result.code == 1
    assert "::error file=" in result.err
    assert "::" not in result.out
    assert "## lsa audit" in (tmp_path / "summary.md").read_text()
    assert "passed=false\n" in (tmp_path / "output.txt").read_text()
    samples = pd.read_parquet(tmp_path / "a.parquet")
    saved = json.loads((tmp_path / "a.json").read_text())
    assert {name: samples[name].tolist() for name in ("index", "label", "clean")} == {
        name: saved["samples"][name] for name in ("index", "label", "clean")
    }
    assert len(saved["examples"]) == 6
    again = [word for name in FORMATS.names() for word in (f"--{name}", f"b.{name}")]
    assert lsa("report", "a.json", *again, "--samples", "b.parquet").code == 0
    for name in [*FORMATS.names(), "parquet"]:
        assert (tmp_path / f"b.{name}").read_bytes() == (tmp_path / f"a.{name}").read_bytes(), name
    assert (tmp_path / "summary.md").read_text().count("## lsa audit") == 1  # a conversion tells GitHub when asked
    assert "::error" in lsa("report", "a.json", "--github").err
    assert "::error" not in lsa("audit", MNIST, *QUICK, "--fail-under", "robust=0.99", "--no-github").err


def test_an_output_replaces_neither_another_nor_what_is_read(refused, lsa):
    assert lsa("audit", MOON, *QUICK, "--json", "a.json").code == 0
    refused("report", "a.json", "--junit", "a.json", says="is what is read here")
    refused("report", "a.json", "--junit", "x", "--sarif", "x", says="already where --junit goes")
    refused("report", "a.json", "--samples", "no/such.csv", says="does not exist")
    refused("report", "a.json", "--badge", "-", says="only --json can go to stdout")


def test_plots_of_saved_reports(lsa, refused, tmp_path, monkeypatch):
    saved = ROOT / "tests" / "gold" / "report.json"
    result = lsa("plot", saved, "--format", "pdf")
    assert result.code == 0
    assert result.err.startswith("lsa: 6 figures written to plots: ")
    assert len(list((tmp_path / "plots").glob("*.pdf"))) == 6
    refused("plot", saved, "--format", "gif", says="there are svg, png, pdf")
    refused("plot", "no.json", says="no.json cannot be read")
    (tmp_path / "taken").write_text("")
    refused("plot", saved, "-o", "taken", says="cannot be created")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("plot", saved, "-o", "new", says="pip install matplotlib")
    assert not (tmp_path / "new").exists()


def test_parquet_without_pyarrow_is_refused_before_anything_runs(lsa, refused, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *where: None if name == "pyarrow" else there(name, *where)
    )
    saved = ROOT / "tests" / "gold" / "report.json"
    for command in (("audit", MNIST, *QUICK), ("report", saved)):
        refused(*command, "--samples", "s.parquet", says='run pip install "lsa-robustness[parquet]"')
    assert list(tmp_path.iterdir()) == []
    assert lsa("audit", MNIST, *QUICK, "--samples", "s.csv").code == 0
