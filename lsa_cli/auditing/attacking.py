"""Passes of the network over one batch: predictions, attacks, and the verification of what they return in float32."""

import dataclasses
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.gradient import FGSM
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.search import Goal
from lsa_cli.attacks.threat import Threat
from lsa_cli.auditing.copies import TRIED, copy_for
from lsa_cli.auditing.draws import DRAWS, draw
from lsa_cli.auditing.execution import Execution
from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.results import AttackRows
from lsa_cli.errors import UsageError
from lsa_cli.models.classifier import predicted_class
from lsa_cli.models.precision import Copy


def predict(plan: AuditPlan, x: torch.Tensor, index: torch.Tensor, number: int = 0) -> torch.Tensor:
    """Logits (N, K) of the network itself. number: of the draw, for a stochastic network."""
    with torch.no_grad(), undisturbed(plan.network.classifier), draw(plan.seed, index, number):
        return plan.network.classifier(x)


def wrong_by_draw(plan: AuditPlan, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> np.ndarray:
    """For each draw of a stochastic network whether it is wrong, (N, R) bool; for other networks (N, 0)."""
    if not plan.is_stochastic:
        return np.zeros((len(x), 0), dtype=bool)
    wrong = [predicted_class(predict(plan, x, index, number)) != y for number in range(DRAWS)]
    return torch.stack(wrong, 1).cpu().numpy()


def at_radius(named: NamedAttack, threat: Threat, eps: float) -> NamedAttack:
    """The attack with another radius than its threat model's; step sizes grow with the radius."""
    changed = dataclasses.replace(threat, eps=eps)
    changes: dict[str, Any] = {"threat": changed} if hasattr(named.attack, "threat") else {}
    step_size = getattr(named.attack, "step_size", None)
    if step_size is not None:
        changes["step_size"] = step_size * eps / threat.eps if threat.eps and eps else step_size
    return dataclasses.replace(named, attack=dataclasses.replace(named.attack, **changes))


def perturb(
    run: Execution, named: NamedAttack, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, goal: Goal,
    threat: Threat | None = None, verify: bool = True, gradient: torch.Tensor | None = None,
) -> tuple[torch.Tensor, AttackRows]:  # fmt: skip
    """The perturbed inputs (N, ...), and their rows. One that is not finite is replaced by the clean input.

    threat: measures the perturbation; by default that of the attack. verify=False: the caller verifies, and the rows have
    neither classes (-1) nor margins (NaN). gradient (N, ...): of `unscaled_cross_entropy` at x, where the caller knows it:
    FGSM then needs no pass.
    """
    plan, copy, began = run.plan, run.copy.model, time.monotonic()
    one_step = from_input(named)
    if gradient is not None and one_step is not None:
        x_adv, found_at = one_step.step(gradient, x, x), torch.zeros(len(x), dtype=torch.int32)
    else:
        with run.clock.stops(plan.network.classifier), run.clock.stops(copy) if copy is not None else nullcontext():
            x_adv, found_at = named.attack.run(
                plan.network.classifier, x, y, index=index, seed=plan.seed, goal=goal, copy=copy
            )
    if x_adv.shape != x.shape:
        raise UsageError(f"the attack {named.label} returned shape {tuple(x_adv.shape)} for {tuple(x.shape)}")
    finite = torch.isfinite(x_adv.flatten(1)).all(1)
    x_adv = torch.where(finite.reshape(-1, *[1] * (x.ndim - 1)), x_adv, x)
    unknown = np.full(len(x), -1), np.full(len(x), np.nan)
    predicted, margins = _verified(plan, x_adv, y, index) if verify else unknown
    threat = threat or plan.threat_of(named)
    rows = AttackRows(
        ran=np.ones(len(x), dtype=bool),
        predicted=predicted,
        within=threat.contains(x_adv, x).cpu().numpy(),
        finite=finite.cpu().numpy(),
        found_at=found_at.cpu().numpy(),
        margin=margins,
        distance=threat.distance(x_adv, x).double().cpu().numpy(),
        wrong=wrong_by_draw(plan, x_adv, y, index),
        seconds=time.monotonic() - began,
    )
    return x_adv, rows


def from_input(named: NamedAttack) -> FGSM | None:
    """The attack, where it is one step from the input, so that the gradient there is all that it needs."""
    attack = named.attack
    if not isinstance(attack, FGSM) or type(attack).perturb is not FGSM.perturb or attack.random_start:
        return None
    return attack if torch.as_tensor(attack.threat.eps).any() else None


def _verified(
    plan: AuditPlan, x_adv: torch.Tensor, y: torch.Tensor, index: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Verified classes and margins (N,): in float32, and in batches of another size than the attack used."""
    size = max(1, len(x_adv) // 2 + 1)
    logits = torch.cat([predict(plan, *part) for part in zip(x_adv.split(size), index.split(size), strict=True)])
    return predicted_class(logits).cpu().numpy(), margins_of(logits, y)


def margins_of(logits: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """The margins (N,) of logits (N, K), as a report keeps them."""
    return margin(logits, y).double().cpu().numpy()


def find_copy(run: Execution) -> Copy:
    """The optimized copy on which attacks start, after a comparison with the network on a few samples."""
    plan = run.plan
    rows = np.unique(np.linspace(0, len(plan.index) - 1, min(TRIED, run.batch.size)).astype(int))
    x, y, _ = run.read_all(plan.index[rows])
    return copy_for(plan, x, y)
