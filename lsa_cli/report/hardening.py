"""A hardening on a terminal: the numbers before and after side by side, and a sentence for each that got worse."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from lsa_cli.report import pairs
from lsa_cli.report.compare import Comparison
from lsa_cli.report.curves import expected_robustness
from lsa_cli.report.pairs import LayerGroup, Pair
from lsa_cli.report.schema import AuditReport, ClassSummary, Curve
from lsa_cli.report.terminal import print_tables
from lsa_cli.report.text import evidence_text, has_several_classes, interval, number, percent
from lsa_cli.report.view import Cell, Column, Table
from lsa_cli.wording import eps_as_text, plural


def print_hardening(
    before: AuditReport, after: AuditReport, found: Comparison | None, regularized: tuple[str, ...], console: Console
) -> None:
    """found: their comparison, whose changes beyond noise get a star; None if they cannot be compared."""
    changes = {} if found is None else pairs.by_name(found)
    rates, groups = pairs.accuracies(before, after, changes), pairs.layers(before, after, changes)
    tables = _rate_table(before, after, rates), _layer_table(after, groups, regularized)
    print_tables([table for table in tables if table is not None], console)
    if found is not None:
        is_any = any(change.beyond_noise for key, change in changes.items() if key[0] != "class")
        star = "* beyond noise" if is_any else "no change is beyond noise"
        console.print(Text(f"{star}; scores, NSD, rho and the worst class are not tested"))
        if found.detectable is not None:
            console.print(Text(found.detectable))
    for line in _evidence(before, after):
        console.print(Text(line, style="yellow"))
    for line in _worse(rates, groups, regularized):
        console.print(Text(line, style="yellow"))


def _star(row: Pair | pairs.LayerPair) -> str:
    return "*" if row.change is not None and row.change.beyond_noise else ""


def _rate_table(before: AuditReport, after: AuditReport, rates: Sequence[Pair]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for pair in rates:
        a, b = pair.old, pair.new
        change = "" if a.value is None or b.value is None else f"{_star(pair)}{100 * (b.value - a.value):+.1f}"
        rows.append((pair.name, percent(a.value), interval(a), percent(b.value), interval(b), change))
    rows += _fairness(before, after)
    for old in before.curves:
        new = next((curve for curve in after.curves if curve.attack == old.attack), None)
        if new is not None:
            rows += _curve_rows(old, new, float(after.protocol.threat.eps))
    columns = (
        Column("", "name"), Column("before", "number"), Column(""), Column("after", "number"), Column(""),
        Column("change", "number"),
    )  # fmt: skip
    return Table("Before and after", columns, tuple(rows))


def _curve_rows(old: Curve, new: Curve, eps: float) -> list[tuple[Cell, ...]]:
    """The R&G score and, where the radii of the curve allow it, the expected robustness."""
    radii = ", ".join(eps_as_text(point.eps) for point in new.points)
    change = f"{new.score - old.score:+.1f}"
    rows: list[tuple[Cell, ...]] = [
        (f"R&G score, {old.attack}", f"{old.score:.1f}", "", f"{new.score:.1f}", f"eps {radii}", change)
    ]
    a, b = expected_robustness(old, eps), expected_robustness(new, eps)
    if a is not None and b is not None:
        up_to = f"eps 0 to {eps_as_text(eps)}"
        rows.append(
            (f"expected robustness, {old.attack}", percent(a), "", percent(b), up_to, f"{100 * (b - a):+.1f}")
        )  # fmt: skip
    return rows


def rho(before: ClassSummary, after: ClassSummary) -> float | None:
    """(W - W0) / W0 + (A - A0) / A0: relative gain of the worst class plus that of the mean over classes (WAT, arXiv
    2302.04025). None where either began at nothing."""
    if not before.worst or not before.mean or after.worst is None or after.mean is None:
        return None
    return (after.worst - before.worst) / before.worst + (after.mean - before.mean) / before.mean


def _fairness(before: AuditReport, after: AuditReport) -> list[tuple[Cell, ...]]:
    """How unlike the classes are in the worst case over the attacks, and what the worst class and the mean gained."""
    old, new = before.verdict.class_summary, after.verdict.class_summary
    if old is None or new is None or not (has_several_classes(before.verdict) and has_several_classes(after.verdict)):
        return []
    rows: list[tuple[Cell, ...]] = []
    if old.nsd is not None and new.nsd is not None:
        change = f"{new.nsd - old.nsd:+.3f}"
        rows.append(("NSD of classes", number(old.nsd), "sd / mean", number(new.nsd), "", change))
    gained = rho(old, new)
    if gained is not None:
        rows.append(("rho", "", "", "", "worst + mean", f"{gained:+.3f}"))
    return rows


def _layer_table(after: AuditReport, groups: Sequence[LayerGroup], regularized: tuple[str, ...]) -> Table:
    floors = [row.noise_floor for group in groups for row in group.new.rows]
    less = " above what the network's noise moves" if any(floor is not None for floor in floors) else ""
    rows: list[tuple[Cell, ...]] = []
    for group in groups:
        for row, a, b in _measured(group):
            held = "yes" if row.name in regularized else ""
            gap = f"{_star(row)}{b - a:+.3f}"
            rows.append((group.attack, row.name, number(a), number(b), gap, row.most_vulnerable, held))
    columns = (
        Column("attack", "name"), Column("layer", "name"), Column("before", "number"), Column("after", "number"),
        Column("change", "number"), Column("most vulnerable"), Column("regularized"),
    )  # fmt: skip
    return Table("Layers", columns, tuple(rows), f"{after.protocol.measure}, mean{less}")


def _measured(group: LayerGroup) -> Iterator[tuple[pairs.LayerPair, float, float]]:
    """The layers that have a mean in both reports, with both."""
    for row in group.rows:
        a, b = (None if side is None else side.above_floor for side in (row.old, row.new))
        if a is not None and b is not None:
            yield row, a, b


def _evidence(before: AuditReport, after: AuditReport) -> Iterator[str]:
    """The evidence of both audits, with each finding; nothing where both are trusted, or neither has any."""
    if not _is_doubted(before, after):
        return
    yield f"evidence: {_change_of_evidence(before, after)}"
    for when, report in (("before", before), ("after", after)):
        for finding in report.evidence.findings if report.evidence is not None else ():
            yield f"  {when}: {finding.code}: {finding.message}; {finding.advice}"


def _is_doubted(*reports: AuditReport) -> bool:
    return any(report.evidence is not None and report.evidence.verdict != "trusted" for report in reports)


def _change_of_evidence(before: AuditReport, after: AuditReport) -> str:
    """ "trusted -> doubtful (stronger-attack-wins)"."""
    return " -> ".join(
        "none" if report.evidence is None else evidence_text(report.evidence) for report in (before, after)
    )


def _worse(rates: Sequence[Pair], groups: Sequence[LayerGroup], regularized: tuple[str, ...]) -> Iterator[str]:
    for pair in rates:
        a, b = pair.old.value, pair.new.value
        tested = "" if pair.change is None else f", {'beyond' if pair.change.beyond_noise else 'within'} noise"
        name = f"accuracy {pair.name}" if pair.name.startswith("under ") else pair.name
        if a is not None and b is not None and b < a:
            yield f"worse: {name} fell from {percent(a)} to {percent(b)}{tested}"
        elif a is not None and b == a and pair.name != "clean":
            yield f"no help: {name} stays at {percent(a)}"
    for group in groups:
        for row, a, b in _measured(group):
            if row.name in regularized and b >= a:
                yield (
                    f"no help: {row.name}, which was regularized, does not move less under {group.attack} "
                    f"({a:.3f} before, {b:.3f} after)"
                )


def less_robust(before: AuditReport, found: Comparison) -> str | None:
    """The warning that the robust accuracy, worst case over the attacks, fell beyond noise; None where it did not."""
    change = pairs.by_name(found).get(("accuracy", "robust", None))
    if change is None or not change.beyond_noise or change.new >= change.old:
        return None
    return (
        f"the hardened network is less robust than before: {percent(change.new)} against {percent(change.old)} of the same "
        f"{plural(change.n or before.data.n, 'sample')}; keep {before.subject.checkpoint}, or give a larger --budget or --epochs"
    )


def one_line(before: AuditReport, after: AuditReport) -> str:
    """The result in one line, for --quiet and logs."""
    old, new = before.verdict, after.verdict
    name, a, b = "clean", old.clean, new.clean
    if old.robust is not None and new.robust is not None:
        name, a, b = "robust, worst case", old.robust, new.robust
    doubts = f", evidence {_change_of_evidence(before, after)}" if _is_doubted(before, after) else ""
    return (
        f"{after.subject.checkpoint}: {name} {percent(a.value)} -> {percent(b.value)} {interval(b)} (n={b.n}, upper bound), "
        f"clean {percent(old.clean.value)} -> {percent(new.clean.value)}{doubts}"
    )
