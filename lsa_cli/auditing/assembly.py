"""make_report(): the report of an audit, as a function of what was measured."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from lsa_cli._version import __version__
from lsa_cli.attacks.ranked import Met
from lsa_cli.attacks.threat import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from lsa_cli.auditing.audit_warnings import attack_warnings, layer_warnings
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis, compare_attacks, rate
from lsa_cli.auditing.draw_by_margin import counts, strata_by_margin
from lsa_cli.auditing.draws import mean_rate, spread, stochastic_network, verdict_over_draws
from lsa_cli.auditing.evidence.decision import Checked, evidence_of
from lsa_cli.auditing.evidence.preflight import repeated_samples, zero_gradients
from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.auditing.outcome import outcome_of, ranked_in_words, settings_of, verdict_of
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.probing import clean_checks
from lsa_cli.auditing.provenance import data_of, protocol_of, subject_of
from lsa_cli.auditing.results import BlockResult
from lsa_cli.auditing.samples import sample_rows
from lsa_cli.report.schema import (
    AttackOutcome,
    AuditReport,
    Curve,
    CurvePoint,
    Estimate,
    EstimateStratum,
    Evidence,
    Example,
    Metric,
    Ranked,
    Stage,
    Warning,
)
from lsa_cli.stats import Stratum, two_phase


@dataclass
class Extras:
    """What a report has besides the sum of blocks (see `probing`). metrics, examples: None until they are measured.
    not_run: what the end of the time budget, or of the run, left out; unfinished: the round of the ranked cascade that it cut
    short; met: what each round did; found: attacks that the evidence added."""

    created: str
    attacked: str = ""
    normalization: Checked | None = None
    evidence: Evidence | None = None
    metrics: list[Metric] | None = None
    examples: list[Example] | None = None
    not_run: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    met: dict[str, Met] = field(default_factory=dict)
    found: list[NamedAttack] = field(default_factory=list)


def make_report(plan: AuditPlan, total: BlockResult, extras: Extras) -> AuditReport:
    """The report of the samples in `total`, which is in order, with the attacks that `total` has.

    The caller sets status, seconds and gates.
    """
    planned, plan = len(plan.index), dataclasses.replace(plan, index=total.index)
    scan, cascade, noises = (
        [named for named in several if named.label in total.attacks]
        for several in (plan.attacks, (*plan.cascade, *extras.found), plan.noises)
    )
    diagnoses = {n.label: total.diagnosis(n.label) for n in (*scan, *cascade)}
    diagnoses |= {n.label: total.diagnosis(n.label, is_noise=True) for n in noises}
    budget = [(named, diagnoses[named.label]) for named in (*scan, *cascade)]
    verdict = verdict_of(plan, total.clean, budget, _estimate(plan, total), total.proof)
    if extras.met and not extras.unfinished and not plan.settings.patient:
        met_all = np.logical_and.reduce([total.attacks[label].ran for label in extras.met])
        left = total.to_attack([named.label for named, _ in budget])
        verdict.statement += ranked_in_words(
            extras.met, int((left & met_all).sum()), int(left.sum()), total.proof is not None
        )
    outcomes = {n.label: _outcome(plan, n, total, diagnoses[n.label]) for n in (*scan, *noises)}
    on_all = {label: diagnoses[label].robust for label in outcomes}
    data = data_of(plan)
    if len(total) < planned:
        data.selection = f"the first {len(total):,} of {planned:,} in random order, seed {plan.seed}"
    found = extras.evidence
    if found is None:
        so_far = evidence_of(clean_checks(plan, total, extras.normalization))
        found = so_far if so_far.findings else None
    if plan.is_stochastic:
        verdict = verdict_over_draws(verdict, total.wrong, _fooled(total, [n for n, _ in budget]))
    return AuditReport(
        tool=f"lsa {__version__}",
        status="running",
        created=extras.created,
        seconds=0.0,
        subject=subject_of(plan),
        data=data,
        protocol=protocol_of(plan).model_copy(update={"attacked": extras.attacked}),
        verdict=verdict,
        outcomes=list(outcomes.values()),
        cascade=_stages(plan, total, cascade, extras),
        not_run=extras.not_run,
        pairs=compare_attacks([(n.label, diagnoses[n.label]) for n in scan], len(plan.network.class_names)),
        curves=[_curve(plan, n, total) for n in scan if n.label in total.curves],
        metrics=extras.metrics or [],
        warnings=_warnings(plan, total, outcomes),
        evidence=found,
        samples=sample_rows(total, [n for n, _ in budget], on_all) if budget else None,
        examples=extras.examples or [],
    )


def not_run(plan: AuditPlan, total: BlockResult) -> tuple[list[str], list[str]]:
    """The attacks that `total` lacks, and then its noises and curves."""
    attacks = [n.label for n in plan.budget_attacks if n.label not in total.attacks]
    noises = [n.label for n in plan.noises if n.label not in total.attacks]
    curves = [f"{n.label} curve" for n in plan.attacks if plan.eps_grid and n.label not in total.curves]
    return attacks, noises + curves


def _outcome(plan: AuditPlan, named: NamedAttack, total: BlockResult, diagnosis: ClassDiagnosis) -> AttackOutcome:
    rows = total.attacks[named.label]
    outcome = outcome_of(plan, named, rows, diagnosis)
    if plan.is_stochastic:
        wrong = total.wrong | (rows.wrong & diagnosis.counted[:, None])
        outcome.draws, outcome.robust = spread(wrong), mean_rate(wrong)
    return outcome


def _stages(plan: AuditPlan, total: BlockResult, cascade: list[NamedAttack], extras: Extras) -> list[Stage]:
    ranked = extras.met
    stages, met = [], [named.label for named in plan.attacks if named.label in total.attacks]
    for named in cascade:
        rows = total.attacks[named.label]
        met.append(named.label)
        stages.append(
            Stage(
                attack=named.label, spec=named.spec, settings=settings_of(named.attack), tried=int(rows.ran.sum()),
                broke=int(total.diagnosis(named.label).broken.sum()), robust=rate(total.survivors(met)),
                seconds=round(rows.seconds, 3),
                ranked=Ranked(**dataclasses.asdict(ranked[named.label])) if named.label in ranked else None,
                by_evidence=named in extras.found,
            )
        )  # fmt: skip
    return stages


def _estimate(plan: AuditPlan, total: BlockResult) -> Estimate | None:
    """How many samples stay robust if the cascade runs on all, estimated from the part that it ran on."""
    if plan.settings.full_on is None or any(named.label not in total.attacks for named in plan.cascade):
        return None
    labels = [named.label for named in plan.budget_attacks]
    drawn = strata_by_margin(total, labels[: len(plan.attacks)], plan.settings.full_on)
    strata = counts(drawn, total.attacks[plan.cascade[0].label].ran, total.survivors(labels))
    if not strata or any(stratum.checked == 0 for stratum in strata):
        return None
    proven = int(total.proven.sum())
    value, low, high = two_phase(len(total), [*strata, Stratum(proven, proven, 0)])
    survivors, checked, broken = (sum(several) for several in zip(*strata, strict=True))
    return Estimate(
        value=value, low=low, high=high, survivors=survivors, checked=checked, broken=broken,
        strata=[EstimateStratum(**stratum._asdict()) for stratum in strata],
    )  # fmt: skip


def _fooled(total: BlockResult, budget: list[NamedAttack]) -> np.ndarray:  # (N, R) bool
    """In which evaluations of a stochastic network any attack breaks a sample."""
    fooled = np.zeros_like(total.wrong)
    for named in budget:
        rows = total.attacks[named.label]
        fooled |= rows.wrong & rows.within[:, None]
    return fooled


def _curve(plan: AuditPlan, named: NamedAttack, total: BlockResult) -> Curve:
    """Robust accuracy at each radius of the grid. One run of a minimal-norm attack gives all of them."""
    rows, points = total.attacks[named.label], []
    for number, eps in enumerate(plan.eps_grid):
        broken = total.curves[named.label][:, number]
        if named.attack.kind == "minimal":
            reached = rows.distance <= eps * (1 + RELATIVE_TOLERANCE) + ABSOLUTE_TOLERANCE
            broken = (rows.predicted != total.label) & reached
        points.append(CurvePoint(eps=eps, robust=rate(total.right & ~broken)))
    score = sum(100 * (point.robust.value or 0.0) for point in points)
    return Curve(attack=named.label, points=points, score=score)


def _warnings(plan: AuditPlan, total: BlockResult, outcomes: dict[str, AttackOutcome]) -> list[Warning]:
    met = plan.budget_attacks
    warnings = [
        *plan.warnings,
        *zero_gradients(int(total.no_gradient.sum()), len(total)),
        *repeated_samples(total.content),
        *([stochastic_network(any(getattr(n.attack, "eot", 1) > 1 for n in met))] if plan.is_stochastic else []),
    ]
    for named in (*met, *plan.noises):
        rows = total.attacks.get(named.label)
        if rows is None or not rows.ran.any():
            continue
        outcome = outcomes.get(named.label)
        mismatches = outcome.mismatches if outcome is not None and not plan.is_stochastic else 0
        within = rows.within if named.attack.kind != "noise" else np.ones(len(total), dtype=bool)
        warnings += attack_warnings(
            named, mismatches, within[rows.ran], rows.finite[rows.ran], rows.predicted[rows.ran]
        )
        warnings += layer_warnings(outcome) if outcome is not None else []
    return warnings
