"""AuditPlan: every choice made, every name resolved, the network built and tried once, before anything is attacked."""

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli import data as data_module
from lsa_cli.attacks import ATTACKS, NOISES, Attack, Threat, make_threat
from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.threat import Bounds
from lsa_cli.auditing.layer_scan import MvlRule
from lsa_cli.config import AuditSettings, merge
from lsa_cli.data import LabelledData, check_inputs, open_data, stratified_subset
from lsa_cli.errors import DataError, LsaError, UsageError
from lsa_cli.layers import Layer, find_layers, select_layers
from lsa_cli.measures import MEASURES, Measure
from lsa_cli.models.checkpoint import Checkpoint, Description, load_classifier, read_checkpoint
from lsa_cli.models.classifier import Classifier, find_logits, parse_normalize
from lsa_cli.registry import build, load_python_file, parse_number, parse_spec
from lsa_cli.report.gate import check_targets
from lsa_cli.report.schema import Warning

DEFAULT_LIMIT = 1000
DEFAULT_ATTACKS = ("fgsm", "pgd", "t-pgd")
# Radii that evaluations of these data sets use (RobustBench, AutoAttack); anything else has to be said.
USUAL_EPS = {
    "mnist": {"linf": "0.3"},
    "fashionmnist": {"linf": "0.1"},
    "cifar10": {"linf": "8/255", "l2": "0.5", "l1": "12"},
    "cifar100": {"linf": "8/255", "l2": "0.5"},
    "svhn": {"linf": "8/255"},
    "imagenet": {"linf": "4/255", "l2": "3"},
}
_LARGEST_BATCH = 256
_BATCH_NUMBERS = 2_500_000  # input numbers in a batch: 16 colour images of 224 x 224


@dataclass(frozen=True)
class Named:
    """An attack or noise with the label it goes by: its name, or its whole spec if the name stands twice."""

    label: str
    name: str
    spec: str
    attack: Attack


@dataclass(frozen=True)
class AuditPlan:
    """All that `run_audit` needs; index: the chosen samples, ascending; layers: in the order they run."""

    checkpoint: Checkpoint | None
    classifier: Classifier
    architecture: str
    arch_args: dict[str, Any]
    data: LabelledData
    labels: np.ndarray
    index: np.ndarray
    threat: Threat
    eps_text: str
    eps_origin: str
    attacks: tuple[Named, ...]
    noises: tuple[Named, ...]
    eps_grid: tuple[float, ...]
    layers: tuple[Layer, ...]
    selectors: tuple[str, ...]
    last_layer: Layer | None
    measure_name: str
    measure: Measure
    whole_batch: bool
    rule: MvlRule
    batch_size: int
    device: torch.device
    threads: int
    seed: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    bounds: Bounds
    limits: dict[str, float]
    settings: dict[str, Any]
    origin: dict[str, str]
    notes: tuple[str, ...]
    warnings: tuple[Warning, ...]


@dataclass(frozen=True)
class Network:
    """A network that was built, the data for it, and what one look at both told."""

    checkpoint: Checkpoint | None
    classifier: Classifier
    description: Description | None
    settings: AuditSettings
    origin: dict[str, str]
    data: LabelledData
    labels: np.ndarray
    bounds: Bounds
    device: torch.device
    layers: list[Layer]
    classes: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    notes: list[str]
    warnings: list[Warning]


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by the control group's quota. torch counts neither well."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:1. Raises UsageError where CUDA is asked for and absent: no silent CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    return torch.device(name)


# ---- the network and its data --------------------------------------------------------------------------


def open_network(
    target: str | Path | nn.Module, settings: AuditSettings, origin: dict[str, str], data: Any = None
) -> Network:
    """Read, build and try a network once on its data. Raises an LsaError that says what does not fit."""
    for plugin in settings.plugin or []:
        load_python_file(plugin, "--plugin")
    device = (
        pick_device(settings.device or "auto") if isinstance(target, (str, Path)) else _device_for(target, settings)
    )
    checkpoint = None if isinstance(target, nn.Module) else read_checkpoint(target)
    description = checkpoint.description if checkpoint is not None else None
    said = _said_by(description)
    settings, origin = merge(("", settings), ("the checkpoint", said))[0], _origins(origin, settings, said)
    warnings: list[Warning] = []
    notes: list[str] = []
    normalization = _normalization(settings, description, warnings, own_module=isinstance(target, nn.Module))
    output = settings.output or "logits"
    if isinstance(target, nn.Module):
        # A network in memory is not moved under its owner's hands: on another device a copy is audited.
        moved = any(tensor.device != device for tensor in [*target.parameters(), *target.buffers()])
        classifier = Classifier(copy.deepcopy(target) if moved else target, normalization, None, output)
    else:
        assert checkpoint is not None
        classifier, notes = load_classifier(
            checkpoint,
            arch=settings.arch,
            arch_args=settings.arch_args or {},
            normalization=normalization,
            class_names=description.class_names if description else None,
            output=output,
        )
    classifier = classifier.to(device)
    opened = _open(target, settings, origin, description, classifier, data)
    bounds = description.input_range if description is not None else (0.0, 1.0)
    layers, classes, shape = _try(classifier, opened, bounds, device)
    labels, class_names = _match_classes(opened, classifier, classes, notes)
    return Network(
        checkpoint, classifier, description, settings, origin, opened, labels, bounds, device, layers, classes,
        class_names, shape, notes, warnings,
    )  # fmt: skip


