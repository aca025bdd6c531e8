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


@pytest.mark.parametrize("eps", [0.05, 0.4])
def test_a_max_pooling_of_the_input_has_its_exact_range(eps):
    """Over a box that is equally wide in all coordinates, the largest of a window lies in max(x) -+ eps."""

    class Largest(nn.Module):
        def forward(self, x):
            return torch.cat([torch.zeros(len(x), 1), nn.functional.max_pool2d(x, (2, 3)).flatten(1)], 1)

    x = torch.randn(6, 1, 2, 3)
    threat = NORMS["linf"](eps, None)
    prover = Prover.of(Largest(), x)
    for label, sign in ((0, -1), (1, 1)):
        found = prover.margins(x, torch.full((6,), label), threat).float()
        exact = sign * x.flatten(1).amax(1) - eps
        right = sign * x.flatten(1).amax(1) > 0  # others have no bound but that of plain intervals
        assert torch.allclose(found[right], exact[right], atol=SLACK)
        assert (found <= exact).all()
