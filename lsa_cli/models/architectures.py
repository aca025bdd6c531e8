"""Networks that ship, and the ways to name one: lsa:NAME, torchvision:NAME, pkg.mod:factory, file.py:factory."""

import ast
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

from lsa_cli.errors import UsageError
from lsa_cli.registry import Registry, load_attribute, unknown

ARCHITECTURES: Registry[Callable[..., nn.Module]] = Registry("architecture")


@ARCHITECTURES.register("moon-mlp")
def moon_mlp() -> nn.Module:
    """Model A of arXiv 2202.02626: 2-100-100-100-1 with ELU, one logit."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate((2, 100, 100), start=1):
        layers[f"fc{number}"] = nn.Linear(width, 100)
        layers[f"elu{number}"] = nn.ELU()
    layers["fc4"] = nn.Linear(100, 1)
    return nn.Sequential(layers)


@ARCHITECTURES.register("mnist-cnn")
def mnist_cnn(num_classes: int = 10) -> nn.Module:
    """Model B of arXiv 2202.02626 for 1 x 28 x 28 images; no padding (the paper does not state it)."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, 5),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(32, 64, 5),
            relu3=nn.ReLU(),
            pool3=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(576, 100),
            relu4=nn.ReLU(),
            fc2=nn.Linear(100, num_classes),
        )
    )


def runs_user_code(spec: str) -> bool:
    """Whether building `spec` imports Python that neither ships with lsa nor with torchvision."""
    return spec.partition(":")[0] not in ("lsa", "torchvision")


def build_architecture(spec: str, arguments: dict[str, Any]) -> nn.Module:
    """An untrained network from its name and the factory's arguments.

    Raises UsageError when the name is unknown, the factory fails, or what it returns is no nn.Module.
    """
    source, _, name = spec.partition(":")
    if source == "lsa":
        factory = ARCHITECTURES.get(name)
    elif source == "torchvision":
        factory = _torchvision_factory(name)
    else:
        factory = load_attribute(spec, "--arch")
    if not callable(factory):
        raise UsageError(f"--arch: {spec} is not a function or class that builds a network")
    try:
        network = factory(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise UsageError(
            f"--arch: {spec} failed when called with {given}: {type(error).__name__}: {error}; "
            "pass what it needs with --arch-args name=value"
        ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"--arch: {spec} returned {type(network).__name__}, not a torch.nn.Module")
    return network


def _torchvision_factory(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise UsageError(unknown("torchvision architecture", name, names))

    def build(**arguments: Any) -> nn.Module:
        # No weights: they come from the checkpoint, and nothing is downloaded.
        return models.get_model(name, weights=None, **arguments)

    return build


def parse_arguments(pairs: list[str]) -> dict[str, Any]:
    """["num_classes=10", "norm='batch'"] -> {"num_classes": 10, "norm": "batch"}; plain words stay text."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--arch-args: '{pair}' should read name=value")
        if key in arguments:
            raise UsageError(f"--arch-args: {key} is given twice")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = {"true": True, "false": False, "none": None}.get(value.lower(), value)
    return arguments
