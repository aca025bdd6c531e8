"""consistency(): are the same classes weak in every network and under every attack? (arXiv 2105.14240)

The formulas are ours: the paper's own were not available.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.text import Text

from lsa_cli.errors import UsageError
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.terminal import print_table
from lsa_cli.report.text import file_name, numbered, percent
from lsa_cli.report.view import Cell, Column, Table
from lsa_cli.stats import spearman


@dataclass(frozen=True)
class ClassVector:
    """Robust accuracy by class (K,), NaN for classes without samples, of one model under one attack."""

    model: str
    attack: str
    values: np.ndarray

    @property
    def weak(self) -> np.ndarray:  # (K,) bool
        """Classes below the median."""
        return self.values < np.nanmedian(self.values)


@dataclass(frozen=True)
class Gain:
    """What a stronger attack breaks beyond a weaker one on one model. gain: net samples; on_weak: those of classes below
    the median under the weaker attack."""

    model: str
    weaker: str
    stronger: str
    gain: int
    on_weak: float


@dataclass(frozen=True)
class Consistency:
    """correlations (V, V): Spearman's of each two vectors, NaN where one does not vary. weak_everywhere: classes below
    the median in every vector that varies."""

    classes: tuple[str, ...]
    vectors: tuple[ClassVector, ...]
    correlations: np.ndarray
    weak_everywhere: tuple[str, ...]
    gains: tuple[Gain, ...]

    @property
    def weak_share(self) -> float | None:
        """Of all gains of stronger attacks, the share on weak classes; None where no attack gained."""
        total = sum(gain.gain for gain in self.gains)
        return sum(gain.on_weak for gain in self.gains) / total if total else None

    @property
    def least(self) -> float | None:
        """The smallest correlation of two vectors; None where none is defined."""
        off = self.correlations[~np.eye(len(self.vectors), dtype=bool)]
        return float(np.nanmin(off)) if np.isfinite(off).any() else None

    def to_json(self) -> str:
        """The tables as plain values, NaN as null. spearman: rows and columns in the order of attacks."""
        content = {
            "models": list(dict.fromkeys(vector.model for vector in self.vectors)),
            "classes": list(self.classes),
            "attacks": [
                {"model": vector.model, "attack": vector.attack, "robust": _plain(vector.values)}
                for vector in self.vectors
            ],
            "spearman": [_plain(row) for row in self.correlations],
            "least_spearman": self.least,
            "weak_everywhere": list(self.weak_everywhere),
            "gains": [asdict(gain) for gain in self.gains],
            "share_on_weak_classes": self.weak_share,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def consistency(reports: Sequence[AuditReport]) -> Consistency:
    """Compare the class vectors of all attacks of all reports.

    Norms, radii and samples may differ: orders of classes are compared, not accuracies. Raises UsageError for fewer
    than two vectors, or for reports of other classes.
    """
    classes = reports[0].subject.class_names
    for report in reports[1:]:
        if report.subject.class_names != classes:
            raise UsageError(
                f"{report.subject.checkpoint} has other classes than {reports[0].subject.checkpoint}; "
                "give reports of one task"
            )
    names = numbered([file_name(report.subject.checkpoint) for report in reports])
    vectors = [
        ClassVector(name, outcome.name, _values([row.robust.value for row in outcome.classes]))
        for name, report in zip(names, reports, strict=True)
        for outcome in report.outcomes
        if outcome.kind != "noise"
    ]
    vectors = [vector for vector in vectors if np.isfinite(vector.values).any()]
    if len(vectors) < 2:
        raise UsageError("these reports have fewer than two attacks; give one with two attacks, or two reports")
    table = np.array([[_correlation(a.values, b.values) for b in vectors] for a in vectors])
    telling = [vector.weak for vector in vectors if np.nanmax(vector.values) > np.nanmin(vector.values)]
    weak = np.all(telling, axis=0) if telling else np.zeros(len(classes), dtype=bool)
    gains = [
        Gain(name, pair.weaker, pair.stronger, pair.gain, pair.gain * pair.gain_on_weak_classes)
        for name, report in zip(names, reports, strict=True)
        for pair in report.pairs
        if pair.gain > 0 and pair.gain_on_weak_classes is not None
    ]
    everywhere = tuple(name for name, flag in zip(classes, weak, strict=True) if flag)
    return Consistency(tuple(classes), tuple(vectors), table, everywhere, tuple(gains))


def _values(shares: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if share is None else share for share in shares])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    found = spearman(a, b)
    return np.nan if found is None else found


def print_consistency(found: Consistency, console: Console) -> None:
    """Print the class vectors, the matrix, where stronger attacks gain, and a summary."""
    for table in _tables(found):
        print_table(table, console)
    for line in sentences(found):
        console.print(Text(line))


def _tables(found: Consistency) -> Iterator[Table]:
    number = Column("", "number")
    vectors: list[tuple[Cell, ...]] = []
    for place, vector in enumerate(found.vectors, start=1):
        cells = [percent(None if np.isnan(value) else float(value)) for value in vector.values]
        vectors.append((str(place), vector.model, vector.attack, *cells))
    by_class = [Column(title, "number", spare=place) for place, title in enumerate(found.classes, start=1)]
    columns = (number, Column("model", "name"), Column("attack", "name"), *by_class)
    yield Table("Robust accuracy by class", columns, tuple(vectors))
    places = [Column(str(place), "number") for place in range(1, len(found.vectors) + 1)]
    matrix: list[tuple[Cell, ...]] = [
        (str(place), *("-" if np.isnan(value) else f"{value:+.2f}" for value in row))
        for place, row in enumerate(found.correlations, start=1)
    ]
    yield Table("Spearman correlation of these rows", (number, *places), tuple(matrix))
    if found.gains:
        gains: list[tuple[Cell, ...]] = [
            (gain.model, gain.weaker, gain.stronger, str(gain.gain), f"{100 * gain.on_weak / gain.gain:.1f}%")
            for gain in found.gains
        ]
        names = [Column(title, "name") for title in ("model", "weaker", "stronger")]
        counts = [Column(title, "number") for title in ("samples", "on weak classes")]
        yield Table("Where stronger attacks gain", (*names, *counts), tuple(gains))


def sentences(found: Consistency) -> list[str]:
    """The summary."""
    weak = ", ".join(found.weak_everywhere) or "none"
    lines = [f"classes below the median everywhere: {weak}"]
    if found.least is not None:
        lines.append(f"the class orders agree with a Spearman correlation of {found.least:+.2f} or more")
    if found.weak_share is not None:
        lines.append(f"of what stronger attacks gain, {100 * found.weak_share:.1f}% falls on classes below the median")
    return lines
