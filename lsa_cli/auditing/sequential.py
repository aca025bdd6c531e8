"""Anytime-valid bounds for a share of a finite set of samples that are taken one by one, in random order.

The set has N samples, of which m are ones; n were taken without replacement, and s of them are ones. With a uniform prior on
m the chance of s is 1 / (n + 1), given m it is hypergeometric, and

    M_n(m) = [1 / (n + 1)] / [C(m, s) C(N - m, n - s) / C(N, n)]

is, for the true m, a nonnegative supermartingale that starts at 1: the prior over the posterior of m (arXiv 2006.04347, the
prior-posterior-ratio confidence sequence for sampling without replacement; its sibling for bounded means is arXiv
2010.09686). By Ville's inequality it ever reaches 1 / error with a chance of at most `error`, whenever and however
often one looks. So all m with M_n(m) < 1 / error hold the truth at all times at once, and a decision may be taken the
moment they agree on it. When all samples are taken, one m is left.
"""

import math
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def _log_factorials(size: int) -> np.ndarray:  # (size + 1,)
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])


def log_martingale(total: np.ndarray, ones: np.ndarray, taken: np.ndarray, size: int) -> np.ndarray:
    """log M for `total` ones among `size`, after `ones` of `taken` samples; the arrays broadcast. inf: cannot be."""
    table = _log_factorials(size)
    total, ones, taken = np.broadcast_arrays(total, ones, taken)
    possible = (ones <= total) & (taken - ones <= size - total)
    m, s, n = (np.where(possible, array, 0) for array in (total, ones, taken))

    def choose(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return table[a] - table[b] - table[a - b]

    seen = choose(m, s) + choose(size - m, n - s) - choose(np.full_like(n, size), n)
    return np.where(possible, -np.log(n + 1) - seen, np.inf)


def bounds(ones: int, taken: int, size: int, error: float) -> tuple[float, float]:
    """The smallest and the largest share of ones in the whole set that the samples taken so far leave possible.

    0 <= ones <= taken <= size, size > 0. Over all moments together the true share is outside with a chance of
    `error` at most.
    """
    candidates = np.arange(ones, size - (taken - ones) + 1)
    logs = log_martingale(candidates, np.asarray(ones), np.asarray(taken), size)
    left = candidates[logs < -math.log(error)]
    return float(left[0] / size), float(left[-1] / size)
