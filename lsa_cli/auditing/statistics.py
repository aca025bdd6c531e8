"""The few statistics a report needs: Wilson intervals, rank correlation."""

import math
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


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    upto = np.cumsum(counts)
    return (upto - (counts - 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation over the places where both are numbers; None with fewer than 3, or without variation."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return None
    first, second = ranks(a[both]), ranks(b[both])
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
