"""Ranks: processes that share work by torch.distributed. With one process, every function here does nothing.

`lsa_cli.cli.launch` starts them. Ranks compute and exchange results; the first one reports. No result depends on the
number of ranks: work is divided without padding, random numbers belong to samples, and each sum runs over all ranks once.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from lsa_cli.errors import EXIT_USAGE, LsaError, RankLost, RunError

T = TypeVar("T")
S = TypeVar("S")

_MEET = timedelta(minutes=10)  # for the ranks to find each other
_WAIT = timedelta(hours=6)  # for the slowest rank; the closed connections of a dead one are noticed at once
_SAVING = 10.0  # seconds for the first rank to save its results when another one fails

_store: distributed.Store | None = None


# ---- together from start to end ------------------------------------------------------------------------


@contextmanager
def joined() -> Iterator[None]:
    """Within: this process is one of the ranks that torchrun's variables name (RANK, WORLD_SIZE, MASTER_ADDR, ...).

    Objects travel by gloo, gradients on CUDA devices by NCCL. Raises RunError where the ranks do not find each other.
    """
    global _store
    cuda = torch.cuda.is_available() and distributed.is_nccl_available()
    try:
        shared, number, count = next(distributed.rendezvous("env://", timeout=_MEET))
        _store = _fresh(shared, number, count)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", store=distributed.PrefixStore("group", _store), rank=number,
            world_size=count, timeout=_WAIT,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the ranks did not find each other: {error}") from error
    is_complete = False
    try:
        yield
        is_complete = True
    finally:
        if is_complete or not cuda:  # NCCL may wait for ranks that have failed
            distributed.destroy_process_group()  # ranks that wait for this one get an error
        with suppress(RuntimeError):
            if number == 0:
                _store.set("saved", b"")
            elif not is_complete:  # the launcher ends all ranks as soon as one has failed
                _await(_store, "saved", _SAVING)


def _fresh(store: distributed.Store, number: int, count: int) -> distributed.Store:
    """A part of the store that only ranks started together use. The first rank chooses its name.

    torchrun keeps its store when it starts ranks again, and the entries of dead ranks would be taken for those of living
    ones. So each rank asks for the name under a number of its own, and the first one answers until all have it.
    """
    own, until = uuid.uuid4().hex, time.monotonic() + _MEET.total_seconds()
    if number > 0:
        store.set(f"asks {number}", own)
        name = store.get(f"answer to {own}").decode()
        store.set(f"{name} heard {number}", b"")
        return distributed.PrefixStore(name, store)
    silent = set(range(1, count))
    while silent:
        for other in sorted(silent):
            if store.check([f"asks {other}"]):
                store.set(f"answer to {store.get(f'asks {other}').decode()}", own)
        silent = {other for other in silent if not store.check([f"{own} heard {other}"])}
        if silent and time.monotonic() > until:
            raise ValueError(f"rank {min(silent)} did not answer within {_MEET}")
        time.sleep(0.02)
    return distributed.PrefixStore(own, store)


def _await(store: distributed.Store, key: str, seconds: float) -> None:
    """Wait until the key is set, for at most so many seconds."""
    until = time.monotonic() + seconds
    while not store.check([key]) and time.monotonic() < until:
        time.sleep(0.05)


def is_first_error() -> bool:
    """Whether no other rank has asked this: the first rank that fails prints its error."""
    try:
        return _store is None or _store.add("said", 1) == 1
    except RuntimeError:
        return True


def restarted() -> bool:
    """Whether torchrun has started the ranks again after one died (--max-restarts)."""
    return anywhere(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0)


# ---- number of ranks -----------------------------------------------------------------------------------


def world() -> int:
    """The number of ranks."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this rank, from 0."""
    return distributed.get_rank() if world() > 1 else 0


def affinity() -> int:
    """The cores on which the system may run this process, without the quotas of its control groups."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_world() -> int:
    """The number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if world() > 1 else 1


def local_rank() -> int:
    """The number of this rank on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank())) if world() > 1 else 0


# ---- exchange ------------------------------------------------------------------------------------------


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            "another rank has ended, and this one cannot continue without it; see the message of that rank, or of the "
            "program that started it"
        ) from error


def share(items: T) -> T:
    """This rank's part of a list or array. Each item is in the part of one rank."""
    return items[rank() :: world()]  # type: ignore[index]


def barrier() -> None:
    """Wait until every rank is here: then all can read what one has written."""
    gather_objects(None)


def gather_objects(item: T) -> list[T]:
    """The items of all ranks, in the order of ranks."""
    if world() == 1:
        return [item]
    gathered: list[Any] = [None] * world()
    with _exchange():
        distributed.all_gather_object(gathered, item)
    return gathered


def agreed(work: Callable[[], T]) -> T:
    """The result of `work` on this rank, once every rank has done it. An error on one rank is raised on all of them."""
    if world() == 1:
        return work()
    result: Any = None
    own: Exception | None = None
    try:
        result = work()
    except RankLost:
        raise
    except Exception as error:
        own = error
    errors = gather_objects(None if own is None else _told(own))
    for number, told in enumerate(errors):
        if told is not None:
            raise told from (own if number == rank() else None)
    return result


def _told(error: Exception) -> LsaError:
    """The error as it travels between ranks; a usage error is the same on every rank."""
    if isinstance(error, LsaError) and error.exit_code == EXIT_USAGE:
        return error
    return RunError(f"rank {rank()}: {error if isinstance(error, LsaError) else f'{type(error).__name__}: {error}'}")


def first(work: Callable[[], T]) -> T:
    """The result of `work`, which only the first rank does, on every rank."""
    result: Any = agreed(work if rank() == 0 else lambda: None)
    return gather_objects(result)[0]


def dealt(items: Sequence[S], work: Callable[[S], T]) -> list[T]:
    """`work` on every item, each item on one rank. Every rank gets all results, in the order of items."""
    parts = gather_objects(agreed(lambda: [work(item) for item in share(items)]))
    return [parts[number % world()][number // world()] for number in range(len(items))]


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    if world() == 1:
        return flag
    found = torch.tensor([int(flag)])
    with _exchange():
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


# ---- training ------------------------------------------------------------------------------------------


def summed(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The sum of each tensor over ranks, bit-identical on every rank."""
    if world() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _exchange():
        distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Each gradient becomes its sum over ranks. A missing gradient counts as zero, and stays None if it is missing on all."""
    if world() == 1:
        return
    held = [p for p in parameters if p.requires_grad]
    there = torch.tensor([float(p.grad is not None) for p in held], device=held[0].device if held else None)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in held]
    there, *gradients = summed([there, *gradients])
    for parameter, gradient, count in zip(held, gradients, there.tolist(), strict=True):
        parameter.grad = gradient if count else None


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Each tensor becomes its mean over ranks, in place."""
    if world() > 1:
        for tensor, total in zip(tensors, summed(tensors), strict=True):
            tensor.copy_(total / world())
