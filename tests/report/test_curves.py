"""The expected robustness against areas that are known."""

import pytest

from lsa_cli.report.curves import expected_robustness
from lsa_cli.report.schema import Curve, CurvePoint
from tests.report.example import rate


def curve(**robust):
    """curve(at0=90, at1=50): 90 of 100 robust at radius 0.0, and 50 at 0.1."""
    points = [CurvePoint(eps=int(name[2:]) / 10, robust=rate(count, 100)) for name, count in robust.items()]
    return Curve(attack="pgd", points=points, score=0.0)


@pytest.mark.parametrize(
    ("points", "eps", "expected"),
    [
        ({"at0": 90, "at3": 30}, 0.3, 0.6),
        ({"at0": 100, "at1": 100, "at2": 0}, 0.2, 0.75),
        ({"at0": 80, "at1": 80, "at5": 0}, 0.1, 0.8),  # larger radii do not count
        ({"at2": 40, "at0": 80}, 0.2, 0.6),
        ({"at1": 90, "at3": 30}, 0.3, None),  # no radius 0
        ({"at0": 90, "at2": 30}, 0.3, None),  # no radius eps
    ],
)
def test_the_expected_robustness_is_the_mean_over_radii_up_to_eps(points, eps, expected):
    found = expected_robustness(curve(**points), eps)
    assert found == (None if expected is None else pytest.approx(expected))
