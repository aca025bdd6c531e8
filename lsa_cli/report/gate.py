"""The gate: limits held against a report. A pure function of the two; a limit that cannot be decided is no pass.

One rule. A number with a 95% interval holds a limit when the whole interval does, breaches it when none of the
interval does, and is undecided in between: then the samples do not tell, and more of them would. So chance
neither turns a build green nor calls a model worse. `by: point` lets the number itself decide, and so it is for numbers
without an interval. Of limits with `severity: warning` the result is told and changes no exit code.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema

from lsa_cli.errors import UsageError
from lsa_cli.registry import parse_number, unknown
from lsa_cli.report.metrics import (
    CLASS_WORDS,
    EVIDENCE_WORDS,
    LAYER_WORDS,
    METRICS,
    Measured,
    exists,
    is_share,
    measure,
    rises_with_quality,
)
from lsa_cli.report.schema import AuditReport, GateResult

Number = Annotated[
    float,
    BeforeValidator(lambda value: parse_number(value, "the limit")),
    WithJsonSchema({"type": ["number", "string"], "description": "such as 0.4 or 8/255"}),
]


class Limit(BaseModel):
    """The least (min) or the most (max) that a metric may be; one of the two."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: Number | None = None
    max: Number | None = None
    severity: Literal["error", "warning"] = "error"
    by: Literal["bound", "point"] = "bound"
    allow_not_run: bool = False

    @property
    def value(self) -> float:
        return self.min if self.min is not None else self.max  # type: ignore[return-value]

    @property
    def direction(self) -> Literal["at least", "at most"]:
        return "at least" if self.min is not None else "at most"

    def holds(self, number: float) -> bool:
        return number >= self.value if self.min is not None else number <= self.value


def limit_of(metric: str, given: Any) -> Limit:
    """A bare number, or a mapping of the fields of `Limit`. Raises UsageError for what cannot be a limit."""
    if not exists(metric):
        raise UsageError(unknown("gate metric", metric, METRICS))
    if isinstance(given, Limit):
        return given
    if not isinstance(given, Mapping):
        given = {
            "min" if rises_with_quality(metric) else "max": parse_number(given, f"the limit {metric}"),
        }
    try:
        limit = Limit.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise UsageError(f"the limit {metric}: {unknown('key', key, Limit.model_fields)}") from error
        raise UsageError(f"the limit {metric}: {key}: {first['msg'].lower()} (given: {first['input']})") from error
    if (limit.min is None) == (limit.max is None):
        raise UsageError(f"the limit {metric} needs either min or max")
    value = limit.value
    if value < 0:
        raise UsageError(f"the limit {metric}={value:g} is negative")
    if is_share(metric) and value > 1:
        raise UsageError(f"the limit {metric}={value:g} should be a share between 0 and 1, such as {value / 100:g}")
    return limit


def limits_of(given: Mapping[str, Any]) -> dict[str, Limit]:
    return {str(metric): limit_of(str(metric), value) for metric, value in given.items()}


def parse_limits(fail_under: Sequence[str], fail_on: str | None = None) -> dict[str, Limit]:
    """["robust=0.4", "class.min=0.2"], and "doubtful" or "invalid", as limits; UsageError for anything else."""
    limits: dict[str, Limit] = {}
    for text in fail_under:
        metric, equals, value = text.rpartition("=")
        if not equals:
            raise UsageError(f"--fail-under '{text}' should read METRIC=VALUE, for example robust=0.40")
        if metric in limits:
            raise UsageError(f"--fail-under: {metric} is given twice")
        limits[metric] = limit_of(metric, value)
    if fail_on is not None:
        if fail_on not in EVIDENCE_WORDS:
            raise UsageError(f"--fail-on: should be {' or '.join(EVIDENCE_WORDS)}, not '{fail_on}'")
        limits[f"evidence.{fail_on}"] = Limit(max=0)
    return limits


def check_targets(
    limits: Mapping[str, Limit], attacks: Sequence[str], classes: Sequence[str], layers: Sequence[str]
) -> None:
    """Raise UsageError for a limit on an attack, class or layer that the audit does not have, where it must."""
    families = {
        "robust": ("attack", attacks, ()),
        "class": ("class", classes, CLASS_WORDS),
        "layer": ("layer", layers, LAYER_WORDS),
        "mvl": ("layer", layers, ()),
    }
    for metric, limit in limits.items():
        family, dot, rest = metric.partition(".")
        if dot and family in families and not limit.allow_not_run:
            noun, names, words = families[family]
            if rest not in words and rest not in names:
                raise UsageError(f"the limit {metric}: {unknown(f'{noun} in this audit', rest, [*words, *names])}")


