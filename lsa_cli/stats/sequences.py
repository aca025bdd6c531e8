"""Confidence sequences: bounds that hold at every moment, for samples that are taken one by one."""

import math

import numpy as np

from lsa_cli.stats.shares import Interval, log_choose

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
    likelihood[possible] = log_choose(possible, ones, size) + log_choose(size - possible, taken - ones, size)
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
# 20 stakes, evenly spaced in (0, 1). This needs 0.3 to 0.9 times the samples that two sequences of W and of L
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
