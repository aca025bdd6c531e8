"""Limits of a gate: what a limit can name (`robust`, `class.min`, `layer.relu2`), and what it can ask.

METRICS is the grammar of names: every list and check of metric names uses it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema

from lsa_cli.errors import UsageError
from lsa_cli.registry import parse_number, unknown

# ---- names -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetricKind:
    """A number of a report that a limit can name, as `family` or `family.target`.

    A target in capitals stands for the name of an attack, a class or a layer. unit: an accuracy is the share of samples that
    are classified correctly, and the only unit for which more is better; a share lies in [0, 1] too.
    """

    family: str
    target: str
    unit: Literal["accuracy", "share", "measure", "count", "seconds"]
    meaning: str

    @property
    def name(self) -> str:
        return f"{self.family}.{self.target}" if self.target else self.family

    @property
    def is_open(self) -> bool:
        """Whether the target is a name from the audit."""
        return self.target.isupper()


METRICS = (
    MetricKind("clean", "", "accuracy", "clean accuracy"),
    MetricKind("robust", "", "accuracy", "robust accuracy under the worst of the budget attacks"),
    MetricKind("robust", "ATTACK", "accuracy", "accuracy under one attack or noise"),
    MetricKind("proven", "", "accuracy", "proven robust accuracy: a lower bound, by --prove"),
    MetricKind("class", "min", "accuracy", "robust accuracy of the worst class"),
    MetricKind("class", "NAME", "accuracy", "robust accuracy of one class"),
    MetricKind("class", "discrepancy", "share", "largest minus smallest class robust accuracy (at most)"),
    MetricKind(
        "drop", "", "share", "by how much robust accuracy is below that of --baseline on the same samples (at most)"
    ),
    MetricKind("drop", "clean", "share", "by how much clean accuracy is below that of --baseline (at most)"),
    MetricKind(
        "layer",
        "max-error",
        "measure",
        "largest mean comparison measure of any layer under any budget attack (at most)",
    ),
    MetricKind("layer", "NAME", "measure", "mean comparison measure of one layer, worst budget attack (at most)"),
    MetricKind("mvl", "", "count", "how many layers are most vulnerable under any budget attack (at most)"),
    MetricKind("mvl", "LAYER", "count", "under how many budget attacks one layer is most vulnerable (at most)"),
    MetricKind(
        "evidence",
        "doubtful",
        "count",
        "how many findings make the verdict doubtful or worse (at most); a quick look is none, and the result says so",
    ),
    MetricKind("evidence", "invalid", "count", "how many findings make the verdict invalid (at most)"),
    MetricKind("seconds", "", "seconds", "time the audit took (at most)"),
)
_NAMED_BY = {"robust": "attack", "class": "class", "layer": "layer", "mvl": "layer"}  # what an open target names


@dataclass(frozen=True)
class MetricName:
    """The name of one metric, parsed. target: the attack, class or layer, or a word such as `min`; empty for none."""

    kind: MetricKind
    target: str = ""

    @property
    def family(self) -> str:
        return self.kind.family

    @property
    def names(self) -> str | None:
        """What the target names: "attack", "class" or "layer"; None for a fixed word or no target."""
        return _NAMED_BY[self.family] if self.kind.is_open else None

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share of correctly classified samples: larger is better, and a count of samples decides it."""
        return self.kind.unit == "accuracy"

    @property
    def is_share(self) -> bool:
        """Whether it lies in [0, 1]."""
        return self.kind.unit in ("accuracy", "share")

    def __str__(self) -> str:
        return f"{self.family}.{self.target}" if self.target else self.family


def find_metric(text: str) -> MetricName | None:
    """The metric that a text names; None for no metric. Whether a report has the attack, class or layer is not checked."""
    family, _, target = text.partition(".")
    kinds = [kind for kind in METRICS if kind.family == family]
    found = next((kind for kind in kinds if kind.name == text), None)
    if found is None and target:
        found = next((kind for kind in kinds if kind.is_open), None)
    return None if found is None else MetricName(found, target)


def parse_metric(text: str) -> MetricName:
    """`find_metric`; raises UsageError for no metric."""
    found = find_metric(text)
    if found is None:
        raise UsageError(unknown("gate metric", text, [kind.name for kind in METRICS]))
    return found


def metric_pattern() -> str:
    """The grammar of names as a regular expression, for JSON Schema."""
    names = [rf"{kind.family}\..+" if kind.is_open else re.escape(kind.name) for kind in METRICS]
    return f"^({'|'.join(names)})$"


def words_of(family: str) -> list[str]:
    """The fixed targets of a family: ["min", "discrepancy"] for class."""
    return [kind.target for kind in METRICS if kind.family == family and kind.target and not kind.is_open]


# ---- limits ------------------------------------------------------------------------------------------------

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
    name = parse_metric(metric)
    if isinstance(given, Limit):
        return given
    if not isinstance(given, Mapping):
        given = {"min" if name.is_accuracy else "max": parse_number(given, f"the limit {metric}")}
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
    if name.is_share and value > 1:
        raise UsageError(f"the limit {metric}={value:g} must be a share between 0 and 1, such as {value / 100:g}")
    return limit


def limits_of(given: Mapping[str, Any]) -> dict[str, Limit]:
    return {str(metric): limit_of(str(metric), value) for metric, value in given.items()}


def parse_limits(fail_under: Sequence[str], fail_on: str | None = None) -> dict[str, Limit]:
    """["robust=0.4", "class.min=0.2"], and "doubtful" or "invalid", as limits; UsageError for anything else."""
    limits: dict[str, Limit] = {}
    for text in fail_under:
        metric, equals, value = text.rpartition("=")
        if not equals:
            raise UsageError(f"--fail-under '{text}' must read METRIC=VALUE, for example robust=0.40")
        if metric in limits:
            raise UsageError(f"--fail-under: {metric} is given twice")
        limits[metric] = limit_of(metric, value)
    if fail_on is not None:
        levels = words_of("evidence")
        if fail_on not in levels:
            raise UsageError(f"--fail-on: must be {' or '.join(levels)}, not '{fail_on}'")
        limits[f"evidence.{fail_on}"] = Limit(max=0)
    return limits


def check_targets(
    limits: Mapping[str, Limit], attacks: Sequence[str], classes: Sequence[str], layers: Sequence[str]
) -> None:
    """Raise UsageError for a limit on an attack, class or layer that the audit does not have, without allow_not_run."""
    known = {"attack": attacks, "class": classes, "layer": layers}
    for text, limit in limits.items():
        name = parse_metric(text)
        if name.names is not None and not limit.allow_not_run and name.target not in known[name.names]:
            there = dict.fromkeys([*words_of(name.family), *known[name.names]])
            raise UsageError(f"the limit {text}: {unknown(f'{name.names} in this audit', name.target, there)}")
