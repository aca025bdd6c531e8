"""Whole networks that were pickled: rebuilt where every class is an installed one, refused or trusted otherwise."""

import functools
import os
import pickle
import sys

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import DualGraphModule

from lsa_cli.errors import CheckpointError
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.models.loading import load_network


def saved(tmp_path, content, **options):
    torch.save(content, tmp_path / "model.pt", **options)
    return tmp_path / "model.pt"


def load(path, arch=None, *, weights=None, trust_code=False):
    return load_network(read_checkpoint(path, weights), arch, {}, trust_code=trust_code)


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def same(network, body, size=32):
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        return torch.equal(network.eval()(x), body.eval()(x))


WRAPPINGS = {
    "bare": lambda module: module,
    "in a dictionary": lambda module: {"epoch": 3, "model": module},
    "in a list": lambda module: [module],
    "DataParallel": nn.DataParallel,
}


@pytest.mark.parametrize("name", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("trust_code", [True, False])
def test_a_network_of_installed_classes_is_rebuilt_wherever_it_stands(tmp_path, name, zipped, trust_code):
    path = saved(tmp_path, WRAPPINGS[name](small()), _use_new_zipfile_serialization=zipped)
    loaded = load(path, trust_code=trust_code)
    assert same(loaded.body, small())
    assert any("nothing of the file was run" in note for note in loaded.notes)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mnasnet0_5", "swin_t", "vit_b_32", "efficientnet_b0"])
def test_networks_of_torchvision_give_the_same_logits(tmp_path, name):
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, num_classes=4)
    assert same(load(saved(tmp_path, network)).body, network, 224)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_networks_of_timm_give_the_same_logits(tmp_path, name):
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, num_classes=4)
    assert same(load(saved(tmp_path, network)).body, network, 224)


