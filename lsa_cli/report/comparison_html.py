"""A comparison as one page: what changed beyond noise first, then every number before and after, with its interval."""

from collections.abc import Sequence
from dataclasses import replace

from lsa_cli.report import pairs
from lsa_cli.report.compare import Comparison
from lsa_cli.report.facts import facts
from lsa_cli.report.figures import (
    NO_POINT,
    SHOWN_CLASSES,
    Bar,
    BarChart,
    BarGroup,
    Line,
    LineChart,
    context_of,
    point,
    radius_curves,
)
from lsa_cli.report.page import page
from lsa_cli.report.pairs import Changes, LayerGroup, Pair
from lsa_cli.report.ranking import weakest_class
from lsa_cli.report.schema import AuditReport, Curve
from lsa_cli.report.sequential import in_words
from lsa_cli.report.text import file_name, settings_text

_NAMED = 3  # regressions in the sentence that the page opens with; the tables have all
_BARS = Bar("before", 0), Bar("after", 1)


def render(old: AuditReport, new: AuditReport, found: Comparison) -> str:
    """The page as text. found: compare(old, new). Strings of both reports are treated as hostile."""
    changes = pairs.by_name(found)
    accuracies, classes = pairs.accuracies(old, new, changes), pairs.classes(old, new, changes)
    layers, measured = pairs.layers(old, new, changes), _curves(old, new)
    curves = {attack: pair for attack, pair in measured.items() if _has_same_radii(pair)}
    worst = [weakest_class(report) for report in (old, new)]
    mood, headline = _headline(found, changes)
    top = next((group for group in layers if not group.noise), None)
    return page(
        "compare.html",
        old=old,
        new=new,
        found=found,
        old_name=file_name(old.subject.checkpoint),
        new_name=file_name(new.subject.checkpoint),
        sections={
            "verdict": "What changed",
            "accuracies": "Accuracies",
            "curve": curves and "Radius",
            "layers": layers and "Layers",
            "classes": classes and "Classes",
            "facts": "What was compared",
            "reading": "How to read this",
        },
        mood=mood,
        headline=headline,
        beyond=sorted(
            (change for change in found.changes if change.beyond_noise and change.table != "layer"),
            key=lambda change: change.new > change.old,
        ),
        accuracies=accuracies,
        worst=worst,
        accuracy_table=pairs.share_table("Accuracies", "accuracy", accuracies),
        class_table=pairs.share_table("Classes", "class", classes),
        layer_table=pairs.layer_table,
        classes=classes,
        shown_classes=SHOWN_CLASSES,
        top=top,
        layers=layers,
        curves=curves,
        charts={
            "accuracies": _bar_chart("Accuracy before and after", accuracies, context_of(new)),
            "classes": _bar_chart(
                "Robust accuracy by class, before and after", classes[:SHOWN_CLASSES], context_of(new), are_classes=True
            ),
            "layers": _layer_curves(top, new) if top is not None else None,
            "curve": _radius_curves(curves, new),
        },
        other_radii=[attack for attack in measured if attack not in curves],
        facts=_facts(old, new),
        sequential=in_words(found.sequential) if found.sequential else [],
    )


def _headline(found: Comparison, changes: Changes) -> tuple[str, str]:
    """good, bad or plain, and the sentence that the page opens with."""
    main = changes.get(("accuracy", "robust", None)) or changes.get(("accuracy", "clean", None))
    first = "Nothing was measured in both"
    if main is not None:
        moved = ("rose" if main.new > main.old else "fell") if main.beyond_noise else "did not change"
        first = f"{'Robust' if main.name == 'robust' else 'Clean'} accuracy {moved} beyond noise"
    if found.regressions:
        others = [name for name in found.regressions if main is None or name != main.label]
        more = [f"and {len(others) - _NAMED} more"] if len(others) > _NAMED else []
        also = "Worse" if len(others) == len(found.regressions) else "Worse, too"
        return "bad", f"{first}. {also}: {', '.join([*others[:_NAMED], *more])}" if others else first
    rose = any(change.beyond_noise and change.table != "layer" for change in found.changes)
    return "good" if rose else "plain", f"{first}. No accuracy fell beyond noise"


def _curves(old: AuditReport, new: AuditReport) -> dict[str, tuple[Curve, Curve]]:
    """Both curves of each attack that was measured in both."""
    after = {curve.attack: curve for curve in new.curves}
    return {curve.attack: (curve, after[curve.attack]) for curve in old.curves if curve.attack in after}


def _has_same_radii(pair: tuple[Curve, Curve]) -> bool:
    """Whether the two scores can be compared: each is a sum over its radii."""
    return [at.eps for at in pair[0].points] == [at.eps for at in pair[1].points]


# ---- plots ---------------------------------------------------------------------------------------------


def _bar_chart(title: str, several: Sequence[Pair], context: str, are_classes: bool = False) -> BarChart:
    groups = [BarGroup(pair.name, (point(pair.old), point(pair.new)), is_foreign=are_classes) for pair in several]
    return BarChart(title, _BARS, groups, context)


def _radius_curves(curves: dict[str, tuple[Curve, Curve]], new: AuditReport) -> LineChart | None:
    """Two lines for each attack, in the colours of before and after."""
    named = [
        (f"{attack}, {bar.name}", curve)
        for attack, pair in curves.items()
        for bar, curve in zip(_BARS, pair, strict=True)
    ]
    chart = radius_curves(
        "Robust accuracy by radius, before and after", named, new.protocol.threat.norm, context_of(new, attacked=False)
    )
    if chart is None:
        return None
    lines = [replace(line, colour=_BARS[number % 2].colour) for number, line in enumerate(chart.lines)]
    return replace(chart, lines=lines)


def _layer_curves(group: LayerGroup, new: AuditReport) -> LineChart:
    lines = []
    for name, rows in (("before", [row.old for row in group.rows]), ("after", [row.new for row in group.rows])):
        points = [NO_POINT if row is None else (row.mean, row.low, row.high) for row in rows]
        lines.append(Line(name, points, frozenset(i for i, row in enumerate(rows) if row is not None and row.in_mvl)))
    title = f"Mean comparison measure by layer under {group.attack}, before and after"
    return LineChart(
        title,
        [row.name for row in group.rows],
        lines,
        f"mean {new.protocol.measure}",
        context=context_of(new, attacked=not group.noise),
    )


# ---- facts ---------------------------------------------------------------------------------------------


def _facts(old: AuditReport, new: AuditReport) -> list[tuple[str, str, str]]:
    before, after = ({fact.name: fact.text for fact in facts(report)} for report in (old, new))
    rows = [(name, before.get(name, ""), after.get(name, "")) for name in dict.fromkeys([*before, *after])]
    for one, other in zip(old.outcomes, new.outcomes, strict=True):
        rows.append((f"settings of {one.name}", settings_text(one.settings), settings_text(other.settings)))
    made = new.subject.history[-1] if new.subject.history else {}
    if old.subject.sha256 is not None and made.get("parent_sha256") == old.subject.sha256:
        shown = {key: made.get(key) for key in ("method", "base", "epochs", "seed")}
        layers = made.get("layers")
        parts = [settings_text({key: value for key, value in shown.items() if value is not None})]
        parts += [f"layers {', '.join(map(str, layers))}"] if isinstance(layers, list) and layers else []
        rows.append(("hardened by", "", ", ".join(parts)))
    return rows
