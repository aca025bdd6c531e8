"""Commands that messages suggest: what a command line takes gives the same settings again, and each one runs as printed."""

import json
import shlex

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from lsa_cli.auditing.suggesting import audit_command, written_to
from lsa_cli.cli import options as o
from lsa_cli.cli.harden import OF_AUDITS
from lsa_cli.commands import OF_AUDIT, OF_INSPECT, OF_NETWORK, command, with_query
from lsa_cli.hardening.plan import make_harden_plan
from lsa_cli.models.loading import UnknownNetworkError
from lsa_cli.settings import AuditSettings, HardenSettings, settings_from
from lsa_cli.settings.declare import settings_of
from tests.fitting import fitted

EVERY = {
    "arch": "a folder/net.py:build", "arch_args": {"width": 16, "norm": "batch", "code": "16", "bias": True, "dims": [2, 3]},
    "weights": "model_ema", "normalize": "0.5/0.25", "input_range": "0,255", "returns": "probabilities", "output_index": 1,
    "noise_off": True, "data": "npz:it's.npz?split=test", "split": "val", "input_size": "32", "match_classes": "2,0,1",
    "limit": 50, "attack": ["pgd:steps=40", "fgsm"], "preset": "full", "full_on": 20, "patient": True, "prove": False,
    "noise": ["none"], "corruption": ["fog:severity=2"], "norm": "l2", "eps": 8 / 255, "steps": 7,
    "step_size": 0.123456789, "restarts": 2, "eps_grid": [0.0, 1 / 255, 0.5], "metrics": ["eni"], "layers": ["0", "conv*"],
    "measure": "l2", "aggregate": "sample", "eta": 0.7, "sigma": "layers", "top_k": 2, "batch_size": 16, "device": "cpu",
    "threads": 1, "fast": False, "seed": 3, "config": "my settings.yaml", "plugin": ["my plugin.py"],
}  # fmt: skip


def read_back(words, *names, **kinds):
    """The settings that the command line of an audit gives, or of a command with these settings."""
    found = []

    @o.takes(*names, **kinds)
    def audit(checkpoint: o.Checkpoint, given: AuditSettings) -> None:
        found.append(given)

    app = typer.Typer()
    app.command()(o.sign(audit))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return found[0]


def test_a_command_gives_the_same_settings_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my plugin.py").write_text("")
    assert set(EVERY) == set(OF_AUDIT)
    assert {*OF_AUDIT, *OF_NETWORK, *OF_INSPECT} <= {one.name for one in settings_of(AuditSettings)}
    settings = AuditSettings(**settings_from({**EVERY, "fast": True}).replace(fast=False).given())
    words = shlex.split(audit_command("a b.pt", settings))
    assert words[:3] == ["lsa", "audit", "a b.pt"]
    assert read_back(words[2:]) == settings


def test_options_of_the_next_step_win_over_those_of_the_user():
    given = {"input_size": "32", "data": "npz:x.npz", "limit": 50}
    said = command("audit", "net.pt", given, "--input-size", "64", "-n", "200")
    assert said == "lsa audit net.pt --data npz:x.npz --input-size 64 -n 200"
    given = {"arch": "lsa:reconstructed", "arch_args": {"activation": "GELU"}}
    assert command("audit", "net.pt", given, "--arch", "net.py:build") == "lsa audit net.pt --arch net.py:build"
    assert with_query("npz:x.npz", "mode=rgb") == "npz:x.npz?mode=rgb"
    assert with_query("npz:x.npz?x=a", "mode=rgb") == "npz:x.npz?x=a&mode=rgb"


def test_a_network_is_written_beside_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert written_to() == "net.py"
    (tmp_path / "net.py").write_text("")
    assert written_to() == "net2.py"


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images[:, None].astype(np.float32) / 16, found.target


def suggested(text):
    """The words of the last command that a message names."""
    return shlex.split(text[text.rindex("lsa audit ") :].strip())[1:]


def test_images_of_other_channels_are_refused_with_the_audit_that_converts_them(digits, lsa, tmp_path):
    x, y = digits
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    network = fitted(network, torch.tensor(x).repeat(1, 3, 1, 1), torch.tensor(y), 60)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "the digits.npz", x_val=x[:300], y_val=y[:300], x_test=x[300:302], y_test=y[300:302])
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))\n"
    )
    options = ["--arch", f"{tmp_path / 'net.py'}:build", "--split", "val", "-n", 12, "--quick", "--normalize", "none"]
    refused = lsa("audit", tmp_path / "net.pt", "--data", f"npz:{tmp_path / 'the digits.npz'}", *options)
    assert refused.code == 2
    assert "add ?mode=rgb to --data" in refused.err
    words = suggested(refused.err)
    assert words[words.index("--data") + 1] == f"npz:{tmp_path / 'the digits.npz'}?mode=rgb"
    again = lsa(*words, "--json", tmp_path / "report.json")
    assert again.code == 0, again.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["data"]["n"] == 12
    assert report["data"]["split"] == "val"


def test_images_of_another_size_are_refused_with_the_audit_that_resizes_them(digits, lsa, tmp_path):
    x, y = digits
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(100, 10)).state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "digits.npz", x_val=x[:300], y_val=y[:300], x_test=x[300:302], y_test=y[300:302])
    data = f"npz:{tmp_path / 'digits.npz'}"
    refused = lsa("audit", tmp_path / "net.pt", "--data", data, "--split", "val", "--eps", "4/255", "-n", 30)
    words = f"audit {tmp_path / 'net.pt'} --data {data} --split val --eps 4/255 -n 30 --input-size 10".split()
    assert suggested(refused.err) == words
    inspected = lsa("inspect", tmp_path / "net.pt", "--data", data, "--split", "val", "--input-size", 10)
    assert "Next command  lsa inspect" in inspected.out, inspected.err
    assert "--split val --input-size 10 --write-arch net.py" in inspected.out


def test_an_option_for_the_data_needs_data(lsa, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")
    refused = lsa("inspect", tmp_path / "net.pt", "--input-size", 10)
    assert (refused.code, refused.err.strip()) == (2, "lsa: error: --input-size is for --data; leave it out")


def test_a_refused_hardening_suggests_itself_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"odd": torch.rand(3, 3, 3)}, "odd.pt")
    own = HardenSettings(
        method="at-lr", layers=["0", "conv*"], freeze=["a", "b"], steps=3, step_size=0.01, epochs=2, budget=5400.0,
        train_only="flagged", out="my out.pt",
    )  # fmt: skip
    given = AuditSettings(data="npz:x.npz", norm="l2", eps=0.5, limit=20, seed=3, harden=own)
    with pytest.raises(UnknownNetworkError) as refused:
        make_harden_plan("odd.pt", given, {})
    words = shlex.split(refused.value.commands[-1])
    assert words[:3] == ["lsa", "harden", "odd.pt"]
    assert words[-2:] == ["--arch", "net.py:build"]
    found = read_back(words[2:], *OF_AUDITS, hardening=True)
    assert found.replace(arch=None) == given


def test_a_command_leaves_out_what_its_preset_sets():
    quick = AuditSettings(preset="quick", noise=["none"], data="x.npz")
    assert audit_command("a.pt", quick) == "lsa audit a.pt --data x.npz --quick"
    assert "--noise gaussian" in audit_command("a.pt", quick.replace(noise=["gaussian"]))
