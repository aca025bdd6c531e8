"""Residual blocks among the layers: which modules form a block, and which of them is its shortcut.

A block is the innermost part of the names that holds two convolutions or more: `layer1.0` of `layer1.0.conv1`. Names and
shapes leave open whether a block has a shortcut, and where its norms stand; every reading that fits is a structure.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lsa_cli.models.parametrizations import Stored, put_together
from lsa_cli.models.rebuilding.gates import gates_of
from lsa_cli.models.rebuilding.layers import (
    Layer,
    Modules,
    Norm,
    Shapes,
    Slope,
    connected,
    natural,
    read_chain,
    read_modules,
    with_norms,
    with_slopes,
)
from lsa_cli.models.recognition import views

_SHORTCUT = re.compile(r"short|downsample|skip|identity|proj|match|adjust|\bdown\b", re.IGNORECASE)
_GROUPS = {32: 0.0, 8: 0.0, 4: 0.0, 16: 0.0, 2: 0.5, 1: 0.5, 0: 1.0}  # of GroupNorm, with costs
_PADS = {"both": 0.0, "end": 0.5}  # where a shortcut without weights adds channels of zeros
_AGAINST_ORDER, _OTHER_STRIDE, _PLAIN = 1.0, 1.0, 2.0


@dataclass(frozen=True)
class Block:
    """Layers with a shortcut around them. first: its first module in the file; shortcut: None where it has no weights.

    before: norms and activations stand before their convolutions, and `Layer.norm` is the norm before. pads: where the
    shortcut adds channels ("both", "end"), or "none" where a block that changes the width or the size has no shortcut; ""
    where it adds none. strided: the layer that has the stride. norm, slope: behind the sum. adds: False where no block has a
    shortcut. gate: the two layers of its squeeze-and-excitation.
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

    is_linear, kernel, groups, free = False, (3, 3), 1, None

    @property
    def inner(self) -> int:
        return self.layers[0].inner * self.layers[0].groups

    @property
    def outer(self) -> int:
        return self.layers[-1].outer

    @property
    def may_stride(self) -> bool:
        """Whether the shortcut can follow a stride."""
        return self.shortcut is not None or self.pads != ""

    @property
    def is_depthwise(self) -> bool:
        """Whether one of its convolutions has a kernel for each channel, as in MobileNet."""
        return any(layer.groups > 1 and layer.inner == 1 for layer in self.layers)

    def has_sum(self, stride: int) -> bool:
        """Whether it has a shortcut at this stride."""
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


def structures_of(
    stored: Mapping[str, Stored], channels: int | None = None
) -> tuple[dict[str, Stored], list[Structure]]:
    """Weights, put together from their parts and under their shortest names, and `read_structures` of them.

    channels: of the images; None: those of the first convolution.
    """
    readings = list(views(put_together(stored)))
    shortest = [view for view in readings if all("." in name for name in view.tensors)][-1:] or readings[-1:]
    shapes = {name: item.shape for name, item in shortest[0].tensors.items()}
    if channels is not None:
        return dict(shortest[0].tensors), read_structures(shapes, channels)
    wanted = dict.fromkeys(shape[1] for shape in shapes.values() if len(shape) == 4 and shape[1] in (1, 3)) or {1: None}
    found = next((found for width in wanted if (found := read_structures(shapes, width))), [])
    return dict(shortest[0].tensors), found


def read_structures(shapes: Shapes, channels: int) -> list[Structure]:
    """Every reading of the weights as a chain of layers and blocks, the most usual first. channels: of the images.

    The first norm is that of the input where it can be; then every other place for it is less usual.
    """
    found = _without_input_norm(shapes, channels)
    modules = read_modules(shapes)
    first = None if modules is None else _input_norm(modules, channels)
    if first is not None:
        rest = {name: shape for name, shape in shapes.items() if name.rpartition(".")[0] != first.name}
        behind = [one._replace(norm=first) for one in _without_input_norm(rest, channels)]
        behind = [one for one in behind if _takes(one.elements[0], first.width, channels)]
        found = [*behind, *(one._replace(cost=one.cost + _AGAINST_ORDER * bool(behind)) for one in found)]
    return sorted(found, key=lambda one: one.cost)


