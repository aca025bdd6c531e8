"""A vision transformer as a network, and as Python text."""

from dataclasses import dataclass

import torch
from torch import nn

from lsa_cli.models.rebuilding.chain import OWN, Chain, Part, text_of


class Patches(nn.Module):
    """(N, C, H, W) -> (N, patches, numbers of a patch), with the channels of a pixel together, or each channel in one piece."""

    def __init__(self, size, channels_last=True):  # type: ignore[no-untyped-def]
        super().__init__()
        self.size, self.channels_last = size, channels_last

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = x.unfold(2, self.size, self.size).unfold(3, self.size, self.size).permute(0, 2, 3, 1, 4, 5)
        x = x.permute(0, 1, 2, 4, 5, 3) if self.channels_last else x
        return x.flatten(3).flatten(1, 2)


class Tokens(nn.Module):
    """(N, D, h, w) -> (N, h * w, D)."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x.flatten(2).transpose(1, 2)


class Heads(nn.Module):
    """Queries, keys and values (N, T, 3 * D) -> attention (N, T, D)."""

    def __init__(self, heads):  # type: ignore[no-untyped-def]
        super().__init__()
        self.heads = heads

    def forward(self, x):  # type: ignore[no-untyped-def]
        q, k, v = x.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)
        return (weights @ v).transpose(1, 2).flatten(2)


class SelfAttention(nn.MultiheadAttention):
    """torch's module, of a sequence to itself."""

    def __init__(self, width, heads):  # type: ignore[no-untyped-def]
        super().__init__(width, heads, batch_first=True)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return super().forward(x, x, x, need_weights=False)[0]


class Pool(nn.Module):
    """(N, T, D) -> (N, D): the first token, or the mean of all tokens, or of those behind the first one."""

    def __init__(self, what):  # type: ignore[no-untyped-def]
        super().__init__()
        self.what = what

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x[:, 0] if self.what == "token" else x.mean(1) if self.what == "mean" else x[:, 1:].mean(1)


class Layer(Chain):
    """Attention and a perceptron, each with a shortcut around it and a norm before it, or behind the sum."""

    def __init__(self, norms, attention, perceptron, norm_first=True):  # type: ignore[no-untyped-def]
        super().__init__([*norms, *attention, *perceptron])
        self._norms, self._attention, self._perceptron = (
            [name for name, _ in steps] for steps in (norms, attention, perceptron)
        )
        self.norm_first = norm_first

    def forward(self, x):  # type: ignore[no-untyped-def]
        for norm, steps in zip(self._norms, (self._attention, self._perceptron), strict=True):
            if self.norm_first:
                x = x + self._run([norm, *steps], x)
            else:
                x = self._run([norm], x + self._run(steps, x))
        return x


class VisionTransformer(Chain):
    """The steps of `patches`, a token for the class, if there is one, positions, and the steps of `rest`.

    token, positions: name and shape of a parameter.
    """

    def __init__(self, patches, token, positions, rest):  # type: ignore[no-untyped-def]
        super().__init__([*patches, *rest])
        self._patches, self._rest = [name for name, _ in patches], [name for name, _ in rest]
        self._token, self._positions = token and token[0], positions[0]
        for name, shape in [positions, *([token] if token else [])]:
            holder, last = self._place(name)
            holder.register_parameter(last, nn.Parameter(torch.zeros(shape)))

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = self._run(self._patches, x)
        if self._token:
            x = torch.cat([self.get_parameter(self._token).expand(len(x), 1, -1), x], 1)
        return self._run(self._rest, x + self.get_parameter(self._positions))


_CLASSES: tuple[type[nn.Module], ...] = (Patches, Tokens, Heads, SelfAttention, Pool)
OWN.update({one.__name__: one for one in _CLASSES})


@dataclass(frozen=True)
class LayerParts:
    """A layer under its name in the network; the names of its parts are inside of it."""

    name: str
    norms: tuple[Part, Part]
    attention: tuple[Part, ...]
    perceptron: tuple[Part, ...]
    norm_first: bool

    def build(self) -> nn.Module:
        steps = (
            [(one.name, one.build()) for one in several] for several in (self.norms, self.attention, self.perceptron)
        )
        norms, attention, perceptron = steps
        return Layer(norms, attention, perceptron, self.norm_first)

    def __str__(self) -> str:
        several = (self.norms, self.attention, self.perceptron)
        return f"Layer({', '.join(map(_steps, several))}, norm_first={self.norm_first})"


Parameter = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class TransformerParts:
    """The parts of a `VisionTransformer`."""

    patches: tuple[Part, ...]
    token: Parameter | None
    positions: Parameter
    rest: tuple[Part | LayerParts, ...]

    def build(self) -> nn.Module:
        """The network, untrained."""
        steps = ([(one.name, one.build()) for one in several] for several in (self.patches, self.rest))
        first, rest = steps
        return VisionTransformer(first, self.token, self.positions, rest)

    def source(self, comment: str) -> str:
        """A Python file with a function `build` that returns the network, untrained."""
        classes = [Chain, Layer, VisionTransformer, *_CLASSES]
        lines = "\n".join(f"        ({one.name!r}, {one})," for one in self.rest)
        return _FILE.format(comment=comment, classes=text_of(classes), patches=_steps(self.patches), token=self.token,
                            positions=self.positions, lines=lines)  # fmt: skip


def _steps(parts: tuple[Part, ...]) -> str:
    return "[" + ", ".join(f"({one.name!r}, {one})" for one in parts) + "]"


_FILE = '''"""{comment}"""

import torch
from torch import nn


{classes}

def build():
    return VisionTransformer({patches}, {token!r}, {positions!r}, [
{lines}
    ])
'''
