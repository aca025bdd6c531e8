"""The sets of weights in a model file, and the choice of one."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsa_cli.errors import CheckpointError, UsageError
from lsa_cli.models.formats import Contents
from lsa_cli.models.pickles.arrays import Inside
from lsa_cli.models.pickles.composed import QuantisedSpec
from lsa_cli.models.pickles.modules import is_module, tensors_of
from lsa_cli.models.pickles.symbols import Call, TensorSpec
from lsa_cli.registry import unknown

# Where training scripts put the weights, the one to use first.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module", "state")
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa)|averaged|(Ema|EMA|SWA)")
_NOT_WEIGHTS = ("optim", "sched", "scaler", "callback", "loops", "hparam", "hyper_param", "args", "config", "rng")
_DEEPEST = 5


@dataclass(frozen=True)
class Weights:
    """One set of weights in a file: the keys that lead to it, its tensors, and the module that it was pickled in, if any.

    roundings: of a quantised network, the scale and the zero point of the activations of each module.
    """

    keys: tuple[str, ...]
    tensors: dict[str, TensorSpec]
    module: Call | None = None
    roundings: dict[str, tuple[TensorSpec, TensorSpec]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return ".".join(self.keys)

    @property
    def is_averaged(self) -> bool:
        return _AVERAGED.search(self.place) is not None

    @property
    def parameters(self) -> int:
        """Number of parameters, by their names. A tensor under several names counts once."""
        return sum(spec.numel for spec in {spec for name, spec in self.tensors.items() if is_parameter(name, spec)})

    @property
    def quantised(self) -> int:
        """Number of quantised weights."""
        return sum(isinstance(spec, QuantisedSpec) for spec in self.tensors.values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: spec.shape for name, spec in self.tensors.items()}


# What no optimizer trains: BatchNorm's buffers and AveragedModel's counter. Names do not show other buffers.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "n_averaged")


def is_parameter(name: str, spec: TensorSpec) -> bool:
    return "float" in spec.dtype and name.rpartition(".")[2] not in _BUFFERS


def find_weights(root: Any) -> list[Weights]:
    """All sets of weights in a file, in order. Tensors of an optimizer are not weights.

    Arrays of numpy are weights where there are no tensors: beside tensors they are logs.
    """
    found = list(_find(root, (), set()))
    with_tensors = [
        weights
        for weights in found
        if not weights.tensors or not all(isinstance(spec.storage, Inside) for spec in weights.tensors.values())
    ]
    return with_tensors or found


def _find(value: Any, place: tuple[str, ...], seen: set[int]) -> Iterator[Weights]:
    if len(place) > _DEEPEST or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Call):
        tensors = tensors_of(value)
        if tensors or is_module(value):
            yield Weights(place, tensors, value)
            return
        value = dict(value.items) if value.items and all(_is_pair(item) for item in value.items) else None
    if not isinstance(value, (dict, list, tuple)):
        return
    roundings: dict[str, tuple[TensorSpec, TensorSpec]] = {}
    if isinstance(value, dict):
        value, roundings = _unpacked(value)
    entries = list(value.items() if isinstance(value, dict) else enumerate(value))
    tensors = {str(key): item for key, item in entries if isinstance(item, TensorSpec)}
    if len(tensors) < sum(isinstance(item, TensorSpec) for _, item in entries):
        raise CheckpointError(
            f"two weights in '{'.'.join(place)}' have the same name, once as a number and once as text; refused"
        )
    if isinstance(value, dict) and tensors and len(tensors) >= 0.9 * len(entries):
        yield Weights(place, tensors, roundings=roundings)
        return
    for key, item in entries[:10_000]:
        name = str(key)
        if not any(word in name.lower() for word in _NOT_WEIGHTS):
            yield from _find(item, (*place, name), seen)


def _unpacked(entries: dict[Any, Any]) -> tuple[dict[Any, Any], dict[str, tuple[TensorSpec, TensorSpec]]]:
    """The entries of a quantised network's state_dict under the names of a float network, and `Weights.roundings`.

    A quantised linear layer packs its weight and its bias.
    """
    made: dict[Any, Any] = {}
    for key, item in entries.items():
        head, mark, last = str(key).rpartition("_packed_params.")
        is_pair = mark and last == "_packed_params" and isinstance(item, tuple) and len(item) == 2
        if is_pair and isinstance(item[0], QuantisedSpec):
            weight, bias = item
            made[f"{head}weight"] = weight
            if bias is not None:
                made[f"{head}bias"] = bias
        elif not (mark and last == "dtype"):
            made[key] = item
    if not any(isinstance(item, QuantisedSpec) for item in made.values()):
        return entries, {}
    roundings = {}
    for head in [str(key).removesuffix(".scale") for key in made if str(key).endswith(".scale")]:
        pair: tuple[Any, Any] = (made[f"{head}.scale"], made.get(f"{head}.zero_point"))
        if all(isinstance(item, TensorSpec) and item.numel == 1 for item in pair):
            roundings[head] = pair
    beside = {f"{head}.{name}" for head in roundings for name in ("scale", "zero_point")}
    return {key: item for key, item in made.items() if key not in beside}, roundings


def _is_pair(item: Any) -> bool:
    """Whether an item of an object is an entry of a dictionary: a user's class can extend dict."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


