"""`lsa inspect`: what a model file is, from its headers alone; nothing in it is run and no network is built."""

import math
import shlex
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, emit
from lsa_cli.errors import CheckpointError, UsageError, printable
from lsa_cli.wording import plural

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from lsa_cli.models.checkpoint import Description, Weights
    from lsa_cli.models.formats import Contents

_LARGEST_HASHED = 512 * 10**6
_ROWS, _SETS, _NAMES = 20, 20, 12
_WIDEST, _LONGEST_ADVICE = 200, 1000
_DEEPEST = 12

# What an ordinary state_dict names: containers and the parts of a tensor.
_USUAL = {
    "collections.OrderedDict", "collections.defaultdict", "torch.Size", "torch.device", "torch.float16",
    "torch.bfloat16", "torch.float32", "torch.float64", "torch.jit._pickle.build_intlist",
    "torch._tensor._rebuild_from_type_v2", "__builtin__.set", "builtins.set",
}  # fmt: skip


def inspect(
    checkpoint: o.Checkpoint,
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
) -> None:
    """Say what a model file is: format, weights, likely architecture, and what trusting it would import.

    Only headers are read: nothing in the file is run and no network is built. Exit code 0 for every readable file of a known format, also one without weights, or one that an audit would refuse.

    Keys of --json: file, format, files (path, size), size, sha256 (null: not computed), holds (weights, network, object, program or nothing), weights (place, chosen, averaged, class_name, prefixes, parameters, dtypes, architectures, tensors (name, shape, dtype)), description, claimed_accuracy, entries, metadata, globals, command, advice.
    """
    facts = gather(checkpoint, sha256)
    if json:
        import json as json_module

        emit(json_module.dumps(asdict(facts), indent=1, allow_nan=False) + "\n")
    else:
        _print(facts, show_all)


# ---- the facts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class WeightSet:
    """place: where it stands in the file, "" for the top. chosen: whether an audit takes it unless told otherwise.

    class_name: of the object that it was pickled in. parameters: numbers in floating tensors that are not called like
    a BatchNorm buffer; one that is stored under two names counts once. architectures: known ones that names and
    shapes fit.
    """

    place: str
    chosen: bool
    averaged: bool
    class_name: str | None
    prefixes: list[str]
    parameters: int
    dtypes: dict[str, int]
    architectures: list[dict[str, Any]]
    tensors: list[Tensor]


@dataclass(frozen=True)
class Facts:
    """What `lsa inspect` says, as plain values; the field names are the keys of --json.

    entries: what stands at the top of the file beside the weights. metadata: safetensors metadata, or a folder's JSON
    files. command: how to go on, null when nothing can be audited; advice: why it reads so.
    """

    file: str
    format: str
    files: list[dict[str, Any]]
    size: int
    sha256: str | None
    holds: str
    weights: list[WeightSet]
    description: dict[str, Any] | None
    claimed_accuracy: dict[str, Any] | None
    entries: dict[str, Any]
    metadata: dict[str, Any]
    globals: list[str]
    command: str | None
    advice: list[str]

    @property
    def shown(self) -> WeightSet | None:
        """The set that an audit takes, else the first."""
        return next((item for item in self.weights if item.chosen), self.weights[0] if self.weights else None)


def gather(checkpoint: str, sha256: bool | None) -> Facts:
    """Everything `lsa inspect` says of a file. sha256: None computes it for files that are quickly read.

    Raises CheckpointError when the file is damaged or in no format that lsa reads.
    """
    from lsa_cli.models.checkpoint import claim, find_weights, sha256_of
    from lsa_cli.models.formats import open_contents

    path = Path(checkpoint)
    contents = open_contents(path)
    found = find_weights(contents.root)
    advice: list[str] = []
    chosen = _chosen(path, contents, found, advice)
    description = _description(path, contents, advice)
    sets = [_weight_set(weights, weights is chosen) for weights in found]
    files: list[dict[str, Any]] = [{"path": str(file), "size": file.stat().st_size} for file in contents.files]
    size = sum(file["size"] for file in files)
    wanted = size <= _LARGEST_HASHED if sha256 is None else sha256
    claimed = claim(contents.root)
    return Facts(
        file=checkpoint,
        format=contents.format,
        files=files,
        size=size,
        sha256=sha256_of(contents.files) if wanted else None,
        holds=_holds(contents.format, chosen or next(iter(found), None)),
        weights=sets,
        description=None if description is None else _plain(description.model_dump(exclude_none=True)),
        claimed_accuracy=None if claimed is None else {"value": claimed[0], "name": claimed[1]},
        entries=_entries(contents.root, found, description),
        metadata=_plain(contents.metadata),
        globals=list(dict.fromkeys(contents.globals)),
        command=_command(checkpoint, contents, sets, description, advice),
        advice=advice,
    )


