"""Triage: which models of a fleet need a full audit, once quick audits of all are done.

A quick robust accuracy is an upper bound of the full one: stronger attacks can only find it lower.
"""

from collections.abc import Mapping

from lsa_cli.report.fleet import comparable
from lsa_cli.report.schema import AuditReport


def needs_full(quick: Mapping[str, AuditReport], full: Mapping[str, AuditReport]) -> list[str]:
    """The models without a full report, one of whose limits a full audit can still decide, or that can still be the best one.

    A model fails for certain if one limit is breached already. It can be the best one of its data set and threat model if the upper
    end of its quick interval reaches the lower end of the best one, whose full numbers count where it has them.
    Models whose evidence is invalid are none of the best. quick, full: complete reports with their limits, by model.
    """
    chosen: set[str] = set()
    for models in comparable(quick):
        for name in models:
            errors = [gate for gate in quick[name].gates if gate.severity == "error"]
            if errors and not any(gate.state == "breached" for gate in errors):
                chosen.add(name)
        ends = {name: ends for name in models if (ends := _interval(full.get(name, quick[name]))) is not None}
        if ends:
            least = max(ends.values())[1]
            chosen |= {name for name, (_, _, high) in ends.items() if high >= least}
    return [name for name in quick if name in chosen and name not in full]


def _interval(report: AuditReport) -> tuple[float, float, float] | None:
    """The robust accuracy with the ends of its interval; None where it says nothing."""
    robust = report.verdict.robust
    if robust is None or robust.value is None or (report.evidence is not None and report.evidence.verdict == "invalid"):
        return None
    low, high = (robust.value if end is None else end for end in (robust.low, robust.high))
    return robust.value, low, high
