"""Linear networks, whose nearest adversarial is known; and projections, whose optimality conditions are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lsa_cli.attacks import ATTACKS, NORMS, make_threat

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


def linear(classes=3, features=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(features, classes)
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, features, generator=generator))
        model.bias.copy_(0.1 * torch.randn(classes, generator=generator))
    return model


def nearest_boundary(model, x, norm):
    """Exact distance of each x to the nearest decision boundary of a linear network."""
    logits = model(x)
    y = logits.argmax(1)
    distances = torch.full_like(logits, torch.inf)
    for row in range(len(x)):
        for other in range(logits.shape[1]):
            if other != y[row]:
                gap = logits[row, y[row]] - logits[row, other]
                w = model.weight[y[row]] - model.weight[other]
                distances[row, other] = gap / torch.linalg.vector_norm(w, ord=DUAL[norm])
    return y, distances.amin(1).detach()


def fooled(model, attack, x, y):
    return bool(model(attack(model, x, y)).argmax(1) != y)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "t-pgd"])
def test_budget_attacks_reach_the_optimum_of_two_class_networks(name, norm):
    model = linear(classes=2)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))
    y, distance = nearest_boundary(model, x, norm)
    for row in range(len(x)):
        for factor in (1.02, 0.98):
            threat = make_threat(norm, float(distance[row]) * factor, bounds=None)
            # Steps of a quarter of the radius slide along the ball's surface to its best point in time.
            options = {} if name == "fgsm" else {"steps": 60, "step_size": threat.eps / 4}
            attack = ATTACKS.get(name)(threat=threat, **options)
            assert fooled(model, attack, x[row : row + 1], y[row : row + 1]) == (factor > 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [3, 5, 8])
def test_pgd_on_the_margin_reaches_the_optimum_of_many_classes(norm, classes):
    """Cross-entropy weighs all wrong classes; the margin goes to the nearest one, from some start."""
    model = linear(classes)
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    y, distance = nearest_boundary(model, x, norm)
    for row in range(len(x)):
        for factor in (1.02, 0.98):
            threat = make_threat(norm, float(distance[row]) * factor, bounds=None)
            attack = ATTACKS.get("pgd")(threat=threat, loss="margin", restarts=5, steps=40, step_size=threat.eps / 4)
            assert fooled(model, attack, x[row : row + 1], y[row : row + 1]) == (factor > 1)


@pytest.mark.parametrize("norm", DUAL)
def test_pgd_reaches_the_optimum_inside_the_box(norm):
    model = linear(classes=2)
    x = 0.5 + 0.02 * torch.randn(6, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():  # margins small enough that the nearest adversarial lies inside [0, 1]
        model.bias += (model.weight @ torch.full((12,), -0.5)) - model.bias
    y, distance = nearest_boundary(model, x, norm)
    for row in range(len(x)):
        for factor in (1.02, 0.98):
            threat = make_threat(norm, float(distance[row]) * factor)
            attack = ATTACKS.get("pgd")(threat=threat, steps=60, step_size=threat.eps / 4)
            assert fooled(model, attack, x[row : row + 1], y[row : row + 1]) == (factor > 1)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t"])
def test_apgd_reaches_the_optimum(name, classes, norm):
    """Of many classes cross-entropy and DLR may climb towards another than the nearest; targets try them all."""
    model = linear(classes)
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    y, distance = nearest_boundary(model, x, norm)
    for factor in (1.02, 0.98):
        threat = NORMS[norm](distance * factor, None)
        attack = ATTACKS.get(name)(threat=threat, steps=60)
        broken = model(attack(model, x, y, goal="break")).argmax(1) != y
        if name == "apgd-t" or classes == 2 or factor < 1:
            assert broken.tolist() == [factor > 1] * len(x)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("classes", [2, 3, 8])
def test_apgd_reaches_the_optimum_inside_the_box(norm, classes):
    model = linear(classes)
    x = 0.5 + 0.02 * torch.randn(6, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.bias.copy_(model.weight @ torch.full((12,), -0.5))
    y, distance = nearest_boundary(model, x, norm)
    for factor in (1.02, 0.98):
        attack = ATTACKS.get("apgd-t")(threat=NORMS[norm](distance * factor), steps=60)
        broken = model(attack(model, x, y, goal="break")).argmax(1) != y
        assert broken.tolist() == [factor > 1] * len(x)


points = st.lists(st.floats(-2, 3, width=32), min_size=5, max_size=5)


@settings(max_examples=200, deadline=None)
@given(points, st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5), st.floats(0.015625, 4, width=32))
def test_l1_projection_is_the_nearest_point_of_ball_and_box(target, start, eps):
    u, x = torch.tensor([target]).double(), torch.tensor([start]).double()
    p = make_threat("l1", eps).project(u, x)
    assert float((p - x).abs().sum()) <= eps * (1 + 1e-6) + 1e-9
    assert float(p.min()) >= 0
    assert float(p.max()) <= 1
    # Nearest point of a convex set: no feasible direction comes closer.
    generator = torch.Generator().manual_seed(0)
    others = make_threat("l1", eps).project(x + torch.randn(200, 5, generator=generator).double(), x.expand(200, 5))
    assert (((u - p) * (others - p)).sum(1) <= 1e-6).all()


@pytest.mark.parametrize("norm", DUAL)
def test_projection_leaves_inner_points_and_is_idempotent(norm):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 3, 4, 4, generator=generator)
    threat = make_threat(norm, {"linf": 0.1, "l2": 1.0, "l1": 5.0}[norm])
    torch.testing.assert_close(threat.project(x, x), x, atol=0, rtol=0)
    once = threat.project(x + torch.randn(x.shape, generator=generator), x)
    assert threat.contains(once, x).all()
    torch.testing.assert_close(threat.project(once, x), once, atol=1e-6, rtol=0)
    near = (x + 1e-4).clamp(0, 1)
    torch.testing.assert_close(threat.project(near, x), near, atol=1e-7, rtol=0)


@pytest.mark.parametrize("norm", DUAL)
def test_random_direction_has_the_length_asked_for_and_stays_inside(norm):
    from lsa_cli.attacks.randomness import per_sample

    x = torch.rand(16, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    x[0] = 0.0  # in a corner of the box, every sign must turn inward
    x[1] = 1.0
    length = torch.linspace(0.01, 0.3, 16) * {"linf": 1, "l2": 5, "l1": 60}[norm]
    threat = make_threat(norm, 0.3)
    with per_sample(0, torch.arange(16), "test"):
        moved = threat.random_direction(x, length)
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    torch.testing.assert_close(threat.distance(moved, x), length, rtol=0.03, atol=1e-6)
