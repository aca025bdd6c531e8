"""Metrics that an audit measures when asked: closed forms, and their way into the report."""

import numpy as np
import pytest
import torch

from lsa_cli import audit
from lsa_cli.auditing.metrics import METRICS, gradient_norms, insensitivity, orthonormal, worst_case_distances
from lsa_cli.errors import UsageError
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.surgery import NoiseBody


def linear(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))


def points(count=40, seed=1):
    generator = np.random.default_rng(seed)
    return generator.uniform(0.2, 0.8, (count, 1, 2, 2)).astype(np.float32), np.arange(count) % 3


def closed_form(body, x, y):
    """Softmax regression: the gradient is (p - e_y) (x, 1)^T, whose norm is the product of the two norms."""
    p = body(x).softmax(1)
    return (p - torch.eye(3)[y]).norm(dim=1) * (x.flatten(1).square().sum(1) + 1).sqrt()


def test_gradient_norms_of_softmax_regression():
    body = linear()
    x, y = (torch.from_numpy(part) for part in points())
    found = gradient_norms(Classifier(body).train(), x, y)
    np.testing.assert_allclose(found, closed_form(body, x, y).detach().double().numpy(), rtol=1e-5)
    assert body.training
    assert all(p.grad is None and p.requires_grad for p in body.parameters())


def test_intensity_in_a_report():
    body = linear()
    x, y = points()
    report = audit(body, data=(x, y), eps=0.1, attack=["fgsm"], noise=["none"], layers=["none"], metrics=["intensity"])
    (row,) = report.metrics
    # FGSM of a linear network has a closed form too: the sign of (p - e_y) W.
    clean, labels = torch.from_numpy(x), torch.from_numpy(y)
    gradient = ((body(clean).softmax(1) - torch.eye(3)[labels]) @ body[1].weight).reshape(clean.shape)
    moved = (clean + 0.1 * gradient.sign()).clamp(0, 1).detach()
    norms = [closed_form(body, inputs, labels).detach() for inputs in (moved, clean)]
    assert (row.n, row.attack) == (40, "fgsm")
    assert row.value == pytest.approx(float(norms[0].max() / norms[1].max()), rel=1e-5)
    assert row.quantiles["mean"] == pytest.approx(float(norms[0].mean() / norms[1].mean()), rel=1e-5)


def test_metrics_that_cannot_be_measured_are_refused():
    x, y = points()
    with pytest.raises(UsageError, match="unknown metric 'intensty': did you mean 'intensity'"):
        audit(linear(), data=(x, y), metrics=["intensty"])
    with pytest.raises(UsageError, match="give an attack"):
        audit(linear(), data=(x, y), attack=["none"], layers=["none"], metrics=["intensity"])
    assert "intensity" in METRICS


# ---- noise insensitivity and boundary distance ---------------------------------------------------------


def test_noise_insensitivity_is_a_ratio_of_means():
    body = linear()
    x, y = (torch.from_numpy(part) for part in points())
    moved = x + torch.linspace(0, 0.2, len(x))[:, None, None, None]  # the first sample stays
    losses = [
        torch.nn.functional.cross_entropy(body(part), y, reduction="none").detach().double() for part in (x, moved)
    ]
    size = np.linspace(0, 0.2, len(x))
    value, each = insensitivity(Classifier(body), x, moved, y)
    assert value == pytest.approx(abs(float(losses[1].mean() - losses[0].mean())) / size.mean(), rel=1e-4)
    expected = (losses[1] - losses[0]).abs().numpy()[1:] / size[1:]
    np.testing.assert_allclose(each, expected, rtol=1e-3)


