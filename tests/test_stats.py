"""Every statistic against its definition, published values, and scipy and statsmodels."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from lsa_cli.stats import (
    Stratum,
    binomial_tail,
    correlation_bound,
    detectable_pairs,
    detectable_shares,
    log_evidence,
    mcnemar,
    newcombe,
    ranks,
    spearman,
    two_phase,
    widened,
    wilson,
)
from lsa_cli.stats.two_phase import _RADIUS

COUNTS = [(count, n) for n in (1, 2, 7, 48, 1000) for count in sorted({0, 1, n // 3, n - 1, n})]


# ---- one share -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_reproduces_published_intervals(count, n, low, high):
    assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("count", "n"), COUNTS)
def test_wilson_is_that_of_statsmodels(count, n):
    assert wilson(count, n) == pytest.approx(proportion_confint(count, n, method="wilson"), abs=1e-12)


def test_wilson_ends_and_nothing():
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) is None


@pytest.mark.parametrize(("count", "n"), COUNTS)
@pytest.mark.parametrize("share", [0.0, 1e-6, 0.02, 0.5, 0.97, 1.0])
def test_the_tail_is_that_of_scipy(count, n, share):
    assert binomial_tail(count, n, share) == pytest.approx(stats.binom.sf(count - 1, n, share), rel=1e-9, abs=1e-300)
    assert binomial_tail(n + 1, n, share) == pytest.approx(0.0 if share < 1 else 1.0)


def test_the_tail_is_the_binomial_one():
    for n, share in ((1, 0.3), (12, 0.02), (48, 0.5)):
        for count in range(n + 2):
            exact = sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(count, n + 1))
            assert binomial_tail(count, n, share) == pytest.approx(exact, abs=1e-12)


# ---- two shares, two orders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"), [((56, 70), (48, 80)), ((9, 10), (3, 10)), ((0, 20), (5, 30)), ((30, 30), (29, 30))]
)
def test_the_interval_of_a_difference_is_that_of_statsmodels(a, b):
    expected = confint_proportions_2indep(*a, *b, compare="diff", method="newcomb")
    assert newcombe(a[0] / a[1], wilson(*a), b[0] / b[1], wilson(*b)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("won", "lost"), [(0, 1), (3, 3), (5, 20), (40, 90), (1, 400), (700, 500)])
def test_mcnemar_is_that_of_statsmodels(won, lost):
    expected = mcnemar_of_statsmodels([[0, won], [lost, 0]], exact=True).pvalue
    assert mcnemar(won, lost) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_mcnemar_is_the_exact_two_sided_sign_test():
    """Against counting every way the changed samples could have gone."""
    for changed in range(9):
        ways = [sum(way) for way in product((0, 1), repeat=changed)]
        for won in range(changed + 1):
            extreme = sum(abs(way - changed / 2) >= abs(won - changed / 2) for way in ways) / len(ways)
            assert mcnemar(won, changed - won) == pytest.approx(extreme)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(6, 0) == 1 / 32


def test_paired_tests_keep_their_promise_by_simulation():
    """Changed samples that fall either way with equal chance: a table of rows calls a change at most 5% of the time."""
    generator = np.random.default_rng(0)
    changed = generator.integers(1, 60, 6000)
    won = generator.binomial(changed, 0.5)
    p = np.array([mcnemar(int(a), int(n - a)) for a, n in zip(won, changed, strict=True)])
    for rows in (1, 5, 20):
        tables = p.reshape(-1, rows)
        assert (tables <= 0.05 / rows).any(1).mean() <= 0.05 + 3 * (0.05 * 0.95 / len(tables)) ** 0.5


@pytest.mark.parametrize("values", [6, 1000])
def test_rank_correlation_is_that_of_scipy(values):
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, values, 30).astype(float), generator.normal(size=30)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    np.testing.assert_array_equal(ranks(a), stats.rankdata(a))
    a[3] = np.nan  # left out
    keep = np.isfinite(a)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a[keep], b[keep]).statistic)
    assert spearman(np.ones(5), b[:5]) is None
    assert spearman(a[:2], b[:2]) is None


@pytest.mark.parametrize("error", [0.05, 0.001])
@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_the_bound_of_a_correlation_is_that_of_scipy(noise, error):
    generator = np.random.default_rng(0)
    a = generator.normal(size=40)
    found = stats.pearsonr(a, a + noise * generator.normal(size=40))
    expected = found.confidence_interval(1 - 2 * error).high
    assert correlation_bound(found.statistic, 40, error) == pytest.approx(expected, abs=1e-9)
    assert correlation_bound(1.0, 40, error) <= 1.0


# ---- detectable differences ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "changed"), [(1000, 100), (1000, 3), (200, 60), (40, 40), (5000, 400)])
@pytest.mark.parametrize("error", [0.05, 0.01])
def test_a_detectable_difference_of_pairs_is_found_four_times_in_five(n, changed, error):
    generator, gap = np.random.default_rng(6), detectable_pairs(n, changed, error)
    share = max(changed / n, gap)
    lost, won = generator.multinomial(n, [(share - gap) / 2, (share + gap) / 2, 1 - share], 2000)[:, :2].T
    found = [w > z and mcnemar(int(w), int(z)) <= error for w, z in zip(won, lost, strict=True)]
    assert 0.77 < np.mean(found) < 0.83


def test_the_power_of_pairs_is_the_sum_over_every_outcome():
    n, changed, error = 30, 12, 0.05
    gap = detectable_pairs(n, changed, error)
    share = max(changed / n, gap)
    chances = ((share + gap) / 2, (share - gap) / 2, 1 - share)
    ways = ((won, lost) for won in range(n + 1) for lost in range(n + 1 - won) if won > lost)
    power = sum(stats.multinomial.pmf((w, z, n - w - z), n, chances) for w, z in ways if mcnemar(w, z) <= error)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_more_samples_or_fewer_changes_show_smaller_differences():
    by_size = [detectable_pairs(n, n // 10, 0.01) for n in (50, 100, 1000, 10_000)]
    by_changes = [detectable_pairs(1000, changed, 0.01) for changed in (0, 50, 200, 1000)]
    assert by_size == sorted(by_size, reverse=True)
    assert by_changes == sorted(by_changes)
    assert detectable_pairs(0, 0, 0.05) is None
    assert detectable_pairs(5, 5, 0.05) is None  # 5 of 5 won: p = 1/16
    assert detectable_pairs(6, 6, 0.05) == pytest.approx(2 * 0.8 ** (1 / 6) - 1)  # all six must be won: p = 1/32


@pytest.mark.parametrize("n", [50, 400, 1000])
@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.3, 0.4), (0.02, 0.0), (0.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("error", [0.05, 0.01])
def test_a_detectable_difference_of_independent_shares_is_found_four_times_in_five(n, a, b, error):
    """The power, summed over the counts of both samples."""
    gap = detectable_shares(a, b, n, error)
    low = min(max((a + b - gap) / 2, 0), 1 - gap)
    intervals = [widened(k / n, wilson(k, n), error) for k in range(n + 1)]
    below, above = (np.abs([end - k / n for k, end in enumerate(ends)]) for ends in zip(*intervals, strict=True))
    counts = np.arange(n + 1)
    gaps = (counts[None, :] - counts[:, None]) / n  # of the second over the first
    is_found = gaps > np.hypot(below[None, :], above[:, None])
    power = stats.binom.pmf(counts, n, low) @ is_found @ stats.binom.pmf(counts, n, low + gap)
    assert 0.75 < power < 0.85


def test_a_few_independent_samples_show_no_difference():
    assert detectable_shares(0.5, 0.5, 2, 0.01) is None
    assert detectable_shares(0.5, 0.5, 0, 0.05) is None


# ---- two-phase sampling ------------------------------------------------------------------------------------


def chance(seen, totals, strata):
    """The probability to see so many broken samples in the parts of the strata, if there are `totals` of them."""
    return math.prod(
        math.comb(total, k) * math.comb(size - total, checked - k) / math.comb(size, checked)
        for k, total, (size, checked) in zip(seen, totals, strata, strict=True)
    )


def draws(strata):
    return product(*(range(checked + 1) for _, checked in strata))


def result(n, strata, seen):
    return two_phase(n, [Stratum(*pair, k) for pair, k in zip(strata, seen, strict=True)])


def interval_by_definition(n, strata, seen):
    """Of every way to spread every number of broken samples over the strata; the bounds of one share are scipy's."""

    def estimate(seen):
        return sum(size * k / checked for k, (size, checked) in zip(seen, strata, strict=True))

    bounds = []
    for side in (1, -1):
        beside = [other for other in draws(strata) if side * (estimate(other) - estimate(seen)) <= 1e-9]
        p = {}
        for totals in product(*(range(size + 1) for size, _ in strata)):
            if chance(seen, totals, strata):
                at_most = sum(chance(other, totals, strata) for other in beside)
                p[sum(totals)] = max(p.get(sum(totals), 0.0), at_most)
        shares = []
        for total, value in p.items():
            rest = _RADIUS**2 - max(0.0, stats.norm.isf(min(value, 1.0))) ** 2
            robust = sum(size for size, _ in strata) - total
            count = robust if side == 1 else n - robust
            if rest > 0:
                shares.append(stats.beta.ppf(stats.norm.sf(rest**0.5), count, n - count + 1) if count else 0.0)
        bounds.append(min(shares))
    return bounds[0], 1 - bounds[1]


