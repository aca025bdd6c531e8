"""A report as tidy tables: one row an observation, plain names, shares in [0, 1]; and numbers as people read them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.errors import RunError, UsageError
from lsa_cli.report.row import Draws, Rate
from lsa_cli.report.schema import AttackOutcome, AuditReport, ClassRow, Estimate, Metric
from lsa_cli.report.storage import write_bytes, write_text
from lsa_cli.wording import eps_as_text as eps_as_text
from lsa_cli.wording import setting_as_text

if TYPE_CHECKING:
    import pandas

TABLES = (
    "attacks", "layers", "classes", "layer_by_class", "confusion", "pairs", "curves", "metrics", "cascade", "evidence",
    "gates", "samples",
)  # fmt: skip


QUICK_LOOK = (
    "the attacks are few or short, so that the number is a loose upper bound; the default attacks or --full say more"
)
RADIUS_CODE = "radius-not-chosen"  # of the finding that the checkpoint sets a radius of next to nothing
BESIDE = " beside the checkpoint"  # behind the path of a lsa.yaml that was found there, and that nobody chose


def is_of_others(origin: str) -> bool:
    """Whether a setting comes from whoever made the checkpoint, and not from the user of lsa or the data's custom."""
    return origin == "the checkpoint" or origin.endswith(BESIDE)


def strongest(report: AuditReport, scanned: bool = False) -> AttackOutcome | None:
    """The budget attack that left the fewest samples robust; the first of equals. scanned: of those that scanned layers."""
    budget = [
        outcome
        for outcome in report.outcomes
        if outcome.kind != "noise" and (not scanned or (outcome.layers is not None and outcome.layers.rows))
    ]
    return min(budget, key=lambda outcome: outcome.robust.count) if budget else None


def percent(value: float | None) -> str:
    """0.8734 -> "87.3%". Never rounds to 100% or 0% what is not quite that."""
    if value is None:
        return "-"
    text = f"{100 * value:.1f}"
    if text == "100.0" and value < 1:
        text = "99.9"
    if text == "0.0" and value > 0:
        text = "0.1"
    return f"{text}%"


def interval(rate: Rate) -> str:
    """ "[85.1, 89.2]", in percent; empty where there are no samples."""
    return "" if rate.low is None or rate.high is None else f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def listed(values: Sequence[float]) -> str:
    """Means and deviations of channels: "0.4914, 0.4822, 0.4465"."""
    return ", ".join(f"{value:.4g}" for value in values)


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return path.replace("\\", "/").rpartition("/")[2]


def settings_text(settings: Mapping[str, Any]) -> str:
    """An attack's hyperparameters in one line: "linf, eps 0.3, steps 20, step size 0.0375"."""
    parts = []
    for key, value in settings.items():
        if key == "norm":
            parts.append(str(value))
        elif value is not None:
            parts.append(f"{key.replace('_', ' ')} {setting_as_text(key, value)}")
    return ", ".join(parts)


def estimate_text(estimate: Estimate) -> str:
    """What the whole cascade would have left, from a part of the survivors."""
    return (
        f"{percent(estimate.value)} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}] estimated: it broke "
        f"{estimate.broken} of {estimate.checked} drawn at random from {estimate.survivors} survivors"
    )


def metric_text(metric: Metric) -> str:
    """A metric in one line: "intensity 3.21 ratio (mean: 2.80, 0.5: 2.51; n = 128, pgd)"."""
    quantiles = ", ".join(f"{share}: {number(value)}" for share, value in metric.quantiles.items())
    about = "; ".join(part for part in (quantiles, f"n = {metric.n}, {metric.attack}") if part)
    return f"{metric.name} {number(metric.value)} {metric.unit} ({about})"


def draws_text(draws: Draws) -> str:
    """Of a random network: that a number is a mean, and how the evaluations differ."""
    return (
        f"mean of {draws.n} evaluations of a random network, sd {100 * draws.sd:.1f} points; right in every one: "
        f"{percent(draws.worst.value)}"
    )


def weakest_first(rows: list[ClassRow]) -> list[ClassRow]:
    """Classes by robust accuracy, worst first; classes without samples last."""
    return sorted(rows, key=lambda row: (row.robust.value is None, row.robust.value or 0.0))


