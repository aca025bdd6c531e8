"""A sample that is both proven robust and broken: either the proof or the attack is wrong, so the run ends as a bug."""

from collections.abc import Sequence

import numpy as np


class Contradiction(Exception):
    """No `LsaError`: nothing that the user gives can cause it."""


def refuse_contradictions(index: np.ndarray, proven: np.ndarray, broken: np.ndarray, by: str, threat: str) -> None:
    """Raises Contradiction where a sample is both. index, proven, broken: (N,). by: what broke it; threat: of the proof."""
    both: Sequence[int] = index[proven & broken].tolist()
    if both:
        more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
        raise Contradiction(f"sample {both[0]}{more} is proven robust within {threat}, and {by} breaks it")
