"""Bad input through the real command: one sentence, the documented exit code, nothing half-written."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.cli.conftest import ROOT

MOON = ROOT / "sample_models" / "moon_mlp.pt"
MNIST = ROOT / "sample_models" / "mnist_cnn.pt"
QUICK = ("-n", 40, "--attack", "fgsm", "--noise", "none", "--threads", 1)


# ---- the checkpoint --------------------------------------------------------------------------------------


def test_the_command_that_comes_next_stands_on_a_line_of_its_own(lsa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"odd": torch.rand(3, 3, 3)}, "odd net.pt")
    lines = lsa("audit", "odd net.pt", "--data", "npz:x.npz").err.splitlines()
    assert lines[-2].startswith("lsa: error: odd net.pt holds weights that fit no network that lsa knows; ")
    assert lines[-2].endswith("; with a function build in net.py that returns the network:")
    assert lines[-1] == "  lsa audit 'odd net.pt' --data npz:x.npz --arch net.py:build"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file model.pt"),
        (b"", "is empty"),
        (b"<html><body>404</body></html>", "HTML"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG image"),
    ],
)
def test_files_that_are_no_checkpoint(refused, tmp_path, content, says):
    if content is not None:
        (tmp_path / "model.pt").write_bytes(content)
    refused("audit", "model.pt", says=says)


def test_a_directory(refused, tmp_path):
    refused("audit", tmp_path, says="is a directory")


def test_a_truncated_zip(refused, tmp_path):
    (tmp_path / "model.pt").write_bytes(MNIST.read_bytes()[:100_000])
    refused("audit", "model.pt", says="damaged zip file")


def test_weights_of_another_architecture(refused, tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "model.pt")
    line = refused("audit", "model.pt", "--arch", "lsa:mnist-cnn", "--data", "npz:none", says="do not fit")
    assert "10 missing (first: conv1.weight, conv1.bias, conv2.weight)" in line
    assert "2 unexpected (first: weight, bias)" in line


def test_no_architecture_and_no_data(refused, tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "model.pt")
    refused("audit", "model.pt", says="--arch torchvision:resnet18")
    (tmp_path / "net.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(3, 2)\n")
    refused("audit", "model.pt", "--arch", "net.py:build", says="--data imagefolder:DIR", leaves=["__pycache__"][:0])


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        ("torchvision:resnet81", "did you mean 'resnet18'"),
        ("lsa:mnist_cnn", "did you mean 'mnist-cnn'"),
        ("net.py:buidl", "did you mean 'build'"),
        ("net.py:fails", "ZeroDivisionError"),
        ("net.py:number", "returned int"),
        ("gone.py:build", "there is no file gone.py"),
        ("resnet18", "pkg.mod:name"),
    ],
)
def test_bad_architectures(refused, tmp_path, arch, says):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "model.pt")
    (tmp_path / "net.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Linear(3, 2)\ndef fails():\n    return 1 / 0\n"
        "def number():\n    return 5\n"
    )
    refused("audit", "model.pt", "--arch", arch, says=says)


# ---- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--attack", "pdg"], "unknown attack 'pdg': did you mean 'pgd'"),
        (["--attack", "pgd:stesp=3"], "did you mean 'steps'"),
        (["--attack", "pgd:steps=3,steps=4"], "given twice"),
        (["--attack", "pgd:steps=few"], "not a number"),
        (["--attack", "pgd:norm=l2"], "give eps with another norm"),
        (["--attack", "fgsm", "--steps", "3"], "none of the attacks"),
        (["--noise", "gausian"], "did you mean 'gaussian'"),
        (["--noise", "salt"], "range"),
        (["--measure", "relative_error"], "did you mean 'relative-error'"),
        (["--layers", "activation"], "did you mean 'activations'"),
        (["--layers", "elu9"], "did you mean 'elu"),
        (["--norm", "l7"], "unknown norm 'l7'"),
        (["--eps", "lots"], "--eps"),
        (["--eps", "8/0"], "--eps"),
        (["--eps", "nan"], "finite"),
        (["--eps", "-0.1"], "negative"),
        (["--norm", "l2"], "--eps"),
        (["-n", "0"], "--limit"),
        (["-n", "500"], "more samples than the 400"),
        (["--steps", "0"], "--steps"),
        (["--device", "tpu"], "auto, cpu, cuda"),
        (["--data", "npz:gone.npz"], "there is no file"),
        (["--split", "val"], "split 'val'"),
        (["--config", "gone.yaml"], "there is no file"),
        (["--plugin", "gone.py"], "there is no file"),
        (["--fail-under", "robust"], "METRIC=VALUE"),
        (["--fail-under", "rubost=0.4"], "did you mean 'robust'"),
        (["--fail-under", "robust=40"], "such as 0.4"),
        (["--fail-under", "class.uper=0.4"], "did you mean 'upper'"),
        (["--fail-under", "robust.apgd=0.4"], "unknown attack in this audit 'apgd'"),
        (["--json", "gone/report.json"], "the folder gone does not exist"),
        (["--json", "."], "is a directory"),
        (["--html", "-"], "only --json"),
        (["--attack", "none", "--eps-grid", "0,0.1"], "needs an attack"),
        *(
            ([f"--{name}", ""], f"--{name}: is empty")
            for name in (
                "layers", "attack", "metrics", "noise", "corruption", "measure", "device", "returns", "split", "plugin",
            )
        ),
        (["--metrics", ","], "--metrics: is empty"),
        (["--output", ""], "--output: is empty"),
        (["--csv", ""], "--csv: is empty"),
        (["--output", "r.html"], "--output r.html looks like the name of a file; give a folder, or --html r.html for one file"),
        (["--csv", "tables.csv"], "--csv tables.csv looks like the name of a file; give a folder"),
        (["--gate-only", "--fail-under", "robust=0.1", "--alpha", ""], "--alpha: is empty"),
    ],
)  # fmt: skip
def test_bad_options(refused, options, says):
    refused("audit", MOON, *options, says=says)


def test_eps_in_levels_of_255_is_a_slip(refused):
    refused("audit", MNIST, "--eps", "8", says=["larger than the whole input range", "8/255"])


def test_cuda_that_is_not_there(refused):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    refused("audit", MOON, "--device", "cuda", says="finds no CUDA device; use --device cpu")


def test_outputs_that_cannot_be_written(refused, lsa, tmp_path):
    refused("audit", MOON, "--json", "/proc/report.json", says="/proc")
    (tmp_path / "taken").write_text("")
    refused("audit", MOON, "--csv", "taken", says="is a file")


def test_a_full_disk_ends_the_run_and_a_device_is_never_replaced(lsa):
    result = lsa("audit", MOON, *QUICK, "--json", "/dev/full")
    assert result.code == 3
    assert "lsa: error: /dev/full could not be written: No space left on device" in result.err
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_typer_s_own_errors_are_usage(lsa):
    assert lsa("audit").code == 2
    assert lsa("audit", MOON, "--batch-size", "many").code == 2
    assert lsa("no-such-command").code == 2


# ---- data ----------------------------------------------------------------------------------------------


def images(tmp_path, **changes):
    generator = np.random.default_rng(0)
    arrays = {"x": generator.random((40, 28, 28), dtype=np.float32), "y": np.arange(40) % 10, **changes}
    np.savez(tmp_path / "data.npz", **arrays)
    return "npz:data.npz"


def test_labels_out_of_range(refused, tmp_path):
    refused("audit", MNIST, "--data", images(tmp_path, y=np.arange(40) % 11), says=["sample 10 has label 10", "0 to 9"])
    refused("audit", MNIST, "--data", images(tmp_path, y=np.arange(40) - 1), says="label of sample 0 is -1")


def test_nan_and_range(refused, tmp_path):
    x = np.random.default_rng(0).random((40, 28, 28), dtype=np.float32)
    x[3, 5, 5] = np.nan
    refused("audit", MNIST, "--data", images(tmp_path, x=x), *QUICK, says="sample 3 holds NaN")
    refused("audit", MNIST, "--data", images(tmp_path, x=4 * np.nan_to_num(x) - 2), *QUICK, says="--normalize")
    refused("audit", MNIST, "--data", images(tmp_path, x=255 * np.nan_to_num(x)), *QUICK, says="divide by 255")


def test_other_shapes(refused, tmp_path):
    colour = images(tmp_path, x=np.zeros((40, 28, 28, 3), np.float32))
    refused("audit", MNIST, "--data", colour, says=["in colour (3 channels)", "takes 1 channel", "mode=gray"])
    small = images(tmp_path, x=np.zeros((40, 1, 20, 20), np.float32))
    refused("audit", MNIST, "--data", small, says="cannot take inputs of shape (1, 20, 20)")


def test_other_classes(refused, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(tmp_path / "folder" / name / "1.png")
    refused("audit", MNIST, "--data", "imagefolder:folder", says="it has no 'cat' among 0, 1")


def test_an_empty_class_is_told_and_cannot_pass_a_gate(lsa, tmp_path):
    spec = images(tmp_path, y=np.arange(40) % 9)
    result = lsa("audit", MNIST, "--data", spec, *QUICK, "--fail-under", "class.min=0")
    assert result.code == 1
    assert "1 of 10 classes have no sample in the data: 9" in result.out
    assert "NOT DECIDED" in result.out


# ---- networks that cannot carry a verdict -----------------------------------------------------------------

NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, kind="plain"):
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    def forward(self, x):
        z = self.body(x)
        return {"plain": z, "nan": z * float("nan"), "constant": 0 * z + 1, "softmax": z.softmax(1)}[self.kind]

def build(kind="plain"):
    torch.manual_seed(0)
    return Net(kind).train()
"""


