"""Optimised slopes of the lower bounds of ReLUs (alpha-CROWN, arXiv 2011.13824, equation 9), for the bounds of one node.

The bounds of the nodes before it stay as they are. Any slope in [0, 1] gives a valid bound, so that the best one found
counts.
"""

import torch

from lsa_cli.proofs.crown import Bounds
from lsa_cli.proofs.operations import Relu

RATE, DECAY = 0.5, 0.97  # of Adam, and its factor after each step; our choice


def optimised(bounds: Bounds, place: int, rows: torch.Tensor, least: torch.Tensor, steps: int) -> torch.Tensor:
    """Larger lower bounds (R,) of rows (R, ...) . z for the node at `place`, from those of CROWN's slopes `least` (R,).

    Each row has slopes of its own. Rows with a positive bound are left as they are.
    """
    best = least.clone()
    wanted = (least <= 0).nonzero()[:, 0]
    slopes = {}
    for here, node in enumerate(bounds.graph.nodes[: place + 1]):
        if isinstance(node.operation, Relu):
            slope = bounds.relaxation(node.inputs[0]).slope
            if len(slope):
                slopes[here] = slope.expand(len(wanted), -1).clone().requires_grad_(True)
    if not slopes or not len(wanted):
        return best
    adam = torch.optim.Adam(slopes.values(), lr=RATE)
    for _ in range(steps):
        with torch.enable_grad():
            found = bounds.least(place, rows[wanted], slopes)
        best[wanted] = torch.fmax(best[wanted], found.detach())
        if bool((best[wanted] > 0).all()):
            break
        adam.zero_grad()
        found.backward(-torch.ones_like(found))
        adam.step()
        for slope in slopes.values():
            slope.detach().clamp_(0, 1)
        adam.param_groups[0]["lr"] *= DECAY
    return best
