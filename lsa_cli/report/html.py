"""The report as one self-contained page: the verdict first, plots, tables that sort, nothing fetched from anywhere."""

from collections.abc import Sequence

from lsa_cli.report import view
from lsa_cli.report.facts import facts
from lsa_cli.report.figures import SHOWN_CLASSES, accuracy_bars, charts_of, radius_curves
from lsa_cli.report.page import page
from lsa_cli.report.ranking import strongest, weakest_first
from lsa_cli.report.schema import AttackOutcome, AuditReport
from lsa_cli.report.text import file_name

_LAYERS_IN_MAP = 60


def render(report: AuditReport) -> str:
    """The page as text. Every string of the report is treated as hostile, and the page's policy runs nothing but its own
    script."""
    top = strongest(report)
    scanned = [outcome for outcome, _ in view.scanned(report)]
    mood, headline = _headline(report)
    curves = [(curve.attack, curve) for curve in report.curves]
    return page(
        "report.html",
        report=report,
        name=file_name(report.subject.checkpoint),
        sections=_sections(report, scanned),
        mood=mood,
        headline=headline,
        top=top,
        facts=facts(report),
        scanned=sorted(scanned, key=lambda outcome: outcome is not top),
        view=view,
        classes=weakest_first(report.verdict.classes),
        shown_classes=SHOWN_CLASSES,
        charts={
            **charts_of(report, most_layers=_LAYERS_IN_MAP),
            "accuracies": accuracy_bars(report),
            "curve": radius_curves("Robust accuracy by radius", curves, report.protocol.threat.norm),
        },
    )


def _headline(report: AuditReport) -> tuple[str, str]:
    """What the limits and the evidence make of the number: good, warn, bad or plain, and the sentence."""
    if report.status != "complete":
        return "warn", "Not complete: no verdict"
    if report.evidence is not None and report.evidence.verdict == "invalid":
        return "bad", "The evidence is invalid: do not quote this number"
    broken = [gate for gate in report.gates if not gate.passed and gate.severity == "error"]
    if broken:
        return "bad", f"{len(broken)} of {len(report.gates)} limits {'does' if len(broken) == 1 else 'do'} not hold"
    if report.evidence is not None and report.evidence.verdict == "doubtful":
        return "warn", "There are reasons to doubt this number"
    if report.evidence is not None and report.evidence.verdict == "quick look":
        return "warn", "This is a quick look: a loose upper bound" + (", which the limits hold" if report.gates else "")
    if any(not gate.passed for gate in report.gates):
        return "warn", "The limits hold, with warnings"
    if report.gates:
        return "good", f"All {len(report.gates)} limits hold" if len(report.gates) > 1 else "The limit holds"
    return "plain", "No limit is set"


def _sections(report: AuditReport, scanned: Sequence[AttackOutcome]) -> list[tuple[str, str]]:
    """The page's parts that this report has: (id, title)."""
    parts = [
        ("verdict", "Verdict", True),
        ("attacks", "Attacks", report.outcomes),
        ("layers", "Layers", scanned),
        ("classes", "Classes", report.verdict.classes),
        ("examples", "Examples", report.examples),
        ("facts", "What was audited", True),
        ("reading", "How to read this", True),
    ]
    return [(name, title) for name, title, there in parts if there]
