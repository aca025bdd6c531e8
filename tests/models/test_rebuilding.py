"""Chains put together again from their weights, and the geometries that are consistent with them."""

import importlib.util
import itertools
import json
import math
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.auditing.network import open_network
from lsa_cli.errors import LsaError, UsageError
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.checkpoint import Description, write_checkpoint
from lsa_cli.models.rebuilding.chain import build, source_of
from lsa_cli.models.rebuilding.geometry import dilated, geometries
from lsa_cli.models.rebuilding.grouping import Structure
from lsa_cli.models.rebuilding.layers import read_chain
from lsa_cli.models.rebuilding.search import exceptions_of
from lsa_cli.models.rebuilding.variants import Variant, parts_of
from lsa_cli.settings import settings_from
from tests.cli.conftest import lsa  # noqa: F401
from tests.fitting import fitted
from tests.foreign_networks import Burn, LeNet5, PickledCNN, ScriptedCNN, lightning, small_cnn

FOREIGN = [small_cnn, LeNet5, Burn, PickledCNN, ScriptedCNN, lightning]


def chain(network, channels=1, names=sorted):
    state = network.state_dict()
    return read_chain({name: tuple(state[name].shape) for name in names(state)}, channels)


def plain(layers, geometry, order=("norm", "act", "pool")):
    return Variant(Structure(tuple(layers), 0.0), geometry, "ReLU", "max", order, "", "none")


@pytest.mark.parametrize("make", FOREIGN)
@pytest.mark.parametrize("names", [list, sorted])
def test_a_chain_is_read_in_any_order_of_its_names(make, names):
    network = make()
    layers = chain(network, names=names)
    assert sum(math.prod(p.shape) for p in network.parameters()) == sum(
        layer.outer * (layer.inner * math.prod(layer.kernel or (1,)) + layer.bias)
        + (2 * layer.norm.width if layer.norm is not None else 0)
        for layer in layers
    )
    assert all(one.outer == other.inner for one, other in itertools.pairwise(layers) if other.kernel)


@pytest.mark.parametrize("make", FOREIGN)
def test_every_geometry_runs_and_fits_the_weights_the_most_usual_first(make):
    network = make().eval()
    layers = chain(network)
    found = list(itertools.islice(geometries(layers, (28, 28)), 40))
    costs = [geometry.cost for geometry in found]
    assert costs == sorted(costs)
    assert len(set(found)) == len(found)
    for geometry in found[:10]:
        made = build(parts_of(plain(layers, geometry)))
        made.load_state_dict(network.state_dict())
        assert made.eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("make", FOREIGN)
def test_the_true_network_is_among_the_first(make):
    network, x = make().eval(), torch.rand(4, 1, 28, 28)
    layers, found = chain(network), []
    for geometry in itertools.islice(geometries(layers, (28, 28)), 30):
        for order in (("norm", "act", "pool"), ("act", "norm", "pool")):
            made = build(parts_of(plain(layers, geometry, order)))
            made.load_state_dict(network.state_dict())
            found.append(made.eval()(x).log_softmax(1))
    assert any(torch.allclose(one, network(x).log_softmax(1), atol=1e-5) for one in found)


@pytest.mark.parametrize(("between", "gaps"), [(True, [1, 2]), (False, [None, None])])
def test_only_numbers_that_are_left_out_tell_of_modules_without_weights(between, gaps):
    layers = [nn.Linear(64, 32), nn.Linear(32, 16), nn.Linear(16, 10)]
    if between:
        layers = [layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Dropout(), layers[2]]
    holder = nn.ModuleDict({"layers": nn.ModuleList(layers)})  # a Sequential has the same names
    assert [layer.gap for layer in chain(holder)[:-1]] == gaps


def test_exceptions_change_the_activations_of_their_layers():
    layers = chain(ScriptedCNN())
    one = replace(plain(layers, next(geometries(layers, (28, 28)))), activation="tanh")
    counts = {}
    for name in exceptions_of(one):
        kinds = [part.kind for part in parts_of(replace(one, exception=name))]
        counts[name] = (kinds.count("Tanh"), kinds.count("ReLU"))
    hidden, linear = len(layers) - 1, sum(layer.is_linear for layer in layers) - 1
    assert counts == {
        "": (hidden, 0),
        "an activation behind the last layer": (hidden + 1, 0),
        "no activation behind linear layers": (hidden - linear, 0),
        "ReLU behind linear layers": (hidden - linear, linear),
        "no activation behind the last hidden layer": (hidden - 1, 0),
        "no activation behind the last convolution": (hidden - 1, 0),
    }