@pytest.mark.parametrize(
    ("n", "strata", "seen"),
    [
        (60, [(30, 8)], (0,)),
        (60, [(30, 8)], (3,)),
        (30, [(30, 8)], (8,)),
        (40, [(5, 5), (12, 4), (20, 5)], (2, 1, 0)),
        (40, [(12, 4), (20, 5)], (3, 2)),
        (25, [(12, 11), (13, 3)], (0, 3)),
    ],
)
def test_the_interval_is_that_of_the_definition(n, strata, seen):
    assert result(n, strata, seen)[1:] == pytest.approx(interval_by_definition(n, strata, seen), abs=1e-6)


def test_one_stratum_is_a_simple_random_sample():
    value, low, high = two_phase(400, [Stratum(300, 50, 5)])
    assert value == pytest.approx(0.75 * 0.9)
    # Narrower than the product of two exact intervals, each of which misses with 2.5% at most.
    survive = stats.binomtest(300, 400).proportion_ci(0.975, method="exact")
    miss = stats.binomtest(5, 50).proportion_ci(0.975, method="exact")
    assert survive.low * (1 - miss.high) < low < value < high < survive.high * (1 - miss.low)


def test_what_is_no_estimate():
    for n, strata in ((100, []), (0, []), (100, [Stratum(0, 0, 0)]), (100, [Stratum(30, 10, 0), Stratum(40, 0, 0)])):
        with pytest.raises(ValueError, match="nothing was checked"):
            two_phase(n, strata)
    with pytest.raises(ValueError, match="more than two strata"):
        two_phase(100, [Stratum(20, 10, 0)] * 3)


