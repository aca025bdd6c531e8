"""The numbers of a report that a limit can name, each with its interval where the report has one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lsa_cli.report.schema import AuditReport, LayerAnalysis, Rate
from lsa_cli.stats import newcombe

METRICS = {
    "clean": "clean accuracy",
    "robust": "robust accuracy under the worst of the budget attacks",
    "robust.ATTACK": "accuracy under one attack or noise",
    "class.min": "robust accuracy of the worst class",
    "class.NAME": "robust accuracy of one class",
    "class.discrepancy": "largest minus smallest class robust accuracy (at most)",
    "layer.max-error": "largest mean comparison measure of any layer under any budget attack (at most)",
    "layer.NAME": "mean comparison measure of one layer, worst budget attack (at most)",
    "mvl": "how many layers are most vulnerable under any budget attack (at most)",
    "mvl.LAYER": "under how many budget attacks one layer is most vulnerable (at most)",
    "evidence.doubtful": "how many findings make the verdict doubtful or worse (at most); a quick look is none, and the result says so",
    "evidence.invalid": "how many findings make the verdict invalid (at most)",
    "seconds": "time the audit took (at most)",
}
FAMILIES = ("robust", "class", "layer", "mvl", "evidence")
CLASS_WORDS, LAYER_WORDS, EVIDENCE_WORDS = ("min", "discrepancy"), ("max-error",), ("doubtful", "invalid")


def exists(metric: str) -> bool:
    """Whether a report could have it, whatever its attacks, classes and layers are called."""
    family, dot, rest = metric.partition(".")
    if family == "evidence":
        return rest in EVIDENCE_WORDS
    return metric in ("clean", "robust", "mvl", "seconds") or bool(dot and rest and family in FAMILIES)


def is_share(metric: str) -> bool:
    """Whether it lies in [0, 1]."""
    return metric.partition(".")[0] in ("clean", "robust", "class")


def rises_with_quality(metric: str) -> bool:
    """Whether a bare number is the least that is asked; else the most."""
    return is_share(metric) and metric != "class.discrepancy"


@dataclass(frozen=True)
class Measured:
    """What a report says of a metric. value: None where it says nothing, for the reason `why`; note: what it is made of."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""
    note: str = ""


def measure(report: AuditReport, metric: str) -> Measured:
    """The metric's value and 95% interval. Counts and times have no interval: a point is all that is known."""
    family, _, rest = metric.partition(".")
    if metric == "clean":
        return _rate(report.verdict.clean, "no sample was classified")
    if metric == "seconds":
        return Measured(report.seconds)
    if family == "robust":
        if not rest:
            return _rate(report.verdict.robust, "no budget attack was run")
        found = next((o for o in report.outcomes if rest in (o.name, o.spec)), None)
        return _rate(found.robust if found is not None else None, f"{rest} was not run on all samples")
    if family == "class":
        return _class(report, rest)
    if family == "evidence":
        return _evidence(report, rest)
    return _mvl(report, rest) if family == "mvl" else _layer(report, rest)


def extreme(rows: Sequence[Measured], pick: Callable[[Iterable[float]], float]) -> Measured:
    """The largest (pick: max) or smallest (pick: min) of several numbers, with the note of that row.

    Its interval goes from the extreme of the lower ends to the extreme of the upper ends, because another row than
    the one with the extreme point can reach further. A row without an interval counts with its point.
    """
    points = [row.value for row in rows if row.value is not None]
    assert len(points) == len(rows)
    found = rows[points.index(pick(points))]
    if all(row.low is None or row.high is None for row in rows):
        return Measured(found.value, note=found.note)
    low = pick(point if row.low is None else row.low for point, row in zip(points, rows, strict=True))
    high = pick(point if row.high is None else row.high for point, row in zip(points, rows, strict=True))
    return Measured(found.value, low, high, note=found.note)


