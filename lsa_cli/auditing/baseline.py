"""The report that --baseline names: which samples it has right, for limits on a drop from it."""

from dataclasses import dataclass

import numpy as np

from lsa_cli.auditing.outcome import settings_of
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.provenance import data_of
from lsa_cli.errors import UsageError
from lsa_cli.report import by_sample
from lsa_cli.report.compare import attack_settings, refuse_differences, refuse_other_samples, refuse_part
from lsa_cli.report.schema import AuditReport


@dataclass(frozen=True)
class Baseline:
    """checkpoint: the audited file. clean, robust (N,) bool: right as it is, and under every budget attack, by sample of the plan."""

    checkpoint: str
    clean: np.ndarray
    robust: np.ndarray


def checked_baseline(report: AuditReport, plan: AuditPlan) -> Baseline:
    """Raises UsageError for a report of other samples, classes, attacks or another radius."""
    try:
        refuse_part(report, "baseline")
        if report.samples is None:
            raise UsageError("it has no results of single samples, because no attack ran")
        _refuse_other_protocol(report, plan)
    except UsageError as error:
        raise UsageError(f"--baseline {plan.settings.baseline}: {error}") from error
    samples = report.samples
    return Baseline(report.subject.checkpoint, np.array(by_sample.clean(samples)), np.array(by_sample.robust(samples)))


def _refuse_other_protocol(report: AuditReport, plan: AuditPlan) -> None:
    noises = {outcome.name for outcome in report.outcomes if outcome.kind == "noise"}
    # As in `compare`, several passes through a deterministic network give the same as one.
    passes_count = plan.is_stochastic == (report.verdict.clean_draws is not None)
    before = {name: of for name, of in attack_settings(report, passes_count).items() if name not in noises}
    after = {named.label: settings_of(named.attack) for named in plan.budget_attacks}
    if not passes_count:
        after = {name: {**of, "eot": None} for name, of in after.items()}
    threat = report.protocol.threat
    refuse_differences(
        {
            "norm": (threat.norm, plan.threat.norm),
            "eps": (threat.eps, float(plan.threat.eps)),
            "classes": (report.subject.class_names, list(plan.network.class_names)),
            "attacks": (before, after),
        }
    )
    refuse_other_samples(report.data, data_of(plan))
