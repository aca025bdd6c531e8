"""From a Checkpoint to a network: the architecture, the weights loaded strictly, and what was done for it."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lsa_cli.errors import CheckpointError, UsageError
from lsa_cli.imports import Home, home_of
from lsa_cli.models import recognition, rehydration
from lsa_cli.models.architectures import build_architecture, runs_user_code
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.models.formats import FORMATS
from lsa_cli.models.parametrizations import Stored, kinds_of, put_together, read
from lsa_cli.models.pickles.modules import is_module
from lsa_cli.models.pickles.symbols import Call
from lsa_cli.models.recognition import View, is_step_counter, views
from lsa_cli.models.surgery import operate
from lsa_cli.models.wrappers import finish_lazy_layers, is_script

_SAFEST_TORCH = (2, 10)
_MOST_CLASSES, _LARGEST_ARGUMENT = 10**7, 10**4  # whole numbers in a network's arguments
_NAME_IT = "name the network with --arch torchvision:resnet18, timm:NAME, pkg.mod:factory or path/to/file.py:factory"
# Networks that torchvision's own weights are used in with an argument that leaves no trace in the weights.
_TRACELESS = {"torchvision:googlenet": "transform_input", "torchvision:inception_v3": "transform_input"}
# What checkpoints of any kind have no use for and hostile pickles have. Not what safety rests on: nothing is called.
_SYSTEM = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "ctypes", "importlib", "imp", "runpy", "pty", "code",
    "codeop", "webbrowser", "commands", "popen2", "pdb", "bdb", "timeit", "profile", "cProfile", "trace", "pip", "pydoc",
    "marshal", "pickle", "_pickle", "cPickle", "dill", "asyncio", "http", "urllib", "urllib2", "requests", "httpx", "ftplib",
    "smtplib", "tempfile", "linecache", "platform", "pkgutil", "ensurepip", "venv", "idlelib", "lib2to3", "nturl2path",
}  # fmt: skip
_LOADERS = (
    "torch.load", "torch.hub.", "torch.jit.load", "torch.package.", "torch.serialization.load", "torch.ops.load_library",
    "torch.utils.cpp_extension.", "torch._inductor.", "torch.distributed.elastic.", "numpy.load", "numpy.f2py.",
    "types.FunctionType", "types.CodeType", "operator.attrgetter", "operator.methodcaller",
)  # fmt: skip
_BUILTINS = {
    "eval",
    "exec",
    "execfile",
    "compile",
    "__import__",
    "open",
    "input",
    "breakpoint",
    "apply",
    "file",
    "globals",
}
_WAYS_ROUND = {
    "os", "sys", "subprocess", "__globals__", "__builtins__", "__subclasses__", "__getattribute__", "__reduce__",
}  # fmt: skip
Say = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """A network with the file's weights.

    arch: the spec that built it, or what it is. shows_layers: hooks can see in. home: its imports are found within.
    normalization: mean and std that the file holds beside the network, as --normalize has them.
    """

    body: nn.Module
    arch: str
    arch_args: dict[str, Any]
    notes: list[str]
    shows_layers: bool = True
    home: AbstractContextManager[object] = field(default_factory=nullcontext)
    normalization: str | None = None


def load_network(
    checkpoint: Checkpoint,
    arch: str | None,
    arch_args: dict[str, Any],
    *,
    trust_code: bool = False,
    say: Say = lambda message: None,
    device: torch.device | None = None,
) -> Loaded:
    """The network of a file: of the architecture named, else the file's own, else the one that its weights fit.

    say: told what trusted code imports, before it does. device: where a trusted program is loaded; every other
    network is built on the CPU. Raises UsageError when the architecture is unknown, CheckpointError when the weights
    do not fit it or reading the network would run code that nobody trusted.
    """
    refuse_unsafe_torch(torch.__version__)
    if not trust_code:
        _refuse_hostile(checkpoint)
    notes = list(checkpoint.notes)
    refusal = checkpoint.compare()
    if refusal is not None and checkpoint.weights.module is None:
        notes.append(f"torch.load(weights_only=True) refuses this file ({refusal}): lsa read it by itself")
    if arch is None and checkpoint.description is not None and checkpoint.description.architecture:
        arch, arch_args = checkpoint.description.architecture, {**checkpoint.description.arch_args, **arch_args}
    if arch is not None:
        return _from_arch(checkpoint, arch, arch_args, notes)
    if FORMATS[checkpoint.format].is_program:
        return _from_program(checkpoint, trust_code, say, device or torch.device("cpu"), notes)
    if checkpoint.weights.module is not None:
        return _from_module(checkpoint, checkpoint.weights.module, trust_code, say, notes)
    match = _recognised(checkpoint)
    notes.append(f"architecture found by the names and shapes of the weights: {match}")
    if match.arch in _TRACELESS and _TRACELESS[match.arch] not in arch_args:
        notes.append(
            f"the weights do not tell {_TRACELESS[match.arch]}: for torchvision's own give "
            f"--arch-args {_TRACELESS[match.arch]}=true"
        )
    return _from_arch(checkpoint, match.arch, {**match.arguments, **arch_args}, notes)


def _refuse_hostile(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for a file that reaches for the system. Nothing of it would run: but who wrote it?"""
    hostile = [name for name in checkpoint.globals if is_hostile(name)]
    if hostile:
        raise CheckpointError(
            f"{checkpoint.path} would call {', '.join(hostile[:3])} when it is unpickled, as no checkpoint needs to: it "
            "is refused as hostile; get the weights from a source that you trust"
        )


