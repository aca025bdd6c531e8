"""Temporary files that killed processes leave."""

import pytest

from lsa_cli.files import remove_temporaries, temporary_beside


@pytest.mark.parametrize("length", [5, 40, 41, 200])
def test_what_is_left_of_one_file_is_removed_and_nothing_else(tmp_path, length):
    target, other = (tmp_path / ("n" * (length - 1) + end) for end in "ab")
    mine, its = temporary_beside(target), temporary_beside(other)
    kept = [its, target, other, tmp_path / f"{mine.name[:-8]}.1", tmp_path / f".{target.name}.keep.tmp"]
    for path in [*kept, mine]:
        path.touch()
    assert len(mine.name) < 80
    remove_temporaries(target)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    remove_temporaries(tmp_path / "missing" / "file")
