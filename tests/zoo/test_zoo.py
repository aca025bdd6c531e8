"""Networks that hide their weakness are doubted or get the right number; honest ones are believed."""

import pytest

from tests.zoo import defective, honest
from tests.zoo.judge import judged

N = 64
ENTRIES = {entry.name: entry for entry in [*defective.TABLE, *honest.TABLE]}
CAUGHT = ["decoys for all classes", "margin reversed"]
BELIEVED = ["plain CNN"]


def test_names_are_unique():
    assert len(ENTRIES) == len(defective.TABLE) + len(honest.TABLE)


@pytest.mark.parametrize("name", CAUGHT)
def test_what_hides_its_weakness_is_found(name):
    row = judged(ENTRIES[name], False, N)
    assert row.clean > 0.9
    assert row.truth < 0.5
    assert row.outcome in ("caught", "right number"), row


@pytest.mark.parametrize("name", BELIEVED)
def test_what_hides_nothing_is_believed(name):
    row = judged(ENTRIES[name], True, N)
    assert row.outcome == "trusted", row
