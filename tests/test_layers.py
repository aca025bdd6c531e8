import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lsa_cli.errors import LayerError
from lsa_cli.layers import find_layers, plain_name, select_layers, tap
from lsa_cli.models.surgery import operate


def layers_of(network, *shape):
    x = torch.rand(3, *shape)
    return find_layers(network.eval(), lambda: network(x), 3)


def names(layers):
    return [layer.name for layer in layers]


class Mixed(nn.Module):
    """One ReLU module used twice, three functional spellings, an in-place one, a block of its own."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.block = Inner()
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        x = F.relu(x - 0.1)
        x = torch.relu(x - 0.1).relu_()
        x = self.block(x)
        return self.head(x.mean((2, 3)))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return F.gelu(self.conv(x))


def test_every_call_is_seen_once_and_numbered():
    found = select_layers(layers_of(Mixed(), 1, 6, 6), ["activations"])
    assert names(found) == ["relu", "relu#2", ":relu", ":relu#2", ":relu#3", "block:gelu"]


def test_a_module_does_not_show_its_own_function_again():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert names(layers_of(network, 3)) == ["0", "1", "2"]


def test_what_is_seen_is_what_the_layer_gave_before_an_in_place_operation():
    network, x = Mixed().eval(), torch.randn(2, 1, 6, 6)
    seen = {}

    def keep(name, output):
        seen[name] = output.clone()

    with torch.no_grad(), tap(network, ["conv1", "relu"], keep):
        network(x)
    torch.testing.assert_close(seen["conv1"], network.conv1(x))
    assert float(seen["conv1"].min()) < 0
    torch.testing.assert_close(seen["relu"], network.conv1(x).clamp_min(0))


def test_a_returned_tensor_replaces_the_output_of_modules_and_functions():
    torch.manual_seed(4)  # weights that leave every activation something to replace
    network, x = Mixed().eval(), torch.rand(2, 1, 6, 6)
    for name in ("relu#2", "block:gelu", "block"):
        with torch.no_grad(), tap(network, [name], lambda _, output: torch.zeros_like(output)):
            changed = network(x)
        assert not torch.allclose(changed, network(x))
    torch.testing.assert_close(changed, network.head.bias.expand(2, 5))


def hooks(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_no_hook_stays_even_after_an_error():
    network, x = Mixed(), torch.rand(2, 1, 6, 6)
    with tap(network, None, lambda name, output: None):
        network(x)
        assert hooks(network) > 0
    assert hooks(network) == 0

    def fail(name, output):
        raise ValueError("visitor")

    with pytest.raises(ValueError, match="visitor"), tap(network, None, fail):
        network(x)
    assert hooks(network) == 0
    torch.relu(x)  # no functional mode is left behind


def test_numbers_start_again_with_every_forward_pass():
    network, x = Mixed(), torch.rand(2, 1, 6, 6)
    seen = []
    with tap(network, ["relu#2"], lambda name, output: seen.append(name)):
        network(x)
        network(x)
    assert seen == ["relu#2", "relu#2"]


CASES = {
    # network: (image size, activations, blocks, hidden layers with weights), counted in the papers' tables
    "resnet18": (64, 17, 8, 20),
    "vgg19": (32, 18, None, 18),
    "vgg11": (32, 10, None, 10),
    "vgg11_bn": (32, 10, None, 10),
    "densenet121": (32, 121, None, 120),
    "mobilenet_v2": (32, 35, None, 52),
}


@pytest.mark.parametrize("name", CASES)
def test_counts_on_known_networks(name):
    size, activations, blocks, weights = CASES[name]
    layers = layers_of(torchvision.models.get_model(name, weights=None, num_classes=7), 3, size, size)
    assert len(select_layers(layers, ["activations"])) == activations
    assert len(select_layers(layers, ["learnable"])) == weights
    if blocks is not None:
        assert len(select_layers(layers, ["blocks"])) == blocks
    assert all(not layer.is_output for layer in select_layers(layers, ["activations", "learnable"]))
    assert sum(layer.is_output for layer in layers) >= 1


def test_transformer_blocks():
    network = torchvision.models.vision_transformer.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=4)
    layers = layers_of(network, 3, 32, 32)
    assert names(select_layers(layers, ["blocks"])) == [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    assert [layer.kind for layer in select_layers(layers, ["activations"])] == ["GELU"] * 3


def test_the_output_layer_is_told_from_hidden_ones_of_the_same_width():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.LogSoftmax(1))
    assert [layer.is_output for layer in layers_of(network, 3)] == [False, False, True, True]


def test_names_globs_and_selectors_come_in_the_order_of_execution():
    layers = layers_of(Mixed(), 1, 6, 6)
    assert names(select_layers(layers, ["block", "conv*"])) == ["conv1", "conv2", "block"]
    assert names(select_layers(layers, ["head"])) == ["head"]  # the output layer, since it is named
    assert "head" not in names(select_layers(layers, ["*"]))


def test_an_unknown_layer_and_an_empty_selection_say_what_there_is():
    layers = layers_of(Mixed(), 1, 6, 6)
    with pytest.raises(LayerError, match="did you mean 'block'"):
        select_layers(layers, ["blokc"])
    plain = layers_of(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), 3)
    with pytest.raises(LayerError, match="no hidden activations; it has 1 learnable, and its hidden layers are 0"):
        select_layers(plain, ["activations"])


def test_outputs_that_are_tuples_or_dicts_are_seen():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.head = Pair(), nn.Linear(4, 2)

        def forward(self, x):
            return {"logits": self.head(self.pair(x)[0])}

    class Pair(nn.Module):
        def forward(self, x):
            return x @ torch.ones(3, 4), "text"

    layers = layers_of(Odd(), 3)
    assert [(layer.name, layer.shape, layer.is_output) for layer in layers] == [
        ("pair", (4,), False),
        ("head", (2,), True),
    ]


def test_vit_b_16_has_12_blocks_12_gelus_and_37_hidden_layers_with_weights():
    """Patches, then attention and two linear layers a block; 32 pixels keep it quick and change no layer."""
    network = torchvision.models.vit_b_16(weights=None, image_size=32, num_classes=5)
    layers = layers_of(network, 3, 32, 32)
    assert [layer.kind for layer in select_layers(layers, ["activations"])] == ["GELU"] * 12
    assert len(select_layers(layers, ["blocks"])) == 12
    learnable = select_layers(layers, ["learnable"])
    assert len(learnable) == 1 + 12 * 3
    assert [layer.kind for layer in learnable[1:4]] == ["MultiheadAttention", "Linear", "Linear"]


@pytest.mark.parametrize(
    "last",
    [nn.Flatten(0), nn.Unflatten(1, (1, 1)), nn.Identity()],
    ids=["squeezed to (N,)", "(N, 1, 1)", "(N, 1)"],
)
def test_the_output_layer_is_told_whatever_sizes_of_one_the_network_adds(last):
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1), last)
    assert names(select_layers(layers_of(network, 4), ["learnable"])) == ["0"]


def test_every_spelling_of_relu_is_one_layer():
    class Spelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = F.relu(x) + 1
            x = F.relu(x, inplace=True) + 1
            x = torch.relu(x) + 1
            x = x.relu() + 1
            x = x.relu_() + 1
            return self.head(torch.relu_(x))

    found = select_layers(layers_of(Spelled(), 4), ["activations"])
    assert names(found) == [":relu", *(f":relu#{n}" for n in range(2, 7))]


def test_the_output_of_a_layer_that_is_no_plain_tensor_cannot_be_replaced():
    class Pair(nn.Module):
        def forward(self, x):
            return x, "text"

    network = nn.Sequential(Pair())
    with pytest.raises(LayerError, match="not a single tensor"), tap(network, ["0"], lambda _, output: output * 0):
        network(torch.rand(2, 3))


def test_a_network_that_failed_once_is_tapped_rightly_the_next_time():
    network, seen = Mixed().eval(), []
    with torch.no_grad(), tap(network, None, lambda name, output: seen.append(name)):
        with pytest.raises(RuntimeError):
            network(torch.rand(2, 3, 6, 6))  # three channels where one is expected
        seen.clear()
        network(torch.rand(2, 1, 6, 6))
    assert [name for name in seen if "relu" in name] == ["relu", "relu#2", ":relu", ":relu#2", ":relu#3"]
    assert "block:gelu" in seen


def test_a_networks_own_hooks_and_global_behaviour_survive_a_tap():
    network, fired = Mixed().eval(), []
    network.conv1.register_forward_hook(lambda *_: fired.append(1))
    with tap(network, None, lambda name, output: None):
        network(torch.rand(2, 1, 6, 6))
    assert fired == [1]
    assert hooks(network) == 1


# ---- wrapped networks ----------------------------------------------------------------------------------

NOISE = {"kind": "noise", "sites": {":relu": [4, 6, 6], "block:gelu": [4, 6, 6]}}
TWICE = {"kind": "self-gradient", "sites": {"relu": [4, 6, 6], ":relu#2": [4, 6, 6]}}


@pytest.mark.parametrize("surgeries", [[NOISE], [TWICE], [TWICE, NOISE], [NOISE, TWICE], [TWICE, TWICE]])
def test_a_wrapped_network_keeps_the_names_of_its_layers(surgeries):
    """Those of the first pass; a second pass is the second call. What the wrapper runs itself comes beside them."""
    alone = layers_of(Mixed(), 1, 6, 6)
    found = layers_of(operate(Mixed(), surgeries), 1, 6, 6)
    assert names(found)[: len(alone)] == names(alone)
    first = [(layer.kind, layer.shape, layer.is_activation, layer.is_block) for layer in found[: len(alone)]]
    assert first == [(layer.kind, layer.shape, layer.is_activation, layer.is_block) for layer in alone]
    assert len(set(names(found))) == len(found)
    added = {name.partition("#")[0] for name in names(found)} - {name.partition("#")[0] for name in names(alone)}
    assert added == {f"{'outer_' * n}maps.{i}" for n in range(surgeries.count(TWICE)) for i in range(2)}
    assert [layer.name.partition("#")[0] for layer in found if layer.is_output] == ["head"]


def test_the_tap_meets_a_layer_of_a_wrapped_network_by_its_name():
    network, x, seen = operate(Mixed().eval(), [NOISE, TWICE]), torch.rand(2, 1, 6, 6), []
    with tap(network, ["conv2", "block:gelu#2", "maps.1"], lambda name, output: seen.append(name)):
        network(x)
    assert seen == ["conv2", "maps.1", "block:gelu#2"]


class Namesake(nn.Module):
    """A network that is laid out as a wrapper is, and is none."""

    def __init__(self):
        super().__init__()
        self.network, self.maps = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.ModuleList([nn.Linear(4, 2)])

    def forward(self, x):
        return self.maps[0](self.network(x))


def test_names_of_a_wrapper_give_way_to_those_inside():
    wrapped = operate(Namesake(), [{"kind": "self-gradient", "sites": {"network.1": [4]}}])
    paths = [name for name, _ in wrapped.named_parameters()]
    assert [plain_name(wrapped, path) for path in paths] == [
        *(name for name, _ in Namesake().named_parameters()), "outer_maps.0.weight",
    ]  # fmt: skip
    assert names(layers_of(wrapped, 3)) == [
        "network.0", "network.1", "network", "maps.0", "network.0#2", "network.1#2", "outer_maps.0", "network#2", "maps.0#2",
    ]  # fmt: skip
