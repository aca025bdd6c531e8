"""Schedules of the learning rate and of the warm-up: functions of the progress of training in [0, 1]."""

import math
from collections.abc import Callable

from lsa_cli.errors import UsageError
from lsa_cli.registry import unknown

_RISE = 0.3  # share of a one-cycle schedule in which the rate rises (as torch's OneCycleLR has it)
_FLOOR = 0.04  # the first factor of a one-cycle schedule


def constant(progress: float) -> float:
    return 1.0


def cosine(progress: float) -> float:
    """Falls from 1 to 0 along half a cosine (arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def one_cycle(progress: float) -> float:
    """Rises to 1 within the first 30 percent and falls to 0, both along half a cosine (arXiv 1708.07120)."""
    if progress < _RISE:
        return _FLOOR + (1 - _FLOOR) * (1 - cosine(progress / _RISE))
    return cosine((progress - _RISE) / (1 - _RISE))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine, "one-cycle": one_cycle}


def learning_rate(schedule: str, progress: float) -> float:
    """The factor of the learning rate. Raises UsageError for an unknown schedule."""
    if schedule not in SCHEDULES:
        raise UsageError(unknown("schedule", schedule, SCHEDULES))
    return SCHEDULES[schedule](progress)


def warmed_up(progress: float, share: float) -> float:
    """The share of eps and gamma at this point. It rises linearly to 1 over the first `share` of the training."""
    return 1.0 if share <= 0 else min(1.0, progress / share)
