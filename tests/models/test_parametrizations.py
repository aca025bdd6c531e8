"""Weights in parts, lazy layers, wrappers and several copies of one network: loaded strictly, with torch's own numbers."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from lsa_cli.auditing.network import open_network
from lsa_cli.cli.facts import gather
from lsa_cli.errors import CheckpointError
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.models.loading import load_network
from lsa_cli.settings import settings_from

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated", "ignore:.*torch.jit")
X = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(2))

SOURCE = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.up, self.fc = nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 2), nn.Linear(100, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.fc(self.norm(torch.relu(self.up(self.conv(x)))).flatten(1))

class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.norm = nn.LazyConv2d(4, 3), nn.LazyLinear(3), nn.LazyBatchNorm2d()

def normed():
    net = Net()
    weight_norm(net.fc)
    parametrizations.weight_norm(net.conv)
    return net

def parallel():
    return nn.DataParallel(nn.DataParallel(Net()))

def compiled():
    net = Net()
    net.conv = torch.compile(net.conv, backend="eager")
    return torch.compile(net, backend="eager")

def averaged():
    return torch.optim.swa_utils.AveragedModel(Net())

def scripted():
    return torch.jit.script(Net())
"""


def fresh():
    namespace = {}
    exec(SOURCE, namespace)
    torch.manual_seed(4)
    return namespace["Net"]().eval()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(SOURCE)
    return tmp_path


def load(folder, content, factory="Net"):
    """(logits of X, notes)"""
    torch.save(content, folder / "net.pth")
    found = load_network(read_checkpoint(folder / "net.pth"), f"{folder}/net.py:{factory}", {})
    with torch.no_grad():
        return found.body.eval()(X), found


def pruned(net):
    prune.l1_unstructured(net.conv, "weight", 0.3)
    prune.ln_structured(net.fc, "weight", 0.5, n=2, dim=0)
    prune.random_unstructured(net.fc, "bias", 0.5)


def old_weight_norm(net):
    weight_norm(net.conv)
    weight_norm(net.up, dim=1)
    weight_norm(net.fc, dim=None)


def new_weight_norm(net):
    parametrizations.weight_norm(net.conv)
    parametrizations.weight_norm(net.fc, dim=1)


def old_spectral_norm(net):
    for part in (net.conv, net.up, net.fc):
        spectral_norm(part)


def new_spectral_norm(net):
    for part in (net.conv, net.up, net.fc):
        parametrizations.spectral_norm(part)


def pruned_and_normed(net):
    weight_norm(net.conv)
    prune.l1_unstructured(net.conv, "weight_v", 0.4)
    prune.l1_unstructured(net.fc, "weight", 0.4)


