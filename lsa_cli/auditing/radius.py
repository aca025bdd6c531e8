"""Who set the radius: one from the checkpoint is named in the report, and decides no limit if it is much too small."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lsa_cli.auditing.evidence.decision import Checked, doubt
from lsa_cli.auditing.named_attacks import TUNED
from lsa_cli.errors import UsageError
from lsa_cli.registry import parse_number
from lsa_cli.report.origin import RADIUS_CODE, is_of_others
from lsa_cli.wording import eps_as_text

if TYPE_CHECKING:
    from lsa_cli.attacks import Threat
    from lsa_cli.auditing.plan import AuditPlan

# Radii that evaluations of these data sets use (RobustBench, AutoAttack); for other data --eps is needed.
USUAL_EPS = {
    "mnist": {"linf": "0.3"},
    "fashionmnist": {"linf": "0.1"},
    "cifar10": {"linf": "8/255", "l2": "0.5", "l1": "12"},
    "cifar100": {"linf": "8/255", "l2": "0.5"},
    "svhn": {"linf": "8/255"},
    "imagenet": {"linf": "4/255", "l2": "3"},
}
ASSUMED_LINF = "8/255"  # where nothing is known about the data
LEAST = 1 / 4  # of the reference radius; a smaller one is doubted unless the user set it (our choice)
_WITHOUT_RADIUS = ("clean", "drop.clean", "seconds")  # limits that do not depend on the radius and the attacks


def usual_radius(name: str, norm: str) -> str | None:
    """As text; None where no radius is usual. name: of a data set, in any spelling."""
    return USUAL_EPS.get(name.lower().replace("-", "").replace("_", ""), {}).get(norm)


def reference_radius(names: Sequence[str], norm: str, size: int) -> float:
    """The usual radius of the data for inputs in [0, 1]: the largest one where names differ.

    Where none is usual in l2 or l1: sqrt(size) / 4 or size / 10 times that in linf. For the radii of CIFAR-10 and ImageNet
    above the factor is 0.3 to 0.5 of sqrt(size), and 0.12 of size (our choice). size: numbers in an input.
    """
    known = [parse_number(radius) for name in names if (radius := usual_radius(name, norm)) is not None]
    if known or norm == "linf":
        return max(known, default=parse_number(ASSUMED_LINF))
    return reference_radius(names, "linf", size) * {"l2": math.sqrt(size) / 4, "l1": size / 10}.get(norm, 1.0)


def check_radius(plan: "AuditPlan") -> Checked:
    """Is the largest radius of the audit much too small, and set by the checkpoint or a lsa.yaml beside it?

    Much too small is less than a quarter of `reference_radius`.
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
        + ("it allows no change" if not threat.eps else "it allows hardly any change")
        + ", so the robust accuracy has almost no meaning",
        "set the radius with --eps, and the norm with --norm",
    )
    return Checked("choice of the radius", len(threats), saw, finding)


def refuse_radius(plan: "AuditPlan") -> None:
    """Raises UsageError where a radius that `check_radius` doubts would decide a limit."""
    decided = [metric for metric in plan.limits if metric not in _WITHOUT_RADIUS]
    finding = check_radius(plan).finding if decided else None
    if finding is not None:
        raise UsageError(f"{finding.message}, and the limit {decided[0]} depends on it; {finding.advice}")


def refuse_attacks_of_others(plan: "AuditPlan") -> None:
    """Raises UsageError where a lsa.yaml beside the checkpoint sets the attacks that would decide a limit of the user."""
    origin = plan.network.origin
    setting = next((name for name in ("attack", "preset", *TUNED) if is_of_others(origin.get(name, ""))), None)
    is_own = any(not is_of_others(part) for part in origin.get("gate", "").split(", "))
    decided = [metric for metric in plan.limits if metric not in _WITHOUT_RADIUS]
    if setting is not None and decided and is_own:
        raise UsageError(
            f"{setting} is set by {origin[setting]}, and the limit {decided[0]} depends on it; set the attacks with "
            "--attack, or name the file with --config"
        )


def _origin(plan: "AuditPlan", threat: "Threat") -> str:
    """Who set this radius: the origin of the attack that has its own, or of eps or norm, whichever the user did not set."""
    if (threat.norm, threat.eps) != (plan.threat.norm, plan.threat.eps):
        return plan.network.origin.get("attack", "option")
    of_norm = plan.network.origin.get("norm", "") if threat.norm != "linf" else ""  # linf is the default
    return next((o for o in (plan.eps_origin, of_norm) if is_of_others(o)), plan.eps_origin)


def _relative(plan: "AuditPlan", threat: "Threat") -> float:
    """The radius over `reference_radius`; infinity for inputs without a known range, unless the radius is 0."""
    if not threat.eps:
        return 0.0
    if plan.network.bounds is None:
        return math.inf
    described = plan.network.checkpoint.description if plan.network.checkpoint is not None else None
    data = plan.network.data
    names = [data.name or data.called, described.data_name if described is not None and described.data_name else ""]
    low, high = plan.network.bounds
    return float(threat.eps) / (
        reference_radius(names, threat.norm, math.prod(plan.network.input_shape)) * (high - low)
    )


def sources_in_words(origin: Mapping[str, str]) -> str:
    """A sentence about limits that the user did not set; empty where there are none."""
    others = [part for part in origin.get("gate", "").split(", ") if is_of_others(part)]
    return f" Limits are set by {', '.join(others)}." if others else ""
