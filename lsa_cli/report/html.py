"""The report as one self-contained page: the verdict first, plots, tables that sort, nothing fetched from anywhere."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from markupsafe import Markup

from lsa_cli.report import view
from lsa_cli.report.charts import Share, bar_chart, heat_map, interval_chart, line_chart
from lsa_cli.report.figures import (
    CLEAN,
    OTHER,
    ROBUST,
    SHOWN_CLASSES,
    class_bars,
    confusion,
    layer_by_class,
    layer_curves,
    point,
    radius_curves,
)
from lsa_cli.report.page import page
from lsa_cli.report.ranking import strongest, weakest_first
from lsa_cli.report.schema import AttackOutcome, AuditReport
from lsa_cli.report.text import draws_text, file_name, listed, number
from lsa_cli.wording import plural, setting_as_text

T = TypeVar("T")
_LAYERS_IN_MAP = 60
_ATTACKS = 8


def render(report: AuditReport) -> str:
    """The page as text. Every string of the report is treated as hostile, and the page's own policy lets nothing run but
    its own script."""
    top = strongest(report)
    scanned = [outcome for outcome in report.outcomes if outcome.layers is not None]
    mood, headline = _headline(report)
    return page(
        "report.html",
        report=report,
        name=file_name(report.subject.checkpoint),
        sections=_sections(report, scanned),
        mood=mood,
        headline=headline,
        top=top,
        facts=_facts(report),
        scanned=sorted(scanned, key=lambda outcome: outcome is not top),
        views=_views(report, top),
        layer_table=partial(_layer_table, report),
        classes=weakest_first(report.verdict.classes),
        shown_classes=SHOWN_CLASSES,
        share_plot=_shares(report),
        draws=draws_text,
        curve_plot=_curves(report),
        layer_plots=_layer_curves(report, scanned),
        class_plot=_drawn(bar_chart, class_bars("Accuracy by class", report)),
        layer_class_plot=_layer_by_class(report, top),
        confusion_plot=_confusion(report, top),
    )


def _views(report: AuditReport, top: AttackOutcome | None) -> dict[str, view.Table | None]:
    """The tables by name; None for what the report does not have."""
    by_class = top.layers if top is not None and top.layers is not None and top.layers.mvl_by_class else None
    attacks = view.attacks(report)
    return {
        "limits": view.limits(report),
        "checks": view.checks(report.evidence) if report.evidence is not None else None,
        "attacks": attacks.without("most vulnerable layers") if attacks is not None else None,
        "cascade": view.cascade(report),
        "metrics": view.metrics(report),
        "pairs": view.pairs(report),
        "vulnerable_by_class": view.vulnerable_by_class(report, by_class) if by_class is not None else None,
        "classes": view.classes(report),
    }


def _layer_table(report: AuditReport, outcome: AttackOutcome) -> view.Table:
    table = view.layers(report, outcome)
    moved = outcome.layers.input_error if outcome.layers is not None else None
    return replace(table, notes=(*table.notes, f"the same measure of the inputs themselves: {number(moved)}"))


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


def _shares(report: AuditReport) -> Markup:
    """Clean, each attack, all of them together, and the worst class, on one scale with the limits on them."""
    limits = {gate.metric: gate.limit for gate in report.gates if gate.direction == "at least"}
    rows = [Share("clean", point(report.verdict.clean), CLEAN, limits.get("clean"))]
    rows += [
        Share(
            outcome.name,
            point(outcome.robust),
            OTHER,
            limits.get(f"robust.{outcome.name}", limits.get(f"robust.{outcome.spec}")),
        )
        for outcome in report.outcomes
        if outcome.kind != "noise"
    ][:_ATTACKS]
    if report.verdict.robust is not None:
        rows.append(Share("robust, worst case", point(report.verdict.robust), ROBUST, limits.get("robust")))
        for row in weakest_first(report.verdict.classes)[:1]:
            limit = limits.get(f"class.{row.name}", limits.get("class.min"))
            rows.append(Share(f"worst class: {row.name}", point(row.robust), ROBUST, limit))
    return interval_chart("Accuracy with 95% intervals; triangles are limits", rows)


def _curves(report: AuditReport) -> Markup | None:
    several = [(curve.attack, curve) for curve in report.curves]
    return _drawn(line_chart, radius_curves("Robust accuracy by radius", several, report.protocol.threat.norm))


def _layer_curves(report: AuditReport, scanned: Sequence[AttackOutcome]) -> list[tuple[str, Markup]]:
    """Attacks and noises apart: noises move all layers much further, and would flatten the attacks' curves."""
    plots = []
    for what, noise in (("Under attacks", False), ("Under noises", True)):
        chosen = [(outcome.name, outcome) for outcome in scanned if (outcome.kind == "noise") == noise]
        title = f"Mean comparison measure by layer, {what.lower()}"
        chart = layer_curves(title, chosen, report.protocol.measure)
        if chart is not None:
            plots.append((what, line_chart(chart)))
    return plots


