"""A radius that comes with the checkpoint is named, and where it asks next to nothing it decides no limit."""

import json
from pathlib import Path

import pytest
import torch

from lsa_cli.auditing.radius import USUAL_EPS, reference_radius
from lsa_cli.registry import parse_number
from tests.cli.conftest import lsa, refused  # noqa: F401

FEW = ["-n", 20, "--noise", "none", "--layers", "none", "--threads", 1]


@pytest.fixture
def audit_of(lsa, samples, tmp_path):  # noqa: F811
    """Audits a copy of the sample network in a folder of its own; change: of what it says of itself."""

    def run(*options, change=None, beside=None, attack="fgsm"):
        folder = tmp_path / "download"
        folder.mkdir(exist_ok=True)
        content = torch.load(samples / "mnist_cnn.pt", weights_only=True)
        torch.save({**content, **(change or {})}, folder / "net.pt")
        if beside is not None:
            (folder / "lsa.yaml").write_text(beside)
        named = [] if attack is None else ["--attack", attack]
        return lsa("audit", folder / "net.pt", "--data", f"npz:{samples / 'mnist.npz'}", *FEW, *named, *options)

    return run


@pytest.mark.parametrize("size", [784, 3072])
def test_the_reference_radius_is_the_usual_radius_where_there_is_one(size):
    for name, radii in USUAL_EPS.items():
        for norm, radius in radii.items():
            assert reference_radius([name], norm, size) == parse_number(radius)
            assert reference_radius([name, "imagenet"], norm, size) >= parse_number(
                radius
            )  # a file's name for the data lowers nothing
    assert reference_radius(["", "unknown"], "linf", size) == 8 / 255


CHEAP = [
    ({"change": {"eps": 0.0}}, "linf 0 is set by the checkpoint"),
    ({"change": {"eps": 0.07}}, "linf 0.07 is set by the checkpoint"),
    ({"change": {"eps": 0.07, "data_name": "imagenet"}}, "linf 0.07 is set by the checkpoint"),
    ({"change": {"norm": "l2", "eps": 0.3}}, "l2 0.3 is set by the checkpoint"),
    ({"change": {"norm": "l1", "eps": 0.3}}, "l1 0.3 is set by the checkpoint"),
    ({"beside": "eps: 0\n"}, "lsa.yaml beside the checkpoint"),
    ({"beside": "norm: l2\neps: 0.3\n"}, "lsa.yaml beside the checkpoint"),
]


@pytest.mark.parametrize(("made", "says"), CHEAP)
def test_next_to_nothing_that_somebody_else_set_decides_no_limit(audit_of, made, says):
    for gate in (["--fail-under", "robust=0.5"], ["--fail-on", "doubtful"]):
        result = audit_of(*gate, **made)
        assert result.code == 2
        assert says in result.err
        assert "--eps" in result.err
    said = audit_of("-q", "--json", "r.json", **made)
    assert said.code == 0
    assert "doubtful (radius-not-chosen" in said.out
    assert says in said.err


def test_by_a_gate_of_its_own_or_of_a_saved_report_neither(audit_of, lsa):  # noqa: F811
    result = audit_of("--json", "r.json", beside="eps: 0\ngate: {robust: 0.9}\n")
    assert result.code == 2
    assert audit_of("--json", "r.json", beside="eps: 0\n").code == 0
    gate = lsa("gate", "r.json", "--fail-under", "robust=0.5")
    assert gate.code == 2
    assert "radius" in gate.err


def test_what_the_user_says_stands(audit_of):
    gate = ["--fail-under", "robust=0", "--json", "r.json"]
    assert audit_of("--eps", "0", *gate, change={"eps": 0.0}).code == 0
    assert audit_of("--eps", "0.3", *gate, change={"eps": 0.0}).code == 0
    usual = audit_of(*gate)  # the file's own 0.3 is the usual one
    assert usual.code == 0
    assert "set by the checkpoint" in json.load(open("r.json"))["verdict"]["statement"]  # noqa: SIM115


def test_the_working_directory_s_limits_and_radius_win_over_those_beside_the_checkpoint(audit_of, tmp_path):
    (tmp_path / "lsa.yaml").write_text("eps: 0.3\nseed: 5\ngate: {robust: 0.9}\n")
    result = audit_of("-q", "--json", "r.json", beside="eps: 0.2\nseed: 3\ngate: {robust: 0, clean: 0.5}\n")
    report = json.load(open("r.json"))  # noqa: SIM115
    assert result.code == 1
    assert report["protocol"]["threat"]["eps"] == 0.3
    assert report["protocol"]["seed"] == 3  # not what it is judged by: the nearest file
    assert {gate["metric"]: gate["limit"] for gate in report["gates"]} == {"robust": 0.9, "clean": 0.5}
    assert "limits set by" in result.out
    assert "lsa.yaml beside the checkpoint" in report["verdict"]["statement"]


@pytest.mark.parametrize("beside", ["steps: 1\n", "preset: quick\n", 'attack: ["pgd:steps=5,step_size=0.00001"]\n'])
def test_attacks_that_somebody_else_set_decide_no_limit_of_the_user(audit_of, beside):
    ours = ["--attack", "pgd"] if beside.startswith("steps") else []
    result = audit_of("--fail-under", "robust=0.5", *ours, beside=beside, attack=None)
    assert result.code == 2
    assert "is set by" in result.err
    assert "lsa.yaml beside the checkpoint" in result.err
    assert audit_of("--fail-under", "clean=0.5", *ours, beside=beside, attack=None).code == 0
    assert (
        audit_of("--fail-under", "robust=0.5", "--attack", "pgd:steps=2", beside="limit: 10\n", attack=None).code == 1
    )


def test_the_radius_of_the_report_is_one_that_an_attack_has(audit_of):
    result = audit_of("--attack", "pgd:steps=2,eps=0.01", "--eps", 0.3, attack=None)
    assert result.code == 2
    assert "--eps changes nothing here" in result.err
    result = audit_of("-q", "--json", "r.json", "--attack", "pgd:steps=2,eps=0.01", attack=None)
    threat = json.loads(Path("r.json").read_text())["protocol"]["threat"]
    assert (threat["norm"], threat["eps"]) == ("linf", 0.01)
    assert "(linf 0.01, n=20" in result.out
    Path("lsa.yaml").write_text("eps: 0.2\n")
    audit_of("-q", "--json", "r.json", "--attack", "pgd:steps=2,eps=0.01", attack=None)
    warnings = [warning["message"] for warning in json.loads(Path("r.json").read_text())["warnings"]]
    assert f"eps of {Path.cwd() / 'lsa.yaml'} is not used: every attack has an eps of its own" in warnings


@pytest.mark.parametrize(
    "data", ["torchvision:MNIST?root=r&download=true", "torchvision:MNIST?download=1", "hf:some/name"]
)
def test_a_file_beside_a_checkpoint_downloads_nothing(refused, samples, tmp_path, data):  # noqa: F811
    folder = tmp_path / "download"
    folder.mkdir()
    (folder / "net.pt").write_bytes((samples / "mnist_cnn.pt").read_bytes())
    (folder / "lsa.yaml").write_text(f"data: {data}\n")
    refused("audit", folder / "net.pt", says=["line 1: data names data to download", "--config"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["download"]
