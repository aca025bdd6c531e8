"""The few statistics a report needs: intervals of shares, the two-phase estimate."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

_Z95 = NormalDist().inv_cdf(0.975)


def wilson(count: int, n: int) -> tuple[float, float] | None:
    """95% Wilson score interval of a binomial share, clipped to [0, 1]; None for n = 0."""
    if n == 0:
        return None
    share, z2 = count / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (0.0 if count == 0 else centre - half, 1.0 if count == n else centre + half)


def clopper_pearson(count: int, n: int, error: float) -> tuple[float, float]:
    """Exact interval of a binomial share that misses it at most `error` of the time; (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    low = 0.0 if count == 0 else _share_where(lambda p: _tail(count, n, p), error / 2)
    high = 1.0 if count == n else 1 - _share_where(lambda p: _tail(n - count, n, p), error / 2)
    return low, high


def _tail(count: int, n: int, p: float) -> float:
    """P(X >= count) for X binomial(n, p)."""
    k = np.arange(count, n + 1)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    return float(np.exp(logs + k * math.log(p) + (n - k) * math.log1p(-p)).sum())


def _share_where(rising: Callable[[float], float], value: float) -> float:
    """Where a rising function of a share takes `value`, by bisection; the lower end of the last bracket."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if rising(middle) < value:
            low = middle
        else:
            high = middle
    return low


def two_phase(n: int, survivors: int, checked: int, broken: int) -> tuple[float, float, float]:
    """Share of n that would survive a stronger attack too: the estimate, and a 95% interval.

    `survivors` of n withstood the cheap attacks; of these a random `checked` met the strong one, which broke
    `broken`. The share is a * (1 - m), a the share of survivors and m the miss rate of the cheap attacks; either
    exact interval errs at most 2.5% of the time, so both hold, and their product does, at least 95% of the time
    (our choice: simple, and never too short). It covers the share of these n and that of the population.
    """
    if n == 0 or checked == 0:
        raise ValueError("nothing was checked")
    estimate = survivors / n * (1 - broken / checked)
    if checked == survivors:  # all of them: one binomial share
        low, high = wilson(survivors - broken, n) or (0.0, 1.0)
        return estimate, low, high
    (a_low, a_high), (m_low, m_high) = clopper_pearson(survivors, n, 0.025), clopper_pearson(broken, checked, 0.025)
    return estimate, a_low * (1 - m_high), a_high * (1 - m_low)
