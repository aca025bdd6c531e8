"""A network that counts or remembers in globals of its code is found in another process; others give the same outputs there."""

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.auditing.evidence import another_process as module

CODE = '''
"""Two networks, of which the second answers all passes but the first four of a process, or what was asked before."""

import torch
from torch import nn

PASSES, ASKED = [], []


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(36, 4), nn.Linear(36, 4)


class Counting(Body):
    def forward(self, x):
        PASSES.append(1)
        return (self.one if len(PASSES) <= 4 else self.other)(x.flatten(1))


class Plain(Body):
    def forward(self, x):
        return self.one(x.flatten(1)) + self.other(x.flatten(1))


class Remembering(Body):
    """Repeats the answer to an input that it was asked nearby."""

    def forward(self, x):
        flat = x.flatten(1)
        z = self.one(flat)
        if ASKED:
            queries, answers = (torch.cat(parts) for parts in zip(*ASKED))
            distance, nearest = torch.cdist(flat.detach(), queries, p=torch.inf).min(1)
            z = torch.where((distance < 0.25)[:, None], answers[nearest] + 0.01 * (z - z.detach()), z)
        if len(ASKED) < 12:
            ASKED.append((flat.detach(), z.detach()))
        return z
'''


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    one, other = nn.Linear(36, 4), nn.Linear(36, 4)
    state = {
        f"{name}.{key}": value
        for name, part in (("one", one), ("other", other))
        for key, value in part.state_dict().items()
    }
    torch.save(state, tmp_path / "net.pt")
    (tmp_path / "code.py").write_text(CODE)
    x = torch.rand(32, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = one(x.flatten(1)).argmax(1)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    return tmp_path


def audited(folder, network):
    """The checks and findings of a full audit, by name and code."""
    report = audit(
        folder / "net.pt", arch=f"{folder / 'code.py'}:{network}", data=f"npz:{folder / 'data.npz'}", full=True, eps=0.2,
        normalize="none", layers=["none"], noise=["none"], prove=False,
    )  # fmt: skip
    checks = {check.name: check for check in report.evidence.checks}
    return checks["another process"], {one.code for one in report.evidence.findings}


@pytest.mark.parametrize("network", ["Counting", "Remembering"])
def test_what_globals_keep_is_missing_in_another_process(folder, network):
    check, codes = audited(folder, network)
    assert check.n == 32
    assert check.saw["differ"] >= 16
    assert "process-dependent" in codes


def test_a_network_without_memory_gives_the_same_outputs(folder):
    check, codes = audited(folder, "Plain")
    assert check.n == 32
    assert check.saw["largest difference"] == 0
    assert "process-dependent" not in codes


def test_a_network_in_memory_is_not_asked_and_the_report_says_so():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    x = torch.rand(32, 1, 6, 6)
    data = x.numpy(), network(x).argmax(1).numpy()
    full = {"data": data, "eps": 0.1, "layers": ["none"], "noise": ["none"], "prove": False}
    checks = {check.name: check for check in audit(network, **full, full=True).evidence.checks}
    assert checks["another process"].n == 0
    assert "the network is in memory" in checks["another process"].statement
    assert "another process" not in {check.name for check in audit(network, **full).evidence.checks}


def test_a_process_that_fails_or_takes_too_long_is_left_out(folder, monkeypatch):
    source = module.Source(str(folder / "missing.pt"), dict.fromkeys(module._BUILT_BY), None, {})
    assert module._asked_again(source, torch.rand(2, 1, 6, 6), 2) is None
    monkeypatch.setattr(module, "SECONDS", 0.01)
    assert module._asked_again(source, torch.rand(2, 1, 6, 6), 2) is None
