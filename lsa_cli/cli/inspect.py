"""`lsa inspect`: print the facts of a model file."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, emit, foreign_code, note
from lsa_cli.commands import OF_INSPECT
from lsa_cli.errors import UsageError, printable
from lsa_cli.settings import AuditSettings
from lsa_cli.wording import plural

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from lsa_cli.auditing.viewing import LayerView, View

from lsa_cli.cli.facts import Facts, Tensor, WeightSet, arch_option, gather, is_usual, shape_text

_ROWS, _SETS, _NAMES = 20, 20, 12
_WIDEST, _LONGEST_ADVICE = 200, 1000


@o.takes(*OF_INSPECT)
def inspect(
    checkpoint: o.Checkpoint,
    given: AuditSettings,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show every tensor, set and name, not only the first.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    sha256: Annotated[
        bool | None,
        typer.Option(
            "--sha256/--no-sha256", help="Compute the SHA-256; default: of files up to 512 MB.", show_default=False
        ),
    ] = None,
    write_arch: Annotated[
        Path | None,
        typer.Option(
            "--write-arch",
            metavar="FILE.py",
            show_default=False,
            help="Put an unknown chain of layers or residual network together again, choose by the labels of --data, and write it as a Python file, which audits take as their architecture.",
        ),
    ] = None,
) -> None:
    """Show what a model file is: format, weights, likely architecture, and what trusting it would import.

    Only headers are read: nothing in the file is run and no network is built, except with --data. Exit code 0 for every readable file of a known format, even if an audit would refuse it.

    Keys of --json: file, format, files (path, size), size, sha256 (null: not computed), holds (weights, network, graph, object, program or nothing), weights (place, chosen, averaged, class_name, prefixes, parameters, dtypes, architectures, tensors (name, shape, dtype)), description, claimed_accuracy, entries, metadata, globals, command, advice; with --data also network (found, layers (name, module, shape), certain).
    """
    if given.data is None and given.given():
        raise UsageError(f"--{next(iter(given.given())).replace('_', '-')} is for --data; leave it out")
    if write_arch is not None:
        _write_arch(checkpoint, given, write_arch)
        return
    facts = gather(checkpoint, sha256)
    view = None if given.data is None else _viewed(checkpoint, given)
    if json:
        import json as json_module

        more = {} if view is None else {"network": asdict(view)}
        emit(json_module.dumps({**asdict(facts), **more}, indent=1, allow_nan=False) + "\n")
    else:
        _print(facts, show_all, view, given)


def _viewed(checkpoint: str, settings: AuditSettings) -> "View":
    from lsa_cli.auditing.cores import choose_threads
    from lsa_cli.auditing.cost import numerics
    from lsa_cli.auditing.viewing import view_network

    with foreign_code(), numerics(choose_threads(settings.threads)[0]):
        return view_network(checkpoint, settings)


def _write_arch(checkpoint: str, settings: AuditSettings, path: Path) -> None:
    """Write the network that is put together again, and print the audit that takes it."""
    from lsa_cli.auditing.cores import choose_threads
    from lsa_cli.auditing.cost import numerics
    from lsa_cli.auditing.suggesting import audit_command
    from lsa_cli.auditing.viewing import rebuild_alone

    if settings.data is None:
        raise UsageError("--write-arch FILE.py and --data SOURCE:PATH belong together: labelled images choose")
    if path.exists():
        raise UsageError(f"--write-arch {path}: there is a file already; give another name")
    with foreign_code(), numerics(choose_threads(settings.threads)[0]):
        rebuilt = rebuild_alone(checkpoint, settings, note)
    path.write_text(rebuilt.source)
    words = audit_command(checkpoint, settings, "--arch", f"{path}:build", *rebuilt.option.split())
    emit(f"{printable(words)}\n")


# ---- the printing --------------------------------------------------------------------------------------


def _print(facts: Facts, show_all: bool, view: "View | None", given: AuditSettings) -> None:
    from rich.table import Table
    from rich.text import Text

    from lsa_cli.auditing.suggesting import audit_command, write_command

    console = data_console()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in _rows(facts, show_all):
        grid.add_row(label, value if isinstance(value, Text) else Text(value))
    console.print(grid)
    shown = facts.shown
    if shown is not None and shown.tensors:
        console.print()
        console.print(Text("Tensors" + (f" of {_place(shown)}" if len(facts.weights) > 1 else ""), style="bold"))
        console.print(_tensor_table(shown.tensors, show_all))
    console.print()
    command = facts.command
    if view is not None:
        console.print(Text("Network on these images", style="bold"))
        for sentence in view.found:
            console.print(Text(_short(sentence, _LONGEST_ADVICE)))
        if view.layers:
            console.print(_layer_table(view.layers, show_all))
        suggested = audit_command if view.certain else write_command
        command = printable(suggested(facts.file, given))
    if command is not None:
        # Not wrapped by us: a command that was cut into lines cannot be copied.
        console.print(Text.assemble(("Next command  ", "dim"), (command, "bold")), soft_wrap=True)
    if view is not None:
        return
    for sentence in facts.advice:
        console.print(Text(_short(sentence, _LONGEST_ADVICE), style="dim"))


def _rows(facts: Facts, show_all: bool) -> list[tuple[str, "str | Text"]]:
    from lsa_cli.models.formats import FORMATS

    hashed = facts.sha256 or f"not computed: {_bytes(facts.size).partition(' (')[0]}; --sha256 computes it"
    several = f" in {len(facts.files)} files" if len(facts.files) > 1 else ""
    rows: list[tuple[str, str | Text]] = [
        ("file", printable(facts.file)),
        ("format", FORMATS[facts.format].title),
        ("size", f"{_bytes(facts.size)}{several}"),
        ("sha256", hashed),
        ("holds", _holds_text(facts)),
    ]
    rows += _weight_rows(facts, show_all)
    if facts.shown is not None:
        rows += _name_rows(facts.shown)
    if facts.description is not None:
        rows.append(("description", _pairs(_described(facts.description), show_all)))
    claim = facts.claimed_accuracy
    if claim is not None:
        rows.append(("claims", f"accuracy {100 * claim['value']:.1f}%, noted as {_short(claim['name'])}; not checked"))
    others = {key: value for key, value in facts.entries.items() if claim is None or key != claim["name"]}
    if others:
        rows.append(("beside them" if facts.weights else "entries", _pairs(others, show_all)))
    rows += _metadata_rows(facts, show_all)
    rows.append(("code", _code(facts, show_all)))
    return rows


def _holds_text(facts: Facts) -> str:
    shown = facts.shown
    if facts.holds == "program":
        return "a compiled program with weights" if shown else "a compiled program; its weights cannot be told apart"
    if shown is None:
        return "no weights that lsa can read"
    if facts.holds == "graph":
        return "a network as a graph of operators, with its weights"
    if facts.holds == "network":
        return f"a whole network, pickled: {_short(shown.class_name or '?')}"
    if facts.holds == "object":
        return f"tensors in a pickled object that is no network: {_short(shown.class_name or '?')}"
    return "weights by name (a state_dict)"


def _weight_rows(facts: Facts, show_all: bool) -> list[tuple[str, "str | Text"]]:
    rows: list[tuple[str, str | Text]] = []
    shown = facts.weights if show_all else facts.weights[:_SETS]
    for number, item in enumerate(shown):
        dtypes = ", ".join(f"{dtype} ({n:,})" if len(item.dtypes) > 1 else dtype for dtype, n in item.dtypes.items())
        parts = [f"{plural(len(item.tensors), 'tensor')}"]
        parts += [f"{item.parameters:,} parameters"] if len(facts.weights) > 1 else []
        parts += [dtypes] if dtypes else []
        text = f"{_place(item)}: " if item.place or len(facts.weights) > 1 else ""
        text += ", ".join(parts)
        text += "; averaged" if item.averaged else ""
        if len(facts.weights) > 1:
            text += "; an audit takes these" if item.chosen else f"; --weights {shlex.quote(_place(item))}"
        rows.append(("weights" if number == 0 else "", text))
    if len(facts.weights) > len(shown):
        rows.append(("", f"... {len(facts.weights) - len(shown):,} more sets (--all)"))
    return rows


def _name_rows(shown: WeightSet) -> list[tuple[str, "str | Text"]]:
    prefix = _short("".join(shown.prefixes)) if shown.prefixes else "none shared by all names"
    known = shown.architectures
    if len(known) == 1:
        fits = f"{arch_option(known[0])}  (likely: names and shapes fit; nothing was built)"
    elif known:
        fits = f"fits several: {'; '.join(map(arch_option, known))}"
    else:
        fits = "none that lsa knows by names and shapes"
    return [("parameters", f"{shown.parameters:,} (by their names)"), ("prefix", prefix), ("architecture", fits)]


def _described(description: dict[str, Any]) -> dict[str, Any]:
    """The description without its version and without empty entries."""
    return {key: value for key, value in description.items() if key != "lsa_checkpoint" and value not in ([], {})}


def _metadata_rows(facts: Facts, show_all: bool) -> list[tuple[str, "str | Text"]]:
    metadata = {
        key: value for key, value in facts.metadata.items() if key != "lsa_checkpoint"
    }  # the description, shown already
    if facts.format == "folder":
        return [("metadata", f"{name}: {_pairs(content, show_all)}") for name, content in metadata.items()]
    return [("metadata", _pairs(metadata, show_all))] if metadata else []


def _code(facts: Facts, show_all: bool) -> "Text":
    """What trusting the file would run or import; a program's own classes are no imports."""
    from rich.text import Text

    from lsa_cli.models.formats import FORMATS

    names = [name for name in facts.globals if not name.startswith("__torch__.")]
    unusual = [name for name in names if not is_usual(name)]
    if FORMATS[facts.format].is_program:
        text = Text("trusting it would run the program in the file; nothing of it was run")
        if unusual:
            text.append(f"; its pickle also names {_listed(unusual, show_all)}")
        return text
    if not names:
        return Text("trusting it would import: nothing")
    usual = [name for name in names if is_usual(name)]
    text = Text("trusting it would import: ")
    text.append(_listed(unusual, show_all), style="bold yellow")
    if usual:
        text.append(f"{', and ' if unusual else ''}what tensors are made of ({_listed(usual, show_all)})")
    text.append("; nothing was imported or run")
    return text


