"""Warnings of a report: what an attack or a measure did that it should not."""

import numpy as np

from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.report.schema import AttackOutcome, Warning


def attack_warnings(
    named: NamedAttack, mismatches: int, within: np.ndarray, finite: np.ndarray, verified: np.ndarray
) -> list[Warning]:
    """What an attack did that it should not, and where the network gave no class (verified < 0); (N,) each."""
    name, warnings = named.label, []
    discarded, not_finite, unanswered = (int(bad.sum()) for bad in (~within, ~finite, verified < 0))
    if mismatches:
        warnings.append(
            Warning(
                code="verdict-mismatch",
                message=f"{name}: {mismatches} predictions changed when verified in another batch size: the network's "
                "output depends on the batch, or on chance",
            )
        )
    if not_finite:
        warnings.append(
            Warning(
                code="attack-not-finite",
                message=f"{name}: {not_finite} perturbed inputs were NaN or infinite and count as failed attacks; "
                "its robust accuracy is too high",
            )
        )
    if discarded and named.attack.kind == "budget":
        warnings.append(
            Warning(
                code="out-of-budget",
                message=f"{name}: {discarded} perturbed inputs left the budget or the input range and gain nothing",
            )
        )
    if unanswered:
        warnings.append(
            Warning(
                code="output-not-finite",
                message=f"{name}: the network answered NaN to {unanswered} perturbed inputs, which is no class and so "
                "counts as wrong",
            )
        )
    return warnings


def layer_warnings(outcome: AttackOutcome) -> list[Warning]:
    blind = [row for row in outcome.layers.rows if row.undefined] if outcome.layers else []
    if not blind:
        return []
    worst = max(blind, key=lambda row: row.undefined)
    message = (
        f"{outcome.name}: {len(blind)} layers have samples without a measure (most in {worst.name}: {worst.undefined}); "
        "they are left out of its mean"
    )
    return [Warning(code="measure-undefined", message=message)]
