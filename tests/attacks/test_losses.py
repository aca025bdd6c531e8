import pytest
import torch
from torch.nn import functional as F

from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.attacks.losses import LOSSES, cross_entropy, dlr, margin, targeted_dlr, tempered


def direction(loss, logits, y):
    logits = logits.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(logits, y).sum(), logits)
    return gradient / torch.linalg.vector_norm(gradient, dim=1, keepdim=True)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_ce_points_where_the_cross_entropy_does(classes):
    logits = torch.randn(50, classes, generator=torch.Generator().manual_seed(0)).double()
    logits *= 4 / (logits.amax(1) - logits.amin(1))[:, None]  # smaller differences are enlarged
    y = torch.arange(50) % classes
    torch_ce = direction(lambda z, t: F.cross_entropy(z, t, reduction="none"), logits, y)
    torch.testing.assert_close(direction(cross_entropy, logits, y), torch_ce)


def test_ce_is_the_log_odds_of_the_cross_entropy():
    logits = 5 * torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    y = torch.arange(20) % 5
    torch.testing.assert_close(F.softplus(cross_entropy(logits, y)), F.cross_entropy(logits, y, reduction="none"))


def test_ce_sees_the_true_class_where_float32_rounds_its_probability_to_one():
    logits, y = torch.tensor([[0.0, 40.0, 1.0]]), torch.tensor([1])
    textbook = direction(lambda z, t: F.cross_entropy(z, t, reduction="none"), logits, y)
    assert float(textbook[0, 1]) == 0
    assert float(direction(cross_entropy, logits, y)[0, 1]) < -0.5
    far = torch.tensor([[0.0, 4000.0, 1.0]])
    assert torch.isfinite(direction(cross_entropy, far, y)).all()


def test_small_temperatures_tend_to_the_margin():
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    y = torch.tensor([0])
    torch.testing.assert_close(direction(tempered(0.01), logits, y), direction(margin, logits, y), atol=1e-6, rtol=0)
    uniform = direction(tempered(1000.0), logits, y)[0, 1:]
    torch.testing.assert_close(uniform, uniform[0].expand(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1 / 250, 1 / 11])
def test_nearly_equal_logits_are_attacked_as_their_usual_multiples(factor):
    """The direction is that of the log-odds at a usual scale, not the mean over all wrong classes."""
    usual = torch.randn(50, 10, generator=torch.Generator().manual_seed(2)).double()
    usual = 20 * usual / (usual.amax(1) - usual.amin(1))[:, None]
    y = torch.arange(50) % 10
    torch.testing.assert_close(direction(cross_entropy, factor * usual, y), direction(cross_entropy, usual, y))
    torch.testing.assert_close(direction(tempered(0.2), factor * usual, y), direction(tempered(0.2), usual, y))
    torch.testing.assert_close(cross_entropy(factor * usual, y), factor * cross_entropy(usual, y))
    assert torch.isfinite(cross_entropy(torch.zeros(10, 10), y[:10])).all()


