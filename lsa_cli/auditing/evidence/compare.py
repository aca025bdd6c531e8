"""Checks that cost nothing: they compare what the audit has measured of each attack."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lsa_cli.attacks.base import Role
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis
from lsa_cli.auditing.evidence.decision import Checked, beats, doubt, exceeds

# Shares that honest networks may show, for `exceeds`; our choices.
ALLOWED_LOST = 0.01  # adversarial examples on the boundary, which rounding in another batch size makes correct again
ALLOWED_NAN = 0.01


@dataclass(frozen=True)
class Measured:
    """What one budget attack did to the N samples of the audit.

    role: see `Attack`. budget: its threat model as text. ran (N,) bool: the samples that it ran on. found_at (N,): the query
    that first found an adversarial example, 0 for none; None where the attack does not record it.
    """

    label: str
    role: Role
    budget: str
    diagnosis: ClassDiagnosis
    ran: np.ndarray
    found_at: np.ndarray | None = None

    @property
    def tried(self) -> np.ndarray:  # (N,) bool
        """Classified correctly without an attack, and attacked."""
        return self.diagnosis.right & self.ran

    @property
    def broken(self) -> np.ndarray:  # (N,) bool
        return self.diagnosis.broken & self.ran


def compare(attacks: Sequence[Measured]) -> list[Checked]:
    """The checks of each attack by itself, then those of the attacks with one budget together."""
    made = []
    for attack in attacks:
        made.append(finite_outputs(attack))
        if attack.found_at is not None:
            made.append(silent_success(attack, attack.found_at))
    for budget in dict.fromkeys(attack.budget for attack in attacks):
        by_role: dict[Role, list[Measured]] = {"one-step": [], "gradient": [], "search": [], "other": []}
        for attack in attacks:
            if attack.budget == budget:
                by_role[attack.role].append(attack)
        if steps := by_role["gradient"]:
            made += [weaker_wins(attack, steps) for attack in by_role["one-step"]]
        if gradient := steps or by_role["one-step"]:
            made += [weaker_wins(attack, gradient) for attack in by_role["search"]]
    return made


def finite_outputs(attack: Measured) -> Checked:
    """Is the output NaN, or infinite for several classes, under attack? It names no class and counts as wrong."""
    n, not_finite = int(attack.tried.sum()), int((attack.tried & (attack.diagnosis.adversarial < 0)).sum())
    finding = doubt(
        "nan-under-attack",
        f"{attack.label}: the network's output is NaN, or infinite for several classes, for {not_finite} of {n} perturbed inputs, which count as broken",
        "look for overflow in the network: a division, an exponential, half precision",
    )
    found = exceeds(not_finite, n, ALLOWED_NAN)
    return Checked(
        f"finite outputs under {attack.label}", n, {"NaN or infinite": not_finite}, finding if found else None
    )


def silent_success(attack: Measured, found_at: np.ndarray) -> Checked:
    """Does an attack lose adversarial examples that it found, and return an input that is classified correctly?

    Inputs outside the budget are not counted; the report warns about them. More than 1% is a finding: an example on the
    boundary may be classified correctly in the next pass.
    """
    seen = attack.tried & attack.diagnosis.counted & (found_at > 0)
    n, lost = int(seen.sum()), int((seen & (attack.diagnosis.adversarial == attack.diagnosis.y)).sum())
    finding = doubt(
        "silent-success",
        f"{attack.label} found adversarial examples for {n} samples, and for {lost} of them returned an input that is "
        "classified correctly: the attack lost what it found, or outputs differ from pass to pass",
        "make the attack return the best input that it has found; read the findings about randomness and batches",
    )
    found = exceeds(lost, n, ALLOWED_LOST)
    return Checked(f"silent success of {attack.label}", n, {"lost": lost}, finding if found else None)


def weaker_wins(weaker: Measured, others: Sequence[Measured]) -> Checked:
    """Does an attack of one step, or without gradients, break samples that are still robust under all gradient attacks?

    A share of the survivors, not of all samples: what is broken is not masked, and so a cascade, which skips broken samples,
    gives the same counts. All attacks must have run on a sample.
    """
    left = weaker.tried.copy()
    for other in others:
        left &= other.tried & ~other.broken
    n, broken = int(left.sum()), int((left & weaker.broken).sum())
    names = ", ".join(attack.label for attack in others)
    if weaker.role == "one-step":
        finding = doubt(
            "one-step-wins",
            f"{weaker.label}, which takes one step, breaks {broken} of {n} samples that are still robust under {names}: many "
            "small steps should find all that one large step finds, so the gradient is masked near the samples, or the "
            "steps are too few",
            "give the attacks of many steps more steps, restarts or a larger step size, and attack without gradients (square)",
        )
    else:
        finding = doubt(
            "random-search-wins",
            f"{weaker.label}, which uses no gradient, breaks {broken} of {n} samples that are still robust under {names}: the "
            "gradients are masked or the gradient attacks too weak, and the robust accuracy is too high",
            "give the gradient attacks more steps and restarts or use stronger ones (apgd-t), and give square more queries",
        )
    found = beats(broken, n, int(weaker.diagnosis.right.sum()))
    return Checked(f"{weaker.label} against {names}", n, {"broken": broken}, finding if found else None)
