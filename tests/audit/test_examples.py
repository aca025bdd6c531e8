"""The pictures of a report: which samples, and that they show what happened."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lsa_cli import audit
from lsa_cli.auditing.examples import example, surest_mistakes
from lsa_cli.report.schema import AuditReport


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))


def test_the_surest_mistake_of_each_class_comes_first():
    y = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    margins = np.array([9.0, 8.0, 7.0, np.nan, 1.0, 6.0, 5.0, 99.0, 4.0])
    broken = np.array([1, 1, 1, 1, 1, 1, 1, 0, 1], dtype=bool)
    assert surest_mistakes(broken, margins, y).tolist() == [0, 5, 4, 1, 6, 3]
    assert surest_mistakes(np.zeros(9, dtype=bool), margins, y).tolist() == []


@pytest.mark.parametrize("channels", [1, 3])
def test_a_difference_is_shown_around_grey_at_full_strength(channels):
    x = np.full((channels, 4, 5), 0.4, dtype=np.float32)
    x_adv = x.copy()
    x_adv[:, 0, 0], x_adv[:, 3, 4] = 0.5, 0.35
    shown = example(x, x_adv, index=7, label="a", predicted="b", attack="pgd", margin=np.inf, distance=0.1)
    assert (pixels(shown.clean) == 102).all()
    difference = pixels(shown.difference).reshape(4, 5, channels)
    assert shown.gain == pytest.approx(5, rel=1e-5)
    assert (difference[0, 0] == 255).all()
    assert (difference[3, 4] == 64).all()
    assert (difference[1] == 128).all()
    assert shown.margin is None
    # In an audit a margin is the best wrong logit minus the true one; a report has that of the glossary.
    assert example(x, x_adv, index=7, label="a", predicted="b", attack="pgd", margin=2.5, distance=0.1).margin == -2.5


def test_large_images_become_small_and_the_noisiest_fit():
    noise = np.random.default_rng(0).random((3, 300, 500), dtype=np.float32)
    shown = example(noise, 1 - noise, index=0, label="a", predicted="b", attack="x", margin=1.0, distance=1.0)
    assert pixels(shown.clean).shape == pixels(shown.difference).shape == (38, 64, 3)
    small = noise[:, :64, :64]
    example(small, 1 - small, index=0, label="a", predicted="b", attack="x", margin=1.0, distance=1.0)


@pytest.fixture(scope="module")
def network():
    """Right where the left half is brighter than the right: broken by a nudge of the halves."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    weight = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4)
    net[1].weight.data = torch.stack([weight, -weight])
    return net


def test_an_audit_shows_samples_that_its_strongest_attack_broke(network):
    x = torch.full((40, 1, 4, 4), 0.5)
    y = torch.arange(40) % 2
    x[y == 0, :, :, :2] += 0.1
    x[y == 1, :, :, 2:] += 0.1
    options = {
        "data": (x.numpy(), y.numpy()),
        "eps": 0.2,
        "attack": ["fgsm", "pgd:steps=3"],
        "noise": "none",
        "layers": ["none"],
    }
    report = audit(network, **options)
    assert len(report.examples) == 6
    for shown in report.examples:
        assert shown.attack == "fgsm"  # both break all: the first of equals
        assert shown.label == str(int(y[shown.index]))
        assert shown.predicted != shown.label
        assert shown.distance == pytest.approx(0.2, rel=1e-4)
        assert np.array_equal(pixels(shown.clean), np.rint(255 * x[shown.index, 0].numpy()))
        moved = pixels(shown.adversarial).astype(int) - pixels(shown.clean)
        assert np.abs(moved).max() == 51
    assert {shown.label for shown in report.examples} == {"0", "1"}
    assert AuditReport.model_validate_json(report.to_json()) == report
    assert audit(network, **options, batch_size=7).examples == report.examples
    assert audit(network, **{**options, "eps": 0.01}).examples == []
