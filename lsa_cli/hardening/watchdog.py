"""Watchdog: strengthen a training whose attack is too weak, and stop one that fails, with the reason and what to change."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lsa_cli.report.row import finite

_PATIENCE = 3  # epochs at chance before they count as not learning
_ADVICE = "use a smaller --lr, a longer --warmup, or a smaller --gamma"
_GAP = 0.75  # accuracy under PGD, as a share of that under FGSM, below which the training attack is too weak


@dataclass(frozen=True)
class EpochResult:
    """The results of one epoch, as they are logged.

    loss and parts: means over training samples. clean, fgsm, robust: accuracies on the held-out samples; robust is
    under PGD. strength: of the warm-up at the epoch's end. seconds: of the epoch. raised: what the watchdog made stronger after
    it, None for nothing.
    """

    epoch: int
    loss: float
    parts: dict[str, float]
    clean: float
    fgsm: float
    robust: float
    strength: float
    learning_rate: float
    seconds: float
    raised: str | None = None

    def plain(self) -> dict[str, Any]:
        """The values for JSON, in which None stands for numbers that are not finite."""
        values = asdict(self)
        return values | {
            "loss": finite(self.loss),
            "parts": {name: finite(part) for name, part in self.parts.items()},
        }


def at_chance(result: EpochResult, chance: float) -> bool:
    """Whether the accuracy is hardly better than that of always guessing the largest class."""
    return result.clean <= chance + 0.2 * min(chance, 1 - chance)


def is_weak(history: Sequence[EpochResult], chance: float) -> bool:
    """Whether the last epoch, at full eps, resists one step of an attack and not several. chance: accuracy of guessing.

    Accuracy under PGD is less than 3/4 of that under FGSM, which is better than guessing, and an earlier epoch reached as much
    under PGD: a gap that still closes is none (the numbers are our choice).
    """
    last = history[-1]
    gap = last.fgsm > _better_than(chance) and last.robust < _GAP * last.fgsm
    return last.strength == 1 and gap and any(result.robust >= last.robust for result in history[:-1])


def seconds_of_epoch(history: Sequence[EpochResult]) -> float:
    """The mean time of the epochs since the last one that was strengthened, which makes epochs longer."""
    since = max((one.epoch for one in history if one.raised is not None), default=0)
    alike = history[since:] or history[-1:]
    return sum(one.seconds for one in alike) / len(alike)


def _better_than(chance: float) -> float:
    return min(2 * chance, 0.5)


def trouble(history: Sequence[EpochResult], chance: float) -> str | None:
    """The reason to stop after the last epoch, with what to change; None where there is none. chance: accuracy of guessing.

    Catastrophic overfitting (arXiv 2001.03994, section 5.4): attacks of one step fail and attacks of many steps succeed on
    every sample. Here: accuracy under PGD is half its best or less, and accuracy under FGSM is no lower than at that epoch
    (the numbers are our choice). A training that was strengthened after the last epoch goes on.
    """
    last = history[-1]
    if not math.isfinite(last.loss):
        return "the loss is not finite; a smaller --lr, a longer --warmup, or --clip makes that less likely"
    best = max(history, key=lambda result: result.robust)
    overfitted = best.robust > _better_than(chance) and last.robust <= best.robust / 2 and last.fgsm >= best.fgsm
    if overfitted and last.raised is None:
        return (
            f"catastrophic overfitting: accuracy under PGD fell from {best.robust:.1%} (epoch {best.epoch}) to "
            f"{last.robust:.1%} while accuracy under FGSM rose from {best.fgsm:.1%} to {last.fgsm:.1%}; use a base of "
            "several steps (--base pgd), a smaller --lr or a smaller --eps"
        )
    recent = history[-_PATIENCE:]
    if len(recent) == _PATIENCE and all(at_chance(result, chance) for result in recent):
        return f"not learning: clean accuracy has been at chance ({last.clean:.1%}) for {_PATIENCE} epochs; {_ADVICE}"
    return None


def collapse(best: EpochResult, before: float, chance: float) -> str | None:
    """The reason why a training that is too short for `trouble` failed: it made a network that was better than guessing useless.
    None where it did not.

    best: the result of the epoch that would be saved. before: clean accuracy before training. Both are on the held-out samples.
    """
    if not at_chance(best, chance) or at_chance(replace(best, clean=before), chance):
        return None
    return f"not learning: clean accuracy was {before:.1%} before training and is at chance ({best.clean:.1%}) after it; {_ADVICE}"
