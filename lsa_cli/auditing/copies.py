"""The optimized copy of the network on which attacks of an audit start."""

import torch

from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.models.precision import Copy, make_copy

TRIED = 8  # samples on which the copy is compared with the network


def copy_for(plan: AuditPlan, x: torch.Tensor, y: torch.Tensor) -> Copy:
    """The copy, after a comparison with the network on x (N, ...) with labels y (N,)."""
    if plan.is_stochastic:  # two passes differ, so outputs cannot be compared
        return Copy(None, "it is stochastic")
    if not plan.fast:
        return Copy(None, "--no-fast")
    if not any(named.attack.begins_on_copy for named in plan.budget_attacks):
        return Copy(None, "no attack of this audit starts on an optimized copy")
    return make_copy(plan.network.classifier, x, y)


def copy_in_words(plan: AuditPlan, copy: Copy) -> str:
    """What the attacks run on, as the report says it."""
    if copy.model is None:
        return f"the network itself: {copy.described}"
    beginning = dict.fromkeys(named.label for named in plan.budget_attacks if named.attack.begins_on_copy)
    return f"{copy.described}, in the first part of {', '.join(beginning)}; the network itself in all other steps"
