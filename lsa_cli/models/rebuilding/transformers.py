"""Vision transformers among the weights: patches, a token for the class, positions, layers of attention, and a head.

Read are the layouts of timm, torchvision and vit-pytorch, and torch's own `TransformerEncoderLayer`, under any names outside of
the layers. The number of heads, the activation and what the head reads are not in the weights. All costs are our choice.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lsa_cli.models.parametrizations import Stored, put_together
from lsa_cli.models.rebuilding.attention import LayerParts, Parameter, TransformerParts
from lsa_cli.models.rebuilding.chain import Part
from lsa_cli.models.rebuilding.layers import Layer, Modules, Shapes, read_modules
from lsa_cli.models.rebuilding.variants import ACTIVATIONS
from lsa_cli.models.recognition import views

_LAYER, _JOINT = re.compile(r"(.*?\d)\.(.+)"), re.compile(r"qkv|in_proj_weight")
_BEHIND_POOL = re.compile(r"fc_norm|head")
# timm and torchvision have norms with a smaller constant than torch.
_BLOCKS = re.compile(r"blocks\.")  # timm takes the mean of the patches, and vit-pytorch that of all tokens
_FINE, _SMALL_EPS = re.compile(r"blocks\.|encoder_layer_"), 1e-6
_SMALLEST_HEAD, _MOST_HEADS = 4, 64  # widths and numbers that are tried
_USUAL_HEADS, _UNUSUAL = (64, 32, 16), 0.5  # widths; cost of others
POOLS = {"token": "the class token", "mean": "the mean of all tokens", "patches": "the mean of the patches"}
_ODD_POOL, _OTHER_POOL, _NORM_LAST, _CHANNELS_FIRST = 3.0, 0.5, 0.5, 0.5
# Layers of timm, torchvision and vit-pytorch have GELU; those of torch have ReLU unless asked for another one.
_ACTIVATIONS = {"GELU": 0.0, "ReLU": 2.5, "SiLU": 3.0, "ELU": 3.5, "tanh": 3.5}
_ACTIVATIONS_OF_TORCH = {"ReLU": 0.0, "GELU": 0.5, "SiLU": 1.5, "ELU": 2.0, "tanh": 2.0}


@dataclass(frozen=True)
class LayerNames:
    """A layer of attention: its name, and its parts with their names inside of it. out: None for a `MultiheadAttention`."""

    name: str
    norms: tuple[str, str]
    qkv: Layer
    out: Layer | None
    perceptron: tuple[Layer, Layer]


@dataclass(frozen=True)
class Transformer:
    """What the weights tell. patch: its pixels in a row; size: of the images. norm: before the head, if there is one."""

    patches: tuple[Part, ...]
    channels: int
    patch: int
    size: int
    token: Parameter | None
    positions: Parameter
    layers: tuple[LayerNames, ...]
    norm: str | None
    head: Layer
    eps: float

    @property
    def is_joint(self) -> bool:
        return self.layers[0].out is None

    @property
    def inner(self) -> int:
        return self.layers[0].qkv.outer // 3


@dataclass(frozen=True)
class Choice:
    """What weights leave open. pool: a key of POOLS. norm_first: norms stand before attention and perceptron, else behind
    the sums. channels_last: a patch has the channels of a pixel together."""

    heads: int
    pool: str
    activation: str = "GELU"
    norm_first: bool = True
    channels_last: bool = True

    def __str__(self) -> str:
        parts = [f"{self.heads} heads", self.activation, POOLS[self.pool]]
        parts += [] if self.norm_first else ["norms behind the sums"]
        return ", ".join([*parts, *([] if self.channels_last else ["channels first in patches"])])


def transformer_of(stored: Mapping[str, Stored]) -> tuple[dict[str, Stored], Transformer] | None:
    """Weights under the names of one of their readings, and the transformer that they are; None where they are none."""
    for view in views(put_together(stored)):
        found = _read({name: item.shape for name, item in view.tensors.items()})
        if found is not None:
            return dict(view.tensors), found
    return None


def choices_of(one: Transformer) -> Iterator[tuple[Choice, float]]:
    """Every choice with the usual activation, and its cost."""
    odd = ("mean", "patches")[:: -1 if _BLOCKS.search(f"{one.layers[0].name}.") else 1]
    pools = [("token", 0.0), (odd[0], _OTHER_POOL), (odd[1], _ODD_POOL)] if one.token else [("mean", 0.0)]
    by_patch = one.patches[0].kind == "Patches" and one.channels > 1
    for heads in range(1, min(_MOST_HEADS, one.inner // _SMALLEST_HEAD) + 1):
        if one.inner % heads:
            continue
        cost = 0.0 if one.inner // heads in _USUAL_HEADS else _UNUSUAL
        for pool, more in pools:
            for first in (True, False) if one.is_joint else (True,):
                for last in (True, False) if by_patch else (True,):
                    extra = (0.0 if first else _NORM_LAST) + (0.0 if last else _CHANNELS_FIRST)
                    yield Choice(heads, pool, "GELU", first, last), cost + more + extra


def with_activations(one: Transformer, choice: Choice, cost: float) -> Iterator[tuple[Choice, float]]:
    """The choice with every activation, and their costs."""
    is_torch = one.is_joint and one.eps > _SMALL_EPS
    for name, more in (_ACTIVATIONS_OF_TORCH if is_torch else _ACTIVATIONS).items():
        yield replace(choice, activation=name), cost + more


def parts_of(one: Transformer, choice: Choice) -> TransformerParts:
    """The parts of the network."""
    kind, arguments, _ = ACTIVATIONS[choice.activation]
    layers = []
    for layer in one.layers:
        attention = [Part(layer.qkv.name, "SelfAttention", (layer.qkv.inner, choice.heads), (), True)]
        if layer.out is not None:
            attention = [_linear(layer.qkv), Part("heads", "Heads", (choice.heads,)), _linear(layer.out)]
        up, down = map(_linear, layer.perceptron)
        first, second = (_norm(name, layer.qkv.inner, one.eps) for name in layer.norms)
        perceptron = (up, Part("act", kind, arguments), down)
        layers.append(LayerParts(layer.name, (first, second), tuple(attention), perceptron, choice.norm_first))
    behind = [Part("pool", "Pool", (choice.pool,))]
    if one.norm is not None:
        norm = _norm(one.norm, one.head.inner, one.eps)
        behind = [*behind, norm] if _BEHIND_POOL.search(one.norm) else [norm, *behind]
    patches = tuple(
        replace(part, arguments=(one.patch, choice.channels_last)) if part.kind == "Patches" else part
        for part in one.patches
    )
    return TransformerParts(patches, one.token, one.positions, (*layers, *behind, _linear(one.head)))


def _linear(layer: Layer) -> Part:
    bias = () if layer.bias else (("bias", False),)
    return Part(layer.name, "Linear", (layer.inner, layer.outer), bias, True)


def _norm(name: str, width: int, eps: float) -> Part:
    return Part(name, "LayerNorm", (width,), (("eps", eps),), True)


# ---- from names and shapes ------------------------------------------------------------------------------


def _read(shapes: Shapes) -> Transformer | None:
    starts = {match[1] for name in shapes if _JOINT.search(name) and (match := _LAYER.fullmatch(name))}
    inside: dict[str, dict[str, tuple[int, ...]]] = {start: {} for start in starts}
    outside: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        start = next((start for start in starts if name.startswith(f"{start}.")), None)
        (outside if start is None else inside[start])[name.removeprefix(f"{start}.")] = shape
    names = sorted(inside, key=lambda name: int(re.findall(r"\d+", name)[-1]))
    layers = [_layer(name, inside[name]) for name in names]
    known = [layer for layer in layers if layer is not None]
    if not known or len(known) < len(layers) or any(inside[name] != inside[names[0]] for name in names):
        return None
    return _around(outside, tuple(known))


def _layer(name: str, shapes: Shapes) -> LayerNames | None:
    joint = next((part.removesuffix(".in_proj_weight") for part in shapes if part.endswith(".in_proj_weight")), None)
    of_joint = {f"{joint}.{leaf}" for leaf in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}
    modules = read_modules({part: shape for part, shape in shapes.items() if joint is None or part not in of_joint})
    if (
        modules is None
        or len(modules.norms) != 2
        or modules.slopes
        or any(one.kernel for one in modules.layers.values())
    ):
        return None
    layers = list(modules.layers.values())
    qkv: Layer | None
    out: Layer | None = None
    if joint is not None and of_joint <= shapes.keys() and len(shapes[f"{joint}.in_proj_weight"]) == 2:
        outer, inner = shapes[f"{joint}.in_proj_weight"]
        qkv = Layer(joint, inner, outer, (), True)
    else:
        qkv = next((layer for layer in layers if _JOINT.search(layer.name)), None)
        layers = [layer for layer in layers if layer is not qkv]
        out, layers = (layers[0], layers[1:]) if layers else (None, [])
        if qkv is None or out is None or (out.inner, out.outer) != (qkv.outer // 3, qkv.inner):
            return None
    width = qkv.inner
    first, second = modules.norms
    if (
        len(layers) != 2
        or qkv.outer % 3
        or any(norm.width != width or norm.is_batch for norm in modules.norms.values())
    ):
        return None
    up, down = layers
    if (up.inner, up.outer, down.outer) != (width, down.inner, width) or (joint and qkv.outer != 3 * width):
        return None
    return LayerNames(name, (first, second), qkv, out, (up, down))


def _around(shapes: Shapes, layers: tuple[LayerNames, ...]) -> Transformer | None:
    """The transformer with what stands around the layers. shapes: of the weights outside of them."""
    width = layers[0].qkv.inner
    alone = {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] not in ("weight", "bias")}
    modules = read_modules({name: shape for name, shape in shapes.items() if name not in alone})
    tokens = [(name, shape) for name, shape in alone.items() if shape == (1, 1, width)]
    positions = [
        item for item in alone.items() if len(item[1]) in (2, 3) and item[1][-1] == width and item not in tokens
    ]
    if modules is None or modules.slopes or len(tokens) > 1 or len(positions) != 1 or len(alone) != 1 + len(tokens):
        return None
    count = math.prod(positions[0][1][:-1]) - len(tokens)
    found = _embedding(modules, width)
    side = math.isqrt(count)
    if found is None or side * side != count or math.prod(positions[0][1][:-2]) != 1:
        return None
    parts, channels, patch, used = found
    heads = [layer for layer in modules.layers.values() if layer.name not in used]
    norms = [norm for norm in modules.norms.values() if norm.name not in used]
    if len(heads) != 1 or len(norms) > 1 or heads[0].kernel or heads[0].inner != width:
        return None
    if any(norm.width != width or norm.is_batch for norm in norms):
        return None
    eps = _SMALL_EPS if _FINE.search(f"{layers[0].name}.") else 1e-5
    norm = norms[0].name if norms else None
    token = tokens[0] if tokens else None
    return Transformer(tuple(parts), channels, patch, side * patch, token, positions[0], layers, norm, heads[0], eps)


def _embedding(modules: Modules, width: int) -> tuple[list[Part], int, int, set[str]] | None:
    """The parts that make tokens of patches, the channels, the pixels of a patch in a row, and the names of the parts."""
    bias = (("bias", False),)
    conv = next((layer for layer in modules.layers.values() if layer.kernel), None)
    if conv is not None:
        patch = conv.kernel[0]
        if conv.kernel != (patch, patch) or conv.outer != width:
            return None
        options = (("stride", patch), *(() if conv.bias else bias))
        part = Part(conv.name, "Conv2d", (conv.inner, width, patch), options, True)
        return [part, Part("tokens", "Tokens")], conv.inner, patch, {conv.name}
    linear = next((layer for layer in modules.layers.values() if layer.outer == width), None)
    fits = [
        c
        for c in (1, 3)
        if linear is not None and linear.inner % c == 0 and math.isqrt(linear.inner // c) ** 2 * c == linear.inner
    ]
    if linear is None or not fits:
        return None
    channels, parent = fits[0], linear.name.rpartition(".")[0]
    patch = math.isqrt(linear.inner // channels)
    near = [norm for norm in modules.norms.values() if parent and norm.name.startswith(f"{parent}.")]
    parts = [Part("patches", "Patches", (patch,))]
    made = {norm.name: _norm(norm.name, norm.width, 1e-5) for norm in near} | {linear.name: _linear(linear)}
    parts += [made[name] for name in modules.names if name in made]
    return parts, channels, patch, {linear.name, *(norm.name for norm in near)}