def test_all_survivors_checked_is_one_share():
    assert two_phase(100, [Stratum(60, 60, 10)]) == (0.5, *wilson(50, 100))
    assert two_phase(100, [Stratum(20, 20, 9), Stratum(40, 40, 1)]) == (0.5, *wilson(50, 100))


def test_the_errors_of_two_phases_add_up_to_one_in_forty():
    """Independent p-values refute on one side with 2.5%, whichever of them is small."""
    z = np.maximum(np.random.default_rng(0).normal(size=(2_000_000, 2)), 0)
    assert ((z**2).sum(1) >= _RADIUS**2).mean() == pytest.approx(0.025, abs=0.0004)


@pytest.mark.parametrize("totals", [(0, 0, 0), (6, 0, 0), (6, 9, 2), (0, 0, 9), (3, 30, 60), (1, 2, 90), (6, 12, 40)])
def test_over_all_draws_the_estimate_is_unbiased_and_the_interval_holds_these_samples(totals):
    """Whatever breaks, also where only far samples do."""
    n, strata = 200, [(6, 6), (30, 7), (90, 9)]
    truth = (sum(size for size, _ in strata) - sum(totals)) / n
    chances = {seen: chance(seen, totals, strata) for seen in draws(strata) if seen[0] == totals[0]}
    found = {seen: result(n, strata, seen) for seen, value in chances.items() if value}
    assert sum(chances[seen] * value for seen, (value, *_) in found.items()) == pytest.approx(truth)
    assert sum(chances[seen] for seen, (_, low, high) in found.items() if low <= truth <= high) >= 0.95