def test_a_chain_of_strides_is_usual():
    layers = chain(nn.Sequential(*(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise((1, 8, 16, 32, 64, 10)))))
    first = list(itertools.islice(geometries(layers, (28, 28)), 30))
    assert any([step.stride for step in one.steps] == [2] * 5 for one in first)


def test_pools_of_3_that_are_all_alike_are_usual():
    layers = chain(
        nn.Sequential(*(nn.Conv2d(a, b, 3) for a, b in itertools.pairwise((1, 8, 16, 24))), nn.Linear(384, 10))
    )
    every = list(itertools.islice(geometries(layers, (28, 28)), 200))
    kinds = [{step.pool for step in one.steps} for one in every]
    assert {(3, 2, 1)} in kinds[:20]
    assert kinds.index({(3, 2, 1)}) < next(place for place, one in enumerate(kinds) if one >= {(2, 2, 0), (3, 2, 1)})


def test_a_dilation_keeps_the_sizes_and_is_built():
    network, x = dilating().eval(), torch.rand(4, 1, 8, 8)
    layers = chain(network)
    start = next(iter(geometries(layers, (8, 8))))
    one, other = dilated(layers, start)
    assert [[step.dilation for step in each.steps] for each in (one, other)] == [[2, 1], [1, 2]]
    assert dilated(layers, one)[0] == start
    made = build(parts_of(plain(layers, one))).eval()
    made.load_state_dict(network.state_dict())
    assert torch.equal(made(x), network(x))
    assert "dilation 2, 1" in str(plain(layers, one))


def test_a_kernel_of_4_has_a_stride_beside_kernels_of_3_without_one():
    pairs = [(1, 8, 3), (8, 8, 4), (8, 16, 3), (16, 16, 4)]  # as in locuslab/convex_adversarial
    convolutions = [nn.Conv2d(a, b, kernel) for a, b, kernel in pairs]
    layers = chain(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16 * 49, 10)))
    assert [step.stride for step in next(geometries(layers, (28, 28))).steps] == [1, 2, 1, 2]


def test_a_convolution_with_an_activation_can_be_the_last_layer():
    layers = chain(nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 10, 3, 2, 1)))
    one = plain(layers, next(geometries(layers, (28, 28))))
    kinds = [part.kind for part in parts_of(replace(one, exception="an activation behind the last layer"))]
    assert "an activation behind the last layer" in exceptions_of(one)
    assert kinds[-4:] == ["Conv2d", "ReLU", "AdaptiveAvgPool2d", "Flatten"]


def test_what_is_no_chain_is_not_read():
    assert chain(nn.Sequential(nn.Conv1d(1, 8, 3), nn.Linear(8, 10))) is None
    assert chain(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10)), 1) is None


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)


class Tanh(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = nn.functional.avg_pool2d(torch.tanh(conv(x)), 2)
        return self.fc2(torch.tanh(self.fc1(x.flatten(1))))


def strided():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ELU(), nn.Linear(48, 32), nn.ELU(), nn.Linear(32, 10))


def averaged():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def dilating():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=2, dilation=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


def single():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize("make", [Tanh, strided, perceptron, averaged, dilating, single])
def test_a_trained_network_is_never_taken_for_one_that_answers_otherwise(make, digits, tmp_path):
    torch.manual_seed(0)
    x, y = digits
    network = fitted(make(), x, y, 120)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    lines = []
    try:
        opened = open_network(tmp_path / "net.pt", settings_from({}), {}, (x, y), lines.append)
    except UsageError as refusal:
        assert "several networks are as good" in str(refusal)  # noqa: PT017 - either is right
        return
    with torch.no_grad():
        answers, truth = opened.classifier.eval()(x).argmax(1), network(x).argmax(1)
    assert float((answers == truth).float().mean()) >= 0.99
    assert lines[0].startswith("network reconstructed from the weights: ")
    assert lines[0] in opened.notes


