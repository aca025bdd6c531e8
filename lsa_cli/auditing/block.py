"""audit_block(): everything that an audit measures, on one block of samples."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lsa_cli.attacks.losses import unscaled_cross_entropy
from lsa_cli.attacks.search import Goal
from lsa_cli.attacks.threat import Threat
from lsa_cli.auditing.attacking import at_radius, from_input, margins_of, perturb, predict, wrong_by_draw
from lsa_cli.auditing.cost import LOOK, clean_passes
from lsa_cli.auditing.draws import draw
from lsa_cli.auditing.evidence.examine import FORWARD
from lsa_cli.auditing.evidence.preflight import LogitsSummary
from lsa_cli.auditing.evidence.probe import gradient_and_logits
from lsa_cli.auditing.execution import Batch, Execution
from lsa_cli.auditing.limits import OutOfTime
from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.auditing.observation import Moved, Observation, observe_all
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.proving import prove
from lsa_cli.auditing.results import AttackRows, BlockResult
from lsa_cli.models.classifier import predicted_class


@dataclass(frozen=True)
class _Inputs:
    """The samples of a block on the host. gradient (N, ...): of `unscaled_cross_entropy` at x; None where no attack uses it."""

    samples: Batch
    gradient: torch.Tensor | None

    def rows(self, chosen: np.ndarray) -> "_Inputs":
        rows = torch.from_numpy(chosen)
        x, y, places = (tensor[rows] for tensor in self.samples)
        return _Inputs((x, y, places), None if self.gradient is None else self.gradient[rows])


_Attacked = tuple[torch.Tensor, AttackRows]  # perturbed inputs (N, ...) on the host, and their rows
_Seen = tuple[Observation, np.ndarray]  # and the margins (N,)


def audit_block(
    run: Execution,
    index: np.ndarray,
    *,
    is_first: bool = False,
    on_part: Callable[[BlockResult], None] = lambda part: None,
    scan: bool = True,
    cascade: Sequence[NamedAttack] = (),
    on_all_right: Collection[str] = (),
) -> tuple[BlockResult | None, bool]:
    """Clean pass, proof, every attack and noise, one observation that verifies them all, the cascade on the survivors, and curves.

    Returns the result, and whether it is complete: it ends where the time budget is exhausted. is_first: the clean pass
    ignores the time budget, because a report needs it, and so does a pass that verifies each attack before the observation.
    on_part: gets the verified result so far. cascade: the attacks that run on the samples that are still robust.
    on_all_right: labels of those of them that run on all samples that are classified correctly. No cascade attacks a sample
    that is proven.
    """
    plan = run.plan
    result: BlockResult | None = None
    try:
        inputs, result = _clean_pass(run, index, in_any_case=is_first)
        on_part(result)
        if scan:  # the second phase of --full-on meets samples that were not proven in the first
            result = dataclasses.replace(result, proof=prove(run, inputs.samples, result.right))
        at_once = is_first or plan.is_stochastic  # whose classes are those of a draw, and the observation draws others
        found: dict[str, _Attacked] = {}
        for named in (*plan.attacks, *plan.noises) if scan else ():
            found[named.label] = _attack(run, named, inputs, "worst", verify=at_once)
            if at_once:
                result = result.with_attack(named.label, found[named.label][1])
                on_part(result)
        for label, rows in _observed(run, inputs.samples, found, verify=not at_once).items():
            result = result.with_attack(label, rows)
        on_part(result)
        del found
        for named in cascade:
            result = _stage(run, named, inputs, result, named.label in on_all_right)
            on_part(result)
        for named in plan.attacks if scan and plan.eps_grid else ():
            result = result.with_curve(named.label, _curve(run, named, inputs, result))
    except OutOfTime:
        return result, False
    return result, True


def attack_only(
    run: Execution, named: NamedAttack, known: BlockResult, index: np.ndarray
) -> tuple[BlockResult | None, bool]:
    """One attack of a cascade on the samples `index`, whose clean classes are in `known`; see `audit_block`."""
    try:
        x, y, places = (torch.cat(parts) for parts in zip(*run.read(index), strict=True))
        _, found = _attack(run, named, _Inputs((x, y, places), None), run.plan.cascade_goal)
    except OutOfTime:
        return None, False
    return known.rows(index).with_attack(named.label, found), True


def _clean_pass(run: Execution, index: np.ndarray, in_any_case: bool) -> tuple[_Inputs, BlockResult]:
    """The samples, and the result of the clean pass."""
    plan = run.plan

    def ask(x: torch.Tensor, y: torch.Tensor, places: torch.Tensor) -> tuple[BlockResult, torch.Tensor | None]:
        if not in_any_case:
            run.stop_if_late()
        logits, gradient, has_gradient = _clean_logits(plan, x, y, places)
        run.step("clean accuracy", clean_passes(plan) * len(x))
        return BlockResult(
            index=places.cpu().numpy(),
            label=y.cpu().numpy(),
            clean=predicted_class(logits).numpy(),
            content=run.content(places.cpu().numpy()),
            wrong=wrong_by_draw(plan, x, y, places),
            no_gradient=~has_gradient.numpy(),
            logits=LogitsSummary.of(logits.numpy()),
        ), gradient

    kept: list[Batch] = []
    gradients: list[torch.Tensor | None] = []
    total: BlockResult | None = None
    for batch in run.read(index):
        kept.append(batch)
        for found, gradient in run.by_batch(ask, *batch):
            total = found if total is None else total + found
            gradients.append(gradient)
    assert total is not None
    x, y, places = (torch.cat(parts) for parts in zip(*kept, strict=True))
    known = [gradient for gradient in gradients if gradient is not None]
    return _Inputs((x, y, places), torch.cat(known) if len(known) == len(gradients) else None), total


def _clean_logits(
    plan: AuditPlan, x: torch.Tensor, y: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """On the host: logits (N, K); the gradient (N, ...) of FGSM's loss, if an attack uses it; and the samples (N,) bool at
    which it is finite and not zero, if there are attacks.

    A stochastic network has another gradient in each pass.
    """
    if not plan.budget_attacks:
        return predict(plan, x, places).cpu(), None, torch.ones(len(x), dtype=torch.bool)
    with draw(plan.seed, places, 0):
        gradient, logits = gradient_and_logits(plan.network.classifier, x, y, unscaled_cross_entropy)
    if gradient is None:
        return logits.cpu(), None, torch.zeros(len(x), dtype=torch.bool)
    has_gradient = (gradient.nan_to_num(0, 0, 0) != 0).flatten(1).any(1)
    is_used = not plan.is_stochastic and any(from_input(named) is not None for named in plan.budget_attacks)
    return logits.cpu(), gradient.cpu() if is_used else None, has_gradient.cpu()


def _attack(
    run: Execution, named: NamedAttack, inputs: _Inputs, goal: Goal, threat: Threat | None = None, verify: bool = True
) -> _Attacked:
    """The perturbed inputs on the host, and their rows, as `perturb` gives them."""

    def attack(
        x: torch.Tensor, y: torch.Tensor, places: torch.Tensor, gradient: torch.Tensor | None = None
    ) -> _Attacked:  # fmt: skip
        run.stop_if_late()
        x_adv, rows = perturb(run, named, x, y, places, goal, threat, verify, gradient)
        run.step(named.label, named.attack.passes * len(x))
        return x_adv.cpu(), rows

    inputs_each = 1 if run.plan.whole_batch else named.attack.inputs_each
    gradient = () if inputs.gradient is None else (inputs.gradient,)
    found = list(run.by_batch(attack, *inputs.samples, *gradient, inputs_each=inputs_each))
    total = found[0][1]
    for _, rows in found[1:]:
        total = total + rows
    return torch.cat([x_adv for x_adv, _ in found]), total


def _stage(run: Execution, named: NamedAttack, inputs: _Inputs, result: BlockResult, on_all_right: bool) -> BlockResult:
    """Run an attack of the cascade on the samples that are still robust and not proven, re-packed into full batches."""
    budget = [other.label for other in run.plan.budget_attacks if other.label in result.attacks]
    rows = np.flatnonzero(result.to_attack([] if on_all_right else budget))
    if not len(rows):
        return result.with_attack(named.label, result.unattacked())
    _, found = _attack(run, named, inputs.rows(rows), run.plan.cascade_goal)
    return result.with_attack_on(named.label, rows, found)


def _observed(run: Execution, inputs: Batch, found: dict[str, _Attacked], verify: bool) -> dict[str, AttackRows]:
    """The rows of each attack and noise with what one pass of all inputs, clean and perturbed, shows of the scanned layers.

    verify: whether the classes and margins are those of this pass.
    """
    plan = run.plan
    names = [layer.name for layer in plan.layers]
    (x, y, places), all_of_them = inputs, [named for named in (*plan.attacks, *plan.noises) if named.label in found]

    def with_yardstick(named: NamedAttack) -> bool:
        return bool(names) and named.attack.kind != "noise"

    def observed(several: list[NamedAttack]) -> list[AttackRows]:
        def observe(x: torch.Tensor, y: torch.Tensor, places: torch.Tensor, *x_adv: torch.Tensor) -> list[_Seen]:
            run.stop_if_late()
            run.step("layers", (FORWARD + LOOK * len(several)) * len(x))
            seen = observe_all(
                plan.network.classifier, names, plan.measure, x,
                [Moved(one, plan.threat_of(n), with_yardstick(n)) for n, one in zip(several, x_adv, strict=True)],
                places, seed=plan.seed, with_floor=plan.is_stochastic, whole_batch=plan.whole_batch,
            )  # fmt: skip
            return [(observation, margins_of(logits, y)) for observation, logits in seen]

        kinds = 1 + sum(1 + with_yardstick(named) for named in several) + plan.is_stochastic
        at_once = 1 if plan.whole_batch else kinds
        moved = [found[named.label][0] for named in several]
        parts = run.by_batch(observe, x, y, places, *moved, inputs_each=at_once)
        return [
            _completed(found[n.label][1], own, verify) for n, own in zip(several, zip(*parts, strict=True), strict=True)
        ]

    # Whole batches cannot be split, and all perturbed inputs of a small batch may not fit in memory together.
    together = not plan.whole_batch and run.batch.size > 2 * len(all_of_them) + 2
    groups = [all_of_them] if together and all_of_them else [[named] for named in all_of_them]
    return {named.label: rows for group in groups for named, rows in zip(group, observed(group), strict=True)}


def _completed(rows: AttackRows, seen: Sequence[_Seen], verify: bool) -> AttackRows:
    """The rows of an attack with what its observation shows, batch by batch."""
    whole = Observation.concatenate([observation for observation, _ in seen])
    if not verify:
        return dataclasses.replace(rows, seen=whole)
    margins = np.concatenate([margins for _, margins in seen])
    return dataclasses.replace(rows, seen=whole, predicted=whole.predicted, margin=margins)


def _curve(run: Execution, named: NamedAttack, inputs: _Inputs, result: BlockResult) -> np.ndarray:  # (N, E) bool
    """Which correctly classified samples the attack breaks at each radius; step sizes grow with the radius."""
    plan, right = run.plan, np.flatnonzero(result.right)
    broken = np.zeros((len(result), len(plan.eps_grid)), dtype=bool)
    if named.attack.kind == "minimal" or not len(right):  # one run of a minimal-norm attack gives the whole curve
        return broken
    chosen = inputs.rows(right)
    y = chosen.samples[1].numpy()
    for number, eps in enumerate(plan.eps_grid):
        threat = dataclasses.replace(plan.threat_of(named), eps=eps)
        _, rows = _attack(run, at_radius(named, plan.threat_of(named), eps), chosen, "break", threat)
        broken[right, number] = (rows.predicted != y) & rows.within
    return broken