def test_many_samples_are_tried_in_steps_and_the_interval_is_hardly_wider():
    n, strata, seen = 10_000, [(8_000, 30)], (2,)
    _, low, _ = result(n, strata, seen)
    z = np.maximum(stats.norm.isf(stats.hypergeom.cdf(2, 8_000, np.arange(8_001), 30)), 0)
    kept = np.flatnonzero(z < _RADIUS)
    robust = 8_000 - kept
    exact = stats.beta.ppf(stats.norm.sf((_RADIUS**2 - z[kept] ** 2) ** 0.5), robust, n - robust + 1).min()
    assert exact - 5 / n <= low <= exact
    found = [result(n, strata, (k,)) for k in range(31)]
    for broken in (0, 5, 60, 600, 4_000):
        held = [k for k, (_, low, high) in enumerate(found) if low <= 0.8 - broken / n <= high]
        assert stats.hypergeom.pmf(held, 8_000, broken, 30).sum() >= 0.95


WEAK = {  # the probability to break, by distance in [0, 1]
    "even": lambda u: 0.05 + 0 * u,
    "near": lambda u: 0.9 * np.exp(-u / 0.05),
    "none": lambda u: 0 * u,
    "half": lambda u: 0.5 + 0 * u,
    "far": lambda u: 0.2 * (u > 0.6),
    "masked": lambda u: 0.5 * np.exp(-u / 0.3),
}


@pytest.mark.parametrize(
    ("robust_cheap", "weak"),
    [(0.5, "even"), (0.9, "near"), (0.3, "none"), (0.6, "half"), (0.98, "near"), (0.9, "far"), (0.7, "masked")],
)
@pytest.mark.parametrize("size", [20, 60])
def test_the_interval_covers_at_least_nominally(robust_cheap, weak, size):
    """The share of these samples and the population's, by simulation: each missed at most 5% of the time."""
    generator = np.random.default_rng(0)
    n, rounds = 150, 400
    population = robust_cheap * (1 - WEAK[weak]((np.arange(100_000) + 0.5) / 100_000).mean())
    missed_sample = missed_population = 0
    for _ in range(rounds):
        distance = np.sort(generator.random(generator.binomial(n, robust_cheap)))  # of the survivors, nearest first
        breaks = generator.random(len(distance)) < WEAK[weak](distance)
        near = size // 4
        parts = np.split(np.arange(len(distance)), [near, max(size // 2, len(distance) // 3)])
        strata = []
        for places, checked in zip(parts, (near, size // 4, size - 2 * near), strict=True):
            drawn = generator.choice(places, min(checked, len(places)), replace=False)
            strata.append(Stratum(len(places), len(drawn), int(breaks[drawn].sum())))
        _, low, high = two_phase(n, strata)
        missed_sample += not low <= (len(distance) - breaks.sum()) / n <= high
        missed_population += not low <= population <= high
    assert missed_sample <= 0.05 * rounds
    assert missed_population <= 0.05 * rounds


# ---- confidence sequences ----------------------------------------------------------------------------------


def test_the_evidence_is_a_mean_likelihood_over_the_largest_by_scipy():
    """What it promises is tested in test_gate_statistics.py."""
    size = 200
    totals = np.arange(size + 1)
    for ones, taken in ((10, 40), (60, 90), (0, 7), (7, 7), (0, 0)):
        likelihood = stats.hypergeom.pmf(ones, size, totals, taken)
        found = log_evidence(ones, taken, size)
        for total in (ones, ones + 20, 150):
            exact = likelihood[total + 1 :].mean() / likelihood[: total + 1].max()
            assert found[total] == pytest.approx(math.log(exact), abs=1e-9)
        assert np.isinf(found[:ones]).all()
