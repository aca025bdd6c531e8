"""The report as a GitLab code-quality artifact: the problems of a merge request, without the notes."""

import json

from lsa_cli.report.problems import Problem, fingerprint, place, problems
from lsa_cli.report.schema import AuditReport


def render(report: AuditReport) -> str:
    """A JSON list of issues; empty if there are no problems."""
    issues = [
        {
            "description": problem.message,
            "check_name": problem.rule,
            "fingerprint": fingerprint(report, problem),
            "severity": _severity(problem),
            "location": {"path": place(report, problem), "lines": {"begin": 1}},
        }
        for problem in problems(report)
        if problem.level != "note"
    ]
    return json.dumps(issues, indent=1, ensure_ascii=False) + "\n"


def _severity(problem: Problem) -> str:
    if problem.level == "warning":
        return "minor"
    return "blocker" if problem.rule.startswith("evidence-") else "critical"
