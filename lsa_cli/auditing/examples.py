"""Examples: small images of a few samples that an attack broke, for the report. Which samples is our choice."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from lsa_cli.report.schema import Example

MOST = 6
_SIDE = 64  # pixels


def surest_mistakes(broken: np.ndarray, margins: np.ndarray, y: np.ndarray) -> np.ndarray:  # (N,) x3 -> (M,), M <= 6
    """Rows of the broken samples with the largest margins: first one of each class, then the second of each, ..."""
    rows = np.flatnonzero(broken)
    rows = rows[np.argsort(-np.nan_to_num(margins[rows], nan=-np.inf), kind="stable")]
    turn = np.array([(y[rows[:place]] == y[row]).sum() for place, row in enumerate(rows)], dtype=int)
    return rows[np.argsort(turn, kind="stable")][:MOST]


def are_pictures(x: torch.Tensor) -> bool:
    """Whether x (N, ...) is a batch of grey or colour images."""
    return x.ndim == 4 and x.shape[1] in (1, 3)


def example(
    x: np.ndarray, x_adv: np.ndarray, *, index: int, label: str, predicted: str, attack: str, margin: float, distance: float
) -> Example:  # fmt: skip
    """x, x_adv: (C, H, W) in [0, 1], C = 1 or 3; their difference is scaled to the full range around grey."""
    change = x_adv - x
    largest = float(np.abs(change).max())
    gain = 0.5 / largest if largest else 1.0
    return Example(
        index=index, label=label, predicted=predicted, attack=attack,
        margin=_rounded(-margin), distance=_rounded(distance),
        clean=_picture(x), adversarial=_picture(x_adv),
        # The mean over neighbours would hide a perturbation whose signs alternate.
        difference=_picture(0.5 + gain * change, Image.Resampling.NEAREST), gain=float(f"{gain:.3g}"),
    )  # fmt: skip


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _picture(image: np.ndarray, scaling: Image.Resampling = Image.Resampling.BOX) -> str:  # (C, H, W) -> data URI
    levels = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    picture = Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    picture.thumbnail((_SIDE, _SIDE), scaling)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
