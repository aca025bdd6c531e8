"""The facts that `lsa inspect` reads from the headers of a model file."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lsa_cli.commands import NO_DATA, command
from lsa_cli.errors import CheckpointError, UsageError, printable

if TYPE_CHECKING:
    from lsa_cli.models.checkpoint import Description
    from lsa_cli.models.formats import Contents
    from lsa_cli.models.weights import Weights

T = TypeVar("T")

_LARGEST_HASHED = 512 * 10**6
_DEEPEST = 12

# Names in an ordinary state_dict: containers and the parts of a tensor.
_USUAL = {
    "collections.OrderedDict", "collections.defaultdict", "torch.Size", "torch.device", "torch.float16",
    "torch.bfloat16", "torch.float32", "torch.float64", "torch.jit._pickle.build_intlist",
    "torch._tensor._rebuild_from_type_v2", "__builtin__.set", "builtins.set",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class WeightSet:
    """place: in the file, "" for the top. chosen: whether an audit takes it by default.

    class_name: of the pickled object that contains it. parameters: count of numbers in floating-point tensors, without
    BatchNorm buffers; a tensor with two names counts once. architectures: known ones that fit names and shapes.
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
    """The facts as plain values; the field names are the keys of --json.

    entries: of the file's top level, beside the weights. metadata: of safetensors, or the JSON files of a folder.
    command: the audit to run next, null when nothing can be audited; advice: on that command.
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
        """The set that an audit takes, otherwise the first."""
        return next((item for item in self.weights if item.chosen), self.weights[0] if self.weights else None)


def gather(checkpoint: str, sha256: bool | None) -> Facts:
    """The facts of a file. sha256: None computes it for small files.

    Raises CheckpointError when the file is damaged or in an unknown format.
    """
    from lsa_cli.models.checkpoint import describe, sha256_of
    from lsa_cli.models.claims import claim
    from lsa_cli.models.formats import open_contents
    from lsa_cli.models.weights import choose, find_weights

    path = Path(checkpoint)
    contents = open_contents(path)
    found = find_weights(contents.root)
    advice: list[str] = []
    chosen = _or_advice(advice, lambda: choose(path, contents, found, None, []))
    description = _or_advice(advice, lambda: describe(path, contents))
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


def _or_advice(advice: list[str], find: Callable[[], T]) -> T | None:
    """What `find` returns; None after an error, whose message is then a piece of advice."""
    try:
        return find()
    except (CheckpointError, UsageError) as error:
        advice.append(str(error))
        return None


def _holds(kind: str, weights: "Weights | None") -> str:
    from lsa_cli.models.formats import FORMATS
    from lsa_cli.models.pickles.modules import is_module

    if FORMATS[kind].is_program:
        return "program"
    if kind == "onnx":
        return "graph"
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
    """The top level of a dictionary without sets of weights: plain values, and descriptions of others."""
    tops = {weights.place.partition(".")[0] for weights in found}
    if not isinstance(root, dict) or "" in tops or description is not None:
        return {}
    return {str(key): _in_words(value) for key, value in root.items() if str(key) not in tops}


def _in_words(value: Any) -> Any:
    from lsa_cli.models.pickles.symbols import Call, TensorSpec

    if value is None or isinstance(value, (bool, int, float, str)):
        return _plain(value)
    if isinstance(value, TensorSpec):
        return f"<tensor {shape_text(value.shape)}>"
    if isinstance(value, Call):
        return f"<{value.class_name}>"
    if isinstance(value, dict):
        return f"<mapping of {len(value)}>"
    return f"<{type(value).__name__} of {len(value)}>" if isinstance(value, (list, tuple, bytes)) else "<object>"


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` as strict JSON, even from a hostile file with NaN, huge integers or endless nesting."""
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


# ---- the command to run next ---------------------------------------------------------------------------


def _command(
    checkpoint: str, contents: "Contents", sets: list[WeightSet], description: "Description | None", advice: list[str]
) -> str | None:
    """The audit of this file with the options that it needs; the user replaces words in capitals."""
    from lsa_cli.models.formats import FORMATS

    if not sets:
        return None
    chosen = next((item for item in sets if item.chosen), None)
    words: list[str] = []
    if chosen is None:
        words += ["--weights", sets[0].place]
    if FORMATS[contents.format].is_program or description is None:
        words += _arch_options(contents, chosen or sets[0], advice)
    if description is None or description.data is None:
        words += ["--data", NO_DATA]
    if description is None and (chosen or sets[0]).class_name is None:
        advice.append("add --normalize if it was trained on normalised images")
    return printable(command("audit", checkpoint, {}, *words))


def _arch_options(contents: "Contents", weights: WeightSet, advice: list[str]) -> list[str]:
    from lsa_cli.models.formats import FORMATS

    if contents.graph is not None:
        return []  # the audit reads the graph
    is_program, is_network = FORMATS[contents.format].is_program, weights.class_name is not None
    if is_network and not is_program and all(_is_installed(name) for name in contents.globals):
        return []  # the audit rebuilds it from installed classes
    known = weights.architectures
    if len(known) == 1 and not (is_program or is_network):
        return []  # the audit finds it again
    if is_program:
        advice.append("--arch takes the weights alone; --trust-code runs the program in the file instead")
    elif is_network:
        advice.append("--arch takes the weights alone; --trust-code unpickles the file instead, which runs its code")
    if not known:
        advice.append("--arch: the network these weights belong to, torchvision:NAME, timm:NAME or FILE.py:FACTORY")
        return ["--arch", "FILE.py:FACTORY"]
    if len(known) > 1:
        advice.append(f"--arch: the weights fit {', '.join(arch_option(match) for match in known)}")
    options = ["--arch", known[0]["arch"]]
    for name, value in known[0]["arguments"].items():
        if name != "num_classes":  # read from the weights
            options += ["--arch-args", f"{name}={value}"]
    return options


def is_usual(name: str) -> bool:
    is_storage = name.startswith("torch.") and name.count(".") == 1 and name.endswith("Storage")
    return name in _USUAL or is_storage or name.startswith("torch._utils._rebuild_")


def _is_installed(name: str) -> bool:
    from lsa_cli.models.pickles.symbols import INSTALLED

    return is_usual(name) or name.startswith(INSTALLED)


def arch_option(match: dict[str, Any]) -> str:
    return match["arch"] + "".join(f", {name}={value}" for name, value in match["arguments"].items())


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