@pytest.mark.parametrize("factor", [10, 1e3, 1e6])
def test_logits_far_apart_are_attacked_as_their_usual_multiples(factor):
    """The direction has several wrong classes in it, as that of logits of usual size; a class far below changes nothing."""
    usual = torch.randn(50, 10, generator=torch.Generator().manual_seed(2)).double()
    usual = 20 * usual / (usual.amax(1) - usual.median(1).values)[:, None]
    y = torch.arange(50) % 10
    torch.testing.assert_close(direction(cross_entropy, factor * usual, y), direction(cross_entropy, usual, y))
    torch.testing.assert_close(direction(tempered(0.2), factor * usual, y), direction(tempered(0.2), usual, y))
    lowest = usual.scatter(1, usual.argmin(1, keepdim=True), -1e9)
    y = usual.argmax(1)
    torch.testing.assert_close(
        direction(cross_entropy, lowest, y), direction(cross_entropy, usual, y), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("name", ["fgsm", "pgd", "t-pgd"])
def test_scaled_logits_do_not_hide_from_attacks(name):
    """Multiplying the logits by 10,000 masks the gradients of textbook attacks and changes no prediction."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    x = torch.rand(40, 1, 8, 8)
    y = body(x).argmax(1)
    attack = ATTACKS.get(name)(threat=make_threat("linf", 0.1))
    fooled = (body(attack(body, x, y)).argmax(1) != y).sum()
    masked = lambda inputs: 10_000 * body(inputs)  # noqa: E731
    assert (body(attack(masked, x, y)).argmax(1) != y).sum() >= fooled - 1
    assert fooled > 10


def test_margin_is_positive_exactly_where_fooled():
    logits = torch.randn(100, 4, generator=torch.Generator().manual_seed(3))
    y = torch.arange(100) % 4
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)
    assert set(LOSSES.names()) == {"ce", "margin", "dlr"}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_breaks_a_two_class_network_scaled_by_10_000_exactly_as_the_unscaled_one(norm):
    """With two classes the direction does not depend on the scale at all; textbook PGD finds nothing here."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 2))
    x = torch.rand(200, 20)
    y = body(x).argmax(1)
    threat = make_threat(norm, {"linf": 0.15, "l2": 0.6, "l1": 2.0}[norm])
    attack = ATTACKS.get("pgd")(threat=threat)
    plain = body(attack(body, x, y)).argmax(1) != y
    scaled = body(attack(lambda inputs: 10_000 * body(inputs), x, y)).argmax(1) != y
    assert torch.equal(plain, scaled)
    assert 20 < int(plain.sum()) < 180
    inputs = x.clone().requires_grad_(True)
    (textbook,) = torch.autograd.grad(F.cross_entropy(10_000 * body(inputs), y), inputs)
    assert (textbook.flatten(1).abs().amax(1) == 0).float().mean() > 0.5


def test_a_wrong_class_at_minus_infinity_leaves_the_loss_finite():
    logits, y = torch.tensor([[1.0, -torch.inf, 0.5]]), torch.tensor([0])
    assert torch.isfinite(cross_entropy(logits, y)).all()
    assert margin(logits, y).tolist() == [-0.5]


def test_dlr_by_hand():
    logits = torch.tensor([[5.0, 3.0, 1.0, 0.0], [5.0, 3.0, 1.0, 0.0], [5.0, 3.0, 1.0, 0.0]])
    torch.testing.assert_close(dlr(logits, torch.tensor([0, 1, 3])), torch.tensor([-2 / 4, 2 / 4, 5 / 4]))
    # (z_t - z_y) / (5 - (1 + 0) / 2)
    y, target = torch.tensor([0, 0, 1]), torch.tensor([1, 3, 0])
    torch.testing.assert_close(targeted_dlr(logits, y, target), torch.tensor([-2 / 4.5, -5 / 4.5, 2 / 4.5]))


def test_dlr_of_few_classes():
    logits = torch.tensor([[5.0, 3.0, 1.0]])
    zero, one, two = torch.tensor([0]), torch.tensor([1]), torch.tensor([2])
    assert dlr(logits, zero).tolist() == [-0.5]
    assert dlr(logits[:, :2], zero).tolist() == targeted_dlr(logits[:, :2], zero, one).tolist() == [-2.0]
    assert targeted_dlr(logits, zero, two).tolist() == [-4.0]


@pytest.mark.parametrize("classes", [2, 3, 4, 8])
def test_targeted_dlr_has_a_gradient_towards_the_last_class_too(classes):
    logits = torch.linspace(3, -1, classes)[None].requires_grad_(True)
    found = targeted_dlr(logits, torch.tensor([0]), torch.tensor([classes - 1]))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert float(gradient[0, -1]) > 0.05


@pytest.mark.parametrize("classes", [2, 3, 5, 8])
def test_dlr_is_positive_exactly_where_fooled_and_a_shift_or_a_factor_changes_nothing(classes):
    logits = torch.randn(100, classes, generator=torch.Generator().manual_seed(5)).double()
    y = torch.arange(100) % classes
    target = (y + 1) % classes
    assert torch.equal(dlr(logits, y) > 0, logits.argmax(1) != y)
    wins = (logits.gather(1, target[:, None]) > logits.gather(1, y[:, None])).squeeze(1)
    assert torch.equal(targeted_dlr(logits, y, target) > 0, wins)
    # Where there is nothing to divide by, they grow with the logits.
    grown = 1.0 if classes > 2 else 1000.0
    torch.testing.assert_close(dlr(1000 * logits + 7, y), grown * dlr(logits, y))
    grown = 1.0 if classes > 3 else 1000.0
    torch.testing.assert_close(targeted_dlr(1000 * logits + 7, y, target), grown * targeted_dlr(logits, y, target))


@pytest.mark.parametrize("classes", [2, 3, 5, 8])
@pytest.mark.parametrize("value", [0.0, 1e4])
def test_tied_logits_give_dlr_finite_values_and_gradients(classes, value):
    """A network that says nothing yet: all logits are the same, and what DLR divides by is zero."""
    logits = torch.full((4, classes), value, requires_grad=True)
    y, target = torch.arange(4) % classes, torch.arange(1, 5) % classes
    for loss in (dlr, lambda z, t: targeted_dlr(z, t, target)):
        found = loss(logits, y)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert torch.isfinite(found).all()
        assert torch.isfinite(gradient).all()
        assert (gradient.gather(1, y[:, None]) < 0).all()  # away from the true class


def test_dlr_of_a_class_at_minus_infinity_has_no_nan():
    logits = torch.tensor([[1.0, 0.5, -torch.inf]], requires_grad=True)
    y, target = torch.tensor([0]), torch.tensor([1])
    for found in (dlr(logits, y), targeted_dlr(logits, y, target)):
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert not found.isnan().any()
        assert not gradient.isnan().any()
