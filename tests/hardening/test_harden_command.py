"""`lsa harden` on shipped samples: what it writes, what the result says of itself, and what it refuses."""

import contextlib
import dataclasses
import importlib
import io
import json
import shlex
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console

import lsa_cli
from lsa_cli.auditing.rebuilt import ARCHITECTURE as RECONSTRUCTED
from lsa_cli.errors import RunError, UsageError
from lsa_cli.hardening.files import Files
from lsa_cli.hardening.plan import make_harden_plan
from lsa_cli.hardening.run import refuse_another_network
from lsa_cli.hardening.trainer import Trained
from lsa_cli.hardening.weights import weights_of
from lsa_cli.imports import Home
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.models.classifier import Classifier
from lsa_cli.report.compare import compare
from lsa_cli.report.comparison_html import render
from lsa_cli.report.hardening import less_robust, one_line, print_hardening
from lsa_cli.report.schema import Evidence, Finding
from lsa_cli.report.storage import read_report
from lsa_cli.settings import AuditSettings
from tests.cli.conftest import ROOT, lsa, refused  # noqa: F401  fixtures
from tests.hardening.conftest import stripes
from tests.report.example import example
from tests.report.test_compare import paired

SAMPLES = ROOT / "sample_models"
MOON = SAMPLES / "moon_mlp.pt"
QUICK = ("--epochs", 3, "--threads", 1, "-n", 100)


@pytest.fixture(scope="module")
def hardened(tmp_path_factory):
    """One hardening of the moons, for the tests that look at it."""
    from typer.testing import CliRunner

    from lsa_cli.__main__ import app

    folder = tmp_path_factory.mktemp("hardened")
    arguments = ["harden", MOON, "-o", folder / "hard.pt", *QUICK, "--gamma", "0.2", "--html", folder / "hard.html"]
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="lsa")
    assert result.exit_code == 0, result.stderr
    return folder, result


def test_what_is_written(hardened):
    folder, _ = hardened
    names = {path.name for path in folder.iterdir()} - {"hard.tensorboard"}
    assert names == {
        "hard.pt", "hard.last.pt", "hard.before.json", "hard.after.json", "hard.compare.json", "hard.log.jsonl", "hard.html",
    }  # fmt: skip


