"""A chain of layers and residual blocks as a network, and as Python text."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


class Chain(nn.Module):
    """Layers in the order in which they run. A name with dots makes modules inside modules."""

    def __init__(self, steps):  # type: ignore[no-untyped-def]
        super().__init__()
        self._order = [name for name, _ in steps]
        for name, layer in steps:
            holder, last = self._place(name)
            holder.add_module(last, layer)

    def _place(self, name):  # type: ignore[no-untyped-def]
        *path, last = name.split(".")
        holder = self
        for part in path:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder._modules[part]
        return holder, last

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self._run(self._order, x)

    def _run(self, names, x):  # type: ignore[no-untyped-def]
        for name in names:
            x = self.get_submodule(name)(x)
        return x


class Residual(Chain):
    """The layers of `main`, and a shortcut around them through `side`, which may be empty; both behind `shared`.

    gate: layers that give a factor for each channel of `main` (squeeze-and-excitation); empty for none. join: "sum", or which
    of the two has its channels first where they are put together, "side" or "main".
    """

    def __init__(self, main, side=(), shared=(), gate=(), join="sum"):  # type: ignore[no-untyped-def]
        super().__init__([*shared, *main, *gate, *side])
        self._main, self._side, self._shared = ([name for name, _ in steps] for steps in (main, side, shared))
        self._gate, self.join = [name for name, _ in gate], join

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = self._run(self._shared, x)
        y = self._run(self._main, x)
        if self._gate:
            y = y * self._run(self._gate, y).reshape(*y.shape[:2], 1, 1)
        side = self._run(self._side, x)
        return y + side if self.join == "sum" else torch.cat([side, y] if self.join == "side" else [y, side], 1)


class Pad(nn.Module):
    """A shortcut without weights: every pixel at the stride, with channels of zeros in front and at the end."""

    def __init__(self, stride, front, end):  # type: ignore[no-untyped-def]
        super().__init__()
        self.stride, self.channels = stride, (0, 0, 0, 0, front, end)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], self.channels)


class ChannelsLast(nn.Module):
    """(N, C, H, W) -> (N, H, W, C), the order in which TensorFlow flattens."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x.permute(0, 2, 3, 1)


OWN: dict[str, type[nn.Module]] = {"Pad": Pad, "ChannelsLast": ChannelsLast}


@dataclass(frozen=True)
class Part:
    """A module of torch.nn, or of OWN, under its name in the network. has_weights: of the file."""

    name: str
    kind: str
    arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    has_weights: bool = False

    def build(self) -> nn.Module:
        return (OWN.get(self.kind) or getattr(nn, self.kind))(*self.arguments, **dict(self.options))

    def __str__(self) -> str:
        words = [repr(value) for value in self.arguments] + [f"{name}={value!r}" for name, value in self.options]
        return f"{'' if self.kind in OWN else 'nn.'}{self.kind}({', '.join(words)})"


@dataclass(frozen=True)
class Sum:
    """A block, whose parts have names inside of it. join: as in `Residual`."""

    name: str
    shared: tuple[Part, ...]
    main: tuple[Part, ...]
    side: tuple[Part, ...]
    gate: tuple[Part, ...] = ()
    join: str = "sum"


def build(parts: Sequence[Part | Sum]) -> nn.Module:
    """The network, untrained."""
    return Chain([(part.name, _built(part)) for part in parts])


def _built(part: Part | Sum) -> nn.Module:
    if isinstance(part, Part):
        return part.build()
    several = (part.main, part.side, part.shared, part.gate)
    main, side, shared, gate = ([(one.name, one.build()) for one in each] for each in several)
    return Residual(main, side, shared, gate, part.join)


def with_weights(
    parts: Sequence[Part | Sum], tensors: Mapping[str, torch.Tensor], made: dict[tuple[Any, ...], nn.Module]
) -> nn.Module:
    """The network in evaluation mode on the weights given, which it shares. made: modules to use again."""
    steps = []
    for part in parts:
        if isinstance(part, Part):
            steps.append((part.name, _with_weights(part, "", tensors, made)))
            continue
        main, side, shared, gate = (
            [(one.name, _with_weights(one, f"{part.name}.", tensors, made)) for one in several]
            for several in (part.main, part.side, part.shared, part.gate)
        )
        steps.append((part.name, Residual(main, side, shared, gate, part.join)))
    return Chain(steps).eval()


def _with_weights(
    part: Part, prefix: str, tensors: Mapping[str, torch.Tensor], made: dict[tuple[Any, ...], nn.Module]
) -> nn.Module:
    if not part.has_weights:
        return part.build()
    is_convolution, options = part.kind == "Conv2d", dict(part.options)
    key = (prefix + part.name, part.kind, part.arguments, () if is_convolution else part.options)
    if key not in made:
        made[key] = _loaded(part, prefix, tensors)
    module = copy.copy(made[key])
    if is_convolution:
        stride, padding = options.get("stride", 1), options.get("padding", (0, 0))
        module.stride, module.padding, module.dilation = (stride, stride), padding, (options.get("dilation", 1),) * 2
    return module


def _loaded(part: Part, prefix: str, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    with torch.device("meta"):
        module = part.build()
    start = f"{prefix}{part.name}."
    names = {name: tensors[start + name] for name in module.state_dict() if start + name in tensors}
    # A weight may be missing here: the network that is taken is loaded strictly afterwards.
    module.load_state_dict({name: value.float() for name, value in names.items()}, strict=False, assign=True)
    return module.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # as the images; see `fast_layout`


def fast_layout(x: torch.Tensor) -> torch.Tensor:
    """Images (n, C, H, W) with the channels of a pixel together in memory, where torch pools and convolves
    many times faster; vectors as they are."""
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def source_of(parts: Sequence[Part | Sum], comment: str) -> str:
    """A Python file with a function `build` that returns the network, untrained."""
    kinds = {one.kind for part in parts for one in ([part] if isinstance(part, Part) else part.side)}
    classes: list[type] = [Chain, *([Residual] if any(isinstance(part, Sum) for part in parts) else [])]
    classes += [own for name, own in OWN.items() if name in kinds]
    torch_itself = "import torch\n" if Residual in classes else ""
    return _FILE.format(
        comment=comment, torch=torch_itself, classes=text_of(classes), lines="\n".join(map(_line, parts))
    )


def text_of(classes: Sequence[type]) -> str:
    """The source text of the classes."""
    return "\n\n".join(inspect.getsource(one).replace("  # type: ignore[no-untyped-def]", "") for one in classes)


def _line(part: Part | Sum) -> str:
    if isinstance(part, Part):
        return f"        ({part.name!r}, {part}),"
    lines = [f"        ({part.name!r}, Residual("]
    for word, several in (("main", part.main), ("side", part.side), ("shared", part.shared), ("gate", part.gate)):
        if several:
            lines += [
                f"            {word}=[",
                *(f"                ({one.name!r}, {one})," for one in several),
                "            ],",
            ]
    lines += [f"            join={part.join!r},"] if part.join != "sum" else []
    return "\n".join([*lines, "        )),"])


_FILE = '''"""{comment}"""

{torch}from torch import nn


{classes}

def build():
    return Chain([
{lines}
    ])
'''