@pytest.fixture
def network(tmp_path):
    (tmp_path / "net.py").write_text(NETWORKS)
    space = {}
    exec(NETWORKS, space)
    body = space["build"]()
    x = np.random.default_rng(0).random((60, 4, 4), dtype=np.float32)
    body.eval()
    with torch.no_grad():
        y = body(torch.from_numpy(x[:, None])).argmax(1).numpy()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    torch.save(body.state_dict(), tmp_path / "net.pt")
    return ["audit", "net.pt", "--arch", "net.py:build", "--data", "npz:data.npz", "--normalize", "none", "--eps", "0.1",
            "--noise", "none", "--threads", "1"]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nan", "NaN or infinite for 60 of 60"),
        ("constant", "same output for all 60"),
        ("softmax", "--returns probabilities"),
    ],
)
def test_useless_outputs_are_told_and_never_pass(refused, network, kind, says):
    refused(*network, "--arch-args", f"kind={kind}", says=says)


def test_probabilities_can_be_declared(lsa, network):
    plain = lsa(*network, "--json", "-")
    declared = lsa(*network, "--json", "-", "--arch-args", "kind=softmax", "--returns", "probabilities")
    assert declared.code == 0
    counts = [json.loads(result.out)["verdict"]["robust"]["count"] for result in (plain, declared)]
    assert abs(counts[0] - counts[1]) <= 1