def _chosen(path: Path, contents: "Contents", found: list["Weights"], advice: list[str]) -> "Weights | None":
    from lsa_cli.models.checkpoint import choose

    try:
        return choose(path, contents, found, None, [])
    except (CheckpointError, UsageError) as error:
        advice.append(str(error))
        return None


def _description(path: Path, contents: "Contents", advice: list[str]) -> "Description | None":
    from lsa_cli.models.checkpoint import describe

    try:
        return describe(path, contents)
    except CheckpointError as error:
        advice.append(str(error))
        return None


def _holds(kind: str, weights: "Weights | None") -> str:
    from lsa_cli.models.formats import FORMATS
    from lsa_cli.models.pickles.modules import is_module

    if FORMATS[kind].is_program:
        return "program"
    if weights is None:
        return "nothing"
    if weights.module is None:
        return "weights"
    return "network" if is_module(weights.module) else "object"


def _weight_set(weights: "Weights", chosen: bool) -> WeightSet:
    from lsa_cli.models.recognition import recognise, shared_prefixes

    tensors = [Tensor(name, spec.shape, spec.dtype) for name, spec in weights.tensors.items()]
    return WeightSet(
        place=weights.place,
        chosen=chosen,
        averaged=weights.is_averaged,
        class_name=None if weights.module is None else weights.module.class_name,
        prefixes=shared_prefixes(weights.tensors),
        parameters=weights.parameters,
        dtypes=dict(Counter(tensor.dtype for tensor in tensors).most_common()),
        architectures=[
            {"arch": match.arch, "arguments": match.arguments, "classes": match.classes}
            for match in recognise(weights.shapes())
        ],
        tensors=tensors,
    )


def _entries(root: Any, found: list["Weights"], description: "Description | None") -> dict[str, Any]:
    """What a dictionary holds at its top beside sets of weights: plain values as they are, others in words."""
    tops = {weights.place.partition(".")[0] for weights in found}
    if not isinstance(root, dict) or "" in tops or description is not None:
        return {}
    return {str(key): _in_words(value) for key, value in root.items() if str(key) not in tops}