def choose(path: Path, contents: Contents, found: list[Weights], wanted: str | None, notes: list[str]) -> Weights:
    """The set of weights called `wanted`, else the one in the usual place. The reason is added to `notes`.

    Raises CheckpointError when there is none, UsageError when several could be meant.
    """
    places = [weights.place or "(top)" for weights in found]
    if wanted is not None:
        exact = [weights for weights in found if wanted in (weights.place, *weights.keys[-1:])]
        exact = exact or [part for weights in found if (part := _under(weights, wanted)).tensors]
        if len(exact) != 1:
            raise UsageError(f"--weights: {unknown('set of weights in ' + str(path), wanted, places)}")
        notes.append(f"weights taken from '{wanted}', by --weights")
        return exact[0]
    if not found:
        raise CheckpointError(_no_weights(path, contents))
    plain = [weights for weights in found if not weights.is_averaged]
    chosen = _by_wrapper(plain or found)
    if chosen is None:
        raise UsageError(f"{path} holds several sets of weights; choose one with --weights: {', '.join(places)}")
    if chosen.place and chosen.place != "state_dict":
        notes.append(f"weights taken from the entry '{chosen.place}'")
    averaged = [weights.place for weights in found if weights.is_averaged and weights is not chosen]
    if averaged:
        notes.append(f"the file also holds averaged weights: --weights {averaged[0]}")
    return chosen


def _under(weights: Weights, start: str) -> Weights:
    """The weights whose names start with `start` and a dot, under the rest of their names."""
    names = {name: spec for name, spec in weights.tensors.items() if name.startswith(f"{start}.")}
    return Weights(
        (*weights.keys, start),
        {name.removeprefix(f"{start}."): spec for name, spec in names.items()},
        roundings={
            name.removeprefix(f"{start}."): pair
            for name, pair in weights.roundings.items()
            if name.startswith(f"{start}.")
        },
    )


def _by_wrapper(candidates: list[Weights]) -> Weights | None:
    """The only set, the one at the top, or the first under one of the usual names."""
    if len(candidates) == 1:
        return candidates[0]
    for wrapper in ("", *_WRAPPERS):
        named = [weights for weights in candidates if (weights.keys or ("",))[0] == wrapper]
        if len(named) == 1:
            return named[0]
    return None


def _no_weights(path: Path, contents: Contents) -> str:
    root = contents.root
    if contents.format == "pickle":
        names = ", ".join(contents.globals[:5]) or "nothing"
        return (
            f"{path} is a bare pickle, which could run any code when read (it would import {names}); save "
            "model.state_dict() with torch.save instead"
        )
    if contents.format == "torchscript":
        return f"{path} is a frozen program: its weights are constants of the code; save the model before freezing"
    if isinstance(root, dict):
        keys = ", ".join(str(key) for key in list(root)[:8])
        return f"{path}: no weights found under {', '.join(_WRAPPERS)}; the file holds {keys or 'nothing'}"
    what = root.class_name if isinstance(root, Call) else type(root).__name__
    return f"{path} holds {what}, not a dictionary of weights; save model.state_dict() with torch.save"
