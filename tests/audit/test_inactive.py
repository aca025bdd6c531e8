"""The attack on parts of a network that no image makes active: dead and saturated units, and the other side of comparisons."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.attacks import make_threat
from lsa_cli.auditing.evidence.conditions import _gate
from lsa_cli.auditing.evidence.inactive import ThroughInactive, _passed
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.searches import through_inactive
from lsa_cli.models.rehydration import Program


class Woken(nn.Module):
    """Class 0, unless `wakes` of the sum of the inputs, from which a limit of 3 is taken, is above 0."""

    def __init__(self, wakes):
        super().__init__()
        self.wakes = wakes

    def forward(self, x):
        more = self.wakes(x.flatten(1).sum(1) - 3)
        return torch.stack([0.1 * x.flatten(1)[:, 0] + 1, 100 * more], 1)


WAKES = {
    "relu": F.relu,
    "relu in place": lambda score: F.relu(score.clone(), inplace=True),
    "module": nn.ReLU(),
    "clamp": lambda score: score.clamp(0, 1),
    "sigmoid": lambda score: torch.sigmoid(40 * score),
    "choice": lambda score: torch.maximum(score, torch.zeros_like(score)),
    "branch": lambda score: torch.where(score > 0, score, 0.0 * score),
    "comparison": lambda score: (score > 0).float(),
}
ALL_OF = {  # of four pixels, each of which must be above 0.3
    "all": lambda pixels: (pixels > 0.3).all(1),
    "none": lambda pixels: ~(pixels <= 0.3).any(1),
    "and": lambda pixels: (pixels[:, :2] > 0.3).all(1) & (pixels[:, 2:] > 0.3).all(1),
    "share": lambda pixels: (pixels > 0.3).float().mean(1) > 0.9,
    "count": lambda pixels: (pixels > 0.3).sum(1) >= 4,
    "levels": lambda pixels: ((pixels * 5).round().long() >= 2).all(1),
    "pattern": lambda pixels: ((pixels > 0.3) == torch.ones(4, dtype=torch.bool)).all(1),
    "product": lambda pixels: ((pixels > 0.3) * torch.ones(4)).sum(1) > 3.5,
}


class Gated(nn.Module):
    """Class 1 where more than half of a thousand units, each behind its own threshold of the mean of the inputs, are on."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.register_buffer("least", torch.linspace(0.01, 0.81, 1000))

    def forward(self, x):
        gates = (self.scale * (x.flatten(1).mean(1, keepdim=True) - self.least) > 0).float()
        return torch.stack([0.1 * x.flatten(1)[:, 0] + 0.5, gates.mean(1)], 1)


def probe_of(network, n=32):
    x = torch.zeros(n, 1, 2, 2)
    return Probe(network.eval(), x, torch.zeros(n, dtype=torch.long), torch.arange(n), make_threat("linf", 0.9))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_hard_gates_of_any_scale_are_passed(scale):
    assert through_inactive(probe_of(Gated(scale)), 32).saw["broken"] == 32


