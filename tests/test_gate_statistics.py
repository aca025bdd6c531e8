"""The guarantee of --gate-only and of compare --sequential: exact on small sets, simulated on large ones; and what a decision costs."""

import math
from fractions import Fraction
from functools import cache
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from lsa_cli.auditing.execution import blocks
from lsa_cli.stats import confidence_sequence, difference_sequence, log_evidence, log_wealth, samples_to_decide

SIZE = 10_000
bounds_of = cache(confidence_sequence)  # the orders of a simulation come to the same counts again and again


@cache
def likelihood(total, ones, taken, size):
    return math.comb(total, ones) * math.comb(size - total, taken - ones)


@cache
def wealth(total, truth, ones, taken, size):
    """What was staked against `total`, in exact fractions, where the odds are those of `truth`."""
    larger = [likelihood(m, ones, taken, size) for m in range(total + 1, size + 1)]
    return Fraction(sum(larger), len(larger) * likelihood(truth, ones, taken, size))


def states(size):
    return [(ones, taken) for taken in range(size + 1) for ones in range(taken + 1)]


def test_the_evidence_is_its_definition():
    size = 9
    for ones, taken in states(size):
        for total in range(size):
            possible = [m for m in range(total + 1) if likelihood(m, ones, taken, size)]
            exact = min((wealth(total, m, ones, taken, size) for m in possible), default=math.inf)
            found = math.exp(min(700, log_evidence(ones, taken, size)[total]))
            assert found == pytest.approx(float(exact)) or exact == math.inf


def test_the_wealth_is_a_supermartingale_under_the_truth():
    """Its mean over the next sample is its value now, at every state, and less where only one outcome is possible."""
    size = 12
    for truth in range(size):
        for taken in range(size):
            for ones in range(max(0, taken - (size - truth)), min(taken, truth) + 1):
                one = Fraction(truth - ones, size - taken)
                ahead = [(one, ones + 1), (1 - one, ones)]
                for total in range(truth, size):
                    mean = sum(chance * wealth(total, truth, s, taken + 1, size) for chance, s in ahead if chance)
                    now = wealth(total, truth, ones, taken, size)
                    assert mean == now if 0 < one < 1 else mean <= now


@pytest.mark.parametrize("error", [0.2, 0.05, 0.01])
def test_a_bound_is_ever_wrong_at_most_by_its_error_exactly(error):
    """Every true share of 60 samples, looked at after each one: the chance over all orders, state by state."""
    size = 60
    bounds = {state: confidence_sequence(*state, size, error) for state in states(size)}
    worst = 0.0
    for side in (0, 1):
        for truth in range(size + 1):
            alive, lost = (
                {0: 1.0},
                0.0,
            )  # chance of each count of ones, among the orders in which the bound was never wrong
            for taken in range(size):
                following = {}
                for ones, chance in alive.items():
                    one = (truth - ones) / (size - taken)
                    for s, p in ((ones + 1, one), (ones, 1 - one)):
                        if p > 0:
                            following[s] = following.get(s, 0.0) + chance * p
                alive = {}
                for ones, chance in following.items():
                    bound = bounds[ones, taken + 1][side]
                    if bound > truth / size if side == 0 else bound < truth / size:
                        lost += chance
                    else:
                        alive[ones] = chance
            worst = max(worst, lost)
    assert 0 < worst <= error


def test_bounds_are_the_ends_of_what_is_not_refuted():
    size, error = 20, 0.0501  # no wealth is 1 / error exactly, where rounding would decide

    def fewest(ones, taken):
        for total in range(size):
            possible = [m for m in range(total + 1) if likelihood(m, ones, taken, size)]
            if possible and min(wealth(total, m, ones, taken, size) for m in possible) < 1 / error:
                return total
        return size

    for ones, taken in states(size):
        expected = (fewest(ones, taken) / size, (size - fewest(taken - ones, taken)) / size)
        assert confidence_sequence(ones, taken, size, error) == expected
        low, high = expected
        assert low <= high
        assert confidence_sequence(ones, taken, size, error, 0.2) == (
            low,
            confidence_sequence(ones, taken, size, 0.2)[1],
        )
    assert confidence_sequence(0, 0, size, error) == (0.0, 1.0)
    assert confidence_sequence(7, size, size, error) == (7 / size, 7 / size)


# ---- simulated: what the gate does --------------------------------------------------------------------------------


def orders(total, size, seeds, generator):
    """Ones among the first 1, 2, ... samples, for random orders of `total` ones among `size`: (seeds, size)."""
    outcomes = np.arange(size) < total
    return np.cumsum(generator.permuted(np.tile(outcomes, (seeds, 1)), axis=1), axis=1)


def looks(size):
    """After how many samples --gate-only may stop."""
    plan = SimpleNamespace(batch_size=256, whole_batch=False)
    return np.cumsum([len(block) for block in blocks(plan, np.arange(size), ends_early=True)])


