"""Rank correlation, for whoever measures and whoever tells."""

import numpy as np


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
