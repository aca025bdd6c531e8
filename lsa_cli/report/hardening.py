"""Before and after a hardening, side by side: what was bought, what it cost, and where it did not help."""

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from lsa_cli.report.compare import Comparison
from lsa_cli.report.measurement import worst_class
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import AuditReport, ClassSummary, Curve
from lsa_cli.report.terminal import print_table
from lsa_cli.report.text import interval, number, percent
from lsa_cli.report.view import Cell, Column, Table
from lsa_cli.wording import eps_as_text

_Tested = str | tuple[str, str]  # a rate by its name in the table, or (attack, layer)


def _rates(report: AuditReport) -> dict[str, Rate]:
    found = {"clean": report.verdict.clean}
    found |= {f"robust, {outcome.name}": outcome.robust for outcome in report.outcomes if outcome.kind != "noise"}
    if report.verdict.robust is not None:
        found["robust, worst case"] = report.verdict.robust
    worst = worst_class(report)
    if worst is not None:
        found["robust, worst class"] = worst
    return found


def _scores(report: AuditReport) -> dict[str, Curve]:
    return {curve.attack: curve for curve in report.curves}


def print_hardening(
    before: AuditReport, after: AuditReport, found: Comparison | None, regularized: tuple[str, ...], console: Console
) -> None:
    """Rates with their intervals, R&G scores, layers; then a plain sentence for everything that got worse.

    found: their comparison, whose changes beyond noise get a star; None where they cannot be compared.
    """
    tested = _tested(found)
    print_table(_rate_table(before, after, tested), console)
    print_table(_layer_table(before, after, tested, regularized), console)
    if found is not None:
        star = "* beyond noise" if any(tested.values()) else "no change is beyond noise"
        console.print(Text(f"{star}; scores, NSD, rho and the worst class are not tested"))
    for line in worse(before, after, regularized, tested):
        console.print(Text(line, style="yellow"))


def _rate_table(before: AuditReport, after: AuditReport, tested: Mapping[_Tested, bool]) -> Table:
    old, new = _rates(before), _rates(after)
    rows: list[tuple[Cell, ...]] = []
    for name in (name for name in old if name in new):
        a, b = old[name], new[name]
        change = "" if a.value is None or b.value is None else f"{100 * (b.value - a.value):+.1f}"
        star = "*" if change and tested.get(name) else ""
        rows.append((name, percent(a.value), interval(a), percent(b.value), interval(b), star + change))
    rows += _fairness(before, after)
    for attack, curve in _scores(before).items():
        other = _scores(after).get(attack)
        if other is not None:
            radii = ", ".join(eps_as_text(point.eps) for point in curve.points)
            gap = f"{other.score - curve.score:+.1f}"
            rows.append((f"R&G score, {attack}", f"{curve.score:.1f}", "", f"{other.score:.1f}", f"eps {radii}", gap))
    columns = (
        Column("", "name"), Column("before", "number"), Column(""), Column("after", "number"), Column(""),
        Column("change", "number"),
    )  # fmt: skip
    return Table("Before and after", columns, tuple(rows))


def _tested(found: Comparison | None) -> dict[_Tested, bool]:
    """Whether each change that was tested is beyond noise."""
    names: dict[_Tested, bool] = {}
    for change in found.changes if found is not None else []:
        if change.table == "layer" and change.attack is not None:
            names[change.attack, change.name] = change.beyond_noise
        elif change.table == "accuracy" and change.attack is not None:
            names[f"robust, {change.attack}"] = change.beyond_noise
        elif change.table == "accuracy":
            names["clean" if change.name == "clean" else "robust, worst case"] = change.beyond_noise
    return names


def rho(before: ClassSummary, after: ClassSummary) -> float | None:
    """(W - W0) / W0 + (A - A0) / A0: relative gain of the worst class plus that of the mean over classes (WAT, arXiv
    2302.04025). None where either began at nothing."""
    if not before.worst or not before.mean or after.worst is None or after.mean is None:
        return None
    return (after.worst - before.worst) / before.worst + (after.mean - before.mean) / before.mean


