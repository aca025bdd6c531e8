"""A report as tables for programs: one row per observation, plain column names, shares in [0, 1]. CSV and Parquet files."""

import csv
import importlib.util
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lsa_cli.errors import RunError, UsageError
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import AttackOutcome, AuditReport, ClassRow, LayerAnalysis
from lsa_cli.report.storage import write_bytes, write_text
from lsa_cli.report.text import settings_text
from lsa_cli.report.view import Cell, Column, Table

Rows = list[dict[str, Any]]


def tables(report: AuditReport) -> list[Table]:
    """The tables that have rows: attacks, cascade, layers, classes, ..., samples."""
    return [_table(name, rows) for name, make in TABLES.items() if (rows := make(report))]


def _table(name: str, rows: Rows) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return Table(name, tuple(map(Column, keys)), tuple(tuple(row.get(key) for key in keys) for row in rows))


def _attacks(report: AuditReport) -> Rows:
    return [
        {
            **_key(outcome),
            "settings": settings_text(outcome.settings),
            **spread("robust", outcome.robust),
            **spread("success", outcome.success),
            **({} if outcome.draws is None else {"draws_sd": outcome.draws.sd, "worst": outcome.draws.worst.value}),
            **{f"distance_{key}": value for key, value in outcome.distance.model_dump().items()},
            "seconds": outcome.seconds,
        }
        for outcome in report.outcomes
    ]


def _layers(report: AuditReport) -> Rows:
    return [
        {**_key(outcome), **row}
        for outcome in report.outcomes
        if outcome.layers is not None
        for row in layer_rows(outcome.layers)
    ]


def layer_rows(analysis: LayerAnalysis) -> Rows:
    """The layers under one attack."""
    return [
        {
            "layer": layer.name, "layer_kind": layer.kind, "position": position,
            **layer.model_dump(exclude={"name", "kind", "shape"}),
        }
        for position, layer in enumerate(analysis.rows)
    ]  # fmt: skip


def _classes(report: AuditReport) -> Rows:
    """Under each attack, and then in the worst case over the budget attacks."""
    rows = [{**_key(outcome), **_class_row(row)} for outcome in report.outcomes for row in outcome.classes]
    return rows + [{"attack": "worst case", "kind": "budget", **_class_row(row)} for row in report.verdict.classes]


def _layer_by_class(report: AuditReport) -> Rows:
    return [
        {**_key(outcome), "layer": layer.name, "class": name, "mean": value}
        for outcome in report.outcomes
        if outcome.layers is not None
        for layer, values in zip(outcome.layers.rows, outcome.layers.by_class or [], strict=False)
        for name, value in zip(report.subject.class_names, values, strict=True)
    ]


def _confusion(report: AuditReport) -> Rows:
    names = report.subject.class_names
    return [
        {**_key(outcome), "true": true, "predicted": predicted, "count": count}
        for outcome in report.outcomes
        for true, line in zip(names, outcome.confusion, strict=True)
        for predicted, count in zip(names, line, strict=True)
    ]


def _curves(report: AuditReport) -> Rows:
    return [
        {"attack": curve.attack, "eps": point.eps, **spread("robust", point.robust)}
        for curve in report.curves
        for point in curve.points
    ]


def _metrics(report: AuditReport) -> Rows:
    """A row for each quantile; one without a quantile where a metric has none."""
    return [
        {**metric.model_dump(exclude={"quantiles", "meaning"}), "quantile": share, "at_quantile": value}
        for metric in report.metrics
        for share, value in (metric.quantiles or {"": None}).items()
    ]


def _cascade(report: AuditReport) -> Rows:
    return [
        {
            "attack": stage.attack, "settings": settings_text(stage.settings), "tried": stage.tried, "broke": stage.broke,
            **spread("robust", stage.robust), "seconds": stage.seconds,
        }
        for stage in report.cascade
    ]  # fmt: skip


