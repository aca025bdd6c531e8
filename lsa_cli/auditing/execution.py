"""How an audit runs on this machine: blocks of samples, batches that fit in memory, ranks, the journal, and the time."""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from lsa_cli import distributed
from lsa_cli.auditing.cost import total_work
from lsa_cli.auditing.evidence.examine import FORWARD
from lsa_cli.auditing.evidence.repeatability import Beginning
from lsa_cli.auditing.journal import Journal
from lsa_cli.auditing.limits import BatchSize, Clock, OutOfTime, out_of_memory
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.results import BlockResult, common
from lsa_cli.data import batches, check_inputs, digests, prefetch
from lsa_cli.errors import DataError, RunError
from lsa_cli.failures import is_out_of_memory
from lsa_cli.models.precision import Copy

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # inputs (N, ...), labels (N,), places in the data set (N,)
Progress = Callable[[str, float, float], None]  # what is running, work done, work in all
T = TypeVar("T")

# The smallest block, and the size of a block as a share of the samples before it, once a block is a full batch.
FIRST_BLOCK, _GROWTH = 64, 0.25
SMALLEST_LOOK, LOOK_GROWTH = 4, 0.1  # the same where the audit ends as soon as the samples decide (our choice)
_MARGIN = 3  # factor on the time that is kept: attacks that end early make the measured speed too high
_BATCHES_IN_A_BLOCK = 4  # at most, so that memory is bounded


def sample_order(plan: AuditPlan) -> np.ndarray:
    """The order (N,) in which samples are taken: random, decided by the seed alone. Any beginning is a random sample."""
    return plan.index[np.random.default_rng([plan.seed, 17]).permutation(len(plan.index))]


def blocks(plan: AuditPlan, order: np.ndarray, ends_early: bool = False) -> Iterator[np.ndarray]:
    """The samples in `order`, block by block, each block ordered by place in the data set.

    The first block is small, for an early result. Later ones grow: a sample costs least in a full batch, and a stop loses
    half of the samples at most. With `whole_batch`, blocks consist of whole batches. ends_early: blocks are smaller, because
    the audit may end after each of them.
    """
    taken, ranks = 0, distributed.world()
    smallest, growth = (SMALLEST_LOOK, LOOK_GROWTH) if ends_early else (FIRST_BLOCK, _GROWTH)
    full = plan.batch_size * ranks
    most = max(FIRST_BLOCK, _BATCHES_IN_A_BLOCK * full)
    while taken < len(order):
        size = min(most, max(smallest, int(growth * taken)))
        if plan.whole_batch:
            size = math.ceil(size / plan.batch_size) * plan.batch_size
        elif not ends_early:
            size = max(size, min(taken, full))
            size -= size % full if size > full else 0
        yield np.sort(order[taken : taken + size])
        taken += size


