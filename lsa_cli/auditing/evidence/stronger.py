"""A stronger attack on samples that are still robust: by how many points is the robust accuracy of the audit too high?

It takes more samples until that is known, or none are left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lsa_cli.attacks.apgd import APGD
from lsa_cli.attacks.base import Model
from lsa_cli.auditing.evidence.decision import ALPHA, Checked, doubt, exceeds
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.special_attacks import TowardsNearestClasses
from lsa_cli.stats import binomial_tail, wilson

STEPS = 15  # of APGD
FIRST = 48  # samples in the first round; each further round adds half as many as before it
PASSES = 22 + STEPS  # forward + gradient, for a sample that nothing breaks
ALLOWED = 0.01  # the number may be too high by this much without a finding,
TRUSTED = 0.05  # and must be known to be too high by less than this
_UNKNOWN = 0.05  # probability that a number that is TRUSTED too high passes as known
_ROUNDS = 10  # up to 1,845 samples; a share that needs more is near a limit


@dataclass(frozen=True)
class Survivors:
    """The samples that are still robust, in random order.

    count: their number; samples: all samples of the audit; take(start, stop) reads some survivors.
    """

    count: int
    samples: int
    take: Callable[[int, int], Probe]

    @classmethod
    def of(cls, probe: Probe, samples: int) -> "Survivors":
        return cls(len(probe), samples, lambda start, stop: probe.select(torch.arange(start, min(stop, len(probe)))))


def stronger_attack(survivors: Survivors, bare: Model | None = None) -> Checked:
    """Two attacks in a row: towards the nearest classes, and APGD on the cross-entropy; with `bare_logits` also APGD on these.

    The robust accuracy is too high by the share of survivors that they break, times the share of samples that survived.
    More than one point beyond noise is a finding (one-sided binomial test at ALPHA over the number of rounds). So is a
    number that is not known to be less than five points too high (the same test in the other direction at 5%, or all
    survivors tried). If at most one point survived, no attack runs.
    """
    share = survivors.count / survivors.samples
    if share <= ALLOWED:
        return Checked("stronger attack", 0, {"broken": 0})
    n, broken, wins, known = 0, 0, False, False
    while n < survivors.count and not (wins or known):
        probe = survivors.take(n, max(FIRST, n + n // 2))
        n, broken = n + len(probe), broken + _broken(probe, bare)
        wins = exceeds(broken, n, ALLOWED / share, ALPHA / _ROUNDS)
        known = _known(broken, n, survivors)
    low, high = wilson(broken, n) or (0.0, 1.0)
    message = (
        f"short stronger attacks break {broken} of {n} samples that are still robust after the attacks of this audit: the "
        f"robust accuracy is not {share:.1%} but at most about {share * (1 - broken / n):.1%} "
        f"[{100 * share * (1 - high):.1f}, {100 * share * (1 - low):.1f}]"
    )
    finding = None
    if wins:
        finding = doubt(
            "stronger-attack-wins", message, "audit with --full, or estimate the result of --full with --full-on"
        )
    elif not known:
        message += f", and these samples do not show that it is less than {100 * TRUSTED:g} points too high"
        finding = doubt("stronger-attack-undecided", message, "audit more samples, or with --full")
    return Checked("stronger attack", n, {"broken": broken, "points too high": 100 * share * broken / n}, finding)


def _broken(probe: Probe, bare: Model | None) -> int:
    left, apgd = probe.unbroken_by(TowardsNearestClasses(threat=probe.threat)), APGD(threat=probe.threat, steps=STEPS)
    for model in (probe.model, bare):
        if model is not None and len(left):
            left = left.unbroken_by(apgd, model)
    return len(probe) - len(left)


def _known(broken: int, n: int, survivors: Survivors) -> bool:
    """Whether the robust accuracy is known to be less than TRUSTED too high."""
    if n == survivors.count:
        return broken < TRUSTED * survivors.samples
    least = TRUSTED / (survivors.count / survivors.samples)
    return least >= 1 or binomial_tail(n - broken, n, 1 - least) < _UNKNOWN / _ROUNDS
