import pytest
import torch

from lsa_cli.attacks import make_threat
from lsa_cli.attacks.randomness import many_normal_like, normal_like, per_sample, uniform_like


def draw(index, seed=0, stream="a", size=20_000, times=1):
    with per_sample(seed, torch.as_tensor(index), stream):
        for _ in range(times):
            numbers = uniform_like(torch.empty(len(index), size))
    return numbers


def test_uniform_numbers_are_uniform():
    numbers = draw([0, 1, 2, 3]).double()
    assert float(numbers.min()) > 0
    assert float(numbers.max()) < 1
    ordered = numbers.flatten().sort().values
    expected = torch.arange(1, len(ordered) + 1) / len(ordered)
    kolmogorov = (ordered - expected).abs().max() * len(ordered) ** 0.5
    assert float(kolmogorov) < 1.95  # 0.1% point of the Kolmogorov distribution


@pytest.mark.parametrize("draw_normal", [normal_like, many_normal_like])
def test_normal_numbers_have_the_moments_of_a_normal(draw_normal):
    with per_sample(0, torch.arange(4), "a"):
        numbers = draw_normal(torch.empty(4, 50_000)).double()
        assert (
            abs(float(torch.corrcoef(torch.cat([numbers, draw_normal(torch.empty(4, 50_000))])).triu(1).abs().max()))
            < 0.03
        )
    assert abs(float(numbers.mean())) < 0.01
    assert abs(float(numbers.std()) - 1) < 0.01
    assert abs(float((numbers**4).mean()) - 3) < 0.1


def test_samples_streams_seeds_and_draws_are_independent():
    base = draw([0])
    for other in (draw([1]), draw([0], seed=1), draw([0], stream="b"), draw([0], times=2)):
        correlation = torch.corrcoef(torch.cat([base, other]))[0, 1]
        assert abs(float(correlation)) < 0.03
        assert not torch.equal(base, other)


def test_neighbouring_numbers_are_independent():
    numbers = draw([7])[0]
    assert abs(float(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1])) < 0.03


def test_a_sample_keeps_its_numbers_in_any_batch():
    assert torch.equal(draw([5, 9, 2])[1], draw([9])[0])
    assert torch.equal(draw([5, 9, 2], times=3)[2], draw([2], times=3)[0])


def test_the_largest_number_stays_below_one():
    """Sample 8023 draws the 24 bits that are all ones, which a half more would round up to 1 and a normal to infinity."""
    with per_sample(0, torch.tensor([8023]), "a"):
        numbers = uniform_like(torch.empty(1, 784))
    assert int(numbers.argmax()) == 129
    assert 1 - 2**-23 < float(numbers.max()) < 1
    with per_sample(0, torch.tensor([8023]), "a"):
        assert torch.isfinite(normal_like(torch.empty(1, 784))).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_random_start_is_finite_for_the_largest_number_too(norm):
    x = torch.full((1, 784), 0.5)
    threat = make_threat(norm, 0.5)
    with per_sample(0, torch.tensor([8023]), "a"):
        start = threat.sample(x)
    assert threat.contains(start, x).all()
    assert not torch.equal(start, x)


def test_sizes_and_shapes_follow_the_input_and_the_counter_follows_the_draws():
    with per_sample(3, torch.tensor([5]), "a"):
        first, second = uniform_like(torch.empty(1, 4)), uniform_like(torch.empty(1, 2, 3))
    with per_sample(3, torch.tensor([5]), "a"):
        both = uniform_like(torch.empty(1, 10))
    assert second.shape == (1, 2, 3)
    assert torch.equal(torch.cat([first.flatten(), second.flatten()]), both[0])


def test_many_samples_have_no_number_in_common():
    numbers = draw(range(2000), size=8).flatten()
    # 16,000 draws of 2**24 values: about 7.6 chance pairs are to be expected.
    assert len(numbers) - len(numbers.unique()) < 30
