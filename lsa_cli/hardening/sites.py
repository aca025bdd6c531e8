"""The layers in which a method changes a network: their names, and the shape of one sample there."""

import torch

from lsa_cli.attacks.base import undisturbed
from lsa_cli.errors import UsageError
from lsa_cli.hardening.methods import Task
from lsa_cli.layers import Layer, find_layers, select_layers, tap
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.surgery import Sites


def layers_of(model: Classifier, x: torch.Tensor) -> list[Layer]:
    """The layers in the order in which a pass of x (N, ...) runs them. The network does not change."""
    with undisturbed(model):
        return find_layers(model.body, lambda: model.scores(x), len(x))


def hidden_layers(model: Classifier, task: Task) -> list[Layer]:
    """The hidden layers in the order in which they run, found by one forward pass of noise."""
    x = _example(model, task)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        return [layer for layer in layers_of(model, x) if not layer.is_output]


def sites_of(model: Classifier, task: Task, names: list[str], *, inputs: bool) -> Sites:
    """Layers with the shapes of their outputs, or of their inputs."""
    x, found = _example(model, task), {}

    def note(name: str, tensor: torch.Tensor) -> None:
        found[name] = tuple(tensor.shape[1:])

    with (
        torch.no_grad(),
        undisturbed(model),
        torch.random.fork_rng(devices=[x.device] if x.is_cuda else []),
        tap(model.body, names, note, inputs=inputs),
    ):
        model.ask(x)
    missed = [name for name in names if name not in found]
    if missed:
        raise UsageError(f"the network does not use the layer {missed[0]}; see `lsa layers`")
    return found


def chosen(layers: list[Layer], task: Task, sites: str) -> list[str]:
    """Names of layers. sites: mvl (the most vulnerable layers of a scan), or a selector, a name or a glob."""
    return list(task.layers) if sites == "mvl" else [layer.name for layer in select_layers(layers, [sites])]


def _example(model: Classifier, task: Task) -> torch.Tensor:  # (2, ...)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    return torch.rand(2, *task.input_shape, generator=torch.Generator().manual_seed(0)).to(device)
