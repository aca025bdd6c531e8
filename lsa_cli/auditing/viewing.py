"""What labelled images tell of a network before an audit: its layers, its normalisation, the layout that it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.threat import Bounds
from lsa_cli.auditing.network import Built, build_network, on_data
from lsa_cli.auditing.network_data import open_data_for
from lsa_cli.auditing.rebuilding import rebuild
from lsa_cli.auditing.rebuilt import Rebuilt
from lsa_cli.auditing.suggesting import with_commands
from lsa_cli.data import LabelledData, check_inputs
from lsa_cli.errors import UsageError
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.loading import Say
from lsa_cli.settings import AuditSettings

_IMAGES = 2  # that show the shapes


@dataclass(frozen=True)
class LayerView:
    """A module without modules inside, in the order in which it runs. shape: of its output for one image."""

    name: str
    module: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class View:
    """found: sentences on what the images tell. layers: none of a compiled program. certain: whether an audit takes the
    network as it is."""

    found: list[str]
    layers: list[LayerView]
    certain: bool


def view_network(target: str | Path, settings: AuditSettings) -> View:
    """The network of a file with the data of the settings. Raises an LsaError where there is none."""
    found: list[str] = []
    built = build_network(target, settings, found.append)
    if built.unknown is None:
        network = on_data(built, settings, {}, None, found.append)
        layers = _layers(network.classifier, network.data, network.bounds) if network.shows_layers else []
        return View([f"network: {network.arch}", *found], layers, True)
    rebuilt, data, bounds = _rebuilt(built, target, settings, found.append)
    classifier = Classifier(rebuilt.loaded.body, rebuilt.found.normalization)
    return View(found, _layers(classifier, data, bounds), rebuilt.doubt is None)


def rebuild_alone(target: str | Path, settings: AuditSettings, say: Say) -> Rebuilt:
    """The network of a file that names none, put together again with the data of the settings, even if doubt is left.

    Raises UsageError where the network is known without data, or no network can be put together.
    """
    built = build_network(target, settings, say)
    if built.unknown is None:
        arch = built.loaded.arch if built.loaded is not None else "no file"
        raise UsageError(f"{target} holds {arch}, which needs no reconstruction; leave out --write-arch")
    return _rebuilt(built, target, settings, say, wait=say)[0]


def _rebuilt(
    built: Built, target: str | Path, settings: AuditSettings, say: Say, wait: Say = lambda message: None
) -> tuple[Rebuilt, LabelledData, Bounds]:
    """The network, its data, and the range of its inputs."""
    assert built.checkpoint is not None
    assert built.unknown is not None
    description = built.checkpoint.description
    with with_commands(target, built.asked):
        opened = open_data_for(target, settings, {}, description, built.checkpoint, built.loaded, None)
    bounds = description.input_range if description is not None else (0.0, 1.0)
    return (
        rebuild(
            built.checkpoint, opened, settings, bounds, built.unknown, say, asked=built.asked, doubtful=True, wait=wait
        ),
        opened,
        bounds,
    )


def _layers(classifier: Classifier, data: LabelledData, bounds: Bounds) -> list[LayerView]:
    rows = np.arange(_IMAGES) % len(data)
    x = check_inputs(data.read(rows), rows, bounds, data.spec)
    found: list[LayerView] = []
    names = {module: name for name, module in classifier.body.named_modules() if not any(module.children())}

    def show(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            found.append(LayerView(names[module], str(module), tuple(output.shape[1:])))

    hooks = [module.register_forward_hook(show) for module in names]
    try:
        with torch.no_grad(), undisturbed(classifier):
            classifier(x.to(next((tensor.device for tensor in classifier.parameters()), "cpu")))
    finally:
        for hook in hooks:
            hook.remove()
    return found
