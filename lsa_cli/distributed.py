"""Ranks, and what they add up. On one process every function here is a no-op.

The engine is torch.distributed; see `lsa_cli.cli.launch` for who starts the ranks. Ranks compute and exchange; the
first one reports. Nothing depends on the number of ranks: work is dealt out without padding, random numbers belong
to samples, and sums run over all ranks once.
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

_MEET = timedelta(minutes=10)  # to find each other
_WAIT = timedelta(hours=6)  # for the slowest rank; one that has died is noticed at once by its closed connections
_SAVING = 10.0  # seconds that the first rank gets to save what was measured, when another one fails

_store: distributed.Store | None = None


# ---- together from start to end ------------------------------------------------------------------------


@contextmanager
def joined() -> Iterator[None]:
    """Within: one of the ranks that the environment names, as torchrun does (RANK, WORLD_SIZE, MASTER_ADDR, ...).

    Objects travel by gloo, and gradients on CUDA devices by NCCL. Raises RunError where the ranks do not meet.
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
    whole = False
    try:
        yield
        whole = True
    finally:
        if whole or not cuda:  # NCCL may wait for ranks that have failed
            distributed.destroy_process_group()  # those that wait for this one hear of its end
        with suppress(RuntimeError):
            if number == 0:
                _store.set("saved", b"")
            elif not whole:
                _await(_store, "saved", _SAVING)


def _fresh(store: distributed.Store, number: int, count: int) -> distributed.Store:
    """A part of the store that only the ranks started together use, under a name that the first one makes up.

    torchrun keeps its store when it starts ranks again, and what dead ones have written there, addresses too, would be
    taken for that of the living. So each asks under a number of its own, and the first one answers until all have heard.
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
            raise ValueError(f"nothing was heard of rank {min(silent)} within {_MEET}")
        time.sleep(0.02)
    return distributed.PrefixStore(own, store)


def _await(store: distributed.Store, key: str, seconds: float) -> None:
    """Whoever watches the ranks ends them all as soon as one has failed; the first one may have things to save."""
    until = time.monotonic() + seconds
    while not store.check([key]) and time.monotonic() < until:
        time.sleep(0.05)


def first_to_say() -> bool:
    """Whether no rank has said yet why it ends; asking counts as saying."""
    try:
        return _store is None or _store.add("said", 1) == 1
    except RuntimeError:
        return True


def restarted() -> bool:
    """Whether torchrun has started the ranks again (--max-restarts); it tells so where one has died."""
    return anywhere(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0)


# ---- who is who ----------------------------------------------------------------------------------------


def world() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This one's number, from 0."""
    return distributed.get_rank() if world() > 1 else 0


def local_world() -> int:
    """How many of the ranks are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if world() > 1 else 1


def local_rank() -> int:
    """This one's number among them, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank())) if world() > 1 else 0


# ---- exchange ------------------------------------------------------------------------------------------


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            "another rank has ended, and the others cannot go on without it; its own words, or those of whoever started "
            "it, say why"
        ) from error


def share(items: T) -> T:
    """This rank's part of a list or array; the parts of all ranks together are the whole, each item once."""
    return items[rank() :: world()]  # type: ignore[index]


def barrier() -> None:
    """Until every rank is here: what one has written, all can read."""
    gather_objects(None)


def gather_objects(item: T) -> list[T]:
    """What every rank holds, in the order of ranks, on every rank."""
    if world() == 1:
        return [item]
    gathered: list[Any] = [None] * world()
    with _exchange():
        distributed.all_gather_object(gathered, item)
    return gathered


def agreed(work: Callable[[], T]) -> T:
    """What `work` gives here, once it is done on every rank; what it raises on one of them, all raise."""
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
    """As it travels between ranks. What the user can mend is the same whichever rank met it."""
    if isinstance(error, LsaError) and error.exit_code == EXIT_USAGE:
        return error
    return RunError(f"rank {rank()}: {error if isinstance(error, LsaError) else f'{type(error).__name__}: {error}'}")


def first(work: Callable[[], T]) -> T:
    """What `work` gives on the first rank, which alone does it, on every rank."""
    result: Any = agreed(work if rank() == 0 else lambda: None)
    return gather_objects(result)[0]


def dealt(items: Sequence[S], work: Callable[[S], T]) -> list[T]:
    """`work` on every item, each on one rank; the results in the order of items, on every rank."""
    parts = gather_objects(agreed(lambda: [work(item) for item in share(items)]))
    return [parts[number % world()][number // world()] for number in range(len(items))]


def anywhere(flag: bool) -> bool:
    """Whether it is so on any rank."""
    if world() == 1:
        return flag
    found = torch.tensor([int(flag)])
    with _exchange():
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


# ---- training ------------------------------------------------------------------------------------------


def summed(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The sum over ranks of each tensor, on every rank to the same bit."""
    if world() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _exchange():
        distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Each gradient becomes its sum over ranks; one that a rank lacks counts as zero there, one that all lack stays so."""
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