class Reached:
    """Pickles as getattr of something."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def test_members_of_enumerations_are_found_by_name_and_nothing_else_is(tmp_path):
    """Some versions of Python pickle a member as getattr(enumeration, name)."""
    layout = pytest.importorskip("timm").layers.Format
    network = small()
    network.mode = Reached(layout, "NCHW")
    assert load(saved(tmp_path, network)).body.mode is layout.NCHW
    for owner, name in ((layout, "mro"), (layout, "__class__"), (nn.Linear, "forward")):
        network.mode = Reached(owner, name)
        with pytest.raises(CheckpointError, match="would import"):
            load(saved(tmp_path, network))


def test_half_weights_in_a_network_become_float32_and_that_is_said(tmp_path):
    loaded = load(saved(tmp_path, small().half()))
    assert loaded.body[0].weight.dtype == torch.float32
    assert torch.equal(loaded.body[0].weight, small()[0].weight.half().float())
    assert "weights stored as float16 were converted to float32" in loaded.notes


def test_weights_of_a_whole_network_go_into_an_architecture_without_running_it(tmp_path):
    network = torchvision.models.resnet18(num_classes=6)
    loaded = load(saved(tmp_path, nn.DataParallel(network)), "torchvision:resnet18")
    assert same(loaded.body, network, 64)
    assert "weights taken from a network that was pickled whole; nothing of it was run" in loaded.notes


@pytest.fixture
def own_class(tmp_path, monkeypatch):
    """A class in an importable module, which says when it is imported."""
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\nprint('imported')\n\n\nclass Net(nn.Sequential):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from own_network import Net

    yield Net
    sys.modules.pop("own_network", None)


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_a_class_of_its_own_is_imported_only_when_trusted(tmp_path, own_class, capsys, wrap):
    path = saved(tmp_path, wrap(own_class(*small())))
    sys.modules.pop("own_network")
    capsys.readouterr()
    assert "own_network.Net" in read_checkpoint(path).globals
    with pytest.raises(CheckpointError, match=r"would import own_network\.Net.*--arch.*--trust-code"):
        load(path)
    assert capsys.readouterr().out == ""
    loaded = load(path, trust_code=True)
    assert capsys.readouterr().out == "imported\n"
    assert same(loaded.body, small())
    assert "the file was unpickled, which runs its code, as trusted" in loaded.notes


def test_of_two_trusted_networks_the_chosen_one_is_loaded(tmp_path, own_class):
    other = own_class(*small())
    nn.init.ones_(other[0].weight)
    path = saved(tmp_path, {"model": own_class(*small()), "model_ema": other})
    assert torch.equal(load(path, weights="model_ema", trust_code=True).body[0].weight, other[0].weight)
    assert torch.equal(load(path, trust_code=True).body[0].weight, small()[0].weight)


def test_the_refusal_names_the_architecture_that_the_weights_fit(tmp_path, own_class):
    network = torchvision.models.resnet18(num_classes=6)
    network.maxpool = own_class(network.maxpool)
    network.maxpool.__class__ = own_class
    with pytest.raises(CheckpointError, match=r"would import own_network\.Net.*they fit torchvision:resnet18"):
        load(saved(tmp_path, nn.Sequential(network)))


def test_hooks_are_code_of_its_own(tmp_path):
    network = small()
    network[0].register_forward_hook(print_shape)
    path = saved(tmp_path, network)
    with pytest.raises(CheckpointError, match=r"would import .*print_shape"):
        load(path)
    assert same(load(path, trust_code=True).body, small())


def print_shape(module, inputs, output):
    return None


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda network, evil: setattr(network, "extra", evil),
        lambda network, evil: setattr(network, "forward", functools.partial(os.system, "echo")),
        lambda network, evil: network[0]._buffers.update(extra=evil),
        lambda network, evil: network.__dict__.update(_modules={"0": evil}),
        lambda network, evil: network.__dict__.update({"_forward_hooks": {1: evil}}),
    ],
)
def test_code_hidden_in_a_network_never_runs_untrusted(tmp_path, spoil):
    network, marker = small(), tmp_path / "ran"
    spoil(network, _Payload(marker))
    with pytest.raises(CheckpointError):
        load(saved(tmp_path, network))
    assert not marker.exists()


class _Made:
    """Pickles as an object of another class with chosen attributes, as an attacker would write it."""

    def __init__(self, function, arguments, state):
        self.parts = (function, arguments, state)

    def __reduce__(self):
        return self.parts


def _empty(**more):
    return {"_parameters": {}, "_buffers": {}, "_modules": {}, "training": False, **more}


@pytest.mark.parametrize(
    "symbol",
    [
        (DualGraphModule, _empty()),
        (torch.jit.ScriptModule, _empty()),
        (torch.hub.load, _empty()),
        (nn.Sequential, _empty(fn=torchvision.models.get_model)),
        (nn.Sequential, _empty(fn=torch.load)),
        (nn.Sequential, _empty(fn=eval)),
    ],
)
def test_only_plain_networks_and_functions_of_networks_are_rebuilt(tmp_path, symbol):
    kind, state = symbol
    path = saved(tmp_path, _Made(kind, (), state))
    with pytest.raises(CheckpointError, match=r"would (import|call)"):
        load(path)


@pytest.mark.parametrize(
    "state",
    [_empty(_parameters=3), _empty(_parameters={"w": "text"}), _empty(_forward_hooks=torch.ones(2))],
)
def test_attributes_that_make_no_sense_end_in_one_sentence(tmp_path, state):
    path = saved(tmp_path, _Made(nn.Flatten, (), state))
    with pytest.raises(CheckpointError, match="damaged, or of a version that is not installed") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_bare_pickle_of_a_network_is_unpickled_only_when_trusted(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(small()))
    with pytest.raises(CheckpointError, match="bare pickle, whose weights are pickles too"):
        load(path)
    assert same(load(path, trust_code=True).body, small())
    with pytest.raises(CheckpointError, match="no weights that could be put into"):
        load(path, "torchvision:resnet18")
