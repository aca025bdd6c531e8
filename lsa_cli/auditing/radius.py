"""Who chose the radius: one that comes with the checkpoint is named, and where it asks next to nothing it decides no limit."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lsa_cli.auditing.evidence.decision import Checked, doubt
from lsa_cli.errors import UsageError
from lsa_cli.registry import parse_number
from lsa_cli.report.origin import RADIUS_CODE, is_of_others
from lsa_cli.wording import eps_as_text

if TYPE_CHECKING:
    from lsa_cli.attacks import Threat
    from lsa_cli.auditing.plan import AuditPlan

# Radii that evaluations of these data sets use (RobustBench, AutoAttack); anything else has to be said.
USUAL_EPS = {
    "mnist": {"linf": "0.3"},
    "fashionmnist": {"linf": "0.1"},
    "cifar10": {"linf": "8/255", "l2": "0.5", "l1": "12"},
    "cifar100": {"linf": "8/255", "l2": "0.5"},
    "svhn": {"linf": "8/255"},
    "imagenet": {"linf": "4/255", "l2": "3"},
}
ASSUMED_LINF = "8/255"  # where nothing is known about the data
LEAST = 1 / 4  # of the usual radius; below, a radius of somebody else's choice is doubted (our choice)
_SAYS_NOTHING_OF_IT = ("clean", "seconds")  # limits that no radius changes


def usual_radius(name: str, norm: str) -> str | None:
    """As people write it; None where no radius is usual. name: of a data set, spelled in any way."""
    return USUAL_EPS.get(name.lower().replace("-", "").replace("_", ""), {}).get(norm)


def yardstick(names: Sequence[str], norm: str, size: int) -> float:
    """What a radius in [0, 1] is measured by: the usual one of the data, the largest where names differ.

    Where none is usual in l2 or l1, sqrt(size) / 4 or size / 10 of that in linf: the relation between the radii of
    CIFAR-10 and ImageNet above is 0.3 to 0.5 of sqrt(size) and 0.12 of size (our choice). size: numbers in an input.
    """
    known = [parse_number(radius) for name in names if (radius := usual_radius(name, norm)) is not None]
    if known or norm == "linf":
        return max(known, default=parse_number(ASSUMED_LINF))
    return yardstick(names, "linf", size) * {"l2": math.sqrt(size) / 4, "l1": size / 10}.get(norm, 1.0)


def check_radius(plan: "AuditPlan") -> Checked:
    """Is the largest radius of the audit one that the checkpoint, or a lsa.yaml beside it, sets next to nothing?

    Next to nothing is 0, or below a quarter of `yardstick` for inputs in [0, 1].
    """
    attacks = [named for named in plan.budget_attacks if hasattr(named.attack, "threat")]
    threats = {(threat.norm, threat.eps): threat for threat in (named.attack.threat for named in attacks)}  # type: ignore[attr-defined]
    if not threats:
        return Checked("choice of the radius", 0, {})
    measured = {key: _relative(plan, threat) for key, threat in threats.items()}
    largest = max(measured, key=lambda key: measured[key])
    threat, share = threats[largest], measured[largest]
    chosen_by = _origin(plan, threat)
    saw = {"share of the usual radius": share}
    if share >= LEAST or not is_of_others(chosen_by):
        return Checked("choice of the radius", len(threats), saw)
    usual = "" if not threat.eps or share == math.inf else f", {share:.1%} of what is usual for this data"
    finding = doubt(
        RADIUS_CODE,
        f"the radius {threat.norm} {eps_as_text(threat.eps)} is set by {chosen_by}{usual}: "
        + ("nothing is changed within it" if not threat.eps else "hardly anything is changed within it")
        + ", so that the robust accuracy says next to nothing",
        "give the radius yourself with --eps, and --norm with it",
    )
    return Checked("choice of the radius", len(threats), saw, finding)


def refuse_radius(plan: "AuditPlan") -> None:
    """Raises UsageError where such a radius is to decide a limit."""
    decided = [metric for metric in plan.limits if metric not in _SAYS_NOTHING_OF_IT]
    finding = check_radius(plan).finding if decided else None
    if finding is not None:
        raise UsageError(f"{finding.message}, and the limit {decided[0]} is to be decided by it; {finding.advice}")


def _origin(plan: "AuditPlan", threat: "Threat") -> str:
    """Who set this radius: the origin of the attack's own, or of eps or norm, the one of others first."""
    if (threat.norm, threat.eps) != (plan.threat.norm, plan.threat.eps):
        return plan.network.origin.get("attack", "option")
    of_norm = plan.network.origin.get("norm", "") if threat.norm != "linf" else ""  # linf is what stands without a word
    return next((o for o in (plan.eps_origin, of_norm) if is_of_others(o)), plan.eps_origin)


def _relative(plan: "AuditPlan", threat: "Threat") -> float:
    """The radius over its yardstick; for inputs without a range that is known infinity, unless it is 0."""
    if not threat.eps:
        return 0.0
    if plan.network.bounds is None:
        return math.inf
    described = plan.network.checkpoint.description if plan.network.checkpoint is not None else None
    names = [plan.network.data.name, described.data_name if described is not None and described.data_name else ""]
    low, high = plan.network.bounds
    return float(threat.eps) / (yardstick(names, threat.norm, math.prod(plan.network.input_shape)) * (high - low))


def sources_in_words(origin: Mapping[str, str]) -> str:
    """A sentence on the limits that the user did not set; empty where there are none."""
    others = [part for part in origin.get("gate", "").split(", ") if is_of_others(part)]
    return f" Limits are set by {', '.join(others)}." if others else ""
