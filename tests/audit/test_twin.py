"""Attacks run on a fast twin, and every number of the report is the network's own."""

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.auditing import run as running
from lsa_cli.auditing import twin as choosing
from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.twin import choose_twin, probe_size
from lsa_cli.config import settings_from
from lsa_cli.models.precision import Twin


@pytest.fixture(scope="module")
def task():
    """Two brightnesses of 6 x 6 images, which a network with a foldable norm tells apart."""
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    x = (0.3 * torch.rand(90, 1, 6, 6) + 0.2 * y[:, None, None, None]).clamp(0, 1)
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    )  # fmt: skip
    optimizer = torch.optim.Adam(body.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(body(x), y).backward()
        optimizer.step()
    return body.eval(), x, y


def audited(task, **options):
    body, x, y = task
    options = {"eps": 0.08, "noise": "none", "attack": ["pgd:steps=5", "apgd-ce:steps=5"], "threads": 1, **options}
    return audit(body, data=(x, y), **options)


def numbers(report):
    rows = report.samples.model_dump(exclude={"margin", "distance"})
    return report.verdict.robust.value, [outcome.robust.value for outcome in report.outcomes], rows


def test_the_report_says_what_was_attacked_and_has_the_numbers_of_the_network_itself(task, precision):
    fast, slow = audited(task), audited(task, fast=False)
    assert fast.protocol.attacked == f"a copy in {precision}, channels last, 1 BatchNorm folded"
    assert slow.protocol.attacked == "the network itself: --no-fast"
    assert 0 < fast.verdict.robust.value < 1
    if precision == "float32":
        assert numbers(fast) == numbers(slow)
    assert abs(fast.verdict.robust.value - slow.verdict.robust.value) <= 0.05


class Liar(nn.Module):
    """Calls every input wrong."""

    def __init__(self, classifier, y):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier(x).roll(1, dims=1)


def test_what_only_the_twin_calls_broken_is_attacked_again_on_the_network(task, monkeypatch):
    honest = audited(task, fast=False)

    def lying(plan, x, y, index, size):
        return Twin(Liar(plan.classifier, y), "a liar", False)

    monkeypatch.setattr(running, "choose_twin", lying)
    assert numbers(audited(task)) == numbers(honest)


class Blind(nn.Module):
    """The same logits, and a gradient that leads nowhere."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier(x.detach()) - 0 * x.sum()


def test_a_twin_on_which_attacks_are_weaker_is_dropped_and_it_is_said(task, monkeypatch):
    body, x, y = task
    plan = make_plan(body, settings_from({"eps": 0.15, "threads": 1}), {}, (x, y))
    monkeypatch.setattr(choosing, "make_twin", lambda classifier, x: Twin(Blind(classifier), "a blind copy", False))
    chosen = choose_twin(plan, x, y, torch.arange(len(x)), 64)
    assert chosen.is_original
    assert chosen.model is plan.classifier
    assert "attacks on a blind copy are weaker" in chosen.described


def test_the_trial_stays_small():
    assert [probe_size(count) for count in (1, 200, 1000, 50_000)] == [8, 8, 33, 64]
    assert np.isscalar(probe_size(5))