def is_hostile(name: str) -> bool:
    """Whether a global that a pickle names is a way to the system, to other code or to other files."""
    root, *rest = name.split(".")
    if root in ("builtins", "__builtin__") and not _BUILTINS.isdisjoint(rest):
        return True
    return root in _SYSTEM or name.startswith(_LOADERS) or not _WAYS_ROUND.isdisjoint(rest)


def refuse_unsafe_torch(version: str) -> None:
    """Raises UsageError for torch releases where weights_only=True can be got around (CVE-2025-32434, -2026-24747)."""
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _SAFEST_TORCH:
        raise UsageError(
            f"torch {version} has known ways around its safe loading of checkpoints; install torch "
            f"{_SAFEST_TORCH[0]}.{_SAFEST_TORCH[1]} or later"
        )


# ---- where the network comes from ----------------------------------------------------------------------


def _from_arch(checkpoint: Checkpoint, arch: str, arch_args: dict[str, Any], notes: list[str]) -> Loaded:
    if not checkpoint.weights.tensors:
        raise CheckpointError(f"{checkpoint.path} holds no weights that could be put into {arch}")
    arguments, is_own_code = dict(arch_args), runs_user_code(arch)
    if not is_own_code:
        _refuse_enormous(arguments)
    if not is_own_code and "num_classes" not in arguments:
        classes = recognition.classes_of(arch, arguments, _shapes(checkpoint))
        if classes is not None:
            arguments["num_classes"] = classes
            if checkpoint.description is None:
                notes.append(f"num_classes={classes} read from the width of the last layer")
    if checkpoint.weights.module is not None or FORMATS[checkpoint.format].is_program:
        notes.append(f"weights taken out of a {_what(checkpoint)}, of which nothing was run")
    where = f"{checkpoint.path} and {arch}"
    surgeries = checkpoint.description.surgery if checkpoint.description is not None else []
    if not is_own_code:
        # Without memory first: a file may claim any size for a network, and any arguments.
        empty = recognition.build_empty(arch, arguments, recognition.most_parameters(_shapes(checkpoint)))
        with torch.device("meta"):
            empty = operate(empty, surgeries)
        _best_fit(empty, checkpoint, where)
    body = operate(build_architecture(arch, arguments), surgeries)
    fit = load_strictly(body, checkpoint, where, notes)
    home = home_of(arch) if is_own_code else nullcontext()
    return Loaded(body.float(), arch, arguments, notes, shows_layers=not is_script(body), home=home,
                  normalization=_normalization_in(fit, checkpoint))  # fmt: skip


