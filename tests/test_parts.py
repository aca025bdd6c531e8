"""Two parts of an audit alone, in Python: an attack on a network in memory, and the scan of its layers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import lsa_cli
from lsa_cli.errors import DataError, LayerError, LsaError, NumericalError, UsageError

ROOT = Path(__file__).resolve().parents[1]
EPS = 8 / 255


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def inputs(model, count=40):
    torch.manual_seed(1)
    x = torch.rand(count, 3, 8, 8)
    return x, model.eval()(x).argmax(1)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(12, 2)

    def forward(self, x):
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce"])
def test_on_a_linear_network_the_attack_is_the_one_on_paper(name):
    """The loss rises fastest along sign(w_other - w_y), so the worst input is x + eps of it."""
    model, x = Linear(), torch.full((5, 3, 2, 2), 0.5)
    y = torch.tensor([0, 1, 0, 1, 1])
    slope = (model.layer.weight[1 - y] - model.layer.weight[y]).sign().reshape(x.shape)
    x_adv = lsa_cli.attack(name, eps="8/255")(model, x, y)
    assert torch.allclose(x_adv, x + EPS * slope, atol=1e-6)


def test_labels_may_be_a_list():
    model = network()
    x, y = inputs(model, 6)
    attack = lsa_cli.attack("fgsm", eps=EPS)
    assert torch.equal(attack(model, x, y.tolist()), attack(model, x, y))


@pytest.mark.parametrize(("name", "norm"), [("pgd", "linf"), ("pgd", "l2"), ("fmn", "l2"), ("square", "linf"), ("autoattack", "linf")])  # fmt: skip
def test_every_kind_of_attack_stays_in_its_budget_and_leaves_the_network_alone(name, norm):
    model = network()
    x, y = inputs(model, 12)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    eps = EPS if norm == "linf" else 0.3
    short = {"square": {"queries": 50}, "autoattack": {"steps": 4, "queries": 20}}.get(name, {})
    x_adv = lsa_cli.attack(name, eps=eps, norm=norm, **short)(model, x, y)
    moved = (x_adv - x).flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)
    assert moved.max() <= eps * (1 + 1e-5)
    assert moved.max() > 0
    assert (float(x_adv.min()) >= 0, float(x_adv.max()) <= 1, x_adv.dtype) == (True, True, torch.float32)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_parts_are_those_of_the_audit():
    """The layers of an audit are those of `scan` for what `attack` returns."""
    model = network()
    x, y = inputs(model)
    report = lsa_cli.audit(
        model, data=(x, y), eps="8/255", attack=["fgsm", "pgd:steps=4"], noise="none", no_fast=True, threads=1
    )
    whole = report.tables["layers"]
    for name, options in (("fgsm", {}), ("pgd", {"steps": 4})):
        table = lsa_cli.scan(model, x, lsa_cli.attack(name, eps=EPS, **options)(model, x, y))
        expected = whole[whole.attack == name].drop(columns=["attack", "kind"]).reset_index(drop=True)
        assert list(table.columns) == list(expected.columns)
        numbers = ["mean", "sd", "low", "high", "gain", "amplification", "stability"]
        assert np.allclose(table[numbers].astype(float), expected[numbers].astype(float), rtol=1e-4)
        assert list(table.layer) == list(expected.layer)
        assert list(table.in_mvl) == list(expected.in_mvl)


def test_a_result_belongs_to_the_sample_and_the_seed_and_the_arrays_may_be_of_numpy():
    model = network()
    x, y = inputs(model, 300)  # more than one batch
    attack = lsa_cli.attack("pgd:steps=3", eps=EPS)
    whole = attack(model, x, y)
    assert torch.allclose(attack(model, x[:10], y[:10]), whole[:10], atol=1e-6)
    assert not torch.equal(attack(model, x, y, seed=1), whole)
    assert torch.allclose(attack(model, x.numpy(), y.numpy()), whole)
    eighths = (x * 255).round().to(torch.uint8)
    assert torch.allclose(attack(model, eighths, y), attack(model, eighths / 255, y), atol=1e-6)


def test_the_scan_measures_relative_errors():
    model = network()
    x, _ = inputs(model)
    x_adv = (x + 0.03 * torch.randn_like(x)).clamp(0, 1)
    table = lsa_cli.scan(model, x, x_adv, layers="2", top_k=1)
    with torch.no_grad():
        clean, other = (model[:3](part).flatten(1) for part in (x, x_adv))
    expected = ((other - clean).norm(dim=1) / clean.norm(dim=1)).mean()
    assert table["mean"][0] == pytest.approx(float(expected), rel=1e-5)
    assert (list(table.layer), list(table.in_mvl)) == (["2"], [True])
    still = lsa_cli.scan(model, x, x)
    assert list(still["mean"]) == [0, 0]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("pdg", {"eps": 0.1}, "unknown attack 'pdg': did you mean 'pgd'"),
        ("pgd", {}, 'give the radius, such as eps="8/255"'),
        ("pgd", {"epsilon": 0.1}, "unknown option 'epsilon': did you mean 'eps'"),
        ("pgd", {"eps": 8}, "did you mean 8/255"),
        ("pgd", {"eps": -1}, "eps -1 is negative"),
        ("pgd", {"eps": "much"}, "eps: 'much' is not a number"),
        ("pgd", {"eps": 0.1, "norm": "l3"}, "unknown norm 'l3'"),
        ("square", {"eps": 0.1, "norm": "l1"}, "Square is defined for linf and l2, not for l1"),
        ("pgd", {"eps": 0.1, "steps": 0}, "steps must be at least 1, not 0"),
        ("pgd:eps=0.1", {"eps": 0.2}, "eps is given twice"),
    ],
)
def test_an_attack_that_cannot_be_made(name, options, says):
    with pytest.raises(UsageError, match=says):
        lsa_cli.attack(name, **options)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: (255 * x, y), r"outside \[0, 1\]; divide by 255"),
        (lambda x, y: (x - 1, y), "undo the normalisation"),
        (lambda x, y: (x, y[:3]), "give one label per sample"),
        (lambda x, y: (x, y + 10), "the network has 4 classes"),
        (lambda x, y: (x[:, :1], y), "the images are grey"),
        (lambda x, y: (x[:0], y[:0]), "holds no samples"),
        (lambda x, y: (x.tolist(), y), "x is a list; give a tensor or a numpy array"),
        (lambda x, y: (torch.full_like(x, float("nan")), y), "NaN or infinity"),
    ],
)
def test_inputs_that_an_attack_refuses(change, says):
    model = network()
    with pytest.raises(LsaError, match=says):
        lsa_cli.attack("fgsm", eps=0.1)(model, *change(*inputs(model)))


def test_a_network_without_a_gradient_is_attacked_without_one():
    class Cut(nn.Module):
        def forward(self, x):
            return network().eval()(x.detach())

    x, y = inputs(network(), 8)
    with pytest.raises(NumericalError):
        lsa_cli.attack("pgd", eps=0.1)(Cut(), x, y)
    assert lsa_cli.attack("square", eps=0.1, queries=20)(Cut(), x, y).shape == x.shape
    with pytest.raises(UsageError, match=r"str is no torch\.nn\.Module"):
        lsa_cli.attack("pgd", eps=0.1)("model.pt", x, y)


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"layers": "nope"}, LayerError, "unknown layer 'nope'"),
        ({"layers": "none"}, UsageError, "leaves no layer to scan"),
        ({"measure": "l3"}, UsageError, "unknown measure 'l3'"),
        ({"norm": "l7"}, UsageError, "unknown norm 'l7'"),
        ({"top_k": 9}, UsageError, "top_k=9: the scan ranks 2 layers"),
        ({"eta": "much"}, UsageError, "eta: 'much' is not a number"),
    ],
)
def test_settings_that_a_scan_refuses(options, kind, says):
    model = network()
    x, _ = inputs(model)
    with pytest.raises(kind, match=says):
        lsa_cli.scan(model, x, x, **options)


def test_inputs_that_a_scan_refuses():
    model = network()
    x, _ = inputs(model)
    with pytest.raises(UsageError, match=r"x has shape \(40, 3, 8, 8\) and x_adv \(3, 3, 8, 8\)"):
        lsa_cli.scan(model, x, x[:3])
    with pytest.raises(DataError, match="x_adv: inputs run from"):
        lsa_cli.scan(model, x, 3 * x)


def cells(name):
    return [cell for cell in json.loads((ROOT / "docs" / name).read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs_from_top_to_bottom(monkeypatch):
    monkeypatch.chdir(ROOT / "docs")
    names = {}
    for cell in cells("python.ipynb"):
        exec(compile("".join(cell["source"]), "python.ipynb", "exec"), names)
    assert (names["x_adv"] - names["x"]).abs().max() <= 0.1 + 1e-5
    assert isinstance(names["table"], pd.DataFrame)
    assert names["table"].in_mvl.any()
    assert 0 <= names["report"].verdict.robust.value <= names["report"].verdict.clean.value