def _device_for(network: nn.Module, settings: AuditSettings) -> torch.device:
    """The device asked for, else the one that a network in memory is on."""
    if settings.device is not None:
        return pick_device(settings.device)
    return next((tensor.device for tensor in network.parameters()), torch.device("cpu"))


def _said_by(description: Description | None) -> AuditSettings:
    if description is None:
        return AuditSettings()
    return AuditSettings.model_construct(
        arch=description.architecture,
        arch_args=description.arch_args or None,
        output=description.output if description.output != "logits" else None,
        data=description.data,
        norm=description.norm,
        eps=description.eps,
    )


def _origins(origin: dict[str, str], settings: AuditSettings, said: AuditSettings) -> dict[str, str]:
    from_checkpoint = {
        name: "the checkpoint" for name in said.model_dump(exclude_none=True) if getattr(settings, name, None) is None
    }
    return {**origin, **from_checkpoint}


def _normalization(
    settings: AuditSettings, description: Description | None, warnings: list[Warning], own_module: bool
) -> Any:
    if settings.normalize is not None:
        return parse_normalize(settings.normalize)
    if description is not None:
        return None if description.mean is None else (description.mean, description.std)
    if not own_module:
        warnings.append(
            Warning(
                code="normalization-assumed",
                message="no normalisation is known, so images reach the network as [0, 1]; if it was trained on "
                "normalised images say which with --normalize, otherwise --normalize none",
            )
        )
    return None


def _open(
    target: Any, settings: AuditSettings, origin: dict[str, str], description: Description | None,
    classifier: Classifier, data: Any,
) -> LabelledData:  # fmt: skip
    if data is not None and not isinstance(data, str):
        return data_module.from_object(data, "data given in Python", settings.split or "")
    spec = data if isinstance(data, str) else settings.data
    if spec is None:
        raise UsageError(
            "no data: give images with labels as --data imagefolder:DIR, npz:FILE, torchvision:NAME?root=DIR or "
            "pkg.mod:factory"
        )
    by_checkpoint = origin.get("data") == "the checkpoint"
    if by_checkpoint and data_module.runs_user_code(spec):
        raise UsageError(f"the checkpoint names Python code as its data ({spec}); if you trust it, give it with --data")
    shape = tuple(description.input_shape) if description is not None else ()
    first_convolution = next((m for m in classifier.body.modules() if isinstance(m, nn.Conv2d)), None)
    channels = shape[0] if len(shape) == 3 else first_convolution.in_channels if first_convolution else None
    size = (shape[1], shape[2]) if len(shape) == 3 else None
    if size is None and (settings.arch or "").startswith("torchvision:"):
        size = (224, 224) if spec.startswith("imagefolder:") else None
    folder = Path(target).parent if by_checkpoint else None
    return open_data(spec, split=settings.split, channels=channels, size=size, relative_to=folder)


def _try(
    classifier: Classifier, data: LabelledData, bounds: Bounds, device: torch.device
) -> tuple[list[Layer], int, tuple[int, ...]]:
    """One forward pass of up to three samples: layers, number of classes, input shape."""
    rows = np.arange(min(3, len(data)))
    x = check_inputs(data.read(rows), rows, bounds, data.spec).to(device)
    found: list[torch.Tensor] = []

    def run() -> Any:
        raw = classifier.body(classifier.normalize(x))
        found.append(classifier.as_logits(raw, len(x)))
        return find_logits(raw)

    try:
        with undisturbed(classifier):
            layers = find_layers(classifier.body, run, len(x))
    except LsaError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"the network cannot take inputs of shape {tuple(x.shape[1:])} from {data.spec}: {first}; "
            "is this the data set, image size and number of channels that it was trained for?"
        ) from error
    return layers, found[0].shape[1], tuple(x.shape[1:])


