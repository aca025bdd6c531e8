"""What has no bound is refused by its name, and what is no function of each sample is refused too."""

import ctypes
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.attacks.threat import Linf
from lsa_cli.models.classifier import Classifier
from lsa_cli.proofs import NotProvable, Prover, module_that_runs
from tests.foreign_networks import LeNet5, ResNet20, ScriptedCNN


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(16, 3)
        self.norm, self.lstm = nn.BatchNorm1d(16, track_running_stats=False), nn.LSTM(4, 4, batch_first=True)
        self.attention, self.weights = nn.MultiheadAttention(4, 1, batch_first=True), torch.ones(1, 16)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(self.function(self, x.flatten(1)))


def attend(net, z):
    z = z.reshape(-1, 4, 4)
    return net.attention(z, z, z, need_weights=False)[0].flatten(1)


REFUSED = {
    "sigmoid": (lambda net, z: z.sigmoid(), "'sigmoid' has no bound"),
    "gelu": (lambda net, z: F.gelu(z), "'gelu' has no bound"),
    "elu": (lambda net, z: F.elu(z), "'elu' has no bound"),
    "transposed": (
        lambda net, z: F.conv_transpose2d(z.reshape(-1, 1, 4, 4), net.weights[:, :4].reshape(1, 1, 2, 2)).flatten(1)[
            :, :16
        ],
        "'convolution' is transposed",
    ),
    "softmax": (lambda net, z: z.softmax(1), "'softmax' has a bound only at the end of the network"),
    "log-of-softmax": (lambda net, z: z.softmax(1).log(), "'log_softmax' has a bound only at the end of the network"),
    "adaptive": (
        lambda net, z: F.adaptive_max_pool2d(z.reshape(-1, 1, 4, 4), 3).flatten(1).repeat(1, 2)[:, :16],
        "'adaptive_max_pool2d' has windows of different sizes",
    ),
    "layer-norm": (lambda net, z: F.layer_norm(z, (16,)), "'native_layer_norm' has no bound"),
    "product": (lambda net, z: z * z.relu(), "'mul' multiplies two values that depend on the input"),
    "division": (lambda net, z: 1 / (1 + z.relu()), "'reciprocal' has no bound"),
    "rounding": (lambda net, z: (z * 255).round() / 255, "'round' has no bound"),
    "sign": (lambda net, z: z.sign(), "'sign' has no bound"),
    "comparison": (lambda net, z: z * (z > 0.5), "'gt' has no bound"),
    "attention": (attend, "attention.*' has no bound"),
    "lstm": (lambda net, z: net.lstm(z.reshape(-1, 4, 4))[0].flatten(1), "no bound|mixes the samples|multiplies two"),
    "noise": (lambda net, z: z + torch.randn_like(z), "draws random|'randn_like' has no bound"),
    "fixed-noise": (lambda net, z: z + torch.rand(16), "draws random numbers"),
    "dropout": (lambda net, z: F.dropout(z, 0.5, True), "has no bound|draws random"),
    "branch": (lambda net, z: z if z.sum() > 3 else -z, "depends on values of the input"),
    "numpy": (lambda net, z: z + torch.from_numpy(z.numpy()), "depends on values of the input or leaves torch"),
    "inner-log-softmax": (
        lambda net, z: z.log_softmax(1),
        "'log_softmax' has a bound only at the end of the network",
    ),
    "batch-mean": (lambda net, z: z - z.mean(0, keepdim=True), "mixes the samples"),
    "batch-flip": (lambda net, z: z + z.flip(0), "mixes the samples"),
    "batch-norm": (lambda net, z: net.norm(z), "'batch_norm' uses the statistics of the batch"),
    "bfloat16": (lambda net, z: z.bfloat16().float(), "computes with bfloat16 numbers"),
    "counter": (lambda net, z: z * (1 + net.calls % 3), "does not return what its operations give"),
    "two-faced": (lambda net, z: z if len(z) > 1 else -z, "does not return what its operations give"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_without_a_bound_is_refused_with_the_reason(name):
    function, reason = REFUSED[name]
    with pytest.raises(NotProvable, match=reason) as raised:
        Prover.of(Calls(function).eval(), torch.rand(5, 1, 4, 4))
    assert str(raised.value).startswith(("the network", "the operations of the network"))


def swallowed(ask):
    """A network that is another one where the values say so, and that hides the refusal of torch."""

    def function(net, z):
        try:
            rare = ask(z)
        except Exception:
            rare = False
        return z.flip(1) if rare else z

    return function


class Asks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.flip(1) if swallowed_bool(z) else z.clone()


def swallowed_bool(z):
    try:
        return bool((z > 3).any())
    except Exception:
        return False


def asks_when_it_runs(is_read):
    return lambda net, z: z.flip(1) if not is_read(z) and (z > 3).any().item() else z


SCRIPTED = torch.jit.CompilationUnit("def rare(z):\n  return bool((z > 3).any())\n")
HIDING = {
    "bool": swallowed(lambda z: bool((z > 3).any())),
    "item": swallowed(lambda z: z.amax().item() > 3),
    "float": swallowed(lambda z: float(z.amax()) > 3),
    "int": swallowed(lambda z: int(z.amax()) > 3),
    "index": swallowed(lambda z: [z.argmax()] == [0] * 50 + [1] * 50 or range(99)[z.argmax()] > 80),
    "tolist": swallowed(lambda z: max(z.flatten().tolist()) > 3),
    "numpy": lambda net, z: z.flip(1) if (z.detach().cpu().numpy() > 3).any() else z,
    "asarray": lambda net, z: z.flip(1) if (np.asarray(z) > 3).any() else z,
    "one-number-as-numpy": lambda net, z: z.flip(1) if np.float32(z[:1, :1].numpy())[0, 0] > 3 else z,
    "data-ptr": swallowed(lambda z: z.data_ptr() and ctypes.c_float.from_address(z.data_ptr()).value > 3),
    "storage": swallowed(lambda z: max(z.untyped_storage().tolist()) > 300),
    "dlpack": swallowed(lambda z: (np.from_dlpack(z) > 3).any()),
    "text": swallowed(lambda z: "3." in str(z)),
    "pickle": swallowed(lambda z: len(pickle.dumps(z)) > 9**9),
    "contains": swallowed(lambda z: 3.0 in z),
    "equal": swallowed(lambda z: torch.equal(z, z + 1)),
    "size": swallowed(lambda z: len((z > 3).nonzero()) > 0),
    "masked": swallowed(lambda z: z[z > 3].numel() > 0),
    "script": swallowed(SCRIPTED.rare),
    "function": lambda net, z: Asks.apply(z),
    "functional": asks_when_it_runs(torch._is_functional_tensor),
    "modes": asks_when_it_runs(lambda z: torch._C._len_torch_dispatch_stack() > 1),
    "other-operations": lambda net, z: z if torch._is_functional_tensor(z) else z + (z - 3).relu(),
}


@pytest.mark.parametrize("name", HIDING)
def test_a_network_that_hides_how_it_depends_on_values_is_refused(name):
    """On inputs below 1 all of them return what their operations give, so that only what they ask for shows them."""
    with pytest.raises(NotProvable, match="cannot be read, because its forward pass depends on values of the input or"):
        Prover.of(Calls(HIDING[name]).eval(), torch.rand(5, 1, 4, 4))


def test_a_network_may_hide_failures_that_do_not_depend_on_values():
    def function(net, z):
        try:
            return z.view(len(z), 5).relu()
        except RuntimeError:
            return z.reshape(len(z), -1).relu() * net.weights.tolist()[0][0]

    net, x = Calls(function).eval().requires_grad_(False), torch.rand(5, 1, 4, 4)
    assert torch.allclose(Prover.of(net, x).graph.evaluate(x).float(), net(x), atol=1e-5)


def test_the_module_that_computes_an_operation_is_found():
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.Sequential(nn.ReLU(), nn.ELU(inplace=True)), nn.Linear(8, 3)
    ).eval()
    x = torch.rand(3, 1, 4, 4)
    with pytest.raises(NotProvable) as raised:
        Prover.of(body, x)
    assert raised.value.operation == "elu"
    assert module_that_runs("elu", body, lambda: body(x)) == "2.1"
    assert module_that_runs("relu", body, lambda: body(x)) == "2.0"
    assert module_that_runs("sigmoid", body, lambda: body(x)) is None
    assert not body[2][1]._forward_hooks


def test_a_network_with_a_fixed_batch_size_is_refused_for_that():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(5, 16)[:, :3].relu()

    with pytest.raises(NotProvable, match="the network fails on 3 images, and a proof needs one that takes any number"):
        Prover.of(Fixed().eval(), torch.rand(5, 1, 4, 4))


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_shares_of_a_softmax_are_bounded_by_their_logits(returns):
    """The classes of softmax(z) and of its logarithm are those of z; equal logits, whose shares are equal, are not proven."""
    body, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 4)), torch.rand(6, 1, 4, 4)
    shares = Classifier(nn.Sequential(body, nn.Softmax(1)).eval(), output=returns).eval().requires_grad_(False)
    y = body(x).argmax(1)
    expected = Prover.of(body.eval().requires_grad_(False), x).margins(x, y, Linf(0.01))
    prover = Prover.of(shares, x)
    found = prover.margins(x, y, Linf(0.01))
    assert torch.allclose(found, expected, atol=1e-4)
    assert (found < expected).all()
    body[3].weight.data.zero_()
    body[3].bias.data.zero_()
    assert not Prover.of(shares, x).proves(x, torch.zeros_like(y), Linf(0.01)).any()