def test_the_log_has_a_line_an_epoch(hardened):
    folder, _ = hardened
    lines = [json.loads(line) for line in (folder / "hard.log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert set(lines[0]["parts"]) == {"J", "elu1"}
    # loss = J + strength * gamma * CM; the last epoch is at full strength
    last = lines[-1]
    assert last["loss"] == pytest.approx(last["parts"]["J"] + 0.2 * last["parts"]["elu1"], rel=1e-4)


def test_the_result_describes_itself(hardened, samples):
    folder, _ = hardened
    said = read_checkpoint(folder / "hard.pt").description
    parent = read_checkpoint(MOON)
    entry = said.history[-1]
    assert said.architecture == "lsa:moon-mlp"
    assert len(said.history) == len(parent.description.history) + 1
    assert (entry["parent_sha256"], entry["method"], entry["layers"]) == (parent.sha256, "at-lr", ["elu1"])
    assert entry["held_out"]["robust"] == max(
        json.loads(line)["robust"] for line in (folder / "hard.log.jsonl").read_text().splitlines()
        if json.loads(line)["strength"] == 1
    )  # fmt: skip


def test_the_audit_reads_it_like_any_other(hardened, lsa):  # noqa: F811
    folder, _ = hardened
    result = lsa("audit", folder / "hard.pt", "-n", 100, "--attack", "fgsm", "--attack", "pgd", "--noise", "none", "--threads", 1,
                 "--json", "own.json")  # fmt: skip
    assert result.code == 0, result.err
    own, after = read_report("own.json"), read_report(str(folder / "hard.after.json"))
    assert own.verdict.robust == after.verdict.robust
    assert own.verdict.clean == after.verdict.clean
    assert own.subject.sha256 == after.subject.sha256


def test_a_network_pickled_whole_stays_one(tmp_path, lsa):  # noqa: F811
    (tmp_path / "own_classes.py").write_text(
        "from torch import nn\n\n\nclass Own(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc1, self.fc2 = nn.Linear(2, 8), nn.Linear(8, 2)\n"
        "        self.scale = nn.Parameter(self.fc1.weight.new_ones(1))\n\n    def forward(self, x):\n"
        "        return self.fc2((self.scale * self.fc1(x)).tanh())\n"
    )
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (300, 2)).astype(np.float32)
    y = (x.sum(1) > 1).astype(np.int64)
    np.savez(tmp_path / "d.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    with Home((tmp_path,)):
        torch.manual_seed(0)
        torch.save(importlib.import_module("own_classes").Own(), tmp_path / "own.pt")
    given = ("--data", tmp_path / "d.npz", "--eps", 0.05, "--epochs", 10, "--lr", 0.05, "--threads", 1)
    hard = tmp_path / "hard.pt"
    result = lsa("harden", tmp_path / "own.pt", *given, "--trust-code", "-o", hard)
    assert result.code == 0, result.err
    after = read_report(str(tmp_path / "hard.after.json"))
    assert after.verdict.clean.value > 0.8
    command = next(line for line in result.err.splitlines() if "to audit it: " in line).partition("lsa audit ")[2]
    again = lsa("audit", *shlex.split(command), "-n", 100, "--quick", "--threads", 1, "--json", tmp_path / "a.json")
    assert again.code == 0, again.err
    assert read_report(str(tmp_path / "a.json")).verdict.clean == after.verdict.clean
    untrusted = lsa("audit", hard, "--data", tmp_path / "d.npz")
    assert untrusted.code == 2
    assert "which is code of its own" in untrusted.err
    noisy = lsa("harden", tmp_path / "own.pt", *given, "--trust-code", "--method", "learn2perturb", "-o", hard)
    assert "name the network with --arch" in noisy.err


def test_the_table_says_what_was_bought_and_what_it_cost(hardened):
    folder, result = hardened
    before, after = read_report(str(folder / "hard.before.json")), read_report(str(folder / "hard.after.json"))
    text = result.stdout
    assert "Before and after" in text
    assert f"{100 * before.verdict.clean.value:.1f}%" in text
    assert f"{100 * after.verdict.robust.value:.1f}%" in text
    assert "R&G score, fgsm" in text
    assert after.verdict.robust.value > before.verdict.robust.value
    if after.verdict.clean.value < before.verdict.clean.value:
        assert "worse: clean fell" in text


def test_the_comparison_is_the_one_of_the_two_audits(hardened):
    folder, result = hardened
    before, after = read_report(str(folder / "hard.before.json")), read_report(str(folder / "hard.after.json"))
    found = compare(before, after)
    assert (folder / "hard.compare.json").read_text() == found.to_json()
    assert (folder / "hard.html").read_text() == render(before, after, found)
    robust = next(change for change in found.changes if change.name == "robust")
    assert robust.new - robust.old == pytest.approx(
        (robust.won - robust.lost) / 100
    )  # the same 100 samples, one by one
    assert {(c.attack, c.name) for c in found.changes if c.table == "layer"} == {
        (attack, layer) for attack in ("fgsm", "pgd") for layer in ("elu1", "elu2", "elu3")
    }
    assert "their comparison" in result.stderr


@pytest.mark.parametrize("method", ["learn2perturb:base=fgsm", "self-gradient"])
def test_methods_with_surgery_leave_a_file_that_is_audited_like_any_other(method, lsa):  # noqa: F811
    audited = ("--attack", "fgsm", "--attack", "pgd", "--noise", "none", "--threads", 1, "-n", 60)
    result = lsa("harden", MOON, "-o", "hard.pt", "--method", method, "--epochs", 1, "--threads", 1, "-n", 60)
    assert result.code == 0, result.err
    said = read_checkpoint("hard.pt").description
    assert [surgery["kind"] for surgery in said.surgery] == ["noise" if "learn" in method else "self-gradient"]
    assert lsa("audit", "hard.pt", *audited, "--json", "own.json").code == 0
    own, after = read_report("own.json"), read_report("hard.after.json")
    assert own.verdict == after.verdict
    assert (own.verdict.draws is not None) == ("learn" in method)
    if own.verdict.draws is not None:
        assert lsa("audit", "hard.pt", *audited, "--noise-off", "--json", "off.json").code == 0
        off = read_report("off.json")
        assert off.verdict.draws is None
        assert "switched off" in "; ".join(off.subject.notes)


def test_killed_and_resumed_is_the_same(hardened, lsa, monkeypatch):  # noqa: F811
    from lsa_cli.hardening import trainer

    folder, _ = hardened
    save = trainer.Training.save
    calls = []

    def save_and_die(self):
        save(self)
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Training, "save", save_and_die)
    command = ("harden", MOON, "-o", "again.pt", *QUICK, "--gamma", "0.2")
    stopped = lsa(*command)
    assert stopped.code == 130
    assert "the state is in again.state.pt; to continue, run the same command with --resume" in stopped.err
    monkeypatch.setattr(trainer.Training, "save", save)
    # The audit before that is on disk is of other samples than are asked for now.
    result = lsa(*command, "-n", 60, "--resume")
    assert (result.code, read_report("again.before.json").data.n) == (0, 60)
    assert "the training continues at epoch 3 of 3" in result.err
    one, other = (torch.load(path, weights_only=True)["state_dict"] for path in (folder / "hard.pt", "again.pt"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    changed = lsa(*command, "--resume", "--lr", "0.1")
    assert changed.code == 2


@pytest.mark.parametrize(
    ("asked", "serves"), [({}, True), ({"eps_grid": [0.0, 0.1]}, False), ({"metrics": ["eni"]}, False), ({"seed": 7}, False)]
)  # fmt: skip
def test_a_saved_audit_serves_only_the_plan_that_made_it(hardened, asked, serves):
    from lsa_cli.auditing.provenance import finished_report
    from lsa_cli.hardening.plan import make_harden_plan
    from lsa_cli.settings import settings_from

    given = settings_from({"threads": 1, "limit": 100, "harden": {"epochs": 3, "gamma": 0.2}, **asked})
    plan = make_harden_plan(MOON, given, {}).audit
    assert (finished_report(plan, hardened[0] / "hard.before.json") is not None) == serves


def test_an_audit_that_its_time_budget_cut_short_is_not_compared(hardened):
    from lsa_cli.hardening.run import _compared

    folder, _ = hardened
    before, after = (read_report(str(folder / f"hard.{when}.json")) for when in ("before", "after"))
    assert _compared(before, after) == (compare(before, after), None)
    short = after.model_copy(update={"outcomes": after.outcomes[:-1], "not_run": [after.outcomes[-1].name]})
    found, why = _compared(before, short)
    assert found is None
    assert why.startswith("the reports cannot be compared: attacks differ")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (82, 4, "4.0% against 82.0% of the same 100 samples; keep models/example.pt, or give a larger --budget or --epochs"),
        (82, 80, None),  # two samples lost and none won: p = 0.5
        (4, 82, None),
    ],
)  # fmt: skip
def test_a_loss_of_robustness_beyond_noise_is_a_warning(before, after, says):
    old, new = (paired([True] * count + [False] * (100 - count)) for count in (before, after))
    found = less_robust(old, compare(old, new))
    assert found == (says and f"the hardened network is less robust than before: {says}")


def test_the_scan_can_choose_how_many(lsa):  # noqa: F811
    result = lsa("harden", MOON, "--top-k", 2, "--epochs", 1, "--threads", 1, "-n", 50, "-o", "h.pt")
    assert result.code == 0, result.err
    assert len(read_checkpoint("h.pt").description.history[-1]["layers"]) == 2


def test_flagged_layers_of_a_saved_report_are_held(lsa):  # noqa: F811
    assert (
        lsa("audit", MOON, "-n", 100, "--attack", "fgsm", "--noise", "none", "--threads", 1, "--json", "a.json").code
        == 0
    )
    flagged = read_report("a.json").outcomes[0].layers.mvl
    result = lsa("harden", MOON, "--mvl", "a.json", "--epochs", 1, "--threads", 1, "-n", 50, "--train-only", "flagged")
    assert result.code == 0, result.err
    assert read_checkpoint("moon_mlp.hard.pt").description.history[-1]["layers"] == flagged
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (MOON, "moon_mlp.hard.last.pt"))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert len(moved) == len(flagged)


