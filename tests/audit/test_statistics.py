import numpy as np
import pandas as pd
import pytest

from lsa_cli.auditing.statistics import wilson
from lsa_cli.report.correlation import spearman


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_reproduces_published_intervals(count, n, low, high):
    assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_and_nothing():
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) is None


def test_spearman_is_the_correlation_of_ranks():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 6, 30).astype(float), generator.normal(size=30)
    expected = pd.Series(a).rank().corr(pd.Series(b).rank())
    assert spearman(a, b) == pytest.approx(expected)
    a[3] = np.nan
    keep = np.isfinite(a)
    assert spearman(a, b) == pytest.approx(pd.Series(a[keep]).rank().corr(pd.Series(b[keep]).rank()))
    assert spearman(np.ones(5), b[:5]) is None
    assert spearman(a[:2], b[:2]) is None
