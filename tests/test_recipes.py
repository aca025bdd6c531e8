"""The recipes of docs/python.md run as they stand there."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.test_docs import ROOT, blocks


def recipe(word):
    """The one Python block of the page that has this word."""
    (found,) = [block for block in blocks(ROOT / "docs" / "python.md", "python") if word in block]
    return compile(found, f"docs/python.md: {word}", "exec")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with images."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    np.savez("images.npz", x=draw.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), y=np.arange(24) % 10)
    torch.manual_seed(0)
    return tmp_path


def test_torchvision(folder, capsys):
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=10).state_dict(), "resnet18.pth")
    names = {}
    exec(recipe("from torchvision.models"), names)
    assert names["report"].protocol.settings["normalize"] == "imagenet"
    assert names["report"].data.n == 24
    assert "robust accuracy 0.0%" in capsys.readouterr().out


def test_timm(folder, capsys):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    network = timm.create_model("resnet18", num_classes=10)
    torch.save(network.state_dict(), "timm.pth")
    names = {}
    exec(recipe("import timm"), names)
    mean, _, std = names["report"].protocol.settings["normalize"].partition("/")
    assert [float(part) for part in mean.split(",")] == list(network.default_cfg["mean"])
    assert [float(part) for part in std.split(",")] == list(network.default_cfg["std"])
    assert "robust accuracy" in capsys.readouterr().out


def test_plain_pytorch(folder, capsys):
    exec(recipe("FakeData"), {})
    assert "worst case" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["from torchvision.models", "import timm", "FakeData"])
def test_a_recipe_has_at_most_ten_statements(name):
    (found,) = [block for block in blocks(ROOT / "docs" / "python.md", "python") if name in block]
    assert len([line for line in found.splitlines() if line and not line.startswith((" ", ")"))]) <= 10


class Scalars:
    """A writer with TensorBoard's method."""

    def __init__(self):
        self.rows = []

    def add_scalar(self, name, value, epoch):
        self.rows.append((name, value, epoch))


def test_a_plain_loop_audits_every_few_epochs(folder):
    """The loss goes on as without audits, and the scalars are those of an audit at the end of the epoch."""
    names = {}
    exec(recipe("def audit_every"), names)
    x, y = torch.rand(40, 3, 8, 8), torch.arange(40) % 4

    def train(at_end):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(216, 4)
        )
        optimizer, losses = torch.optim.SGD(model.parameters(), 0.05), []
        for epoch in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            at_end(model, epoch)
            assert model.training
        return losses, model

    writer = Scalars()
    options = {"eps": 0.05, "attack": "fgsm", "noise": "none", "threads": 1}
    losses, model = train(names["audit_every"](2, writer, (x, y), **options))
    assert losses == train(lambda model, epoch: None)[0]
    assert [(name, epoch) for name, _, epoch in writer.rows] == [
        (name, epoch) for epoch in (1, 3) for name in ("lsa/clean", "lsa/robust", "lsa/layer/2")
    ]
    clean = (model.eval()(x).argmax(1) == y).float().mean()
    assert writer.rows[3][1] == pytest.approx(float(clean))


def test_tensorboard_takes_the_scalars(folder):
    board = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    names = {}
    exec(recipe("def audit_every"), names)
    x, y = torch.rand(20, 3, 8, 8), torch.arange(20) % 4
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))
    with board.SummaryWriter(str(folder / "runs")) as writer:
        names["audit_every"](1, writer, (x, y), eps=0.05, attack="fgsm", noise="none")(model, 0)
    assert any((folder / "runs").iterdir())
