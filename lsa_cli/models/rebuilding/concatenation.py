"""Blocks that put channels together in place of adding them: the layers of a dense block, and fire modules.

A layer of a dense block (Huang et al., arXiv 1608.06993, equation 2) gives its input and what it makes of it. A fire module
(Iandola et al., arXiv 1602.07360, section 3.2) squeezes the channels, and gives what two convolutions make of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from lsa_cli.models.rebuilding.grouping import (
    DENSE,
    FIRE,
    Block,
    Element,
    Structure,
    assembled,
    block_of,
    parents,
)
from lsa_cli.models.rebuilding.layers import Modules, gap_between, sequentials_among, with_norms

_NORM_BEHIND = 1.0  # cost of dense layers whose norms stand behind their convolutions (our choice)


def concatenated(
    modules: Modules, order: Sequence[str], groups: Sequence[tuple[str, list[str]]], channels: int
) -> list[Structure]:
    """Every reading with dense layers, or with fire modules. groups: as `groups_of` gives them; channels: of the images."""
    found = []
    fires = [_fire(modules, order, node) for node, _ in groups]
    if fires and all(fire is not None for fire in fires):
        elements = assembled(modules, order, [fire for fire in fires if fire is not None], channels, False)
        found += [] if elements is None else [Structure(_with_free(elements), 0.0)]
    for nodes in ([node for node, _ in groups], _single(modules, channels)):
        for before, cost in ((True, 0.0), (False, _NORM_BEHIND)) if nodes and not found else ():
            blocks = [block_of(modules, order, node, before) for node in nodes]
            dense = [replace(one, joins=DENSE) for one in blocks if one is not None and one.shortcut is None]
            elements = assembled(modules, order, dense, channels, before) if len(dense) == len(nodes) else None
            found += [] if elements is None else [Structure(tuple(elements), cost)]
    return found


def _single(modules: Modules, channels: int) -> list[str]:
    """Names that hold one convolution, with a kernel, and a norm, behind the first one: dense layers without a bottleneck."""
    convolutions = [name for name, one in modules.layers.items() if not one.is_linear and one.inner != channels]
    count = Counter(parent for name in convolutions for parent in parents(name))
    normed = {parent for name in modules.norms for parent in parents(name)}
    inside = {name: next(iter(parents(name)), "") for name in convolutions if max(modules.layers[name].kernel) > 1}
    return [node for node in inside.values() if count[node] == 1 and node in normed]


def _fire(modules: Modules, order: Sequence[str], node: str) -> Block | None:
    """The modules below a name as a fire module; None where they are none. The branch that the file has first comes first."""
    inside = [name for name in order if name.startswith(f"{node}.")]
    layers = [modules.layers[name] for name in inside if name in modules.layers]
    if len(layers) != 3 or any(layer.is_linear for layer in layers):
        return None
    for squeeze in layers:
        one, other = (layer for layer in layers if layer is not squeeze)
        small = max(squeeze.kernel) == 1 == min(max(one.kernel), max(other.kernel)) < max(*one.kernel, *other.kernel)
        if small and one.inner == other.inner == squeeze.outer:
            norms = {name: modules.norms[name] for name in inside if name in modules.norms}
            names = (squeeze.name, one.name, other.name)
            # Norms that all stand behind the convolutions are in the order of these.
            behind = list(norms) == inside[len(layers) :] and len(norms) == len(names)
            by_place = [name for pair in zip(names, norms, strict=True) for name in pair] if behind else inside
            normed = with_norms([squeeze, one, other], norms, by_place)
            if normed is not None and not any(name in modules.slopes for name in inside):
                return Block(node, inside[0], (normed[0], normed[2]), normed[1], joins=FIRE)
    return None


def _with_free(elements: Sequence[Element]) -> tuple[Element, ...]:
    """With the numbers of modules without weights behind each element, where one Sequential holds it and the next one."""
    sequentials = sequentials_among(element.name for element in elements)
    made = []
    for one, after in pairwise([*elements, None]):
        assert one is not None
        free = None if after is None else gap_between(one.name, after.name, sequentials)
        made.append(replace(one, free=free) if isinstance(one, Block) else replace(one, gap=free))
    return tuple(made)
