"""One share, two shares, two variables: intervals, exact tests, correlation."""

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


def binomial_tail(count: int, n: int, share: float) -> float:
    """P(X >= count) for X binomial with n draws of probability `share`: the p-value of the one-sided exact test."""
    if count <= 0 or share >= 1:
        return 1.0
    if share <= 0 or count > n:
        return 0.0
    return min(1.0, math.fsum(binomial(n, share)[count:]))


def binomial(n: int, share: float) -> np.ndarray:  # (n + 1,)
    """The probability of each count 0 ... n; 0 < share <= 1."""
    k = np.arange(n + 1)
    if share == 1:
        return (k == n).astype(float)
    return np.exp(log_choose(n, k, n) + k * math.log(share) + (n - k) * math.log1p(-share))


def log_choose(n: int | np.ndarray, k: int | np.ndarray, largest: int) -> np.ndarray:
    """log C(n, k), elementwise, for n up to `largest`."""
    table = _log_factorials(largest)
    return table[n] - table[k] - table[n - k]


@lru_cache(maxsize=8)
def _log_factorials(largest: int) -> np.ndarray:  # (largest + 1,)
    return np.array([math.lgamma(k + 1) for k in range(largest + 1)])


def share_where(rising: Callable[[float], float], value: float) -> float:
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

    Computed with integers, so that a p-value such as 1/32 is exact; of more than 300 changed samples in floating point, because
    integers then take too long (our choice).
    """
    changed = won + lost
    if changed > 300:
        return min(1.0, 2 * binomial_tail(max(won, lost), changed, 0.5))
    tail = sum(math.comb(changed, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)


def not_inferior(lost: int, gained: int, n: int, margin: float) -> float:
    """The p-value against a true fall of `margin` or more of a share, from n pairs of which `lost` fell and `gained` rose.

    The one-sided score test of Tango (Statistics in Medicine 17, 1998): the expected share of gained pairs is its maximum
    likelihood estimate where the fall is `margin`. n > 0, 0 < margin < 1.
    """
    linear = (2 * n - lost + gained) * margin - lost - gained
    expected = (math.sqrt(linear**2 + 8 * n * gained * margin * (1 - margin)) - linear) / (4 * n)
    spread = math.sqrt(n * (2 * expected + margin * (1 - margin)))
    return NormalDist().cdf((lost - gained - n * margin) / spread)


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
        return float(binomial(n, share) @ _chances_to_find(n, (1 + gap / share) / 2, error))

    if n == 0 or _fewest_won(n, error)[n] > n:
        return None
    return share_where(power, _POWER)


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

    return None if n == 0 or excess(1.0) < 0 else share_where(excess, 0.0)


def widened(share: float, interval: Interval, error: float) -> Interval:
    """A 95% interval of a share at another error, its halves in proportion to the normal quantile (our choice)."""
    factor = NormalDist().inv_cdf(1 - error / 2) / _Z95
    return max(0.0, share - factor * (share - interval[0])), min(1.0, share + factor * (interval[1] - share))


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
    at_k = np.where(possible, np.exp(log_choose(changed, k, n) + k * math.log(won) + lost), 0.0)
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
    return math.tanh(math.atanh(max(-1 + 1e-9, min(correlation, 1 - 1e-9))) + quantile / math.sqrt(n - 3))