def decided(ones, limit, error, at):
    """Whether the limit held, and after how many samples that was decided, for one order."""
    size = len(ones)
    for taken in at:
        low, high = bounds_of(int(ones[taken - 1]), int(taken), size, error)
        if low >= limit or high < limit:
            return low >= limit, taken
    raise AssertionError("all samples decide every limit")


@pytest.mark.parametrize("limit", [0.05, 0.4, 0.5, 0.9])
def test_wrong_decisions_at_every_true_rate(limit):
    """Also where the rate is one sample from the limit, at an alpha that is easier to exceed than the default."""
    generator, seeds, alpha, size = np.random.default_rng(2), 150, 0.1, 1000
    lowest = math.ceil(limit * size)
    for total in {lowest - 1, lowest, lowest - 6, lowest + 6, lowest - 40, lowest + 40}:
        found = [decided(ones, limit, alpha, looks(size)) for ones in orders(total, size, seeds, generator)]
        wrong = np.mean([held != (total >= lowest) for held, _ in found])
        assert wrong <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / seeds)


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_margin_of_ten_points_costs_a_tenth_at_most(limit):
    """Typical cost (median) with four limits sharing alpha = 0.01."""
    generator = np.random.default_rng(3)
    for rate in (limit - 0.1, limit + 0.1):
        total = int(np.clip(round(rate * SIZE), 0, SIZE))
        found = [decided(ones, limit, 0.01 / 4, looks(SIZE)) for ones in orders(total, SIZE, 40, generator)]
        assert all(held == (rate > limit) for held, _ in found)
        assert np.median([taken for _, taken in found]) <= SIZE / 10


def by_plug_in_bets(ones, limit, error):
    """Samples until a bettor has decided who takes the share seen so far for the truth (Kelly's stakes), at every sample."""
    size, best = len(ones), len(ones)
    x = np.diff(ones, prepend=0)
    before, taken = ones - x, np.arange(size)
    lowest = math.ceil(limit * size)
    for null, is_larger in ((lowest - 1, True), (lowest, False)):
        p = np.clip((null - before) / (size - taken), 0, 1)
        q = np.clip(((before + 0.5) / (taken + 1) * size - before) / (size - taken), 1e-3, 1 - 1e-3)
        q = np.maximum(q, p) if is_larger else np.minimum(q, p)
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.where(x == 1, np.log(q / p), np.log((1 - q) / (1 - p)))
        reached = np.flatnonzero(np.cumsum(np.nan_to_num(steps, posinf=1e9, neginf=-1e9)) >= -math.log(error))
        best = min(best, *(reached[:1] + 1), size)
    return best


@pytest.mark.parametrize("limit", [0.1, 0.4, 0.9])
def test_samples_beside_two_bounds_that_look_after_every_sample(limit):
    """At most 1.2 times the mean of the better one: plug-in bets, or the mixture of this file."""
    size, alpha, generator = 1000, 0.01, np.random.default_rng(5)
    for rate in (limit - 0.1, limit - 0.05, limit + 0.05, limit + 0.1):
        several = orders(round(rate * size), size, 25, generator)
        used = np.mean([decided(ones, limit, alpha, looks(size))[1] for ones in several])
        mixture = np.mean([decided(ones, limit, alpha, range(1, size + 1))[1] for ones in several])
        bets = np.mean([by_plug_in_bets(ones, limit, alpha) for ones in several])
        assert used <= 1.2 * min(mixture, bets), (rate, used, mixture, bets)


def test_a_rate_at_its_limit_is_decided_by_the_last_sample_at_the_latest():
    found = [decided(ones, 0.4, 0.01, looks(SIZE)) for ones in orders(4000, SIZE, 20, np.random.default_rng(4))]
    assert max(taken for _, taken in found) == SIZE
    assert np.mean([held for held, _ in found]) >= 0.9


# ---- paired differences --------------------------------------------------------------------------------------------


def all_orders(size):
    """Every sequence of steps, by (won, lost): all orders of such samples, which are equally likely."""
    found = {}
    for steps in product((-1, 0, 1), repeat=size):
        found.setdefault((steps.count(1), steps.count(-1)), []).append(np.array(steps))
    return found.items()


def test_the_wealth_against_the_true_difference_has_mean_one_or_less_exactly():
    size = 6
    for (won, lost), several in all_orders(size):
        wealths = np.exp([log_wealth(steps, won - lost, size) for steps in several])
        assert np.all(np.mean(wealths, axis=0) <= 1 + 1e-12)
        # A larger total has less against it, so the one that is tested stands for all smaller ones.
        for steps in several[:20]:
            assert np.all(log_wealth(steps, won - lost + 1, size) <= log_wealth(steps, won - lost, size) + 1e-12)


