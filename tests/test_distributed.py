"""Several ranks come to what one process comes to; and what happens where one of them does not come to its end.

On CPU with gloo, two and three ranks, parts of unequal size. A launch costs seconds, so each is looked at from several
sides.
"""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from lsa_cli import distributed
from lsa_cli.errors import DataError
from lsa_cli.models.classifier import Classifier
from tests.cli.conftest import ROOT, Result, lsa, refused  # noqa: F401  fixtures
from tests.fitting import fitted
from tests.hardening.conftest import make_job, make_method, recipe, run, small_network

SAMPLES = ROOT / "sample_models"
MOON, MNIST = SAMPLES / "moon_mlp.pt", SAMPLES / "mnist_cnn.pt"


def call(*arguments, cwd, ranks=None, env=None):
    """`lsa` as a process of its own; ranks: options of torchrun, which starts it then."""
    start = [] if ranks is None else ["-m", "torch.distributed.run", *ranks]
    done = subprocess.run(
        [sys.executable, *start, "-m", "lsa_cli", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})},
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def said(result):
    """What lsa itself said on stderr."""
    return [line for line in result.err.splitlines() if line.startswith("lsa: ")]


def plain(value):
    """A report without what no two runs have in common; `files` leaves out modules that this process had already imported."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in ("seconds", "created", "files")}
    return [plain(item) for item in value] if isinstance(value, list) else value


def agree(one, other, where="report"):
    """Counts, names and verdicts are the same; of real numbers all but the last digits of float32.

    A margin is a difference of logits, whose last digits are larger than those of the margin.
    """
    if isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, rel=1e-5, abs=2e-6 if ".margin" in where else 1e-8), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            agree(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            agree(a, b, f"{where}[{place}]")
    else:
        assert one == other, where


def same_report(one, other):
    agree(*(plain(json.loads(path.read_text())) for path in (one, other)))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


# ---- three ranks, in Python ----------------------------------------------------------------------------


def without_batch(seed=0):
    """No BatchNorm and no dropout: the batch is the sum of its samples."""
    torch.manual_seed(seed)
    body = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ELU(), torch.nn.Flatten(), torch.nn.Linear(144, 8), torch.nn.ReLU(),
        torch.nn.Linear(8, 3),
    )  # fmt: skip
    return Classifier(body)


# Not TRADES: its attack starts where the divergence is flat, and follows the sign of a gradient that is all rounding.
CASES = {
    "pgd": ({"base": "pgd"}, {}, {}),
    "free": ({"base": "free", "replays": "2"}, {"average": "ema"}, {}),
    "mart, sgd, clipped": ({"base": "mart"}, {"optimizer": "sgd", "clip": 1.0, "average": "swa"}, {}),
    "weights moved": ({"base": "fgsm"}, {"warmup": 0.0}, {"awp": 0.01}),
}


def case_job(folder, name, **changes):
    options, of_recipe, of_task = CASES[name]
    method = make_method("at-lr", options, layers=("1", "4"), **of_task)
    return make_job(folder, method, without_batch(), recipe=recipe(**of_recipe, awp=of_task.get("awp", 0.0)), **changes)


def in_three(number, port, folder):
    """What each of three ranks does; what they find is compared by the test."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    found = {}
    with distributed.joined():
        found["who"] = (distributed.rank(), distributed.world(), distributed.local_world())
        found["share"] = distributed.share(np.arange(8)).tolist()
        found["gathered"] = distributed.gather_objects({"rank": number})
        found["dealt"] = distributed.dealt(list(range(8)), lambda item: item * item)
        found["fewer"] = distributed.dealt(["one"], str.upper)
        found["first"] = distributed.first(lambda: f"from {number}")
        found["anywhere"] = [distributed.anywhere(number == 2), distributed.anywhere(False)]
        found["agreed"] = distributed.agreed(lambda: number)
        found["raised"] = [raised(DataError("sample 7 is NaN")), raised(ValueError("no"))]
        found["gradients"] = gradients(number)
        mean = torch.tensor([float(number), 1.0])
        distributed.average([mean])
        found["average"] = mean.tolist()
        for name in CASES:
            (folder / name).mkdir(exist_ok=True)
            trained = run(case_job(folder / name, name))
            found[name] = (trained.last, trained.best, [r.plain() for r in trained.history])
        # Killed after the first epoch: every rank goes on with what it had, from the first one's file.
        with pytest.raises(KeyboardInterrupt):
            run(case_job(folder / "free", "free"), stop_after=8)
        found["resumed"] = run(case_job(folder / "free", "free", resume=True)).last
        normed = run(make_job(folder, make_method("at"), small_network(), recipe=recipe(average="ema", epochs=1)))
        found["normed"] = normed.last
        found["too small"] = raised_by(
            lambda: run(make_job(folder, model=small_network(), recipe=recipe(batch_size=5)))
        )
        found["spoke"] = distributed.is_first_error()
    torch.save(found, folder / f"{number}.pt")