def frames(report: AuditReport) -> dict[str, "pandas.DataFrame"]:
    """The tables of a report by name, those that have rows: attacks, cascade, layers, classes, ..., samples."""
    import pandas as pd

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    names = report.subject.class_names
    for outcome in report.outcomes:
        key = {"attack": outcome.name, "kind": outcome.kind}
        rows["attacks"].append(
            {
                **key,
                "settings": settings_text(outcome.settings),
                **_spread("robust", outcome.robust),
                **_spread("success", outcome.success),
                **({} if outcome.draws is None else {"draws_sd": outcome.draws.sd, "worst": outcome.draws.worst.value}),
                **{f"distance_{k}": v for k, v in outcome.distance.model_dump().items()},
                "seconds": outcome.seconds,
            }
        )
        if outcome.layers is not None:
            for position, layer in enumerate(outcome.layers.rows):
                row = {"layer": layer.name, "layer_kind": layer.kind, "position": position}
                rows["layers"].append({**key, **row, **layer.model_dump(exclude={"name", "kind", "shape"})})
            for layer, values in zip(outcome.layers.rows, outcome.layers.by_class or [], strict=False):
                rows["layer_by_class"] += [
                    {**key, "layer": layer.name, "class": name, "mean": value}
                    for name, value in zip(names, values, strict=True)
                ]
        rows["classes"] += [{**key, **_class_row(row)} for row in outcome.classes]
        rows["confusion"] += [
            {**key, "true": true, "predicted": predicted, "count": count}
            for true, line in zip(names, outcome.confusion, strict=True)
            for predicted, count in zip(names, line, strict=True)
        ]
    rows["classes"] += [{"attack": "worst case", "kind": "budget", **_class_row(r)} for r in report.verdict.classes]
    rows["pairs"] = [pair.model_dump() for pair in report.pairs]
    for curve in report.curves:
        rows["curves"] += [
            {"attack": curve.attack, "eps": point.eps, **_spread("robust", point.robust)} for point in curve.points
        ]
    rows["cascade"] = [
        {
            "attack": stage.attack, "settings": settings_text(stage.settings), "tried": stage.tried, "broke": stage.broke,
            **_spread("robust", stage.robust), "seconds": stage.seconds,
        }
        for stage in report.cascade
    ]  # fmt: skip
    if report.evidence is not None:
        rows["evidence"] = [
            {"check": check.name, "n": check.n, "saw": what, "value": value, "findings": " ".join(check.findings)}
            for check in report.evidence.checks
            for what, value in check.saw.items()
        ]
    rows["metrics"] = [
        {**metric.model_dump(exclude={"quantiles", "meaning"}), "quantile": share, "at_quantile": value}
        for metric in report.metrics
        for share, value in (metric.quantiles or {"": None}).items()
    ]
    rows["gates"] = [gate.model_dump() for gate in report.gates]
    if report.samples is not None:
        columns = report.samples.model_dump()
        columns |= {f"held_{name}": [int(flag) for flag in flags] for name, flags in columns.pop("held").items()}
        rows["samples"] = [
            dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
        ]  # fmt: skip
    return {name: pd.DataFrame(content) for name, content in rows.items() if content}


def _spread(name: str, rate: Rate) -> dict[str, Any]:
    return {
        name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high, f"{name}_count": rate.count,
        f"{name}_n": rate.n,
    }  # fmt: skip


def _class_row(row: ClassRow) -> dict[str, Any]:
    return {
        "class": row.name,
        **_spread("clean", row.clean),
        **_spread("robust", row.robust),
        "target": row.target,
        "concentration": row.concentration,
    }


_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", re.IGNORECASE)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def _csv(frame: "pandas.DataFrame") -> str:
    """The table as CSV. Text that a spreadsheet would run as a formula gets an apostrophe in front; numbers stay numbers."""
    return str(frame.map(_inert).rename(columns=_inert).to_csv(index=False, lineterminator="\n"))


def _inert(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.lstrip(" ").startswith(_FORMULA) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


def write_csv(report: AuditReport, folder: str | Path) -> list[Path]:
    """One CSV a table into `folder`, which is made if absent. Raises RunError when it cannot be written."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} could not be made: {error.strerror or error}") from error
    written = []
    for name, frame in frames(report).items():
        path = target / f"{name}.csv"
        write_text(path, _csv(frame))
        written.append(path)
    return written


def check_samples_file(path: str) -> None:
    """Raises UsageError for a file of samples that could not be written after hours of work."""
    kind = Path(path).suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise UsageError(f"--samples {path} should end in .csv or .parquet")


def write_samples(report: AuditReport, path: str) -> None:
    """One row a sample, as CSV or Parquet by the file's ending. Raises RunError when it cannot be written."""
    frame = frames(report).get("samples")
    if frame is None:
        raise RunError(f"{path} is not written: no attack was run, so nothing is known of single samples")
    if Path(path).suffix.lower() == ".csv":
        write_text(path, _csv(frame))
        return
    known = {"broken_by": "string", "look": "Int64", "margin": "Float64", "distance": "Float64"}  # empty columns too
    write_bytes(path, frame.astype(known).convert_dtypes().to_parquet(None, index=False))
