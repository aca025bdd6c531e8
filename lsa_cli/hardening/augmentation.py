"""Augmentation of training images. Random numbers depend on seed and sample, not on batches or ranks."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from lsa_cli.attacks.randomness import per_sample, uniform_like

_PAD = 4


def unchanged(x: torch.Tensor, index: torch.Tensor, seed: int) -> torch.Tensor:
    return x


def crop_flip(x: torch.Tensor, index: torch.Tensor, seed: int) -> torch.Tensor:
    """(N, C, H, W) -> the same: moved by up to 4 pixels with black beyond the edge, and mirrored with probability 1/2."""
    height, width = x.shape[-2:]
    with per_sample(seed, index, "augmentation"):
        draws = uniform_like(x.new_zeros(len(x), 3))
    down, right = (draws[:, :2] * (2 * _PAD + 1)).long().unbind(1)
    padded = F.pad(x, [_PAD] * 4)
    rows = (down[:, None] + torch.arange(height)).clamp_max(height + 2 * _PAD - 1)
    columns = (right[:, None] + torch.arange(width)).clamp_max(width + 2 * _PAD - 1)
    columns = torch.where(draws[:, 2:] < 0.5, columns, columns.flip(1))
    samples = torch.arange(len(x))[:, None, None]
    return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


AUGMENTATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    "none": unchanged,
    "crop-flip": crop_flip,
}
