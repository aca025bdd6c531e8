"""The faster copy: it computes what the network computes, or it is not made; the network is left as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.errors import UsageError
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.precision import (
    FastClassifier,
    channels_last,
    fold_norms,
    make_copy,
    round_weights,
    runs_channels_last,
)


def norm(channels):
    """A BatchNorm that has seen something."""
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (layer.running_mean, layer.weight, layer.bias):
            tensor.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


class Residual(nn.Module):
    """Two foldable pairs, and a norm before a convolution that is none."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), norm(6)
        self.before, self.second, self.norm2 = norm(6), nn.Conv2d(6, 6, 3, padding=1, bias=False), norm(6)
        self.head = nn.Linear(6 * 64, 4)

    def forward(self, x):
        x = F.relu(self.norm1(self.first(x)))
        x = x + self.norm2(self.second(self.before(x)))
        return self.head(x.flatten(1))


class TwoReaders(Residual):
    """The output of the first convolution goes on beside its norm."""

    def forward(self, x):
        y = self.first(x)
        return self.head((y + self.norm1(y)).flatten(1))


class Shared(Residual):
    """One convolution and norm, run twice."""

    def forward(self, x):
        x = self.norm1(self.first(x))
        return self.head(self.norm2(self.second(self.norm2(self.second(x)))).flatten(1))


class Noisy(Residual):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


def with_weight_norm():
    network = Residual()
    network.first = torch.nn.utils.weight_norm(network.first)
    return network


class InplaceBetween(Residual):
    """What reaches the first norm is the convolution's own tensor, written to; the second norm can be folded."""

    def forward(self, x):
        x = F.relu(self.norm1(F.relu(self.first(x), inplace=True)), inplace=True)
        return self.head(F.relu(self.norm2(self.second(x)), inplace=True).flatten(1))


def made(kind):
    torch.manual_seed(0)
    return Classifier(kind(), ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3)))


X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


Y = torch.arange(5) % 4


def gradient(model):
    leaf = X.clone().requires_grad_(True)
    logits = model(leaf)
    return logits.detach(), torch.autograd.grad(F.cross_entropy(logits, Y), leaf)[0]


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(("kind", "folded"), [(Residual, 2), (Shared, 1), (with_weight_norm, 1), (InplaceBetween, 1)])
def test_the_copy_has_the_same_logits_and_gradients(kind, folded, precision):
    classifier = made(kind)
    fast = make_copy(classifier, X, Y)
    assert f"a copy in {precision}" in fast.described
    assert f"{folded} BatchNorm folded" in fast.described
    classifier.eval()
    for theirs, ours in zip(gradient(fast.model), gradient(classifier), strict=True):
        assert (theirs - ours).norm() < (1e-4 if precision == "float32" else 0.1) * ours.norm()


def test_another_precision_is_refused(monkeypatch):
    monkeypatch.setenv("LSA_COPY_PRECISION", "float16")
    with pytest.raises(UsageError, match="must be bfloat16 or float32, not 'float16'"):
        make_copy(made(Residual), X, Y)


def test_the_network_is_left_as_it_was():
    classifier = made(Residual).train()
    before = copy.deepcopy(classifier)
    make_copy(classifier, X, Y)
    assert classifier.training
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert not any(module._forward_hooks for module in classifier.modules())
    assert [type(module) for module in classifier.modules()] == [type(module) for module in before.modules()]
    for name, tensor in before.state_dict().items():
        assert torch.equal(classifier.state_dict()[name], tensor)
        assert classifier.state_dict()[name].stride() == tensor.stride()


@pytest.mark.parametrize("kind", [Residual, Shared])
def test_with_its_channels_last_a_network_computes_the_same_and_gets_its_weights_back(kind):
    classifier = made(kind).eval()
    before = {name: tensor.data_ptr() for name, tensor in classifier.named_parameters()}
    layouts = []
    for module in classifier.modules():
        if type(module) is nn.Conv2d:
            module.register_forward_hook(lambda module, given, output: layouts.append(output.stride(1)))
    wanted = gradient(classifier)
    assert 1 not in layouts
    layouts.clear()
    with channels_last(classifier):
        for ours, theirs in zip(gradient(classifier), wanted, strict=True):
            assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert set(layouts) == {1}
    assert {name: tensor.data_ptr() for name, tensor in classifier.named_parameters()} == before