def raised(error):
    """Rank 1 alone fails."""

    def work():
        if distributed.rank() == 1:
            raise error

    return raised_by(lambda: distributed.agreed(work))


def raised_by(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)


def gradients(number):
    """Of one parameter every rank has a gradient, of one only rank 1, of one no rank, and one is frozen."""
    held = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(4)]
    held[3].requires_grad_(False)
    held[0].grad = torch.full((2, 2), float(number + 1))
    held[1].grad = torch.ones(2, 2) if number == 1 else None
    distributed.sum_gradients(held)
    return [None if p.grad is None else p.grad.tolist() for p in held]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """What three ranks found."""
    folder = tmp_path_factory.mktemp("three")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(in_three, (port, folder), nprocs=3)
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in range(3)]


def test_work_is_dealt_out_and_comes_back_whole(three):
    assert [found["who"] for found in three] == [(0, 3, 3), (1, 3, 3), (2, 3, 3)]
    assert [found["share"] for found in three] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    for number, found in enumerate(three):
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert found["dealt"] == [0, 1, 4, 9, 16, 25, 36, 49]
        assert found["fewer"] == ["ONE"]
        assert found["first"] == "from 0"
        assert found["anywhere"] == [True, False]
        assert found["agreed"] == number


def test_what_one_rank_raises_all_raise(three):
    for found in three:
        assert found["raised"] == [("DataError", "sample 7 is NaN"), ("RunError", "rank 1: ValueError: no")]
    assert sum(found["spoke"] for found in three) == 1


def test_gradients_are_summed(three):
    for found in three:
        assert found["gradients"] == [[[6.0, 6.0]] * 2, [[1.0, 1.0]] * 2, None, None]
        assert found["average"] == [1.0, 1.0]


@pytest.mark.parametrize("name", CASES)
def test_three_ranks_train_the_network_of_one(name, three, tmp_path):
    # A batch of 16 in parts of 6, 5 and 5 samples.
    alone = run(case_job(tmp_path, name))
    for found in three:
        last, best, history = found[name]
        for mine, theirs in ((alone.last, last), (alone.best, best)):
            assert all(torch.allclose(mine[key], theirs[key], atol=2e-5) for key in mine)
        assert all(torch.equal(last[key], three[0][name][0][key]) for key in last)
        for mine, theirs in zip(alone.history, history, strict=True):
            assert (mine.clean, mine.fgsm, mine.robust) == (theirs["clean"], theirs["fgsm"], theirs["robust"])
            assert mine.loss == pytest.approx(theirs["loss"], rel=1e-4)
            assert mine.parts == pytest.approx(theirs["parts"], rel=1e-3)


def test_ranks_that_were_killed_go_on_to_the_bit(three):
    for found in three:
        assert all(torch.equal(found["resumed"][key], found["free"][0][key]) for key in found["resumed"])


def test_running_statistics_are_those_of_all_ranks(three):
    first = three[0]["normed"]
    assert any("running_mean" in name for name in first)
    for found in three[1:]:
        assert all(torch.equal(first[key], found["normed"][key]) for key in first)


def test_a_batch_that_cannot_be_shared_is_refused(three):
    for found in three:
        assert found["too small"] == (
            "UsageError", "--batch-size 5 is too small for 3 ranks; give at least 6"
        )  # fmt: skip


# ---- the command ---------------------------------------------------------------------------------------