def _fairness(before: AuditReport, after: AuditReport) -> list[tuple[Cell, ...]]:
    """How unlike the classes are in the worst case over the attacks, and what the worst class and the mean gained."""
    old, new = before.verdict.class_summary, after.verdict.class_summary
    if old is None or new is None:
        return []
    change = "" if old.nsd is None or new.nsd is None else f"{new.nsd - old.nsd:+.3f}"
    gained = rho(old, new)
    return [
        ("NSD of classes", number(old.nsd), "sd / mean", number(new.nsd), "", change),
        ("rho", "", "", "", "worst + mean, relative", "-" if gained is None else f"{gained:+.3f}"),
    ]


def _layer_table(
    before: AuditReport, after: AuditReport, tested: Mapping[_Tested, bool], regularized: tuple[str, ...]
) -> Table:
    floors = [row.noise_floor for o in after.outcomes if o.layers is not None for row in o.layers.rows]
    less = " above what the network's noise moves" if any(floor is not None for floor in floors) else ""
    rows: list[tuple[Cell, ...]] = []
    for attack, layer, a, b, state in _layers(before, after):
        gap = f"{'*' if tested.get((attack, layer)) else ''}{b - a:+.3f}"
        rows.append((attack, layer, number(a), number(b), gap, state, "yes" if layer in regularized else ""))
    columns = (
        Column("attack", "name"), Column("layer", "name"), Column("before", "number"), Column("after", "number"),
        Column("change", "number"), Column("most vulnerable"), Column("regularized"),
    )  # fmt: skip
    return Table("Layers", columns, tuple(rows), f"{before.protocol.measure}, mean{less}")


def _layers(before: AuditReport, after: AuditReport) -> list[tuple[str, str, float, float, str]]:
    rows = []
    others = {outcome.name: outcome for outcome in after.outcomes}
    for outcome in before.outcomes:
        other = others.get(outcome.name)
        if outcome.layers is None or other is None or other.layers is None:
            continue
        later = {row.name: row for row in other.layers.rows}
        for row in outcome.layers.rows:
            new = later.get(row.name)
            if new is not None and row.above_floor is not None and new.above_floor is not None:
                state = {(True, True): "before, after", (True, False): "before", (False, True): "after"}.get(
                    (row.in_mvl, new.in_mvl), ""
                )
                rows.append((outcome.name, row.name, row.above_floor, new.above_floor, state))
    return rows


def worse(
    before: AuditReport, after: AuditReport, regularized: tuple[str, ...], tested: Mapping[_Tested, bool]
) -> list[str]:
    """Where it did not help, in sentences."""
    noise = {True: ", beyond noise", False: ", within noise", None: ""}
    lines = []
    old, new = _rates(before), _rates(after)
    for name in old:
        a, b = old[name].value, new[name].value if name in new else None
        if a is not None and b is not None and b < a:
            lines.append(f"worse: {name} fell from {percent(a)} to {percent(b)}{noise[tested.get(name)]}")
        elif a is not None and b == a and name != "clean":
            lines.append(f"no help: {name} stays at {percent(a)}")
    for attack, layer, a, b, _ in _layers(before, after):
        if layer in regularized and b >= a:
            lines.append(
                f"no help: {layer}, which was regularized, moves no less under {attack} ({a:.3f} before, {b:.3f} after)"
            )
    return lines


def one_line(before: AuditReport, after: AuditReport) -> str:
    """The result in one line, for --quiet and logs."""
    old, new = _rates(before), _rates(after)
    name = "robust, worst case" if "robust, worst case" in new else "clean"
    return (
        f"{after.subject.checkpoint}: {name} {percent(old[name].value)} -> {percent(new[name].value)} "
        f"{interval(new[name])} (n={new[name].n}, upper bound), clean {percent(old['clean'].value)} -> "
        f"{percent(new['clean'].value)}"
    )
