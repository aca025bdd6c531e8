"""Checks that cost nothing: they read what the audit measured of each attack anyway."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lsa_cli.attacks.base import Role
from lsa_cli.auditing.evidence.judge import Checked, beats, doubt, exceeds

# Shares that honest networks may show, for `exceeds`; our choices.
ALLOWED_LOST = 0.01  # adversarials on the very boundary, where another batch size rounds the other way
ALLOWED_NAN = 0.01


@dataclass(frozen=True)
class Measured:
    """What one budget attack did, (N,) arrays over the audit's samples, as `ClassDiagnosis` has them.

    role: see `Attack`. budget: its threat, in words that are equal where the threats are. found_at: the look at which
    an adversarial was first seen, 0 for none; None where the attack keeps no search. ran: samples it was run on, where
    a cascade left some out; None for all.
    """

    label: str
    role: Role
    budget: str
    y: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray
    counted: np.ndarray
    found_at: np.ndarray | None = None
    ran: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:  # (N,) bool
        return self.clean == self.y

    @property
    def tried(self) -> np.ndarray:  # (N,) bool
        """Right clean, and attacked."""
        return self.right if self.ran is None else self.right & self.ran

    @property
    def broken(self) -> np.ndarray:  # (N,) bool
        return self.tried & self.counted & (self.adversarial != self.y)


def compare(attacks: Sequence[Measured]) -> list[Checked]:
    """Every check that the audit's own arrays allow: each attack by itself, then those with one budget together."""
    made = []
    for attack in attacks:
        made.append(answers(attack))
        if attack.found_at is not None:
            made.append(silent_success(attack))
    for budget in dict.fromkeys(attack.budget for attack in attacks):
        rivals = [attack for attack in attacks if attack.budget == budget]
        steps = [attack for attack in rivals if attack.role == "gradient"]
        single = [attack for attack in rivals if attack.role == "one-step"]
        made += [one_step_wins(attack, steps) for attack in single if steps]
        searches = [attack for attack in rivals if attack.role == "search"]
        made += [search_wins(attack, steps or single) for attack in searches if steps or single]
    return made


def answers(attack: Measured) -> Checked:
    """NaN under attack is no class: it counts as wrong, and so as broken, which is not what an attack set out to do."""
    n, unanswered = int(attack.tried.sum()), int((attack.tried & (attack.adversarial < 0)).sum())
    finding = doubt(
        "nan-under-attack",
        f"{attack.label}: the network answers NaN to {unanswered} of {n} perturbed inputs, which count as broken",
        "look for overflow in the network: a division, an exponential, half precision",
    )
    found = exceeds(unanswered, n, ALLOWED_NAN)
    return Checked(f"answers under {attack.label}", n, {"NaN": unanswered}, (finding,) if found else ())


def silent_success(attack: Measured) -> Checked:
    """Adversarials that an attack saw on its way, and did not return: of what it saw, how much was found to be right?

    What was returned out of budget is not counted here; that is told elsewhere. More than 1% is a finding: a sample
    on the very boundary may fall on the other side when it is looked at again.
    """
    assert attack.found_at is not None
    seen = attack.tried & attack.counted & (attack.found_at > 0)
    n, lost = int(seen.sum()), int((seen & (attack.adversarial == attack.y)).sum())
    finding = doubt(
        "silent-success",
        f"{attack.label}: saw an adversarial for {n} samples and returned one that is right for {lost} of them: the "
        "attack lost what it had found, or the network answers differently when asked again",
        "have the attack return the strongest input it has seen; look at findings on chance and batches",
    )
    found = exceeds(lost, n, ALLOWED_LOST)
    return Checked(f"silent success of {attack.label}", n, {"lost": lost}, (finding,) if found else ())


def one_step_wins(one: Measured, steps: Sequence[Measured]) -> Checked:
    """What one step breaks of the samples that every attack of many steps left whole."""
    n, broken = _beaten(one, steps)
    names = ", ".join(attack.label for attack in steps)
    finding = doubt(
        "one-step-wins",
        f"{one.label}, of one step, breaks {broken} of {n} samples that {names} left whole: many small steps should "
        "find all that one large step does, so the gradient is masked near the samples or the steps are too few",
        "give the attack of many steps more steps, restarts or a larger step size, and attack without gradients (square)",
    )
    found = beats(broken, n, int(one.right.sum()))
    return Checked(f"{one.label} against {names}", n, {"broken": broken}, (finding,) if found else ())


def search_wins(search: Measured, gradient: Sequence[Measured]) -> Checked:
    """What an attack that sees logits only breaks of the samples that every gradient attack left whole."""
    n, broken = _beaten(search, gradient)
    names = ", ".join(attack.label for attack in gradient)
    finding = doubt(
        "random-search-wins",
        f"{search.label}, which sees no gradient, breaks {broken} of {n} samples that {names} left whole: the "
        "gradients are masked or the gradient attacks too weak, and the robust accuracy is too high",
        "give the gradient attacks more steps and restarts or take stronger ones (apgd-t), and square more queries",
    )
    found = beats(broken, n, int(search.right.sum()))
    return Checked(f"{search.label} against {names}", n, {"broken": broken}, (finding,) if found else ())


def _beaten(attack: Measured, others: Sequence[Measured]) -> tuple[int, int]:
    """How many samples all the others were run on and left whole, with this one run too; how many of them it broke.

    A share of survivors, not of all samples: what has broken anyway cannot be masked, and a cascade that skips what
    has broken gives the same counts.
    """
    left = attack.tried.copy()
    for other in others:
        left &= other.tried & ~other.broken
    return int(left.sum()), int((left & attack.broken).sum())