def test_an_audit_can_go_on_to_harden(lsa):  # noqa: F811
    result = lsa("audit", MOON, "-n", 60, "--attack", "pgd:steps=3", "--noise", "none", "--threads", 1, "--harden", "h.pt",
                 "--config", write_recipe())  # fmt: skip
    assert result.code == 0, result.err
    entry = read_checkpoint("h.pt").description.history[-1]
    assert (entry["base"], entry["steps"], entry["epochs"]) == ("pgd", 3, 1)
    assert entry["layers"] == read_report("moon_mlp.audit.json").outcomes[0].layers.mvl


def write_recipe():
    with open("recipe.yaml", "w") as file:
        file.write("harden:\n  epochs: 1\n  gamma: 0.1\n")
    return "recipe.yaml"


def test_a_network_of_the_users_own_code(lsa, tmp_path):  # noqa: F811
    (tmp_path / "own.py").write_text(
        "import torch\ndef build(hidden=8):\n"
        "    return torch.nn.Sequential(torch.nn.Linear(2, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 2))\n"
    )
    (tmp_path / "some settings.yaml").write_text("seed: 3\n")
    torch.manual_seed(0)
    layers = (torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    torch.save(torch.nn.Sequential(*layers).state_dict(), "own.pth")
    with np.load(SAMPLES / "moons.npz") as moons:
        np.savez(
            tmp_path / "unit.npz",
            **{name: (moons[name] + 2) / 5 if name.startswith("x") else moons[name] for name in moons.files},
        )
    options = (
        "--arch",
        "own.py:build",
        "--arch-args",
        "hidden=8",
        "--config",
        "some settings.yaml",
        "--data",
        "npz:unit.npz",
        "--eps",
        "0.1",
        "--normalize",
        "none",
        "--threads",
        1,
    )
    result = lsa("harden", "own.pth", *options, "-o", "hard.pt", "--epochs", 2, "-n", 50)
    assert result.code == 0, result.err
    # The file names no Python code; with --arch it is audited on the data and with the radius it names.
    assert read_checkpoint("hard.pt").description.architecture == ""
    assert lsa("audit", "hard.pt", "-n", 50, "--attack", "fgsm", "--threads", 1).code == 2
    assert lsa("audit", "hard.pt", "--arch", "own.py:build", "-n", 50, "--attack", "fgsm", "--threads", 1).code == 0
    sentence, _, command = " ".join(result.err.splitlines()[-1].split()).partition(": lsa ")
    assert sentence == "lsa: to audit it"
    assert shlex.split(command) == [
        "audit", "hard.pt", "--arch", "own.py:build", "--arch-args", "hidden=8", "--data", "npz:unit.npz", "--eps", "0.1",
        "--config", "some settings.yaml",
    ]  # fmt: skip
    told = lsa(
        *shlex.split(command), "-n", 50, "--attack", "fgsm", "--attack", "pgd", "--threads", 1, "--json", "own.json"
    )
    assert told.code == 0, told.err
    assert read_report("own.json").verdict.robust == read_report("hard.after.json").verdict.robust


def test_without_a_test_split_the_held_out_samples_judge(lsa, tmp_path):  # noqa: F811
    with np.load(SAMPLES / "moons.npz") as moons:
        np.savez(tmp_path / "all.npz", x=moons["x_train"], y=moons["y_train"], class_names=moons["class_names"])
    command = ["harden", MOON, "--data", "npz:all.npz", "--eps", "0.3", "--epochs", 1, "--threads", 1, "-o"]
    for options, n in ([], 160), (["-n", 50], 50):
        result = lsa(*command, f"h{n}.pt", *options)
        assert result.code == 0, result.err
        assert "held-out training samples" in result.err
        assert read_report(f"h{n}.after.json").data.n == n


def test_broken_test_data_is_an_error_and_not_a_missing_split(lsa, tmp_path):  # noqa: F811
    with np.load(SAMPLES / "moons.npz") as moons:
        arrays = dict(moons)
    np.savez(tmp_path / "all.npz", **{**arrays, "y_test": arrays["y_test"][:-1]})
    result = lsa("harden", MOON, "--data", "npz:all.npz", "--eps", "0.3", "--epochs", 1, "--threads", 1, "-o", "h.pt")
    assert result.code == 2
    assert "give one label per sample" in result.err
    assert list(tmp_path.glob("h.*")) == []


@pytest.mark.parametrize(
    "method",
    [
        "anp",
        "anp+at:sites=all,schedule=official",
        "at:base=apart",
        "class-fair:rule=dafa,offset=true",
        "class-fair-lr",
    ],
)
def test_every_method_writes_what_an_audit_reads(method, lsa):  # noqa: F811
    command = ("harden", MOON, "-o", "h.pt", "--method", method, "--epochs", 2, "--threads", 1, "-n", 60)
    result = lsa(*command)
    assert result.code == 0, result.err
    assert "rho" in result.out
    assert "NSD of classes" in result.out
    audited = lsa(
        "audit",
        "h.pt",
        "-n",
        60,
        "--attack",
        "fgsm",
        "--attack",
        "pgd",
        "--noise",
        "none",
        "--threads",
        1,
        "--json",
        "own.json",
    )
    assert audited.code == 0, audited.err
    own, after = read_report("own.json"), read_report("h.after.json")
    assert own.verdict.robust == after.verdict.robust
    assert [row.name for row in own.outcomes[0].layers.rows] == ["elu1", "elu2", "elu3"]
    said = read_checkpoint("h.pt").description
    assert [step["kind"] for step in said.surgery] == (["logit-offset"] if "offset" in method else [])
    assert said.history[-1]["method"] == method.partition(":")[0]


def test_a_fitted_offset_is_kept_when_the_result_is_hardened_again(lsa):  # noqa: F811
    fair = ("--method", "class-fair:rule=none,offset=true", "--epochs", 1, "--threads", 1, "-n", 40)
    one = lsa("harden", MOON, "-o", "one.pt", *fair)
    assert one.code == 0, one.err
    again = lsa("harden", "one.pt", "-o", "two.pt", *fair)
    assert again.code == 0, again.err
    for name, told in (("one.pt", one.err), ("two.pt", again.err)):
        (offset,) = read_checkpoint(name).description.history[-1]["logit_offset"]
        assert torch.load(name, weights_only=True)["state_dict"]["logit_offset"].item() == pytest.approx(
            offset, abs=1e-6
        )
        assert (f"offset: {offset:+.3g} is added" if offset else "offset: none is added") in told
    surgery = [{"kind": "logit-offset", "outputs": 1}]
    assert read_checkpoint("one.pt").description.surgery == read_checkpoint("two.pt").description.surgery == surgery


def test_the_most_vulnerable_layers_of_anp_come_from_a_scan(lsa):  # noqa: F811
    result = lsa("harden", MOON, "-o", "h.pt", "--method", "anp:sites=mvl", "--epochs", 1, "--threads", 1, "-n", 40)
    assert result.code == 0, result.err
    assert "most vulnerable layers, by a scan" in result.err
    assert read_checkpoint("h.pt").description.history[-1]["layers"] == ["elu3"]


def test_two_averages_of_weights_are_refused(refused):  # noqa: F811
    refused(
        "harden",
        MOON,
        "--method",
        "class-fair",
        "--ema",
        "--threads",
        1,
        says="class-fair averages the weights itself; leave out --ema",
    )


def test_a_star_marks_what_changed_beyond_noise():
    before, after = paired([False] * 70 + [True] * 30), paired([True] * 75 + [False] * 25)
    after.outcomes[1].layers.rows[0].mean = 0.49  # of 100 samples with sd 0.1: less than a standard error
    after.outcomes[1].layers.rows[1].mean = 0.3
    after.verdict.clean = before.verdict.clean.model_copy(update={"value": 0.89})
    text = io.StringIO()
    print_hardening(before, after, compare(before, after), ("relu2",), Console(file=text, width=120, color_system=None))
    rows = [" ".join(line.split()) for line in text.getvalue().splitlines()]

    def row(start):
        return next(line for line in rows if line.startswith(start))

    assert row("robust, worst case").endswith(" *+45.0")
    assert row("worst class").endswith(" +50.0")
    assert row("clean").endswith(" -1.0")
    assert " *-0.500 " in row("pgd relu2")
    assert row("pgd relu1").endswith(" -0.010")
    assert "worse: clean fell from 90.0% to 89.0%, within noise" in text.getvalue()
    assert "* beyond noise; scores, NSD, rho and the worst class are not tested" in text.getvalue()


def test_doubts_of_either_audit_are_printed_with_their_findings():
    def of(verdict, *codes):
        found = [Finding(code=code, level="doubtful", message="other attacks win", advice="use them") for code in codes]
        return example(evidence=Evidence(verdict=verdict, findings=found, checks=[]))

    def printed(before, after):
        text = io.StringIO()
        print_hardening(before, after, compare(before, after), (), Console(file=text, width=120, color_system=None))
        return text.getvalue(), one_line(before, after)

    table, line = printed(of("trusted"), of("doubtful", "stronger-attack-wins"))
    assert "evidence: trusted -> doubtful (stronger-attack-wins)" in table
    assert "after: stronger-attack-wins: other attacks win; use them" in table
    assert line.endswith(", evidence trusted -> doubtful (stronger-attack-wins)")
    table, line = printed(of("doubtful", "few-steps"), of("trusted"))
    assert "before: few-steps: other attacks win" in table
    assert "evidence" not in "".join(printed(of("trusted"), of("trusted")))


def test_a_hardening_does_not_write_where_another_one_writes(tmp_path, refused):  # noqa: F811
    files = Files(tmp_path / "h.pt")
    with files.claimed():
        refused("harden", MOON, "-o", files.out, *QUICK, says="another running hardening writes to")
        assert [path.name for path in tmp_path.iterdir()] == ["h.lock"]
    with files.claimed():  # the claim ends with its owner
        pass
    assert not files.lock.exists()


@pytest.mark.parametrize(("activation", "is_same"), [(torch.nn.ReLU, True), (torch.nn.LeakyReLU, False)])
def test_a_reconstructed_network_is_audited_only_if_it_is_the_one_that_was_trained(tmp_path, activation, is_same):
    def network(kind):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), kind(), torch.nn.Linear(8, 3))

    data = stripes()
    np.savez(tmp_path / "d.npz", x=data.read(np.arange(len(data))).numpy(), y=data.labels)
    torch.save(network(torch.nn.ReLU), tmp_path / "n.pt")
    settings = AuditSettings(data=f"npz:{tmp_path / 'd.npz'}", norm="linf", eps=0.1, limit=20, normalize="none")
    plan = make_harden_plan(tmp_path / "n.pt", settings, {})
    weights = weights_of(plan.network.classifier)
    trained = Trained(weights, weights, 1, [], None)
    plan = dataclasses.replace(plan, network=dataclasses.replace(plan.network, arch=RECONSTRUCTED))
    read = dataclasses.replace(plan.network, classifier=Classifier(network(activation)).eval())
    after = dataclasses.replace(plan.audit, network=read)
    with contextlib.nullcontext() if is_same else pytest.raises(RunError, match="not the one that was trained"):
        refuse_another_network(plan, trained, after, tmp_path / "h.pt")