def test_a_factory_that_returns_a_network_in_train_mode_is_audited_in_evaluation_mode(lsa, network):
    result = lsa(*network, "--json", "-")
    report = json.loads(result.out)
    assert report["verdict"]["clean"]["count"] == 60  # the labels are what evaluation mode predicts
    assert sum(outcome["mismatches"] for outcome in report["outcomes"]) == 0


def test_weights_with_nan(refused, network, tmp_path):
    state = torch.load(tmp_path / "net.pt", weights_only=True)
    state["body.1.bias"][2] = torch.inf
    torch.save(state, tmp_path / "net.pt")
    refused(*network, says="1 tensor holds NaN or infinity (first: body.1.bias)")


# ---- configuration and trust -----------------------------------------------------------------------------


def test_a_bad_configuration_names_key_and_line(refused, tmp_path):
    (tmp_path / "lsa.yaml").write_text("eps: 0.1\nattcak: fgsm\n")
    refused("audit", MOON, says=["lsa.yaml, line 2", "unknown key 'attcak'", "did you mean 'attack'"])


def test_a_configuration_beside_a_downloaded_checkpoint_runs_no_code(refused, tmp_path):
    folder = tmp_path / "download"
    folder.mkdir()
    (folder / "model.pt").write_bytes(MOON.read_bytes())
    (folder / "evil.py").write_text("open('ran', 'w')\n")
    (folder / "lsa.yaml").write_text("plugin: evil.py\n")
    refused("audit", "download/model.pt", says=["line 1: plugin names Python code", "--config"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "evil.py:build"}, "names Python code as its architecture"),
        ({"data": "evil.py:data"}, "names Python code as its data"),
        ({"data": "os.path:join"}, "names Python code as its data"),
    ],
)
def test_a_checkpoint_s_own_description_runs_no_code(refused, tmp_path, change, says):
    content = torch.load(MOON, weights_only=True)
    torch.save({**content, **change}, tmp_path / "model.pt")
    (tmp_path / "evil.py").write_text("open('ran', 'w')\n")
    refused("audit", "model.pt", says=says)
    assert not (tmp_path / "ran").exists()


