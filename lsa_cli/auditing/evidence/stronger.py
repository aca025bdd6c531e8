"""A stronger attack on samples that are still robust: by how many points is the robust accuracy of the audit too high?

It takes more samples until that is known, or none are left.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from lsa_cli.attacks import Attack, Threat
from lsa_cli.attacks.fmn import FMN
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.odi import ODI
from lsa_cli.auditing.evidence.decision import ALPHA, Checked, doubt, exceeds
from lsa_cli.auditing.evidence.guided import OnLogarithms
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.special_attacks import TowardsNearestClasses
from lsa_cli.auditing.evidence.straight_through import StraightThrough, has_jumps_or_ripples
from lsa_cli.stats import binomial_tail, wilson

STEPS = 12  # of PGD on the margin, which breaks more of what the default attacks leave than APGD of as many steps
TOWARDS = 5  # of the attack towards the nearest class, on the samples that are tried
REACHED = 0.5  # of the first margin: PGD broke 2 of 1,500 samples that the first attack left further from the boundary
_WIDE_STEPS, _WIDE_GAMMA = 50, 0.3  # of FMN in l2 and l1, at twice its usual step size
_ON_LOGARITHMS = 20  # steps
PASSES = 3 + TOWARDS + 0.4 + 0.3 * STEPS  # forward + gradient, for a sample that nothing breaks; 30% are reached
FIRST, NEXT = 72, 121  # samples after the first rounds; each further round adds half as many as before it
ALLOWED = 0.01  # the number may be too high by this much without a finding,
TRUSTED = 0.05  # and must be known to be too high by less than this
_UNKNOWN = 0.05  # probability that a number that is TRUSTED too high passes as known
_ROUNDS = 10  # up to 3,079 samples; a share that needs more is near a limit


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
    """Two attacks in a row: towards the nearest class, and PGD on the margin, whose steps shrink, from a random start. Others
    follow where the network has what they are made for, see `_further`.

    The robust accuracy is too high by the share of survivors that they break, times the share of samples that survived.
    More than one point beyond noise is a finding (one-sided binomial test at ALPHA over the number of rounds). More samples are
    tried until the number is known to be less than five points too high (the same test in the other direction at 5%, of which
    each round has half of what is left), or all survivors were tried: what breaks then counts in the result, also without a
    finding, so that nothing is left open. If at most one point survived, no attack runs.

    The second one takes only samples whose margin the first one has halved. Where they are part of the result, both take all
    samples and more steps. Both start on the network itself, as a copy that misleads the attacks of the audit would mislead
    these too.

    In l2 and l1 the first two break nothing that FMN left. There the attack is FMN again, in a ball whose radius changes more
    and with longer steps (our choice).
    """
    share = survivors.count / survivors.samples
    if share <= ALLOWED:
        return Checked("stronger attack", 0, {"broken": 0})
    n, broken, wins, further = 0, 0, False, dict[str, Attack]()
    for number in itertools.count(1):
        probe = survivors.take(n, (FIRST, NEXT)[number - 1] if number <= 2 else n + n // 2)
        further = _further(probe) if n == 0 else further
        n, broken = n + len(probe), broken + _broken(probe, further.values())
        wins = exceeds(broken, n, ALLOWED / share, ALPHA / _ROUNDS)
        if wins or n >= survivors.count or _known(broken, n, survivors, number):
            break
    low, high = wilson(broken, n) or (0.0, 1.0)
    message = (
        f"short stronger attacks break {broken} of {n} samples that are still robust after the attacks of this audit: the "
        f"robust accuracy is not {share:.1%} but at most about {share * (1 - broken / n):.1%} "
        f"[{100 * share * (1 - high):.1f}, {100 * share * (1 - low):.1f}]"
    )
    advice = "audit with --full, or estimate the result of --full with --full-on"
    finding = doubt("stronger-attack-wins", message, advice) if wins else None
    saw = {"broken": broken, "points too high": 100 * share * broken / n}
    said, counts = "", broken > 0 and (wins or n == survivors.count)
    if counts and finding is None:
        said = f"short stronger attacks break {broken} of the {n} samples that the others left"
    attacks = _attacks(probe.threat) | further if counts else {}
    return Checked("stronger attack", n, saw, finding, said, attacks=attacks)


def _attacks(threat: Threat) -> dict[str, Attack]:
    """By label, as they are part of the result."""
    if threat.norm != "linf":
        return {"fmn-wide": _wide(threat)}
    return {"nearest-class": TowardsNearestClasses(threat), "pgd-margin": ODI(threat, STEPS, spread=0)}


def _further(probe: Probe) -> dict[str, Attack]:
    """For jumps and ripples, and for outputs that are never negative. By label."""
    found: dict[str, Attack] = {}
    if has_jumps_or_ripples(probe.model, probe.x[:1]):
        found["straight-through"] = StraightThrough(probe.threat)
    if bool((probe.clean >= 0).all()):
        found["logarithms"] = OnLogarithms(probe.threat, _ON_LOGARITHMS)
    return found


def _wide(threat: Threat) -> FMN:
    return FMN(threat, _WIDE_STEPS, 2 * FMN(threat).first_length, _WIDE_GAMMA)


def _broken(probe: Probe, further: Iterable[Attack]) -> int:
    """How many of these samples the attacks break."""
    left = _left(probe)
    for attack in further:
        left = left.unbroken_by(attack, copy=False) if len(left) else left
    return len(probe) - len(left)


def _left(probe: Probe) -> Probe:
    """The samples that the first two attacks do not break."""
    if probe.threat.norm != "linf":
        return probe.unbroken_by(_wide(probe.threat), copy=False)
    before = margin(probe.clean, probe.y)
    after = probe.margin(probe.run(TowardsNearestClasses(probe.threat, steps=TOWARDS), copy=False))
    holds, reached = after <= 0, (after <= 0) & (after > REACHED * before)
    if reached.any():
        near = probe.select(reached)
        holds[reached] = near.margin(near.run(ODI(probe.threat, STEPS, spread=0), copy=False)) <= 0
    return probe.select(holds)


def _known(broken: int, n: int, survivors: Survivors, rounds: int) -> bool:
    """Whether the robust accuracy is known to be less than TRUSTED too high, after so many rounds."""
    least = TRUSTED / (survivors.count / survivors.samples)
    return least >= 1 or binomial_tail(n - broken, n, 1 - least) < _UNKNOWN / 2**rounds
