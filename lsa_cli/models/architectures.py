"""Networks that ship, and the ways to name one: lsa:NAME, torchvision:NAME, timm:NAME, pkg.mod:factory, file.py:factory."""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from lsa_cli.errors import UsageError, summary_of
from lsa_cli.imports import home_of
from lsa_cli.models.rebuilding.described import FACTORIES
from lsa_cli.models.wrappers import unwrap_parts
from lsa_cli.registry import SHIPPED, Registry, load_attribute, unknown

_LONGEST = 300  # of what is quoted in an error
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


def _cifar_resnet(base: str) -> Callable[..., nn.Module]:
    def build(num_classes: int = 10) -> nn.Module:
        network = _torchvision_factory(base)(num_classes=num_classes)
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
        return network

    build.__doc__ = (
        f"torchvision's {base} for 32 x 32 images: its first convolution is 3 x 3 of stride 1, without pooling."
    )
    return build


_BASES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2")
for _base in _BASES:
    ARCHITECTURES.register(f"cifar-{_base.replace('_', '-')}")(_cifar_resnet(_base))


class _Block(nn.Module):
    """Residual block of pytorch-cifar: two 3 x 3 convolutions, or 1 x 1, 3 x 3, 1 x 1 four times as wide.

    Where the shape changes, the shortcut is a 1 x 1 convolution or, with `pads`, every second pixel with channels of
    zeros added, which has no weights.
    """

    def __init__(self, inner: int, width: int, stride: int, bottleneck: bool, pads: bool) -> None:
        super().__init__()
        outer = 4 * width if bottleneck else width
        kernels = ((inner, width, 1), (width, width, 3), (width, outer, 1))
        shapes = kernels if bottleneck else ((inner, width, 3), (width, width, 3))
        self.depth = len(shapes)
        for number, (before, after, kernel) in enumerate(shapes, start=1):
            step = stride if number == (2 if bottleneck else 1) else 1
            setattr(self, f"conv{number}", nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(after))
            setattr(self, f"relu{number}", nn.ReLU())
        self.shortcut = nn.Sequential()
        if inner != outer and pads:
            self.shortcut = _Subsample((outer - inner) // 2)
        elif inner != outer or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for number in range(1, self.depth + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            if number == self.depth:
                out = out + self.shortcut(x)
            out = getattr(self, f"relu{number}")(out)
        return out


class _Subsample(nn.Module):
    def __init__(self, zeros: int) -> None:
        super().__init__()
        self.zeros = zeros

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.zeros, self.zeros))


def _small_resnet(counts: tuple[int, ...], width: int, bottleneck: bool, pads: bool) -> Callable[..., nn.Module]:
    """A factory of ResNets: a 3 x 3 convolution, at each width as many blocks as in `counts`, global average, `linear`."""

    def build(num_classes: int = 10) -> nn.Module:
        """A ResNet for 32 x 32 images, under the names of weights that most CIFAR checkpoints have."""
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(3, width, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(width), relu=nn.ReLU()
        )
        inner = width
        for number, count in enumerate(counts):
            blocks = []
            for place in range(count):
                stride = 2 if number > 0 and place == 0 else 1
                blocks.append(_Block(inner, width * 2**number, stride, bottleneck, pads))
                inner = width * 2**number * (4 if bottleneck else 1)
            layers[f"layer{number + 1}"] = nn.Sequential(*blocks)
        layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        layers["linear"] = nn.Linear(inner, num_classes)
        return nn.Sequential(layers)

    return build


# The two families that most CIFAR checkpoints come from, with their names of weights: pytorch-cifar-resnetN as in
# kuangliu/pytorch-cifar, with the widths for ImageNet; cifar-resnetN as in akamaster/pytorch_resnet_cifar10, the networks
# of He et al. for CIFAR (N = 6 n + 2), whose shortcuts have no weights.
_COUNTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
for _depth, _counts in _COUNTS.items():
    ARCHITECTURES.register(f"pytorch-cifar-resnet{_depth}")(_small_resnet(_counts, 64, _depth >= 50, False))
for _depth in (20, 32, 44, 56, 110):
    ARCHITECTURES.register(f"cifar-resnet{_depth}")(_small_resnet(((_depth - 2) // 6,) * 3, 16, False, True))


def runs_user_code(spec: str) -> bool:
    """Whether building `spec` imports Python that ships neither with lsa nor with torchvision or timm."""
    return spec.partition(":")[0] not in SHIPPED


def build_architecture(spec: str, arguments: dict[str, Any]) -> nn.Module:
    """An untrained network from its name and the factory's arguments.

    Raises UsageError when the name is unknown, the factory fails, or what it returns is no nn.Module.
    """
    source, _, name = spec.partition(":")
    if source == "lsa":
        factory = FACTORIES[name] if name in FACTORIES else ARCHITECTURES.get(name)
    elif source == "torchvision":
        factory = _torchvision_factory(name)
    elif source == "timm":
        factory = _timm_factory(name)
    else:
        factory = load_attribute(spec, "--arch")
    if not callable(factory):
        raise UsageError(f"--arch: {spec} is not a function or class that builds a network")
    try:
        with home_of(spec) if runs_user_code(spec) else nullcontext():
            network = factory(**arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise UsageError(
            f"--arch: {spec} failed when called with {given[:_LONGEST]}: {summary_of(error)}; "
            "pass what it needs with --arch-args name=value"
        ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"--arch: {spec} returned {type(network).__name__}, not a torch.nn.Module")
    return unwrap_parts(network)


def _torchvision_factory(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise UsageError(unknown("torchvision architecture", name, names))

    def build(**arguments: Any) -> nn.Module:
        # No weights: they come from the checkpoint, and nothing is downloaded.
        if name in ("googlenet", "inception_v3"):
            arguments.setdefault("init_weights", False)  # minutes of random numbers that the checkpoint replaces
        return models.get_model(name, weights=None, **arguments)

    return build


def _timm_factory(name: str) -> Callable[..., nn.Module]:
    try:  # not can_import: a checkpoint may ask for timm, and that would look in the working directory too
        import timm
    except ImportError as error:
        raise UsageError(f"--arch timm:{name}: timm is not installed; pip install timm") from error
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(unknown("timm architecture", name, timm.list_models()))

    # A checkpoint may give arguments, and these name files and downloads (checkpoint_path, pretrained_cfg).
    barred = set(inspect.signature(timm.create_model).parameters) - {"kwargs"}

    def build(**arguments: Any) -> nn.Module:
        if not barred.isdisjoint(arguments):
            raise ValueError(f"{', '.join(sorted(barred & set(arguments)))} is not an argument of a network")
        return timm.create_model(name.partition(".")[0], pretrained=False, **arguments)

    return build