def _input_norm(modules: Modules, channels: int) -> Norm | None:
    """The first norm of the file, where it stands before all layers, or no layer gives as many channels; else None."""
    norm = next(iter(modules.norms.values()), None)
    if norm is None or not norm.is_batch:
        return None
    stands = [name for name in modules.names if name == norm.name or name in modules.layers]
    if stands[0] != norm.name and any(layer.outer == norm.width for layer in modules.layers.values()):
        return None
    return norm if norm.width == channels or all(layer.is_linear for layer in modules.layers.values()) else None


def _takes(first: Element, width: int, channels: int) -> bool:
    """Whether the first element can stand behind a norm of this width."""
    return width == channels or (first.is_linear and first.inner == width)


def _without_input_norm(shapes: Shapes, channels: int) -> list[Structure]:
    modules = read_modules(shapes)
    gates = [] if modules is None else gates_of(modules)
    if modules is not None and gates:
        inside = {layer.name for gate in gates for layer in gate}
        rest = {name: shape for name, shape in shapes.items() if name.rpartition(".")[0] not in inside}
        gated = [made for one in _without_input_norm(rest, channels) if (made := _gated(one, gates)) is not None]
        return [*gated, *(one._replace(cost=one.cost + _PLAIN * bool(gated)) for one in _readings(shapes, channels))]
    return _readings(shapes, channels)


def _readings(shapes: Shapes, channels: int) -> list[Structure]:
    """Without norms of the input and gates."""
    chain, modules = read_chain(shapes, channels), read_modules(shapes)
    found = list[Structure]()
    groups = [] if modules is None else _groups(modules)
    if modules is not None and groups:
        for order in (list(modules.names), sorted(modules.names, key=natural)):
            found = found or _with_blocks(modules, order, groups, channels)
    if chain is not None and not (found and any(_SHORTCUT.search(name) for name in shapes)):
        found.append(Structure(tuple(chain), _PLAIN if found else 0.0))
    return [Structure(elements, one.cost + cost) for one in found for elements, cost in _norm_groups(one.elements)]


def _gated(one: Structure, gates: Sequence[tuple[Layer, Layer]]) -> Structure | None:
    """The structure with each gate in the block of its name; None where one has no such block."""
    places: dict[str, tuple[Layer, Layer]] = {}
    for gate in gates:
        names = [block.name for block in one.blocks if gate[0].name.startswith(f"{block.name}.")]
        if len(names) != 1 or names[0] in places:
            return None
        places[names[0]] = gate
    if any(places[block.name][0].inner != block.outer for block in one.blocks if block.name in places):
        return None
    made = (replace(e, gate=places.get(e.name)) if isinstance(e, Block) else e for e in one.elements)
    return one._replace(elements=tuple(made))


# ---- which modules form a block -------------------------------------------------------------------------


def _groups(modules: Modules) -> list[tuple[str, list[str]]]:
    """Names of the blocks and of their convolutions."""
    names = [name for name, layer in modules.layers.items() if not layer.is_linear]
    count = Counter(parent for name in names for parent in _parents(name))
    inside: dict[str, list[str]] = {}
    for name in names:
        node = next((parent for parent in _parents(name) if count[parent] > 1), "")
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


