"""Random networks: means over evaluations, worst beside them, and layers above their noise floor."""

import math

import numpy as np
import pytest
import torch

from lsa_cli import audit
from lsa_cli.auditing.draws import DRAWS, mean_rate, spread
from lsa_cli.errors import UsageError


def test_mean_spread_and_worst_of_draws():
    wrong = np.array([[False, False], [False, True], [True, True], [False, False]])
    found = spread(wrong)
    assert (found.n, found.mean, found.worst.count) == (2, 0.625, 2)
    assert found.sd == pytest.approx(np.std([0.75, 0.5], ddof=1))
    rate = mean_rate(wrong)
    assert (rate.value, rate.count, rate.n) == (0.625, 2, 4)


class Coin(torch.nn.Module):
    """Class 1 with probability p for inputs above one half, otherwise class 0; a layer of pure chance beside it."""

    def __init__(self, p):
        super().__init__()
        self.p, self.chance, self.seen = p, torch.nn.ReLU(), torch.nn.ReLU()

    def forward(self, x):
        score = self.seen(x.flatten(1).mean(1, keepdim=True)) - 0.5
        noise = self.chance(5 + 3 * torch.randn(len(x), 8))
        flips = torch.where(torch.rand(len(x), 1) < self.p, 1.0, -1.0)
        return torch.cat([0 * noise[:, :1], score * flips], 1)


def points(count=60):
    y = np.arange(count) % 2
    return (0.2 + 0.6 * y[:, None, None, None] * np.ones((count, 1, 2, 2))).astype(np.float32), y


OPTIONS = {"eps": 0.1, "attack": ["fgsm"], "noise": ["none"], "threads": 1}


def test_a_network_of_chance_is_reported_by_its_mean():
    x, y = points()
    body = Coin(0.75)
    report = audit(body, data=(x, y), **OPTIONS)
    again = audit(body, data=(x, y), **OPTIONS)
    assert report.verdict == again.verdict
    assert report.outcomes[0].layers == again.outcomes[0].layers
    verdict = report.verdict
    # No attack moves a sample over the boundary: right clean and right attacked are two throws of 0.75.
    assert verdict.draws.n == DRAWS
    for value, p in ((verdict.clean.value, 0.75), (verdict.clean_draws.mean, 0.75)):
        assert value == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / (60 * DRAWS)))
    assert verdict.robust.value == verdict.draws.mean == report.outcomes[0].draws.mean
    assert verdict.draws.worst.value < verdict.draws.mean
    assert [w.code for w in report.warnings].count("random-network") == 1
    assert "verdict-mismatch" not in [w.code for w in report.warnings]
    assert "random-forward" in [f.code for f in report.evidence.findings]


@pytest.mark.parametrize(
    ("attack", "passes", "members"),
    [
        ("pgd:steps=2", [10], []),
        ("pgd:steps=2,eot=1", [1], []),
        ("autoattack:steps=2", [], ["apgd-ce", "apgd-dlr"]),
        ("autoattack:version=standard,steps=2,queries=5", [], ["apgd-ce", "apgd-t", "fab-t", "square"]),
    ],
)
def test_attacks_on_a_network_of_chance_climb_its_mean_unless_told_otherwise(attack, passes, members):
    report = audit(Coin(0.9), data=points(), **{**OPTIONS, "attack": [attack]})
    assert [outcome.settings["eot"] for outcome in report.outcomes] == passes
    assert [stage.attack for stage in report.cascade] == members


def test_noise_is_no_vulnerability():
    x, y = points()
    rows = {row.name: row for row in audit(Coin(0.9), data=(x, y), **OPTIONS).outcomes[0].layers.rows}
    chance, seen = rows["chance"], rows["seen"]
    assert chance.mean > seen.mean  # it moves most, and by itself
    assert chance.noise_floor == pytest.approx(chance.mean, rel=0.15)
    assert seen.noise_floor == 0
    assert (chance.in_mvl, seen.in_mvl) == (False, True)


def test_a_network_without_chance_is_asked_once():
    x, y = points()
    report = audit(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)),
        data=(x, y),
        **{**OPTIONS, "attack": ["pgd:steps=2"]},
    )
    assert report.outcomes[0].settings["eot"] == 1
    assert report.verdict.draws is None
    assert report.outcomes[0].draws is None
    assert report.outcomes[0].layers.rows[0].noise_floor is None
    assert "random-network" not in [w.code for w in report.warnings]


def test_noise_that_is_not_there_cannot_be_switched_off(samples):
    with pytest.raises(UsageError, match="has none"):
        audit(samples / "moon_mlp.pt", noise_off=True, limit=10)
    with pytest.raises(UsageError, match="noise_off is for checkpoint files"):
        audit(Coin(1.0), data=points(), noise_off=True)