def check(report: AuditReport, limits: Mapping[str, Any]) -> list[GateResult]:
    """Each limit, as `limit_of` takes it, held against the report, in the order given.

    Raises UsageError for a class, layer or attack that a complete report does not know.
    """
    limits = limits_of(limits)
    scanned = [row.name for outcome in report.outcomes if outcome.layers for row in outcome.layers.rows]
    if report.status == "complete":  # before that, an attack may be missing only because it has not run
        attacks = [name for outcome in report.outcomes for name in (outcome.name, outcome.spec)]
        check_targets(limits, attacks, report.subject.class_names, list(dict.fromkeys(scanned)))
    if report.status != "complete":
        why = f"the audit is not complete (status: {report.status})"
        # allow_not_run is for what an audit leaves out by its plan, not for what an interruption did.
        strict = {metric: limit.model_copy(update={"allow_not_run": False}) for metric, limit in limits.items()}
        return [result_of(metric, limit, Measured(None, why=why)) for metric, limit in strict.items()]
    return [result_of(metric, limit, measure(report, metric)) for metric, limit in limits.items()]


def is_breach(results: Sequence[GateResult]) -> bool:
    """Whether they end in exit code 1."""
    return any(not result.passed and result.severity == "error" for result in results)


def decision(results: Sequence[GateResult]) -> str:
    """PASSED, FAILED or NOT DECIDED, with counts, in one line. Limits with severity warning are counted by themselves."""
    limits = [result for result in results if result.severity == "error"]
    warnings = [result for result in results if result.severity == "warning"]
    breached, undecided = (sum(result.state == state for result in limits) for state in ("breached", "undecided"))
    noun = "limit" if len(limits) == 1 else "limits"
    if breached:
        rest = f", {_are(undecided)} not decided" if undecided else ""
        line = f"FAILED: {breached} of {len(limits)} {noun} {'is' if breached == 1 else 'are'} breached{rest}"
    elif undecided:
        line = f"NOT DECIDED: {undecided} of {len(limits)} {noun} {'is' if undecided == 1 else 'are'} not decided"
    else:
        line = f"PASSED: {len(limits)} of {len(limits)} {noun} {'holds' if len(limits) == 1 else 'hold'}"
    missed = sum(not result.passed for result in warnings)
    if missed:
        noun = "warning" if len(warnings) == 1 else "warnings"
        line += f"; {missed} of {len(warnings)} {noun} {'does' if missed == 1 else 'do'} not hold"
    return line


def _are(count: int) -> str:
    return f"{count} {'is' if count == 1 else 'are'}"


def result_of(metric: str, limit: Limit, found: Measured, *, sequential: bool = False) -> GateResult:
    """sequential: the interval is a confidence sequence's, and decides whatever the limit says."""
    bounded = found.low is not None and found.high is not None and (limit.by == "bound" or sequential)
    if found.value is None:
        passed, message = limit.allow_not_run, f"{metric} could not be decided: {found.why}"
        message += ", which this limit allows" if passed else ""
    else:
        ends = (found.low, found.high) if bounded else (found.value, found.value)
        passed = all(limit.holds(end) for end in ends if end is not None)
        interval = "" if found.low is None or found.high is None else f" [{found.low:.4f}, {found.high:.4f}]"
        note = f" ({found.note})" if found.note else ""
        asked = f"{limit.direction} {limit.value:g} asked{'' if bounded or not interval else ', by the point'}"
        message = f"{metric}: measured {_text(metric, found.value)}{interval}{note}, {asked}"
    result = GateResult(
        metric=metric, limit=limit.value, direction=limit.direction, measured=found.value, low=found.low,
        high=found.high, passed=passed, message=message, severity=limit.severity,
        decided_by="sequence" if sequential else "bound" if bounded else "point",
    )  # fmt: skip
    if found.value is not None and result.state == "undecided":
        result.message += "; the interval holds the limit, so these samples do not decide it: take more"
    return result


def _text(metric: str, value: float) -> str:
    counted = metric.partition(".")[0] in ("mvl", "evidence")
    return f"{value:.0f}" if counted else f"{value:.4f}"