def test_a_perceptron_for_vectors_is_put_together(tmp_path):
    """Two half moons in [0, 1], on which ReLU gives corners that no other activation has."""
    rng = np.random.default_rng(0)
    angle, y = rng.uniform(0, math.pi, 1200), rng.integers(0, 2, 1200)
    moons = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 - 2 * y[:, None]) + y[:, None] * [1.0, 0.5]
    x = torch.tensor((moons + rng.normal(0, 0.1, moons.shape) + 2) / 5, dtype=torch.float32).clamp(0, 1)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    network = fitted(body, x, torch.tensor(y), 300)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    opened = open_network(tmp_path / "net.pt", settings_from({}), {}, (x, y))
    assert opened.input_shape == (2,)
    with torch.no_grad():
        assert torch.allclose(opened.classifier.eval()(x).softmax(1), network(x).softmax(1), atol=1e-5)
    with pytest.raises(UsageError, match="its first layer takes 2 numbers, and an input has 4"):
        open_network(tmp_path / "net.pt", settings_from({}), {}, (torch.cat([x, x], 1), y))


def test_of_networks_with_equal_answers_the_most_usual_one_is_taken(digits, tmp_path):
    """Without hidden layers all activations are equal."""
    torch.manual_seed(0)
    torch.save(fitted(single(), *digits, 120).state_dict(), tmp_path / "net.pt")
    lines = []
    open_network(tmp_path / "net.pt", settings_from({}), {}, digits, lines.append)
    assert lines[0].startswith("network reconstructed from the weights: ReLU, ")


def test_a_reconstructed_network_is_doubted_until_something_confirms_it(digits, tmp_path):
    torch.manual_seed(0)
    x, y = digits
    network = fitted(single(), x, y, 120).eval()
    right = float((network(x).argmax(1) == y).float().mean())
    files = {
        "weights alone": network.state_dict(),
        "with an accuracy": {"state_dict": network.state_dict(), "test_acc": 100 * right},
    }
    doubted = {}
    for name, content in files.items():
        torch.save(content, tmp_path / "net.pt")
        report = audit(tmp_path / "net.pt", data=digits, attack="fgsm", noise="none", layers="none", eps=0.1, limit=100)
        assert report.subject.architecture == "reconstructed from the weights"
        doubted[name] = "network-reconstructed" in [finding.code for finding in report.evidence.findings]
    assert doubted == {"weights alone": True, "with an accuracy": False}


def test_a_file_can_hold_a_reconstruction_as_plain_values(digits, tmp_path):
    torch.manual_seed(0)
    x, y = digits
    torch.save(fitted(strided(), x, y, 60).state_dict(), tmp_path / "net.pt")
    found = open_network(tmp_path / "net.pt", settings_from({}), {}, (x, y))
    arch, arguments = found.described
    description = Description(architecture=arch, arch_args=json.loads(json.dumps(arguments)), mean=[0.0], std=[1.0])
    write_checkpoint(tmp_path / "own.pt", found.classifier.body, description)
    again = open_network(tmp_path / "own.pt", settings_from({}), {}, (x, y))
    assert again.arch == "lsa:chain"
    with torch.no_grad():
        assert torch.equal(again.classifier.body.eval()(x), found.classifier.body.eval()(x))
    for wrong in (
        [{**arguments["parts"][0], "kind": "ModuleList"}],
        [{**arguments["parts"][0], "arguments": [10**9]}],
        "x",
    ):
        with pytest.raises(UsageError, match="--arch: lsa:chain failed"):
            build_architecture(arch, {"parts": wrong})


def test_weights_that_are_not_trained_are_refused(digits, tmp_path):
    torch.save(perceptron().state_dict(), tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"fit no network .* too few to be the one that was trained"):
        open_network(tmp_path / "net.pt", settings_from({}), {}, digits)


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        ({"1.weight": math.nan}, "1 tensor holds NaN or infinity (first: 1.weight)"),
        ({"1.weight": math.inf, "3.bias": math.nan}, "2 tensors hold NaN or infinity (first: 1.weight)"),
        # The weights are finite, and all variants overflow.
        ({"5.weight": 3e38, "5.bias": 3e38}, "every network that these weights fit answers these images with NaN or infinity"),
    ],
)  # fmt: skip
def test_weights_that_give_no_finite_answer_are_refused(digits, tmp_path, spoilt, says):
    state = perceptron().state_dict()
    for name, value in spoilt.items():
        state[name].fill_(value)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(LsaError, match=re.escape(says)):
        open_network(tmp_path / "net.pt", settings_from({}), {}, digits)