def test_two_processes_report_what_one_does(lsa, tmp_path):  # noqa: F811
    options = ("audit", MOON, "--threads", 1, "-n", 51, "--attack", "pgd", "--eps-grid", "0.1,0.3", "--samples")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = {"TMPDIR": str(temporary)}
    two = call(*options, "two.csv", "--nproc", 2, "--json", "two.json", cwd=tmp_path, env=env)
    one = lsa(*options, "one.csv", "--json", "one.json")
    assert (one.code, two.code) == (0, 0), two.err
    same_report(tmp_path / "one.json", tmp_path / "two.json")
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()
    assert [line for line in two.out.splitlines() if " s " not in line] == [
        line for line in one.out.splitlines() if " s " not in line
    ]
    assert said(two) == ["lsa: report saved: two.json, two.csv"]
    assert not list(tmp_path.glob("*.journal"))
    assert not list(temporary.iterdir())


def test_torchrun_reports_what_one_process_does_and_gates_it(lsa, tmp_path):  # noqa: F811
    options = ("audit", MNIST, "--threads", 1, "-n", 61, "--attack", "pgd:steps=3", "--attack", "autoattack:version=rand",
               "--full-on", 20, "--noise", "gaussian", "--fail-under", "robust=0.9", "--quiet", "--json")  # fmt: skip
    three = call(*options, "three.json", ranks=["--nproc-per-node", "3"], cwd=tmp_path)
    one = lsa(*options, "one.json")
    assert (one.code, three.code) == (1, 1)
    same_report(tmp_path / "one.json", tmp_path / "three.json")
    assert (three.out, said(three)) == (one.out, one.err.splitlines())


DECOYS = """
import torch
from torch import nn

class Decoys(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 4))
        self.w = torch.randn(36, 4, generator=torch.Generator().manual_seed(3))

    def forward(self, x):
        z = 3 * self.body(x)
        near = z.amax(1, keepdim=True) - 1 + 0.5 * torch.tanh(x.flatten(1) @ self.w)
        return torch.where(z == z.amax(1, keepdim=True), z, torch.maximum(z, near))
"""


def test_two_processes_run_the_attacks_that_the_evidence_adds_as_one(lsa, tmp_path):  # noqa: F811
    space = {}
    exec(DECOYS, space)
    (tmp_path / "decoys.py").write_text(DECOYS)
    torch.manual_seed(0)
    images = (torch.rand(150, 6, 6) * 255).byte()
    x = images[:, None].float() / 255
    y = ((x - 0.5).flatten(1) @ torch.randn(36, 4)).argmax(1)
    network = space["Decoys"]()
    fitted(network.body, x, y, 150)
    torch.save(network.state_dict(), tmp_path / "decoys.pth")
    np.savez(tmp_path / "data.npz", x_test=images.numpy(), y_test=y.numpy())
    options = ("audit", "decoys.pth", "--arch", "decoys.py:Decoys", "--data", "npz:data.npz", "--normalize", "none", "--eps", 0.03,
               "--attack", "pgd", "--noise", "none", "--threads", 1, "--quiet", "--json")  # fmt: skip
    two = call(*options, "two.json", "--nproc", 2, cwd=tmp_path)
    one = lsa(*options, "one.json")
    assert (one.code, two.code) == (0, 0), two.err
    same_report(tmp_path / "one.json", tmp_path / "two.json")
    assert any(stage["by_evidence"] for stage in json.loads((tmp_path / "two.json").read_text())["cascade"])


def test_two_processes_prove_what_one_does(lsa, tmp_path, data_root):  # noqa: F811
    options = (
        "audit", data_root / "checkpoints/convex_adversarial/fashion_mnist.pth", "--arch",
        f"{ROOT}/tests/foreign_networks.py:small_cnn", "--normalize", "none", "--data",
        f"torchvision:FashionMNIST?root={data_root}", "--eps", 0.1, "--threads", 1, "-n", 21, "--attack", "pgd:steps=3",
        "--attack", "ranked-cascade", "--prove", "--noise", "none", "--quiet", "--json",
    )  # fmt: skip
    two = call(*options, "two.json", "--nproc", 2, cwd=tmp_path)
    one = lsa(*options, "one.json")
    assert (one.code, two.code) == (0, 0), two.err
    same_report(tmp_path / "one.json", tmp_path / "two.json")
    assert any(json.loads((tmp_path / "two.json").read_text())["samples"]["proven"])