def _parents(name: str) -> list[str]:
    """Of a name with dots, the innermost first, without the name itself."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _with_blocks(
    modules: Modules, order: Sequence[str], groups: Sequence[tuple[str, list[str]]], channels: int
) -> list[Structure]:
    either = {before: [_block(modules, order, node, before) for node, _ in groups] for before in (False, True)}
    most = max(sum(one is not None for one in blocks) for blocks in either.values())
    found = _separable(modules, order, either[False], channels)
    for before, blocks in either.items() if not found else ():
        if sum(one is not None for one in blocks) < most:
            continue
        for plain in (False, True):
            made = [
                one for one in blocks if one is not None and (one.may_stride or one.inner == one.outer or not plain)
            ]
            widening = sum(not one.may_stride and one.inner != one.outer for one in made)
            if widening == len(made) or (plain and len(made) == len(blocks)):
                continue
            for pads, cost in _PADS.items() if widening else [("", 0.0)]:
                padded = [one if one.may_stride or one.inner == one.outer else replace(one, pads=pads) for one in made]
                elements = _assembled(modules, order, padded, channels, before)
                if elements is not None and padded:
                    cost += (
                        _AGAINST_ORDER if _norm_is_first(modules, order, padded) != before else 0.0
                    ) + _PLAIN * plain
                    found += _other_strides(Structure(tuple(elements), cost))
    return found


def _separable(
    modules: Modules, order: Sequence[str], blocks: Sequence[Block | None], channels: int
) -> list[Structure]:
    """Blocks with depthwise convolutions: those of MobileNetV2, of which only some have a shortcut, and of MobileNetV1."""
    made = [one if one.shortcut is not None else replace(one, pads="none") for one in blocks if one is not None]
    if not any(one.is_depthwise for one in made):
        return []
    found = []
    for adds in (True, False):
        if adds or all(one.shortcut is None for one in made):
            these = [replace(one, adds=adds) for one in made]
            elements = _assembled(modules, order, these, channels, False)
            found += [] if elements is None else [Structure(tuple(elements), 0.0)]
    return found


def _block(modules: Modules, order: Sequence[str], node: str, before: bool) -> Block | None:
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
    named = [layer for layer in layers if _SHORTCUT.search(layer.name[len(node) :])]
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
    return bool(_SHORTCUT.search(norm[len(node) :])) or (parent != node and norm.rpartition(".")[0] == parent)


def _norms_of(main: list[Layer], norms: Mapping[str, Norm], order: Sequence[str], before: bool) -> list[Layer] | None:
    """The main path with its norms behind each layer, or before it."""
    if not before:
        return with_norms(main, norms, order)
    turned = [replace(layer, inner=layer.outer, outer=layer.inner) for layer in main]
    placed = with_norms(turned[::-1], norms, order[::-1])
    return (
        None if placed is None else [replace(one, norm=two.norm) for one, two in zip(main, placed[::-1], strict=True)]
    )


def _norm_is_first(modules: Modules, order: Sequence[str], blocks: Sequence[Block]) -> bool:
    """Whether the file lists norms before their convolutions. Names in alphabetical order tell nothing."""
    if list(modules.names) == sorted(modules.names):
        return False
    return all(block.first in modules.norms for block in blocks)


def _assembled(
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


# ---- readings that the weights leave open ---------------------------------------------------------------


def _other_strides(one: Structure) -> list[Structure]:
    """The structure, that whose bottlenecks have their stride at the first convolution, and that whose blocks with norms
    before two convolutions have it at the second one."""
    found = [one]
    if any(block.strided for block in one.blocks):
        moved = tuple(replace(e, strided=0) if isinstance(e, Block) else e for e in one.elements)
        found.append(Structure(moved, one.cost + _OTHER_STRIDE))
    if any(block.may_stride for block in one.blocks) and all(_is_wide(block) for block in one.blocks):
        moved = tuple(replace(e, strided=1) if isinstance(e, Block) else e for e in one.elements)
        found.append(Structure(moved, one.cost + _OTHER_STRIDE))
    return found


def _is_wide(block: Block) -> bool:
    """Whether it is one of a wide residual network: two convolutions that are no bottleneck, with norms before them."""
    return block.before and len(block.layers) == 2 and all(max(layer.kernel) > 1 for layer in block.layers)


def _norm_groups(elements: tuple[Element, ...]) -> list[tuple[tuple[Element, ...], float]]:
    """The elements with every usual number of groups for their GroupNorms."""
    widths = {norm.width for norm in _norms(elements) if not norm.is_batch}
    if not widths:
        return [(elements, 0.0)]
    fit = [(groups, cost) for groups, cost in _GROUPS.items() if groups == 0 or all(w % groups == 0 for w in widths)]
    return [(tuple(_grouped(element, groups) for element in elements), cost) for groups, cost in fit]


def _norms(elements: Sequence[Element]) -> list[Norm]:
    found = []
    for element in elements:
        found += [element.norm] if element.norm is not None and not element.is_linear else []
        if isinstance(element, Block):
            found += _norms([*element.layers, *([element.shortcut] if element.shortcut else [])])
    return found


def _grouped(element: Element, groups: int) -> Element:
    norm = element.norm
    made = element if norm is None or element.is_linear else replace(element, norm=replace(norm, groups=groups))
    if isinstance(made, Block):
        layers = tuple(_grouped(layer, groups) for layer in made.layers)
        short = None if made.shortcut is None else _grouped(made.shortcut, groups)
        return replace(made, layers=layers, shortcut=short)  # type: ignore[arg-type]
    return made
