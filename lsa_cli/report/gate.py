"""The gate: limits held against a report. A pure function of the two; a limit that cannot be decided is no pass."""

from collections.abc import Mapping, Sequence

from lsa_cli.errors import UsageError
from lsa_cli.registry import parse_number, unknown
from lsa_cli.report.schema import AuditReport, GateResult, Rate

METRICS = {
    "clean": "clean accuracy",
    "robust": "robust accuracy under the worst of the budget attacks",
    "robust.ATTACK": "accuracy under one attack or noise",
    "class.min": "robust accuracy of the worst class",
    "class.NAME": "robust accuracy of one class",
    "class.discrepancy": "largest minus smallest class robust accuracy (at most)",
    "layer.max-error": "largest mean comparison measure of any layer under any budget attack (at most)",
    "layer.NAME": "mean comparison measure of one layer, worst budget attack (at most)",
}


def parse_limits(texts: list[str]) -> dict[str, float]:
    """["robust=0.4", "class.min=0.2"] -> {"robust": 0.4, "class.min": 0.2}; UsageError for anything else."""
    limits: dict[str, float] = {}
    for text in texts:
        metric, equals, value = text.rpartition("=")
        if not equals:
            raise UsageError(f"--fail-under '{text}' should read METRIC=VALUE, for example robust=0.40")
        if metric in limits:
            raise UsageError(f"--fail-under: {metric} is given twice")
        limits[metric] = parse_number(value, f"--fail-under {metric}")
    check_limits(limits)
    return limits


def check_limits(limits: Mapping[str, float]) -> None:
    """Raise UsageError for a metric whose family does not exist, or a share outside [0, 1]."""
    for metric, value in limits.items():
        family, dot, rest = metric.partition(".")
        if not (metric in ("clean", "robust") or (dot and rest and family in ("robust", "class", "layer"))):
            raise UsageError(unknown("gate metric", metric, METRICS))
        if family != "layer" and not 0 <= value <= 1:
            raise UsageError(f"the limit {metric}={value:g} should be a share between 0 and 1, such as {value / 100:g}")
        if value < 0:
            raise UsageError(f"the limit {metric}={value:g} is negative")


def check_targets(
    limits: Mapping[str, float], attacks: Sequence[str], classes: Sequence[str], layers: Sequence[str]
) -> None:
    """Raise UsageError for a limit on an attack, class or layer that the audit does not have."""
    families = {
        "robust": ("attack", attacks, ()),
        "class": ("class", classes, ("min", "discrepancy")),
        "layer": ("layer", layers, ("max-error",)),
    }
    for metric in limits:
        family, dot, rest = metric.partition(".")
        if dot:
            noun, names, words = families[family]
            if rest not in words and rest not in names:
                raise UsageError(f"the limit {metric}: {unknown(f'{noun} in this audit', rest, [*words, *names])}")


def check(report: AuditReport, limits: Mapping[str, float], fail_on: str | None = None) -> list[GateResult]:
    """Each limit against the report's point estimates, in the order given; then the evidence, if fail_on says so.

    fail_on: "doubtful" or "invalid", the level from which a finding is a breach.

    Raises UsageError for a class, layer or attack that the report does not know.
    """
    check_limits(limits)
    scanned = [row.name for outcome in report.outcomes if outcome.layers for row in outcome.layers.rows]
    if report.status == "complete":  # before that, an attack may be missing only because it has not run
        attacks = [name for outcome in report.outcomes for name in (outcome.name, outcome.spec)]
        check_targets(limits, attacks, report.subject.class_names, list(dict.fromkeys(scanned)))
    results = [_decide(report, metric, limit) for metric, limit in limits.items()]
    return results if fail_on is None else [*results, _decide_evidence(report, fail_on)]


def _decide_evidence(report: AuditReport, fail_on: str) -> GateResult:
    if report.evidence is None or report.status != "complete":
        measured, passed = None, False
        why = "no checks were made" if report.status == "complete" else f"the audit is {report.status}"
        message = f"evidence could not be decided: {why}"
    else:
        found = [f.code for f in report.evidence.findings if f.level == "invalid" or fail_on == "doubtful"]
        measured, passed = float(len(found)), not found
        message = f"evidence: {report.evidence.verdict}" + (f", by {', '.join(found)}" if found else "")
    return GateResult(
        metric="evidence", limit=0, direction="at most", measured=measured, passed=passed, message=message
    )  # fmt: skip


def _decide(report: AuditReport, metric: str, limit: float) -> GateResult:
    at_most = metric == "class.discrepancy" or metric.startswith("layer.")
    measured, low, high, reason = _measure(report, metric)
    direction = "at most" if at_most else "at least"
    if report.status != "complete":
        reason = reason or f"the audit is not complete (status: {report.status})"
    if measured is None or report.status != "complete":
        passed, message = False, f"{metric} could not be decided: {reason}"
    else:
        passed = measured <= limit if at_most else measured >= limit
        interval = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
        message = f"{metric}: measured {measured:.4f}{interval}, {direction} {limit:g} asked"
    return GateResult(
        metric=metric, limit=limit, direction=direction, measured=measured, low=low, high=high,
        passed=passed, message=message,
    )  # fmt: skip


Measured = tuple[float | None, float | None, float | None, str]


def _rate(rate: Rate | None, why: str) -> Measured:
    if rate is None or rate.value is None:
        return None, None, None, why
    return rate.value, rate.low, rate.high, ""


def _measure(report: AuditReport, metric: str) -> Measured:
    family, _, rest = metric.partition(".")
    if metric == "clean":
        return _rate(report.verdict.clean, "no sample was classified")
    if family == "robust":
        if not rest:
            return _rate(report.verdict.robust, "no budget attack was run")
        found = next((o for o in report.outcomes if rest in (o.name, o.spec)), None)
        return _rate(found.robust if found is not None else None, f"{rest} was not run")
    if family == "class":
        return _class(report, rest)
    return _layer(report, rest)


def _class(report: AuditReport, rest: str) -> Measured:
    rows = report.verdict.classes
    if not rows:
        return None, None, None, "no budget attack was run"
    if rest in ("min", "discrepancy"):
        empty = [row.name for row in rows if row.robust.value is None]
        if empty:
            return None, None, None, f"class {', '.join(empty[:5])} has no samples"
        if rest == "min":
            return _rate(min((row.robust for row in rows), key=lambda rate: rate.value or 0.0), "")
        values = [row.robust.value or 0.0 for row in rows]
        return max(values) - min(values), None, None, ""
    found = next((row for row in rows if row.name == rest), None)
    return _rate(found.robust if found is not None else None, f"class {rest} has no samples")


def _layer(report: AuditReport, rest: str) -> Measured:
    rows = [
        row
        for outcome in report.outcomes
        if outcome.kind != "noise" and outcome.layers is not None
        for row in outcome.layers.rows
    ]
    if not rows:
        return None, None, None, "no layers were scanned under a budget attack"
    if rest != "max-error":
        rows = [row for row in rows if row.name == rest]
        if not rows:
            return None, None, None, f"layer {rest} was not scanned"
    blind = [row.name for row in rows if row.mean is None]
    if blind:
        return None, None, None, f"layer {blind[0]} has no defined measure"
    worst = max(rows, key=lambda row: row.mean or 0.0)
    return worst.mean, worst.low, worst.high, ""