def test_a_constant_network_is_refused():
    with pytest.raises(NotProvable, match="do not depend on the input"):
        Prover.of(lambda x: torch.zeros(len(x), 3), torch.rand(5, 4))


class Traced(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 13 * 13, 10)

    def forward(self, x):
        return self.last(F.max_pool2d(F.relu(self.first(x)), 2).flatten(1))


@pytest.mark.parametrize("kind", ["module", "script", "trace", "log-softmax", "export"])
def test_programs_are_read_like_modules(kind):
    body, example = Traced().eval().requires_grad_(False), torch.rand(3, 1, 28, 28)
    program = {
        "module": lambda: body,
        "script": lambda: torch.jit.script(body),
        "trace": lambda: torch.jit.trace(body, example),
        "log-softmax": lambda: nn.Sequential(body, nn.LogSoftmax(1)),
        "export": lambda: torch.export.export(body, (example,), dynamic_shapes=({0: torch.export.Dim("n")},)).module(),
    }[kind]()
    classify = Classifier(program, ((0.13,), (0.31,)))
    y = classify(example).argmax(1)
    expected = Prover.of(Classifier(body, ((0.13,), (0.31,))).eval(), example).margins(example, y, Linf(0.003))
    assert torch.allclose(Prover.of(classify, example).margins(example, y, Linf(0.003)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "shape"), [(LeNet5, (1, 28, 28)), (ResNet20, (3, 32, 32)), (ScriptedCNN, (1, 28, 28))]
)
def test_the_graph_computes_what_the_network_computes(body, shape):
    net = Classifier(body().eval()).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    x = torch.rand(4, *shape)
    found = Prover.of(net, x).graph.evaluate(x)
    assert torch.allclose(found.float(), net(x), atol=1e-5, rtol=1e-4)