def _match_classes(
    data: LabelledData, classifier: Classifier, classes: int, notes: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels in the network's order of classes, and the names of the classes."""
    from lsa_cli.auditing.evidence import check_classes

    check_classes(data.labels, data.class_names, classes, data.spec)
    labels = data.labels.astype(np.int64)
    own = classifier.class_names
    if own is None:
        return labels, data.class_names or tuple(str(number) for number in range(classes))
    if len(own) != classes:
        raise DataError(f"the checkpoint names {len(own)} classes, and the network has {classes} outputs")
    if data.class_names is not None and data.class_names != own and sorted(data.class_names) == sorted(own):
        order = np.array([own.index(name) for name in data.class_names])
        notes.append("labels of the data were put into the network's order of classes, by name")
        labels = order[labels]
    return labels, own


# ---- the plan ------------------------------------------------------------------------------------------


def make_plan(
    target: str | Path | nn.Module, settings: AuditSettings, origin: dict[str, str], data: Any = None
) -> AuditPlan:
    """Resolve every setting. Raises an LsaError, before anything costs time, for what cannot be meant."""
    for plugin in settings.plugin or []:
        load_python_file(plugin, "--plugin")
    measure_name = settings.measure or "relative-error"
    measure = MEASURES.get(measure_name)
    _resolve_names(settings)
    network = open_network(target, settings, origin, data)
    settings, origin = network.settings, network.origin
    seed = settings.seed if settings.seed is not None else 0
    index, selection_warnings = _choose_samples(network, settings, seed)
    threat, eps_text, eps_origin = _threat(network, network.warnings)
    attacks = _attacks(settings, threat)
    noises = _noises(settings, network.bounds)
    selectors = tuple(settings.layers or ["activations"])
    chosen = select_layers(network.layers, selectors)
    weighted = [layer for layer in network.layers if layer.is_learnable]
    sigma = settings.sigma or "samples"
    eta = settings.eta if settings.eta is not None else (0.8 if sigma == "layers" else 0.5)
    numbers = int(np.prod(network.input_shape))
    batch = settings.batch_size or int(np.clip(_BATCH_NUMBERS // numbers, 1, _LARGEST_BATCH))
    labels = [named.label for named in (*attacks, *noises)]
    check_targets(settings.gate or {}, labels, network.class_names, [layer.name for layer in chosen])
    grid = tuple(sorted(set(settings.eps_grid or ())))
    if grid and not attacks:
        raise UsageError("--eps-grid needs an attack to draw the curve with")
    for eps in grid:
        make_threat(threat.norm, eps, network.bounds)
    return AuditPlan(
        checkpoint=network.checkpoint,
        classifier=network.classifier,
        architecture=settings.arch or type(network.classifier.body).__name__,
        arch_args=settings.arch_args or {},
        data=network.data,
        labels=network.labels,
        index=index,
        threat=threat,
        eps_text=eps_text,
        eps_origin=eps_origin,
        attacks=attacks,
        noises=noises,
        eps_grid=grid,
        layers=tuple(chosen),
        selectors=selectors,
        last_layer=weighted[-1] if weighted else None,
        measure_name=measure_name,
        measure=measure,
        whole_batch=settings.aggregate == "batch",
        rule=MvlRule(eta, sigma, settings.top_k),
        batch_size=batch,
        device=network.device,
        threads=settings.threads or usable_cores(),
        seed=seed,
        class_names=network.class_names,
        input_shape=network.input_shape,
        bounds=network.bounds,
        limits=settings.gate or {},
        settings=settings.model_dump(exclude_none=True),
        origin=origin,
        notes=tuple(network.notes),
        warnings=(*network.warnings, *selection_warnings),
    )


def _resolve_names(settings: AuditSettings) -> None:
    """Unknown names fail before the checkpoint is read."""
    for registry, specs in ((ATTACKS, settings.attack), (NOISES, settings.noise)):
        for spec in specs or []:
            if spec != "none":
                registry.get(parse_spec(spec, registry.noun)[0])
    if settings.norm is not None:
        make_threat(settings.norm, 0)


def _choose_samples(network: Network, settings: AuditSettings, seed: int) -> tuple[np.ndarray, list[Warning]]:
    from lsa_cli.auditing.evidence import empty_classes

    available = len(network.data)
    limit = settings.limit
    if isinstance(limit, int) and limit > available:
        raise UsageError(
            f"--limit {limit} asks for more samples than the {available} in {network.data.spec}; use --limit all"
        )
    if limit == "all" or (limit is None and available <= DEFAULT_LIMIT):
        index = np.arange(available)
    else:
        index = stratified_subset(network.labels, int(limit or DEFAULT_LIMIT), seed)
    counts = np.bincount(network.labels[index], minlength=network.classes)
    missing_anyway = (np.bincount(network.labels, minlength=network.classes) == 0).any()
    return index, empty_classes(counts, list(network.class_names), subset=not missing_anyway)


def _threat(network: Network, warnings: list[Warning]) -> tuple[Threat, str, str]:
    settings, origin = network.settings, network.origin
    norm = make_threat(settings.norm or "linf", 0, network.bounds).norm
    eps = settings.eps
    # A checkpoint's radius belongs to the checkpoint's norm.
    if (
        eps is not None
        and origin.get("eps") == "the checkpoint"
        and origin.get("norm", "the checkpoint") != "the checkpoint"
    ):
        own = network.description.norm if network.description else None
        eps = eps if own == norm else None
    if eps is not None:
        return make_threat(norm, eps, network.bounds), eps_as_text(eps), origin.get("eps", "option")
    name = (network.description.data_name if network.description else None) or network.data.name
    usual = USUAL_EPS.get(name.lower().replace("-", "").replace("_", ""), {}).get(norm)
    if usual is not None:
        return make_threat(norm, parse_number(usual), network.bounds), usual, f"usual for {name}"
    if norm != "linf" or network.bounds is None:
        raise UsageError(f"no usual {norm} radius is known for this data; give one with --eps")
    warnings.append(
        Warning(
            code="eps-assumed",
            message="no usual radius is known for this data; linf 8/255 was taken, say --eps for another",
        )
    )
    return make_threat("linf", 8 / 255, network.bounds), "8/255", "assumed"


def eps_as_text(eps: float) -> str:
    """0.0313725 -> "8/255"; other numbers as they are."""
    levels = eps * 255
    if 0 < levels < 128 and abs(levels - round(levels)) < 1e-6 and abs(eps * 100 - round(eps * 100)) > 1e-6:
        return f"{round(levels)}/255"
    return f"{eps:g}"


def _specs(given: list[str] | None, default: Sequence[str], option: str) -> list[str]:
    if given is None:
        return list(default)
    if "none" in given:
        if len(given) > 1:
            raise UsageError(f"{option} none stands alone, or not at all")
        return []
    return given


def _attacks(settings: AuditSettings, threat: Threat) -> tuple[Named, ...]:
    specs = _specs(settings.attack, DEFAULT_ATTACKS, "--attack")
    general = {
        name: getattr(settings, name)
        for name in ("steps", "step_size", "restarts")
        if getattr(settings, name) is not None
    }
    used: set[str] = set()
    made: list[tuple[str, str, Attack]] = []
    for spec in specs:
        name, options = parse_spec(spec, "attack")
        factory = ATTACKS.get(name)
        fields = {field.name for field in dataclasses.fields(factory)}
        given: dict[str, Any] = {}
        if "threat" in fields:
            norm, eps = options.pop("norm", threat.norm), options.pop("eps", None)
            if eps is None and make_threat(norm, 0, threat.bounds).norm != threat.norm:
                raise UsageError(f"attack '{spec}': give eps with another norm, for example {name}:norm={norm},eps=1")
            radius = threat.eps if eps is None else parse_number(eps, f"attack '{spec}': eps")
            given["threat"] = make_threat(norm, radius, threat.bounds)
        applicable = {key: value for key, value in general.items() if key in fields}
        used |= set(applicable)
        merged = {**applicable, **options}
        made.append((name, spec, build(factory, merged, f"attack '{spec}'", **given)))
    for key in general:
        if key not in used:
            raise UsageError(f"--{key.replace('_', '-')}: none of the attacks ({', '.join(specs) or 'none'}) takes it")
    return _label(made)


def _noises(settings: AuditSettings, bounds: Bounds) -> tuple[Named, ...]:
    # Salt and pepper need a range; without one they are left out of the default, not asked for in vain.
    usable = [
        name for name in NOISES.names() if bounds is not None or not getattr(NOISES.get(name), "needs_range", False)
    ]
    made = []
    for spec in _specs(settings.noise, usable, "--noise"):
        name, options = parse_spec(spec, "noise")
        made.append((name, spec, build(NOISES.get(name), options, f"noise '{spec}'", bounds=bounds)))
    return _label(made)


def _label(made: list[tuple[str, str, Attack]]) -> tuple[Named, ...]:
    names = [name for name, _, _ in made]
    labels = [name if names.count(name) == 1 else spec for name, spec, _ in made]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"'{label}' is asked for twice; give it once, or with other settings")
    return tuple(Named(label, *entry) for label, entry in zip(labels, made, strict=True))
