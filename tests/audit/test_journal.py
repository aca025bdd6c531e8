"""The journal: whole files or none, one plan, and a killed audit that ends as if nothing had happened."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from lsa_cli.auditing.journal import Journal
from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.provenance import identity_of
from lsa_cli.errors import UsageError
from lsa_cli.report.storage import read_report
from lsa_cli.settings import settings_from
from tests.cli.conftest import ROOT, lsa  # noqa: F401

PLAN = {"eps": 0.3, "attacks": ["pgd"], "bounds": (0.0, 1.0), "weights": "a" * 64}


def test_what_is_put_is_got_and_nothing_else(tmp_path):
    journal = Journal(tmp_path / "j", PLAN, resume=False)
    arrays = {"a": np.arange(3), "b": np.array([True, False])}
    journal.put("attack-0-pgd:steps=5", 2, arrays)
    journal.close()
    again = Journal(tmp_path / "j", PLAN, resume=True)
    found = again.get("attack-0-pgd:steps=5", 2)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert again.get("attack-0-pgd:steps=5", 1) is None
    assert again.get("attack-1-pgd", 2) is None
    again.remove()
    assert not (tmp_path / "j").exists()


def test_without_resume_it_starts_over(tmp_path):
    Journal(tmp_path / "j", PLAN, resume=False).put("clean", 0, {"a": np.zeros(1)})
    assert Journal(tmp_path / "j", PLAN, resume=False).get("clean", 0) is None


def test_a_half_written_or_damaged_file_is_measured_again(tmp_path):
    journal = Journal(tmp_path / "j", PLAN, resume=False)
    journal.put("clean", 0, {"a": np.zeros(100)})
    (file,) = (tmp_path / "j").glob("*.npz")
    file.write_bytes(file.read_bytes()[:60])
    assert journal.get("clean", 0) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eps": 0.2}, "eps was 0.3 and is 0.2"),
        ({"attacks": []}, r"attacks was \['pgd'\]"),
        ({"new": 1}, "new was None"),
        ({"weights": "b" * 64}, "weights: another content"),
    ],
)
def test_another_plan_does_not_resume_and_the_change_is_named(tmp_path, change, says):
    Journal(tmp_path / "j", PLAN, resume=False)
    with pytest.raises(UsageError, match=says):
        Journal(tmp_path / "j", {**PLAN, **change}, resume=True)


@pytest.mark.parametrize(
    ("change", "same"),
    [({"gate": {"robust": 0.5}}, True), ({"budget": "10m"}, True), ({"device": "cpu"}, True), ({"eps": 0.2}, False)],
)
def test_what_decides_no_sample_may_change_before_a_run_goes_on(change, same):
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    data = torch.rand(6, 1, 2, 2), torch.tensor([0, 1] * 3)
    one, other = (
        identity_of(
            make_plan(
                body, settings_from({"eps": 0.1, "noise": "none", "threads": 1, "layers": "none", **more}), {}, data
            )
        )
        for more in ({}, change)
    )
    assert (one == other) == same


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UsageError, match="no interrupted run"):
        Journal(tmp_path / "none", PLAN, resume=True)


def content(path):
    """A report without what no two runs share."""
    report = json.loads(path.read_text())
    for timed in (report, *report["outcomes"], *report["cascade"]):
        timed.pop("seconds", None)
        timed.pop("created", None)
    return report


@pytest.mark.slow
def test_a_killed_audit_resumes_to_the_same_report(lsa, tmp_path):  # noqa: F811
    options = [
        "audit", ROOT / "sample_models" / "mnist_cnn.pt", "-n", 80, "--batch-size", 16, "--eps", 0.2, "--attack", "fgsm",
        "--attack", "pgd:steps=10", "--attack", "autoattack:steps=5,queries=20,targets=2", "--noise", "gaussian",
        "--eps-grid", "0.1,0.3", "--threads", 1, "-q", "--json",
    ]  # fmt: skip
    whole = lsa(*options, "whole.json")
    assert whole.code == 0, whole.err
    assert read_report(tmp_path / "whole.json").cascade[0].tried > 0
    journal = tmp_path / "killed.json.journal"
    command = [sys.executable, "-m", "lsa_cli", *map(str, options), "killed.json"]
    kills = 0
    for at_least in (0, 1, 2):  # in the first block, in the second one, and after the last one
        process = subprocess.Popen(
            [*command, *(["--resume"] if kills else [])],
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and (
            not (journal / "plan.json").exists() or len(list(journal.glob("*.npz"))) < at_least
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    changed = lsa(*options, "killed.json", "--resume", "--seed", 1)
    assert changed.code == 2
    assert "seed was 0 and is 1" in changed.err
    resumed = lsa(*options, "killed.json", "--resume")
    assert resumed.code == 0, resumed.err
    assert content(tmp_path / "killed.json") == content(tmp_path / "whole.json")
    assert not list(tmp_path.glob("*.journal"))
