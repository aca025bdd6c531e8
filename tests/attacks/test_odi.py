"""ODI-PGD: the linear distance of classes, the lengths of steps, the order of targets, several runs in one pass."""

import pytest
import torch
from torch import nn

from lsa_cli.attacks import make_threat
from lsa_cli.attacks.odi import ODI, SHORTEST, linear_distances
from lsa_cli.errors import UsageError


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).requires_grad_(False)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", float("inf"))])
def test_the_distance_of_a_linear_network_is_exact(linear, norm, dual):
    x = torch.rand(5, 3, 4)
    y = linear(x).argmax(1)
    rivals = (y[:, None] + torch.arange(1, 4)) % 4
    found = linear_distances(linear, x, y, rivals, norm)
    weight, logits = linear[1].weight, linear(x)
    for row in range(5):
        for column in range(3):
            rival = int(rivals[row, column])
            gap = logits[row, y[row]] - logits[row, rival]
            wanted = gap / torch.linalg.vector_norm(weight[y[row]] - weight[rival], ord=dual)
            assert found[row, column] == pytest.approx(float(wanted), rel=1e-4)
    # The nearest boundary is crossed just beyond its distance, and not before it.
    nearest, at = found.min(1)
    towards = weight[rivals.gather(1, at[:, None])[:, 0]] - weight[y]
    if norm == "linf":
        for factor, broken in ((0.99, False), (1.01, True)):
            moved = x + factor * nearest[:, None, None] * towards.sign().reshape(5, 3, 4)
            assert ((linear(moved).argmax(1) != y) == broken).all()


def test_steps_shrink_from_eps_to_a_hundredth():
    attack = ODI(make_threat("linf", 0.1), steps=20, spread=3)
    lengths = [attack._length(step) for step in range(23)]
    assert lengths[:4] == [1, 1, 1, 1]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[13] == pytest.approx((1 + SHORTEST) / 2)
    assert SHORTEST < lengths[-1] < 0.02


def test_targets_are_the_wrong_classes_nearest_first_and_repeat(linear):
    x = torch.rand(6, 3, 4)
    y = linear(x).argmax(1)
    attack = ODI(make_threat("linf", 0.1), restarts=5)
    targets = attack._targets(linear, x, y, linear(x))
    assert torch.equal(targets[:, 3:], targets[:, :2])
    distances = linear_distances(linear, x, y, targets[:, :3], "linf")
    assert torch.equal(distances, distances.sort(1).values)
    assert not (targets == y[:, None]).any()


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_a_linear_network_is_broken_exactly_where_it_can_be(linear, at_once):
    """Steps of the sign of a constant gradient reach the corner of the ball, so the attack decides linear networks."""
    torch.manual_seed(1)
    x = 0.3 + 0.4 * torch.rand(200, 3, 4)
    y = linear(x).argmax(1)
    rivals = (y[:, None] + torch.arange(1, 4)) % 4
    nearest = linear_distances(linear, x, y, rivals, "linf").amin(1)
    x_adv = ODI(make_threat("linf", 0.05), restarts=5, at_once=at_once)(linear, x, y, goal="break")
    broken = linear(x_adv).argmax(1) != y
    clear = (nearest - 0.05).abs() > 1e-4
    assert 0 < broken.sum() < len(y)
    assert torch.equal(broken[clear], (nearest < 0.05)[clear])


def test_every_run_of_a_pass_is_a_query(linear):
    x = torch.rand(4, 3, 4)
    y = linear(x).argmax(1)
    seen = []
    attack = ODI(make_threat("linf", 1e-6), steps=2, spread=1, restarts=4, at_once=2)
    attack(lambda inputs: seen.append(len(inputs)) or linear(inputs), x, y)
    assert seen == [4, 4] + 2 * [8, 8, 8, 8]  # clean; for the order of targets; two groups of runs


def test_settings_that_make_no_sense_are_refused():
    threat = make_threat("linf", 0.1)
    for wrong in ({"steps": 0}, {"restarts": 0}, {"at_once": 0}, {"spread": -1}, {"loss": "no such loss"}):
        with pytest.raises(UsageError):
            ODI(threat, **wrong)
