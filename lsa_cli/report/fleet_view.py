"""A fleet for people and programs: tables, the summary in one line, rows for CSV and Parquet."""

from collections.abc import Iterator

from lsa_cli.report.fleet import Fleet, FleetRow
from lsa_cli.report.gate import decision
from lsa_cli.report.row import Rate
from lsa_cli.report.tables import Rows, spread
from lsa_cli.report.text import interval, p_value, percent
from lsa_cli.report.view import Cell, Column, Mark, Table
from lsa_cli.wording import first_of, plural

_COLUMNS = (
    Column("#", "number"), Column("model", "name"), Column("robust", "number"), Column("95% interval"),
    Column("proven", "number"), Column("clean", "number", spare=2), Column("worst class", "number", spare=3),
    Column("against the best, points", "number", spare=4), Column("p", "number", spare=5),
    Column("ahead of", "number", spare=6), Column("behind", "number", spare=1), Column("audit"), Column("evidence"),
    Column("limits"), Column("audited", detail=True),
)  # fmt: skip
_NAMED_BEST = 5  # groups whose best model is in the last line
_SAID = "ahead of, behind: numbers of models beyond noise, by the exact McNemar test on the same samples; all pairs share 5% (Holm)"


def tables(fleet: Fleet) -> Iterator[Table]:
    """A table for each group, best first, and one for what failed or did not run."""
    groups = dict.fromkeys(row.group for row in fleet.rows if row.group is not None)
    for number in groups:
        yield _group([row for row in fleet.rows if row.group == number])
    rest = [row for row in fleet.rows if row.group is None]
    if rest:
        cells = tuple((row.model, Mark(row.state, "bad"), row.reason) for row in rest)
        yield Table("Without a report", (Column("model", "name"), Column("state"), Column("reason", "prose")), cells)


def _group(rows: list[FleetRow]) -> Table:
    notes = []
    leaders = [row.model for row in rows if row.behind == 0]
    if len(leaders) > 1:
        notes.append(f"no model is ahead of these beyond noise: {first_of(leaders, 10)}")
    elif leaders and len(rows) > 1:
        notes.append(f"ahead of every other model beyond noise: {leaders[0]}" if _leads(rows) else "")
    if any(row.audit == "quick" for row in rows):
        notes.append(
            "quick: the number is a loose upper bound, and a full audit was not needed to see that the model is not the best one or breaches a limit"
        )
    cells = tuple(_cells(place, row) for place, row in enumerate(rows, start=1))
    table = Table(f"Models, best first: {rows[0].protocol}", _COLUMNS, cells, notes=(*filter(None, notes), _SAID))
    empty = [column.title for column, *found in zip(_COLUMNS, *cells, strict=True) if set(found) <= {"", "-"}]
    return table.without(*empty)


def _leads(rows: list[FleetRow]) -> bool:
    tested = [row for row in rows if row.behind is not None]
    return tested[0].ahead_of == len(tested) - 1


def _cells(place: int, row: FleetRow) -> tuple[Cell, ...]:
    evidence: Cell = row.evidence or "-"
    if row.evidence in ("doubtful", "invalid"):
        evidence = Mark(row.evidence, "bad" if row.evidence == "invalid" else "warn")
    limits: Cell = "-" if not row.gates else Mark("hold", "good")
    if row.is_breached:
        limits = Mark(decision(row.gates).partition(":")[0], "bad")
    worst = "-" if row.worst is None else f"{percent(row.worst.value)} ({row.worst_class})"
    best = row.best
    return (
        str(place), row.model, "-" if row.robust is None else percent(row.robust.value),
        "" if row.robust is None else interval(row.robust), "-" if row.proven is None else percent(row.proven.value),
        "-" if row.clean is None else percent(row.clean.value), worst,
        "-" if best is None else f"{100 * best.points:+.1f}", p_value(None if best is None else best.p),
        "-" if row.ahead_of is None else str(row.ahead_of), "-" if row.behind is None else str(row.behind), row.audit or "",
        evidence, limits,
        (row.created or "")[:10],
    )  # fmt: skip


def one_line(fleet: Fleet) -> str:
    """How many models there are, the best one of each group, and what failed."""
    audited = [row for row in fleet.rows if row.state == "audited"]
    others = len(fleet.rows) - len(audited) - len(fleet.failed)
    line = f"{plural(len(audited), 'model')} audited"
    line += f", {len(fleet.failed)} failed" if fleet.failed else ""
    line += f", {others} not run" if others else ""
    best = _best_of_groups([row for row in audited if row.audit != "quick"])
    for row in best[:_NAMED_BEST]:
        assert row.robust is not None
        where = f" in table {(row.group or 0) + 1} ({row.protocol})" if len(best) > 1 else ""
        line += f"; best{where}: {row.model}, robust accuracy {percent(row.robust.value)} {interval(row.robust)}"
        line += ", evidence doubtful" if row.evidence == "doubtful" else ""
    line += f"; {plural(len(best) - _NAMED_BEST, 'more table')}" if len(best) > _NAMED_BEST else ""
    limited = [row for row in audited if row.gates]
    if fleet.breached:
        line += f"; limits do not hold for {plural(len(fleet.breached), 'model')}"
    elif limited:
        line += "; limits hold" + (f" for {plural(len(limited), 'model')}" if len(limited) < len(audited) else "")
    return line


def _best_of_groups(audited: list[FleetRow]) -> list[FleetRow]:
    """The best model of each group of the same protocol and samples, where it was tested."""
    best: dict[int | None, FleetRow] = {}
    for row in audited:
        if row.behind is not None and row.robust is not None:
            best.setdefault(row.group, row)
    return list(best.values())


def rows(fleet: Fleet) -> Rows:
    """A row for each model, of plain values."""
    found: Rows = []
    for place, row in enumerate(fleet.rows, start=1):
        plain = row.model_dump(exclude={"clean", "robust", "proven", "worst", "gates", "best"})
        for name in ("robust", "clean", "proven", "worst"):
            plain |= spread(name, getattr(row, name) or Rate(count=0, n=0, value=None, low=None, high=None))
        best = {} if row.best is None else row.best.model_dump()
        keys = ("model", "points", "won", "lost", "p", "beyond_noise")
        plain |= {f"best_{key}": best.get(key) for key in keys}
        breached = [gate.metric for gate in row.gates if not gate.passed and gate.severity == "error"]
        found.append({"place": place, **plain, "limits": len(row.gates), "not_held": ", ".join(breached)})
    return found