def _tensor_table(tensors: list[Tensor], show_all: bool) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", overflow="fold")
    table.add_column("shape", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    # A line that says "1 more" is as long as the tensor itself.
    shown = tensors if show_all or len(tensors) <= _ROWS + 1 else tensors[:_ROWS]
    for tensor in shown:
        table.add_row(Text(_short(tensor.name)), Text(shape_text(tensor.shape)), tensor.dtype)
    if len(shown) < len(tensors):
        table.add_row(Text(f"... {len(tensors) - len(shown):,} more (--all)", style="dim"), "", "")
    return table


def _layer_table(layers: "list[LayerView]", show_all: bool) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("layer", "module", "output"):
        table.add_column(title, overflow="fold")
    shown = layers if show_all or len(layers) <= 2 * _ROWS + 1 else layers[: 2 * _ROWS]
    for layer in shown:
        table.add_row(Text(_short(layer.name)), Text(_short(layer.module)), Text(shape_text(layer.shape)))
    if len(shown) < len(layers):
        table.add_row(Text(f"... {len(layers) - len(shown):,} more (--all)", style="dim"), "", "")
    return table


def _place(item: WeightSet) -> str:
    return _short(item.place) if item.place else "(top)"


def _listed(names: list[str], show_all: bool) -> str:
    shown = names if show_all else names[:_NAMES]
    more = [f"... {len(names) - len(shown):,} more (--all)"] if len(shown) < len(names) else []
    return ", ".join([*map(_short, shown), *more])


def _pairs(values: dict[str, Any], show_all: bool) -> str:
    shown = list(values.items()) if show_all else list(values.items())[:_NAMES]
    parts = [f"{_short(key)} {_value(value)}" for key, value in shown]
    if len(shown) < len(values):
        parts.append(f"... {len(values) - len(shown):,} more (--all)")
    return "; ".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return _short(", ".join(f"{key}={_value(item)}" for key, item in value.items()))
    if isinstance(value, list):
        return _short(", ".join(map(_value, value)))
    return _short(str(value))


def _short(text: str, at_most: int = _WIDEST) -> str:
    """For a terminal: a hostile name can be a megabyte long and contain control codes."""
    cut = text if len(text) <= at_most else f"{text[:at_most]}..."
    return printable(cut)


def _bytes(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit} ({count:,} bytes)"
    return f"{count} bytes"