def test_two_processes_decide_limits_from_the_samples_of_one(lsa, tmp_path):  # noqa: F811
    options = ("audit", MOON, "--threads", 1, "--gate-only", "--attack", "fgsm", "--attack", "pgd:steps=3",
               "--fail-under", "robust=0.2", "--fail-under", "clean=0.99", "--quiet", "--json")  # fmt: skip
    two = call(*options, "two.json", "--nproc", 2, cwd=tmp_path)
    one = lsa(*options, "one.json")
    assert (one.code, two.code) == (1, 1), two.err
    mine, theirs = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert 0 < mine["early"]["used"] < mine["early"]["population"]
    assert [gate["passed"] for gate in mine["gates"]] == [True, False]
    for report in (mine, theirs):
        del report["early"]["full_seconds"]  # an estimate from the time that the run took
    agree(plain(mine), plain(theirs))
    assert (two.out, said(two)) == (one.out, one.err.splitlines())


def test_two_processes_harden_as_one(lsa, tmp_path):  # noqa: F811
    options = ("harden", MOON, "--threads", 1, "-n", 60, "--epochs", 2, "--batch-size", 33, "--out")
    two = call(*options, "two.pt", "--nproc", 2, cwd=tmp_path)
    one = lsa(*options, "one.pt")
    assert (one.code, two.code) == (0, 0), two.err
    mine, theirs = weights(tmp_path / "one.pt"), weights(tmp_path / "two.pt")
    assert all(torch.allclose(mine[key], theirs[key], atol=1e-5) for key in mine)
    same_report(tmp_path / "one.before.json", tmp_path / "two.before.json")
    assert two.out == one.out
    endings = {name.removeprefix("one.") for name in os.listdir(tmp_path) if name.startswith("one.")}
    assert endings == {name.removeprefix("two.") for name in os.listdir(tmp_path) if name.startswith("two.")}


# ---- what goes wrong -----------------------------------------------------------------------------------

FRAGILE = """
import os, signal, torch

class Fragile(torch.nn.Sequential):
    passes = 0

    def forward(self, x):
        mode, at = os.environ["DIE_AT"].split(":")
        if self.training == (mode == "train"):
            self.passes += 1
        if os.environ.get("RANK") == "1" and self.passes == int(at) and not os.path.exists("died"):
            open("died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

def build():
    return Fragile(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
"""
OWN = (
    "own.pth",
    "--arch",
    "own.py:build",
    "--data",
    "npz:unit.npz",
    "--eps",
    "0.02",
    "--normalize",
    "none",
    "--threads",
    1,
)


LATE = """
import os, time, torch

class Late(torch.nn.Sequential):
    passes = 0

    def forward(self, x):
        self.passes += 1
        if os.environ.get("RANK") == "1" and self.passes == int(os.environ["LATE_AT"]):
            now = time.monotonic
            time.monotonic = lambda: now() + 3600
        return super().forward(x)

def build():
    return Late(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
"""
KILLED = (
    "lsa: error: rank 1 of 2 was killed by SIGKILL, and the others were stopped; to continue, run the same command with "
    "--resume"
)


