"""Ranks, and what they add up. On one process every function here is a no-op.

The engine is torch.distributed; see `lsa_cli.cli.launch` for who starts the ranks. Ranks compute and exchange; the
first one reports. Nothing depends on the number of ranks: work is dealt out without padding, random numbers belong
to samples, and sums run over all ranks once.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def world() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This one's number, from 0."""
    return distributed.get_rank() if world() > 1 else 0


def share(items: T) -> T:
    """This rank's part of a list or array; the parts of all ranks together are the whole, each item once."""
    return items[rank() :: world()]  # type: ignore[index]


def barrier() -> None:
    """Until every rank is here: what one has written, all can read."""
    if world() > 1:
        distributed.barrier()


def gather_objects(item: Any) -> list[Any]:
    """What every rank holds, in the order of ranks, on every rank."""
    if world() == 1:
        return [item]
    gathered: list[Any] = [None] * world()
    distributed.all_gather_object(gathered, item)
    return gathered


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Each gradient becomes its sum over ranks; one that a rank lacks counts as zero there."""
    if world() == 1:
        return
    held = [p for p in parameters if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in held]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for parameter, gradient, summed in zip(held, gradients, flat.split([g.numel() for g in gradients]), strict=True):
        parameter.grad = summed.reshape(gradient.shape)