def difference(a: Measured, b: Measured, note: str = "") -> Measured:
    """a - b for two shares of different samples; each must have its interval.

    Interval: Newcombe's (1998, method 10).
    """
    assert a.value is not None
    assert b.value is not None
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Measured(a.value - b.value, note=note)
    return Measured(a.value - b.value, *newcombe(a.value, (a.low, a.high), b.value, (b.low, b.high)), note=note)


def _rate(rate: Rate | None, why: str, note: str = "") -> Measured:
    if rate is None or rate.value is None:
        return Measured(None, why=why)
    return Measured(rate.value, rate.low, rate.high, note=note)


def _class(report: AuditReport, rest: str) -> Measured:
    rows = report.verdict.classes
    if not rows:
        return Measured(None, why="no budget attack was run")
    if rest not in CLASS_WORDS:
        found = next((row for row in rows if row.name == rest), None)
        return _rate(found.robust if found is not None else None, f"class {rest} has no samples")
    empty = [row.name for row in rows if row.robust.value is None]
    if empty:
        return Measured(None, why=f"class {', '.join(empty[:5])} has no samples")
    rates = [_rate(row.robust, "", note=f"class {row.name}") for row in rows]
    if rest == "min":
        return extreme(rates, min)
    # The largest difference of two classes reaches as far as that of any two, and is at least that of one with itself.
    gaps = [
        difference(a, b, note=f"from {a.note.removeprefix('class ')} to {b.note.removeprefix('class ')}")
        for a in rates
        for b in rates
        if a is not b
    ]
    return extreme([Measured(0.0, 0.0, 0.0, note="no two classes differ"), *gaps], max)


def worst_class(report: AuditReport) -> Rate | None:
    """The class with the lowest robust accuracy of those that have samples; its interval is that of the lowest of all."""
    rows = [row.robust for row in report.verdict.classes if row.robust.value is not None]
    if not rows:
        return None
    lowest = extreme([_rate(row, "") for row in rows], min)
    worst = min(rows, key=lambda row: row.value or 0.0)
    return worst.model_copy(update={"low": lowest.low, "high": lowest.high})


def _analyses(report: AuditReport) -> list[tuple[str, LayerAnalysis]]:
    return [(o.name, o.layers) for o in report.outcomes if o.kind != "noise" and o.layers is not None]


_NO_LAYERS = "no layers were scanned under a budget attack"


def _layer(report: AuditReport, rest: str) -> Measured:
    rows = [(attack, row) for attack, layers in _analyses(report) for row in layers.rows]
    if not rows:
        return Measured(None, why=_NO_LAYERS)
    if rest not in LAYER_WORDS:
        rows = [(attack, row) for attack, row in rows if row.name == rest]
        if not rows:
            return Measured(None, why=f"layer {rest} was not scanned")
    blind = [row.name for _, row in rows if row.mean is None]
    if blind:
        return Measured(None, why=f"layer {blind[0]} has no defined measure")
    notes = [f"{row.name} under {attack}" if rest in LAYER_WORDS else f"under {attack}" for attack, row in rows]
    return extreme([Measured(r.mean, r.low, r.high, note=n) for n, (_, r) in zip(notes, rows, strict=True)], max)


def _mvl(report: AuditReport, rest: str) -> Measured:
    found = _analyses(report)
    if not found:
        return Measured(None, why=_NO_LAYERS)
    if not rest:
        names = list(dict.fromkeys(name for _, layers in found for name in layers.mvl))
        return Measured(len(names), note=", ".join(names))
    if all(row.name != rest for _, layers in found for row in layers.rows):
        return Measured(None, why=f"layer {rest} was not scanned")
    attacks = [attack for attack, layers in found if rest in layers.mvl]
    return Measured(len(attacks), note=f"under {', '.join(attacks)}" if attacks else "")


def _evidence(report: AuditReport, level: str) -> Measured:
    if report.evidence is None:
        return Measured(None, why="no checks of the evidence were made")
    found = [f.code for f in report.evidence.findings if f.level == "invalid" or level == "doubtful"]
    return Measured(len(found), note=f"{report.evidence.verdict}{', by ' if found else ''}{', '.join(found)}")
