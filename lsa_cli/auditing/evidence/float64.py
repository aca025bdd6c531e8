"""Does the margin change as its gradient predicts, along steps so short that the margin is linear?

Float32 cannot measure such steps, so a copy of the network computes in float64. Its logits are then rounded to float32.
"""

import dataclasses

import torch
from torch import nn

from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.errors import LsaError
from lsa_cli.failures import is_out_of_memory
from lsa_cli.models.wrappers import copy_network

SAMPLES, DIRECTIONS = 48, 3
_STEP = 2.0**-11  # of eps
_LINEAR = 0.02  # of a change, by which half of that along a step twice as long may differ, and twice that along one half as long
_MEASURED = 100  # times the rounding of the logits, at least, is a change that counts

Changes = tuple[torch.Tensor, torch.Tensor]  # of the margin, (M,) predicted and measured


def cosine(parts: list[Changes]) -> tuple[float, int]:
    """Between the predicted and the measured changes, and the number of steps."""
    a, b = (torch.cat(side) for side in zip(*parts, strict=True))
    norms = float(a.norm() * b.norm())
    return (float(a @ b) / norms if norms > 0 else 0.0), len(a) if norms > 0 else 0


def exact_cosine(probe: Probe) -> tuple[float, int]:
    """The cosine over random steps from random points within the budget, and the number of steps.

    Steps count whose change is above rounding and proportional to their length: rounding inside the network, for which a
    straight-through gradient may be right on a larger scale, leaves none. There are no steps where a copy of the network
    does not run in float64.
    """
    few = probe.first(SAMPLES)
    try:
        model = copy_network(probe.model).double() if isinstance(probe.model, nn.Module) else probe.model
        with per_sample(probe.seed, few.index, "float64"):
            seen = dataclasses.replace(few, model=model, x=_points(few))
            gradient, logits = seen.slope(seen.x, margin).flatten(1), seen.logits(seen.x)
            rounding = torch.finfo(torch.float32).eps * logits.abs().amax(1).double()
            return cosine([_steps(seen, gradient, rounding) for _ in range(DIRECTIONS)])
    except (LsaError, RuntimeError, TypeError, ValueError) as error:  # of the network's own code, in another precision
        if is_out_of_memory(error):
            raise
        return 0.0, 0


def _points(probe: Probe) -> torch.Tensor:  # (N, ...)
    """Random points within the budget, at least two steps away from the ends of the range."""
    x = probe.threat.sample(probe.x).double()
    if probe.threat.bounds is None:
        return x
    low, high = probe.threat.bounds
    away = 2 * _STEP * float(probe.threat.eps)
    return x.clamp(low + away, high - away)


def _steps(probe: Probe, gradient: torch.Tensor, rounding: torch.Tensor) -> Changes:
    """One random step for each sample. Changes are divided by the length of the sample's gradient."""
    length = torch.full_like(rounding, _STEP * float(probe.threat.eps))
    step = (probe.threat.random_direction(probe.x, length) - probe.x).double()
    half, change, twice = (
        (probe.margin(probe.x + h * step) - probe.margin(probe.x - h * step)).double() for h in (0.5, 1, 2)
    )
    predicted = 2 * (gradient * step.flatten(1)).sum(1)
    # Of three lengths, as jumps can make the changes along two of them proportional.
    is_linear = torch.maximum((twice / 2 - change).abs(), (2 * half - change).abs()) <= _LINEAR * change.abs()
    counts = is_linear & (change.abs() > _MEASURED * rounding) & change.isfinite()
    size = gradient.norm(dim=1)
    return (predicted / size)[counts], (change / size)[counts]