def _evidence(report: AuditReport) -> Rows:
    return [
        {"check": check.name, "n": check.n, "saw": what, "value": value, "findings": " ".join(check.findings)}
        for check in (report.evidence.checks if report.evidence is not None else ())
        for what, value in check.saw.items()
    ]


def _samples(report: AuditReport) -> Rows:
    if report.samples is None:
        return []
    columns = report.samples.model_dump()
    columns["proven"] = columns["proven"] or [None] * len(columns["index"])
    columns |= {f"held_{name}": [int(flag) for flag in flags] for name, flags in columns.pop("held").items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


TABLES: dict[str, Callable[[AuditReport], Rows]] = {
    "attacks": _attacks, "layers": _layers, "classes": _classes, "layer_by_class": _layer_by_class,
    "confusion": _confusion, "pairs": lambda report: [pair.model_dump() for pair in report.pairs], "curves": _curves, "metrics": _metrics, "cascade": _cascade,
    "evidence": _evidence, "gates": lambda report: [gate.model_dump() for gate in report.gates], "samples": _samples,
}  # fmt: skip


def _key(outcome: AttackOutcome) -> dict[str, str]:
    return {"attack": outcome.name, "kind": outcome.kind}


def spread(name: str, rate: Rate) -> dict[str, Any]:
    return {
        name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high, f"{name}_count": rate.count,
        f"{name}_n": rate.n,
    }  # fmt: skip


def _class_row(row: ClassRow) -> dict[str, Any]:
    return {
        "class": row.name, **spread("clean", row.clean), **spread("robust", row.robust), "target": row.target,
        "concentration": row.concentration, **({} if row.proven is None else spread("proven", row.proven)),
    }  # fmt: skip


# ---- files -------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", re.IGNORECASE)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_text(table: Table) -> str:
    """The table as CSV. Text that a spreadsheet would run as a formula gets an apostrophe in front; numbers stay numbers."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_inert(column.title) for column in table.columns)
    writer.writerows([_inert(cell) for cell in row] for row in table.rows)
    return file.getvalue()


def _inert(cell: Cell) -> Cell:
    if not isinstance(cell, str) or not cell.lstrip(" ").startswith(_FORMULA) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


def write_csv(report: AuditReport, folder: str | Path) -> list[Path]:
    """One CSV per table in `folder`, which is made if absent. Raises RunError when it cannot be written."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error.strerror or error}") from error
    written = []
    for table in tables(report):
        path = target / f"{table.title}.csv"
        write_text(path, csv_text(table))
        written.append(path)
    return written


def check_table_file(option: str, path: str) -> None:
    """Raises UsageError for an ending other than .csv and .parquet, and for Parquet without pyarrow."""
    kind = Path(path).suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise UsageError(f"--{option} {path} must end in .csv or .parquet")
    if kind == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"--{option} {path}: Parquet needs the package pyarrow, which is not installed; "
            'run pip install "lsa-robustness[parquet]", or give a name that ends in .csv'
        )


def write_rows(name: str, rows: Rows, path: str, known: Mapping[str, str] = MappingProxyType({})) -> None:
    """The table `name` as CSV or Parquet by the file's ending. Raises RunError when it cannot be written.

    known: types of columns of a Parquet file that may be empty.
    """
    table = _table(name, rows)
    if Path(path).suffix.lower() == ".csv":
        write_text(path, csv_text(table))
        return
    import pandas as pd

    frame = pd.DataFrame(table.rows, columns=[column.title for column in table.columns])
    write_bytes(path, frame.astype(dict(known)).convert_dtypes().to_parquet(None, index=False))


def write_samples(report: AuditReport, path: str) -> None:
    """One row per sample. Raises RunError when it cannot be written."""
    rows = _samples(report)
    if not rows:
        raise RunError(f"{path} is not written: no attack was run, so nothing is known of single samples")
    known = {"broken_by": "string", "look": "Int64", "margin": "Float64", "distance": "Float64", "proven": "boolean"}
    write_rows("samples", rows, path, known)
