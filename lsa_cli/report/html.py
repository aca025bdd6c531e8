"""The report as one self-contained page: the verdict first, plots, tables that sort, nothing fetched from anywhere."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lsa_cli.report.charts import Line, bar_chart, heat_map, line_chart
from lsa_cli.report.schema import AttackOutcome, AuditReport, Rate
from lsa_cli.report.tables import draws_text, interval, number, percent, settings_text, strongest, weakest_first

_CLASSES = 30  # more than a reader can compare; the saved report has all
_LAYERS_IN_MAP = 60


def render(report: AuditReport) -> str:
    """The page as text. Every string of the report is treated as hostile."""
    environment = Environment(
        loader=PackageLoader("lsa_cli.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(percent=percent, interval=interval, number=number, settings=settings_text)
    top = strongest(report)
    scanned = [outcome for outcome in report.outcomes if outcome.layers is not None]
    return environment.get_template("report.html").render(
        report=report,
        name=report.subject.checkpoint.replace("\\", "/").rpartition("/")[2],
        top=top,
        facts=_facts(report),
        scanned=sorted(scanned, key=lambda outcome: outcome is not top),
        classes=weakest_first(report.verdict.classes),
        shown_classes=_CLASSES,
        draws=draws_text,
        curve_plot=_curves(report),
        layer_plot=_layer_curves(scanned),
        class_plot=_class_bars(report),
        layer_class_plot=_layer_by_class(report, top),
        confusion_plot=_confusion(report, top),
    )


def _point(rate: Rate) -> tuple[float | None, float | None, float | None]:
    return rate.value, rate.low, rate.high


def _curves(report: AuditReport) -> Markup | None:
    if not report.curves:
        return None
    radii = [f"{point.eps:g}" for point in report.curves[0].points]
    lines = [Line(curve.attack, [_point(point.robust) for point in curve.points]) for curve in report.curves]
    return line_chart("Robust accuracy by radius", radii, lines, "robust accuracy", percent=True)


def _layer_curves(scanned: Sequence[AttackOutcome]) -> Markup | None:
    if not scanned or scanned[0].layers is None:
        return None
    names = [row.name for row in scanned[0].layers.rows]
    lines = [
        Line(outcome.name, [(row.mean, row.low, row.high) for row in outcome.layers.rows])
        for outcome in scanned
        if outcome.layers is not None
    ]
    return line_chart("Mean comparison measure by layer", names, lines, "mean measure")


def _class_bars(report: AuditReport) -> Markup | None:
    rows = weakest_first(report.verdict.classes)[:_CLASSES]
    if not rows:
        return None
    return bar_chart("Accuracy by class", [(row.name, _point(row.clean), _point(row.robust)) for row in rows])


def _shown_classes(report: AuditReport) -> list[int]:
    """The classes that the maps have room for: all in order, or the worst ones."""
    names = report.subject.class_names
    if len(names) <= _CLASSES:
        return list(range(len(names)))
    worst = {row.name for row in weakest_first(report.verdict.classes)[:_CLASSES]}
    return [i for i, name in enumerate(names) if name in worst][:_CLASSES]


def _layer_by_class(report: AuditReport, top: AttackOutcome | None) -> Markup | None:
    if top is None or top.layers is None or top.layers.by_class is None:
        return None
    chosen, names = _shown_classes(report), report.subject.class_names
    rows = top.layers.rows[:_LAYERS_IN_MAP]
    values = [[line[i] for i in chosen] for line in top.layers.by_class[:_LAYERS_IN_MAP]]
    return heat_map(
        f"Mean comparison measure by layer and class under {top.name}",
        [row.name for row in rows], [names[i] for i in chosen], values, 2,
    )  # fmt: skip


def _confusion(report: AuditReport, top: AttackOutcome | None) -> Markup | None:
    if top is None:
        return None
    chosen, names = _shown_classes(report), report.subject.class_names
    shown = [names[i] for i in chosen]
    # The diagonal (samples that held) would outshine everything else.
    values: list[list[float | None]] = [
        [None if i == j else float(top.confusion[i][j]) for j in chosen] for i in chosen
    ]
    return heat_map(f"Where {top.name} sends the samples of each class", shown, shown, values, 0)


def _facts(report: AuditReport) -> list[tuple[str, str]]:
    subject, data, protocol = report.subject, report.data, report.protocol
    bounds = "none" if subject.input_range is None else f"[{subject.input_range[0]:g}, {subject.input_range[1]:g}]"
    normalize = "none" if subject.mean is None else f"mean {subject.mean}, std {subject.std}"
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
            f"{protocol.device}, {protocol.threads} threads, batches of {protocol.batch_size}, seed {protocol.seed}",
        ),
        ("Versions", ", ".join(f"{name} {version}" for name, version in protocol.versions.items())),
        ("Made", f"{report.created} by {report.tool} in {report.seconds:.1f} s"),
    ]
    given = [
        f"{key} = {protocol.settings[key]} ({origin})"
        for key, origin in protocol.settings_from.items()
        if key in protocol.settings
    ]
    if given:
        facts.append(("Settings", "; ".join(given)))
    if subject.notes:
        facts.append(("On reading it", "; ".join(subject.notes)))
    return facts
