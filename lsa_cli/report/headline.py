"""What status, evidence and limits together say of the robust accuracy: the page opens with it, and it colours the badge."""

from typing import Literal

from lsa_cli.report.gate import held_in_words
from lsa_cli.report.schema import AuditReport
from lsa_cli.wording import plural

_NAMED = 5
Mood = Literal["good", "warn", "bad", "plain"]


def headline_of(report: AuditReport) -> tuple[Mood, str]:
    """The mood and the sentence. The size of the robust accuracy plays no part."""
    evidence = "trusted" if report.evidence is None else report.evidence.verdict
    failed = [gate.metric for gate in report.failed_gates]
    if report.status != "complete":
        return "warn", f"No verdict: the audit is {report.status}"
    if evidence == "invalid":
        return "bad", "The evidence is invalid: do not quote this number"
    if failed:
        verb, more = "does" if len(failed) == 1 else "do", ", ..." if len(failed) > _NAMED else ""
        names = ", ".join(failed[:_NAMED]) + more
        return "bad", f"{len(failed)} of {plural(len(report.gates), 'limit')} {verb} not hold: {names}"
    if evidence == "doubtful":
        return "warn", "There are reasons to doubt this number"
    if evidence == "quick look":
        return "warn", "This is a quick look: a loose upper bound" + (", which the limits hold" if report.gates else "")
    if any(not gate.passed for gate in report.gates):
        return "good", "The limits hold, with warnings"
    if report.gates:
        if any(gate.allowed_unmeasured for gate in report.gates):
            return "good", held_in_words(report.gates)
        return "good", "The limit holds" if len(report.gates) == 1 else f"All {len(report.gates)} limits hold"
    return "plain", "No limit is set"
