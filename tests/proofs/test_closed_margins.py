"""Bounds against margins that are known exactly: linear networks, and networks of one ReLU."""

import pytest
import torch
from torch import nn

from lsa_cli.attacks.threat import NORMS
from lsa_cli.proofs import Prover

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}
SLACK = 1e-3  # of the tolerance of a threat model and of float32, for margins of about 1


def linear(classes=4, size=6):
    return nn.Linear(size, classes).eval()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.3])
def test_a_linear_network_has_its_exact_margin_in_a_ball(norm, eps):
    network, x, y = linear(), torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    exact = torch.full((5,), torch.inf)
    for sample, label in enumerate(y):
        for other in range(4):
            if other != label:
                weight = network.weight[label] - network.weight[other]
                bias = network.bias[label] - network.bias[other]
                least = weight @ x[sample] + bias - eps * weight.norm(DUAL[norm])
                exact[sample] = min(exact[sample], least.item())
    found = Prover.of(network, x).margins(x, y, NORMS[norm](eps, None)).float()
    assert (found <= exact).all()
    assert torch.allclose(found, exact, atol=SLACK)


def test_the_input_range_cuts_the_ball():
    """At x = 0 in [0, 1] a coordinate can only rise: of the weights only those that lower the margin count."""
    network = nn.Linear(2, 2, bias=False).eval()
    network.weight.data = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    x, y = torch.tensor([[0.0, 0.2]]), torch.tensor([0])
    margin = Prover.of(network, torch.rand(3, 2)).margins(x, y, NORMS["linf"](0.1))
    assert margin.item() == pytest.approx(-0.6, abs=SLACK)
