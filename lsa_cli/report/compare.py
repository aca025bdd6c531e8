"""Two reports side by side: what changed, and whether the intervals allow chance as the reason."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lsa_cli.errors import UsageError
from lsa_cli.report.schema import AuditReport, Rate
from lsa_cli.report.tables import interval, number, percent


def refuse_other_protocol(old: AuditReport, new: AuditReport) -> None:
    """Raises UsageError, naming the first difference, when the two numbers do not mean the same thing."""
    pairs = {
        "norm": (old.protocol.threat.norm, new.protocol.threat.norm),
        "eps": (old.protocol.threat.eps, new.protocol.threat.eps),
        "measure": (old.protocol.measure, new.protocol.measure),
        "aggregate": (old.protocol.aggregate, new.protocol.aggregate),
        "classes": (old.subject.class_names, new.subject.class_names),
        "attacks": (_settings(old), _settings(new)),
        "samples": (old.data.fingerprint, new.data.fingerprint),
    }
    for what, (before, after) in pairs.items():
        if before != after:
            raise UsageError(
                f"the reports cannot be compared: {what} differ ({_short(before)} against {_short(after)}); "
                "audit both with the same settings"
            )


def _settings(report: AuditReport) -> dict[str, object]:
    return {outcome.name: outcome.settings for outcome in report.outcomes}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def print_comparison(old: AuditReport, new: AuditReport, console: Console) -> None:
    """Rates with their intervals, then layers, then lost and new most vulnerable layers.

    A change is marked when the two 95% intervals do not overlap, which is a cautious test.
    """
    refuse_other_protocol(old, new)
    table = Table(title="Accuracy", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "old", "", "new", "", "change", ""):
        table.add_column(title, justify="right" if title else "left")
    rates: list[tuple[str, Rate | None, Rate | None]] = [
        ("clean", old.verdict.clean, new.verdict.clean),
        ("robust, worst case", old.verdict.robust, new.verdict.robust),
    ]
    rates += [(o.name, o.robust, n.robust) for o, n in zip(old.outcomes, new.outcomes, strict=True)]
    rates += [
        (f"class {o.name}", o.robust, n.robust) for o, n in zip(old.verdict.classes, new.verdict.classes, strict=True)
    ]
    for name, before, after in rates:
        if before is None or after is None or before.value is None or after.value is None:
            continue
        change = 100 * (after.value - before.value)
        table.add_row(
            Text(name), percent(before.value), Text(interval(before)), percent(after.value), Text(interval(after)),
            f"{change:+.1f}", "beyond noise" if _apart(before, after) else "",
        )  # fmt: skip
    console.print(table)
    layers = Table(title="Layers (mean measure)", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("attack", "layer", "old", "new", "change", "MVL"):
        layers.add_column(title, overflow="fold")
    for o, n in zip(old.outcomes, new.outcomes, strict=True):
        if o.layers is None or n.layers is None:
            continue
        after_rows = {row.name: row for row in n.layers.rows}
        for row in o.layers.rows:
            other = after_rows.get(row.name)
            if other is None or row.mean is None or other.mean is None:
                continue
            state = {(True, False): "lost", (False, True): "new", (True, True): "both"}.get(
                (row.in_mvl, other.in_mvl), ""
            )
            layers.add_row(
                Text(o.name),
                Text(row.name),
                number(row.mean),
                number(other.mean),
                f"{other.mean - row.mean:+.3f}",
                state,
            )
    console.print(layers)


def _apart(before: Rate, after: Rate) -> bool:
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return False
    return before.high < after.low or after.high < before.low