@pytest.mark.parametrize("error", [0.3, 0.1])
def test_a_bound_of_a_difference_is_ever_wrong_at_most_by_its_error_exactly(error):
    size, worst = 7, 0.0
    for (won, lost), several in all_orders(size):
        wrong = np.zeros(2)
        for steps in several:
            bounds = [difference_sequence(steps[:taken], size, error) for taken in range(1, size + 1)]
            lows, highs = np.array(bounds).T
            assert lows[-1] == highs[-1] == (won - lost) / size
            wrong += lows.max() > (won - lost) / size, highs.min() < (won - lost) / size
        worst = max(worst, *(wrong / len(several)))
    assert 0 < worst <= error


def test_bounds_of_a_difference_are_the_ends_of_what_is_not_refuted():
    size, error = 8, 0.2
    for steps in np.random.default_rng(7).integers(-1, 2, (40, size)):
        for taken in range(size):
            first = steps[:taken]
            left, total = size - taken, int(first.sum())
            possible = range(total - left, total + left + 1)
            kept = [d for d in possible if not np.any(log_wealth(first, d, size) >= -math.log(error))]
            others = [d for d in possible if not np.any(log_wealth(-first, -d, size) >= -math.log(error))]
            assert difference_sequence(first, size, error) == (min(kept) / size, max(others) / size)
    assert difference_sequence(np.zeros(0, dtype=int), size, error) == (-1.0, 1.0)


def shuffled(won, lost, size, seeds, generator):
    steps = np.repeat([1, -1, 0], [won, lost, size - won - lost])
    return generator.permuted(np.tile(steps, (seeds, 1)), axis=1)


@pytest.mark.parametrize("changed", [2, 20, 200, 1000])
def test_wrong_bounds_of_a_difference_at_every_share_of_changes(changed):
    """Over all moments, for a difference of 0, half and all of the changes: the wealth against the truth reaches 1 / error."""
    generator, size, seeds, error = np.random.default_rng(8), 1000, 400, 0.1
    for lost in (changed // 2, changed // 4, 0):
        won = changed - lost
        for sign in (1, -1):
            several = sign * shuffled(won, lost, size, seeds, generator)
            against = [log_wealth(steps, sign * (won - lost), size).max() for steps in several]
            assert np.mean(np.array(against) >= -math.log(error)) <= error + 3 * math.sqrt(error * (1 - error) / seeds)


@pytest.mark.parametrize(("won", "lost"), [(50, 50), (51, 50), (300, 280), (3, 0), (0, 40)])
def test_the_better_report_is_decided_wrongly_at_most_by_the_error(won, lost):
    generator, seeds, error = np.random.default_rng(9), 400, 0.1
    found = [samples_to_decide(steps, error) for steps in shuffled(won, lost, 1000, seeds, generator)]
    wrong = np.mean([sign != np.sign(won - lost) for _, sign in found])
    assert wrong <= error + 3 * math.sqrt(error * (1 - error) / seeds)
    assert all(1 <= used <= 1000 for used, _ in found)


def by_two_sequences(steps, total, error):
    """Samples until bounds of the samples won and of those lost, each at half the error, decide about a total."""
    size = len(steps)
    won, lost = np.cumsum(steps == 1), np.cumsum(steps == -1)
    for taken in looks(size):
        of_won, of_lost = (bounds_of(int(n[taken - 1]), int(taken), size, error / 2) for n in (won, lost))
        if of_won[0] - of_lost[1] > total / size or of_won[1] - of_lost[0] <= total / size:
            return taken
    return size


def by_bets(steps, total, error):
    several = ((steps, total), (-steps, -total - 1))
    reached = [np.flatnonzero(log_wealth(side, d, len(steps)) >= -math.log(error))[:1] + 1 for side, d in several]
    return min([len(steps), *np.concatenate(reached)])


@pytest.mark.parametrize(
    ("won", "lost", "total", "most"),
    [(400, 100, 0, 0.5), (500, 0, 0, 0.5), (0, 0, -200, 0.9), (250, 250, -300, 0.5), (750, 250, 0, 0.5)],
)
def test_bets_on_the_difference_need_fewer_samples_than_two_sequences(won, lost, total, most):
    """Mean of 20 orders of 10,000 samples, about one limit with an error of 0.01."""
    several = shuffled(won, lost, SIZE, 20, np.random.default_rng(10))
    bets = np.mean([by_bets(steps, total, 0.01) for steps in several])
    assert bets <= most * np.mean([by_two_sequences(steps, total, 0.01) for steps in several])


def test_a_limit_three_points_away_takes_about_600_samples_where_5_percent_change():
    """Median over orders of 10,000 samples at the default alpha. --gate-only looks after every tenth more."""
    several = shuffled(250, 250, SIZE, 100, np.random.default_rng(11))
    assert 500 <= np.median([by_bets(steps, 300, 0.01) for steps in several]) <= 700
