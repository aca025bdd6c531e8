"""Settings that change nothing in the audit that is planned. The user's own are refused; those of a file are told."""

from typing import TYPE_CHECKING

from lsa_cli.errors import UsageError
from lsa_cli.report.schema import Warning

if TYPE_CHECKING:
    from lsa_cli.auditing.plan import AuditPlan

_OF_LAYERS = ("measure", "aggregate", "eta", "sigma", "top_k")
_NOT_IN_EARLY = ("layers", *_OF_LAYERS, "noise", "corruption", "metrics", "eps_grid")


def unused_settings(plan: "AuditPlan", gate_only: bool = False) -> dict[str, str]:
    """Each setting that was given and makes no difference to the plan, with the reason."""
    reasons: dict[str, str] = {}
    if gate_only:
        reason = "--gate-only decides shares of samples under attack, and runs nothing else"
        reasons = dict.fromkeys(_NOT_IN_EARLY, reason)
    elif not plan.layers:
        reasons = dict.fromkeys(_OF_LAYERS, "no layer is scanned")
    elif not (plan.attacks or plan.noises):
        scanned = "no attack or noise is run to the end on all samples, so no layer is scanned"
        reasons = dict.fromkeys(("layers", *_OF_LAYERS), scanned)
    elif plan.rule.top_k is not None:
        reasons = dict.fromkeys(("eta", "sigma"), "top_k says how many layers are named, whatever their means")
    given = {name for name, value in plan.settings.recorded().items() if value not in (["none"], False)}
    return {name: reason for name, reason in reasons.items() if name in given and name in plan.network.origin}


def refuse_unused(plan: "AuditPlan", gate_only: bool = False) -> tuple[Warning, ...]:
    """Raises UsageError where such a setting is the user's own; returns a warning for each that a file holds."""
    warnings = []
    for name, reason in unused_settings(plan, gate_only).items():
        origin = plan.network.origin[name]
        if origin == "option":
            raise UsageError(f"--{name.replace('_', '-')} changes nothing here: {reason}; leave it out")
        warnings.append(Warning(code="unused-setting", message=f"{name} of {origin} is not used: {reason}"))
    return tuple(warnings)
