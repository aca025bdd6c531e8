"""From arrays to a report: the outcome of one attack, and the verdict over all budget attacks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from lsa_cli.attacks import Attack, Threat
from lsa_cli.attacks.ranked import Met
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis, rate, summarise
from lsa_cli.auditing.layer_analysis import analyse_layers
from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.auditing.observation import Observation
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.radius import sources_in_words
from lsa_cli.auditing.results import AttackRows, ProofRows
from lsa_cli.report.origin import is_of_others
from lsa_cli.report.row import Proof
from lsa_cli.report.schema import AttackOutcome, Distance, Estimate, LayerAnalysis, Verdict
from lsa_cli.wording import eps_as_text


def settings_of(attack: Attack) -> dict[str, Any]:
    """The hyperparameters of an attack as plain values, with norm and eps of its threat model."""
    threat: Threat | None = getattr(attack, "threat", None)
    settings: dict[str, Any] = {} if threat is None else {"norm": threat.norm, "eps": threat.eps}
    for name, value in attack.settings.items():
        settings[name] = value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
    return settings


def weight_norms(plan: AuditPlan) -> np.ndarray | None:
    """Euclidean norms of the weight rows of the last layer, where it has one row per class."""
    module = plan.network.last_layer.module if plan.network.last_layer is not None else None
    weight = getattr(module, "weight", None)
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or len(weight) != len(plan.network.class_names):  # type: ignore[arg-type]
        return None
    return module.weight.detach().flatten(1).norm(dim=1).double().cpu().numpy()


def outcome_of(plan: AuditPlan, named: NamedAttack, found: AttackRows, diagnosis: ClassDiagnosis) -> AttackOutcome:
    """One attack in the report: its counts, distances, layers and classes. `found` and `diagnosis` have the same samples."""
    rows, seen = diagnosis.rows(plan.network.class_names), found.seen
    threat = plan.threat_of(named)
    measured = {
        "budget": found.distance[diagnosis.broken],
        "minimal": found.distance[diagnosis.right & (diagnosis.adversarial != diagnosis.y)],
        "noise": found.distance,
    }[named.attack.kind]
    return AttackOutcome(
        name=named.label,
        kind=named.attack.kind,
        spec=named.spec,
        settings=settings_of(named.attack),
        robust=rate(diagnosis.robust),
        success=rate(diagnosis.broken[diagnosis.right]),
        distance=Distance(
            norm=threat.norm,
            n=len(measured),
            mean=float(measured.mean()) if len(measured) else None,
            median=float(np.median(measured)) if len(measured) else None,
            largest=float(measured.max()) if len(measured) else None,
        ),
        seconds=round(found.seconds, 3),
        layers=_analysed(plan, seen) if plan.layers and seen is not None else None,
        classes=rows,
        class_summary=summarise(rows, weight_norms(plan)),
        confusion=diagnosis.confusion(len(plan.network.class_names)).tolist(),
        mismatches=int((found.predicted != seen.predicted).sum()) if seen is not None else 0,
        discarded=int((~found.finite).sum())
        + (int((~diagnosis.counted).sum()) if named.attack.kind == "budget" else 0),
    )


def _analysed(plan: AuditPlan, seen: Observation) -> LayerAnalysis:
    names, labels = plan.network.class_names, plan.network.labels[np.sort(seen.index)]
    return analyse_layers(
        plan.layers, seen, plan.rule, plan.seed, whole_batch=plan.whole_batch, of_classes=(labels, len(names))
    )


def worst_case(diagnoses: Sequence[ClassDiagnosis]) -> ClassDiagnosis:
    """Per sample, the result of the first attack that broke it, if one did."""
    worst = diagnoses[0]
    for other in diagnoses[1:]:
        take = worst.robust & ~other.robust
        worst = ClassDiagnosis(
            y=worst.y,
            clean=worst.clean,
            adversarial=np.where(take, other.adversarial, worst.adversarial),
            counted=np.where(take, other.counted, worst.counted),
        )
    return worst


def verdict_of(
    plan: AuditPlan,
    clean: np.ndarray,
    budget: Sequence[tuple[NamedAttack, ClassDiagnosis]],
    estimate: Estimate | None = None,
    proof: ProofRows | None = None,
) -> Verdict:
    """clean (N,): predicted classes without attack. estimate: where the cascade ran on a part of the samples."""
    y = plan.network.labels[plan.index]
    of_proof, proven_in_words = _proof_of(plan, proof)
    if not budget:
        said = (
            "no upper bound of the robust accuracy is known"
            if proof is not None
            else "nothing is known about robustness"
        )
        return Verdict(
            clean=rate(clean == y), robust=None, attacks=[], classes=[], class_summary=None,
            statement=f"No budget attack was run: {said}.{proven_in_words}", proof=of_proof,
        )  # fmt: skip
    worst = worst_case([diagnosis for _, diagnosis in budget])
    rows = worst.rows(plan.network.class_names)
    for number, row in enumerate(rows):
        row.proven = None if proof is None else rate(proof.proven[y == number])
    robust = rate(worst.robust)
    labels = [named.label for named, _ in budget]
    met = [plan.threat_of(named) for named, _ in budget]
    threats = list(dict.fromkeys(f"{threat.norm} {eps_as_text(threat.eps)}" for threat in met))
    return Verdict(
        meaning="" if plan.is_stochastic else in_words(plan, worst, threats, proof),
        clean=rate(clean == y),
        robust=robust,
        attacks=labels,
        classes=rows,
        class_summary=summarise(rows, weight_norms(plan)),
        statement=(
            f"{robust.count} of {robust.n} samples are classified correctly, clean and under the worst of {', '.join(labels)} "
            f"({' and '.join(threats)}). It is an upper bound: a stronger attack can only find it lower."
            + (
                f" The radius {eps_as_text(plan.threat.eps)} is set by {plan.eps_origin}."
                if is_of_others(plan.eps_origin)
                else ""
            )
            + sources_in_words(plan.network.origin)
            + (_estimated(estimate) if estimate is not None else "")
            + proven_in_words
        ),
        estimate=estimate,
        proof=of_proof,
    )


def _proof_of(plan: AuditPlan, found: ProofRows | None) -> tuple[Proof | None, str]:
    """The proof in the report, and a sentence on it."""
    if plan.proof is None:
        return None, ""
    if found is None:
        why = plan.proof.left_out or "the time budget left it out"
        return Proof(robust=None, threat=plan.proof.within, seconds=0.0, left_out=why), (
            f" No lower bound was proven: {why}."
        )
    proven = rate(found.proven)
    sentence = (
        f" {proven.count} of {proven.n} samples are proven to be classified correctly for every input within "
        f"{plan.proof.within}. It is a lower bound: no attack can find it lower."
    )
    return Proof(robust=proven, threat=plan.proof.within, seconds=round(found.seconds, 3)), sentence


def in_words(plan: AuditPlan, worst: ClassDiagnosis, threats: Sequence[str], proof: ProofRows | None) -> str:
    """What the robust accuracy means: how many inputs can be turned, and for how many that is unknown."""
    noun = "image" if len(plan.network.input_shape) == 3 else "input"
    right, turned = int(worst.right.sum()), int(worst.broken.sum())
    within = f"within {' or '.join(threats)}"
    if right == 0:
        return f"no {noun} is classified correctly, even unchanged"
    if turned == right:
        return f"every {noun} can be turned {within} (all {right} that are classified correctly)"
    if proof is not None and proof.proven.any():
        proven = int(proof.proven.sum())
        unknown = (
            f"whether the other {left} can is not known" if (left := right - turned - proven) else "no other is left"
        )
        return (
            f"of {right} {noun}s that are classified correctly, {f'at least {turned} can be' if turned else 'none was'} turned "
            f"{within}, and {proven} provably cannot be turned; {unknown}"
        )
    if turned == 0:
        return f"none of the {right} {noun}s that are classified correctly was turned {within}, which does not prove that none can be"
    left = right - turned
    return (
        f"at least {turned} of {right} {noun}s that are classified correctly can be turned {within}; whether the "
        f"other {left} can is not known"
    )


def ranked_in_words(met: Mapping[str, Met], met_all: int, left: int, with_proof: bool) -> str:
    """How many samples the ranked cascade attacked in every round. met: by round; left: the samples that are robust, and
    with_proof not proven."""
    moved = [
        f" Round {label} broke {one.broken_far} of {one.far} random far samples, so it went on to the nearest {one.last} of "
        f"{one.robust}."
        for label, one in met.items()
        if one.broken_far
    ]
    others = (
        "; the others are farther from the decision boundary and met its first rounds only (--patient attacks all)"
        if met_all < left
        else ""
    )
    which = "still robust and not proven" if with_proof else "still robust"
    return f" Of the {left} that are {which}, {met_all} met every round of the cascade{others}." + "".join(moved)


def _estimated(estimate: Estimate) -> str:
    places = ("nearest", *["next"] * (len(estimate.strata) - 2), "farthest")
    parts = [f"{row.checked} of the {place} {row.size}" for row, place in zip(estimate.strata, places, strict=False)]
    drawn = f"at random from strata by margin ({', '.join(parts)})" if len(parts) > 1 else "at random"
    far = estimate.strata[-1]
    return (
        f" The cascade ran on {estimate.checked} of {estimate.survivors} samples that are still robust, drawn {drawn}, "
        f"and broke {estimate.broken}: on all of them it would have left an estimated {estimate.value:.1%} "
        f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}] (unbiased, 95% interval)."
        + (
            f" It broke none of the {far.checked} checked of the farthest {far.size}, which still allows that it breaks about "
            f"{min(1, 3 / far.checked):.0%} of them: only a larger --full-on makes the interval narrower."
            if far.broken == 0 and far.checked < far.size
            else ""
        )
    )
