"""The report as SARIF 2.1.0, for code-scanning pages. Its results are the problems.

A layer has no source line: it is a logical location, and the physical one is the lsa.yaml with the limit, or the checkpoint.
"""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lsa_cli.report.problems import Problem, fingerprint, place, problems
from lsa_cli.report.schema import AuditReport

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render(report: AuditReport) -> str:
    """SARIF text; validates against the standard's JSON Schema."""
    found = problems(report)
    rules = {problem.rule: problem for problem in found}
    tool, _, version = report.tool.partition(" ")
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": tool,
                "semanticVersion": version,
                "rules": [_rule(problem) for problem in rules.values()],
            }
        },
        "automationDetails": {"id": f"lsa/{report.protocol.threat.norm}/{report.protocol.threat.text}/"},
        "invocations": [{"executionSuccessful": report.status == "complete"}],
        "results": [_result(report, problem, list(rules).index(problem.rule)) for problem in found],
        "columnKind": "unicodeCodePoints",
    }
    content = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _rule(problem: Problem) -> dict[str, Any]:
    return {
        "id": problem.rule,
        "shortDescription": {"text": problem.what()},
        "defaultConfiguration": {"level": problem.level},
        "properties": {"tags": ["robustness", problem.rule.partition("-")[0]]},
    }


def _result(report: AuditReport, problem: Problem, rule: int) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(place(report, problem))},
            "region": {"startLine": 1},
        }
    }
    if problem.kind:
        full = f"{report.subject.architecture}/{problem.about}"
        location["logicalLocations"] = [{"name": problem.about, "fullyQualifiedName": full, "kind": problem.kind}]
    return {
        "ruleId": problem.rule,
        "ruleIndex": rule,
        "level": problem.level,
        "message": {"text": problem.message},
        "locations": [location],
        "partialFingerprints": {"lsa/v1": fingerprint(report, problem)},
    }


def _uri(path: str) -> str:
    return Path(path).as_uri() if Path(path).is_absolute() else quote(path)
