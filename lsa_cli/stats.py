"""All statistics of audits and reports: intervals of shares, exact tests, correlation, confidence sequences.

Shares are in [0, 1]; an interval is (low, high).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]

_Z95 = NormalDist().inv_cdf(0.975)
_POWER = 0.8  # of the smallest difference that a comparison states


# ---- one share -------------------------------------------------------------------------------------------


def wilson(count: float, n: int) -> Interval | None:
    """95% Wilson score interval of a binomial share, clipped to [0, 1]; None for n = 0. The count need not be whole."""
    if n == 0:
        return None
    share, z2 = count / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (0.0 if count == 0 else centre - half, 1.0 if count == n else centre + half)


def clopper_pearson(count: int, n: int, error: float) -> Interval:
    """Exact interval of a binomial share: it misses the true share with probability `error` at most. (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    low = 0.0 if count == 0 else _share_where(lambda p: binomial_tail(count, n, p), error / 2)
    high = 1.0 if count == n else 1 - _share_where(lambda p: binomial_tail(n - count, n, p), error / 2)
    return low, high


def binomial_tail(count: int, n: int, share: float) -> float:
    """P(X >= count) for X binomial with n draws of probability `share`: the p-value of the one-sided exact test."""
    if count <= 0 or share >= 1:
        return 1.0
    if share <= 0 or count > n:
        return 0.0
    k = np.arange(count, n + 1)
    logs = _log_choose(n, k, n) + k * math.log(share) + (n - k) * math.log1p(-share)
    return min(1.0, math.fsum(np.exp(logs)))


def _log_choose(n: int | np.ndarray, k: int | np.ndarray, largest: int) -> np.ndarray:
    """log C(n, k), elementwise, for n up to `largest`."""
    table = _log_factorials(largest)
    return table[n] - table[k] - table[n - k]


@lru_cache(maxsize=8)
def _log_factorials(largest: int) -> np.ndarray:  # (largest + 1,)
    return np.array([math.lgamma(k + 1) for k in range(largest + 1)])


def _share_where(rising: Callable[[float], float], value: float) -> float:
    """The share at which an increasing function takes `value`, by bisection: the lower end of the last bracket."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if rising(middle) < value:
            low = middle
        else:
            high = middle
    return low


# ---- two shares, two variables -----------------------------------------------------------------------------


def newcombe(a: float, of_a: Interval, b: float, of_b: Interval) -> Interval:
    """Interval of a - b for shares of two independent samples, from their own intervals (Newcombe 1998, method 10)."""
    gap = a - b
    low = gap - math.hypot(a - of_a[0], of_b[1] - b)
    high = gap + math.hypot(of_a[1] - a, b - of_b[0])
    return low, high


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided McNemar p-value: without a true change, each changed sample is won or lost with equal probability.

    Computed with integers, so that a p-value such as 1/32 is exact.
    """
    changed = won + lost
    tail = sum(math.comb(changed, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)


@lru_cache(maxsize=1024)
def detectable_pairs(n: int, changed: int, error: float) -> float | None:
    """The smallest difference of two shares of the same n samples that `mcnemar` with p <= error finds with a power of 80%.

    0 <= changed <= n: the samples whose result changed. The power is exact: the number of changed samples is binomial, and
    each is won with the same probability. Our choice: their share is the observed one, changed / n, or the difference
    itself where that is larger, because a share cannot change without samples that change. None: too few samples, whatever
    the difference.
    """

    def power(gap: float) -> float:
        share = max(changed / n, gap)
        return float(_binomial(n, share) @ _chances_to_find(n, (1 + gap / share) / 2, error))

    if n == 0 or _fewest_won(n, error)[n] > n:
        return None
    return _share_where(power, _POWER)


def detectable_shares(a: float, b: float, n: int, error: float) -> float | None:
    """The smallest difference of the shares of two independent samples, n each, that is found with a power of 80%.

    Found: the interval of `newcombe`, from two `wilson` intervals that are `widened` to `error`, leaves out 0. Our choice:
    the two shares lie evenly around the observed a and b. Approximation: the two estimates are normal, and the most likely
    pair of them among those that have a fifth of all pairs beyond it is just found; the true power is 75 to 85% from 50
    samples on. None: too few samples, whatever the difference.
    """
    quantile = NormalDist().inv_cdf(_POWER)

    def excess(gap: float) -> float:
        low = min(max((a + b - gap) / 2, 0.0), 1 - gap)
        shares = (low, low + gap)
        variances = [share * (1 - share) / n for share in shares]
        sd = math.sqrt(sum(variances)) or 1.0
        low, high = (share + s * quantile * v / sd for share, s, v in zip(shares, (1, -1), variances, strict=True))
        around_low, around_high = (widened(p, wilson(p * n, n) or (0, 1), error) for p in (low, high))
        return newcombe(high, around_high, low, around_low)[0]

    return None if n == 0 or excess(1.0) < 0 else _share_where(excess, 0.0)


def widened(share: float, interval: Interval, error: float) -> Interval:
    """A 95% interval of a share at another error, its halves in proportion to the normal quantile (our choice)."""
    factor = NormalDist().inv_cdf(1 - error / 2) / _Z95
    return max(0.0, share - factor * (share - interval[0])), min(1.0, share + factor * (interval[1] - share))


def _binomial(n: int, share: float) -> np.ndarray:  # (n + 1,)
    """The probability of each count 0 ... n; 0 < share <= 1."""
    k = np.arange(n + 1)
    if share == 1:
        return (k == n).astype(float)
    return np.exp(_log_choose(n, k, n) + k * math.log(share) + (n - k) * math.log1p(-share))


# P(X >= c) of a binomial X changes with one more sample by the probability that this sample decides: from X = c - 1, it
# adds one success; where c grows by one too, from X = c, it lacks one.


@lru_cache(maxsize=64)
def _fewest_won(n: int, error: float) -> np.ndarray:  # (n + 1,) int
    """For each number of changed samples 0 ... n: how many must be won for `mcnemar` <= error. One more than all: no number is enough."""
    table, fewest, tail = _log_factorials(n), [1], 0.0  # tail: P(won >= fewest) where nothing truly changed

    def half(changed: int, k: int) -> float:
        """Half the probability that k of so many changed samples are won."""
        return (
            math.exp(table[changed] - table[k] - table[changed - k] - (changed + 1) * math.log(2))
            if k <= changed
            else 0.0
        )

    for changed in range(n):
        c = fewest[-1]
        ahead = tail + half(changed, c - 1)
        enough = 2 * ahead <= error
        tail = ahead if enough else tail - half(changed, c)
        fewest.append(c if enough else c + 1)
    return np.array(fewest)


def _chances_to_find(n: int, won: float, error: float) -> np.ndarray:  # (n + 1,)
    """For each number of changed samples 0 ... n: P(`mcnemar` <= error, more won than lost), each won with probability `won`."""
    fewest = _fewest_won(n, error)
    changed, c = np.arange(n), fewest[:-1]
    grows = fewest[1:] > c
    k = np.where(grows, c, c - 1)
    possible = k <= changed
    k = np.where(possible, k, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.where(changed > k, (changed - k) * np.log1p(-won), 0.0)
    at_k = np.where(possible, np.exp(_log_choose(changed, k, n) + k * math.log(won) + lost), 0.0)
    return np.append(0.0, np.cumsum(np.where(grows, (won - 1) * at_k, won * at_k)))


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:  # (N,) each
    """Rank correlation where both are finite; None for fewer than 3 such pairs, or if one side is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return None
    first, second = ranks(a[both]), ranks(b[both])
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:  # (N,) -> (N,)
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def correlation_bound(correlation: float, n: int, error: float) -> float:
    """Upper bound of a correlation of n > 3 pairs, by Fisher's z: it is too low with probability `error`."""
    quantile = NormalDist().inv_cdf(1 - error)
    return math.tanh(math.atanh(min(correlation, 1 - 1e-9)) + quantile / math.sqrt(n - 3))


# ---- two-phase sampling ------------------------------------------------------------------------------------


def two_phase(n: int, survivors: int, checked: int, broken: int) -> tuple[float, float, float]:
    """The share of n samples that are still robust under a stronger attack: the estimate, and a 95% interval.

    `survivors` of n are still robust under cheap attacks. The strong attack runs on a random part of them, `checked`, and
    breaks `broken`. The share is a * (1 - m), with a the share of survivors and m the share of them that the strong attack
    breaks. Each of the two exact intervals misses with probability 2.5% at most, so their product misses with 5% at most
    (our choice: simple, and never too short), for these n samples and for the population.
    Raises ValueError if nothing was checked.
    """
    if n == 0 or checked == 0:
        raise ValueError("nothing was checked")
    estimate = survivors / n * (1 - broken / checked)
    if checked == survivors:  # one binomial share
        low, high = wilson(survivors - broken, n) or (0.0, 1.0)
        return estimate, low, high
    (a_low, a_high), (m_low, m_high) = clopper_pearson(survivors, n, 0.025), clopper_pearson(broken, checked, 0.025)
    return estimate, a_low * (1 - m_high), a_high * (1 - m_low)


# ---- confidence sequences ----------------------------------------------------------------------------------
# Samples are taken one by one, in random order and without replacement, from a set of N that holds m ones. After n
# samples, s of them ones, the likelihood of m is L(m) = C(m, s) C(N - m, n - s), up to a constant. For every total m,
#
#     E(m) = mean of L(m') over all larger totals m' > m  /  largest L(m'') over m'' <= m
#
# is at most the wealth of a bettor who stakes on each next sample against the truth m'' <= m: for each m' the factor of a
# sample is the ratio of its two probabilities, 1 + lambda (x - mean), and stakes on all m' are mixed with equal weights
# (betting without replacement: arXiv 2010.09686, section 5; the equal weights are our choice). Under the truth such wealth
# is a nonnegative supermartingale that starts at 1. By Ville's inequality it ever reaches 1 / error with probability
# `error` at most, no matter when and how often one looks. So a total with E(m) >= 1 / error is refuted for good.


def confidence_sequence(ones: int, taken: int, size: int, error: float, error_above: float | None = None) -> Interval:
    """A lower and an upper bound of the share of ones in the whole set, from the samples taken so far.

    0 <= ones <= taken <= size, size > 0. Each bound has an error of its own, because a decision about a limit needs one of
    them: over all moments together, the share is ever below the first with probability `error` at most, and ever above the
    second with probability `error_above` at most (None: `error`). Once all samples are taken, both are the share.
    """
    fewest = _fewest(ones, taken, size, error)
    most = size - _fewest(taken - ones, taken, size, error if error_above is None else error_above)
    return fewest / size, most / size


def _fewest(ones: int, taken: int, size: int, error: float) -> int:
    """The smallest total that is not refuted."""
    return int(np.argmax(log_evidence(ones, taken, size) < -math.log(error)))


def log_evidence(ones: int, taken: int, size: int) -> np.ndarray:  # (size + 1,)
    """log E of each total 0 ... size, after `ones` of `taken` samples; inf: impossible."""
    possible, likelihood = np.arange(ones, size - (taken - ones) + 1), np.full(size + 1, -np.inf)
    likelihood[possible] = _log_choose(possible, ones, size) + _log_choose(size - possible, taken - ones, size)
    larger = np.logaddexp.accumulate(likelihood[:0:-1])[::-1]  # sums over all larger totals, of 0 ... size - 1
    evidence = larger - np.log(size - np.arange(size)) - np.maximum.accumulate(likelihood)[:-1]
    return np.append(evidence, -np.inf)


# ---- paired differences, sample by sample ------------------------------------------------------------------
# Of N samples, W are won and L lost; a step is 1 for a sample that is won, -1 for one that is lost, otherwise 0. Samples are
# taken as above. If W - L were d, the next step would have the mean mu = (d - sum of the steps so far) / (samples left), so
#
#     1 + lambda (step - mu)   with lambda = c / (1 + mu),   that is   1 - c + c (1 + step) / (1 + mu)
#
# is the factor of a fair bet on a larger difference; for a smaller d it is larger. Its product over the samples is a
# nonnegative martingale (arXiv 2010.09686, section 5), and so is the mean of the products for several stakes c. Our choice:
# 20 stakes, evenly spaced in (0, 1). This needs two to nine tenths of the samples that two sequences of W and of L
# take (tests/test_gate_statistics.py).
_STAKES = (np.arange(20) + 0.5) / 20


def log_wealth(steps: np.ndarray, total: int, size: int) -> np.ndarray:  # (n,) -> (n,)
    """log of the wealth against a difference W - L <= total of all `size` samples, after each step; inf: impossible."""
    before = np.cumsum(steps) - steps
    one_more = 1 + (total - before) / (size - np.arange(len(steps)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(one_more < 0, np.inf, np.where(steps < 0, 0.0, (1 + steps) / one_more))
    logs = np.cumsum(np.log(1 - _STAKES[:, None] + _STAKES[:, None] * ratio), axis=1)
    return np.logaddexp.reduce(logs, axis=0) - math.log(len(_STAKES))


def difference_sequence(steps: np.ndarray, size: int, error: float) -> Interval:
    """A lower and an upper bound of (W - L) / size, from the steps (n,) int so far, in the random order they were taken in.

    size >= n, size > 0. As for `confidence_sequence`, each bound is ever wrong with probability `error` at most, and both
    are the difference once all samples are taken.
    """
    return _least_total(steps, size, error) / size, -_least_total(-steps, size, error) / size


def _least_total(steps: np.ndarray, size: int, error: float) -> int:
    """The smallest W - L that was never refuted, by bisection: smaller ones have more wealth against them."""
    left, so_far = size - len(steps), int(steps.sum())
    low, high = so_far - left, so_far + left  # what is possible
    while low < high:
        middle = (low + high) // 2
        if log_wealth(steps, middle, size).max(initial=0.0) >= -math.log(error):
            low = middle + 1
        else:
            high = middle
    return low


def samples_to_decide(steps: np.ndarray, error: float) -> tuple[int, int]:
    """After how many of all steps (N,) the sign of their sum is decided, and the sign (-1, 0 or 1) that was decided.

    It is wrong with probability `error` at most, half for each sign. Where no earlier moment decides it, all N do.
    """
    size = len(steps)
    found = [(size, int(np.sign(steps.sum())))]
    for sign in (1, -1):
        reached = np.flatnonzero(log_wealth(sign * steps, 0, size) >= -math.log(error / 2))
        found += [(int(place) + 1, sign) for place in reached[:1]]
    return min(found, key=lambda one: one[0])