def test_rho_is_the_sum_of_two_relative_gains():
    from lsa_cli.report.hardening import rho
    from tests.report.example import example

    old = example().verdict.class_summary.model_copy(update={"worst": 0.2, "mean": 0.5})
    new = old.model_copy(update={"worst": 0.3, "mean": 0.45})
    assert rho(old, new) == pytest.approx(0.5 - 0.1)
    assert rho(old.model_copy(update={"worst": 0.0}), new) is None  # nothing to be relative to


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "at-rl"), "did you mean 'at-lr'"),
        (("--method", "at", "--gamma", "1"), "--gamma is for methods with the regularizer"),
        (("--method", "at", "--layers", "elu1"), "--layers names layers to regularize, and at regularizes none"),
        (("--layers", "elu9"), "elu9"),
        (("--gamma", "elu3=1"), "--gamma 'elu3=1' must give one weight"),
        (("--gamma", "-1"), "negative"),
        (("--mvl", "none.json"), "none.json"),
        (("--freeze", "conv*"), "matches no parameter"),
        (("--val-fraction", "0"), "both need at least one"),
        (("--ema", "--swa"), "--ema and --swa set the same thing; give one of them"),
        (("--lr", "0"), "--lr: must be above 0"),
        (("--epochs", "0"), "--epochs: must be at least 1"),
        (("--augment", "crop-flip"), "is for images"),
        (("--split", "dev"), "dev"),
        (("-o", "hard.txt"), "ends in .pt or .pth"),
        (("-o", "no/such/folder/hard.pt"), "does not exist"),
        (("-o", MOON), "moon_mlp.pt is a file that this run reads"),
        (("-o", ""), "--out: is empty"),
        (("--html", "no/such/folder/hard.html"), "does not exist"),
        (("--html", "-"), "give a file name"),
        (("--html", "moon_mlp.hard.compare.json"), "is a file that the hardening writes"),
        (("--html", MOON), "is what is read here"),
        (("--html", "moons.npz", "--data", "npz:moons.npz"), "is what is read here"),
        (("--html", "own.py", "--plugin", "own.py"), "is what is read here"),
        (("--hold", "middle"), "--hold: must be first or last or mvl"),
        (("--hold", "first", "--top-k", "2"), "use it with --hold mvl"),
        (("--hold", "last", "--top-k", "2"), "use it with --hold mvl"),
        (("--hold", "mvl", "--layers", "elu1"), "--layers or --mvl names them"),
        (("--method", "at", "--hold", "mvl"), "--hold names layers to regularize, and at regularizes none"),
        (("--eps", "0"), "eps"),
        *(
            ((f"--{name}", ""), f"--{name}: is empty")
            for name in ("layers", "freeze", "method", "base", "mvl", "gamma", "measure")
        ),
    ],
)
def test_what_makes_no_sense_is_refused(refused, options, says, tmp_path):  # noqa: F811
    (tmp_path / "own.py").touch()  # a plugin is loaded first
    refused("harden", MOON, "--threads", 1, "-n", 20, *options, says=says)


