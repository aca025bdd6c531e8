"""Whether weights fit a network, by their names and shapes, and loading them strictly."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from lsa_cli.errors import CheckpointError
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.models.parametrizations import Stored, kinds_of, put_together, read
from lsa_cli.models.pickles.composed import QuantisedSpec, SparseSpec
from lsa_cli.models.recognition import View, is_step_counter, views
from lsa_cli.models.wrappers import finish_lazy_layers
from lsa_cli.wording import plural

# What is audited of a quantised file.
NOT_DEPLOYED = (
    "the float network with the values of these weights is audited, whose activations are not rounded, and not the "
    "quantised one"
)


@dataclass(frozen=True)
class Fit:
    """How weights, under one reading of their names, fit a network.

    counters: step counters of BatchNorm that are absent or unusual. missing, unexpected, wrong: names of weights.
    """

    view: View[Stored]
    counters: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def misfits(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.wrong)


def load_strictly(body: nn.Module, checkpoint: Checkpoint, where: str, notes: list[str]) -> Fit:
    """Load weights whose names and shapes must all fit, under one of the readings of `recognition.views`.

    Weights that are stored in parts (pruning, weight norm, spectral norm) are computed where the network has them whole.
    Lazy layers get the sizes of their weights. Only what evaluation does not use may be absent or odd: BatchNorm's step
    counters, and what training leaves beside the network. Tensors are read one at a time into the network, so memory
    holds the weights once. Raises CheckpointError with counts and first names of what does not fit.
    """
    best = best_fit(body, checkpoint, where)
    _say_reading(best, notes)
    lazy = {name: item for name, item in tensors_of(body).items() if nn.parameter.is_lazy(item)}
    for name, item in lazy.items():
        item.materialize(best.view.tensors[name].shape)
    finish_lazy_layers(body)
    own = tensors_of(body)
    tensors = {name: spec for name, spec in best.view.tensors.items() if name in own and name not in best.counters}
    say_types(tensors.values(), notes)
    with torch.no_grad():
        for name, spec in tensors.items():
            own[name].copy_(read(spec, checkpoint.load))
    kept = body.state_dict()
    if any(kept[name].data_ptr() != item.data_ptr() for name, item in own.items()):
        raise CheckpointError(f"{where}: the network gives copies of its weights, so that none can be loaded into it")
    refuse_infinite(own, where)
    return best


def tensors_of(body: nn.Module) -> dict[str, torch.Tensor]:
    return {name: item for name, item in body.state_dict().items() if isinstance(item, torch.Tensor)}


def best_fit(body: nn.Module, checkpoint: Checkpoint, where: str) -> Fit:
    """The reading of the weights' names that fits the network. Raises CheckpointError where none does, or several do."""
    own, stored = tensors_of(body), checkpoint.weights.tensors
    whole = put_together(stored, body)
    fits = [_fit(view, own) for tensors in (stored, whole) for view in views(tensors)]
    best = min(fits, key=lambda fit: fit.misfits)  # of equals the most literal
    if not best.misfits:
        return best
    parts = [fit for start in _starts(whole) if not (fit := _fit_of_part(whole, start, own)).misfits]
    if parts and _is_nothing_else(parts, whole, checkpoint):
        return parts[0]
    advice = "is this the right --arch and --arch-args?"
    if any(map(nn.parameter.is_lazy, own.values())):
        advice += " Its lazy layers take the sizes of their weights"
    if parts:
        start = parts[0].view.removed[0]
        advice = f"those under '{start}' alone would fit: --weights {start.removesuffix('.')}"
    elif any(".lora_A." in name or ".lora_B." in name for name in best.unexpected):
        advice = "it holds factors of LoRA beside the weights; save the network that model.merge_and_unload() returns"
    elif left := sorted(name for name in best.unexpected if "parametrizations." in name or name.endswith("_orig")):
        advice = (
            f"{left[0]} is a part of a parametrized weight, which the network does not have or which its tensors do not "
            "determine; give an --arch that has it, or take it off before saving (torch.nn.utils.parametrize.remove_parametrizations)"
        )
    raise CheckpointError(f"{where} do not fit: {_misfit(best, own)}; {advice}")


def _fit(view: View[Stored], own: Mapping[str, torch.Tensor]) -> Fit:
    fit = Fit(view)
    for name, tensor in own.items():
        spec = view.tensors.get(name)
        fits = spec is not None and _has_shape(tensor, spec) and _kind(spec.dtype) == _kind(str(tensor.dtype))
        if is_step_counter(name) and not fits:
            fit.counters.append(name)
        elif spec is None:
            fit.missing.append(name)
        elif not fits:
            fit.wrong.append(name)
    fit.unexpected.extend(name for name in view.tensors if name not in own and not is_step_counter(name))
    return fit


# ---- one network among several in the same set of weights ----------------------------------------------


def _starts(tensors: Iterable[str]) -> list[str]:
    """Prefixes of names, each with its dot, the shortest first: "module.", "module.model."."""
    found = {name[: place + 1] for name in tensors for place, letter in enumerate(name) if letter == "."}
    return sorted(found, key=lambda start: (start.count("."), start))


