import torch

from lsa_cli.attacks.randomness import normal_like, per_sample, uniform_like


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


def test_normal_numbers_have_the_moments_of_a_normal():
    with per_sample(0, torch.arange(4), "a"):
        numbers = normal_like(torch.empty(4, 50_000)).double()
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
