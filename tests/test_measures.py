import mpmath
import pytest
import torch

from lsa_cli.measures import MEASURES


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 4, generator=generator), torch.randn(6, 3, 4, generator=generator)


def test_relative_error_is_the_ratio_of_norms_per_sample(pair):
    clean, moved = pair
    expected = [float((m - c).norm() / c.norm()) for c, m in zip(clean, moved, strict=True)]
    assert MEASURES.get("relative-error")(clean, moved).tolist() == pytest.approx(expected)


def test_relative_error_of_a_silent_layer():
    silent, awake = torch.zeros(1, 4), torch.ones(1, 4)
    assert MEASURES.get("relative-error")(silent, silent).item() == 0
    assert MEASURES.get("relative-error")(silent, awake).isnan().item()


def test_cosine_distance(pair):
    clean, moved = pair
    measure = MEASURES.get("cosine-distance")
    expected = 1 - torch.nn.functional.cosine_similarity(clean.flatten(1), moved.flatten(1))
    torch.testing.assert_close(measure(clean, moved), expected)
    assert measure(clean, clean).abs().max() == 0
    torch.testing.assert_close(measure(clean, 3 * clean), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(measure(clean, -clean), torch.full((6,), 2.0))
    assert measure(torch.zeros(1, 3), torch.ones(1, 3)).isnan().item()
    assert measure(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0


def test_l2_is_the_length_of_the_difference(pair):
    clean, moved = pair
    torch.testing.assert_close(MEASURES.get("l2")(clean, moved), (moved - clean).flatten(1).norm(dim=1))


def exactly(name, clean, moved):
    """The definition of a measure on two vectors, in 60 digits."""
    with mpmath.workdps(60):
        u, v = ([mpmath.mpf(number) for number in part.double().tolist()] for part in (clean, moved))
        apart, size, other = (
            mpmath.sqrt(mpmath.fsum(number**2 for number in part))
            for part in ([a - b for a, b in zip(v, u, strict=True)], u, v)
        )
        if name == "cosine-distance":
            return float(1 - mpmath.fsum(a * b for a, b in zip(u, v, strict=True)) / (size * other))
        return float(apart / size if name == "relative-error" else apart)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("name", MEASURES.names())
def test_every_measure_is_right_to_five_digits_at_any_distance_and_scale(name, scale):
    """Vectors at angles with 1 - cos from 5e-9 to 2, of two lengths: against the definition in 60 digits."""
    generator = torch.Generator().manual_seed(3)
    base, across = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    across -= base * (across @ base) / (base @ base)
    across *= base.norm() / across.norm()
    angles = torch.tensor([1e-4, 3e-4, 1e-3, 1e-2, 0.1, 1.0, 2.0, 3.0, 3.1415], dtype=torch.float64)
    moved = torch.outer(angles.cos(), base) + torch.outer(angles.sin(), across)
    for longer in (1.0, 1.7):
        clean, perturbed = (scale * base.expand_as(moved)).float(), (scale * longer * moved).float()
        expected = [exactly(name, c, p) for c, p in zip(clean, perturbed, strict=True)]
        assert MEASURES.get(name)(clean, perturbed).tolist() == pytest.approx(expected, rel=1e-5, abs=0)


@pytest.mark.parametrize("name", MEASURES.names())
def test_every_measure_is_right_on_large_layers(name):
    """Three million numbers a sample, where a sum in float32 is off by more than 1e-5; any number of samples at once."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3_000_000, generator=generator)
    moved = clean + 1e-4 * torch.rand(clean.shape, generator=generator)
    a, b = clean.double(), moved.double()
    apart, sizes = (b - a).norm(dim=1), a.norm(dim=1)
    units = (a / sizes[:, None] - b / b.norm(dim=1, keepdim=True)).norm(dim=1)
    expected = {"relative-error": apart / sizes, "l2": apart, "cosine-distance": units**2 / 2}[name]
    found = MEASURES.get(name)(clean, moved)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=0)
    assert MEASURES.get(name)(clean[1:], moved[1:]).tolist() == found[1:].tolist()


@pytest.mark.parametrize("name", MEASURES.names())
def test_the_gradient_of_every_measure(name, pair):
    clean, moved = (part.double().requires_grad_() for part in pair)
    assert torch.autograd.gradcheck(MEASURES.get(name), (clean, moved))


@pytest.mark.parametrize("name", MEASURES.names())
def test_every_measure_gives_one_number_a_sample_and_zero_for_no_change(name, pair):
    clean, moved = pair
    assert MEASURES.get(name)(clean, moved).shape == (6,)
    assert MEASURES.get(name)(clean, clean).tolist() == [0] * 6
