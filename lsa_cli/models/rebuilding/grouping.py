"""Which modules form a block, and which of them is its shortcut.

A block is the innermost part of the names that holds two convolutions or more: `layer1.0` of `layer1.0.conv1`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lsa_cli.models.rebuilding.layers import Layer, Modules, Norm, Slope, connected, with_norms, with_slopes

SHORTCUT = re.compile(r"short|downsample|skip|identity|proj|match|adjust|\bdown\b", re.IGNORECASE)
SUM, DENSE, FIRE = "sum", "dense", "fire"


@dataclass(frozen=True)
class Block:
    """Layers with a shortcut around them. first: its first module in the file; shortcut: None where it has no weights.

    before: norms and activations stand before their convolutions, and `Layer.norm` is the norm before. pads: where the
    shortcut adds channels ("both", "end"), or "none" where a block that changes the width or the size has no shortcut; ""
    where it adds none. strided: the layer that has the stride. norm, slope: behind the sum. adds: False where no block has a
    shortcut. gate: the two layers of its squeeze-and-excitation. joins: SUM, DENSE or FIRE; see `concatenation`. A fire module
    has what squeezes and the second branch as layers, and the first branch as shortcut. free: modules without weights behind it.
    """

    name: str
    first: str
    layers: tuple[Layer, ...]
    shortcut: Layer | None
    before: bool = False
    pads: str = ""
    strided: int = 0
    norm: Norm | None = None
    slope: Slope | None = None
    adds: bool = True
    gate: tuple[Layer, Layer] | None = None
    joins: str = SUM
    free: int | None = None

    is_linear, kernel, groups = False, (3, 3), 1

    @property
    def inner(self) -> int:
        return self.layers[0].inner * self.layers[0].groups

    @property
    def outer(self) -> int:
        last = self.layers[-1].outer
        if self.joins == FIRE and self.shortcut is not None:
            return last + self.shortcut.outer
        return last + self.inner if self.joins == DENSE else last

    @property
    def may_stride(self) -> bool:
        """Whether the shortcut can follow a stride."""
        return self.joins == SUM and (self.shortcut is not None or self.pads != "")

    @property
    def is_depthwise(self) -> bool:
        """Whether one of its convolutions has a kernel for each channel, as in MobileNet."""
        return any(layer.groups > 1 and layer.inner == 1 for layer in self.layers)

    def has_sum(self, stride: int) -> bool:
        """Whether it has a shortcut at this stride."""
        if self.joins != SUM:
            return True
        keeps = self.inner == self.outer and stride == 1
        return self.adds and (self.shortcut is not None or self.pads != "none" or keeps)


Element = Layer | Block


class Structure(NamedTuple):
    """Elements in the order in which they run. cost: how unusual the reading is (our choice). norm: of the input."""

    elements: tuple[Element, ...]
    cost: float
    norm: Norm | None = None

    @property
    def blocks(self) -> list[Block]:
        return [element for element in self.elements if isinstance(element, Block)]


def groups_of(modules: Modules) -> list[tuple[str, list[str]]]:
    """Names of the blocks and of their convolutions."""
    names = [name for name, layer in modules.layers.items() if not layer.is_linear]
    count = Counter(parent for name in names for parent in parents(name))
    inside: dict[str, list[str]] = {}
    for name in names:
        node = next((parent for parent in parents(name) if count[parent] > 1), "")
        inside.setdefault(node, []).append(name)
    for node in sorted(inside, key=len, reverse=True):
        within = [other for other in inside if other.startswith(f"{node}.")]
        # A shortcut stands beside the part that holds the other convolutions.
        if node and len(inside[node]) == 1 and len(within) == 1 and count[node] == count[within[0]] + 1:
            short, main = modules.layers[inside[node][0]], [modules.layers[name] for name in inside[within[0]]]
            if (short.inner, short.outer) == (main[0].inner, main[-1].outer):
                inside[node] = inside.pop(within[0]) + inside[node]
    roots = {node for node in inside if any(other.startswith(f"{node}.") for other in inside)}
    return [(node, names) for node, names in inside.items() if node and node not in roots]


def parents(name: str) -> list[str]:
    """Of a name with dots, the innermost first, without the name itself."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def block_of(modules: Modules, order: Sequence[str], node: str, before: bool) -> Block | None:
    """The modules below a name as a block; None where they do not fit."""
    inside = [name for name in order if name.startswith(f"{node}.")]
    layers = [modules.layers[name] for name in inside if name in modules.layers]
    if any(layer.is_linear for layer in layers):
        return None
    split = _split(layers, node)
    if split is None:
        return None
    main, short = split
    norms = {name: modules.norms[name] for name in inside if name in modules.norms}
    beside = {name: norm for name, norm in norms.items() if short is not None and _is_beside(name, short.name, node)}
    placed = _norms_of(main, {name: norm for name, norm in norms.items() if name not in beside}, inside, before)
    if (
        placed is None
        or len(beside) > 1
        or (short is not None and any(n.width != short.outer for n in beside.values()))
    ):
        return None
    if short is not None:
        short = replace(short, norm=next(iter(beside.values()), None))
    slopes = {name: modules.slopes[name] for name in inside if name in modules.slopes}
    sloped = with_slopes(placed, slopes, inside)
    if sloped is None:
        return None
    strided = next((number for number, layer in enumerate(sloped) if max(layer.kernel) > 1), 0)
    return Block(node, inside[0], tuple(sloped), short, before, strided=strided)


