"""From a Checkpoint to a network: choose the architecture, build it, load the weights strictly."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lsa_cli.commands import NO_DATA, command
from lsa_cli.errors import CheckpointError, UsageError
from lsa_cli.imports import Home, home_of
from lsa_cli.models import recognition, rehydration
from lsa_cli.models.architectures import build_architecture, runs_user_code
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.models.exported import ExportedNetwork
from lsa_cli.models.fitting import best_fit, load_strictly, normalization_in, refuse_infinite, say_types, tensors_of
from lsa_cli.models.formats import FORMATS
from lsa_cli.models.graphs import network_of
from lsa_cli.models.hostile import refuse_hostile, refuse_unsafe_torch
from lsa_cli.models.parametrizations import put_together
from lsa_cli.models.pickles.modules import is_module
from lsa_cli.models.pickles.symbols import Call
from lsa_cli.models.rebuilding.kinds import can_be_rebuilt
from lsa_cli.models.surgery import operate
from lsa_cli.models.wrappers import is_script

_MOST_CLASSES, _LARGEST_ARGUMENT = 10**7, 10**4  # whole numbers in a network's arguments
_NAME_IT = "name the network with --arch torchvision:resnet18, timm:NAME, pkg.mod:factory or path/to/file.py:factory"
# Networks whose weights from torchvision need an argument that the weights do not show.
_TRACELESS = {"torchvision:googlenet": "transform_input", "torchvision:inception_v3": "transform_input"}
Say = Callable[[str], None]


class UnknownNetworkError(UsageError, CheckpointError):
    """Weights that can be read, of a network that is not known, or that is code which may not run."""


@dataclass(frozen=True)
class Loaded:
    """A network with the file's weights.

    arch: the spec that built it, or its class or format. shows_layers: whether hooks see its layers. home: the context in
    which its imports are found. normalization: mean and std beside the network in the file, as for --normalize.
    image_shape: (C, H, W) of the images that the file takes alone, () where it says none. described: the spec and the arguments
    that build a network which was put together again from its weights.
    """

    body: nn.Module
    arch: str
    arch_args: dict[str, Any]
    notes: list[str]
    shows_layers: bool = True
    home: AbstractContextManager[object] = field(default_factory=nullcontext)
    normalization: str | None = None
    image_shape: tuple[int, ...] = ()
    described: tuple[str, dict[str, Any]] | None = None


def load_network(
    checkpoint: Checkpoint,
    arch: str | None,
    arch_args: dict[str, Any],
    *,
    trust_code: bool = False,
    say: Say = lambda message: None,
    device: torch.device | None = None,
    audit: str | None = None,
) -> Loaded:
    """The network of a file: of the architecture given, else the file's own, else the one that its weights fit.

    say: gets what trusted code imports, before it runs. device: where a trusted program is loaded; other networks are
    built on the CPU. audit: the command that audits the file, for refusals. Raises UsageError when the architecture is
    unknown, CheckpointError when the weights do not fit it or the network would run code that is not trusted.
    """
    refuse_unsafe_torch(torch.__version__)
    audit = audit or command("audit", checkpoint.path, {"data": NO_DATA})
    if not trust_code:
        refuse_hostile(checkpoint)
    notes = list(checkpoint.notes)
    refusal = checkpoint.compare()
    if refusal is not None and checkpoint.weights.module is None:
        notes.append(f"torch.load(weights_only=True) refuses this file ({refusal}): lsa read it by itself")
    if arch is None and checkpoint.description is not None and checkpoint.description.architecture:
        arch, arch_args = checkpoint.description.architecture, {**checkpoint.description.arch_args, **arch_args}
    if arch is not None:
        return _from_arch(checkpoint, arch, arch_args, notes)
    if checkpoint.graph is not None:
        opened = network_of(checkpoint)
        return Loaded(opened.network, checkpoint.format, {}, [*notes, *opened.notes],
                      shows_layers=opened.network.batch is None, image_shape=opened.shape)  # fmt: skip
    if FORMATS[checkpoint.format].is_program:
        return _from_program(checkpoint, trust_code, say, device or torch.device("cpu"), notes, audit)
    if checkpoint.weights.module is not None:
        return _from_module(checkpoint, checkpoint.weights.module, trust_code, say, notes, audit)
    match = _recognised(checkpoint)
    notes.append(f"architecture found by the names and shapes of the weights: {match}")
    if match.arch in _TRACELESS and _TRACELESS[match.arch] not in arch_args:
        notes.append(
            f"the weights do not show {_TRACELESS[match.arch]}: for weights of torchvision give "
            f"--arch-args {_TRACELESS[match.arch]}=true"
        )
    return _from_arch(checkpoint, match.arch, {**match.arguments, **arch_args}, notes)


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
        notes.append(f"weights taken from a {_what(checkpoint)}; nothing of it was run")
    where = f"{checkpoint.path} and {arch}"
    surgeries = checkpoint.description.surgery if checkpoint.description is not None else []
    if not is_own_code:
        # First without memory: a file can claim any size and any arguments for a network.
        empty = recognition.build_empty(arch, arguments, _shapes(checkpoint))
        with torch.device("meta"):
            empty = operate(empty, surgeries)
        best_fit(empty, checkpoint, where)
    body = operate(build_architecture(arch, arguments), surgeries)
    fit = load_strictly(body, checkpoint, where, notes)
    home = home_of(arch) if is_own_code else nullcontext()
    return Loaded(body.float(), arch, arguments, notes, shows_layers=not is_script(body), home=home,
                  normalization=normalization_in(fit, checkpoint))  # fmt: skip


def _refuse_enormous(arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        largest = _MOST_CLASSES if name == "num_classes" else _LARGEST_ARGUMENT
        if isinstance(value, int) and not -largest <= value <= largest:
            raise UsageError(f"the argument {name} of the network is larger than {largest:,}, which no network needs")


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights, with weights that are stored in parts put together."""
    return {name: item.shape for name, item in put_together(checkpoint.weights.tensors).items()}


