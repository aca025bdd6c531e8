"""A comparison on a terminal: what changed beyond noise first, then every number before and after."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from lsa_cli.report import pairs
from lsa_cli.report.compare import Change, Comparison, VulnerableChange
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.sequential import in_words
from lsa_cli.report.terminal import print_tables
from lsa_cli.report.text import number, percent
from lsa_cli.report.view import Table

_FEW = 1  # changes of one kind that have a line each


def print_comparison(old: AuditReport, new: AuditReport, found: Comparison, console: Console) -> None:
    """At most 40 lines for an audit with the default attacks, four layers and ten classes."""
    beyond = [change for change in found.changes if change.beyond_noise]
    names = ("old ", "dim"), found.old.checkpoint, (", new ", "dim"), found.new.checkpoint
    console.print(Text.assemble(*names))
    console.print(Text("Changed beyond noise" if beyond else "Nothing changed beyond noise", "bold"))
    for change in _summary(beyond):
        console.print(change)
    if found.vulnerable:
        console.print(Text(f"  most vulnerable layers: {'; '.join(_vulnerable(found.vulnerable))}"))
    for which, only in (("old", found.layers_only_in_old), ("new", found.layers_only_in_new)):
        if only:
            console.print(Text(f"  layers of the {which} one alone: {', '.join(only)}"))
    if found.old.evidence != found.new.evidence:
        console.print(Text(f"  evidence: {found.old.evidence or 'none'} -> {found.new.evidence or 'none'}"))
    for sentence in (found.by_chance, found.one_proof, found.detectable):
        if sentence is not None:
            console.print(Text(f"  {sentence}"))
    for line in in_words(found.sequential) if found.sequential else ():
        console.print(Text(f"  {line}"))
    console.print()
    print_tables(_tables(old, new, pairs.by_name(found)), console, tight=True)
    console.print(Text(one_line(found), "bold red" if found.regressions else "bold"))


def _summary(beyond: Sequence[Change]) -> Iterator[Text]:
    """A line for each number of the verdict, and for the attack, class or layer that is the only one of its kind; one for the rest."""
    kinds: dict[str, list[Change]] = {"attacks": [], "classes": [], "layers": []}
    for change in beyond:
        if change.table in ("class", "layer"):
            kinds["classes" if change.table == "class" else "layers"].append(change)
        elif change.attack:
            kinds["attacks"].append(change)
        else:
            yield Text.assemble("  ", _words(change), style=_style(change))
    counted = []
    for kind, changes in kinds.items():
        if len(changes) <= _FEW:
            for change in changes:
                yield Text.assemble("  ", _words(change), style=_style(change))
            continue
        up, down = ("move more", "move less") if kind == "layers" else ("better", "worse")
        rose = sum(change.new > change.old for change in changes)
        counts = (rose, up), (len(changes) - rose, down)
        counted.append(f"{kind}: {', '.join(f'{count} {word}' for count, word in counts if count)}")
    if counted:
        yield Text(f"  {'; '.join(counted)}")


def _tables(old: AuditReport, new: AuditReport, changes: pairs.Changes) -> Iterator[Table]:
    noises = {f"under {outcome.name}" for outcome in new.outcomes if outcome.kind == "noise"}
    shares: list[pairs.Pair] = []
    unchanged: list[pairs.Pair] = []
    for pair in pairs.accuracies(old, new, changes):
        is_same = pair.name in noises and pair.change is not None and not pair.change.beyond_noise
        (unchanged if is_same else shares).append(pair)
    table = pairs.share_table("Accuracy", "accuracy", shares)
    names = ", ".join(pair.name.removeprefix("under ") for pair in unchanged)
    yield replace(table, caption=f"no change beyond noise under {names}") if names else table
    classes = pairs.classes(old, new, changes)
    if classes:
        yield pairs.share_table("Robust accuracy by class", "class", classes)
    groups = pairs.layers(old, new, changes)
    for group in groups[:1]:  # the strongest attack's
        table = pairs.layer_table(group)
        yield replace(table, caption="--html and --json also have those under the others") if groups[1:] else table


def one_line(found: Comparison) -> str:
    beyond = sum(change.beyond_noise for change in found.changes)
    fell = f"worse: {', '.join(found.regressions)}" if found.regressions else "no accuracy fell beyond noise"
    return f"{beyond} of {len(found.changes)} numbers changed beyond noise; {fell}"


def _vulnerable(rows: Sequence[VulnerableChange]) -> Iterator[str]:
    """A part for each change, with the attacks that show it."""
    attacks: dict[str, list[str]] = {}
    for row in rows:
        parts = [f"{what} {', '.join(names)}" for what, names in (("new", row.new), ("lost", row.lost)) if names]
        attacks.setdefault(" and ".join(parts), []).append(row.attack)
    for change, names in attacks.items():
        yield f"{change} under {', '.join(names)}"


def _style(change: Change) -> str:
    if change.table == "layer":  # a larger error in a layer is no verdict by itself
        return ""
    return "green" if change.new > change.old else "red"


def _words(change: Change) -> str:
    if change.table == "layer":
        return f"{change.label}: {number(change.old)} -> {number(change.new)}"
    gap = f"{100 * (change.new - change.old):+.1f} points"
    return f"{change.label}: {percent(change.old)} -> {percent(change.new)} ({gap}{_pairs(change)})"


def _pairs(change: Change) -> str:
    return "" if change.won is None else f"; {change.won} samples won, {change.lost} lost"
