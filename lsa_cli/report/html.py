"""The report as one self-contained page: the verdict first, plots, tables that sort, nothing fetched from anywhere."""

from lsa_cli.report import answers, view
from lsa_cli.report.facts import facts
from lsa_cli.report.figures import SHOWN_CLASSES, accuracy_bars, charts_of, context_of, radius_curves
from lsa_cli.report.headline import headline_of
from lsa_cli.report.page import page
from lsa_cli.report.ranking import strongest, weakest_first
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.text import file_name

_LAYERS_IN_MAP = 60


def render(report: AuditReport, home: str | None = None) -> str:
    """The page as text. Every string of the report is treated as hostile, and the page's policy runs nothing but its own
    script. home: address of the page of all models, to which this one leads back."""
    top = strongest(report)
    scanned = [outcome for outcome, _ in view.scanned(report)]
    mood, headline = headline_of(report)
    curves = [(curve.attack, curve) for curve in report.curves]
    return page(
        "report.html",
        home=home,
        report=report,
        name=file_name(report.subject.checkpoint),
        sections={
            "verdict": "Verdict",
            "attacks": report.outcomes and "Attacks",
            "layers": scanned and "Layers",
            "classes": report.verdict.classes and "Classes",
            "examples": report.examples and "Examples",
            "facts": "What was audited",
            "reading": "How to read this",
        },
        mood=mood,
        headline=headline,
        robustness=answers.robustness(report),
        belief=answers.belief(report),
        next_step=answers.next_step(report),
        top=top,
        facts=facts(report),
        scanned=sorted(scanned, key=lambda outcome: outcome is not top),
        view=view,
        classes=weakest_first(report.verdict.classes),
        shown_classes=SHOWN_CLASSES,
        charts={
            **charts_of(report, most_layers=_LAYERS_IN_MAP),
            "accuracies": accuracy_bars(report),
            "curve": radius_curves(
                "Robust accuracy by radius", curves, report.protocol.threat.norm, context_of(report, attacked=False)
            ),
        },
    )
