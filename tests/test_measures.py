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


def test_l2_is_the_length_of_the_difference(pair):
    clean, moved = pair
    torch.testing.assert_close(MEASURES.get("l2")(clean, moved), (moved - clean).flatten(1).norm(dim=1))


@pytest.mark.parametrize("name", MEASURES.names())
def test_every_measure_gives_one_number_a_sample_and_zero_for_no_change(name, pair):
    clean, moved = pair
    assert MEASURES.get(name)(clean, moved).shape == (6,)
    assert MEASURES.get(name)(clean, clean).tolist() == [0] * 6
