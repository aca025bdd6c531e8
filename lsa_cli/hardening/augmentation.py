"""Augmentation of training images. Random numbers depend on seed and sample, not on batches or ranks."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from lsa_cli.attacks.randomness import per_sample, uniform_like


def unchanged(x: torch.Tensor, index: torch.Tensor, seed: int) -> torch.Tensor:
    return x


def shift(x: torch.Tensor, index: torch.Tensor, seed: int) -> torch.Tensor:
    """(N, C, H, W) -> the same: moved by up to 2 pixels, with the edge repeated."""
    return _moved(x, _draws(x, index, seed), 2, "replicate", mirrored=False)


def crop_flip(x: torch.Tensor, index: torch.Tensor, seed: int) -> torch.Tensor:
    """(N, C, H, W) -> the same: moved by up to 4 pixels with black beyond the edge, and mirrored with probability 1/2."""
    return _moved(x, _draws(x, index, seed), 4, "constant", mirrored=True)


def _draws(x: torch.Tensor, index: torch.Tensor, seed: int) -> torch.Tensor:  # (N, 3) in (0, 1)
    with per_sample(seed, index, "augmentation"):
        return uniform_like(x.new_zeros(len(x), 3))


def _moved(x: torch.Tensor, draws: torch.Tensor, most: int, beyond: str, mirrored: bool) -> torch.Tensor:
    height, width = x.shape[-2:]
    down, right = (draws[:, :2] * (2 * most + 1)).long().unbind(1)
    padded = F.pad(x, [most] * 4, mode=beyond)
    rows = (down[:, None] + torch.arange(height)).clamp_max(height + 2 * most - 1)
    columns = (right[:, None] + torch.arange(width)).clamp_max(width + 2 * most - 1)
    if mirrored:
        columns = torch.where(draws[:, 2:] < 0.5, columns, columns.flip(1))
    samples = torch.arange(len(x))[:, None, None]
    return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


AUGMENTATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    "none": unchanged,
    "shift": shift,
    "crop-flip": crop_flip,
}
