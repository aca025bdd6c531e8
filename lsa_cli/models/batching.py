"""Networks that take batches of one size alone."""

from collections.abc import Callable
from typing import Any

import torch


def in_batches(run: Callable[[torch.Tensor], Any], x: torch.Tensor, size: int) -> Any:  # (N, ...) -> (N, ...)
    """The output for x, asked in batches of `size`; the last one is filled up with its last input.

    The output is a tensor with a row for each input, or a dictionary, list or tuple of such tensors.
    """
    filled = torch.cat([x, x[-1:].expand(-len(x) % size, *x.shape[1:])])
    return _joined([run(part) for part in filled.split(size)], len(x))


def _joined(parts: list[Any], count: int) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        return {name: _joined([part[name] for part in parts], count) for name in first}
    if isinstance(first, (list, tuple)):
        return [_joined(list(each), count) for each in zip(*parts, strict=True)]
    return torch.cat(parts)[:count]
