"""Two-phase sampling: a cheap attack on all samples, and a strong one on a random part of those that it leaves in doubt."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from lsa_cli.stats.shares import binomial, log_choose, share_where, wilson

# The first phase leaves strata of samples in doubt, and the second checks a random part of each. Its estimate T of how many
# of them break orders what can be seen. If K of them would break,
#
#     p(K) = max P(T <= the T that was seen), over all ways to spread K over the strata,
#
# is a valid p-value whatever the first phase found (hypergeometric; it falls with K). A share s of the population is then
# refuted from below if z(p(K))^2 + z(P(X >= S))^2 >= _RADIUS^2 for every K, where S is the number of samples that are robust
# if K break, X is binomial with n and s, and z(p) is the normal quantile of a p-value, or 0 for p > 1/2. Two valid p-values
# meet this with 2.5% at most, if the second is one for any value of the first. So the errors of the phases add as those of
# normal variables do, and each bound is nearly the exact one of a phase where that phase decides alone (our choice).


class Stratum(NamedTuple):
    """How many samples a stratum has, how many of them, drawn at random, were checked, and how many of those broke."""

    size: int
    checked: int
    broken: int


def two_phase(n: int, strata: Sequence[Stratum]) -> tuple[float, float, float]:
    """The share of n samples that are still robust under a stronger attack: the estimate, and a 95% interval.

    The strata hold the samples that are still robust under cheap attacks. The strong attack runs on a random part of each;
    at most two are not checked whole. The estimate is unbiased: a checked sample counts size / checked times (Horvitz and
    Thompson 1952, doi 10.1080/01621459.1952.10483446). The interval misses the share of these n samples with probability 5%
    at most, and that of the population with 5% at most. Where all are checked, it is that of Wilson.
    Raises ValueError if nothing of a stratum was checked, or if more than two are not checked whole.
    """
    strata = [stratum for stratum in strata if stratum.size]
    if n == 0 or not strata or any(stratum.checked == 0 for stratum in strata):
        raise ValueError("nothing was checked")
    robust = math.fsum(size * (checked - broken) / checked for size, checked, broken in strata)
    if all(size == checked for size, checked, _ in strata):
        low, high = wilson(round(robust), n) or (0.0, 1.0)
        return robust / n, low, high
    others = n - sum(stratum.size for stratum in strata)
    mirrored = [stratum._replace(broken=stratum.checked - stratum.broken) for stratum in strata]
    return robust / n, _lowest(n, 0, strata), 1 - _lowest(n, others, mirrored)


_RADIUS = 2.3531  # exp(-r^2 / 2) / 4 + P(Z >= r) is 2.5%
_LEAST = 1 - NormalDist().cdf(_RADIUS)  # a smaller p-value refutes alone
_TRIED = 2000  # numbers of broken samples that are tried for a stratum; those in between count as the next smaller one


def _lowest(n: int, others: int, strata: Sequence[Stratum]) -> float:
    """Lower bound of the share of samples that do not break. others: samples outside the strata that do not."""
    p = _p_values([stratum for stratum in strata if stratum.checked < stratum.size])
    left = others + sum(size - (broken if checked == size else 0) for size, checked, broken in strata)
    number = np.flatnonzero(p > _LEAST)
    z = [-NormalDist().inv_cdf(min(value, 0.5)) for value in p[number]]
    errors = np.array([NormalDist().cdf(-math.sqrt(_RADIUS**2 - value**2)) for value in z])

    def is_possible(share: float) -> bool:
        tails = np.cumsum(binomial(n, share)[::-1])[::-1]
        return bool((tails[left - number] > errors).any())

    return share_where(is_possible, 0.5)


def _p_values(strata: Sequence[Stratum]) -> np.ndarray:  # (K + 1,)
    """p(K) of one or two strata for each K, or more; 0 where it is at most _LEAST."""
    if len(strata) > 2:
        raise ValueError("more than two strata are not checked whole")
    first, second = (Stratum(0, 0, 0), *strata)[-2:]
    unit, other = first.size * second.checked, second.size * max(1, first.checked)  # so that T is a whole number
    seen = first.broken * unit + second.broken * other
    of_first = np.arange(first.checked + 1)
    of_first = of_first[of_first * unit <= seen]
    of_second = np.minimum((seen - of_first * unit) // other, second.checked)  # the most that T allows beside them
    first_totals, first_table = _likely(first, int(of_first[-1]))
    second_totals, second_table = _likely(second, int(of_second[0]))
    p = np.diff(first_table, axis=1, prepend=0) @ second_table[:, of_second].T
    found = np.zeros(first.size + second.size + 1)
    for total, row in zip(first_totals, p, strict=True):
        found[total + second_totals] = np.maximum(found[total + second_totals], row)
    falling = np.minimum(np.maximum.accumulate(found[::-1])[::-1], 1)
    skipped = _step(first) + _step(second) - 2
    return np.concatenate([np.ones(skipped), falling])[: len(falling)]


def _step(stratum: Stratum) -> int:
    return stratum.size // _TRIED + 1


def _likely(stratum: Stratum, most: int) -> tuple[np.ndarray, np.ndarray]:  # (T,), (T, most + 1)
    """The numbers of broken samples in a stratum under which `most` checked ones or fewer are likely enough to break, and
    the probabilities of 0 ... `most` or fewer."""
    size, checked, broken = stratum
    totals = np.arange(broken, size - (checked - broken) + 1, _step(stratum))[:, None]
    k = np.arange(most + 1)
    possible = (k <= totals) & (checked - k <= size - totals)
    chosen, rest = np.where(possible, k, 0), np.where(possible, checked - k, 0)
    logs = log_choose(totals, chosen, size) + log_choose(size - totals, rest, size) - log_choose(size, checked, size)
    below = np.cumsum(np.exp(np.where(possible, logs, -np.inf)), axis=1)
    likely = below[:, -1] > _LEAST
    return totals[likely, 0], below[likely]
