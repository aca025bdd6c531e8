"""A comparison on a terminal: what changed beyond noise first, then every number before and after."""

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from lsa_cli.report import pairs
from lsa_cli.report.compare import Change, Comparison
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.sequential import in_words
from lsa_cli.report.terminal import print_table
from lsa_cli.report.text import number, percent
from lsa_cli.report.view import Table


def print_comparison(old: AuditReport, new: AuditReport, found: Comparison, console: Console) -> None:
    beyond = [change for change in found.changes if change.beyond_noise]
    console.print(Text.assemble(("old  ", "dim"), found.old.checkpoint, ("\nnew  ", "dim"), found.new.checkpoint, "\n"))
    if beyond:
        console.print(Text("Changed beyond noise", "bold"))
        for change in beyond:
            console.print(Text.assemble("  ", _words(change), style=_style(change)))
    else:
        console.print(Text("Nothing changed beyond noise", "bold"))
    for row in found.vulnerable:
        parts = [f"{what} {', '.join(names)}" for what, names in (("new", row.new), ("lost", row.lost)) if names]
        console.print(Text(f"  most vulnerable layers under {row.attack}: {'; '.join(parts)}"))
    for which, names in (("old", found.layers_only_in_old), ("new", found.layers_only_in_new)):
        if names:
            console.print(Text(f"  layers of the {which} one alone: {', '.join(names)}"))
    if found.old.evidence != found.new.evidence:
        console.print(Text(f"  evidence: {found.old.evidence or 'none'} -> {found.new.evidence or 'none'}"))
    for sentence in (found.by_chance, found.one_proof, found.detectable):
        if sentence is not None:
            console.print(Text(f"  {sentence}"))
    for line in in_words(found.sequential) if found.sequential else ():
        console.print(Text(f"  {line}"))
    console.print()
    for table in _tables(old, new, pairs.by_name(found)):
        print_table(table, console)
    console.print(Text(one_line(found), "bold red" if found.regressions else "bold"))


def _tables(old: AuditReport, new: AuditReport, changes: pairs.Changes) -> Iterator[Table]:
    yield pairs.share_table("Accuracy", "accuracy", pairs.accuracies(old, new, changes))
    classes = pairs.classes(old, new, changes)
    if classes:
        yield pairs.share_table("Robust accuracy by class", "class", classes)
    for group in pairs.layers(old, new, changes):
        yield pairs.layer_table(group)


def one_line(found: Comparison) -> str:
    beyond = sum(change.beyond_noise for change in found.changes)
    fell = f"worse: {', '.join(found.regressions)}" if found.regressions else "no accuracy fell beyond noise"
    return f"{beyond} of {len(found.changes)} numbers changed beyond noise; {fell}"


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