def test_a_folder_in_the_way_of_a_file_beside_the_result_is_told_first(refused, tmp_path):  # noqa: F811
    (tmp_path / "f.after.json").mkdir()
    refused("harden", MOON, "-o", "f.pt", says="--out f.pt also writes f.after.json, which is a folder")


def test_nothing_that_is_read_is_replaced_by_a_file_beside_the_result(refused, tmp_path):  # noqa: F811
    for name in ("b.last.pt", "c.pt"):
        shutil.copy(MOON, tmp_path / name)
    (tmp_path / "c.before.json").write_text("{}")
    (tmp_path / "own.yaml").write_text("harden: {mvl: c.before.json}\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    says = "--out b.pt also writes b.last.pt, which is a file that this run reads"
    refused("harden", "b.last.pt", "-o", "b.pt", says=says)
    refused("harden", "b.last.pt", "-o", "c.pt", "--mvl", "c.before.json", says="also writes c.before.json")
    refused("harden", "b.last.pt", "-o", "c.pt", "--config", "own.yaml", says="also writes c.before.json")
    refused("audit", "b.last.pt", "--harden", "b.pt", says=says)
    for out, word in (
        ("b.pt", "b.last.pt"),
        ("b.last.pt", "is a file that this run reads"),
        ("no/h.pt", "does not exist"),
    ):
        with pytest.raises(UsageError, match=word):
            lsa_cli.harden("b.last.pt", out, epochs=1, limit=20)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
