"""Recognise the architecture of a set of weights by the names and shapes of its tensors.

`signatures.json` has one line for each classifier of torchvision and each network of lsa, so that no network has to be
built for a comparison; `python -m lsa_cli.models.recognition` writes it. The number of classes is not in a signature; it
is read from the weights.

Equal names and shapes do not prove an equal forward pass: strides, activations and pooling have no weights. So the
report always names the match.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lsa_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_FILE = Path(__file__).with_name("signatures.json")
_MOST_PREFIXES = 4
_CANDIDATES = 24
_NEAR = 0.5  # of names and shapes in common: another network is no help (our choice)
# Parts of names that come from a wrapper around a module, at any depth.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_module", "module", "base_layer")
# What training keeps beside the network and evaluation does not use: words in the first part of a name, and the counters
# of averaged models. Nothing else is left out, because a buffer such as `mean` can be a part of the computation.
_BESIDE = {"criterion", "loss", "losses", "ema", "swa", "averaged"}
# Metrics count, and have no weight and no bias: a layer can be called f1.
_METRICS = {"metric", "metrics", "acc", "accuracy", "auroc", "auc", "f1", "precision", "recall", "confusion", "confmat"}
# What thop adds to every module when it counts operations.
_COUNTED = {"total_ops", "total_params"}
_COUNTERS = {"n_averaged", "num_updates", "decay", "initted", "step"}
T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]


# ---- names ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View(Generic[T]):
    """Weights under shorter names. removed: the prefixes removed from all names. left_out: full names of tensors not used."""

    tensors: dict[str, T]
    removed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def views(tensors: Mapping[str, T]) -> Iterator[View[T]]:
    """The ways to read the names of weights, the most literal first.

    Removed are up to four leading parts that all names share (module., _orig_mod., model., a name of the user's own),
    wrappers inside names, and losses, metrics and averaged copies beside the network.
    """
    yield from _shortened(View(dict(tensors)))
    found = {part for name in tensors for part in name.split(".") if part in _WRAPPERS}
    inner = {".".join(part for part in name.split(".") if part not in found): item for name, item in tensors.items()}
    if found and len(inner) == len(tensors):
        yield from _shortened(View(inner, tuple(f"{part}." for part in sorted(found))))


def shared_prefixes(names: Iterable[str]) -> list[str]:
    """Prefixes that `views` may remove from all names, the outermost first: ["module.", "_orig_mod."]."""
    *_, shortest = _shortened(View(dict.fromkeys(names)))
    return list(shortest.removed)


def _shortened(view: View[T]) -> Iterator[View[T]]:
    yield view
    while True:
        kept = {name: item for name, item in view.tensors.items() if not _is_beside(name)}
        if 0 < len(kept) < len(view.tensors):
            dropped = ("".join(view.removed) + name for name in view.tensors if name not in kept)
            view = View(kept, view.removed, (*view.left_out, *dropped))
            yield view
        heads = {name.partition(".")[0] for name in view.tensors}
        is_end = len(heads) != 1 or any("." not in name for name in view.tensors)
        if is_end or len(view.removed) == _MOST_PREFIXES:
            return
        shared = f"{heads.pop()}."
        shorter = {name.removeprefix(shared): item for name, item in view.tensors.items()}
        view = View(shorter, (*view.removed, shared), view.left_out)
        yield view


def _is_beside(name: str) -> bool:
    first, dot, _ = name.partition(".")
    last = name.rpartition(".")[2]
    words = _BESIDE if last in ("weight", "bias") else _BESIDE | _METRICS
    return (
        name in _COUNTERS
        or last in _COUNTED
        or (bool(dot) and not words.isdisjoint(re.split(r"[^a-z0-9]+", first.lower())))
    )


def is_step_counter(name: str) -> bool:
    """Whether it is num_batches_tracked of BatchNorm, which evaluation does not use and old files lack."""
    return name.endswith("num_batches_tracked")


# ---- recognition ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """An architecture and its arguments. classes: read from the head of the weights; None without a head."""

    arch: str
    arguments: dict[str, Any]
    classes: int | None

    def __str__(self) -> str:
        return self.arch + "".join(f", {key}={value}" for key, value in self.arguments.items())


def recognise(shapes: Shapes) -> list[Match]:
    """All known architectures that have these weights, under the most literal reading of their names."""
    for view in views(shapes):
        found = [_match(row, view.tensors) for row in _table() if _fits(row, view.tensors)]
        if found:
            return found
    return []


def _fits(row: dict[str, Any], shapes: Shapes) -> bool:
    if _count(shapes) != row["count"] or not all(shapes.get(name) for name in row["heads"]):
        return False
    return len({shapes[name][0] for name in row["heads"]}) <= 1 and digest(shapes, row["heads"]) == row["digest"]


def _match(row: dict[str, Any], shapes: Shapes) -> Match:
    classes = shapes[row["heads"][-1]][0] if row["heads"] else None
    more = {} if classes is None else {"num_classes": classes}
    return Match(row["arch"], {**row["arguments"], **more}, classes)


def _count(shapes: Shapes) -> int:
    return sum(not is_step_counter(name) for name in shapes)


def digest(shapes: Shapes, heads: Iterable[str]) -> str:
    """A hash of names and shapes, without the rows of the head and BatchNorm's step counters."""
    lines = sorted(
        f"{name}:{'x'.join(map(str, ('*', *shape[1:]) if name in heads else shape))}"
        for name, shape in shapes.items()
        if not is_step_counter(name)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


@cache
def _table() -> list[dict[str, Any]]:
    return json.loads(_FILE.read_text())


@dataclass(frozen=True)
class Near:
    """An architecture that nearly fits: names of weights that only it has, that only the file has, and of other shapes."""

    arch: str
    missing: list[str]
    other: list[str]
    reshaped: list[str]

    def __str__(self) -> str:
        groups = {"missing": self.missing, "other": self.other, "of another shape": self.reshaped}
        parts = [f"{len(names)} {what} ({', '.join(names[:2])})" for what, names in groups.items() if names]
        return f"{self.arch}: {', '.join(parts)}"


def nearest(shapes: Shapes, count: int = 3) -> list[Near]:
    """The known architectures that share at least half of the names and shapes, the best first. For error messages: it takes seconds."""
    readings = [view.tensors for view in views(shapes)]
    sizes = [_count(names) for names in readings]
    rows = sorted(_table(), key=lambda row: min(abs(row["count"] - size) for size in sizes))
    scored = []
    for row in rows[:_CANDIDATES]:
        theirs = outline(row["arch"], row["arguments"])
        score, near = max((_compare(row, theirs, ours) for ours in readings), key=lambda pair: pair[0])
        if score >= _NEAR:
            scored.append((-score, near.arch, near))
    return [near for _, _, near in sorted(scored, key=lambda entry: entry[:2])[:count]]


def _compare(row: dict[str, Any], theirs: Shapes, ours: Shapes) -> tuple[float, Near]:
    """The share of names and shapes in common, without the width of the head."""
    cut = dict.fromkeys(row["heads"], 1)
    known, names = ({name for name in part if not is_step_counter(name)} for part in (theirs, ours))
    both = known & names
    same = {name for name in both if theirs[name][cut.get(name, 0) :] == ours[name][cut.get(name, 0) :]}
    near = Near(row["arch"], sorted(known - names), sorted(names - known), sorted(both - same))
    return len(same) / max(len(known | names), 1), near


# ---- networks without memory ---------------------------------------------------------------------------


def build_empty(arch: str, arguments: dict[str, Any], weights: Shapes | None = None) -> "nn.Module":
    """A network whose weights are on the meta device: they have shapes and no numbers.

    weights: those that the network is for. Raises UsageError where it cannot be built, or has far more parameters than
    they have tensors. Not `torch.device("meta")`, because regnets and others compute with small tensors while they are built.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook
    from torch.overrides import TorchFunctionMode

    from lsa_cli.models.architectures import build_architecture

    class EmptyOnMeta(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = kwargs or {}
            if func is torch.empty and options.get("device") is None:
                options = {**options, "device": "meta"}
            return func(*args, **options)

    count, at_most = 0, None if weights is None else 4 * len(weights) + 1000

    def registered(*_: Any) -> None:
        nonlocal count
        count += 1
        if at_most is not None and count > at_most:
            raise ValueError(f"it has more than {at_most:,} parameters, and the file far fewer tensors")

    hook = register_module_parameter_registration_hook(registered)
    try:
        with EmptyOnMeta():
            return build_architecture(arch, arguments)
    finally:
        hook.remove()


def outline(arch: str, arguments: dict[str, Any], weights: Shapes | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's weights. Raises UsageError as `build_empty` does."""
    state = build_empty(arch, arguments, weights).state_dict()
    return {
        name: tuple(item.shape) for name, item in state.items() if hasattr(item, "shape")
    }  # other objects are no weights


def head_of(arch: str, arguments: dict[str, Any], weights: Shapes | None = None) -> list[str]:
    """Names of the weights whose size is the number of classes; empty where the network has no num_classes."""
    try:
        seven, eleven = (outline(arch, {**arguments, "num_classes": classes}, weights) for classes in (7, 11))
    except UsageError:
        return []
    return [name for name in seven if seven[name] != eleven.get(name)]


def classes_of(arch: str, arguments: dict[str, Any], shapes: Shapes) -> int | None:
    """The number of classes that weights of this architecture were trained for, read from its head."""
    head = head_of(arch, arguments, shapes)
    for view in views(shapes):
        if head and all(view.tensors.get(name) for name in head):
            return view.tensors[head[-1]][0]
    return None


def signature(arch: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    shapes, heads = outline(arch, arguments), head_of(arch, arguments)
    return {
        "arch": arch, "arguments": arguments, "count": _count(shapes), "heads": heads, "digest": digest(shapes, heads),
    }  # fmt: skip


def known_architectures() -> list[tuple[str, dict[str, Any]]]:
    """All architectures of the table: the classifiers of torchvision and the networks of lsa."""
    from torchvision import models

    from lsa_cli.models.architectures import ARCHITECTURES

    listed: list[tuple[str, dict[str, Any]]] = [(f"lsa:{name}", {}) for name in ARCHITECTURES.names()]
    for name in models.list_models(module=models):
        listed.append((f"torchvision:{name}", {}))
        if name in ("googlenet", "inception_v3"):
            listed.append((f"torchvision:{name}", {"aux_logits": False}))
    return listed


if __name__ == "__main__":
    rows = [signature(arch, arguments) for arch, arguments in known_architectures()]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    sys.stdout.write(f"[\n{lines}\n]\n")