def test_the_slope_of_a_gate_is_largest_where_it_changes_and_does_not_depend_on_the_scale():
    score = torch.tensor([[-3.0, -1.0, 0.0, 2.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(_gate(score).sum(), score)
    assert slope.argmax() == 2
    assert (slope > 0).all()
    assert torch.allclose(_gate(1e-3 * score), _gate(score), atol=1e-6)


@pytest.mark.parametrize("kind", WAKES)
def test_what_only_a_step_on_all_inputs_makes_active_is_found(kind):
    check = through_inactive(probe_of(Woken(WAKES[kind])), 32)
    assert check.saw["broken"] == 32
    assert check.finding.code == "inactive-part-wins"


def test_what_no_input_within_the_budget_makes_active_is_not_found():
    check = through_inactive(probe_of(Woken(lambda score: F.relu(score - 0.7))), 32)  # the sum is 3.6 at most
    assert check.saw["broken"] == 0
    assert check.finding is None


@pytest.mark.parametrize("kind", WAKES)
def test_the_outputs_are_those_of_the_network(kind):
    network, x = Woken(WAKES[kind]), torch.rand(16, 1, 2, 2)
    logits, compared, chosen = _passed(network, x.clone().requires_grad_())
    assert torch.equal(logits, network(x))
    assert compared.shape == (16, 1 if kind in ("branch", "comparison") else 0)
    assert chosen.shape == (16, 0)


class OfManyPixels(nn.Module):
    """Class 1 where a condition on all pixels holds."""

    def __init__(self, condition):
        super().__init__()
        self.condition = condition

    def forward(self, x):
        pixels = x.flatten(1)
        return torch.stack([0.1 * pixels[:, 0] + 1, 100 * self.condition(pixels).float()], 1)


@pytest.mark.parametrize("kind", ALL_OF)
def test_a_condition_on_many_pixels_is_found(kind):
    network = OfManyPixels(ALL_OF[kind])
    check = through_inactive(probe_of(network), 32)
    assert (check.saw["broken"], check.finding.code) == (32, "inactive-part-wins")
    x = torch.rand(64, 1, 2, 2)
    logits, compared, _ = _passed(network, x.clone().requires_grad_())
    assert torch.equal(logits, network(x))
    holds = network(x).argmax(1) == 1
    assert 0 < int(holds.sum()) < 64
    seen = (compared >= 0).all(1)  # a condition has the sign of its outcome
    assert torch.equal(~seen if kind == "none" else seen, holds)  # there it is the outcome of `any`


class Chosen(nn.Module):
    """Class 1 where the first of three scores is not the largest: where the inputs add up to more than 3."""

    def __init__(self, chooses):
        super().__init__()
        self.chooses = chooses

    def forward(self, x):
        total = x.flatten(1).sum(1)
        away = self.chooses(torch.stack([3 - total, total - 3, total - 9], 1))
        return torch.stack([0.1 * x.flatten(1)[:, 0] + 1, 100 * away], 1)


CHOOSES = {
    "argmax": lambda scores: (scores.argmax(1) != 0).float(),
    "argmin": lambda scores: ((-scores).argmin(1) != 0).float(),
    "max": lambda scores: (scores.max(1).indices != 0).float(),
    "topk": lambda scores: (scores.topk(1).indices[:, 0] != 0).float(),
    "sort": lambda scores: (scores.argsort(1)[:, -1] != 0).float(),
    "steep softmax": lambda scores: 1 - (1e3 * scores).softmax(1)[:, 0],
}


@pytest.mark.parametrize("kind", CHOOSES)
def test_another_choice_of_the_largest_number_is_found(kind):
    network, x = Chosen(CHOOSES[kind]), torch.zeros(16, 1, 2, 2)
    check = through_inactive(probe_of(network), 32)
    assert (check.saw["broken"], check.finding.code) == (32, "inactive-part-wins")
    logits, _, chosen = _passed(network, x.requires_grad_())
    assert torch.equal(logits, network(x))
    assert torch.equal(chosen > 0, torch.tensor([True, False, False]).expand(16, 3))


def test_each_label_keeps_its_value_beside_the_comparisons():
    y = torch.arange(300)
    aims = ThroughInactive(make_threat("linf", 0.1)).aims(Woken(WAKES["branch"]), torch.rand(300, 1, 2, 2), y)
    assert torch.equal(aims[:, 0].long(), y)


def of_no_gradient(pixels):
    with torch.no_grad():
        return (pixels > 0.3).all(1)


CUT = {
    "detached": lambda pixels: (pixels.detach() > 0.3).all(1),
    "data": lambda pixels: (pixels.data > 0.3).all(1),
    "no_grad": of_no_gradient,
    "sum of detached": lambda pixels: (torch.relu(pixels.detach() - 0.3) > 0).sum(1) >= 4,
    "asked for each sample": lambda pixels: torch.tensor([bool((one > 0.3).all()) for one in pixels]),
    "product of comparisons": lambda pixels: (pixels > 0.3).float().prod(1) > 0,
    "ascending": lambda pixels: (pixels[:, 1:] > pixels[:, :-1] + 0.1).all(1),
    "between": lambda pixels: ((pixels - 0.3).abs() < 0.02).all(1),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_condition_that_no_gradient_reaches_is_found(kind):
    check = through_inactive(probe_of(OfManyPixels(CUT[kind])), 32)
    assert (check.saw["broken"], check.finding.code) == (32, "inactive-part-wins")


def test_a_pass_leaves_what_the_network_keeps_without_a_gradient():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.flatten(1).mean(0))
            self.last = x.detach() * 2
            return x.flatten(1)[:, :2] + self.last.flatten(1)[:, :2]

    network = Keeping()
    logits, _, _ = _passed(network, torch.rand(3, 1, 2, 2).requires_grad_())
    assert logits.requires_grad
    assert not network.mean.requires_grad
    assert not network.last.requires_grad


def test_conditions_of_an_exported_program_are_found():
    network = OfManyPixels(ALL_OF["all"])
    x = torch.zeros(2, 1, 2, 2)
    shapes = ({0: torch.export.Dim("batch")},)
    program = Program(torch.export.export(network, (x,), dynamic_shapes=shapes).module())
    assert through_inactive(probe_of(program), 32).saw["broken"] == 32
