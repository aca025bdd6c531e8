"""Strides, paddings and pools of a chain of convolutions and blocks that lead from the size of the images to the first
linear layer.

They are enumerated by best-first search (A*): `cost` says how unusual a choice is (our choice of numbers), and the least
cost from each size to the end is a lower bound that is computed backwards.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations_with_replacement, product
from typing import NamedTuple

from lsa_cli.models.rebuilding.grouping import DENSE, FIRE, SUM, Block, Element, Structure

Size = tuple[int, int]
Head = tuple[str, Size]
FLATTEN, CHANNELS_LAST = "flatten", "flatten with channels last"
_ANY: Size = (0, 0)
# Cost of a pool, and of the first one of its kind: in most networks all pools are alike.
_POOLS = {None: 0.0, (2, 2, 0): 0.0, (3, 2, 1): 0.4, (3, 2, 0): 0.4, (3, 3, 0): 0.6, (4, 4, 0): 0.6}
_FIRST_POOL = {(3, 2, 1): 1.6, (3, 2, 0): 1.6, (3, 3, 0): 2.4, (4, 4, 0): 2.4}
# Cost of a change from one convolution to the next.
_OTHER_RULE, _OTHER_RULE_OF_KERNEL, _OTHER_POOL, _IRREGULAR, _BOTH = 1.5, 0.5, 3.0, 0.3, 2.0
_STRIDE_AT_BEGINNING, _OTHER_STRIDE = 0.3, 0.8  # of a chain; behind a convolution without a stride, or beside pools
_STILL_WIDE, _NO_STEP, _ADAPTIVE, _MAXIMUM = 2.0, 1.0, 3.0, 0.5
_EVEN = 1.5  # of a kernel of 4 or 6 without a stride; they are chosen because they end at the border with a stride of 2
_LARGE = 7  # pixels of a kernel, as in AlexNet, with which strides of 4, and pools beside them, are usual
_DILATED = 4.0  # of a convolution; only tried as a change of another geometry
_RARE = 2.5  # of a step that is not tried as a change of another geometry
_POOLS_OF_FIRE = {None: 0.0, (2, 2, 0): 0.5, (3, 2, 0): 0.5, (3, 2, 1): 1.0}
# Between the images and the first fire module (Iandola et al., arXiv 1602.07360, table 1, and smaller ones).
_STEM_OF_FIRE = {(1, None): 0.0, (1, (2, 2, 0)): 0.3, (2, (3, 2, 0)): 0.3, (1, (3, 2, 0)): 0.5, (2, None): 0.5, (1, (3, 2, 1)): 1.0,
                 (2, (2, 2, 0)): 1.0, (2, (3, 2, 1)): 1.0}  # fmt: skip
# Between the images and the first block, by stride and pool: the stem for ImageNet has a kernel of 7 or 5.
_LARGE_STEM = {(2, (3, 2, 1)): 0.0, (1, None): 0.3, (2, None): 0.5, (1, (3, 2, 1)): 0.6, (1, (2, 2, 0)): 0.6}
_SMALL_STEM = {(1, None): 0.0, (2, None): 1.0, (1, (2, 2, 0)): 1.0, (1, (3, 2, 1)): 1.2, (2, (3, 2, 1)): 2.0}
_POOL_BEHIND_BLOCK, _POOL_BEHIND_LAST = 1.5, 2.5
_STRIDE_ALONE, _STRIDE_AT_START, _NO_STRIDE, _VALID_STEM = 1.5, 0.5, 1.0, 0.5


class Step(NamedTuple):
    """What happens at a convolution. pool: kernel, stride, padding."""

    stride: int
    padding: tuple[int, int]
    pool: tuple[int, int, int] | None
    dilation: int = 1


@dataclass(frozen=True)
class Geometry:
    """A step for each convolution. head: FLATTEN or CHANNELS_LAST, or "average" or "max" with the size (h, w) that it brings
    the last map to."""

    steps: tuple[Step, ...]
    head: Head
    cost: float
    sizes: tuple[Size, ...]  # after each convolution, before its pool


def geometries(layers: Sequence[Element], size: Size, flatten: str = FLATTEN) -> Iterator[Geometry]:
    """All consistent geometries for images of this size, the most usual first. flatten: FLATTEN or CHANNELS_LAST."""
    convolutions = [layer for layer in layers if not layer.is_linear]
    if not convolutions:
        yield Geometry((), (FLATTEN, _ANY), 0.0, ())
        return
    yield from _search(convolutions, size, places_of(layers), flatten)


def near(layers: Sequence[Element], size: Size, start: Geometry) -> list[Geometry]:
    """The consistent geometries that differ at one or two convolutions, the most usual first. The head is the same."""
    convolutions = [layer for layer in layers if not layer.is_linear]
    flatten = start.head[0] if start.head[0] in (FLATTEN, CHANNELS_LAST) else FLATTEN
    sizes = [size, *(_behind(at, step) for at, step in zip(start.sizes, start.steps, strict=True))]
    usual = [
        [
            step
            for step, cost, *_ in _steps(convolutions, number, sizes[number])
            if cost + _of_first(convolutions, number, step) < _RARE
        ]
        for number in range(len(convolutions))
    ]
    found: dict[tuple[Step, ...], Geometry] = {}
    for one, other in combinations_with_replacement(range(len(convolutions)), 2):
        for step, second in product(usual[one], usual[other] if one != other else [None]):
            steps = list(start.steps)
            steps[one] = step
            steps[other] = second or step
            made = _made(convolutions, size, tuple(steps), start.head, places_of(layers), flatten)
            if made is not None and made.steps != start.steps:
                found[made.steps] = made
    return sorted(found.values(), key=lambda geometry: geometry.cost)


def dilated(layers: Sequence[Element], start: Geometry) -> list[Geometry]:
    """The geometries of the same sizes that differ in the dilation, 1 or 2, of one convolution. Blocks have none."""
    convolutions = [layer for layer in layers if not layer.is_linear]
    found = []
    for number, (layer, step) in enumerate(zip(convolutions, start.steps, strict=True)):
        is_odd = all(side % 2 for side in layer.kernel) and max(layer.kernel) > 1
        if isinstance(layer, Block) or not is_odd or step.padding != same_padding(layer.kernel, step.dilation):
            continue
        other = 3 - step.dilation
        changed = step._replace(padding=same_padding(layer.kernel, other), dilation=other)
        steps = (*start.steps[:number], changed, *start.steps[number + 1 :])
        found.append(replace(start, steps=steps, cost=start.cost + _DILATED * (other - step.dilation)))
    return found


def _made(
    convolutions: list[Element], size: Size, steps: tuple[Step, ...], head: Head, places: int | None, flatten: str
) -> Geometry | None:
    """The geometry of these steps; None where they are not consistent."""
    at, cost, sizes = size, 0.0, list[Size]()
    for number, step in enumerate(steps):
        fit = next((one for one in _steps(convolutions, number, at) if one[0] == step), None)
        if fit is None:
            return None
        _, more, inside, at = fit
        cost = cost + more + _change(convolutions, steps[:number], step)
        sizes.append(inside)
    ends = dict(_heads(at, places, flatten))
    return Geometry(steps, head, cost + ends[head], tuple(sizes)) if head in ends else None


def _behind(at: Size, step: Step) -> Size:
    return at if step.pool is None else _after(at, step.pool[:1] * 2, step.pool[1], step.pool[2:] * 2)


def places_of(layers: Sequence[Element]) -> int | None:
    """Pixels of the last map that the first linear layer takes; None without a linear layer behind convolutions."""
    convolutions = [layer for layer in layers if not layer.is_linear]
    linear = next((layer for layer in layers if layer.is_linear), None)
    return None if linear is None or not convolutions else linear.inner // convolutions[-1].outer


def same_padding(kernel: Sequence[int], dilation: int = 1) -> tuple[int, int]:
    """With which a convolution without a stride keeps the size; for an even kernel, one pixel more than the size."""
    return kernel[0] // 2 * dilation, kernel[1] // 2 * dilation


def work(structure: Structure, geometry: Geometry) -> float:
    """Multiplications for an image."""
    total, sizes = 0.0, iter(geometry.sizes)
    for element in structure.elements:
        if element.is_linear:
            total += element.inner * element.outer
            continue
        height, width = next(sizes)
        layers = element.layers if isinstance(element, Block) else (element,)
        total += sum(one.inner * one.outer * math.prod(one.kernel) for one in layers) * height * width
    return total


def _search(convolutions: list[Element], size: Size, places: int | None, flatten: str) -> Iterator[Geometry]:
    @cache
    def least(number: int, at: Size) -> float:
        """The least cost from a size in front of a convolution to the end, without the cost of changes."""
        if number == len(convolutions):
            return min((cost for _, cost in _heads(at, places, flatten)), default=math.inf)
        found = (cost + least(number + 1, after) for _, cost, _, after in _steps(convolutions, number, at))
        return min(found, default=math.inf)

    count = 0
    heap: list[tuple[float, int, float, int, Size, tuple[Step, ...], tuple[Size, ...], Head | None]] = [
        (least(0, size), 0, 0.0, 0, size, (), (), None)
    ]
    while heap:
        bound, _, cost, number, at, steps, sizes, head = heapq.heappop(heap)
        if math.isinf(bound):
            return
        if head is not None:
            yield Geometry(steps, head, cost, sizes)
            continue
        ends: list[tuple[float, float, int, Size, tuple[Step, ...], tuple[Size, ...], Head | None]] = []
        if number == len(convolutions):
            ends = [
                (cost + more, cost + more, number, at, steps, sizes, end) for end, more in _heads(at, places, flatten)
            ]
        else:
            for step, more, inside, after in _steps(convolutions, number, at):
                total = cost + more + _change(convolutions, steps, step)
                bound = total + least(number + 1, after)
                ends.append((bound, total, number + 1, after, (*steps, step), (*sizes, inside), None))
        for bound, total, *rest in ends:
            if not math.isinf(bound):
                count += 1
                heapq.heappush(heap, (bound, count, total, *rest))  # type: ignore[misc]


def _heads(at: Size, places: int | None, flatten: str) -> list[tuple[Head, float]]:
    """How a last map of this size reaches the linear layer, or, without one, becomes the logits."""
    wide = _STILL_WIDE if at[0] * at[1] > 64 else 0.0
    if places is None:
        return [(("average", (1, 1)), wide), (("max", (1, 1)), wide + _MAXIMUM)]
    found: list[tuple[Head, float]] = [((flatten, _ANY), 0.0)] if at[0] * at[1] == places else []
    root = math.isqrt(places)
    if flatten == FLATTEN and root * root == places and at[0] >= root and at[1] >= root and at != (root, root):
        cost = wide if root == 1 else _ADAPTIVE
        found += [(("average", (root, root)), cost), (("max", (root, root)), cost + _MAXIMUM)]
    return found


def _steps(convolutions: list[Element], number: int, at: Size) -> Iterator[tuple[Step, float, Size, Size]]:
    """Steps of a convolution with their costs, the size behind it, and that behind its pool."""
    layer, before = convolutions[number], convolutions[number - 1] if number else None
    follows = number + 1 < len(convolutions) and isinstance(convolutions[number + 1], Block)
    if isinstance(layer, Block) and layer.joins == FIRE:
        choices = _of_fire(layer)
    elif isinstance(layer, Block):
        choices = _of_block(layer, isinstance(before, Block), number + 1 == len(convolutions))
    elif number == 0 and follows:
        choices = _of_stem(layer, convolutions[1])
    else:
        choices = _of_layer(layer)
    if isinstance(before, Block) and before.joins == FIRE and not isinstance(layer, Block):
        choices = ((step, cost) for step, cost in choices if step.pool is None)  # it gives the scores of the classes
    for step, cost in choices:
        inside = _after(at, layer.kernel, step.stride, step.padding)
        pool = step.pool
        after = inside if pool is None else _after(inside, pool[:1] * 2, pool[1], pool[2:] * 2)
        if min(*inside, *after) >= 1:
            yield step, cost, inside, after


def _of_layer(layer: Element) -> Iterator[tuple[Step, float]]:
    for padding, padding_cost in _paddings(layer.kernel):
        for stride, stride_cost in _strides(layer.kernel):
            for pool, pool_cost in _POOLS.items():
                if not _may_pool(layer, pool is not None):
                    continue
                both = stride > 1 and pool is not None and max(layer.kernel) < _LARGE
                cost = padding_cost + stride_cost + pool_cost + (_BOTH if both else 0.0)
                if layer.free is not None and layer.free >= 2 and pool is None:
                    cost += 1.0  # two modules without weights are most often an activation and a pool
                yield Step(stride, padding, pool), cost


def _of_stem(layer: Element, block: Element) -> Iterator[tuple[Step, float]]:
    """block: the one behind it."""
    stem = _LARGE_STEM if max(layer.kernel) >= 5 else _SMALL_STEM
    stem = _STEM_OF_FIRE if isinstance(block, Block) and block.joins == FIRE else stem
    for padding, padding_cost in _paddings(layer.kernel):
        for (stride, pool), cost in stem.items():
            if not _may_pool(layer, pool is not None):
                continue
            valid = _VALID_STEM if padding == (0, 0) != (layer.kernel[0] // 2,) * 2 else 0.0
            yield Step(stride, padding, pool), cost + padding_cost + valid


def _of_block(block: Block, is_inner: bool, is_last: bool) -> Iterator[tuple[Step, float]]:
    """is_inner: another block is before it. is_last: of the convolutions."""
    widens = block.outer > block.inner and block.joins == SUM
    for pool, pool_cost in ((None, 0.0), ((2, 2, 0), _POOL_BEHIND_LAST if is_last else _POOL_BEHIND_BLOCK)):
        yield Step(1, (1, 1), pool), pool_cost + (_NO_STRIDE if widens and is_inner else 0.0)
        if block.may_stride:
            at_start = _STRIDE_ALONE if not widens else 0.0 if is_inner else _STRIDE_AT_START
            yield Step(2, (1, 1), pool), pool_cost + at_start


def _of_fire(block: Block) -> Iterator[tuple[Step, float]]:
    for pool, cost in _POOLS_OF_FIRE.items():
        if block.free is None or block.free == (pool is not None):
            yield Step(1, (1, 1), pool), 0.0 if block.free else cost


def _may_pool(layer: Element, pools: bool) -> bool:
    return not pools or layer.free is None or layer.free >= 2


def _paddings(kernel: tuple[int, ...]) -> list[tuple[tuple[int, int], float]]:
    half = same_padding(kernel)
    if max(kernel) == 1:
        return [((0, 0), 0.0)]
    found = {half: 0.0 if kernel[0] % 2 else 2.0, (0, 0): 0.0}
    if kernel[0] % 2 == 0:
        found.setdefault((kernel[0] // 2 - 1, kernel[1] // 2 - 1), 0.0)
    for more in (1, 2):
        if more < max(kernel):
            found.setdefault((more, more), 2.0)
    return list(found.items())


def _strides(kernel: tuple[int, ...]) -> list[tuple[int, float]]:
    found = {1: 0.0, 2: 0.1 if max(kernel) > 1 else 3.0}
    if _asks_for_stride(kernel):
        found = {1: _EVEN, 2: 0.0}
    if max(kernel) >= 3:
        found[3] = 4.0
    if max(kernel) >= 4:
        found[4] = 3.0 if max(kernel) < _LARGE else 0.1
    if kernel[0] == kernel[1] > 1:
        found.setdefault(kernel[0], 3.0)
    return list(found.items())


def _asks_for_stride(kernel: tuple[int, ...]) -> bool:
    return max(kernel) in (4, 6) and min(kernel) % 2 == 0


def _after(at: Size, kernel: tuple[int, ...], stride: int, padding: tuple[int, ...]) -> Size:
    height, width = ((at[i] + 2 * padding[i] - kernel[i]) // stride + 1 for i in (0, 1))
    return height, width


def _change(convolutions: list[Element], before: tuple[Step, ...], step: Step) -> float:
    """The cost of a step that does not go on as the chain began, and of a wider convolution at the same resolution."""
    layer = convolutions[len(before)]
    strides = step.stride > 1 and not isinstance(layer, Block)
    first = _of_first(convolutions, len(before), step)
    if not before:
        return first + (_STRIDE_AT_BEGINNING if strides and not _leads_to_blocks(convolutions) else 0.0)
    cost, last = 0.0, before[-1]
    is_other = last.stride == 1 or any(one.pool is not None for one in before)
    if strides and is_other and not _asks_for_stride(layer.kernel):
        cost += _OTHER_STRIDE
    cost += _other_rule(convolutions, before, step)
    stem = _stem_of_dense(convolutions)
    pools = [one.pool for one in before[stem:] if one.pool is not None]
    if step.pool is not None and step.pool not in pools[-1:]:
        cost += first + (_OTHER_POOL if pools else 0.0)
    if isinstance(layer, Block):
        return cost
    is_behind_block = isinstance(convolutions[len(before) - 1], Block)
    if (last.pool is None) != (step.pool is None) and not is_behind_block:
        cost += _IRREGULAR
    is_no_step = last.pool is None and step.stride == 1 and step.pool is None
    follows_stride = last.stride > 1 and _asks_for_stride(convolutions[len(before) - 1].kernel)
    if layer.outer > layer.inner * layer.groups and is_no_step and not follows_stride:
        cost += _NO_STEP
    return cost


def _other_rule(convolutions: list[Element], before: tuple[Step, ...], step: Step) -> float:
    """The cost of another rule of padding than that of the last convolution with the same kernel, else of the last one."""
    layer = convolutions[len(before)]
    rule = _rule(layer, step.padding)
    rules = [(convolutions[n].kernel, _rule(convolutions[n], one.padding)) for n, one in enumerate(before)]
    known = [(kernel, other) for kernel, other in rules if other != "none"]
    same = [other for kernel, other in known if kernel == layer.kernel]
    if rule == "none" or not known or rule == (same or [known[-1][1]])[-1]:
        return 0.0
    return _OTHER_RULE if same else _OTHER_RULE_OF_KERNEL


def _of_first(convolutions: Sequence[Element], number: int, step: Step) -> float:
    """The cost of a pool of a new kind. Stems and blocks have costs of their own."""
    is_stem = number == 0 and _leads_to_blocks(convolutions)
    if step.pool is None or is_stem or isinstance(convolutions[number], Block):
        return 0.0
    return _FIRST_POOL.get(step.pool, 0.0)


def _stem_of_dense(convolutions: Sequence[Element]) -> int:
    """Convolutions before dense layers, whose pool tells nothing about those of the transitions."""
    return next((n for n, one in enumerate(convolutions) if isinstance(one, Block) and one.joins == DENSE), 0)


def _leads_to_blocks(convolutions: Sequence[Element]) -> bool:
    """Whether the first convolution is a stem, whose strides have costs of their own."""
    return len(convolutions) > 1 and isinstance(convolutions[1], Block)


def _rule(layer: Element, padding: tuple[int, int]) -> str:
    kernel = layer.kernel
    if max(kernel) == 1 or isinstance(layer, Block):
        return "none"
    return "valid" if padding == (0, 0) else "same" if padding == same_padding(kernel) else "other"
