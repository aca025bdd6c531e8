"""Which samples are used, how they are read ahead, and what they must be."""

import gc
import threading
import time

import numpy as np
import pytest
import torch

from lsa_cli.data import LabelledData, check_inputs, prefetch, stratified_subset
from lsa_cli.errors import DataError


def test_subsets_are_stratified_and_decided_by_the_seed():
    labels = np.repeat([0, 1, 2, 3], [500, 300, 150, 50])
    chosen = stratified_subset(labels, 100, 0)
    assert np.bincount(labels[chosen]).tolist() == [50, 30, 15, 5]
    assert np.array_equal(chosen, np.sort(chosen))
    assert len(np.unique(chosen)) == 100
    assert np.array_equal(chosen, stratified_subset(labels, 100, 0))
    assert not np.array_equal(chosen, stratified_subset(labels, 100, 1))
    assert len(stratified_subset(labels, 7, 0)) == 7
    assert len(stratified_subset(labels, 1000, 0)) == 1000


def test_inputs_are_held_to_their_range():
    rows = np.array([7, 8])
    x = torch.tensor([[0.5, 1.00005], [-0.00005, 0.2]])
    assert check_inputs(x, rows, (0.0, 1.0), "d").tolist() == [[0.5, 1.0], [0.0, pytest.approx(0.2)]]
    with pytest.raises(DataError, match="sample 8 holds NaN or infinity"):
        check_inputs(torch.tensor([[0.5], [torch.inf]]), rows, None, "d")
    with pytest.raises(DataError, match="undo the normalisation"):
        check_inputs(torch.tensor([[0.5], [-1.0]]), rows, (0.0, 1.0), "d")
    with pytest.raises(DataError, match="divide by 255"):
        check_inputs(torch.tensor([[0.5], [200.0]]), rows, (0.0, 1.0), "d")
    assert check_inputs(torch.tensor([[5.0], [-3.0]]), rows, None, "d").tolist() == [[5.0], [-3.0]]


@pytest.mark.parametrize("limit", [1, 7, 33, 99, 100, 999])
def test_a_subset_takes_each_class_within_one_of_its_share(limit):
    labels = np.random.default_rng(1).choice(7, 1000, p=[0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02])
    chosen = stratified_subset(labels, limit, 0)
    assert len(chosen) == len(np.unique(chosen)) == limit
    share = np.bincount(labels, minlength=7) * limit / 1000
    assert (np.abs(np.bincount(labels[chosen], minlength=7) - share) < 1).all()


def test_a_subset_follows_the_labels_not_the_order_of_the_files():
    """The same classes in another order give the same number of each."""
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    shuffled = np.random.default_rng(0).permutation(labels)
    for order in (labels, shuffled):
        assert np.bincount(order[stratified_subset(order, 10, 0)]).tolist() == [5, 3, 2]


class Source:
    """Data whose reading is watched: which rows, how many readers at once, which threads."""

    def __init__(self, count, fails_at=None, seconds=0.0):
        self.fails_at, self.seconds = fails_at, seconds
        self.begun, self.threads, self.at_once, self.most = [], set(), 0, 0
        self.data = LabelledData("watched", np.zeros(count, int), self.read)

    def read(self, rows):
        self.begun.append(rows.tolist())
        self.threads.add(threading.current_thread())
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        time.sleep(self.seconds)
        self.at_once -= 1
        if self.fails_at in rows:
            raise DataError(f"sample {self.fails_at} is broken")
        return torch.from_numpy(rows).float()[:, None]


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lsa-read")]


def test_batches_read_ahead_are_those_read_in_turn():
    source = Source(23)
    index = np.random.default_rng(0).permutation(23)
    found = list(prefetch(source.data, index, 5))
    assert [len(rows) for rows, _ in found] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), index)
    for rows, x in found:
        assert x.flatten().tolist() == rows.tolist()
    assert list(prefetch(source.data, index[:0], 5)) == []


def test_one_thread_reads_and_never_more_than_two_batches_ahead():
    source = Source(40, seconds=0.002)
    for number, _ in enumerate(prefetch(source.data, np.arange(40), 4)):
        ahead = min(10, number + 3)
        deadline = time.monotonic() + 10
        while len(source.begun) < ahead and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.005)  # for a batch too many to begin
        assert len(source.begun) == ahead
    assert source.most == 1
    assert len(source.threads) == 1
    assert threading.current_thread() not in source.threads


def test_what_reading_raises_comes_at_its_batch():
    source = Source(20, fails_at=13)
    seen = []

    def loop():
        for rows, _ in prefetch(source.data, np.arange(20), 4):
            seen.append(rows.tolist())

    with pytest.raises(DataError, match="sample 13 is broken"):
        loop()
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert not readers()


def test_closing_stops_the_reading():
    source = Source(400, seconds=0.01)
    ahead = prefetch(source.data, np.arange(400), 4)
    next(ahead)
    ahead.close()
    assert not readers()
    begun = len(source.begun)
    assert begun <= 3
    time.sleep(0.05)
    assert len(source.begun) == begun


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_loop_that_is_interrupted_leaves_no_thread(error):
    source = Source(400, seconds=0.01)

    def loop():
        for _ in prefetch(source.data, np.arange(400), 4):
            raise error

    with pytest.raises(error):
        loop()
    gc.collect()
    assert not readers()
    assert len(source.begun) <= 3
