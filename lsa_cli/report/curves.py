"""Numbers from a robustness curve."""

from itertools import pairwise

from lsa_cli.report.schema import Curve


def expected_robustness(curve: Curve, eps: float) -> float | None:
    """The mean of the robust accuracy over the radii from 0 to eps (expected robustness, arXiv 2509.23325), in [0, 1].

    Between two radii of the curve the accuracy counts as linear (our choice). None where the curve lacks 0 or eps.
    """
    points = sorted((point.eps, point.robust.value) for point in curve.points if point.eps <= eps * (1 + 1e-9))
    if len(points) < 2 or points[0][0] != 0 or points[-1][0] < eps * (1 - 1e-9):
        return None
    area = 0.0
    for (low, before), (high, after) in pairwise(points):
        if before is None or after is None:
            return None
        area += (high - low) * (before + after) / 2
    return area / eps