def _fit_of_part(tensors: Mapping[str, Stored], start: str, own: Mapping[str, torch.Tensor]) -> Fit:
    part = {name.removeprefix(start): item for name, item in tensors.items() if name.startswith(start)}
    left_out = tuple(name for name in tensors if not name.startswith(start))
    return _fit(View(part, (start,), left_out), own)


def _is_nothing_else(parts: list[Fit], tensors: Mapping[str, Stored], checkpoint: Checkpoint) -> bool:
    """Whether the file holds beside a part that fits only the same weights again, and the mean and std of images."""
    first, *others = (fit.view for fit in parts)
    starts = tuple(fit.view.removed[0] for fit in parts)
    rest = {name: item for name, item in tensors.items() if not name.startswith(starts)}
    return all(_is_mean_or_std(name, item) for name, item in rest.items()) and all(
        _are_equal(view.tensors, first.tensors, checkpoint) for view in others
    )


def _are_equal(one: Mapping[str, Stored], other: Mapping[str, Stored], checkpoint: Checkpoint) -> bool:
    return one.keys() == other.keys() and all(
        item == other[name] or torch.equal(read(item, checkpoint.load), read(other[name], checkpoint.load))
        for name, item in one.items()
    )


def _is_mean_or_std(name: str, item: Stored) -> bool:
    """Whether it has a name that the `robustness` library uses. Any other mean may be part of the computation."""
    return name.rpartition(".")[2] in ("new_mean", "new_std") and math.prod(item.shape) in (1, 3)


def normalization_in(fit: Fit, checkpoint: Checkpoint) -> str | None:
    """The mean and std beside the network, as MEAN/STD; None where there are none."""
    tensors = checkpoint.weights.tensors
    for name in fit.view.left_out:
        pair = (name, name.removesuffix("new_mean") + "new_std")
        if name.endswith("new_mean") and all(key in tensors and _is_mean_or_std(key, tensors[key]) for key in pair):
            numbers = (checkpoint.load(tensors[key]).flatten().tolist() for key in pair)
            return "/".join(",".join(f"{number:.6g}" for number in part) for part in numbers)
    return None


def _has_shape(tensor: torch.Tensor, spec: Stored) -> bool:
    """Whether a tensor of the network has the shape of the weight. A lazy layer takes any shape."""
    return nn.parameter.is_lazy(tensor) or spec.shape == tuple(tensor.shape)


def _kind(dtype: str) -> str:
    """The kind of a dtype: float, complex, or int. Copying between kinds would change values."""
    return next((kind for kind in ("float", "complex") if kind in dtype), "int")


def _misfit(fit: Fit, own: Mapping[str, torch.Tensor]) -> str:
    problems = [
        f"{len(names)} {what} (first: {', '.join(names[:3])})"
        for what, names in (("missing", fit.missing), ("unexpected", fit.unexpected))
        if names
    ]
    if fit.wrong:
        details = []
        for name in fit.wrong[:3]:
            stored, wanted = fit.view.tensors[name], own[name]
            if _has_shape(wanted, stored):
                details.append(f"{name} is of type {stored.dtype}")
            else:
                details.append(f"{name} is {stored.shape}, the network has {tuple(wanted.shape)}")
        problems.append(f"{len(fit.wrong)} of another shape or type ({', '.join(details)})")
    return "; ".join(problems)


def _say_reading(fit: Fit, notes: list[str]) -> None:
    if fit.view.removed:
        notes.append(f"prefix '{''.join(fit.view.removed)}' removed from the names of the weights")
    if fit.view.left_out:
        named = ", ".join(fit.view.left_out[:3])
        notes.append(f"{len(fit.view.left_out)} tensors beside the network are not used: {named}")
    for kind, count in kinds_of(fit.view.tensors).items():
        notes.append(
            f"{kind} of {count} weights was undone: each was computed from its parts, as the trained network computes it"
        )
    if fit.counters:
        notes.append(f"{len(fit.counters)} BatchNorm step counters are absent or odd; evaluation does not use them")


def say_types(specs: Iterable[Stored], notes: list[str]) -> None:
    specs = list(specs)
    for count, text in (
        (
            sum(isinstance(spec, SparseSpec) for spec in specs),
            "sparse tensors were made dense, which changes no number",
        ),
        (sum(isinstance(spec, QuantisedSpec) for spec in specs), f"quantised weights were made floats: {NOT_DEPLOYED}"),
    ):
        if count:
            notes.append(f"{count} {text}")
    others = sorted({spec.dtype for spec in specs if "float" in spec.dtype and spec.dtype != "float32"})
    if others:
        notes.append(f"weights stored as {', '.join(others)} were converted to float32")


def refuse_infinite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    infinite = [name for name, item in tensors.items() if item.is_floating_point() and not torch.isfinite(item).all()]
    if infinite:
        verb = "holds" if len(infinite) == 1 else "hold"
        raise CheckpointError(
            f"{where}: {plural(len(infinite), 'tensor')} {verb} NaN or infinity (first: {infinite[0]}); the training "
            "diverged, take an earlier checkpoint"
        )