def test_the_next_command_has_the_data_as_they_were_given(digits, lsa, tmp_path):  # noqa: F811
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    torch.save(network.state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "digits.npz", images=(digits[0][:200, 0] * 255).byte().numpy(), labels=digits[1][:200].numpy())
    spec = f"npz:{tmp_path / 'digits.npz'}?mode=rgb"
    result = lsa("audit", tmp_path / "net.pt", "--data", spec)
    assert "too few to be the one that was trained" in result.err
    assert f"--data {shlex.quote(spec)} --write-arch net.py" in result.err


def test_images_that_the_first_layer_does_not_take_are_named(digits, lsa, tmp_path):  # noqa: F811
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(100, 10)).state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "digits.npz", images=(digits[0][:, 0] * 255).byte().numpy(), labels=digits[1].numpy())
    result = lsa("audit", tmp_path / "net.pt", "--data", f"npz:{tmp_path / 'digits.npz'}")
    assert "its first layer takes 100 numbers, and an image has 64 (1 x 8 x 8)" in result.err
    assert "--input-size 10" in result.err
    assert result.code == 2
    torch.save({name: torch.load(tmp_path / "net.pt") for name in ("model", "model_ema")}, tmp_path / "two.pt")
    spec = f"npz:{tmp_path / 'digits.npz'}"
    chosen = lsa("audit", tmp_path / "two.pt", "--weights", "model_ema", "--data", spec)
    assert f"lsa audit {tmp_path / 'two.pt'} --weights model_ema --data {spec} --input-size 10" in chosen.err


def test_the_written_file_builds_the_network(tmp_path):
    network = ScriptedCNN().eval()
    layers = chain(network)
    parts = parts_of(plain(layers, next(geometries(layers, (28, 28)))))
    (tmp_path / "net.py").write_text(source_of(parts, "A network."))
    spec = importlib.util.spec_from_file_location("written", tmp_path / "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made, same = module.build().eval(), build(parts).eval()
    for one in (made, same):
        one.load_state_dict(network.state_dict())
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(made(x), same(x))


def test_inspect_writes_a_network_that_an_audit_takes(lsa, digits, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    x, y = digits
    torch.save(fitted(perceptron(), x, y, 60).state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "digits.npz", x_test=x.numpy(), y_test=y.numpy())
    data = ["--data", f"npz:{tmp_path}/digits.npz"]
    seen = lsa("inspect", tmp_path / "net.pt", *data)
    assert seen.code == 0, seen.err
    assert "Linear(in_features=64, out_features=48, bias=True)" in seen.out
    assert f"Next command  {shlex.join(map(str, ['lsa', 'audit', tmp_path / 'net.pt', *data]))}" in seen.out
    network = json.loads(lsa("inspect", tmp_path / "net.pt", *data, "--json").out)["network"]
    assert [layer["shape"] for layer in network["layers"]] == [[64], [48], [48], [32], [32], [10]]
    written = lsa("inspect", tmp_path / "net.pt", *data, "--write-arch", tmp_path / "net.py", "--threads", 1)
    assert written.code == 0, written.err
    words = shlex.split(written.out)
    assert words[:3] == ["lsa", "audit", str(tmp_path / "net.pt")]
    audited = lsa(*words[1:], "--attack", "none", "--noise", "none", "-n", "200", "--eps", "0.1", "--json", "-")
    assert audited.code == 0, audited.err
    assert json.loads(audited.out)["verdict"]["clean"]["value"] > 0.9
    again = lsa("inspect", tmp_path / "net.pt", *data, "--write-arch", tmp_path / "net.py")
    assert again.code == 2
    assert "there is a file already" in again.err


def test_the_command_for_a_written_network_leaves_out_the_normalisation_that_the_file_states(lsa, digits, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    x, y = digits
    about = Description(architecture="", mean=None, std=None, input_shape=list(x.shape[1:]), data_name=None)
    write_checkpoint(tmp_path / "hard.pt", fitted(perceptron(), x, y, 60), about)
    np.savez(tmp_path / "digits.npz", x_test=x.numpy(), y_test=y.numpy())
    data = ["--data", f"npz:{tmp_path}/digits.npz"]
    written = lsa("inspect", tmp_path / "hard.pt", *data, "--write-arch", tmp_path / "net.py", "--threads", 1)
    assert written.code == 0, written.err
    audited = lsa(
        *shlex.split(written.out)[1:], "--attack", "none", "--noise", "none", "-n", "50", "--eps", "0.1", "--json", "-"
    )
    assert audited.code == 0, audited.err