CHANGES = {
    pruned: ["pruning of 3 weights"],
    old_weight_norm: ["weight norm of 3 weights"],
    new_weight_norm: ["weight norm of 2 weights"],
    old_spectral_norm: ["spectral norm of 3 weights"],
    new_spectral_norm: ["spectral norm of 3 weights"],
    pruned_and_normed: ["pruning of 2 weights", "weight norm of 1 weights"],
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("change", CHANGES)
def test_weights_in_parts_are_put_together_as_torch_does(folder, change, prefix):
    net = fresh()
    change(net)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "weight_g" in name or "original0" in name:
                parameter.mul_(1.5)  # a network that was trained so
        net(X)
        wanted = net.eval()(X)
        assert not torch.allclose(wanted, fresh()(X), atol=1e-3)
    found, loaded = load(folder, {prefix + name: item for name, item in net.state_dict().items()})
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    for told in CHANGES[change]:
        assert any(note.startswith(f"{told} was undone") for note in loaded.notes), loaded.notes


def test_an_architecture_with_the_parametrization_loads_as_it_is(folder):
    net = fresh()
    weight_norm(net.fc)
    parametrizations.weight_norm(net.conv)
    found, loaded = load(folder, net.state_dict(), "normed")
    torch.testing.assert_close(found, net.eval()(X), rtol=0, atol=1e-6)
    assert not any("undone" in note for note in loaded.notes)


def orthogonal(net):
    parametrizations.orthogonal(net.fc)


def doubled(net):
    parametrizations.weight_norm(net.fc)
    parametrizations.spectral_norm(net.fc)


def wrong_mask(net):
    prune.l1_unstructured(net.conv, "weight", 0.3)
    net.conv.weight_mask = net.conv.weight_mask[:2]


@pytest.mark.parametrize("change", [orthogonal, doubled, wrong_mask])
def test_parts_that_do_not_determine_the_weight_are_refused(folder, change):
    net = fresh()
    change(net)
    with pytest.raises(CheckpointError, match=r"is a part of a parametrized weight, .* give an --arch that has it"):
        load(folder, net.state_dict())


def test_what_is_left_over_beside_a_pruned_weight_is_refused(folder):
    net = fresh()
    pruned(net)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(first: conv.extra\)"):
        load(folder, {**net.state_dict(), "conv.extra": torch.zeros(2)})


# ---- wrappers and lazy layers ----------------------------------------------------------------------------


def layers_of(folder, factory):
    x, y = X.numpy(), np.array([0, 1, 2, 0])
    np.savez(folder / "d.npz", x_test=x, y_test=y)
    given = settings_from({"arch": f"{folder}/net.py:{factory}", "normalize": "none", "data": f"npz:{folder}/d.npz"})
    return [layer.name for layer in open_network(folder / "net.pth", given, {}).layers]


@pytest.mark.parametrize("factory", ["parallel", "compiled", "averaged", "Lazy"])
def test_wrapped_and_lazy_networks_have_the_layers_of_the_network_inside(folder, factory):
    net = fresh()
    found, loaded = load(folder, net.state_dict(), factory)
    torch.testing.assert_close(found, net(X), rtol=0, atol=1e-6)
    assert layers_of(folder, factory) == ["conv", "up", ":relu", "norm", "fc"]
    assert type(loaded.body.fc) is nn.Linear
    assert (loaded.body.conv.in_channels, loaded.body.fc.in_features, loaded.body.norm.num_features) == (1, 100, 4)


def test_a_lazy_layer_takes_the_size_of_its_weights_and_no_other_type(folder):
    state = fresh().state_dict()
    with pytest.raises(CheckpointError, match=r"1 of another shape or type .* lazy layers"):
        load(folder, {**state, "fc.weight": state["fc.weight"].long()}, "Lazy")
    for name, wrong in (
        ("fc.weight", torch.zeros(4, 100)),
        ("conv.bias", torch.zeros(5)),
        ("conv.weight", torch.zeros(4)),
    ):
        with pytest.raises(
            CheckpointError, match=f"{name[:-7].rstrip('.')}.* cannot have a {name.rpartition('.')[2]} of"
        ):
            load(folder, {**state, name: wrong}, "Lazy")


def test_a_script_runs_and_shows_no_layers(folder):
    net = fresh()
    found, loaded = load(folder, net.state_dict(), "scripted")
    torch.testing.assert_close(found, net(X), rtol=0, atol=1e-6)
    assert not loaded.shows_layers


# ---- several copies --------------------------------------------------------------------------------------


def robustness(state, attacked=None):
    mean, std = torch.full((1, 1, 1), 0.13), torch.full((1, 1, 1), 0.31)
    found = {"module.normalizer.new_mean": mean, "module.normalizer.new_std": std}
    found |= {f"module.model.{name}": item for name, item in state.items()}
    found |= {"module.attacker.normalize.new_mean": mean, "module.attacker.normalize.new_std": std}
    return found | {f"module.attacker.model.{name}": item for name, item in (attacked or state).items()}


def test_a_network_beside_itself_and_its_normalisation_is_found(folder):
    net = fresh()
    copies = {name: item.clone() for name, item in net.state_dict().items()}
    for attacked in (net.state_dict(), copies):
        found, loaded = load(folder, {"model": robustness(net.state_dict(), attacked), "epoch": 3})
        assert torch.equal(found, net(X))
        assert loaded.normalization == "0.13/0.31"
        assert "prefix 'module.model.' removed from the names of the weights" in loaded.notes
    np.savez(folder / "d.npz", x_test=X.numpy(), y_test=np.array([0, 1, 2, 0]))
    given = {"arch": f"{folder}/net.py:Net", "data": f"npz:{folder}/d.npz"}
    (told,) = (
        w.message for w in open_network(folder / "net.pth", settings_from(given), {}).warnings if "norm" in w.code
    )
    assert "use --normalize 0.13/0.31, or --normalize none" in told
    by_name = load_network(read_checkpoint(folder / "net.pth", "module.model"), given["arch"], {}).body.eval()
    assert torch.equal(by_name(X), net(X))


@pytest.mark.parametrize("other", ["another network", "another tensor"])
def test_anything_else_beside_a_network_is_refused_with_the_choice(folder, other):
    state = fresh().state_dict()
    mixed = robustness(state, {name: item + 1 for name, item in state.items()} if other == "another network" else None)
    if other == "another tensor":
        mixed["module.scale"] = torch.ones(1)
    with pytest.raises(
        CheckpointError, match=r"those under 'module\.model\.' alone would fit: --weights module\.model"
    ):
        load(folder, {"model": mixed})


def test_inspect_counts_a_weight_of_two_names_once(folder):
    net = fresh()
    torch.save({"model": robustness(net.state_dict())}, folder / "net.pth")
    facts = gather(str(folder / "net.pth"), False)
    assert facts.weights[0].parameters == sum(p.numel() for p in net.parameters()) + 2


# ---- whole networks --------------------------------------------------------------------------------------


def test_classes_beside_a_trusted_file_are_found_and_a_missing_one_is_told(folder, monkeypatch):
    (folder / "classes_beside.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(folder))
    import classes_beside

    net = classes_beside.Net().eval()
    torch.save(net, folder / "whole.pt")
    monkeypatch.undo()
    del sys.modules["classes_beside"]
    before = list(sys.path)
    found = load_network(read_checkpoint(folder / "whole.pt"), None, {}, trust_code=True)
    assert torch.equal(found.body.eval()(X), net(X))
    assert "classes_beside" not in sys.modules
    assert sys.path == before
    (folder / "classes_beside.py").unlink()
    with pytest.raises(CheckpointError, match=r"No module named 'classes_beside'; .* to PYTHONPATH"):
        load_network(read_checkpoint(folder / "whole.pt"), None, {}, trust_code=True)
