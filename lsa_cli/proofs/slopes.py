"""Optimised slopes of the lower bounds of ReLUs (alpha-CROWN, arXiv 2011.13824, equation 9), for the bounds of one node.

The bounds of the nodes before it stay as they are. Any slope in [0, 1] gives a valid bound, so that the best one found
counts.
"""

import torch

from lsa_cli.proofs.coefficients import Coefficients, rows_of
from lsa_cli.proofs.crown import Bounds

RATE, DECAY = 0.5, 0.97  # of Adam, and its factor after each step; our choice


def optimised(
    bounds: Bounds, place: int, rows: Coefficients, sample: torch.Tensor, least: torch.Tensor, steps: int
) -> torch.Tensor:
    """Larger lower bounds (R,) of rows (R, ...) . z for the node at `place`, from those of CROWN's slopes `least` (R,).

    sample: (R,) ascending, of each row. Each row has slopes of its own. Rows with a positive bound are left as they are.
    """
    best = least.clone()
    wanted = (least <= 0).nonzero()[:, 0]
    for part in wanted.split(bounds.rows_at_once(place, kept=True)) if len(wanted) else ():
        best[part] = _optimised(bounds, place, rows_of(rows, part), sample[part], least[part], steps)
    return best


def _optimised(
    bounds: Bounds, place: int, rows: Coefficients, sample: torch.Tensor, best: torch.Tensor, steps: int
) -> torch.Tensor:
    slopes: dict[int, torch.Tensor] = {}
    adam = None
    for _ in range(steps):
        with torch.enable_grad():
            found = bounds.sloped(place, rows, sample, slopes)
        best = torch.fmax(best, found.detach())
        if not slopes or bool((best > 0).all()):
            break
        adam = adam or torch.optim.Adam(slopes.values(), lr=RATE)
        adam.zero_grad()
        found.backward(-torch.ones_like(found))
        adam.step()
        for slope in slopes.values():
            slope.detach().clamp_(0, 1)
        adam.param_groups[0]["lr"] *= DECAY
    return best
