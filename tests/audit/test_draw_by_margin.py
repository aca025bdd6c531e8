"""The samples of --full-on: what is drawn, and the error of the estimate, exact over all draws."""

import numpy as np
import pytest

from lsa_cli.auditing.draw_by_margin import counts, draw, strata_of
from lsa_cli.stats import Stratum

# The ranks by margin of the survivors of a cheap attack that the official AutoAttack breaks, and how many survive: after 60
# steps of PGD, and after the default attacks of an audit (benchmarks/estimate.py).
RECORDED = {
    "fgsm after pgd": ([*range(1, 23), 26, 28, 29, 30, 32, 39, 40, 59, 60, 62, 71, 150], 433),
    "resnet2b after pgd": ([1, 2, 3, 6, 8, 10, 15, 20], 275),
    "fashion after pgd": ([1, 4, 6, 20, 21], 347),
    "fgsm": ([*range(1, 19), 20, 21, *range(23, 31), 39, 42, 43, 46, 50, 61, 65, 66, 85], 436),
    "resnet2b": ([10], 268),
    "fashion": ([1, 2, 4, 5, 7, 10, 14, 19], 350),
    "lenet_cln": ([1, 2, 3, 4, 5, 6, 7, 11], 170),
    "lenet_adv": ([1, 2, 3, 4, 5, 10], 186),
}


def error(broken, strata):
    """The root mean square error of the number of broken samples, for broken (S,) shares that break."""
    variance = 0.0
    for places, drawn in strata:
        size = len(places)
        if drawn < size:
            share = broken[places].mean()
            variance += size**2 / drawn * (1 - drawn / size) * share * (1 - share) * size / (size - 1)
    return variance**0.5


def of_ranks(ranks, survivors):
    broken = np.zeros(survivors)
    broken[np.array(ranks) - 1] = 1
    return broken


def uniform(survivors, size):
    return [(np.arange(survivors), size)]


@pytest.mark.parametrize("size", [50, 100])
@pytest.mark.parametrize("name", RECORDED)
def test_the_error_is_at_most_half_of_a_uniform_draw_on_recorded_networks(name, size):
    broken = of_ranks(*RECORDED[name])
    assert error(broken, strata_of(np.arange(len(broken)), size)) <= 0.5 * error(broken, uniform(len(broken), size))


@pytest.mark.parametrize("survivors", [150, 400, 1_000, 8_000])
@pytest.mark.parametrize("size", [20, 50, 100])
def test_the_error_where_chance_decides_who_breaks(survivors, size):
    """Less where near samples break; not much more where margins say nothing. Both draws, of a typical network."""
    rank, strata = np.arange(survivors), strata_of(np.arange(survivors), size)

    def ratio(share):
        return error(share, strata) / error(share, uniform(survivors, size))

    assert ratio(0.9 * np.exp(-rank / (0.2 * size))) < 0.6
    assert ratio(np.minimum(1, 3 / (rank + 1))) < 1
    for share in (0.01, 0.1, 0.5):
        assert ratio(np.full(survivors, share)) < 1.5


@pytest.mark.parametrize("survivors", [1, 2, 5, 30, 101, 433, 20_000])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 10, 29, 50, 100, 1_000])
def test_the_nearest_are_drawn_surely_and_the_others_the_more_rarely_the_farther(survivors, size):
    order = np.random.default_rng(0).permutation(survivors)
    strata = strata_of(order, size)
    assert np.concatenate([places for places, _ in strata]).tolist() == order.tolist()
    assert sum(drawn for _, drawn in strata) == min(size, survivors)
    assert all(0 < drawn <= len(places) for places, drawn in strata if len(places))
    shares = [drawn / len(places) for places, drawn in strata if len(places)]
    assert shares == sorted(shares, reverse=True)
    assert len(strata[0][0]) == strata[0][1]
    assert sum(share < 1 for share in shares) <= 2
    if size < survivors:
        assert strata[0][1] == size // 4


def test_each_sample_is_drawn_with_the_probability_of_its_stratum_and_so_is_any_beginning():
    strata, rounds, generator = strata_of(np.arange(200), 40), 4_000, np.random.default_rng(0)
    met = np.zeros((2, 200))
    for _ in range(rounds):
        drawn = draw(strata, generator)
        assert len(drawn) == len(set(drawn)) == 40
        for row, beginning in zip(met, (drawn, drawn[:25]), strict=True):
            row[beginning] += 1
    for row, size in zip(met, (40, 25), strict=True):
        assert row[:10].min() == rounds
        for places, _ in strata[1:]:
            share = row[places].sum() / rounds / len(places)
            assert row[places] / rounds == pytest.approx(share, abs=5 * (share / rounds) ** 0.5)
        assert row.sum() == rounds * size
        assert row[strata[1][0]].sum() / row[strata[2][0]].sum() == pytest.approx(12 / 18, abs=0.02)


def test_the_counts_of_a_stratum():
    strata = [(np.array([4, 0]), 2), (np.array([], dtype=int), 0), (np.array([1, 5, 2]), 2)]
    ran, robust = np.zeros(6, dtype=bool), np.ones(6, dtype=bool)
    ran[[4, 0, 5, 2]] = True
    robust[[4, 5, 3]] = False
    assert counts(strata, ran, robust) == [Stratum(2, 2, 1), Stratum(3, 2, 1)]