class _Marker:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_pickle_s_code_never_runs(refused, tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(2)}, "x": _Marker()}, tmp_path / "model.pt")
    refused("audit", "model.pt", "--arch", "lsa:moon-mlp", says=["would call posix.system", "hostile"])
    assert not (tmp_path / "ran").exists()


# ---- interrupted ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_audit_leaves_what_it_measured(tmp_path, how):
    process = subprocess.Popen(
        [sys.executable, "-m", "lsa_cli", "audit", str(MNIST), "-n", "200", "--attack", "fgsm", "--attack", "pgd:steps=50000",
         "--threads", "1", "--json", "r.json", "--html", "r.html", "--junit", "r.xml", "--samples", "r.parquet"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    report = tmp_path / "r.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (report.exists() and json.loads(report.read_text())["outcomes"]):
        time.sleep(0.2)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    content = json.loads(report.read_text())
    assert content["status"] == "interrupted"
    assert [outcome["name"] for outcome in content["outcomes"]] == ["fgsm"]
    assert "not complete" in (tmp_path / "r.html").read_text()
    assert '<error message="the audit is not complete' in (tmp_path / "r.xml").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r.html", "r.xml", "r.parquet", "r.json.journal"}


def test_a_crash_is_no_breached_gate(shell, tmp_path):
    """A plugin whose attack breaks: exit 3, one sentence, and the traceback only when asked for."""
    (tmp_path / "broken.py").write_text(
        "from dataclasses import dataclass\nfrom lsa_cli.attacks import ATTACKS, Attack, Threat\n"
        "@ATTACKS.register('broken')\n@dataclass(frozen=True)\nclass Broken(Attack):\n    threat: Threat\n"
        "    def perturb(self, model, x, y):\n        return x.no_such_thing\n"
    )
    command = ["audit", MOON, "--plugin", "broken.py", "--attack", "fgsm", "--attack", "broken", "--json", "r.json"]
    result = shell(*command)
    assert result.code == 3
    assert "lsa: error: this is a bug" in result.err
    assert "no_such_thing" in result.err
    assert "Traceback" not in result.err
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "failed"
    assert "Traceback" in shell(*command, env={"LSA_TRACEBACK": "1"}).err