class Execution:
    """Runs work on samples: reads them, cuts them into batches that fit, and shares blocks among ranks."""

    def __init__(self, plan: AuditPlan, progress: Progress, journal: Journal | None) -> None:
        self.plan, self.progress, self.journal = plan, progress, journal
        self.clock = Clock(plan.settings.budget)
        self.batch = BatchSize(plan.batch_size, not (plan.batch_size_is_fixed or plan.whole_batch))
        self.copy = Copy(None, "no attack has begun")
        self.beginning: Beginning | None = None
        self.has_begun = False  # there is a first result: if data cannot be read after that, they have changed
        self.done, self.total = 0.0, total_work(plan)
        self._content: dict[int, int] = {}  # of each place in the data set, as it was first read

    def step(self, label: str, work: float) -> None:
        """Report progress. work: forward and gradient passes over one sample; other ranks do as much at the same time."""
        self.done += work * distributed.world()
        self.progress(label, min(self.done, self.total), self.total)

    def expect(self, work: float) -> None:
        """Correct the work in all, now that it is known better how much is left. work: as in `step`, of all ranks."""
        self.total = self.done + work

    @contextmanager
    def passes_are_steps(self, label: str, *models: nn.Module) -> Iterator[None]:
        """Within: every pass of the models is progress."""

        def count(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self.step(label, len(inputs[0]) * (1.0 if torch.is_grad_enabled() else FORWARD))

        hooks = [model.register_forward_pre_hook(count) for model in models]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def read(self, index: np.ndarray) -> Generator[Batch, None, None]:
        """Inputs, labels and places of some samples, batch by batch. The next batches are read in the background."""
        plan = self.plan
        waiting = prefetch(plan.network.data, index, plan.batch_size)
        while True:
            try:
                batch = next(waiting, None)
            except DataError as error:
                if not self.has_begun:
                    raise
                raise RunError(f"{error}; it could be read when the audit began") from error
            if batch is None:
                return
            rows, found = batch
            x = check_inputs(found, rows, plan.network.bounds, plan.network.data.spec)
            self._refuse_other_content(rows, digests(x))
            yield x, torch.from_numpy(plan.network.labels[rows]), torch.from_numpy(rows)

    def _refuse_other_content(self, rows: np.ndarray, content: np.ndarray) -> None:
        """Raises DataError where a sample is not what it was when it was read before."""
        for row, now in zip(rows.tolist(), content.tolist(), strict=True):
            if self._content.setdefault(row, now) != now:
                raise DataError(
                    f"{self.plan.network.data.spec}: sample {row} is another one each time it is read, so that no number can be "
                    "repeated; leave out random transforms, or write the samples to a file"
                )

    def content(self, rows: np.ndarray) -> np.ndarray:  # (N,) -> (N,) uint64
        """The digests of samples that were read."""
        return np.array([self._content[row] for row in rows.tolist()], dtype=np.uint64)

    def read_all(self, index: np.ndarray) -> Batch:
        """These samples as one batch on the device."""
        x, y, places = (torch.cat(parts) for parts in zip(*self.read(index), strict=True))
        device = self.plan.network.device
        return x.to(device), y.to(device), places.to(device)

    def by_batch(self, work: Callable[..., T], *tensors: torch.Tensor, inputs_each: int = 1) -> Iterator[T]:
        """The result of `work` for each batch of tensors (N, ...), on the device.

        inputs_each: inputs per sample in one pass without gradients; with more than three, batches are smaller. A batch is
        halved where the device runs out of memory, unless the user set its size.
        """
        start, device = 0, self.plan.network.device
        while start < len(tensors[0]):
            most = min(self.batch.size, len(tensors[0]) - start)
            size = max(1, min(most, 3 * self.batch.size // inputs_each))
            try:
                found = work(*(tensor[start : start + size].to(device) for tensor in tensors))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                try:
                    self.batch.halve_or_raise(error, most if size == most else self.batch.size)
                except Exception as last:
                    raise out_of_memory(most) from last
                continue
            yield found
            start += size

    def on_ranks(
        self, stage: str, number: int, index: np.ndarray, work: Callable[[np.ndarray], tuple[BlockResult | None, bool]]
    ) -> tuple[BlockResult | None, bool]:
        """The sum over ranks of the results of `work` on their shares of a block, and whether all ended in time.

        A share that the journal holds is read and not measured again.
        """
        results = distributed.gather_objects(distributed.agreed(lambda: self._share(stage, number, index, work)))
        found = [result for result in results if result is not None]
        whole = all(in_time for _, in_time in found)
        measured = [result for result, _ in found if result is not None]
        return common(measured) if len(measured) == len(found) else None, whole

    def _share(
        self, stage: str, number: int, index: np.ndarray, work: Callable[[np.ndarray], tuple[BlockResult | None, bool]]
    ) -> tuple[BlockResult | None, bool] | None:
        """(result, whether it is complete) of this rank's share; None where there are fewer batches than ranks."""
        mine = distributed.share(self._parts(index))
        if not mine:
            return None
        stage = f"{stage}-rank{distributed.rank()}"
        saved = self.journal.get(stage, number) if self.journal is not None else None
        if saved is not None:
            return BlockResult.from_arrays(saved), True
        result, whole = work(np.concatenate(mine))
        if whole and result is not None and self.journal is not None:
            self.journal.put(stage, number, result.to_arrays())
        return result, whole

    def _parts(self, index: np.ndarray) -> list[np.ndarray]:
        """`index` in batches. With several ranks they are smaller, so that all ranks have equal work. Results do not depend
        on their size, except with `whole_batch`."""
        size, ranks = self.plan.batch_size, distributed.world()
        if ranks > 1 and not self.plan.whole_batch:
            rounds = math.ceil(len(index) / (size * ranks))
            size = math.ceil(len(index) / (rounds * ranks))
        return list(batches(index, size))

    def keep_time(self, passes: float) -> None:
        """Reserve the time that so many passes take at the speed so far, and at most half of the budget."""
        if self.clock.budget is not None and self.done:
            needed = _MARGIN * passes * self.clock.seconds / self.done
            self.clock.reserve = min(needed, self.clock.budget / 2)

    def in_time(self, work: Callable[[], T]) -> list[T]:
        """[the result of `work`], or [] where the time budget is exhausted on any rank."""
        found: list[T] = []
        return found if self.clock.allows(lambda: found.append(self.batch.fit(work))) else []

    def stop_if_late(self) -> None:
        if self.clock.is_late():
            raise OutOfTime
