"""The numbers of a report that a limit can name, each with its interval where the report has one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lsa_cli.report.limits import MetricName
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import AuditReport, LayerAnalysis
from lsa_cli.stats import newcombe


@dataclass(frozen=True)
class Measurement:
    """The value of a metric in a report. value: None for the reason `why`; note: its source."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""
    note: str = ""


def measure_metric(report: AuditReport, metric: MetricName) -> Measurement:
    """The metric's value and 95% interval. Counts and times have no interval."""
    return _READERS[metric.family](report, metric)


def extreme(rows: Sequence[Measurement], pick: Callable[[Iterable[float]], float]) -> Measurement:
    """The largest (pick: max) or smallest (pick: min) of several numbers, with the note of that row.

    Its interval goes from the extreme of the lower ends to the extreme of the upper ends, because another row than
    the one with the extreme point can reach further. A row without an interval counts with its point.
    """
    points = [row.value for row in rows if row.value is not None]
    assert len(points) == len(rows)
    found = rows[points.index(pick(points))]
    if all(row.low is None or row.high is None for row in rows):
        return Measurement(found.value, note=found.note)
    low = pick(point if row.low is None else row.low for point, row in zip(points, rows, strict=True))
    high = pick(point if row.high is None else row.high for point, row in zip(points, rows, strict=True))
    return Measurement(found.value, low, high, note=found.note)


def difference(a: Measurement, b: Measurement, note: str = "") -> Measurement:
    """a - b for two shares of different samples; each must have its interval.

    Interval: Newcombe's (1998, method 10).
    """
    assert a.value is not None
    assert b.value is not None
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Measurement(a.value - b.value, note=note)
    return Measurement(a.value - b.value, *newcombe(a.value, (a.low, a.high), b.value, (b.low, b.high)), note=note)


def _rate(rate: Rate | None, why: str, note: str = "") -> Measurement:
    if rate is None or rate.value is None:
        return Measurement(None, why=why)
    return Measurement(rate.value, rate.low, rate.high, note=note)


def _robust(report: AuditReport, metric: MetricName) -> Measurement:
    if not metric.target:
        return _rate(report.verdict.robust, "no budget attack was run")
    found = next((o for o in report.outcomes if metric.target in (o.name, o.spec)), None)
    return _rate(found.robust if found is not None else None, f"{metric.target} was not run on all samples")


def _proven(report: AuditReport, _: MetricName) -> Measurement:
    proof = report.verdict.proof
    why = "the audit was without --prove" if proof is None else f"the proof was left out, because {proof.left_out}"
    return _rate(report.verdict.proven, why)


def _class(report: AuditReport, metric: MetricName) -> Measurement:
    rows = report.verdict.classes
    if not rows:
        return Measurement(None, why="no budget attack was run")
    if metric.names:
        found = next((row for row in rows if row.name == metric.target), None)
        return _rate(found.robust if found is not None else None, f"class {metric.target} has no samples")
    empty = [row.name for row in rows if row.robust.value is None]
    if empty:
        return Measurement(None, why=f"class {', '.join(empty[:5])} has no samples")
    rates = [_rate(row.robust, "", note=f"class {row.name}") for row in rows]
    if metric.target == "min":
        return extreme(rates, min)
    # The interval of the largest difference covers that of every pair; no difference is below zero.
    gaps = [
        difference(a, b, note=f"from {a.note.removeprefix('class ')} to {b.note.removeprefix('class ')}")
        for a in rates
        for b in rates
        if a is not b
    ]
    return extreme([Measurement(0.0, 0.0, 0.0, note="no two classes differ"), *gaps], max)


def worst_class(report: AuditReport) -> Rate | None:
    """The robust accuracy of the worst class that has samples, with the interval of the smallest of all classes."""
    rows = [row.robust for row in report.verdict.classes if row.robust.value is not None]
    if not rows:
        return None
    lowest = extreme([_rate(row, "") for row in rows], min)
    worst = min(rows, key=lambda row: row.value or 0.0)
    return worst.model_copy(update={"low": lowest.low, "high": lowest.high})


def _analyses(report: AuditReport) -> list[tuple[str, LayerAnalysis]]:
    return [(o.name, o.layers) for o in report.outcomes if o.kind != "noise" and o.layers is not None]


_NO_LAYERS = "no layers were scanned under a budget attack"


def _layer(report: AuditReport, metric: MetricName) -> Measurement:
    rows = [(attack, row) for attack, layers in _analyses(report) for row in layers.rows]
    if not rows:
        return Measurement(None, why=_NO_LAYERS)
    if metric.names:
        rows = [(attack, row) for attack, row in rows if row.name == metric.target]
        if not rows:
            return Measurement(None, why=f"layer {metric.target} was not scanned")
    blind = [row.name for _, row in rows if row.mean is None]
    if blind:
        return Measurement(None, why=f"layer {blind[0]} has no defined measure")
    notes = [f"under {attack}" if metric.names else f"{row.name} under {attack}" for attack, row in rows]
    return extreme([Measurement(r.mean, r.low, r.high, note=n) for n, (_, r) in zip(notes, rows, strict=True)], max)


def _mvl(report: AuditReport, metric: MetricName) -> Measurement:
    found = _analyses(report)
    if not found:
        return Measurement(None, why=_NO_LAYERS)
    if not metric.target:
        names = list(dict.fromkeys(name for _, layers in found for name in layers.mvl))
        return Measurement(len(names), note=", ".join(names))
    if all(row.name != metric.target for _, layers in found for row in layers.rows):
        return Measurement(None, why=f"layer {metric.target} was not scanned")
    attacks = [attack for attack, layers in found if metric.target in layers.mvl]
    return Measurement(len(attacks), note=f"under {', '.join(attacks)}" if attacks else "")


def _evidence(report: AuditReport, metric: MetricName) -> Measurement:
    if report.evidence is None:
        return Measurement(None, why="no checks of the evidence were made")
    found = [f.code for f in report.evidence.findings if f.level == "invalid" or metric.target == "doubtful"]
    return Measurement(len(found), note=f"{report.evidence.verdict}{', by ' if found else ''}{', '.join(found)}")


_READERS: dict[str, Callable[[AuditReport, MetricName], Measurement]] = {
    "clean": lambda report, _: _rate(report.verdict.clean, "no sample was classified"),
    "robust": _robust,
    "proven": _proven,
    "class": _class,
    "drop": lambda report, _: Measurement(None, why="only --gate-only with --baseline measures it"),
    "layer": _layer,
    "mvl": _mvl,
    "evidence": _evidence,
    "seconds": lambda report, _: Measurement(report.seconds),
}
