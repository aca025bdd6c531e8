"""The geometry of a budget, held against slow exact solutions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsa_cli.attacks import NORMS, make_threat
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.attacks.threat import L1, L2, Linf
from lsa_cli.errors import UsageError

EPS = {"linf": 0.1, "l2": 1.0, "l1": 5.0}


def nearest_in_ball_and_box(target, start, eps, bounds):
    """The l1 projection in float64 from its optimality conditions.

    The nearest point is start + sign(d) * clamp(|d| - t, 0, room) with t = 0, or the one t > 0 at which its
    length is eps. The length is piecewise linear in t, with corners at |d| and |d| - room.
    """
    d = target - start
    size = np.abs(d)
    room = np.full_like(size, np.inf) if bounds is None else np.where(d > 0, bounds[1] - start, start - bounds[0])

    def length(t):
        return np.minimum(np.maximum(size - t, 0), room).sum()

    t = 0.0
    if length(0) > eps:
        corners = np.unique(np.concatenate([[0.0], size, (size - room)[np.isfinite(room)]]).clip(0))
        right = next(i for i, corner in enumerate(corners) if length(corner) <= eps)
        a, b = corners[right - 1], corners[right]
        t = a + (b - a) * (length(a) - eps) / (length(a) - length(b))
    return start + np.sign(d) * np.minimum(np.maximum(size - t, 0), room)


DIMENSIONS = 6
targets = st.lists(st.floats(-3, 4, width=32), min_size=DIMENSIONS, max_size=DIMENSIONS)
starts = st.lists(st.floats(0, 1, width=32), min_size=DIMENSIONS, max_size=DIMENSIONS)


@settings(max_examples=300, deadline=None)
@given(targets, starts, st.floats(0.0078125, 6, width=32), st.sampled_from([None, (0.0, 1.0)]))
def test_l1_projection_is_the_exact_nearest_point(target, start, eps, bounds):
    found = L1(eps, bounds).project(torch.tensor([target]).double(), torch.tensor([start]).double())
    exact = nearest_in_ball_and_box(np.array(target), np.array(start), eps, bounds)
    np.testing.assert_allclose(found[0].numpy(), exact, atol=1e-9)


def test_l1_projection_in_float32_is_within_rounding_of_the_exact_one():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 16, 16, generator=generator)
    target = x + 0.3 * torch.randn(x.shape, generator=generator)
    for eps in (0.5, 12.0, 100.0):
        found = L1(eps).project(target, x)
        for row in range(len(x)):
            wanted, start = target[row].flatten().double().numpy(), x[row].flatten().double().numpy()
            exact = nearest_in_ball_and_box(wanted, start, eps, (0.0, 1.0))
            np.testing.assert_allclose(found[row].flatten().numpy(), exact, atol=2e-6)


@pytest.mark.parametrize("threat", [Linf, L2, L1])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_a_radius_for_each_sample_is_that_radius_for_that_sample(threat, bounds):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(5, 3, 4, 4, generator=generator)
    target = x + torch.randn(x.shape, generator=generator)
    eps = torch.tensor([0.0, 0.05, 0.3, 1.0, 4.0])
    together = threat(eps, bounds).project(target, x)
    assert torch.equal(together[0], x[0])
    for row in range(5):
        alone = threat(float(eps[row]), bounds).project(target[row : row + 1], x[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], atol=1e-6, rtol=1e-6)
    assert threat(eps, bounds).contains(together, x).all()


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_lie_inside_even_for_large_images(norm):
    """150,528 coordinates: the tolerance of `contains` has to cover the rounding of all of them."""
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    threat = make_threat(norm, {"linf": 4 / 255, "l2": 3.0, "l1": 12.0}[norm])
    with per_sample(0, torch.arange(2), "test"):
        start = threat.sample(x)
    assert threat.contains(start, x).all()
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert threat.contains(threat.project(far, x), x).all()


@pytest.mark.parametrize("norm", NORMS)
def test_distances_of_large_images_are_exact_to_a_millionth(norm):
    """A dense change of equal pixels: summed in float32 its l1 length is off by a thousandth."""
    x = torch.full((2, 3, 224, 224), 0.5)
    x_adv = x + 12 / 150_528
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    exact = torch.linalg.vector_norm((x_adv - x).flatten(1).double(), ord=order, dim=1)
    torch.testing.assert_close(make_threat(norm, 0.1).distance(x_adv, x).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_fill_the_ball(norm):
    """In two dimensions: a share 1/4 of uniform points has at most half the radius, and no direction is preferred."""
    x = torch.zeros(4000, 2)
    threat = make_threat(norm, 0.5, bounds=None)
    with per_sample(0, torch.arange(4000), "test"):
        points = threat.sample(x)
    inner = (threat.distance(points, x) <= 0.25).double().mean()
    assert abs(float(inner) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert float(points.mean(0).abs().max()) < 4 * 0.5 / 4000**0.5


@pytest.mark.parametrize("norm", NORMS)
def test_steps_have_length_one_and_climb_as_far_as_the_dual_norm_allows(norm):
    gradient = torch.randn(6, 12, generator=torch.Generator().manual_seed(2))
    step = make_threat(norm, 1.0, bounds=None).steepest(gradient, torch.zeros(6, 12))
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    torch.testing.assert_close(torch.linalg.vector_norm(step, ord=order, dim=1), torch.ones(6))
    dual = torch.linalg.vector_norm(gradient, ord={"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=1)
    torch.testing.assert_close((step * gradient).sum(1), dual)  # of 12 inputs the l1 step takes one


def test_an_l1_step_passes_over_what_the_box_already_stops():
    x = torch.tensor([[1.0, 0.0, 0.5, 0.5]])
    gradient = torch.tensor([[9.0, -8.0, 2.0, -1.0]])
    assert make_threat("l1", 1.0).steepest(gradient, x).tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [0.0, 1e-30])
def test_vanishing_gradients_give_a_finite_step(norm, size):
    gradient = size * torch.tensor([[1.0, -2.0, 0.5]])
    step = make_threat(norm, 1.0).steepest(gradient, torch.full((1, 3), 0.5))
    assert torch.isfinite(step).all()
    assert bool(step.any()) == (size > 0)


@pytest.mark.parametrize(
    ("norm", "eps", "says"),
    [("l3", 0.1, "choose from linf, l2, l1"), ("linf", -0.1, "negative"), ("linf", 8, "did you mean 8/255")],
)
def test_threats_that_cannot_be_meant(norm, eps, says):
    with pytest.raises(UsageError, match=says):
        make_threat(norm, eps)


@pytest.mark.parametrize("text", ["Linf", "inf", "LINF", "linf"])
def test_norms_are_known_by_their_usual_spellings(text):
    assert make_threat(text, 0.1) == Linf(0.1)


def test_contains_tells_what_left_the_ball_or_the_box():
    x = torch.tensor([[0.5, 0.95]])
    threat = make_threat("linf", 0.1)
    for moved, inside in (([0.6, 0.95], True), ([0.61, 0.95], False), ([0.5, 1.01], False), ([0.5, torch.nan], False)):
        assert threat.contains(torch.tensor([moved]), x).tolist() == [inside]


def test_l1_projection_of_large_images_stays_inside():
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(2, 3, 224, 224, generator=generator)
    target = x + 0.1 * torch.randn(x.shape, generator=generator)
    for eps in (1.0, 12.0, 400.0):
        found = L1(eps).project(target, x)
        assert ((found - x).flatten(1).double().abs().sum(1) <= eps * (1 + 1e-6)).all()
        assert L1(eps).contains(found, x).all()
