"""The layer-wise regularizer against its formula, and where it may not go wrong."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.hardening.regularizer import LayerRegularizer, record
from lsa_cli.measures import MEASURES
from lsa_cli.models.classifier import Classifier
from tests.hardening.conftest import make_method, small_network


def test_it_is_the_sum_of_gamma_times_the_relative_error():
    clean = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[1.0, 0.0]])}
    perturbed = {"a": torch.tensor([[3.0, 5.0]]), "b": torch.tensor([[1.0, 0.5]])}
    penalty, measures = LayerRegularizer(("a", "b"), (2.0, 3.0), MEASURES.get("relative-error"))(clean, perturbed)
    assert measures["a"].item() == pytest.approx(1 / 5)
    assert measures["b"].item() == pytest.approx(0.5)
    assert penalty.item() == pytest.approx(2 * 0.2 + 3 * 0.5)


@pytest.mark.parametrize("detach", [False, True])
def test_the_gradient_runs_through_both_branches_unless_the_clean_one_is_detached(detach):
    clean, perturbed = torch.tensor([[2.0]], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)
    regularizer = LayerRegularizer(("a",), (1.0,), MEASURES.get("relative-error"), detach)
    regularizer({"a": clean}, {"a": perturbed})[0].sum().backward()
    # |p - c| / |c| with p > c > 0: 1/c by p, -p/c^2 by c
    assert perturbed.grad.item() == pytest.approx(1 / 2)
    assert (clean.grad is None) if detach else clean.grad.item() == pytest.approx(-3 / 4)


@pytest.mark.parametrize("measure", MEASURES.names())
def test_a_silent_sample_spoils_no_gradient(measure):
    clean = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    perturbed = torch.tensor([[1.0, 0.0], [1.0, 3.0]], requires_grad=True)
    penalty, _ = LayerRegularizer(("a",), (1.0,), MEASURES.get(measure))({"a": clean}, {"a": perturbed})
    penalty.sum().backward()
    assert penalty[0].item() == 0
    assert clean.grad.isfinite().all()
    assert perturbed.grad.isfinite().all()
    assert perturbed.grad[1].any()


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.two(F.relu(self.one(x), inplace=True))


def test_functional_activations_are_recorded_with_their_graph():
    model, x = Classifier(Functional()), torch.rand(5, 4)
    with record(model, [":relu"]) as seen:
        model(x)
    assert torch.equal(seen[":relu"], model.body.one(x).relu())
    seen[":relu"].sum().backward()
    assert model.body.one.weight.grad.abs().sum() > 0


def test_what_is_recorded_survives_an_activation_in_place():
    model = small_network().eval()
    x = torch.rand(2, 1, 8, 8)
    with record(model, ["1"]) as seen:
        model(x)
    assert torch.equal(seen["1"], model.body[1](model.body[0](x)))


def test_without_weight_it_changes_nothing(batch):
    """gamma = 0 is plain adversarial training, to the bit (no BatchNorm: its statistics see the clean pass, too)."""

    def losses(name, gamma):
        model = small_network().eval()
        method = make_method(name, layers=("2", "6") if name == "at-lr" else (), gamma=gamma)
        x_adv = method.objective.examples(model, batch)
        return method.losses(model, batch, x_adv)

    assert torch.equal(losses("at", 0.0), losses("at-lr", 0.0))
    assert (losses("at-lr", 1.0) > losses("at-lr", 0.0)).any()


def test_the_perturbation_comes_from_the_loss_alone(batch):
    model = small_network()
    weak, strong = make_method(gamma=0.0), make_method(gamma=100.0)
    assert torch.equal(weak.objective.examples(model, batch), strong.objective.examples(model, batch))
