"""The layers of a chain as its weights show them: convolutions, linear layers and norms, in the order they run."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
_MOST = 400  # modules with weights
_MOST_STEPS = 2_000  # of the search for an order
_BATCH_NORM = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class Norm:
    """A BatchNorm, or a norm without running statistics, which is a GroupNorm, or a LayerNorm at a linear layer.

    affine: it has weight and bias. groups: of a GroupNorm; 0: as many as channels. gap: as in `Layer`, between the layer
    before it and itself.
    """

    name: str
    width: int
    affine: bool
    is_batch: bool = True
    groups: int = 1
    gap: int | None = None


@dataclass(frozen=True)
class Slope:
    """The weight of a PReLU. width: 1, or the number of channels."""

    name: str
    width: int


@dataclass(frozen=True)
class Layer:
    """A convolution, or a linear layer, whose kernel is (). norm, slope: the norm and the PReLU after it.

    gap: how many modules without weights stand between it (or its norm) and the next layer, by the numbers in a
    Sequential; None where names do not tell.
    """

    name: str
    inner: int
    outer: int
    kernel: tuple[int, ...]
    bias: bool
    groups: int = 1
    norm: Norm | None = None
    slope: Slope | None = None
    gap: int | None = None

    @property
    def is_linear(self) -> bool:
        return not self.kernel

    @property
    def free(self) -> int | None:
        """Modules without weights after it, before and behind its norm."""
        gaps = [self.gap] + ([self.norm.gap] if self.norm is not None else [])
        return None if None in gaps else sum(gap for gap in gaps if gap is not None)


@dataclass(frozen=True)
class Modules:
    """The modules with weights, by their names, in the order of the file."""

    names: tuple[str, ...]
    layers: dict[str, Layer]
    norms: dict[str, Norm]
    slopes: dict[str, Slope]


def read_modules(shapes: Shapes) -> Modules | None:
    """None where a weight is of another kind."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        head, _, leaf = name.rpartition(".")
        parts.setdefault(head, {})[leaf] = shape
    if "" in parts or not 0 < len(parts) <= _MOST:
        return None
    made = Modules(tuple(parts), {}, {}, {})
    for name, leaves in parts.items():
        weight = leaves.get("weight", ())
        if "running_mean" in leaves and set(leaves) <= _BATCH_NORM:
            made.norms[name] = Norm(name, leaves["running_mean"][0], "weight" in leaves)
        elif set(leaves) <= {"weight", "bias"} and len(weight) in (2, 4):
            outer, inner, *kernel = weight
            made.layers[name] = Layer(name, inner, outer, tuple(kernel), "bias" in leaves)
        elif set(leaves) == {"weight", "bias"} and len(weight) == 1:
            made.norms[name] = Norm(name, weight[0], True, is_batch=False)
        elif set(leaves) == {"weight"} and len(weight) == 1:
            made.slopes[name] = Slope(name, weight[0])
        else:
            return None
    return made


def read_chain(shapes: Shapes, channels: int) -> list[Layer] | None:
    """The layers in the order in which their widths fit; None where the weights are not those of a chain.

    channels: of the images. Tried are the order of the file and that of the names with numbers.
    """
    modules = read_modules(shapes)
    if modules is None:
        return None
    for order in (list(modules.names), sorted(modules.names, key=natural)):
        chain = connected([modules.layers[name] for name in order if name in modules.layers], channels)
        placed = None if chain is None else with_norms(chain, modules.norms, order)
        placed = None if placed is None else with_slopes(placed, modules.slopes, order)
        if placed is not None:
            return _with_gaps(placed)
    return None


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts conv2 before conv10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def connected(order: Sequence[Any], channels: int) -> list[Any] | None:
    """Convolutions, then linear layers, each as wide as the one before it; with their groups. None where none fits.

    The order is kept where it fits.
    """
    ways = 0

    def follow(width: int, left: tuple[Any, ...], after_linear: bool) -> list[Any] | None:
        nonlocal ways
        ways += 1
        if not left or ways > _MOST_STEPS:
            return None if left else []
        for element in dict.fromkeys(left):
            if element.is_linear and any(not other.is_linear for other in left):
                continue
            fitted = _after(width, element, after_linear)
            if fitted is None:
                continue
            rest = list(left)
            rest.remove(element)
            found = follow(element.outer, tuple(rest), element.is_linear)
            if found is not None:
                return [fitted, *found]
        return None

    return follow(channels, tuple(order), False) or None


