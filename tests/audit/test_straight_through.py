"""The attack past jumps and ripples: with the slope that they have on average."""

import pytest
import torch

from lsa_cli.auditing.evidence.straight_through import _OnAverage, has_jumps_or_ripples


def slope_through(function, x):
    with _OnAverage():
        return torch.autograd.grad(function(x).sum(), x)[0]


RIPPLES = {
    "sine": lambda x: torch.sin(300 * x),
    "cosine in place": lambda x: (300 * x).cos_(),
    "remainder": lambda x: torch.remainder(50 * x, 1),
    "operator": lambda x: (50 * x) % 0.5,
    "fmod": lambda x: torch.fmod(50 * x, torch.tensor(1.0)),
    "frac": lambda x: torch.frac(50 * x),
}


@pytest.mark.parametrize("name", RIPPLES)
def test_ripples_of_many_periods_have_no_slope(name):
    x = torch.linspace(0, 1, 101).reshape(-1, 1).requires_grad_()
    through = slope_through(lambda x: 2 * x + RIPPLES[name](x), x)
    assert torch.allclose(through, torch.tensor(2.0), atol=1e-4)


def test_a_slow_sine_has_the_slope_of_its_mean_over_a_gaussian():
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    w = 5.0
    through = slope_through(lambda x: torch.sin(w * x), x)
    noise = 0.1 * float(x.detach().std()) * torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    for row in (0, 1, 2):
        mean = float((w * torch.cos(w * (x.detach()[row] + noise))).mean())
        assert float(through[row]) == pytest.approx(mean, abs=0.02)


@pytest.mark.parametrize(
    "function", [torch.round, torch.floor, lambda x: (8 * x).ceil() / 8, lambda x: x.clone().trunc_()]
)
def test_rounding_has_a_slope_of_one_and_the_values_stay(function):
    x = torch.linspace(-3, 3, 100).reshape(-1, 1).requires_grad_()
    assert torch.equal(slope_through(function, x), torch.ones_like(x))
    with _OnAverage():
        assert torch.equal(function(x), function(x.detach()))


MASKS = {
    "product": lambda x: x * (x > 0.5).float(),
    "product with a boolean": lambda x: (x >= 0.5) * x,
    "where": lambda x: torch.where(x < 0.5, 0.0, x),
    "method": lambda x: x.where(~(x < 0.5), torch.tensor(0.0)),
    "filled": lambda x: x.masked_fill((x < 0.5) | (x > 2), 0.0),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_has_a_slope_where_it_jumps_and_its_values_stay(name):
    x = torch.linspace(0, 1, 100).reshape(-1, 1).requires_grad_()
    through, jump = slope_through(MASKS[name], x).flatten(), x.detach().flatten().sub(0.5).abs() < 0.02
    kept = (x.detach().flatten() > 0.5).float()
    assert bool((through[jump] > kept[jump] + 0.5).all())
    with _OnAverage():
        assert torch.equal(MASKS[name](x), MASKS[name](x.detach()))


def test_only_networks_with_steps_or_ripples_are_attacked():
    x = torch.rand(4, 1)
    assert has_jumps_or_ripples(torch.round, x)
    assert has_jumps_or_ripples(MASKS["where"], x)
    assert has_jumps_or_ripples(lambda x: x + 0.1 * torch.sin(300 * x), x)
    for function in (torch.relu, torch.sin, lambda x: x + torch.round(torch.rand(4, 1))):
        assert not has_jumps_or_ripples(function, x)
