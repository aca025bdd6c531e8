"""The choices that weights leave open, and the modules of the network that they give."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lsa_cli.models.rebuilding.chain import Part, Sum
from lsa_cli.models.rebuilding.geometry import CHANNELS_LAST, FLATTEN, Geometry, Step, same_padding
from lsa_cli.models.rebuilding.grouping import DENSE, FIRE, SUM, Block, Element, Structure
from lsa_cli.models.rebuilding.layers import Layer, Norm, Slope
from lsa_cli.wording import plural

# Activations by the class of torch and its arguments, with what an unusual one costs beside ReLU (our choice).
ACTIVATIONS: dict[str, tuple[str, tuple[Any, ...], float]] = {
    "ReLU": ("ReLU", (), 0.0), "LeakyReLU(0.01)": ("LeakyReLU", (0.01,), 1.0), "LeakyReLU(0.1)": ("LeakyReLU", (0.1,), 1.5),
    "LeakyReLU(0.2)": ("LeakyReLU", (0.2,), 1.5), "ELU": ("ELU", (), 1.0), "tanh": ("Tanh", (), 1.0),
    "sigmoid": ("Sigmoid", (), 1.0), "SiLU": ("SiLU", (), 1.0), "GELU": ("GELU", (), 1.0), "SELU": ("SELU", (), 2.0),
    "Softplus": ("Softplus", (), 2.0), "Hardswish": ("Hardswish", (), 2.0), "Mish": ("Mish", (), 2.0),
    "ReLU6": ("ReLU6", (), 2.0), "Softsign": ("Softsign", (), 2.0),
}  # fmt: skip
USUAL = "ReLU"
# What happens between two layers, with its cost.
ORDERS: dict[tuple[str, ...], float] = {
    ("norm", "act", "pool"): 0.0, ("act", "norm", "pool"): 1.0, ("act", "pool", "norm"): 1.0, ("norm", "pool", "act"): 0.5,
    ("pool", "norm", "act"): 1.0,
}  # fmt: skip
# Layers whose activation is another one than that of the network.
EXCEPTIONS = {
    "": 0.0, "no activation behind linear layers": 1.0, "ReLU behind linear layers": 1.0,
    "no activation behind convolutions without a norm": 0.25, "an activation behind the last layer": 2.0,
    "no activation behind the last hidden layer": 1.0, "no activation behind the last convolution": 1.0,
    "an activation behind the last block": 0.5,
}  # fmt: skip
POOLINGS = {"max": 0.0, "average": 0.5}
# Residual blocks whose norms stand behind the convolutions, and those whose norms stand before them.
SUMS = {"sum, activation": 0.0, "activation, sum": 0.5, "sum": 1.0}
SUMS_NONE = {"no shortcuts": 0.0}
# Dense layers, and fire modules.
SUMS_DENSE = {"input before output": 0.0, "output before input": 0.5}
SUMS_FIRE = {"two branches": 0.0}
SUMS_BEFORE = {"shortcut behind the first activation": 0.0, "shortcut of the input": 0.5}
_COSTS = {**SUMS, **SUMS_NONE, **SUMS_BEFORE, **SUMS_DENSE, **SUMS_FIRE, "": 0.0}
_CALLED = {SUM: "residual blocks", DENSE: "dense layers", FIRE: "fire modules"}


@dataclass(frozen=True)
class Variant:
    """A network of the same weights. activation, pooling, order: keys of ACTIVATIONS, POOLINGS and ORDERS.

    sums: what happens in blocks, a key of _COSTS; "" without blocks. normalization: the option that
    selects it. exception: a key of EXCEPTIONS.
    """

    structure: Structure
    geometry: Geometry
    activation: str
    pooling: str
    order: tuple[str, ...]
    sums: str
    normalization: str
    exception: str = ""

    @property
    def cost(self) -> float:
        """How unusual the network is, without its normalisation."""
        own = ACTIVATIONS[self.activation][2] + POOLINGS[self.pooling] + ORDERS[self.order]
        own += EXCEPTIONS[self.exception]
        return self.structure.cost + self.geometry.cost + own + _COSTS[self.sums]

    def __str__(self) -> str:
        blocks = self.structure.blocks
        gated = " with squeeze-and-excitation" if any(one.gate is not None for one in blocks) else ""
        parts = [f"{len(blocks)} blocks{gated} ({next(iter(SUMS_NONE))})"] if blocks else []
        if self._has_sums():
            parts = [f"{len(blocks)} {_CALLED[blocks[0].joins]}{gated} ({self.sums})"]
        parts.append(
            "PReLU" if any(element.slope is not None for element in self.structure.elements) else self.activation
        )
        parts += [self.exception] if self.exception else []
        has_norms = any(element.norm is not None for element in self.structure.elements)
        parts += ["BatchNorm of the input"] if self.structure.norm is not None else []
        parts += [order_text(self.order)] if ORDERS[self.order] and has_norms else []
        parts += [self._pools()] if self.geometry.steps else []
        return ", ".join([*parts, *([CHANNELS_LAST] if self.geometry.head[0] == CHANNELS_LAST else [])])

    def _has_sums(self) -> bool:
        convolutions = [element for element in self.structure.elements if not element.is_linear]
        every = zip(convolutions, self.geometry.steps, strict=True)
        return any(isinstance(one, Block) and one.has_sum(step.stride) for one, step in every)

    @property
    def has_max_stem(self) -> bool:
        """Whether the pool behind the first convolution is one of the largest values in any case, as before dense layers."""
        return any(block.joins == DENSE for block in self.structure.blocks)

    def _pools(self) -> str:
        steps = self.geometry.steps
        strides = {step.stride for step in steps if step.stride > 1}
        of_stem = self.has_max_stem and steps[0].pool is not None and self.pooling != "max"
        pools = sum(step.pool is not None for step in steps) - of_stem
        parts = ["1 max pool"] if of_stem else []
        parts += [plural(pools, f"{self.pooling} pool")] if pools else [] if of_stem else ["no pools"]
        parts += [f"strides {', '.join(str(step.stride) for step in steps)}"] if strides else []
        parts += [f"padding {', '.join(str(step.padding[0]) for step in steps)}"]
        has_other = any(step.dilation > 1 for step in steps)
        parts += [f"dilation {', '.join(str(step.dilation) for step in steps)}"] if has_other else []
        return ", ".join(parts)


class _Namer:
    """Names for modules without weights that no module with weights has."""

    def __init__(self, names: Sequence[str]) -> None:
        self.taken = {name.partition(".")[0] for name in names}

    def part(self, name: str, kind: str, *arguments: Any) -> Part:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return Part(name, kind, arguments)


def order_text(order: tuple[str, ...]) -> str:
    """A key of ORDERS as text."""
    return " before ".join({"act": "activation"}.get(what, what) for what in order)


def parts_of(variant: Variant) -> list[Part | Sum]:
    """The modules of a network in the order in which they run."""
    elements = variant.structure.elements
    names = [
        named.name for element in elements for named in (element, element.norm, element.slope) if named is not None
    ]
    first = variant.structure.norm
    namer, made = _Namer([*names, *([first.name] if first is not None else [])]), list[Part | Sum]()
    norms_first = any(block.before for block in variant.structure.blocks)
    made += _of_input(elements[0], first, namer)
    for number, element in enumerate(elements):
        step = None if element.is_linear else variant.geometry.steps[number]
        is_last = number == len(elements) - 1
        if isinstance(element, Block):
            assert step is not None
            made += _of_block(element, step, variant)
            acts = element.norm is not None if norms_first else variant.sums == "sum, activation"
            is_end = not any(isinstance(one, Block) for one in elements[number + 1 :])
            acts = acts or (is_end and variant.exception == "an activation behind the last block")
        else:
            made.append(_weighted(element, step))
            acts = not is_last and (element.free is None or element.free > 0 or element.slope is not None)
            acts = acts and not (norms_first and element.norm is None and not element.is_linear)
            acts = acts and not _is_bare(elements, number, variant.exception)
            acts = acts or (is_last and variant.exception == "an activation behind the last layer")
        for what in variant.order:
            if what == "norm" and element.norm is not None:
                made.append(_norm(element.norm, element.is_linear))
            elif what == "act" and acts:
                is_relu = element.is_linear and variant.exception == "ReLU behind linear layers"
                own = replace(variant, activation=USUAL) if is_relu else variant
                made.append(_activation(f"act{number + 1}", element.slope, own, namer))
            elif what == "pool" and step is not None and step.pool is not None:
                is_max = variant.pooling == "max" or (number == 0 and variant.has_max_stem)
                kind = "MaxPool2d" if is_max else "AvgPool2d"
                made.append(namer.part(f"pool{number + 1}", kind, *step.pool))
        if not element.is_linear and (is_last or elements[number + 1].is_linear):
            made += _head(variant, namer)
    return made


def _of_input(element: Element, norm: Norm | None, namer: _Namer) -> list[Part]:
    """What stands before the first layer. norm: of the images, or of their pixels, which are flat before a linear layer."""
    flat = [namer.part("flatten", "Flatten")] if element.is_linear else []
    if norm is None:
        return flat
    is_flat = element.is_linear and norm.width == element.inner
    return [*flat, _norm(norm, True)] if is_flat else [_norm(norm, False), *flat]


def _is_bare(elements: Sequence[Element], number: int, exception: str) -> bool:
    """Whether an element is one of those that have no activation behind them."""
    element = elements[number]
    if exception == "no activation behind the last hidden layer":
        return number == len(elements) - 2
    if exception == "no activation behind the last convolution":
        return not element.is_linear and elements[number + 1].is_linear
    if element.is_linear:
        return exception == "no activation behind linear layers"
    return exception == "no activation behind convolutions without a norm" and element.norm is None


def _head(variant: Variant, namer: _Namer) -> list[Part]:
    kind, size = variant.geometry.head
    flat = namer.part("flatten", "Flatten")
    if kind == FLATTEN:
        return [flat]
    if kind == CHANNELS_LAST:
        return [namer.part("last", "ChannelsLast"), flat]
    return [namer.part(kind, f"Adaptive{'Max' if kind == 'max' else 'Avg'}Pool2d", size), flat]


def _activation(name: str, slope: Slope | None, variant: Variant, namer: _Namer) -> Part:
    if slope is not None:
        return Part(slope.name, "PReLU", (slope.width,), (), True)
    kind, arguments, _ = ACTIVATIONS[variant.activation]
    return namer.part(name, kind, *arguments)


def _norm(norm: Norm, is_linear: bool) -> Part:
    options = () if norm.affine else (("affine", False),)
    if norm.is_batch:
        return Part(norm.name, "BatchNorm1d" if is_linear else "BatchNorm2d", (norm.width,), options, True)
    if is_linear:
        return Part(norm.name, "LayerNorm", (norm.width,), (), True)
    return Part(norm.name, "GroupNorm", (norm.groups or norm.width, norm.width), (), True)


def _weighted(layer: Layer, step: Step | None) -> Part:
    bias = () if layer.bias else (("bias", False),)
    if step is None:
        return Part(layer.name, "Linear", (layer.inner, layer.outer), bias, True)
    options: list[tuple[str, Any]] = [("stride", step.stride)] if step.stride != 1 else []
    options += [("padding", step.padding)] if max(step.padding) else []
    options += [("dilation", step.dilation)] if step.dilation != 1 else []
    options += [("groups", layer.groups)] if layer.groups != 1 else []
    arguments = (layer.inner * layer.groups, layer.outer, layer.kernel)
    return Part(layer.name, "Conv2d", arguments, (*options, *bias), True)


# ---- residual blocks -----------------------------------------------------------------------------------


def _of_block(block: Block, step: Step, variant: Variant) -> Sequence[Part | Sum]:
    """The block as one module, or as its layers where it has no shortcut."""
    made = _sum(block, step, variant)
    if block.has_sum(step.stride):
        return [made]
    return [replace(part, name=f"{block.name}.{part.name}") for part in (*made.shared, *made.main)]


def _sum(block: Block, step: Step, variant: Variant) -> Sum:
    names = [_inside(block, name) for name in _names(block)]
    namer, order = _Namer(names), [what for what in variant.order if what != "pool"]
    if block.joins == FIRE:
        return _fire(block, variant, namer, order)
    shared, main = list[Part](), list[Part]()
    for number, layer in enumerate(block.layers):
        stride = step.stride if number == block.strided else 1
        weighted = _weighted(_local(block, layer), Step(stride, same_padding(layer.kernel), None))
        is_last = number == len(block.layers) - 1
        around = []
        for what in order:
            if what == "norm" and layer.norm is not None:
                around.append(_norm(replace(layer.norm, name=_inside(block, layer.norm.name)), False))
            elif what == "act" and (block.before or not is_last or variant.sums in ("activation, sum", *SUMS_NONE)):
                slope = layer.slope and replace(layer.slope, name=_inside(block, layer.slope.name))
                around.append(_activation(f"act{number + 1}", slope, variant, namer))
        if block.before and number == 0 and block.shortcut is not None and "behind" in variant.sums:
            shared, around = around, []
        main += [*around, weighted] if block.before else [weighted, *around]
    gate = _gate(block, variant, namer) if block.gate is not None else []
    join = "sum" if block.joins == SUM else "side" if variant.sums == "input before output" else "main"
    return Sum(block.name, tuple(shared), tuple(main), tuple(_side(block, step, namer)), tuple(gate), join)


def _fire(block: Block, variant: Variant, namer: _Namer, order: Sequence[str]) -> Sum:
    squeeze, other = block.layers
    assert block.shortcut is not None
    made = []
    for number, layer in enumerate((squeeze, block.shortcut, other)):
        steps = [_weighted(_local(block, layer), Step(1, same_padding(layer.kernel), None))]
        for what in order:
            if what == "norm" and layer.norm is not None:
                steps.append(_norm(replace(layer.norm, name=_inside(block, layer.norm.name)), False))
            elif what == "act":
                steps.append(_activation(f"act{number + 1}", None, variant, namer))
        made.append(tuple(steps))
    return Sum(block.name, made[0], made[2], made[1], join="side")


def _gate(block: Block, variant: Variant, namer: _Namer) -> list[Part]:
    """The factors of squeeze-and-excitation (Hu et al., arXiv 1709.01507, section 3), with the activation of the network."""
    assert block.gate is not None
    first, second = (_local(block, layer) for layer in block.gate)
    flat = [namer.part("flat", "Flatten")] if first.is_linear else []
    one, other = (_weighted(layer, None if layer.is_linear else Step(1, (0, 0), None)) for layer in (first, second))
    kind, arguments, _ = ACTIVATIONS[variant.activation]
    squeeze, bend = namer.part("squeeze", "AdaptiveAvgPool2d", (1, 1)), namer.part("bend", kind, *arguments)
    return [squeeze, *flat, one, bend, other, namer.part("sigmoid", "Sigmoid")]


def _side(block: Block, step: Step, namer: _Namer) -> list[Part]:
    """The shortcut; nothing for the input itself."""
    if block.shortcut is not None:
        short = _local(block, block.shortcut)
        padding = same_padding(short.kernel)
        norm = [] if short.norm is None else [_norm(replace(short.norm, name=_inside(block, short.norm.name)), False)]
        return [_weighted(short, Step(step.stride, padding, None)), *norm]
    if block.pads not in ("both", "end"):
        return []
    more = block.outer - block.inner
    front = more // 2 if block.pads == "both" else 0
    return [namer.part("pad", "Pad", step.stride, front, more - front)]


def _names(block: Block) -> list[str]:
    layers = [*block.layers, *([block.shortcut] if block.shortcut is not None else []), *(block.gate or ())]
    return [named.name for layer in layers for named in (layer, layer.norm, layer.slope) if named is not None]


def _inside(block: Block, name: str) -> str:
    return name.removeprefix(f"{block.name}.")


def _local(block: Block, layer: Layer) -> Layer:
    return replace(layer, name=_inside(block, layer.name))