def _layer_by_class(report: AuditReport, top: AttackOutcome | None) -> Markup | None:
    title = f"Mean comparison measure by layer and class under {top.name}" if top is not None else ""
    return None if top is None else _drawn(heat_map, layer_by_class(title, report, top, _LAYERS_IN_MAP))


def _confusion(report: AuditReport, top: AttackOutcome | None) -> Markup | None:
    title = f"Where {top.name} sends the samples of each class" if top is not None else ""
    return None if top is None else heat_map(confusion(title, report, top))


def _drawn(draw: Callable[[T], Markup], chart: T | None) -> Markup | None:
    return None if chart is None else draw(chart)


def _facts(report: AuditReport) -> list[tuple[str, str]]:
    subject, data, protocol = report.subject, report.data, report.protocol
    bounds = "none" if subject.input_range is None else f"[{subject.input_range[0]:g}, {subject.input_range[1]:g}]"
    normalize = "none" if subject.mean is None else f"mean [{listed(subject.mean)}], std [{listed(subject.std or [])}]"
    facts = [
        ("Checkpoint", subject.checkpoint),
        ("sha256", subject.sha256 or "-"),
        ("Format", f"{subject.format}" + (f", {subject.size:,} bytes" if subject.size is not None else "")),
        ("Architecture", f"{subject.architecture}, {subject.parameters:,} parameters"),
        ("Input", f"{'x'.join(map(str, subject.input_shape))}, range {bounds}, normalisation {normalize}"),
        ("Output", f"{len(subject.class_names)} classes, {subject.output}"),
        ("Data", f"{data.source}" + (f", {data.split}" if data.split else "") + f"; transform: {data.transform}"),
        ("Samples", f"{data.n:,} of {data.available:,} ({data.selection}); fingerprint {data.fingerprint[:16]}"),
        ("Threat model", f"{protocol.threat.norm}, eps {protocol.threat.text} ({protocol.threat.origin})"),
        (
            "Layer scan",
            f"{', '.join(protocol.layers)}; {protocol.measure} per {protocol.aggregate}; eta {protocol.eta:g}, "
            f"sigma over {protocol.sigma}" + (f", top {protocol.top_k}" if protocol.top_k else ""),
        ),
        ("Attacked", protocol.attacked),
        (
            "Run",
            f"{protocol.device}, {plural(protocol.threads, 'thread')}, batches of {protocol.batch_size}, seed {protocol.seed}",
        ),
        ("Versions", ", ".join(f"{name} {version}" for name, version in protocol.versions.items())),
        ("Made", f"{report.created} by {report.tool} in {report.seconds:.1f} s"),
    ]
    given = [
        f"{key} = {setting_as_text(key, protocol.settings[key])} ({origin})"
        for key, origin in protocol.settings_from.items()
        if key in protocol.settings
    ]
    if given:
        facts.append(("Settings", "; ".join(given)))
    if subject.notes:
        facts.append(("On reading it", "; ".join(subject.notes)))
    return facts
