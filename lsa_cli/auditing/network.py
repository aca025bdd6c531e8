"""Network: the classifier of a file, built and tried once on the data it is to be audited with."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli import distributed
from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.threat import Bounds
from lsa_cli.auditing.cores import usable_cores
from lsa_cli.config import AuditSettings, merge
from lsa_cli.data import (
    ImageSize,
    LabelledData,
    check_inputs,
    from_object,
    open_data,
    runs_user_code,
    square_size,
    torchvision_size,
    usual_size,
)
from lsa_cli.errors import CheckpointError, DataError, LsaError, UsageError
from lsa_cli.layers import Layer, find_layers
from lsa_cli.models.checkpoint import Checkpoint, Description, read_checkpoint
from lsa_cli.models.classifier import Classifier, find_logits, parse_input_range, parse_normalize, rescaled
from lsa_cli.models.loading import Loaded, Say, load_network
from lsa_cli.models.surgery import NoiseBody
from lsa_cli.registry import load_python_file
from lsa_cli.report.schema import Warning


@dataclass(frozen=True)
class Network:
    """A network that was built, the data for it, and what one look at both told.

    arch, arch_args: what built it. labels: in the network's order of classes. shows_layers: hooks can see inside.
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


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:1. Raises UsageError where CUDA is asked for and absent: no silent CPU.

    Of several ranks on a machine each has a CUDA device of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not number.isdecimal()) or (kind == "cpu" and colon):
        raise UsageError(f"--device '{name}': there are auto, cpu, cuda and cuda:0, cuda:1, ...")
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


def _own_device(name: str) -> torch.device:
    ranks, devices = distributed.local_world(), torch.cuda.device_count()
    if name != "cuda":
        raise UsageError(f"--device {name}: each rank has a CUDA device of its own; say --device cuda")
    if ranks > devices:
        raise UsageError(f"{ranks} ranks and {devices} CUDA devices: start one rank a device, or say --device cpu")
    return torch.device("cuda", distributed.local_rank())


def open_network(
    target: str | Path | nn.Module,
    settings: AuditSettings,
    origin: dict[str, str],
    data: Any = None,
    say: Say = lambda message: None,
) -> Network:
    """Read, build and try a network once on its data. Raises an LsaError that says what does not fit.

    say: told what trusting a file's code imports, before it is done.
    """
    for plugin in settings.plugin or []:
        load_python_file(plugin, "--plugin")
    if isinstance(target, nn.Module):
        device = _device_for(target, settings)
        return _with_data(target, None, _in_memory(target, settings, device), settings, origin, data, device)
    checkpoint = read_checkpoint(target, settings.weights)
    said = _said_by(checkpoint.description, own_arch=settings.arch is None)
    origin = _origins(origin, settings, said)
    settings = merge(("", settings), ("the checkpoint", said))[0]
    device = pick_device(settings.device or "auto")
    loaded = load_network(
        checkpoint, settings.arch, settings.arch_args or {}, trust_code=bool(settings.trust_code), say=say, device=device
    )  # fmt: skip
    if settings.noise_off:
        _switch_noise_off(loaded)
    return _with_data(target, checkpoint, loaded, settings, origin, data, device)


def _switch_noise_off(loaded: Loaded) -> None:
    noisy = [module for module in loaded.body.modules() if isinstance(module, NoiseBody)]
    if not noisy:
        raise UsageError("--noise-off switches off the noise of learn2perturb, and this network has none")
    for module in noisy:
        module.on = False
    loaded.notes.append("the learnt noise in the network was switched off (--noise-off); in use it is on")


def _in_memory(network: nn.Module, settings: AuditSettings, device: torch.device) -> Loaded:
    for option in ("weights", "trust_code", "arch", "noise_off"):
        if getattr(settings, option) is not None:
            raise UsageError(f"{option} is for checkpoint files; this network is already in memory")
    # It is not moved under its owner's hands: on another device a copy is audited.
    moved = any(tensor.device != device for tensor in [*network.parameters(), *network.buffers()])
    return Loaded(copy.deepcopy(network) if moved else network, type(network).__name__, {}, [])


def _device_for(network: nn.Module, settings: AuditSettings) -> torch.device:
    """The device asked for, else the one that a network in memory is on."""
    if settings.device is not None:
        return pick_device(settings.device)
    return next((tensor.device for tensor in network.parameters()), torch.device("cpu"))


def _said_by(description: Description | None, own_arch: bool) -> AuditSettings:
    if description is None:
        return AuditSettings()
    return AuditSettings.model_construct(
        arch=description.architecture or None,
        arch_args=(description.arch_args or None) if own_arch else None,  # of another network they mean nothing
        returns=description.output if description.output != "logits" else None,
        data=description.data,
        norm=description.norm,
        eps=description.eps,
    )


