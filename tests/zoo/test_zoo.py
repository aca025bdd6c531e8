"""Networks that hide their weakness are doubted or get the right number; honest ones are believed."""

import pytest
import torch

from tests.zoo import defective, honest
from tests.zoo.base import SAMPLE, data_root
from tests.zoo.judge import judged
from tests.zoo.trained import SMALL

N = 64
DEFECTIVE, HONEST = defective.table(SMALL), honest.TABLE
ENTRIES = {entry.name: entry for entry in [*DEFECTIVE, *HONEST]}


def judged_by_name(name, is_honest):
    if data_root() is None and name in NEED_DATA:
        pytest.skip("LSA_DATA_ROOT is not set: no foreign data and checkpoints")
    return judged(ENTRIES[name], is_honest, N)


CAUGHT = ["decoys for all classes", "margin reversed", "another network off the grid"]
BELIEVED = ["perceptron", "linear network"]
NEED_DATA = ["another network off the grid"]


def test_the_zoo_has_every_kind_once():
    assert len(ENTRIES) == len(DEFECTIVE) + len(HONEST)
    assert len(DEFECTIVE) >= 45
    assert len(HONEST) >= 25
    assert [entry.name for entry in defective.table(SAMPLE)] == [entry.name for entry in DEFECTIVE]


@pytest.mark.parametrize("name", CAUGHT)
def test_what_hides_its_weakness_is_found(name):
    row = judged_by_name(name, False)
    assert row.clean > 0.9
    assert row.truth < 0.5
    assert row.outcome in ("caught", "right number"), row


@pytest.mark.parametrize("name", BELIEVED)
def test_what_hides_nothing_is_believed(name):
    row = judged_by_name(name, True)
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
