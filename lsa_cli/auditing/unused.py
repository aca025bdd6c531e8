"""Settings that make no difference to the planned audit: an option is refused, a key of a file gives a warning."""

from typing import TYPE_CHECKING

from lsa_cli.errors import UsageError
from lsa_cli.report.limits import parse_metric
from lsa_cli.report.schema import Warning

if TYPE_CHECKING:
    from lsa_cli.auditing.plan import AuditPlan

_OF_LAYERS = ("measure", "aggregate", "eta", "sigma", "top_k")
_NOT_IN_EARLY = ("layers", *_OF_LAYERS, "noise", "corruption", "metrics", "eps_grid")


def refuse_unused(plan: "AuditPlan", gate_only: bool = False) -> tuple[Warning, ...]:
    """Raises UsageError for an option that makes no difference to the plan; a warning for each such key of a file."""
    names: tuple[str, ...] = ()
    reason = ""
    if gate_only:
        names, reason = _NOT_IN_EARLY, "--gate-only decides shares of samples under attack, and runs nothing else"
    elif not plan.layers:
        names, reason = _OF_LAYERS, "no layer is scanned"
    elif not (plan.attacks or plan.noises):
        names = ("layers", *_OF_LAYERS)
        reason = "no attack or noise runs to the end on all samples, so no layer is scanned"
    elif plan.rule.top_k is not None:
        names, reason = ("eta", "sigma"), "top_k sets the number of most vulnerable layers"
    reasons = dict.fromkeys(names, reason)
    if not plan.settings.gate_only:
        reasons |= dict.fromkeys(("alpha", "baseline"), "it belongs to --gate-only")
    elif not any(parse_metric(name).family == "drop" for name in plan.limits):
        reasons["baseline"] = "no limit is a drop from it"
    if not plan.cascade:
        reasons["patient"] = "it is for the attacks of a cascade, and there is none; add --full"
    # A radius of the checkpoint is a default, which nobody asked for.
    if plan.settings.eps not in (None, plan.threat.eps) and plan.network.origin.get("eps") != "the checkpoint":
        reasons["eps"] = "every attack has an eps of its own"
    given = plan.settings.given("measured", "written")
    warnings = []
    for name, reason in reasons.items():
        origin = plan.network.origin.get(name)
        if origin is None or given.get(name, False) in (["none"], False):
            continue
        if origin == "option":
            raise UsageError(f"--{name.replace('_', '-')} changes nothing here: {reason}; leave it out")
        warnings.append(Warning(code="unused-setting", message=f"{name} of {origin} is not used: {reason}"))
    return tuple(warnings)
