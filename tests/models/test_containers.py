"""Ways in which people keep the weights of one network: each gives the numbers of the network itself, or says what to do."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, prune

from lsa_cli import audit
from lsa_cli.auditing.network import open_network
from lsa_cli.errors import CheckpointError, DataError
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.models.rounding import rounded, roundings_of
from lsa_cli.settings import settings_from


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(256, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))


def plain():
    return Net()


def parallel():
    return nn.DataParallel(Net())


def compiled():
    return torch.compile(Net())


def scripted():
    return torch.jit.script(Net())


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.LazyLinear(3)


class Wide(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4 * 28 * 28, 3)


class SoftmaxFirst(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits.softmax(1), logits


class FeaturesFirst(Net):
    def forward(self, x):
        features = torch.relu(self.bn(self.conv(x))).flatten(1)
        return features, self.fc(features)


class LossFirst(Net):
    def forward(self, x):
        logits = super().forward(x)
        return {"loss": logits.logsumexp(1).mean(), "scored": logits}


class Squeezed(Net):
    def forward(self, x):
        return super().forward(x).squeeze()


@pytest.fixture(scope="module")
def task():
    """A network, images, and its classes as labels."""
    torch.manual_seed(0)
    network = Net().eval()
    x = torch.rand(64, 3, 8, 8)
    with torch.no_grad():
        return network, x, network(x).argmax(1)


def renamed(prefix):
    return lambda net: {prefix + name: item for name, item in net.state_dict().items()}


def madry(net):
    """The layout of MadryLab's robustness: the network twice, and normalisations beside it."""
    stats = {f"module.{part}.new_{what}": torch.full((3, 1, 1), value)
             for part in ("normalizer", "attacker.normalize") for what, value in (("mean", 0.0), ("std", 1.0))}  # fmt: skip
    return {"model": {**renamed("module.model.")(net), **renamed("module.attacker.model.")(net), **stats}, "epoch": 1}


def changed(change):
    def make(net):
        net = copy.deepcopy(net)
        change(net)
        return net.eval().state_dict()

    return make


CONTAINERS = {
    "numpy": lambda net: as_arrays(net),
    "numpy beside an epoch": lambda net: {"state_dict": as_arrays(net), "epoch": 3},
    "LoRA, merged": lambda net: {
        "base_model.model." + k.replace("fc.", "fc.base_layer."): v for k, v in net.state_dict().items()
    },
    "half precision": lambda net: {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()},
    "parameters": lambda net: {**net.state_dict(), **dict(net.named_parameters())},
    "beside an optimizer": lambda net: {"net": net.state_dict(), "opt": torch.optim.Adam(net.parameters()).state_dict()},
    "MadryLab": madry,
    "pruned": changed(lambda net: prune.l1_unstructured(net.fc, "weight", 0.0)),
    "weight_norm": changed(lambda net: parametrizations.weight_norm(net.fc)),
    "wrapped parts": lambda net: {
        k.replace("conv.", "conv._orig_mod.").replace("fc.", "fc.module."): v for k, v in net.state_dict().items()
    },
    "Opacus": lambda net: {k.replace("conv.", "conv._module."): v for k, v in net.state_dict().items()},
    **{
        f"prefix {prefix}": renamed(prefix)
        for prefix in (
            "module.", "_orig_mod.module.", "module._orig_mod.", "_module.", "backbone.", "model.backbone.",
            "module.backbone._orig_mod.", "encoder.",
        )
    },
}  # fmt: skip


def opened(tmp_path, content, task, arch="plain", data=None, say=lambda line: None):
    torch.save(content, tmp_path / "net.pt")
    settings = settings_from({"arch": f"{__file__}:{arch}", "normalize": "none"})
    return open_network(tmp_path / "net.pt", settings, {}, data or task[1:], say)


def probabilities(network, x):
    with torch.no_grad():
        return network.eval()(x).softmax(1)


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_network(tmp_path, task, name):
    network, x, _ = task
    found = opened(tmp_path, CONTAINERS[name](network), task)
    assert torch.allclose(probabilities(found.classifier, x), probabilities(network, x), atol=1e-3)


