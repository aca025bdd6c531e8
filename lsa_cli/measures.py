"""Comparison measures: how far a layer's output moved, one number a sample.

A measure takes the clean and the perturbed output of a layer, both (N, ...), and returns (N,). Where it is not
defined for a sample it returns NaN, which the scan counts and leaves out of every mean.
"""

from collections.abc import Callable

import torch

from lsa_cli.registry import Registry

Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
MEASURES: Registry[Measure] = Registry("measure")


@MEASURES.register("relative-error")
def relative_error(clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N,)
    """||perturbed - clean|| / ||clean||, the comparison measure of arXiv 2202.02626, eq. 12.

    A sample on which the layer is silent (||clean|| = 0) has no relative error: it is 0 if the layer stayed
    silent and NaN if it woke up (our choice; the paper does not say).
    """
    moved = torch.linalg.vector_norm((perturbed - clean).flatten(1), dim=1)
    size = torch.linalg.vector_norm(clean.flatten(1), dim=1)
    return torch.where(moved == 0, moved, torch.where(size == 0, torch.nan, moved / size))


@MEASURES.register("cosine-distance")
def cosine_distance(clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N,)
    """1 - cos(clean, perturbed), in [0, 2]: blind to scale, sees direction only. NaN where one is zero."""
    clean, perturbed = clean.flatten(1), perturbed.flatten(1)
    sizes = torch.linalg.vector_norm(clean, dim=1) * torch.linalg.vector_norm(perturbed, dim=1)
    cosine = (clean * perturbed).sum(1) / sizes
    # Rounding can carry the cosine of equal vectors past 1.
    return torch.where((clean == perturbed).all(1), 0.0, (1 - cosine).clamp(0, 2))


@MEASURES.register("l2")
def l2_difference(clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N,)
    """||perturbed - clean||: not scaled, so it compares attacks on one layer, not layers with each other."""
    return torch.linalg.vector_norm((perturbed - clean).flatten(1), dim=1)