def _what(checkpoint: Checkpoint) -> str:
    kind = FORMATS[checkpoint.format]
    return kind.title if kind.is_program else "network that was pickled whole"


def _from_program(
    checkpoint: Checkpoint, trust_code: bool, say: Say, device: torch.device, notes: list[str], audit: str
) -> Loaded:
    if not trust_code:
        raise UnknownNetworkError(
            f"{checkpoint.path} is a {_what(checkpoint)}, which is code: name the network with --arch to use its "
            f"weights alone{_likely(checkpoint)}, or run the program, if you trust it: {audit} --trust-code"
        )
    say(f"--trust-code: the program in {checkpoint.path} is loaded and run; it imports {_names(checkpoint)}")
    program = rehydration.run_trusted(checkpoint.path, checkpoint.format, (), device)
    batch = program.batch if isinstance(program, ExportedNetwork) else None
    shows_layers = isinstance(program, ExportedNetwork) and batch is None
    ran = f"the {_what(checkpoint)} in the file was run, as trusted"
    notes.append(ran if shows_layers else f"{ran}; it shows no layers")
    if batch is not None:
        notes.append(
            f"the program takes {batch} images at a time, and is given so many; an export with a batch of any size shows its layers"
        )
    return Loaded(program, checkpoint.format, {}, notes, shows_layers=shows_layers)


def _from_module(
    checkpoint: Checkpoint, module: Call, trust_code: bool, say: Say, notes: list[str], audit: str
) -> Loaded:
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
        raise UnknownNetworkError(
            f"{checkpoint.path} holds a whole network of class {module.class_name}, which is code of its own: loading "
            f"it would import {obstacle}. Name the network with --arch to use its weights alone{_likely(checkpoint)}, or, if you trust the "
            f"file: {audit} --trust-code"
        )
    else:
        raise CheckpointError(
            f"{checkpoint.path} holds {module.class_name}, which is not a network; save model.state_dict()"
        )
    say_types(checkpoint.weights.tensors.values(), notes)
    body = body.float()
    refuse_infinite(tensors_of(body), str(checkpoint.path))
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
    # Looking for neighbours takes seconds, and a network that can be put together again has none that help.
    near = "" if can_be_rebuilt(checkpoint.weights.tensors) else " | ".join(map(str, recognition.nearest(shapes)))
    nearest = f"; nearest are {near}" if near else ""
    raise UnknownNetworkError(
        f"{checkpoint.path} holds weights that fit no network that lsa knows{nearest}; {_NAME_IT}"
    )