def _origins(origin: dict[str, str], settings: AuditSettings, said: AuditSettings) -> dict[str, str]:
    from_checkpoint = {
        name: "the checkpoint" for name in said.model_dump(exclude_none=True) if getattr(settings, name, None) is None
    }
    return {**origin, **from_checkpoint}


# ---- the network and its data --------------------------------------------------------------------------


def _with_data(
    target: Any, checkpoint: Checkpoint | None, loaded: Loaded, settings: AuditSettings, origin: dict[str, str], data: Any,
    device: torch.device,
) -> Network:  # fmt: skip
    description = checkpoint.description if checkpoint is not None else None
    warnings: list[Warning] = []
    classifier = Classifier(
        loaded.body,
        _normalization(settings, description, loaded, warnings, in_memory=checkpoint is None),
        description.class_names if description is not None else None,
        settings.returns or "logits",
    ).to(device)
    opened = _open(target, settings, origin, description, loaded, data)
    bounds = description.input_range if description is not None else (0.0, 1.0)
    layers, classes, shape = _try(classifier, opened, bounds, device, loaded)
    labels, class_names = match_classes(opened, classifier.class_names, classes, settings.match_classes, loaded.notes)
    return Network(
        checkpoint, classifier, loaded.arch, loaded.arch_args, description, settings, origin, opened, labels, bounds,
        device, layers, loaded.shows_layers, classes, class_names, shape, loaded.notes, warnings,
    )  # fmt: skip


def _normalization(
    settings: AuditSettings, description: Description | None, loaded: Loaded, warnings: list[Warning], in_memory: bool
) -> Any:
    scale = parse_input_range(settings.input_range) if settings.input_range is not None else (0.0, 1.0)
    if scale != (0.0, 1.0):
        loaded.notes.append(f"images in [0, 1] are scaled to [{scale[0]:g}, {scale[1]:g}] for the network")
    if settings.normalize is not None:
        return rescaled(parse_normalize(settings.normalize, scale), scale)
    if settings.input_range is not None:
        return rescaled(None, scale)
    if description is not None:
        return None if description.mean is None else (description.mean, description.std)
    if not in_memory:
        warnings.append(
            Warning(
                code="normalization-assumed",
                message="no normalisation is known, so images reach the network as [0, 1]; if it was trained on "
                "normalised images say which with --normalize, otherwise --normalize none",
            )
        )
    return None


def _open(
    target: Any, settings: AuditSettings, origin: dict[str, str], description: Description | None, loaded: Loaded, data: Any
) -> LabelledData:  # fmt: skip
    shape = tuple(description.input_shape) if description is not None else ()
    first_convolution = next((m for m in loaded.body.modules() if isinstance(m, nn.Conv2d)), None)
    channels = shape[0] if len(shape) == 3 else first_convolution.in_channels if first_convolution else None
    size = _image_size(target, settings, description, loaded)
    if data is not None and not isinstance(data, str):
        return from_object(data, "data given in Python", settings.split or "", channels=channels, size=size)
    spec = data if isinstance(data, str) else settings.data
    if spec is None:
        raise UsageError(
            "no data: give images with labels as --data imagefolder:DIR, npz:FILE, torchvision:NAME?root=DIR or "
            "pkg.mod:factory"
        )
    by_checkpoint = origin.get("data") == "the checkpoint"
    if by_checkpoint and runs_user_code(spec):
        raise UsageError(f"the checkpoint names Python code as its data ({spec}); if you trust it, give it with --data")
    return open_data(
        spec, split=settings.split, channels=channels, size=size,
        relative_to=Path(target).parent if by_checkpoint else None, threads=settings.threads or usable_cores(),
    )  # fmt: skip


def _image_size(
    target: Any, settings: AuditSettings, description: Description | None, loaded: Loaded
) -> ImageSize | None:
    """The user's, else the checkpoint's, else that of torchvision's own weights for the architecture; None: native."""
    if settings.input_size is not None:
        return None if settings.input_size == "native" else square_size(int(settings.input_size))
    if description is not None and len(description.input_shape) == 3:
        _, height, width = description.input_shape
        return usual_size(height, width, "the checkpoint")
    source, _, name = loaded.arch.partition(":")
    return torchvision_size(name, Path(target).name) if source == "torchvision" else None


def _try(
    classifier: Classifier, data: LabelledData, bounds: Bounds, device: torch.device, loaded: Loaded
) -> tuple[list[Layer], int, tuple[int, ...]]:
    """One forward pass of up to three samples: layers, number of classes, input shape."""
    rows = np.arange(min(3, len(data)))
    x = check_inputs(data.read(rows), rows, bounds, data.spec).to(device)
    found: list[torch.Tensor] = []

    def run() -> Any:
        raw = classifier.body(classifier.prepare(x))
        found.append(classifier.as_logits(raw, len(x)))
        return find_logits(raw)

    def look() -> list[Layer]:
        with undisturbed(classifier):
            if loaded.shows_layers:
                return find_layers(classifier.body, run, len(x))
            with torch.no_grad():
                run()
            return []

    try:
        layers = look()
    except LsaError:
        raise
    except Exception as error:
        if not _takes_vectors(classifier.body, x):
            raise _cannot_take(x, data, error) from error
        classifier.flatten = True
        try:
            layers = look()
        except Exception as second:
            raise _cannot_take(x, data, second) from second
        loaded.notes.append(f"images are flattened to {x[0].numel()} numbers, as the first layer takes them")
    return layers, found[-1].shape[1], tuple(x.shape[1:])


