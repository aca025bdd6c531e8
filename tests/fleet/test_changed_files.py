"""A report or a journal is of one state of the Python code and of the data file: after a change it is not used again."""

import json
from pathlib import Path

import numpy as np
import pytest

from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.provenance import identity_of
from lsa_cli.files import changed_files, digest_of
from lsa_cli.settings import settings_from
from tests.cli.conftest import lsa  # noqa: F401

NETWORK = """
from torch import nn
from scale import SCALE
from layers.last import last

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = last()

    def forward(self, x):
        return self.inside(x * SCALE)

def build():
    return Scaled()
"""
OPTIONS = ["--arch", "net.py:build", "--data", "npz:d.npz", "--normalize", "none", "--eps", "0.05", "--norm", "linf"]
OPTIONS += ["--attack", "fgsm", "--noise", "none", "--layers", "none", "-n", "20", "--threads", "1", "-q"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    import torch

    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "scale.py").write_text("SCALE = 1.0\n")
    (tmp_path / "unrelated.py").write_text("X = 1\n")
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "__init__.py").touch()
    (tmp_path / "layers" / "last.py").write_text("from torch import nn\n\ndef last():\n    return nn.Linear(2, 2)\n")
    torch.save({"inside.weight": torch.eye(2) * 5, "inside.bias": torch.zeros(2)}, tmp_path / "a.pt")
    write_data(tmp_path, 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_data(folder, seed):
    """The larger of two numbers is the class; other seeds give other inputs with the same labels."""
    x = np.random.default_rng(seed).uniform(0.1, 0.4, (40, 2)).astype(np.float32)
    y = np.arange(40) % 2
    x[np.arange(40), y] += 0.5
    np.savez(folder / "d.npz", x=x, y=y)


CHANGES = {
    "net.py": lambda folder: (folder / "net.py").write_text(NETWORK.replace("x * SCALE", "-x * SCALE")),
    "scale.py": lambda folder: (folder / "scale.py").write_text("import torch\n\nSCALE = torch.tensor([1.0, 0.2])\n"),
    "layers/last.py": lambda folder: (folder / "layers" / "last.py").write_text(
        "from torch import nn\n\ndef last():\n    return nn.Linear(2, 2).eval()\n"
    ),
    "d.npz": lambda folder: write_data(folder, 1),
}


def plan_of(folder):
    given = {"arch": "net.py:build", "data": "npz:d.npz", "normalize": "none", "eps": 0.05, "norm": "linf", "limit": 20}
    return make_plan("a.pt", settings_from({**given, "attack": "fgsm", "noise": "none", "layers": "none"}), {})


def test_a_plan_records_the_code_with_what_it_imports_from_its_folder_and_the_data(folder):
    files = plan_of(folder).files
    assert set(files) == {"net.py", "scale.py", "layers/__init__.py", "layers/last.py", "d.npz"}
    assert changed_files(files) == []
    (folder / "unrelated.py").write_text("X = 2\n")
    assert changed_files(files) == []
    for name, change in CHANGES.items():
        change(folder)
        assert name in changed_files(files)
    (folder / "net.py").unlink()
    assert set(changed_files(files)) == set(CHANGES)


def test_a_journal_is_of_the_code_and_the_data_of_its_run(folder):
    before = identity_of(plan_of(folder))
    assert before["file scale.py"] == digest_of("scale.py")
    write_data(folder, 1)
    after = identity_of(plan_of(folder))
    assert {name for name in before if before[name] != after[name]} == {"file d.npz"}


@pytest.mark.parametrize("name", ["scale.py", "d.npz"])
def test_a_fleet_audits_again_after_a_change(folder, lsa, name):  # noqa: F811
    command = ["fleet", "a.pt", "-o", "audits", *OPTIONS]
    report = folder / "audits" / "a.pt.audit.json"

    def run():
        done = lsa(*command)
        assert done.code == 0, done.err
        return done.err, json.loads(report.read_text())

    first = run()[1]
    same, again = run()
    assert again == first
    assert "replaced" not in same
    CHANGES[name](folder)
    said, other = run()
    assert "1 report in audits is of other settings, code or data, and replaced when its new audit is complete" in said
    assert other["protocol"]["files"][name] == digest_of(name) != first["protocol"]["files"][name]
    if name == "scale.py":  # the second class gets a smaller logit
        assert first["verdict"]["clean"]["value"] == 1 > other["verdict"]["clean"]["value"]


def test_resume_refuses_the_report_of_other_code(folder, lsa):  # noqa: F811
    command = ["audit", "a.pt", *OPTIONS, "--json", "a.json"]
    assert lsa(*command).code == 0
    assert lsa(*command, "--resume").code == 0
    report = json.loads(Path("a.json").read_text())
    report["protocol"]["files"]["scale.py"] = "of another time"  # the code of this process stays loaded
    Path("a.json").write_text(json.dumps(report))
    refused = lsa(*command, "--resume")
    assert refused.code == 2
    assert "--resume: a.json is complete, but of another scale.py; leave --resume out to audit again" in refused.err
    del report["protocol"]["files"]
    Path("a.json").write_text(json.dumps(report))
    assert lsa(*command, "--resume").code == 2  # an earlier version did not record what the code was
