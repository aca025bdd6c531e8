"""The guarantee of --gate-only: exact on small sets, simulated on large ones; and what a decision costs."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lsa_cli.stats import confidence_sequence, log_martingale

SIZE = 10_000


def value(total, ones, taken, size):
    """M in exact fractions, from its definition."""
    if ones > total or taken - ones > size - total:
        return math.inf
    chance = Fraction(math.comb(total, ones) * math.comb(size - total, taken - ones), math.comb(size, taken))
    return Fraction(1, taken + 1) / chance


def test_the_martingale_is_its_definition():
    size = 9
    for taken in range(size + 1):
        for ones in range(taken + 1):
            for total in range(size + 1):
                exact = value(total, ones, taken, size)
                found = math.exp(min(700, log_martingale(np.array(total), np.array(ones), np.array(taken), size)))
                assert found == pytest.approx(float(exact)) or exact == math.inf


def test_it_is_a_martingale_under_the_truth():
    """The mean of the next value, over the next sample, is the value now, in exact fractions, at every state; and less
    where only one outcome is left, because the prior still holds the other possible."""
    size = 12
    for total in range(size + 1):
        for taken in range(size):
            for ones in range(max(0, taken - (size - total)), min(taken, total) + 1):
                one = Fraction(total - ones, size - taken)
                ahead = [(one, ones + 1), (1 - one, ones)]
                mean = sum(chance * value(total, s, taken + 1, size) for chance, s in ahead if chance)
                now = value(total, ones, taken, size)
                assert mean == now if 0 < one < 1 else mean < now


@pytest.mark.parametrize("error", [0.2, 0.05, 0.01])
def test_the_truth_is_ever_left_out_at_most_by_the_error_exactly(error):
    """Every true share of 60 samples, looked at after each one: the chance over all orders, state by state."""
    size = 60
    worst = 0.0
    for total in range(size + 1):
        alive, lost = {0: 1.0}, 0.0  # chance of each count of ones, among the orders that never left the truth out
        for taken in range(size):
            following = {}
            for ones, chance in alive.items():
                one = (total - ones) / (size - taken)
                for s, p in ((ones + 1, one), (ones, 1 - one)):
                    if p > 0:
                        following[s] = following.get(s, 0.0) + chance * p
            alive = {}
            for ones, chance in following.items():
                logs = log_martingale(np.array(total), np.array(ones), np.array(taken + 1), size)
                if logs >= -math.log(error):
                    lost += chance
                else:
                    alive[ones] = chance
        worst = max(worst, lost)
    assert 0 < worst <= error


def test_bounds_are_the_totals_that_are_left():
    size, error = 40, 0.0501  # no M is 1 / error exactly, where rounding would decide
    for taken in range(size + 1):
        for ones in range(taken + 1):
            left = [m for m in range(size + 1) if value(m, ones, taken, size) < 1 / error]
            assert confidence_sequence(ones, taken, size, error) == (left[0] / size, left[-1] / size)
    assert confidence_sequence(0, 0, size, error) == (0.0, 1.0)
    assert confidence_sequence(7, size, size, error) == (7 / size, 7 / size)


# ---- simulated: what the gate does on 10,000 samples --------------------------------------------------------------


def paths(total, seeds, generator):
    """Ones among the first 1, 2, ... samples, for random orders of `total` ones in SIZE: (seeds, SIZE) int."""
    outcomes = np.arange(SIZE) < total
    return np.cumsum(generator.permuted(np.tile(outcomes, (seeds, 1)), axis=1), axis=1, dtype=np.int32)


def decided(ones, limit, error):
    """For each order: held (1) or breached (0), and after how many samples, looking after each of them.

    M falls towards the likeliest total and rises behind it, so that all totals below a limit are out when the likeliest is
    above and the nearest below is out; and the other way round.
    """
    taken = np.arange(1, SIZE + 1)
    lowest = math.ceil(limit * SIZE)  # the smallest total that reaches the limit
    above = ones * SIZE >= lowest * taken
    threshold = -math.log(error)
    holds = above & (log_martingale(np.array(lowest - 1), ones, taken, SIZE) >= threshold)
    fails = ~above & (log_martingale(np.array(lowest), ones, taken, SIZE) >= threshold)
    first = (holds | fails).argmax(1)
    return holds[np.arange(len(ones)), first], first + 1


def test_the_fast_decision_of_this_file_is_that_of_the_bounds():
    generator = np.random.default_rng(1)
    for limit, total in ((0.4, 4500), (0.4, 3800), (0.9, 9300)):
        ones = paths(total, 3, generator)
        held, cost = decided(ones, limit, 0.01)
        for row in range(3):
            low, high = confidence_sequence(int(ones[row, cost[row] - 1]), int(cost[row]), SIZE, 0.01)
            assert low >= limit if held[row] else high < limit
            if cost[row] > 1:
                low, high = confidence_sequence(int(ones[row, cost[row] - 2]), int(cost[row]) - 1, SIZE, 0.01)
                assert low < limit <= high


@pytest.mark.parametrize("limit", [0.05, 0.4, 0.5, 0.9])
def test_wrong_decisions_at_every_true_rate(limit):
    """Also where the rate is one sample from the limit, at an alpha that is easier to exceed than the default."""
    generator, seeds, alpha = np.random.default_rng(2), 150, 0.1
    lowest = math.ceil(limit * SIZE)
    for total in {lowest - 1, lowest, lowest - 60, lowest + 60, lowest - 400, lowest + 400}:
        held, _ = decided(paths(total, seeds, generator), limit, alpha)
        wrong = (held != (total >= lowest)).mean()
        assert wrong <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / seeds)


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_margin_of_ten_points_costs_a_tenth_at_most(limit):
    """Typical cost (median) with four limits sharing alpha = 0.01, block overshoot of a quarter included."""
    generator = np.random.default_rng(3)
    for rate in (limit - 0.1, limit + 0.1):
        total = int(np.clip(round(rate * SIZE), 0, SIZE))
        held, cost = decided(paths(total, 100, generator), limit, 0.01 / 4)
        assert (held == (rate > limit)).all()
        assert 1.25 * np.median(cost) <= SIZE / 10


def test_a_rate_at_its_limit_is_decided_by_the_last_sample_at_the_latest():
    held, cost = decided(paths(4000, 20, np.random.default_rng(4)), 0.4, 0.01)
    assert cost.max() <= SIZE
    assert held.mean() >= 0.9