def _after(width: int, element: Any, after_linear: bool) -> Any | None:
    """The element behind one of this width, with its groups."""
    if element.is_linear:
        fits = element.inner == width if after_linear else element.inner % width == 0
        return element if fits else None
    if element.inner == width:
        return element
    if not isinstance(element, Layer) or max(element.kernel) == 1 or width % element.inner:
        return None
    if element.outer % (width // element.inner):
        return None
    return replace(element, groups=width // element.inner)


def with_norms(
    chain: Sequence[Any], norms: Mapping[str, Norm], order: Sequence[str], *, last: bool = False
) -> list[Any] | None:
    """Each norm at the element that stands before it or has its number, else at the first of its width, or the `last`."""
    places = _places(chain, norms.values(), order, lambda norm, element: norm.width == element.outer, last)
    if places is None:
        return None
    taken = {number: norm for norm, number in zip(norms.values(), places, strict=True)}
    return [replace(element, norm=taken.get(number)) for number, element in enumerate(chain)]


def with_slopes(chain: Sequence[Any], slopes: Mapping[str, Slope], order: Sequence[str]) -> list[Any] | None:
    """Each PReLU at an element as `with_norms` does; a single one of width 1 at all elements but the last one."""
    if len(slopes) == 1 and len(chain) > 1 and next(iter(slopes.values())).width == 1:
        (slope,) = slopes.values()
        return [*(replace(element, slope=slope) for element in chain[:-1]), chain[-1]]
    places = _places(chain, slopes.values(), order, lambda slope, element: slope.width in (1, element.outer), False)
    if places is None:
        return None
    taken = {number: slope for slope, number in zip(slopes.values(), places, strict=True)}
    return [
        replace(element, slope=taken[number]) if number in taken else element for number, element in enumerate(chain)
    ]


def _places(
    chain: Sequence[Any], items: Iterable[Any], order: Sequence[str], fits: Callable[[Any, Any], bool], last: bool
) -> list[int] | None:
    """The number of an element of the chain for each item, no two of which are equal.

    Where two items stand behind the same element, as with conv1, conv2, bn1, bn2, their order tells nothing.
    """
    items = list(items)
    stands = {name: place for place, name in enumerate(order)}
    starts = [stands[element.first] if hasattr(element, "first") else stands[element.name] for element in chain]
    nearest = [
        max((n for n, start in enumerate(starts) if start < stands[item.name]), key=lambda n: starts[n], default=None)
        for item in items
    ]
    known = [number for number in nearest if number is not None]
    is_told = len(set(known)) == len(known)
    taken: list[int] = []
    for item, near in zip(items, nearest, strict=True):
        numbered = [n for n, element in enumerate(chain) if _number(element.name) == _number(item.name) is not None]
        told = [near] if near is not None else []
        every = range(len(chain))[:: -1 if last else 1]
        for number in [*(told if is_told else []), *numbered, *told, *every]:
            if number not in taken and fits(item, chain[number]):
                taken.append(number)
                break
        else:
            return None
    return taken


def _number(name: str) -> str | None:
    found = re.findall(r"\d+", name)
    return found[-1] if found else None


def _with_gaps(chain: list[Layer]) -> list[Layer]:
    """With the numbers of modules without weights between the layers, where one Sequential holds both."""
    names = [named.name for layer in chain for named in (layer, layer.norm) if named is not None]
    sequentials = sequentials_among(names)
    made = []
    for layer, after in pairwise([*chain, None]):
        assert layer is not None
        norm = layer.norm
        flattens = not layer.is_linear and after is not None and after.is_linear
        if norm is not None:
            between = gap_between(layer.name, norm.name, sequentials)
            behind = gap_between(norm.name, after.name, sequentials, flattens) if after else None
            made.append(replace(layer, gap=behind, norm=replace(norm, gap=between)))
        else:
            gap = gap_between(layer.name, after.name, sequentials, flattens) if after else None
            made.append(replace(layer, gap=gap))
    return made


def sequentials_among(names: Iterable[str]) -> set[str]:
    """Where numbers are left out, by modules without weights. A ModuleList of layers leaves out none, and tells nothing."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        head, _, last = name.rpartition(".")
        if last.isdecimal():
            numbers.setdefault(head, []).append(int(last))
    return {head for head, found in numbers.items() if max(found) - min(found) >= len(found)}


def gap_between(one: str, other: str, sequentials: set[str], flattens: bool = False) -> int | None:
    """Modules left out between two numbers. flattens: one of them flattens the map, and does not count."""
    (head, _, first), (other_head, _, second) = one.rpartition("."), other.rpartition(".")
    if head != other_head or head not in sequentials or not (first.isdecimal() and second.isdecimal()):
        return None
    return max(0, int(second) - int(first) - 1 - flattens)
