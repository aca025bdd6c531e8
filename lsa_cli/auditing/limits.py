"""The limits of a machine: the time budget of an audit, and the memory of the device."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from lsa_cli import distributed
from lsa_cli.errors import RunError
from lsa_cli.failures import is_out_of_memory

T = TypeVar("T")


class OutOfTime(Exception):
    """The time budget is exhausted."""


@dataclass
class Clock:
    """budget: seconds from now, or None. reserve: seconds of the budget that are kept for later work."""

    budget: float | None
    began: float = field(default_factory=lambda: time.monotonic())  # not the function itself: tests replace it
    reserve: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def is_late(self) -> bool:
        return self.budget is not None and self.seconds > self.budget - self.reserve

    def allows(self, work: Callable[[], None]) -> bool:
        """Do the work. Returns whether it ended within the time budget on all ranks."""
        if self.budget is None:
            work()
            return True
        late = distributed.anywhere(self.is_late())
        if not late:
            try:
                work()
            except OutOfTime:
                late = True
            late = distributed.anywhere(late)
        return not late

    @contextmanager
    def stops(self, model: nn.Module) -> Iterator[None]:
        """Within: passes of the model raise OutOfTime once the time budget is exhausted."""

        def refuse(*_: Any) -> None:
            if self.is_late():
                raise OutOfTime

        if self.budget is None:
            yield
            return
        hook = model.register_forward_pre_hook(refuse)
        try:
            yield
        finally:
            hook.remove()


@dataclass
class BatchSize:
    """size: samples that the device takes at once. It is halved when memory runs out, where that is allowed."""

    size: int
    may_halve: bool

    def fit(self, work: Callable[[], T]) -> T:
        """The result of `work`, which takes `size` samples at once; it is repeated with half of them when memory runs out."""
        while True:
            try:
                return work()
            except Exception as error:
                self.halve_or_raise(error, self.size)

    def halve_or_raise(self, error: Exception, count: int) -> None:
        """Halve `size` if `error`, of `count` samples at once, says that memory ran out; otherwise raise it."""
        if not is_out_of_memory(error) or count == 1 or not self.may_halve:
            raise error
        self.size = (count + 1) // 2
        torch.cuda.empty_cache()


def out_of_memory(count: int) -> RunError:
    return RunError(f"out of memory with {count} samples at once; use a smaller --batch-size")