@pytest.mark.parametrize("function", [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_is_undone(tmp_path, task, function):
    network = copy.deepcopy(task[0])
    function(network.fc)
    network.eval()
    found = opened(tmp_path, network.state_dict(), task)
    assert torch.allclose(probabilities(found.classifier, task[1]), probabilities(network, task[1]), atol=1e-5)


@pytest.mark.parametrize("arch", ["parallel", "compiled", "scripted", "Lazy", "Squeezed"])
def test_every_factory_gives_the_network(tmp_path, task, arch):
    network, x, _ = task
    found = opened(tmp_path, network.state_dict(), task, arch)
    assert torch.allclose(probabilities(found.classifier, x), probabilities(network, x), atol=1e-5)
    assert torch.allclose(probabilities(found.classifier, x[:1]), probabilities(network, x[:1]), atol=1e-5)


@pytest.mark.parametrize(("arch", "place"), [("SoftmaxFirst", "1"), ("FeaturesFirst", "1"), ("LossFirst", "scored")])
def test_the_output_that_is_taken_is_told_at_once(tmp_path, task, arch, place):
    network, x, _ = task
    lines = []
    found = opened(tmp_path, network.state_dict(), task, arch, say=lines.append)
    assert torch.allclose(probabilities(found.classifier, x), probabilities(network, x), atol=1e-5)
    assert any(f"output {place} is taken as the logits, right on 64 of 64" in line for line in lines)


def as_arrays(net):
    return {name: item.numpy() for name, item in net.state_dict().items()}


def dump(protocol):
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize(
    "write", [dump(2), dump(4), dump(5), lambda content, path: np.savez(path.open("wb"), **content)]
)
def test_arrays_of_numpy_outside_of_torch_give_the_network(tmp_path, task, write):
    network, x, y = task
    content = {name: np.asfortranarray(item) for name, item in as_arrays(network).items()}
    write(content, tmp_path / "net")
    settings = settings_from({"arch": f"{__file__}:plain", "normalize": "none"})
    found = open_network(tmp_path / "net", settings, {}, (x, y))
    assert torch.equal(probabilities(found.classifier, x), probabilities(network, x))


def test_arrays_that_are_cut_short_or_beside_tensors_are_no_weights(tmp_path, task):
    network, *_ = task
    content = {"mine": network.state_dict(), "log": {"loss": np.ones(3), "accuracy": np.ones(3)}}
    assert len(opened(tmp_path, content, task).checkpoint.weights.tensors) == len(network.state_dict())
    whole = pickle.dumps(as_arrays(network), 4)
    assert whole.count(b"K\x03\x85") == 1  # the shape (3,) of the last bias
    (tmp_path / "cut.pkl").write_bytes(whole.replace(b"K\x03\x85", b"K\x04\x85"))
    with pytest.raises(CheckpointError, match=r"an array of shape \(\d+,\) in \d+ bytes; damaged or hostile"):
        read_checkpoint(tmp_path / "cut.pkl")


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.filterwarnings("ignore")
def test_sparse_tensors_give_the_network(tmp_path, task, layout):
    network, x, _ = task
    weights = network.state_dict()
    weights["fc.weight"] = weights["fc.weight"].to_sparse(layout=layout)
    found = opened(tmp_path, weights, task)
    assert torch.equal(probabilities(found.classifier, x), probabilities(network, x))
    assert "1 sparse tensors were made dense, which changes no number" in found.notes


@pytest.mark.filterwarnings("ignore")
def test_a_sparse_tensor_whose_indices_leave_its_shape_is_refused(tmp_path, task):
    weights = task[0].state_dict()
    outside = torch.sparse_coo_tensor(torch.tensor([[9], [0]]), torch.ones(1), (10, 256)).detach()
    torch.save({**weights, "fc.weight": outside}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "m.pt").read_bytes()
    assert whole.count((9).to_bytes(8, "little")) == 1
    (tmp_path / "m.pt").write_bytes(whole.replace((9).to_bytes(8, "little"), (90).to_bytes(8, "little")))
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(checkpoint.weights.tensors["fc.weight"])


def test_factors_of_lora_say_how_to_make_plain_weights(tmp_path, task):
    inner = {name.replace("fc.", "fc.base_layer."): item for name, item in task[0].state_dict().items()}
    factors = {"fc.lora_A.default.weight": torch.ones(1, 2), "fc.lora_B.default.weight": torch.ones(2, 1)}
    with pytest.raises(CheckpointError, match=r"factors of LoRA beside the weights; save .*merge_and_unload"):
        opened(tmp_path, {**inner, **factors}, task)


class ToQuantise(nn.Module):
    """The network as torch's tutorial of static quantisation writes it."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Linear(256, 3)

    def forward(self, x):
        return self.dequant(self.fc(self.act(self.conv(self.quant(x))).flatten(1)))


class Float(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def statically(network, x):
    network.qconfig = quantization.get_default_qconfig("fbgemm")
    quantization.fuse_modules(network, [["conv", "act"]], inplace=True)
    quantization.prepare(network, inplace=True)(x)
    return quantization.convert(network)


def dynamically(network, x):
    return quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("quantise", [statically, dynamically])
@pytest.mark.filterwarnings("ignore")
def test_a_quantised_file_gives_its_weights_as_floats_and_its_roundings(tmp_path, task, quantise, monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")
    torch.manual_seed(0)
    _, x, y = task
    network = quantise(ToQuantise().eval(), x)
    found = opened(tmp_path, network.state_dict(), task, "Float")
    weight, bias = network.fc._weight_bias()
    assert torch.equal(found.classifier.body.fc.weight, weight.dequantize())
    assert torch.equal(found.classifier.body.fc.bias, bias)
    assert any("not the quantised one" in note for note in found.notes)
    with torch.no_grad(), rounded(found.classifier.body, roundings_of(found.checkpoint)) as places:
        difference = found.classifier(x) - network(x)
    assert places == (3 if quantise is statically else 1)
    step = float(network.fc.scale) if quantise is statically else 1e-5
    assert float(difference.abs().max()) < 1.01 * step
    report = audit(
        found.checkpoint.path,
        data=(x, y),
        arch=f"{__file__}:Float",
        normalize="none",
        eps=0.1,
        attack="fgsm",
        noise="none",
        layers="none",
    )
    (finding,) = [one for one in report.evidence.findings if one.code == "weights-dequantised"]
    assert "these are not the numbers of the quantised network" in finding.message
    odd = {**network.state_dict(), "fc.scale": torch.tensor(math.nan), "fc.zero_point": torch.tensor(math.nan)}
    assert "fc" not in roundings_of(opened(tmp_path, odd, task, "Float").checkpoint)


def test_images_of_another_size_say_the_option_that_resizes(tmp_path, task):
    torch.manual_seed(0)
    with pytest.raises(DataError, match=r"does take 3x28x28.*add --input-size 28$"):
        opened(tmp_path, Wide().state_dict(), task, "Wide", (torch.rand(6, 3, 14, 14), torch.arange(6) % 3))
