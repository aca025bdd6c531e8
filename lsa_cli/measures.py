"""Comparison measures: the distance between two outputs of a layer, one number for each sample.

A measure takes the clean and the perturbed output of a layer, both (N, ...), and returns (N,) in the same type. It is NaN
for a sample where it is not defined; the scan counts these samples and leaves them out of every mean.

Sums are in float64: in float32 the norm of a layer with 10^6 numbers is off by 1e-5, and squares of very small or large
numbers underflow or overflow.
"""

from collections.abc import Callable

import torch

from lsa_cli.registry import Registry

_AT_ONCE = 1 << 22  # numbers in float64 at the same time, in whole samples

Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
MEASURES: Registry[Measure] = Registry("measure")


@MEASURES.register("relative-error")
def relative_error(clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N,)
    """||perturbed - clean|| / ||clean||, the comparison measure of arXiv 2202.02626, eq. 12.

    Where ||clean|| = 0 it is 0 if the perturbed output is zero too, and NaN otherwise (our choice; the paper does not say).
    """
    moved, size = _norms(perturbed - clean), _norms(clean)
    return torch.where(moved == 0, moved, torch.where(size == 0, torch.nan, moved / size)).to(clean.dtype)


@MEASURES.register("cosine-distance")
def cosine_distance(clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N,)
    """1 - cos(clean, perturbed), in [0, 2]: depends on direction, not on scale. NaN where one of them is zero, 0 where both are.

    Computed as ||u - v||^2 / 2 of the unit vectors, in float64: 1 - cos loses all digits of a small distance.
    """
    pairs = zip(_parts(clean.flatten(1)), _parts(perturbed.flatten(1)), strict=True)
    distance = torch.cat([(_unit(a) - _unit(b)).square().sum(1) / 2 for a, b in pairs]).to(clean.dtype)
    return torch.where((clean == perturbed).flatten(1).all(1), 0.0, distance)


@MEASURES.register("l2")
def l2_difference(clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N,)
    """||perturbed - clean||: not scaled, so it compares attacks on one layer, but not layers with each other."""
    return _norms(perturbed - clean).to(clean.dtype)


def _norms(x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N,) float64
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.movedim(1, -1)  # in the order of memory, on which a norm does not depend, rows need no copy
    rows = x.flatten(1)
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in _parts(rows)])


def _unit(rows: torch.Tensor) -> torch.Tensor:  # (N, D) -> (N, D) float64, of length 1; NaN where a row is zero
    rows = rows.double()
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def _parts(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return rows.split(max(1, _AT_ONCE // max(1, rows.shape[1])))