def _in_words(value: Any) -> Any:
    from lsa_cli.models.pickles.symbols import Call, TensorSpec

    if value is None or isinstance(value, (bool, int, float, str)):
        return _plain(value)
    if isinstance(value, TensorSpec):
        return f"<tensor {_shape(value.shape)}>"
    if isinstance(value, Call):
        return f"<{value.class_name}>"
    if isinstance(value, dict):
        return f"<mapping of {len(value)}>"
    return f"<{type(value).__name__} of {len(value)}>" if isinstance(value, (list, tuple, bytes)) else "<object>"


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` as strict JSON can hold it, whatever a hostile file puts in: NaN, huge integers, endless nesting."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return f"<integer of {value.bit_length()} bits>"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > _DEEPEST:
        return "<nested deeper>"
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    return f"<{type(value).__name__}>"


# ---- how to go on --------------------------------------------------------------------------------------


def _command(
    checkpoint: str, contents: "Contents", sets: list[WeightSet], description: "Description | None", advice: list[str]
) -> str | None:
    """The audit of this file with the options that it needs; words in capitals are for the user to fill in."""
    from lsa_cli.models.formats import FORMATS

    if not sets:
        return None
    chosen = next((item for item in sets if item.chosen), None)
    words = ["lsa", "audit", checkpoint]
    if chosen is None:
        words += ["--weights", sets[0].place]
    if FORMATS[contents.format].is_program or description is None:
        words += _arch_options(contents, chosen or sets[0], advice)
    if description is None or description.data is None:
        words += ["--data", "SOURCE:LOCATION"]
    if description is None and (chosen or sets[0]).class_name is None:
        advice.append("add --normalize if it was trained on normalised images")
    return printable(shlex.join(words))


def _arch_options(contents: "Contents", weights: WeightSet, advice: list[str]) -> list[str]:
    from lsa_cli.models.formats import FORMATS

    is_program, is_network = FORMATS[contents.format].is_program, weights.class_name is not None
    if is_network and not is_program and all(_is_installed(name) for name in contents.globals):
        return []  # rebuilt from installed classes
    known = weights.architectures
    if len(known) == 1 and not (is_program or is_network):
        return []  # found again by the audit
    if is_program:
        advice.append("--arch takes the weights alone; --trust-code --layers none runs the program in the file instead")
    elif is_network:
        advice.append("--arch takes the weights alone; --trust-code unpickles the file instead, which runs its code")
    if not known:
        advice.append("--arch: the network these weights belong to, torchvision:NAME, timm:NAME or FILE.py:FACTORY")
        return ["--arch", "FILE.py:FACTORY"]
    if len(known) > 1:
        advice.append(f"--arch: the weights fit {', '.join(_arch(match) for match in known)}")
    options = ["--arch", known[0]["arch"]]
    for name, value in known[0]["arguments"].items():
        if name != "num_classes":  # read from the weights
            options += ["--arch-args", f"{name}={value}"]
    return options


def _is_usual(name: str) -> bool:
    is_storage = name.startswith("torch.") and name.count(".") == 1 and name.endswith("Storage")
    return name in _USUAL or is_storage or name.startswith("torch._utils._rebuild_")


def _is_installed(name: str) -> bool:
    from lsa_cli.models.pickles.symbols import INSTALLED

    return _is_usual(name) or name.startswith(INSTALLED)


def _arch(match: dict[str, Any]) -> str:
    return match["arch"] + "".join(f", {name}={value}" for name, value in match["arguments"].items())


# ---- the printing --------------------------------------------------------------------------------------


def _print(facts: Facts, show_all: bool) -> None:
    from rich.table import Table
    from rich.text import Text

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
    if facts.command is not None:
        # Not wrapped by us: a command that was cut into lines cannot be copied.
        console.print(Text.assemble(("Go on with  ", "dim"), (facts.command, "bold")), soft_wrap=True)
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
        fits = f"{_arch(known[0])}  (likely: names and shapes fit; nothing was built)"
    elif known:
        fits = f"fits several: {'; '.join(map(_arch, known))}"
    else:
        fits = "none that lsa knows by names and shapes"
    return [
        ("parameters", f"{shown.parameters:,} (by their names)"),
        ("prefix", prefix),
        ("architecture", fits),
    ]


def _described(description: dict[str, Any]) -> dict[str, Any]:
    """Without the version, and without what is empty: it says nothing."""
    return {key: value for key, value in description.items() if key != "lsa_checkpoint" and value not in ([], {})}


def _metadata_rows(facts: Facts, show_all: bool) -> list[tuple[str, "str | Text"]]:
    metadata = {key: value for key, value in facts.metadata.items() if key != "lsa_checkpoint"}  # it is the description
    if facts.format == "folder":
        return [("metadata", f"{name}: {_pairs(content, show_all)}") for name, content in metadata.items()]
    return [("metadata", _pairs(metadata, show_all))] if metadata else []


def _code(facts: Facts, show_all: bool) -> "Text":
    """What trusting the file would set going; of a program, its own classes are no imports."""
    from rich.text import Text

    from lsa_cli.models.formats import FORMATS

    names = [name for name in facts.globals if not name.startswith("__torch__.")]
    unusual = [name for name in names if not _is_usual(name)]
    if FORMATS[facts.format].is_program:
        text = Text("trusting it would run the program in the file; nothing of it was run")
        if unusual:
            text.append(f"; its pickle also names {_listed(unusual, show_all)}")
        return text
    if not names:
        return Text("trusting it would import: nothing")
    usual = [name for name in names if _is_usual(name)]
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
    # One more costs as much as saying that there is one more.
    shown = tensors if show_all or len(tensors) <= _ROWS + 1 else tensors[:_ROWS]
    for tensor in shown:
        table.add_row(Text(_short(tensor.name)), Text(_shape(tensor.shape)), tensor.dtype)
    if len(shown) < len(tensors):
        table.add_row(Text(f"... {len(tensors) - len(shown):,} more (--all)", style="dim"), "", "")
    return table


def _place(item: WeightSet) -> str:
    return _short(item.place) if item.place else "(top)"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


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
    """For a terminal: a hostile name may be a megabyte long, and hold codes that steer it."""
    cut = text if len(text) <= at_most else f"{text[:at_most]}..."
    return printable(cut)


def _bytes(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit} ({count:,} bytes)"
    return f"{count} bytes"
