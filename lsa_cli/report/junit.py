"""The report as JUnit XML: a test case for each limit and class, and one for the audit itself."""

from collections.abc import Mapping
from xml.etree import ElementTree

from lsa_cli.report.schema import AuditReport, ClassRow, GateResult
from lsa_cli.report.terminal import one_line
from lsa_cli.report.text import file_name, interval, percent


def render(report: AuditReport) -> str:
    """XML that CI servers read. A limit of severity "warning" never fails its case: it says so in system-out."""
    suites = ElementTree.Element("testsuites", name="lsa audit")
    _audit(_suite(suites, "audit", report), report)
    _gates(_suite(suites, "gates", report, 0.0), report)
    _classes(_suite(suites, "classes", report, 0.0), report)
    return _finished(suites, report.seconds)


def render_fleet(reports: Mapping[str, AuditReport], failures: Mapping[str, str]) -> str:
    """XML with a suite for each model: its audit, limits and classes. failures: the reasons, by model."""
    suites = ElementTree.Element("testsuites", name="lsa fleet")
    for name, report in reports.items():
        suite = _suite(suites, name, report)
        for add in (_audit, _gates, _classes):
            add(suite, report)
    for name, reason in failures.items():
        suite = ElementTree.SubElement(suites, "testsuite", name=_xml(f"lsa.{name}"), time="0.000")
        _say(_case(suite, "audit", f"{name} is audited to the end"), "error", reason, "failed")
    return _finished(suites, sum(report.seconds for report in reports.values()))


def _finished(suites: ElementTree.Element, seconds: float) -> str:
    for suite in [suites, *suites]:
        cases = list(suite.iter("testcase"))
        suite.set("tests", str(len(cases)))
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(attribute, str(sum(found.find(tag) is not None for found in cases)))
    suites.set("time", f"{seconds:.3f}")
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _audit(suite: ElementTree.Element, report: AuditReport) -> None:
    case = _case(suite, "audit", f"{file_name(report.subject.checkpoint)} is audited to the end", report.seconds)
    if report.status != "complete":
        _say(case, "error", f"the audit is not complete (status: {report.status})", report.status)
    ElementTree.SubElement(case, "system-out").text = _xml(
        "\n".join([one_line(report), *(f"warning ({w.code}): {w.message}" for w in report.warnings)])
    )


def _gates(suite: ElementTree.Element, report: AuditReport) -> None:
    for gate in report.gates:
        _gate(suite, gate)


def _classes(suite: ElementTree.Element, report: AuditReport) -> None:
    for row in report.verdict.classes:
        _class(suite, row, _limits_on(report, row))


def _suite(
    parent: ElementTree.Element, name: str, report: AuditReport, seconds: float | None = None
) -> ElementTree.Element:  # fmt: skip
    return ElementTree.SubElement(
        parent, "testsuite", name=_xml(f"lsa.{name}"), timestamp=_xml(report.created.partition("+")[0]),
        time=f"{report.seconds if seconds is None else seconds:.3f}",
    )  # fmt: skip


def _case(suite: ElementTree.Element, group: str, name: str, seconds: float = 0.0) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=f"lsa.{group}", name=_xml(name), time=f"{seconds:.3f}"
    )  # fmt: skip


def _say(case: ElementTree.Element, tag: str, message: str, kind: str) -> None:
    element = ElementTree.SubElement(case, tag, message=_xml(message))
    if tag != "skipped":
        element.set("type", kind)
        element.text = _xml(message)


def _gate(suite: ElementTree.Element, gate: GateResult) -> None:
    case = _case(suite, "gate", f"{gate.metric} {gate.direction} {gate.limit:g}")
    if gate.state == "held":
        ElementTree.SubElement(case, "system-out").text = _xml(gate.message)
    elif gate.severity == "error":
        _say(case, "failure", gate.message, gate.state)
    elif gate.state == "undecided":
        _say(case, "skipped", gate.message, gate.state)
    else:
        ElementTree.SubElement(case, "system-out").text = _xml(f"warning: {gate.message}")


def _limits_on(report: AuditReport, row: ClassRow) -> list[GateResult]:
    """The limits that apply to a class: its own, and the one on the worst class."""
    return [gate for gate in report.gates if gate.metric in ("class.min", f"class.{row.name}")]


def _class(suite: ElementTree.Element, row: ClassRow, limits: list[GateResult]) -> None:
    """The case fails by the limit of the class, and by that of class.min if the class is the worst or below the limit itself."""
    case = _case(suite, "class", row.name)
    numbers = (
        f"robust accuracy {percent(row.robust.value)} {interval(row.robust)} (n = {row.robust.n}), "
        f"clean accuracy {percent(row.clean.value)}" + (f", mostly mistaken for {row.target}" if row.target else "")
    )
    if not limits:
        _say(case, "skipped", "no limit on this class", "no limit")
    broken = [
        gate
        for gate in limits
        if not gate.passed
        and gate.severity == "error"
        and (gate.metric != "class.min" or gate.measured is None or _is_below(row, gate, gate.measured))
    ]
    if broken:
        _say(case, "failure", f"{row.name}: {numbers}; {broken[0].message}", "breached")
    ElementTree.SubElement(case, "system-out").text = _xml(numbers)


def _is_below(row: ClassRow, gate: GateResult, worst: float) -> bool:
    value = row.robust.value
    end = row.robust.low if gate.decided_by == "bound" else value
    return value is not None and (value <= worst or (end is not None and end < gate.limit))


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold even as references."""
    return "".join(
        c if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?" for c in text
    )