def _refuse_enormous(arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        largest = _MOST_CLASSES if name == "num_classes" else _LARGEST_ARGUMENT
        if isinstance(value, int) and not -largest <= value <= largest:
            raise UsageError(f"the argument {name} of the network is beyond {largest:,}, as that of no network is")


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Of the weights, put together where they stand in parts."""
    return {name: item.shape for name, item in put_together(checkpoint.weights.tensors).items()}


def _what(checkpoint: Checkpoint) -> str:
    kind = FORMATS[checkpoint.format]
    return kind.title if kind.is_program else "network that was pickled whole"


def _from_program(checkpoint: Checkpoint, trust_code: bool, say: Say, device: torch.device, notes: list[str]) -> Loaded:
    if not trust_code:
        raise CheckpointError(
            f"{checkpoint.path} is a {_what(checkpoint)}, which is code: name the network with --arch to use its "
            f"weights alone{_likely(checkpoint)}, or run the program with --trust-code --layers none"
        )
    notes.append(f"the {_what(checkpoint)} in the file was run, as trusted; it shows no layers")
    say(f"--trust-code: the program in {checkpoint.path} is loaded and run; it imports {_names(checkpoint)}")
    program = rehydration.run_trusted(checkpoint.path, checkpoint.format, (), device)
    return Loaded(program, checkpoint.format, {}, notes, shows_layers=False)


def _from_module(checkpoint: Checkpoint, module: Call, trust_code: bool, say: Say, notes: list[str]) -> Loaded:
    body, obstacle = rehydration.rebuild(module, checkpoint.load)
    home = Home((checkpoint.path.resolve().parent,), last=True)
    if body is not None:
        notes.append(f"network rebuilt from installed classes ({module.class_name}); nothing of the file was run")
    elif trust_code:
        say(
            f"--trust-code: {checkpoint.path} is unpickled, which imports {_names(checkpoint)}; what is not installed is "
            "looked for in the working directory and in its own folder"
        )
        with home:
            body = rehydration.run_trusted(
                checkpoint.path, checkpoint.format, checkpoint.weights.keys, torch.device("cpu")
            )
        notes.append("the file was unpickled, which runs its code, as trusted")
    elif checkpoint.format == "pickle":
        raise CheckpointError(
            f"{checkpoint.path} is a bare pickle, whose weights are pickles too and cannot be read without running it; "
            "save model.state_dict() with torch.save, or trust the file with --trust-code"
        )
    elif is_module(module):
        raise CheckpointError(
            f"{checkpoint.path} holds a whole network of class {module.class_name}, which is code of its own: loading "
            f"it would import {obstacle}. Name the network with --arch to use its weights alone{_likely(checkpoint)}, or trust the file "
            "with --trust-code"
        )
    else:
        raise CheckpointError(
            f"{checkpoint.path} holds {module.class_name}, which is no network; save model.state_dict()"
        )
    _say_types(checkpoint.weights.tensors.values(), notes)
    body = body.float()
    _refuse_infinite(body, str(checkpoint.path))
    return Loaded(body, module.class_name, {}, notes, shows_layers=not is_script(body), home=home)


def _names(checkpoint: Checkpoint) -> str:
    return ", ".join(checkpoint.globals) or "nothing by name"


def _likely(checkpoint: Checkpoint) -> str:
    matches = recognition.recognise(_shapes(checkpoint))
    return f" (they fit {matches[0].arch})" if len(matches) == 1 else ""


def _recognised(checkpoint: Checkpoint) -> recognition.Match:
    shapes = _shapes(checkpoint)
    matches = recognition.recognise(shapes)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{checkpoint.path} fits several networks: {', '.join(map(str, matches))}; {_NAME_IT}")
    if checkpoint.transformers_class is not None:
        raise UsageError(
            f"{checkpoint.path} holds {checkpoint.transformers_class} of Hugging Face transformers, whose names of "
            "weights fit no network of torchvision or timm; write a function that returns "
            "transformers.AutoModelForImageClassification.from_config(...) and give it as --arch path/to/file.py:function"
        )
    near = " | ".join(map(str, recognition.nearest(shapes)))
    nearest = f"; nearest are {near}" if near else ""
    raise UsageError(f"{checkpoint.path} holds weights of no network that lsa knows by itself{nearest}; {_NAME_IT}")


# ---- strict loading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    """How weights under one reading of their names fit a network. counters: BatchNorm's, absent or odd."""

    view: View[Stored]
    counters: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def misfits(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.wrong)


def load_strictly(body: nn.Module, checkpoint: Checkpoint, where: str, notes: list[str]) -> _Fit:
    """Load weights whose names and shapes must all fit, under one of the readings of `recognition.views`.

    Weights in parts, pruned or normed, are put together where the network has them whole. Lazy layers get the sizes of
    their weights. What may be absent or odd is only what evaluation does not use: BatchNorm's step counters, and what training
    leaves beside the network. Tensors are read one at a time into the network, so memory holds the weights once.
    Raises CheckpointError with counts and first names of what does not fit.
    """
    best = _best_fit(body, checkpoint, where)
    _say_reading(best, notes)
    lazy = {name: item for name, item in _tensors_of(body).items() if nn.parameter.is_lazy(item)}
    for name, item in lazy.items():
        item.materialize(best.view.tensors[name].shape)
    finish_lazy_layers(body)
    own = _tensors_of(body)
    tensors = {name: spec for name, spec in best.view.tensors.items() if name in own and name not in best.counters}
    _say_types(tensors.values(), notes)
    with torch.no_grad():
        for name, spec in tensors.items():
            own[name].copy_(read(spec, checkpoint.load))
    kept = body.state_dict()
    if any(kept[name].data_ptr() != item.data_ptr() for name, item in own.items()):
        raise CheckpointError(f"{where}: the network gives copies of its weights, so that none can be loaded into it")
    _refuse_infinite(body, where)
    return best


def _tensors_of(body: nn.Module) -> dict[str, torch.Tensor]:
    return {name: item for name, item in body.state_dict().items() if isinstance(item, torch.Tensor)}


def _best_fit(body: nn.Module, checkpoint: Checkpoint, where: str) -> _Fit:
    own, stored = _tensors_of(body), checkpoint.weights.tensors
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
    elif left := sorted(name for name in best.unexpected if "parametrizations." in name or name.endswith("_orig")):
        advice = (
            f"{left[0]} is a part of a parametrized weight, which the network does not have or which its tensors do not "
            "determine; give an --arch that has it, or take it off before saving (torch.nn.utils.parametrize.remove_parametrizations)"
        )
    raise CheckpointError(f"{where} do not fit: {_misfit(best, own)}; {advice}")


def _fit(view: View[Stored], own: Mapping[str, torch.Tensor]) -> _Fit:
    fit = _Fit(view)
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


# ---- one network among several in the same set of weights --------------------------------------------------


def _starts(tensors: Iterable[str]) -> list[str]:
    """Leading parts of names, each with its dot, the shortest first: "module.", "module.model."."""
    found = {name[: place + 1] for name in tensors for place, letter in enumerate(name) if letter == "."}
    return sorted(found, key=lambda start: (start.count("."), start))


def _under(tensors: Mapping[str, Stored], start: str) -> dict[str, Stored]:
    return {name.removeprefix(start): item for name, item in tensors.items() if name.startswith(start)}


def _fit_of_part(tensors: Mapping[str, Stored], start: str, own: Mapping[str, torch.Tensor]) -> _Fit:
    left_out = tuple(name for name in tensors if not name.startswith(start))
    return _fit(View(_under(tensors, start), (start,), left_out), own)


def _is_nothing_else(parts: list[_Fit], tensors: Mapping[str, Stored], checkpoint: Checkpoint) -> bool:
    """Whether beside a part that fits there are only the same weights again and the mean and std of the images."""
    first, *others = (fit.view for fit in parts)
    rest = {name for name in tensors if not name.startswith(tuple(view.removed[0] for view in (first, *others)))}
    if not all(_is_mean_or_std(name, tensors[name]) for name in rest):
        return False
    return all(_are_equal(view.tensors, first.tensors, checkpoint) for view in others)


def _are_equal(one: Mapping[str, Stored], other: Mapping[str, Stored], checkpoint: Checkpoint) -> bool:
    return one.keys() == other.keys() and all(
        item == other[name] or torch.equal(read(item, checkpoint.load), read(other[name], checkpoint.load))
        for name, item in one.items()
    )


def _is_mean_or_std(name: str, item: Stored) -> bool:
    """By the names that the `robustness` library has for it; any other mean may be a part of what is computed."""
    return name.rpartition(".")[2] in ("new_mean", "new_std") and math.prod(item.shape) in (1, 3)


def _normalization_in(fit: _Fit, checkpoint: Checkpoint) -> str | None:
    """Mean and std beside the network, as MEAN/STD."""
    tensors = checkpoint.weights.tensors
    for name in fit.view.left_out:
        start, last = name.rpartition(".")[::2]
        std = f"{start}.{last.replace('mean', 'std')}" if start else last.replace("mean", "std")
        if "mean" in last and all(key in tensors and _is_mean_or_std(key, tensors[key]) for key in (name, std)):
            numbers = (checkpoint.load(tensors[key]).flatten().tolist() for key in (name, std))
            return "/".join(",".join(f"{number:.6g}" for number in part) for part in numbers)
    return None


# ---- what is told ------------------------------------------------------------------------------------------


def _has_shape(tensor: torch.Tensor, spec: Stored) -> bool:
    """Whether a tensor of the network has the shape of the weight. One of a lazy layer will have it."""
    return nn.parameter.is_lazy(tensor) or spec.shape == tuple(tensor.shape)


def _kind(dtype: str) -> str:
    """float, complex, or int and bool: copying from one to another would not keep the values."""
    return next((kind for kind in ("float", "complex") if kind in dtype), "int")


def _misfit(fit: _Fit, own: Mapping[str, torch.Tensor]) -> str:
    problems = [
        f"{len(names)} {what} (first: {', '.join(names[:3])})"
        for what, names in (("missing", fit.missing), ("unexpected", fit.unexpected))
        if names
    ]
    if fit.wrong:
        shown = [(name, fit.view.tensors[name], own[name]) for name in fit.wrong[:3]]
        same = [f"{n} is of type {a.dtype}" if _has_shape(b, a) else
                f"{n} is {a.shape}, should be {tuple(b.shape)}" for n, a, b in shown]  # fmt: skip
        problems.append(f"{len(fit.wrong)} of another shape or type ({', '.join(same)})")
    return "; ".join(problems)


def _say_reading(fit: _Fit, notes: list[str]) -> None:
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


def _say_types(specs: Iterable[Stored], notes: list[str]) -> None:
    others = sorted({spec.dtype for spec in specs if "float" in spec.dtype and spec.dtype != "float32"})
    if others:
        notes.append(f"weights stored as {', '.join(others)} were converted to float32")


def _refuse_infinite(body: nn.Module, where: str) -> None:
    state = {name: item for name, item in body.state_dict().items() if isinstance(item, torch.Tensor)}
    infinite = [name for name, item in state.items() if item.is_floating_point() and not torch.isfinite(item).all()]
    if infinite:
        raise CheckpointError(
            f"{where}: {len(infinite)} tensors hold NaN or infinity (first: {infinite[0]}); the training diverged, "
            "take an earlier checkpoint"
        )