@pytest.mark.parametrize(
    ("kind", "why"),
    [(TwoReaders, "not compute the same"), (Noisy, "not compute the same"), (None, "no convolution modules")],
)
def test_what_cannot_be_had_faster_is_attacked_itself(kind, why):
    classifier = made(kind) if kind else Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    fast = make_copy(classifier, X, Y)
    assert fast.model is None
    assert why in fast.described


def test_a_norm_with_a_hook_is_not_folded():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)).eval()
    body[1].register_forward_hook(lambda module, args, output: 2 * output)
    assert fold_norms(body, X) == 0


def test_statistics_of_the_batch_are_not_folded():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert fold_norms(body.eval(), X) == 0


def test_in_bfloat16_logits_and_gradients_come_back_as_float32():
    classifier = made(Residual).eval()
    (short, short_gradient), (exact, exact_gradient) = (
        gradient(model) for model in (FastClassifier(classifier, torch.bfloat16), classifier)
    )
    assert short.dtype == short_gradient.dtype == torch.float32
    assert not torch.equal(short, exact)
    assert (short - exact).norm() < 0.02 * exact.norm()
    assert (short_gradient - exact_gradient).norm() < 0.1 * exact_gradient.norm()


class ReadsItsWeights(Residual):
    def forward(self, x):
        return super().forward(x) * self.second.weight.square().mean()


class InFloat32(Residual):
    """A part of it does not run in another precision."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.norm2(self.second(self.norm1(self.first(x))))
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("kind", "rounds"), [(Residual, True), (Shared, True), (ReadsItsWeights, False), (InFloat32, False)]
)
def test_rounded_weights_leave_logits_and_gradients_the_same_bit_by_bit(kind, rounds):
    fast = FastClassifier(made(kind).requires_grad_(False), torch.bfloat16).eval()
    before = gradient(fast)
    assert round_weights(fast, X) == rounds
    assert fast.classifier.body.second.weight.dtype == (torch.bfloat16 if rounds else torch.float32)
    assert all(map(torch.equal, gradient(fast), before))


class Viewed(Residual):
    """Its view of a convolution's output takes channels to lie first, and refuses any other order."""

    def forward(self, x):
        return self.head(self.norm1(self.first(x)).view(x.shape[0], -1))


class ReadsItsNorm(Residual):
    def forward(self, x):
        return super().forward(x) + self.norm1.weight.sum()


class ThreeDimensional(Residual):
    def __init__(self):
        super().__init__()
        self.deep = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        return super().forward(self.deep(x[:, None])[:, 0])


class AlwaysTraining(Residual):
    def train(self, mode=True):
        super().train(mode)
        self.norm1.train()
        return self


class FailsBackward(Residual):
    """Its own gradient is there, a copy's is not: memory in channels-last order is written to after its use."""

    def forward(self, x):
        y = self.first(x)
        squares = y * y
        if not y.is_contiguous():
            y += 0
        return self.head(self.norm1(squares).flatten(1))


@pytest.mark.parametrize("kind", [Viewed, ReadsItsNorm, ThreeDimensional, AlwaysTraining, FailsBackward])
def test_a_copy_that_does_not_run_is_not_attacked(kind):
    classifier = made(kind)
    fast = make_copy(classifier, X, Y)
    assert fast.model is None
    assert "does not run" in fast.described


def test_logits_that_are_not_finite_have_no_copy():
    classifier = made(Residual)
    with torch.no_grad():
        classifier.body.head.bias[0] = torch.nan
    assert make_copy(classifier, X, Y).model is None


class ViewedInTraining(Residual):
    def forward(self, x):
        x = self.norm1(self.first(x))
        return self.head(x.view(len(x), -1) if self.training else x.flatten(1))


class KeepsAFunction(Residual):
    """A copy of it calls the original's norm."""

    def __init__(self):
        super().__init__()
        self.again = lambda x: self.norm1(x)

    def forward(self, x):
        return super().forward(x) + self.again(self.first(x)).mean()


@pytest.mark.parametrize(
    ("kind", "does"),
    [(Residual, True), (KeepsAFunction, True), (Viewed, False), (ViewedInTraining, False), (ThreeDimensional, False)],
)
def test_channels_last_is_tried_before_a_training_and_leaves_no_trace(kind, does):
    classifier = made(kind).train()
    before, state = copy.deepcopy(classifier.state_dict()), torch.get_rng_state()
    assert runs_channels_last(classifier, (3, 8, 8)) is does
    assert torch.equal(torch.get_rng_state(), state)
    assert classifier.training
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.stride() == before[name].stride()


def test_without_convolutions_there_is_no_layout_to_choose():
    assert not runs_channels_last(Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))), (3, 8, 8))
