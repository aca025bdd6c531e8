"""Metrics that an audit measures when asked: closed forms, and their way into the report."""

import numpy as np
import pytest
import torch

from lsa_cli import audit
from lsa_cli.auditing.metrics import METRICS, gradient_norms
from lsa_cli.errors import UsageError
from lsa_cli.models.classifier import Classifier


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
    with pytest.raises(UsageError, match="no attack makes any"):
        audit(linear(), data=(x, y), attack=["none"], layers=["none"], metrics=["intensity"])
    assert "intensity" in METRICS
