"""Networks that hide their weakness are doubted or get the right number; honest ones are believed."""

import pytest
import torch

from tests.zoo import defective, honest, transforms
from tests.zoo.base import SAMPLE, Entry, data_root
from tests.zoo.judge import TOO_HIGH, judged
from tests.zoo.trained import SMALL
from tests.zoo.truth import survivors

N = 64
DEFECTIVE, HONEST = defective.table(SMALL), honest.TABLE
ENTRIES = {entry.name: entry for entry in [*DEFECTIVE, *HONEST]}
CAUGHT = [
    "decoys for all classes", "margin reversed", "gradient flipped on 15% of pixels", "gradient of eight pixels",
    "half of the image detached", "three bits", "cosine transform rounded",
    "hard gates of units", "features rippled", "traced: three bits", "exported: decoys",
]  # fmt: skip
CAUGHT_WITH_DATA = [
    "by the size of the batch", "another network off the grid", "by the mode of gradients", "robust after 4 queries",
    "another network where it is sure", "another network for single changed images", "saturated unit that a pattern wakes",
]  # fmt: skip
BELIEVED = [
    "CNN with Tanh", "CNN with rounded activations", "perceptron", "recurrent network", "linear network",
    "separable convolutions", "CNN trained on squared errors", "CNN trained with a high temperature",
]  # fmt: skip


def test_the_zoo_has_every_kind_once():
    assert len(ENTRIES) == len(DEFECTIVE) + len(HONEST)
    assert len(DEFECTIVE) >= 45
    assert len(HONEST) >= 25
    assert [entry.name for entry in defective.table(SAMPLE)] == [entry.name for entry in DEFECTIVE]


@pytest.mark.parametrize("name", [*CAUGHT, *CAUGHT_WITH_DATA])
def test_what_hides_its_weakness_is_found(name):
    if name in CAUGHT_WITH_DATA and data_root() is None:
        pytest.skip("LSA_DATA_ROOT is not set: no robust small network")
    row = judged(ENTRIES[name], False, N)
    assert row.clean > 0.9
    assert row.truth < 0.5
    assert row.outcome in ("caught", "right number"), row


def test_the_attack_on_all_samples_passes_a_mask_on_pixels():
    row = judged(Entry("masked", lambda: transforms.Masked(SMALL.weak()), 0.12), False, N)
    assert row.reported <= row.truth + TOO_HIGH / 2, row


def test_the_attack_on_all_samples_follows_logarithms_of_likelihoods():
    row = judged(ENTRIES["likelihoods of prototypes"], False, N)
    assert row.reported <= row.truth + TOO_HIGH, row


def test_a_mask_that_no_attack_passes_is_doubted():
    """The gradient of each pixel that counts is right; those that do not count are hidden in blocks."""
    row = judged(Entry("blackened", lambda: transforms.Blackened(SMALL.weak()), 0.12), False, N)
    assert row.reported > row.truth + TOO_HIGH
    assert row.outcome == "caught", row


@pytest.mark.parametrize("name", BELIEVED)
def test_what_hides_nothing_is_believed(name):
    row = judged(ENTRIES[name], True, N)
    assert row.outcome == "trusted", row


def test_defences_classify_clean_images_as_the_network_inside():
    """Else the truth, found by attacks on the inside, says nothing about the whole."""
    images = ENTRIES["stairs"].samples(N)[0]
    inside = SMALL.weak()(images).argmax(1)
    for name in (
        "stairs",
        "losers inverted",
        "margin reversed",
        "losers shuffled",
        "gradient with noise",
        "three bits",
    ):
        network = ENTRIES[name].network()
        assert torch.equal(network(images).argmax(1), inside), name


def test_the_truth_of_a_linear_network_is_its_margin_over_the_dual_norm_of_its_weights():
    entry = ENTRIES["linear network"]
    network, (x, y) = entry.network(), entry.samples(N)
    weight = network[-1].weight.detach()
    away = (x.flatten(1) - entry.eps).clamp(0, 1), (x.flatten(1) + entry.eps).clamp(0, 1)
    steps = weight[None] - weight[y][:, None]  # of each class against the true one
    least = torch.where(steps > 0, away[1][:, None], away[0][:, None])
    gaps = (steps * least).sum(2) + (network[-1].bias - network[-1].bias[y][:, None]).detach()
    robust = gaps.scatter(1, y[:, None], -torch.inf).amax(1) < 0
    found = survivors(entry, network, x, y)
    assert (robust <= found).all()  # no attack breaks what is robust
    assert (found & ~robust).float().mean() < 0.05
