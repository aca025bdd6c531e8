"""A stronger attack on samples that are still robust: by how many points is the robust accuracy of the audit too high?

It takes more samples until that is known, or none are left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lsa_cli.attacks import Attack, Threat
from lsa_cli.attacks.odi import ODI
from lsa_cli.auditing.evidence.decision import ALPHA, Checked, doubt, exceeds
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.special_attacks import TowardsNearestClasses
from lsa_cli.stats import binomial_tail, wilson

STEPS = 12  # of PGD on the margin, which breaks more of what the default attacks leave than APGD of as many steps
PASSES = 12 + STEPS  # forward + gradient, for a sample that nothing breaks
FIRST = 72  # samples in the first round; each further round adds half as many as before it
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


def stronger_attack(survivors: Survivors) -> Checked:
    """Two attacks in a row: towards the nearest class, and PGD on the margin, whose steps shrink, from a random start.

    The robust accuracy is too high by the share of survivors that they break, times the share of samples that survived.
    More than one point beyond noise is a finding (one-sided binomial test at ALPHA over the number of rounds). So is a
    number that is not known to be less than five points too high (the same test in the other direction at 5%, half of
    which the first round has; or all survivors tried). If at most one point survived, no attack runs.

    Both start on the network itself, as a copy that misleads the attacks of the audit would mislead these too.
    """
    share = survivors.count / survivors.samples
    if share <= ALLOWED:
        return Checked("stronger attack", 0, {"broken": 0})
    n, broken, wins, known = 0, 0, False, False
    while n < survivors.count and not (wins or known):
        probe = survivors.take(n, max(FIRST, n + n // 2))
        left = probe
        for attack in (attacks := _attacks(probe.threat)).values():
            left = left.unbroken_by(attack, copy=False) if len(left) else left
        n, broken = n + len(probe), broken + len(probe) - len(left)
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
    saw = {"broken": broken, "points too high": 100 * share * broken / n}
    return Checked("stronger attack", n, saw, finding, attacks=attacks if wins else {})


def _attacks(threat: Threat) -> dict[str, Attack]:
    """By label."""
    return {"nearest-class": TowardsNearestClasses(threat), "pgd-margin": ODI(threat, STEPS, spread=0)}


def _known(broken: int, n: int, survivors: Survivors) -> bool:
    """Whether the robust accuracy is known to be less than TRUSTED too high."""
    if n == survivors.count:
        return broken < TRUSTED * survivors.samples
    least = TRUSTED / (survivors.count / survivors.samples)
    error = _UNKNOWN / 2 if n <= FIRST else _UNKNOWN / 2 / (_ROUNDS - 1)
    return least >= 1 or binomial_tail(n - broken, n, 1 - least) < error