def _split(layers: list[Layer], node: str) -> tuple[list[Layer], Layer | None] | None:
    """The main path, and the convolution of the shortcut."""
    named = [layer for layer in layers if SHORTCUT.search(layer.name[len(node) :])]
    if len(named) > 1:
        return None
    tries: list[Layer | None] = [*named] if named else [None, *sorted(layers, key=lambda one: max(one.kernel))]
    found: list[tuple[list[Layer], Layer | None]] = []
    for short in tries:
        main = [layer for layer in layers if layer is not short]
        path = connected(main, _width(main[0])) if main else None
        if path is not None and (short is None or (short.inner, short.outer) == (_width(main[0]), path[-1].outer)):
            found.append((path, short))
    return min(found, key=lambda pair: sum(layer.groups > 1 for layer in pair[0]), default=None)


def _width(first: Layer) -> int:
    """The channels that the first layer of a block takes: a depthwise one is as wide as its output."""
    return first.outer if first.inner == 1 and max(first.kernel) > 1 else first.inner


def _is_beside(norm: str, short: str, node: str) -> bool:
    """Whether a norm belongs to the shortcut."""
    parent = short.rpartition(".")[0]
    return bool(SHORTCUT.search(norm[len(node) :])) or (parent != node and norm.rpartition(".")[0] == parent)


def _norms_of(main: list[Layer], norms: Mapping[str, Norm], order: Sequence[str], before: bool) -> list[Layer] | None:
    """The main path with its norms behind each layer, or before it."""
    if not before:
        return with_norms(main, norms, order)
    turned = [replace(layer, inner=layer.outer, outer=layer.inner) for layer in main]
    placed = with_norms(turned[::-1], norms, order[::-1])
    return (
        None if placed is None else [replace(one, norm=two.norm) for one, two in zip(main, placed[::-1], strict=True)]
    )


def assembled(
    modules: Modules, order: Sequence[str], blocks: Sequence[Block], channels: int, before: bool
) -> list[Element] | None:
    """Blocks and the layers outside of them, in the order in which their widths fit."""
    outside = [name for name in order if not any(name.startswith(f"{block.name}.") for block in blocks)]
    stand = {block.first: block for block in blocks}
    elements = [stand.get(name) or modules.layers[name] for name in order if name in stand or name in modules.layers]
    elements = [one for one in elements if isinstance(one, Block) or one.name in outside]
    chain = connected(elements, channels)
    norms = {name: modules.norms[name] for name in outside if name in modules.norms}
    placed = None if chain is None else with_norms(chain, norms, order, last=before)
    slopes = {name: modules.slopes[name] for name in outside if name in modules.slopes}
    return None if placed is None else with_slopes(placed, slopes, order)
