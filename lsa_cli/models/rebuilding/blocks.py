"""Weights read as a chain of layers and blocks.

Names and shapes leave open whether a block has a shortcut, and where its norms stand; every reading that fits is a structure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lsa_cli.models.parametrizations import Stored, put_together
from lsa_cli.models.rebuilding.concatenation import concatenated
from lsa_cli.models.rebuilding.gates import gates_of
from lsa_cli.models.rebuilding.grouping import SHORTCUT, Block, Element, Structure, assembled, block_of, groups_of
from lsa_cli.models.rebuilding.layers import (
    Layer,
    Modules,
    Norm,
    Shapes,
    natural,
    read_chain,
    read_modules,
)
from lsa_cli.models.recognition import views

_GROUPS = {32: 0.0, 8: 0.0, 4: 0.0, 16: 0.0, 2: 0.5, 1: 0.5, 0: 1.0}  # of GroupNorm, with costs
_PADS = {"both": 0.0, "end": 0.5}  # where a shortcut without weights adds channels of zeros
_AGAINST_ORDER, _OTHER_STRIDE, _PLAIN = 1.0, 1.0, 2.0


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
    if modules is None:
        return []
    found, joined = list[Structure](), list[Structure]()
    groups = groups_of(modules)
    for order in (list(modules.names), sorted(modules.names, key=natural)):
        joined = joined or concatenated(modules, order, groups, channels)
        found = found or (_with_blocks(modules, order, groups, channels) if groups else [])
    # Widths seldom fit both.
    found = [*joined, *(one._replace(cost=one.cost + _PLAIN * bool(joined)) for one in found)]
    if chain is not None and not (found and any(SHORTCUT.search(name) for name in shapes)) and not joined:
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


# ---- residual blocks ------------------------------------------------------------------------------------


def _with_blocks(
    modules: Modules, order: Sequence[str], groups: Sequence[tuple[str, list[str]]], channels: int
) -> list[Structure]:
    either = {before: [block_of(modules, order, node, before) for node, _ in groups] for before in (False, True)}
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
                elements = assembled(modules, order, padded, channels, before)
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
            elements = assembled(modules, order, these, channels, False)
            found += [] if elements is None else [Structure(tuple(elements), 0.0)]
    return found


def _norm_is_first(modules: Modules, order: Sequence[str], blocks: Sequence[Block]) -> bool:
    """Whether the file lists norms before their convolutions. Names in alphabetical order tell nothing."""
    if list(modules.names) == sorted(modules.names):
        return False
    return all(block.first in modules.norms for block in blocks)


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