def test_losses_and_gradients_of_sure_predictions_keep_their_digits():
    """Logit gaps of 16 to 20: the loss is log(1 + exp(-gap)), 1e-7 to 2e-9, which float32 rounds to 0 or one digit."""
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2, bias=False))
    body[1].weight.data = torch.tensor([[1.0], [0.0]])
    x, moved = (
        torch.tensor([18.0, 19.0, 20.0]).reshape(3, 1, 1, 1),
        torch.tensor([16.0, 17.0, 18.0]).reshape(3, 1, 1, 1),
    )
    y = torch.zeros(3, dtype=torch.long)
    losses = [np.log1p(np.exp(-part.flatten().double().numpy())) for part in (x, moved)]
    value, each = insensitivity(Classifier(body), x, moved, y)
    np.testing.assert_allclose(each, (losses[1] - losses[0]) / 2, rtol=1e-5)
    assert value == pytest.approx((losses[1] - losses[0]).mean() / 2, rel=1e-5)
    # d loss / d W = (p - e_y) x: two rows of size x exp(-x) / (1 + exp(-x)).
    size = x.flatten().double().numpy()
    expected = np.sqrt(2) * size * np.exp(-size) / (1 + np.exp(-size))
    np.testing.assert_allclose(gradient_norms(Classifier(body), x, y), expected, rtol=1e-5)


def test_insensitivity_to_the_attack_and_to_noise_are_two_rows():
    body = linear()
    x, y = points()
    report = audit(body, data=(x, y), eps=0.1, attack=["fgsm"], noise=["none"], layers=["none"], metrics=["eni"])
    attacked, noisy = report.metrics
    assert (attacked.name, attacked.attack) == ("eni", "fgsm")
    assert (noisy.name, noisy.attack) == ("eni", "gaussian noise, sd 0.08 of the range")
    assert attacked.value > noisy.value  # the attack is made to move the loss
    # FGSM moves some coordinate of every sample by all of eps, so the means of ratios and the ratio of means agree.
    assert attacked.value == pytest.approx(attacked.quantiles["mean"], rel=1e-5)


def test_directions_are_orthogonal_and_move_each_coordinate_by_one_on_average():
    directions = orthonormal(64, 20, 3)
    assert torch.allclose(directions @ directions.T / 64, torch.eye(20), atol=1e-5)
    assert torch.equal(directions, orthonormal(64, 20, 3))
    assert orthonormal(2, 100, 0).shape == (2, 2)


def test_the_distance_of_a_linear_network_is_that_of_the_nearest_plane_along_the_directions():
    """One score w x + b: along d the boundary lies at -(w x + b) / (w d), where that is positive."""
    torch.manual_seed(2)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 1))
    x, directions = torch.rand(30, 1, 4, 4), orthonormal(16, 8, 1)
    classifier = Classifier(body)
    y = classifier(x).argmax(1)
    with torch.no_grad():
        found = worst_case_distances(classifier, x, y, directions, None, 5, seed=0, index=torch.arange(30))
        along = -body(x) / (directions @ body[1].weight.T).T  # (30, 8)
    nearest = torch.where(along > 0, along, torch.inf).amin(1).double().numpy()
    steps = np.ceil(nearest * 255 / 2) * 2 / 255  # the first even magnitude beyond
    np.testing.assert_allclose(found, np.minimum(steps, 128 / 255), atol=1e-6)


def test_boundary_distances_in_a_report_are_of_images_right_clean():
    body = linear()
    x, y = points()
    right = int((body(torch.from_numpy(x)).argmax(1).numpy() == y).sum())
    options = {"eps": 0.1, "attack": ["fgsm"], "noise": ["none"], "layers": ["none"], "metrics": ["boundary"]}
    (row,) = audit(body, data=(x, y), **options).metrics
    assert row.n == right
    assert 2 / 255 <= row.quantiles["0.1"] <= row.quantiles["0.5"] <= row.quantiles["0.9"] <= 128 / 255
    (none,) = audit(body, data=(x, (body(torch.from_numpy(x)).argmin(1)).numpy()), **options).metrics
    assert (none.n, none.value) == (0, None)


def test_a_stochastic_network_is_measured_alike_in_any_batch_size():
    torch.manual_seed(3)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    noisy = NoiseBody(body, {"2": (8,)}, shared=False, initial=0.05)
    options = {"eps": 0.1, "attack": ["fgsm"], "noise": ["none"], "layers": ["none"]}
    x = points(12)[0]
    y = body(torch.from_numpy(x)).argmax(1).numpy()
    rows = {
        size: audit(noisy, data=(x, y), metrics=METRICS.names(), batch_size=size, **options).metrics for size in (12, 5)
    }
    for whole, parts in zip(rows[12], rows[5], strict=True):
        assert parts.value == pytest.approx(whole.value, rel=1e-5), whole.name
        assert parts.quantiles == pytest.approx(whole.quantiles, rel=1e-4), whole.name
