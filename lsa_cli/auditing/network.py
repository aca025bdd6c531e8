"""Network: the classifier of a file, built and tried once on the data it is to be audited with."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli import distributed
from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.threat import Bounds
from lsa_cli.auditing.classes import match_classes
from lsa_cli.auditing.network_data import open_data_for
from lsa_cli.auditing.normalizing import Found, find_normalization, stated
from lsa_cli.auditing.rebuilding import rebuild, with_own_network
from lsa_cli.auditing.rebuilt import ASKED, Rebuilt
from lsa_cli.auditing.suggesting import asked_for, command_again, with_commands
from lsa_cli.auditing.trial import try_network
from lsa_cli.data import LabelledData, check_inputs
from lsa_cli.errors import CheckpointError, UsageError
from lsa_cli.failures import try_backward
from lsa_cli.imports import load_python_file
from lsa_cli.layers import Layer
from lsa_cli.models.checkpoint import Checkpoint, Description, read_checkpoint
from lsa_cli.models.classifier import (
    AUTO,
    Classifier,
    Normalization,
    parse_input_range,
    parse_normalize,
    rescaled,
    with_normalization,
)
from lsa_cli.models.loading import Loaded, Say, UnknownNetworkError, load_network
from lsa_cli.models.rebuilding.kinds import can_be_rebuilt
from lsa_cli.models.surgery import NoiseBody
from lsa_cli.models.wrappers import copy_network, is_script, unasked_copy, unwrapped
from lsa_cli.report.schema import Warning
from lsa_cli.settings import AuditSettings, HardenSettings, merge


@dataclass(frozen=True)
class Network:
    """A network, the data for it, and what the first passes show.

    arch, arch_args: its architecture. labels: in the network's order of classes. shows_layers: hooks reach its layers.
    unasked: the body of the classifier as it was before its first pass here; None where it cannot be copied. described: as in
    `Loaded`.
    """

    checkpoint: Checkpoint | None
    classifier: Classifier
    arch: str
    arch_args: dict[str, Any]
    description: Description | None
    settings: AuditSettings
    origin: dict[str, str]
    data: LabelledData
    labels: np.ndarray
    bounds: Bounds
    device: torch.device
    layers: list[Layer]
    shows_layers: bool
    classes: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    notes: list[str]
    warnings: list[Warning]
    unasked: nn.Module | None
    described: tuple[str, dict[str, Any]] | None = None

    def inputs(self, rows: np.ndarray) -> torch.Tensor:
        """These inputs of the data, checked, on the device."""
        return check_inputs(self.data.read(rows), rows, self.bounds, self.data.spec).to(self.device)

    @property
    def last_layer(self) -> Layer | None:
        """The last layer with weights."""
        return next((layer for layer in reversed(self.layers) if layer.is_learnable), None)

    @property
    def is_pickled(self) -> bool:
        """Whether the file holds it pickled whole, and no architecture is named: nothing else can build it."""
        return self.settings.arch is None and self.checkpoint is not None and self.checkpoint.weights.module is not None

    def with_data_of(self, other: "Network") -> "Network":
        return replace(self, data=other.data, labels=other.labels)


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:1. Raises UsageError where CUDA is asked for and absent: no silent CPU.

    Of several ranks on a machine each has a CUDA device of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    refuse_no_device(name)
    kind, _, number = name.partition(":")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(
                f"--device {name}: this torch ({torch.__version__}) finds no CUDA device; use --device cpu, or check "
                "the driver with nvidia-smi"
            )
        if int(number or 0) >= torch.cuda.device_count():
            raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
        if distributed.world() > 1:
            return _own_device(name)
    return torch.device(name)


def refuse_no_device(name: str) -> None:
    """Raises UsageError for a name that no device has on any machine."""
    kind, colon, number = name.partition(":")
    if name != "auto" and (
        kind not in ("cpu", "cuda") or (colon and not number.isdecimal()) or (kind == "cpu" and colon)
    ):
        raise UsageError(f"--device '{name}': there are auto, cpu, cuda and cuda:0, cuda:1, ...")


def _own_device(name: str) -> torch.device:
    ranks, devices = distributed.local_world(), torch.cuda.device_count()
    if name != "cuda":
        raise UsageError(f"--device {name}: each rank has a CUDA device of its own; use --device cuda")
    if ranks > devices:
        raise UsageError(f"{ranks} ranks and {devices} CUDA devices: start one rank per device, or use --device cpu")
    return torch.device("cuda", distributed.local_rank())


@dataclass
class Built:
    """A network without data. target: its file, or the network in memory.

    loaded: None where only data can tell what the network is; unknown is then the refusal without data, and rebuilt the
    network, once data have told it. found: the normalisation, once it is found. asked: as for `with_commands`.
    """

    target: str | Path | nn.Module
    checkpoint: Checkpoint | None
    loaded: Loaded | None
    device: torch.device
    asked: AuditSettings | None = None
    unknown: UnknownNetworkError | None = None
    rebuilt: Rebuilt | None = None
    found: Found | None = None


def open_network(
    target: str | Path | nn.Module,
    settings: AuditSettings,
    origin: dict[str, str],
    data: Any = None,
    say: Say = lambda message: None,
) -> Network:
    """`build_network`, and `on_data` with the data of the settings. Raises an LsaError that says what does not fit."""
    return on_data(build_network(target, settings, say), settings, origin, data, say)


def build_network(
    target: str | Path | nn.Module, settings: AuditSettings, say: Say = lambda message: None, hardening: bool = False
) -> Built:
    """Read and build a network. Raises an LsaError where that is not possible.

    say: gets a line on what the trusted code of a file imports, before it is imported. hardening: refusals suggest
    `lsa harden` again, not an audit.
    """
    for plugin in settings.plugin or []:
        load_python_file(plugin, "--plugin")
    if isinstance(target, nn.Module):
        device = _device_for(target, settings)
        return Built(target, None, _in_memory(target, settings, device), device)
    checkpoint = read_checkpoint(target, settings.weights)
    own = (settings.harden or HardenSettings()) if hardening else None
    asked = asked_for(settings.replace(harden=own), checkpoint.description)
    settings, _ = _with_description(settings, {}, checkpoint.description)
    device = pick_device(settings.device or "auto")
    arch, arguments = settings.arch, settings.arch_args or {}
    if settings.arch == ASKED:
        arch, arguments = None, {}
    try:
        loaded = load_network(
            checkpoint, arch, arguments, trust_code=bool(settings.trust_code), say=say, device=device,
            audit=command_again(checkpoint.path, asked),
        )  # fmt: skip
    except UnknownNetworkError as unknown:
        if not can_be_rebuilt(checkpoint.weights.tensors):
            raise with_own_network(unknown, target, asked) from None
        return Built(target, checkpoint, None, device, asked, unknown)
    if settings.arch == ASKED:
        raise UsageError(f"{target} holds {loaded.arch}, which needs no reconstruction; leave out --arch {ASKED}")
    if settings.noise_off:
        _switch_noise_off(loaded)
    return Built(target, checkpoint, loaded, device, asked)


def _switch_noise_off(loaded: Loaded) -> None:
    noisy = [module for module in loaded.body.modules() if isinstance(module, NoiseBody)]
    if not noisy:
        raise UsageError("--noise-off switches off the noise of learn2perturb, and this network has none")
    for module in noisy:
        module.on = False
    loaded.notes.append("the learnt noise in the network was switched off (--noise-off)")


def _in_memory(network: nn.Module, settings: AuditSettings, device: torch.device) -> Loaded:
    for option in ("weights", "trust_code", "arch", "noise_off"):
        if getattr(settings, option) is not None:
            raise UsageError(f"{option} is for checkpoint files; this network is already in memory")
    network = unwrapped(network)
    tensors = [*network.parameters(), *network.buffers()]
    if any(map(nn.parameter.is_lazy, tensors)):
        raise CheckpointError("the network has lazy layers that have no weights yet; run it once and train it first")
    if any(tensor.is_inference() for tensor in tensors):
        raise CheckpointError(
            "the weights of the network were made within torch.inference_mode(), so they have no gradients; make them outside"
        )
    # The user's network stays where it is: on another device a copy is audited.
    moved = any(tensor.device != device for tensor in tensors)
    body = copy_network(network) if moved else network
    return Loaded(body, type(network).__name__, {}, [], shows_layers=not is_script(network))


def _device_for(network: nn.Module, settings: AuditSettings) -> torch.device:
    """The device asked for, else the one that a network in memory is on."""
    if settings.device is not None:
        return pick_device(settings.device)
    return next((tensor.device for tensor in network.parameters()), torch.device("cpu"))


def _said_by(description: Description | None, own_arch: bool) -> AuditSettings:
    if description is None:
        return AuditSettings()
    return AuditSettings(
        arch=description.architecture or None,
        arch_args=(description.arch_args or None) if own_arch else None,  # of another network they mean nothing
        returns=description.output if description.output != "logits" else None,  # type: ignore[arg-type]  # checked where it is used
        output_index=description.output_index,
        data=description.data,
        norm=description.norm,
        eps=description.eps,
    )


def _with_description(
    settings: AuditSettings, origin: dict[str, str], description: Description | None
) -> tuple[AuditSettings, dict[str, str]]:
    """The settings, completed by what the checkpoint says of itself, and the origin of each."""
    said = _said_by(description, own_arch=settings.arch is None)
    from_checkpoint = {name: "the checkpoint" for name in said.given() if getattr(settings, name, None) is None}
    return merge(("", settings), ("the checkpoint", said))[0], {**origin, **from_checkpoint}


# ---- the network and its data --------------------------------------------------------------------------


def on_data(
    built: Built, settings: AuditSettings, origin: dict[str, str], data: Any = None, say: Say = lambda message: None
) -> Network:
    """The built network with the data of the settings, tried on it once. Networks on several data share their weights.

    data: arrays or a data set given in Python. say: gets the normalisation, where it is found on the data. Raises an
    LsaError that says what does not fit.
    """
    target, checkpoint, device = built.target, built.checkpoint, built.device
    if checkpoint is not None:
        settings, origin = _with_description(settings, origin, checkpoint.description)
    description = checkpoint.description if checkpoint is not None else None
    asked = built.asked
    if data is not None and asked is not None:
        asked = asked.replace(data=data) if isinstance(data, str) else None
    with with_commands(target, asked):
        opened = open_data_for(target, settings, origin, description, checkpoint, built.loaded, data)
    bounds = description.input_range if description is not None else (0.0, 1.0)
    if built.loaded is None:
        assert checkpoint is not None
        assert built.unknown is not None
        built.rebuilt = rebuild(checkpoint, opened, settings, bounds, built.unknown, say, asked=asked, wait=say)
        built.loaded, built.found = built.rebuilt.loaded, built.rebuilt.found
    loaded = replace(built.loaded, notes=[*built.loaded.notes])
    warnings: list[Warning] = []
    classifier = Classifier(
        loaded.body,
        _normalization(settings, description, loaded),
        description.class_names if description is not None else None,
        settings.returns or "logits",
        loaded.home,
    ).to(device)
    unasked = unasked_copy(classifier.body)
    known = len(loaded.notes)
    with with_commands(target, asked):
        layers, classes, shape = try_network(classifier, opened, bounds, device, loaded, settings)
    for note in loaded.notes[known:]:
        say(note)
    labels, class_names = match_classes(opened, classifier.class_names, classes, settings.match_classes, loaded.notes)
    if _is_unknown(settings, checkpoint):

        def look(rows: np.ndarray) -> torch.Tensor:
            return check_inputs(opened.read(rows), rows, bounds, opened.spec).to(device)

        if built.found is not None or (len(shape) == 3 and bounds == (0.0, 1.0)):
            if built.found is None:
                built.found = find_normalization(
                    classifier, opened, labels, look, stated(checkpoint, loaded.normalization)
                )
                if built.found.decided:
                    say(built.found.sentence)
            loaded.notes.append(built.found.sentence)
            classifier = with_normalization(classifier, built.found.normalization)
        warnings += _assumed(built, loaded)
    return Network(
        checkpoint, classifier, loaded.arch, loaded.arch_args, description, settings, origin, opened, labels, bounds,
        device, layers, loaded.shows_layers and not classifier.alone, classes, class_names, shape, loaded.notes, warnings,
        unasked, loaded.described,
    )  # fmt: skip


def _is_unknown(settings: AuditSettings, checkpoint: Checkpoint | None) -> bool:
    """Whether neither the user nor the file states the normalisation. A network in memory is taken as it is."""
    if settings.normalize is not None or settings.input_range is not None:
        return settings.normalize == AUTO
    return checkpoint is not None and checkpoint.description is None


def _normalization(settings: AuditSettings, description: Description | None, loaded: Loaded) -> Normalization:
    scale = parse_input_range(settings.input_range) if settings.input_range is not None else (0.0, 1.0)
    if settings.normalize == AUTO:
        if settings.input_range is not None:
            raise UsageError("--normalize auto finds the input range too; leave out --input-range")
        return None
    if scale != (0.0, 1.0):
        loaded.notes.append(f"images in [0, 1] are scaled to [{scale[0]:g}, {scale[1]:g}] for the network")
    if settings.normalize is not None:
        return rescaled(parse_normalize(settings.normalize, scale), scale)
    if settings.input_range is not None:
        return rescaled(None, scale)
    if description is not None and description.mean is not None and description.std is not None:
        return description.mean, description.std
    return None


def _assumed(built: Built, loaded: Loaded) -> list[Warning]:
    """The warning that images reach the network as they are, without a reason for it."""
    if built.found is not None and built.found.decided:
        return []
    why = built.found.sentence if built.found is not None else "no normalisation is known"
    stated = f"use --normalize {loaded.normalization}" if loaded.normalization is not None else "set --normalize"
    message = f"{why}, so inputs reach the network as they are; {stated}, or --normalize none"
    return [Warning(code="normalization-assumed", message=message)]


def check_backward(network: Network) -> None:
    """Raises BackwardError, with the place, where the backward pass of the network itself fails."""
    with undisturbed(network.classifier):
        rows = np.array([0, len(network.data) - 1])
        try_backward(network.classifier, network.classifier.body, network.inputs(rows))


def refuse_without_layers(network: Network) -> None:
    """Raises CheckpointError for an opaque program, whose layers are asked for."""
    if not network.shows_layers:
        raise CheckpointError(
            f"{network.arch}: compiled programs, and networks that take one image at a time, show no layers; give --arch with "
            "the network as Python code for batches, or leave --layers out for robust accuracy and classes alone"
        )
