"""Warnings of a report about attacks and layers."""

import numpy as np

from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.report.schema import AttackOutcome, Warning


def attack_warnings(
    named: NamedAttack, mismatches: int, within: np.ndarray, finite: np.ndarray, predicted: np.ndarray
) -> list[Warning]:
    """within, finite, predicted: (N,) each, of the samples that the attack ran on."""
    name = named.label
    discarded, not_finite, without_class = (int(bad.sum()) for bad in (~within, ~finite, predicted < 0))
    found = [
        (mismatches, Warning(
            code="verdict-mismatch",
            message=f"{name}: {mismatches} predictions change in another batch size: the outputs of the network depend on "
            "the batch, or the network is stochastic",
        )),
        (not_finite, Warning(
            code="attack-not-finite",
            message=f"{name}: {not_finite} perturbed inputs are NaN or infinite and count as failed attacks; its robust "
            "accuracy is too high",
        )),
        (discarded if named.attack.kind == "budget" else 0, Warning(
            code="out-of-budget",
            message=f"{name}: {discarded} perturbed inputs are outside the budget or the input range and count as failed "
            "attacks",
        )),
        (without_class, Warning(
            code="output-not-finite",
            message=f"{name}: the network returns NaN for {without_class} perturbed inputs, which count as misclassified",
        )),
    ]  # fmt: skip
    return [warning for count, warning in found if count]


def layer_warnings(outcome: AttackOutcome) -> list[Warning]:
    undefined = [row for row in outcome.layers.rows if row.undefined] if outcome.layers else []
    if not undefined:
        return []
    worst = max(undefined, key=lambda row: row.undefined)
    message = (
        f"{outcome.name}: for {len(undefined)} layers the measure of some samples is undefined (most in {worst.name}: "
        f"{worst.undefined}); their means leave these samples out"
    )
    return [Warning(code="measure-undefined", message=message)]
