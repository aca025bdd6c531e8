"""Which attack is the strongest, which class the weakest."""

from lsa_cli.report.schema import AttackOutcome, AuditReport, ClassRow


def strongest(report: AuditReport, scanned: bool = False) -> AttackOutcome | None:
    """The budget attack that left the fewest samples robust; the first of equals. scanned: of those that scanned layers."""
    budget = [
        outcome
        for outcome in report.outcomes
        if outcome.kind != "noise" and (not scanned or (outcome.layers is not None and outcome.layers.rows))
    ]
    return min(budget, key=lambda outcome: outcome.robust.count) if budget else None


def weakest_first(rows: list[ClassRow]) -> list[ClassRow]:
    """Classes by robust accuracy, worst first; classes without samples last."""
    return sorted(rows, key=lambda row: (row.robust.value is None, row.robust.value or 0.0))


def weakest_class(report: AuditReport) -> ClassRow | None:
    """None where no class has a robust accuracy in the verdict."""
    return next(iter(weakest_first(report.verdict.classes)), None)