@pytest.fixture
def fragile(tmp_path):
    """A network of which rank 1 dies once, and data for it."""
    (tmp_path / "own.py").write_text(FRAGILE)
    torch.manual_seed(0)
    layers = (torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    torch.save(torch.nn.Sequential(*layers).state_dict(), tmp_path / "own.pth")
    with np.load(SAMPLES / "moons.npz") as moons:
        unit = {name: (moons[name] + 2) / 5 if name.startswith("x") else moons[name] for name in moons.files}
    np.savez(tmp_path / "unit.npz", **unit)
    return tmp_path


def test_ranks_that_torchrun_starts_again_go_on(fragile, lsa, monkeypatch):  # noqa: F811
    # Eleven updates an epoch and two passes in training mode for each: rank 1 dies in the second epoch.
    options = ("harden", *OWN, "-n", 50, "--epochs", 3, "--batch-size", 128, "--lr", "0.05", "-o")
    (fragile / "ranks.state.pt").write_bytes(b"of another run")
    restarted = call(
        *options, "ranks.pt", cwd=fragile, env={"DIE_AT": "train:30"},
        ranks=["--nproc-per-node", "2", "--max-restarts", "1"],
    )  # fmt: skip
    assert restarted.code == 0, restarted.err
    assert (fragile / "died").exists()
    told = [line for number in (1, 2, 3) for line in said(restarted) if f"epoch {number}/3" in line]
    assert len(told) == 3
    monkeypatch.setenv("DIE_AT", "train:0")
    alone = lsa(*options, "alone.pt", "--quiet")
    assert alone.code == 0, alone.err
    mine, theirs = weights(fragile / "alone.pt"), weights(fragile / "ranks.pt")
    assert all(torch.allclose(mine[key], theirs[key], atol=1e-5) for key in mine)


def test_a_killed_rank_ends_the_audit_and_it_goes_on(fragile, lsa, monkeypatch):  # noqa: F811
    temporary = fragile / "temporary"
    temporary.mkdir()
    dies = {"DIE_AT": "eval:75", "TMPDIR": str(temporary)}  # in the second block of samples
    options = ("audit", *OWN, "-n", 200, "--batch-size", 7, "--attack", "fgsm", "--noise", "none", "--quiet", "--json")
    killed = call(*options, "two.json", "--nproc", 2, cwd=fragile, env=dies)
    assert killed.code == 3
    assert [line for line in said(killed) if "error" in line] == [KILLED]
    assert not list(temporary.iterdir())
    kept = [path.name for path in (fragile / "two.json.journal").glob("*.npz")]
    assert "block-rank0-000000.npz" in kept
    resumed = call(*options, "two.json", "--nproc", 2, "--resume", cwd=fragile, env=dies)
    assert resumed.code == 0, resumed.err
    monkeypatch.setenv("DIE_AT", "eval:0")
    alone = lsa(*options, "one.json")
    assert alone.code == 0, alone.err
    same_report(fragile / "one.json", fragile / "two.json")


def test_a_time_budget_that_ends_on_one_rank_leaves_a_valid_report(fragile):
    (fragile / "own.py").write_text(LATE)
    result = call(
        "audit", *OWN, "-n", 200, "--batch-size", 7, "--attack", "fgsm", "--attack", "pgd:steps=3", "--noise", "gaussian",
        "--budget", "30m", "--quiet", "--json", "a.json", "--samples", "a.csv", "--nproc", 2,
        cwd=fragile, env={"LATE_AT": "130"},
    )  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads((fragile / "a.json").read_text())
    n = report["data"]["n"]
    assert report["status"] == "complete"
    assert 64 <= n < 200
    assert {outcome["name"]: outcome["robust"]["n"] for outcome in report["outcomes"]} == dict.fromkeys(
        ("fgsm", "pgd", "gaussian"), n
    )
    assert report["verdict"]["robust"]["n"] == report["verdict"]["clean"]["n"] == n
    assert len(set(report["samples"]["index"])) == n
    assert "evidence" in report["not_run"]
    [warning] = [warning["message"] for warning in report["warnings"] if warning["code"] == "fewer-samples"]
    assert warning.startswith(f"the time budget was exhausted after {n} of 200 samples")


def test_what_the_user_can_mend_is_said_once(fragile):
    # The sample is in the second rank's share of the first block, and the first rank must not wait for it.
    sample = np.sort(np.random.default_rng([0, 17]).permutation(400)[:64])[-1]
    with np.load(fragile / "unit.npz") as unit:
        arrays = dict(unit)
    arrays["x_test"][sample, 0] = np.nan
    np.savez(fragile / "unit.npz", **arrays)
    options = ("audit", *OWN, "-n", "all", "--attack", "fgsm", "--json", "a.json")
    result = call(*options, "--nproc", 2, cwd=fragile, env={"DIE_AT": "eval:0"})
    assert result.code == 2
    assert said(result) == [f"lsa: error: npz:unit.npz: sample {sample} holds NaN or infinity; remove or repair it"]
    assert result.out == ""
    assert not list(fragile.glob("a.json*"))


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5"])
def test_odd_counts_are_refused(count, refused):  # noqa: F811
    refused("audit", MOON, "--nproc", count, says="give a number of processes from 1, or auto")


def test_ranks_start_no_ranks(refused, monkeypatch):  # noqa: F811
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("lsa_cli.distributed.is_first_error", lambda: True)
    refused("audit", MOON, "--nproc", "2", says="is a rank already")
