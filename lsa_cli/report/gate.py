"""The gate: compares the numbers of a report with limits. A limit that cannot be decided does not pass.

A limit holds if the whole 95% interval of the number does, is breached if no part of the interval does, and is undecided in
between: more samples are needed. So chance does not decide a build. With `by: point`, or without an interval, the number
itself decides. A limit with `severity: warning` is reported and does not change the exit code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lsa_cli.report.limits import Limit, MetricName, check_targets, limits_of, parse_metric
from lsa_cli.report.measurement import Measurement, measure_metric
from lsa_cli.report.schema import AuditReport, GateResult
from lsa_cli.wording import plural


def check(report: AuditReport, limits: Mapping[str, Any]) -> list[GateResult]:
    """The result of each limit, as `limit_of` takes it, in the order given.

    Raises UsageError for a class, layer or attack that a complete report does not know.
    """
    limits = limits_of(limits)
    parsed = {parse_metric(text): limit for text, limit in limits.items()}
    if report.status != "complete":
        unknown = Measurement(None, why=f"the audit is not complete (status: {report.status})")
        # allow_not_run is for what the plan leaves out, not for an interruption.
        strict = {name: limit.model_copy(update={"allow_not_run": False}) for name, limit in parsed.items()}
        return [result_of(name, limit, unknown) for name, limit in strict.items()]
    attacks = [name for outcome in report.outcomes for name in (outcome.name, outcome.spec)]
    scanned = [row.name for outcome in report.outcomes if outcome.layers for row in outcome.layers.rows]
    check_targets(limits, attacks, report.subject.class_names, list(dict.fromkeys(scanned)))
    return [result_of(name, limit, measure_metric(report, name)) for name, limit in parsed.items()]


def is_breach(results: Sequence[GateResult]) -> bool:
    """Whether the exit code is 1."""
    return any(not result.passed and result.severity == "error" for result in results)


def decision(results: Sequence[GateResult]) -> str:
    """PASSED, FAILED or NOT DECIDED, with counts, in one line. Limits with severity warning are counted by themselves."""
    limits = [result for result in results if result.severity == "error"]
    warnings = [result for result in results if result.severity == "warning"]
    breached, undecided = (sum(result.state == state for result in limits) for state in ("breached", "undecided"))
    of_all = f"of {plural(len(limits), 'limit')}"
    if breached:
        rest = f", {undecided} {_verb(undecided, 'is', 'are')} not decided" if undecided else ""
        line = f"FAILED: {breached} {of_all} {_verb(breached, 'is', 'are')} breached{rest}"
    elif undecided:
        line = f"NOT DECIDED: {undecided} {of_all} {_verb(undecided, 'is', 'are')} not decided"
    else:
        line = f"PASSED: {held_in_words(limits)}"
    missed = sum(not result.passed for result in warnings)
    if missed:
        line += f"; {missed} of {plural(len(warnings), 'warning')} {_verb(missed, 'does', 'do')} not hold"
    return line


def held_in_words(passed: Sequence[GateResult]) -> str:
    """ "2 of 3 limits hold, 1 was not measured", of limits that all pass."""
    unknown = sum(result.allowed_unmeasured for result in passed)
    held = len(passed) - unknown
    line = f"{held} of {plural(len(passed), 'limit')} {_verb(held, 'holds', 'hold')}"
    return line + (f", {unknown} {_verb(unknown, 'was', 'were')} not measured" if unknown else "")


def _verb(count: int, one: str, several: str) -> str:
    return one if count == 1 else several


def result_of(metric: MetricName, limit: Limit, found: Measurement, *, sequential: bool = False) -> GateResult:
    """sequential: the interval is that of a confidence sequence, and decides even for `by: point`."""
    bounded = found.low is not None and found.high is not None and (limit.by == "bound" or sequential)
    if found.value is None:
        passed = limit.allow_not_run
        message = (
            f"{metric}: {found.why}, which this limit allows" if passed else f"{metric} is not decided: {found.why}"
        )
    else:
        ends = (found.low, found.high) if bounded else (found.value, found.value)
        passed = all(limit.holds(end) for end in ends if end is not None)
        interval = "" if found.low is None or found.high is None else f" [{found.low:.4f}, {found.high:.4f}]"
        note = f" ({found.note})" if found.note else ""
        required = f"{limit.direction} {limit.value:g} required{'' if bounded or not interval else ', by the point'}"
        message = f"{metric}: measured {_text(metric, found.value)}{interval}{note}, {required}"
    result = GateResult(
        metric=str(metric), limit=limit.value, direction=limit.direction, measured=found.value, low=found.low,
        high=found.high, passed=passed, message=message, severity=limit.severity,
        decided_by="sequence" if sequential else "bound" if bounded else "point",
    )  # fmt: skip
    if found.value is not None and result.state == "undecided":
        result.message += "; the interval contains the limit, so these samples do not decide it: use more"
    return result


def _text(metric: MetricName, value: float) -> str:
    return f"{value:.0f}" if metric.kind.unit == "count" else f"{value:.4f}"
