"""A stronger attack on samples that the audit left whole: by how many points is its robust accuracy too high?

Samples are taken until that is known, as far as there are any.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lsa_cli.attacks import Attack
from lsa_cli.attacks.apgd import APGD
from lsa_cli.attacks.base import Model
from lsa_cli.auditing.evidence.concealed import TowardsNearestClasses
from lsa_cli.auditing.evidence.judge import ALPHA, Checked, doubt, exceeds
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.report.schema import Finding
from lsa_cli.stats import binomial_tail, wilson

STEPS = 15  # of APGD
FIRST = 48  # samples; at each further look half as many again
PASSES = 22 + STEPS  # forward + gradient, for a sample that nothing breaks
ALLOWED, TRUSTED = (
    0.01,
    0.05,
)  # what the number may be too high by without a finding, and below what it must be known to be
_UNKNOWN = 0.05  # chance that a number that is TRUSTED too high counts as known to be less so
_LOOKS = 10  # up to 1,845 samples; an undecided share that takes more is near a limit anyway


@dataclass(frozen=True)
class Survivors:
    """What the audit left whole, in random order. count of them; samples: audited in all; take(start, stop) reads some."""

    count: int
    samples: int
    take: Callable[[int, int], Probe]

    @classmethod
    def of(cls, probe: Probe, samples: int) -> "Survivors":
        return cls(len(probe), samples, lambda start, stop: probe.select(torch.arange(start, min(stop, len(probe)))))


def stronger_attack(survivors: Survivors, bare: Model | None = None) -> Checked:
    """Two attacks, one after the other: towards the nearest classes, and APGD on the cross-entropy.

    bare: see `bare_logits`; where there are any, APGD on them is the third.

    The number of the audit is too high by the share of survivors that they break, times the share of samples that
    survived. More than one point beyond noise is a finding (one-sided binomial test at ALPHA over the number of looks), and
    so is a number that is not known to be less than five points too high (the same test the other way, at 5%, or all
    survivors tried). Where no more than one point survived, nothing is tried.
    """
    n, broken = 0, 0
    share = survivors.count / survivors.samples
    if share <= ALLOWED:
        return Checked("stronger attack", 0, {"broken": 0})
    allowed, least = ALLOWED / share, TRUSTED / share
    while n < survivors.count:
        probe = survivors.take(n, max(FIRST, n + n // 2))
        n, broken = n + len(probe), broken + _broken(probe, bare)
        if exceeds(broken, n, allowed, ALPHA / _LOOKS) or _known(broken, n, least, survivors):
            break
    saw = {"broken": broken, "points too high": 100 * share * broken / n}
    finding = _finding(broken, n, survivors, exceeds(broken, n, allowed, ALPHA / _LOOKS), least)
    return Checked("stronger attack", n, saw, (finding,) if finding is not None else ())


def _broken(probe: Probe, bare: Model | None) -> int:
    left, apgd = probe, APGD(threat=probe.threat, steps=STEPS)
    attacks: list[tuple[Attack, Model | None]] = [(TowardsNearestClasses(threat=probe.threat), None), (apgd, None)]
    for attack, attacked in [*attacks, *([(apgd, bare)] if bare is not None else [])]:
        left = left.select(left.margin(left.run(attack, attacked)) <= 0)
        if not len(left):
            break
    return len(probe) - len(left)


def _known(broken: int, n: int, least: float, survivors: Survivors) -> bool:
    """Whether the number is known to be less than TRUSTED too high."""
    if n == survivors.count:
        return broken < TRUSTED * survivors.samples
    return least >= 1 or binomial_tail(n - broken, n, 1 - least) < _UNKNOWN / _LOOKS


def _finding(broken: int, n: int, survivors: Survivors, wins: bool, least: float) -> Finding | None:
    if not wins and _known(broken, n, least, survivors):
        return None
    share = survivors.count / survivors.samples
    low, high = wilson(broken, n) or (0.0, 1.0)
    left = f"{share * (1 - broken / n):.1%} [{100 * share * (1 - high):.1f}, {100 * share * (1 - low):.1f}]"
    said = (
        f"short stronger attacks break {broken} of {n} samples that the attacks of this audit left whole: the robust accuracy "
        f"is not {share:.1%} but at most about {left}"
    )
    if wins:
        advice = "audit with --full, or estimate what that would leave with --full-on"
        return doubt("stronger-attack-wins", said, advice)
    return doubt(
        "stronger-attack-undecided",
        f"{said}, and these samples do not show that it is less than {100 * TRUSTED:g} points too high",
        "audit more samples, or with --full",
    )
