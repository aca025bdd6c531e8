"""No input of the threat model lies below a bound: random points, corners and attacks on networks of each operation."""

import pytest
import torch

from lsa_cli.attacks.threat import NORMS
from lsa_cli.proofs import Prover, prover
from lsa_cli.proofs.crown import Bounds, Region
from lsa_cli.proofs.graph import apply
from tests.proofs.networks import CLASSES, NETWORKS, SHAPE, network

SAMPLES, POINTS, STEPS = 2, 100, 10
SLACK = 1e-3
ROUNDING = 1e-9  # of float64, in other orders of the sums


def margin(logits, y):
    others = logits.scatter(1, y[:, None], -torch.inf)
    return logits.gather(1, y[:, None])[:, 0] - others.amax(1)


def least_found(model, x, y, threat):
    """The smallest margin (N,) of random points, of corners, and of projected gradient descent from some of them."""
    wide, classes = x.repeat_interleave(POINTS, 0), y.repeat_interleave(POINTS)
    corners = threat.project(wide + threat.eps * torch.randn_like(wide).sign(), wide)
    points = threat.project(wide + threat.eps * torch.randn_like(wide), wide)
    inside = torch.where(torch.arange(len(wide)).reshape(-1, 1, 1, 1) % 2 == 0, points, corners)
    found = margin(model(inside), classes)
    for step in range(STEPS):
        inside.requires_grad_(True)
        (slope,) = torch.autograd.grad(margin(model(inside), classes).sum(), inside)
        size = threat.eps * (1 - step / STEPS)
        inside = threat.project(inside.detach() - size * threat.steepest(slope, inside.detach()), wide)
        found = torch.minimum(found, margin(model(inside), classes))
    assert threat.contains(inside, wide).all()
    return found.reshape(len(x), POINTS).amin(1)


def cases(name, seed):
    model = network(name, seed)
    x = torch.rand(SAMPLES, *SHAPE)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_input_lies_below_the_bound(name):
    model, x, y = cases(name, 0)
    prover = Prover.of(model, torch.rand(4, *SHAPE))
    for norm, eps in (("linf", 0.02), ("linf", 0.2), ("l2", 0.5), ("l1", 2.0)):
        threat = NORMS[norm](eps)
        bound = prover.margins(x, y, threat)
        assert (bound <= least_found(model, x, y, threat)).all(), (norm, eps)
        assert bound.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_in_the_network_lies_in_its_interval(name):
    model, x, _ = cases(name, 1)
    graph = Prover.of(model, x).graph
    for eps in (0.01, 0.1, 0.5):
        threat = NORMS["linf"](eps)
        bounds = Bounds.of(graph, Region.of(x[:1], torch.tensor([eps]), threat))
        wide = x[:1].expand(2000, *SHAPE)
        values = [
            threat.project(wide + eps * torch.cat([torch.randn(1000, *SHAPE), torch.randn(1000, *SHAPE).sign()]), wide)
        ]
        for node, low, high in zip(graph.nodes, bounds.lower, bounds.upper, strict=True):
            if node.operation is not None:
                values.append(apply(node.operation, [values[place] for place in node.inputs]))
            else:
                values = [values[0].double()]
            assert (low <= values[-1]).all(), node.operation
            assert (values[-1] <= high).all(), node.operation


@pytest.mark.parametrize("name", ["mlp", "residual", "option-a", "leaky-steep", "two-outputs"])
def test_no_input_lies_below_a_bound_with_optimised_slopes_in_all_layers(name, monkeypatch):
    monkeypatch.setattr(prover, "NEAR", 1.0)
    monkeypatch.setattr(prover, "CLOSE", 1.0)
    monkeypatch.setattr(prover, "REACH", 1.0)
    model, x, y = cases(name, 6)
    for norm, eps in (("linf", 0.1), ("l2", 1.0)):
        threat = NORMS[norm](eps)
        plain, bound = (Prover.of(model, x).margins(x, y, threat, optimise=steps) for steps in (0, 10))
        assert (bound >= plain).all()
        assert (bound <= least_found(model, x, y, threat)).all(), (norm, eps)


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_fall_with_eps_from_the_margin_itself(name):
    model, x, y = cases(name, 3)
    y = (y + torch.tensor([0, 1])) % model(x).shape[1]  # the second sample is classified wrongly
    prover = Prover.of(model, torch.rand(4, *SHAPE))
    bounds = [prover.margins(x, y, NORMS["linf"](eps), optimise=0) for eps in (0.0, 0.001, 0.02, 0.2)]
    exact = margin(model(x), y)
    assert (bounds[0] <= exact).all()
    assert torch.allclose(bounds[0].float(), exact, atol=SLACK * (1 + exact.abs().max().item()))
    for wider, narrower in zip(bounds[1:], bounds, strict=False):
        assert (wider <= narrower).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_optimised_slopes_never_loosen_a_bound(name):
    model, x, y = cases(name, 4)
    prover = Prover.of(model, torch.rand(4, *SHAPE))
    plain, tighter = (prover.margins(x, y, NORMS["linf"](0.1), optimise=steps) for steps in (0, 10))
    assert (tighter >= plain).all()


@pytest.mark.parametrize("name", ["option-a", "max-pool", "convolutions"])
def test_a_bound_does_not_depend_on_the_other_samples(name):
    model = network(name, 5)
    x = torch.rand(4, *SHAPE)
    y = torch.arange(4) % CLASSES
    prover = Prover.of(model, x)
    eps = torch.tensor([0.01, 0.02, 0.05, 0.1])
    together = prover.margins(x, y, NORMS["linf"](eps))
    alone = [prover.margins(x[i : i + 1], y[i : i + 1], NORMS["linf"](float(eps[i]))) for i in range(4)]
    assert torch.allclose(together, torch.cat(alone), rtol=ROUNDING, atol=ROUNDING)
    order = torch.tensor([2, 0, 3, 1])
    again = prover.margins(x[order], y[order], NORMS["linf"](eps[order]))
    assert torch.allclose(again, together[order], rtol=ROUNDING, atol=ROUNDING)
