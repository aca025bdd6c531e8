"""The ranked cascade: which samples a round attacks, and that it breaks what its rounds break."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli.attacks import make_threat
from lsa_cli.attacks.ensemble import AutoAttack
from lsa_cli.attacks.fab import FABT
from lsa_cli.attacks.fmn import FMN
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.attacks.ranked import FAR_LEAST, RankedCascade, Round, by_rank, everywhere, rounds_of
from lsa_cli.attacks.search import searching
from lsa_cli.attacks.square import Square
from lsa_cli.attacks.square_pgd import SquarePGD
from tests.fitting import fitted

COUNT = 200


def fall(rounds, breaks):
    """Run rounds on samples whose rank is their number from 1. breaks: for each round the ranks that it can break.

    Returns what each round met, the samples that it attacked, and the margins.
    """
    margins, lot = -np.arange(1.0, COUNT + 1), np.random.default_rng(0).random(COUNT)
    attacked = [[] for _ in rounds]

    def attack(number, rows):
        assert (margins[rows] <= 0).all()
        attacked[number] += (rows + 1).tolist()
        return np.where(np.isin(rows + 1, list(breaks[number])), 1.0, -np.inf)

    met = list(by_rank(rounds, margins, lot, attack))
    assert all(len(ranks) == len(set(ranks)) for ranks in attacked)
    return met, attacked, margins


def test_a_round_that_breaks_near_samples_stays_near():
    (first, second), attacked, margins = fall([Round("all", None), Round("near", None, 0.1, 5)], [{200}, {1, 2, 3}])
    assert (first.first, first.far) == (COUNT, 0)
    assert (second.robust, second.first, second.last) == (199, 20, 20)
    assert second.far == FAR_LEAST
    assert set(attacked[1]) >= set(range(1, 21))
    assert len(attacked[1]) == 20 + FAR_LEAST
    assert set(np.flatnonzero(margins > 0) + 1) == {1, 2, 3, 200}


def test_a_round_grows_to_three_times_the_rank_that_it_broke():
    (met,), attacked, _ = fall([Round("near", None, 0.05)], [{8}])
    assert (met.first, met.last) == (10, 24)
    (met,), attacked, _ = fall([Round("near", None, 0.05)], [{8, 17}])
    assert met.last == 51
    assert set(attacked[0]) >= set(range(1, 52))


def test_a_far_sample_that_breaks_moves_the_border_out():
    _, attacked, _ = fall([Round("near", None, 0.05)], [set()])
    far = max(attacked[0])
    assert far > 20
    (met,), again, _ = fall([Round("near", None, 0.05)], [{far}])
    assert met.broken_far == 1
    assert met.last == min(COUNT, 3 * far)
    assert set(again[0]) >= {*attacked[0], *range(1, met.last + 1)}


def test_where_all_break_all_are_attacked():
    (met,), _, margins = fall([Round("near", None, 0.05)], [range(1, COUNT + 1)])
    assert met.last == COUNT
    assert (margins > 0).all()


def test_everywhere_attacks_all_that_are_robust_in_every_round():
    rounds = everywhere([Round("near", None, 0.05, 3), Round("near", None, 0.01)])
    _, attacked, _ = fall(rounds, [{150}, set()])
    assert [len(ranks) for ranks in attacked] == [COUNT, COUNT - 1]


def test_samples_that_are_not_robust_are_not_attacked():
    margins = np.array([np.nan, np.inf, -1.0])
    seen = []
    list(by_rank([Round("all", None)], margins, np.zeros(3), lambda number, rows: seen.append(rows) or np.full(1, 1.0)))
    assert [rows.tolist() for rows in seen] == [[2]]


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    x = torch.rand(120, 1, 6, 6)
    y = (x.flatten(1) @ torch.randn(36, 5)).argmax(1)
    body = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 5))
    body = fitted(body, x, y, 150).requires_grad_(False)
    right = body(x).argmax(1) == y
    return body, x[right], y[right]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.15), ("l1", 0.6)])
def test_it_leaves_what_all_of_its_attacks_leave_and_patience_breaks_no_more(task, norm, eps):
    body, x, y = task
    threat = make_threat(norm, eps)

    def left(goal):
        x_adv = RankedCascade(threat)(body, x, y, goal=goal)
        assert threat.contains(x_adv, x).all()
        return margin(body(x_adv), y) <= 0

    ranked, patient = left("break"), left("patient")
    assert 0 < patient.sum() < len(y)  # otherwise this test says nothing
    assert torch.equal(ranked, patient)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_first_round_attacks_all_and_random_search_is_last_where_it_is_defined(norm):
    rounds = rounds_of(make_threat(norm, 0.1))
    assert (rounds[0].share, rounds[0].attack.kind) == (1, "budget" if norm == "linf" else "minimal")
    assert rounds[-1].name == {"linf": "square-pgd again", "l2": "square", "l1": "fab-t"}[norm]
    assert len({one.name for one in rounds}) == len(rounds)
    assert len({(one.attack.stream, type(one.attack)) for one in rounds if "pgd" in one.name}) == sum(
        "pgd" in one.name for one in rounds
    )  # no round repeats the random numbers of another


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_in_l2_and_l1_it_begins_with_fmn_and_fab_t_is_as_long_as_in_autoattack(norm):
    threat = make_threat(norm, 0.1)
    attacks = [one.attack for one in rounds_of(threat)]
    assert attacks[0] == FMN(threat)
    assert next(member for member in AutoAttack(threat).members if isinstance(member, FABT)) in attacks


def test_pgd_after_square_keeps_what_square_breaks_and_breaks_more(task):
    body, x, y = task
    threat = make_threat("linf", 0.03)
    attack = SquarePGD(threat, queries=20, at_once=1)
    both = attack(body, x, y, seed=0, goal="break")
    with per_sample(0, torch.arange(len(x)), attack.stream), searching("break"):
        alone = Square(threat, 20).perturb(body, x, y)
    assert threat.contains(both, x).all()
    by_square, by_both = margin(body(alone), y) > 0, margin(body(both), y) > 0
    assert by_both[by_square].all()
    assert by_both.sum() > by_square.sum()


def test_every_sample_keeps_a_radius_of_its_own(task):
    body, x, y = task
    eps = torch.linspace(0, 0.06, len(y))
    threat = make_threat("linf", 0.1)
    x_adv = RankedCascade(dataclasses.replace(threat, eps=eps))(body, x, y, goal="break")
    assert ((x_adv - x).flatten(1).abs().amax(1) <= eps + 1e-6).all()
    broken = margin(body(x_adv), y) > 0
    assert broken[eps > 0.04].float().mean() > broken[eps < 0.02].float().mean()


def test_the_worst_case_is_no_weaker_than_any_round(task):
    body, x, y = task
    x, y, threat = x[:8], y[:8], make_threat("linf", 0.02)
    worst = margin(body(RankedCascade(threat)(body, x, y)), y)
    for member in RankedCascade(threat).members:
        found = member(body, x, y)
        assert (worst >= margin(body(threat.project(found, x)), y) - 1e-5).all()
