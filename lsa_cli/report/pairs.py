"""The numbers of two reports side by side, and their tables: for the terminal and the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from lsa_cli.report.compare import Change, Comparison
from lsa_cli.report.measurement import worst_class
from lsa_cli.report.ranking import strongest
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import AttackOutcome, AuditReport, LayerAnalysis, LayerRow
from lsa_cli.report.text import interval, number, p_value, percent
from lsa_cli.report.view import Cell, Column, Mark, Table, span

Changes = dict[tuple[str, str, str | None], Change]  # by table, name and attack


def by_name(found: Comparison) -> Changes:
    return {(change.table, change.name, change.attack): change for change in found.changes}


@dataclass(frozen=True)
class Pair:
    """A share before and after; change: None where no test was made."""

    name: str
    old: Rate
    new: Rate
    change: Change | None


@dataclass(frozen=True)
class LayerPair:
    """A layer under one attack; a side is None where that network has no such layer."""

    name: str
    old: LayerRow | None
    new: LayerRow | None
    change: Change | None

    @property
    def most_vulnerable(self) -> str:
        """When the layer is one of the MVL: "before, after", "before", "after" or ""."""
        sides = ("before", self.old), ("after", self.new)
        return ", ".join(word for word, side in sides if side is not None and side.in_mvl)


@dataclass(frozen=True)
class LayerGroup:
    """All layers under one attack."""

    attack: str
    noise: bool
    old: LayerAnalysis
    new: LayerAnalysis
    rows: list[LayerPair]


def accuracies(old: AuditReport, new: AuditReport, changes: Changes) -> list[Pair]:
    """What both reports have of: clean, under each attack, worst case, worst class."""
    pairs = [Pair("clean", old.verdict.clean, new.verdict.clean, changes.get(("accuracy", "clean", None)))]
    for one, other in _outcomes(old, new):
        change = changes.get(("accuracy", "accuracy", one.name))
        pairs.append(Pair(f"under {one.name}", one.robust, other.robust, change))
    if old.verdict.robust is not None and new.verdict.robust is not None:
        change = changes.get(("accuracy", "robust", None))
        pairs.append(Pair("robust, worst case", old.verdict.robust, new.verdict.robust, change))
    if old.verdict.proven is not None and new.verdict.proven is not None:
        change = changes.get(("accuracy", "proven", None))
        pairs.append(Pair("proven", old.verdict.proven, new.verdict.proven, change))
    before, after = worst_class(old), worst_class(new)
    if before is not None and after is not None:
        pairs.append(Pair("worst class", before, after, None))
    return pairs


def _outcomes(old: AuditReport, new: AuditReport) -> list[tuple[AttackOutcome, AttackOutcome]]:
    """The attacks and noises of both reports."""
    others = {outcome.name: outcome for outcome in new.outcomes}
    return [(outcome, others[outcome.name]) for outcome in old.outcomes if outcome.name in others]


def classes(old: AuditReport, new: AuditReport, changes: Changes) -> list[Pair]:
    """The weakest class after comes first."""
    pairs = [
        Pair(row.name, one.robust, row.robust, changes.get(("class", f"class {row.name}", None)))
        for one, row in zip(old.verdict.classes, new.verdict.classes, strict=True)
    ]
    return sorted(pairs, key=lambda pair: (pair.new.value is None, pair.new.value or 0.0))


def layers(old: AuditReport, new: AuditReport, changes: Changes) -> list[LayerGroup]:
    """The layers under each attack and noise of both reports; first those under the strongest attack after."""
    groups = []
    for one, other in _outcomes(old, new):
        if one.layers is None or other.layers is None:
            continue
        before, after = ({row.name: row for row in part.rows} for part in (one.layers, other.layers))
        rows = [
            LayerPair(name, before.get(name), after.get(name), changes.get(("layer", name, one.name)))
            for name in dict.fromkeys([*before, *after])
        ]
        groups.append(LayerGroup(one.name, one.kind == "noise", one.layers, other.layers, rows))
    top = strongest(new)
    return sorted(groups, key=lambda group: (group.noise, top is None or group.attack != top.name))


# ---- tables ------------------------------------------------------------------------------------------------


def share_table(title: str, what: str, pairs: Sequence[Pair]) -> Table:
    """Shares before and after. what: the title of the first column, such as "class"."""
    columns = (
        Column(what, "name"), Column("before", "number"), Column("before, 95% interval", detail=True),
        Column("after", "number"), Column("after, 95% interval", detail=True), Column("change, points", "number"),
        Column("won", "number", spare=3), Column("lost", "number", spare=2), Column("p", "number", spare=1), Column("detectable, points", "number", spare=4), Column("beyond noise"),
    )  # fmt: skip
    return Table(title, columns, tuple(_shares(pair) for pair in pairs))


def _shares(pair: Pair) -> tuple[Cell, ...]:
    old, new, change = pair.old, pair.new, pair.change
    gap = "-" if old.value is None or new.value is None else f"{100 * (new.value - old.value):+.1f}"
    result: Cell = "not tested"
    if change is not None:
        better = change.new > change.old
        result = Mark("better" if better else "worse", "good" if better else "bad")
    if change is not None and not change.beyond_noise:
        result = "within noise"
    counts = [None, None] if change is None else [change.won, change.lost]
    least = "-" if change is None or change.detectable is None else f"{100 * change.detectable:.1f}"
    return (
        pair.name, percent(old.value), interval(old), percent(new.value), interval(new), gap,
        *("-" if count is None else str(count) for count in counts), _p(change), least, result,
    )  # fmt: skip


def layer_table(group: LayerGroup) -> Table:
    """The mean of each layer before and after; the change is that of the means above the noise floor."""
    columns = (
        Column("layer", "name"), Column("before", "number"), Column("before, 95% interval", detail=True),
        Column("after", "number"), Column("after, 95% interval", detail=True), Column("change", "number"),
        Column("p", "number", spare=1), Column("beyond noise"), Column("most vulnerable"),
    )  # fmt: skip
    marked = frozenset(i for i, row in enumerate(group.rows) if row.new is not None and row.new.in_mvl)
    return Table(f"Layers under {group.attack}", columns, tuple(_means(row) for row in group.rows), marked=marked)


def _means(row: LayerPair) -> tuple[Cell, ...]:
    sides: list[str] = []
    for side in (row.old, row.new):
        sides += ["-", ""] if side is None else [number(side.mean), span(side.low, side.high)]
    change, result = row.change, "not tested"
    if change is not None:
        result = "moves more" if change.new > change.old else "moves less"
        result = result if change.beyond_noise else "within noise"
    gap = "-" if change is None else f"{change.new - change.old:+.3f}"
    return row.name, *sides, gap, _p(change), result, row.most_vulnerable


def _p(change: Change | None) -> str:
    return p_value(None if change is None else change.p)
