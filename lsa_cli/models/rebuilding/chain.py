"""A chain of layers as a network, and as Python text."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lsa_cli.models.rebuilding.geometry import Geometry
from lsa_cli.models.rebuilding.layers import Layer

# Activations by the class of torch and its arguments, with what an unusual one costs beside ReLU (our choice).
ACTIVATIONS: dict[str, tuple[str, tuple[Any, ...], float]] = {
    "ReLU": ("ReLU", (), 0.0), "LeakyReLU(0.01)": ("LeakyReLU", (0.01,), 1.0), "LeakyReLU(0.1)": ("LeakyReLU", (0.1,), 1.5),
    "LeakyReLU(0.2)": ("LeakyReLU", (0.2,), 1.5), "ELU": ("ELU", (), 1.0), "tanh": ("Tanh", (), 1.0),
    "sigmoid": ("Sigmoid", (), 1.0), "SiLU": ("SiLU", (), 1.0), "GELU": ("GELU", (), 1.0), "SELU": ("SELU", (), 2.0),
    "Softplus": ("Softplus", (), 2.0), "Hardswish": ("Hardswish", (), 2.0), "Mish": ("Mish", (), 2.0),
    "ReLU6": ("ReLU6", (), 2.0), "Softsign": ("Softsign", (), 2.0),
}  # fmt: skip
# What happens between two layers, with its cost.
ORDERS: dict[tuple[str, ...], float] = {
    ("norm", "act", "pool"): 0.0, ("act", "norm", "pool"): 1.0, ("act", "pool", "norm"): 1.0, ("norm", "pool", "act"): 0.5,
    ("pool", "norm", "act"): 1.0,
}  # fmt: skip
POOLINGS = {"max": 0.0, "average": 0.5}


@dataclass(frozen=True)
class Variant:
    """A network of the same weights. activation, pooling, order: keys of ACTIVATIONS, POOLINGS and ORDERS.

    normalization: the option that selects it.
    """

    geometry: Geometry
    activation: str
    pooling: str
    order: tuple[str, ...]
    normalization: str

    @property
    def cost(self) -> float:
        """How unusual the network is, without its normalisation."""
        return self.geometry.cost + ACTIVATIONS[self.activation][2] + POOLINGS[self.pooling] + ORDERS[self.order]

    def __str__(self) -> str:
        return f"{self.activation}, {self._pools()}" if self.geometry.steps else self.activation

    def _pools(self) -> str:
        steps = self.geometry.steps
        strides = {step.stride for step in steps if step.stride > 1}
        pools = sum(step.pool is not None for step in steps)
        parts = [f"{pools} {self.pooling} pools"] if pools else ["no pools"]
        parts += [f"strides {', '.join(str(step.stride) for step in steps)}"] if strides else []
        parts += [f"padding {', '.join(str(step.padding[0]) for step in steps)}"]
        return ", ".join(parts)


@dataclass(frozen=True)
class Part:
    """A module of torch.nn under its name in the network. has_weights: of the file."""

    name: str
    kind: str
    arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    has_weights: bool = False

    def build(self) -> nn.Module:
        return getattr(nn, self.kind)(*self.arguments, **dict(self.options))

    def __str__(self) -> str:
        words = [repr(value) for value in self.arguments] + [f"{name}={value!r}" for name, value in self.options]
        return f"nn.{self.kind}({', '.join(words)})"


class Chain(nn.Module):
    """Layers in the order in which they run. A name with dots makes modules inside modules."""

    def __init__(self, steps):  # type: ignore[no-untyped-def]
        super().__init__()
        self.order = [name for name, _ in steps]
        for name, layer in steps:
            *path, last = name.split(".")
            holder = self
            for part in path:
                if part not in holder._modules:
                    holder.add_module(part, nn.Module())
                holder = holder._modules[part]
            holder.add_module(last, layer)

    def forward(self, x):  # type: ignore[no-untyped-def]
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x


def parts_of(layers: Sequence[Layer], variant: Variant) -> list[Part]:
    """The modules of a network in the order in which they run."""
    taken = {layer.name.partition(".")[0] for layer in layers}
    taken |= {layer.norm.name.partition(".")[0] for layer in layers if layer.norm is not None}
    made: list[Part] = []

    def add(name: str, kind: str, *arguments: Any) -> None:
        while name in taken:
            name += "_"
        taken.add(name)
        made.append(Part(name, kind, arguments))

    if layers[0].is_linear:
        add("flatten", "Flatten")
    for number, layer in enumerate(layers):
        step = None if layer.is_linear else variant.geometry.steps[number]
        made.append(_weighted(layer, step))
        is_last = number == len(layers) - 1
        norm = layer.norm
        for what in variant.order:
            if what == "norm" and norm is not None:
                kind = "BatchNorm1d" if layer.is_linear else "BatchNorm2d"
                options = () if norm.affine else (("affine", False),)
                made.append(Part(norm.name, kind, (norm.width,), options, True))
            elif what == "act" and not is_last and (layer.free is None or layer.free > 0):
                kind, arguments, _ = ACTIVATIONS[variant.activation]
                add(f"act{number + 1}", kind, *arguments)
            elif what == "pool" and step is not None and step.pool is not None:
                add(f"pool{number + 1}", "MaxPool2d" if variant.pooling == "max" else "AvgPool2d", *step.pool)
        if not layer.is_linear and (is_last or layers[number + 1].is_linear):
            if variant.geometry.head != "flatten":
                add("average", "AdaptiveAvgPool2d", variant.geometry.head)
            add("flatten", "Flatten")
    return made


def _weighted(layer: Layer, step: Any) -> Part:
    bias = () if layer.bias else (("bias", False),)
    if step is None:
        return Part(layer.name, "Linear", (layer.inner, layer.outer), bias, True)
    options = [("stride", step.stride)] if step.stride != 1 else []
    options += [("padding", step.padding)] if max(step.padding) else []
    options += [("groups", layer.groups)] if layer.groups != 1 else []
    arguments = (layer.inner * layer.groups, layer.outer, layer.kernel)
    return Part(layer.name, "Conv2d", arguments, (*options, *bias), True)


def build(parts: Sequence[Part]) -> nn.Module:
    """The network, untrained."""
    return Chain([(part.name, part.build()) for part in parts])


def with_weights(parts: Sequence[Part], tensors: Mapping[str, torch.Tensor], made: dict[str, nn.Module]) -> nn.Module:
    """The network in evaluation mode on the weights given, which it shares. made: modules to use again, by name."""
    steps = []
    for part in parts:
        if not part.has_weights:
            steps.append((part.name, part.build()))
            continue
        if part.name not in made:
            made[part.name] = _loaded(part, tensors)
        module = copy.copy(made[part.name])
        if part.kind == "Conv2d":
            options = dict(part.options)
            stride, padding = options.get("stride", 1), options.get("padding", (0, 0))
            module.stride, module.padding = (stride, stride), padding
        steps.append((part.name, module))
    return Chain(steps).eval()


def _loaded(part: Part, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    with torch.device("meta"):
        module = part.build()
    names = {name: tensors[f"{part.name}.{name}"] for name in module.state_dict() if f"{part.name}.{name}" in tensors}
    # A weight may be missing here: the network that is taken is loaded strictly afterwards.
    module.load_state_dict({name: value.float() for name, value in names.items()}, strict=False, assign=True)
    return module.requires_grad_(False).eval()


def source_of(parts: Sequence[Part], comment: str) -> str:
    """A Python file with a function `build` that returns the network, untrained."""
    lines = "\n".join(f"        ({part.name!r}, {part})," for part in parts)
    chain = inspect.getsource(Chain).replace("  # type: ignore[no-untyped-def]", "")
    return _FILE.format(comment=comment, chain=chain, lines=lines)


_FILE = '''"""{comment}"""

from torch import nn


{chain}

def build():
    return Chain([
{lines}
    ])
'''