def _takes_vectors(body: nn.Module, x: torch.Tensor) -> bool:
    first = next((module for module in body.modules() if isinstance(module, (nn.Linear, nn.Conv2d))), None)
    return x.ndim > 2 and isinstance(first, nn.Linear) and first.in_features == x[0].numel()


def _cannot_take(x: torch.Tensor, data: LabelledData, error: Exception) -> DataError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(
        f"the network cannot take inputs of shape {tuple(x.shape[1:])} from {data.spec}: {first}; "
        "is this the data set, image size (--input-size) and number of channels that it was trained for?"
    )


# ---- classes -------------------------------------------------------------------------------------------


def match_classes(
    data: LabelledData, own: tuple[str, ...] | None, classes: int, how: str | None, notes: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels in the network's order of classes, and the names of the classes.

    own: the names that the checkpoint gives its outputs. how "number" takes labels as they are. By name, every class
    of the data must be one of the network's: spelling may differ in case, spaces, dashes and underscores, or, where
    that decides, in all but the first word ("3 - three"). Raises DataError where the order cannot be known.
    """
    from lsa_cli.auditing.evidence import check_labels

    labels, names = data.labels.astype(np.int64), data.class_names
    if own is not None and len(own) != classes:
        raise DataError(f"the checkpoint names {len(own)} classes, and the network has {classes} outputs")
    if how == "number" and names is not None:
        labels = _as_numbers(labels, names, classes, notes)
    if how == "number" or names is None:
        check_labels(labels, classes, data.spec)
        fits = names is not None and len(names) == classes
        return labels, own or (names if fits and names else tuple(str(number) for number in range(classes)))
    if len(names) > classes:
        raise DataError(
            f"{data.spec} has {len(names)} classes and the network has {classes}; "
            "give the data set that the network was trained for, or another --arch-args num_classes"
        )
    if own is None:
        if len(names) < classes:
            raise DataError(
                f"{data.spec} has {len(names)} classes, the network has {classes} and names none of them, so which "
                "is which cannot be known; give the data set it was trained for, or, where label k is output k, "
                "--match-classes number"
            )
        check_labels(labels, classes, data.spec)
        return labels, names
    order = _by_name(names, own)
    if order is None:
        strange = next((name for name in names if _key(name) not in {_key(other) for other in own}), names[0])
        raise DataError(
            f"the classes of {data.spec} are not those of the network: it has no '{strange}' among {', '.join(own[:5])}"
            f"{', ...' if len(own) > 5 else ''}; give the data set it was trained for, or, where label k is output k, "
            "--match-classes number"
        )
    check_labels(labels, len(names), data.spec)
    if order != list(range(len(names))):
        notes.append("labels of the data were put into the network's order of classes, by name")
    return np.array(order)[labels], own


def _as_numbers(labels: np.ndarray, names: tuple[str, ...], classes: int, notes: list[str]) -> np.ndarray:
    """Labels for which label k is output k: where all names are whole numbers, these numbers, else as they are.

    Numbers from 1 to the number of classes count from 1.
    """
    if not all(name.isdecimal() and len(name) < 19 for name in names):
        return labels
    numbers = np.array([int(name) for name in names], dtype=np.int64)
    if numbers.min() == 1 and numbers.max() == classes:
        notes.append(f"classes are named 1 to {classes}: the class named k is output k - 1")
        numbers -= 1
    return numbers[labels]


def _key(name: str) -> str:
    return "".join(character for character in name.casefold() if character not in " -_")


def _by_name(names: tuple[str, ...], own: tuple[str, ...]) -> list[int] | None:
    """For each class of the data its place among the network's; None where that is not certain."""
    for key in (_key, lambda name: name.casefold().split()[0] if name.split() else ""):
        theirs = {key(name): number for number, name in enumerate(own)}
        keys = [key(name) for name in names]
        if len(theirs) == len(own) and len(set(keys)) == len(keys) and all(name in theirs for name in keys):
            return [theirs[name] for name in keys]
    return None


def refuse_without_layers(network: Network, selectors: tuple[str, ...]) -> None:
    """Raises CheckpointError for an opaque program where layers are asked for."""
    if not network.shows_layers and selectors != ("none",):
        raise CheckpointError(
            f"{network.arch} programs show no layers; give --arch to audit their weights layer by layer, or "
            "--layers none for robust accuracy and classes alone"
        )
