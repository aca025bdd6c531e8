"""How far a network is from a minimum of its loss."""

import pytest
import torch
from torch import nn

from lsa_cli.models.rebuilding.stationarity import unrest


def test_of_a_linear_network_it_is_the_closed_form():
    torch.manual_seed(0)
    network, x, y = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), torch.rand(200, 1, 2, 3), torch.randint(3, (200,))
    with torch.no_grad():
        scores = network(x)
        slope = scores.softmax(1) - nn.functional.one_hot(y, 3)
        each = torch.cat([slope, slope * scores], 1).double()
        expected = float((200 * each.mean(0) ** 2 / each.var(0)).mean())
    assert unrest(network, x, y) == pytest.approx(expected, rel=1e-4)


def test_scale_and_bias_of_a_layer_before_a_norm_are_those_of_the_norm():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)]
    x, y = torch.rand(50, 1, 8, 8), torch.randint(3, (50,))
    network = nn.Sequential(*layers).eval()
    with_norm_alone = nn.Sequential(*layers[1:]).eval()
    assert unrest(network, x, y) == pytest.approx(unrest(with_norm_alone, layers[0](x).detach(), y), rel=1e-4)


@pytest.mark.parametrize(
    ("activation", "least", "most"), [(nn.Tanh(), 0.0, 2.0), (nn.Softsign(), 4.0, 1e9), (nn.ELU(), 4.0, 1e9)]
)
def test_a_network_with_other_activations_is_at_no_minimum(activation, least, most):
    torch.manual_seed(0)
    x = torch.randn(1500, 8)
    y = ((x[:, 0] * x[:, 1] + 0.7 * torch.randn(1500)) > 0).long()
    network = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 2))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _step in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    network[1] = activation
    assert least <= unrest(network, x, y) <= most
