"""The layers of a chain as its weights show them: convolutions, linear layers and BatchNorms, in the order they run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lsa_cli.models.parametrizations import Stored, put_together
from lsa_cli.models.recognition import views

Shapes = Mapping[str, tuple[int, ...]]
_MOST = 40  # layers with weights
# Names of residual blocks, whose shortcuts need not have weights: "layer1.0.conv2".
_BLOCK = re.compile(r"\.\d+\.(conv|bn|norm)\d|shortcut|downsample|skip|residual")
_BATCH_NORM = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class Norm:
    """A BatchNorm. affine: it has weight and bias. gap: as in `Layer`, between the layer before it and itself."""

    name: str
    width: int
    affine: bool
    gap: int | None = None


@dataclass(frozen=True)
class Layer:
    """A convolution, or a linear layer, whose kernel is (). norm: the BatchNorm after it.

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
    gap: int | None = None

    @property
    def is_linear(self) -> bool:
        return not self.kernel

    @property
    def free(self) -> int | None:
        """Modules without weights after it, before and behind its norm."""
        gaps = [self.gap] + ([self.norm.gap] if self.norm is not None else [])
        return None if None in gaps else sum(gap for gap in gaps if gap is not None)


def chain_of(stored: Mapping[str, Stored], channels: int | None = None) -> tuple[dict[str, Stored], list[Layer] | None]:
    """Weights, put together from their parts and under their shortest names, and `read_chain` of them.

    channels: of the images; None: those of the first convolution.
    """
    readings = list(views(put_together(stored)))
    shortest = [view for view in readings if all("." in name for name in view.tensors)][-1:] or readings[-1:]
    shapes = {name: item.shape for name, item in shortest[0].tensors.items()}
    first = next((shape for name, shape in sorted(shapes.items(), key=_by_name) if len(shape) == 4), None)
    width = channels if channels is not None else first[1] if first is not None else 1
    return dict(shortest[0].tensors), read_chain(shapes, width)


def _by_name(item: tuple[str, tuple[int, ...]]) -> list[tuple[int, str]]:
    return natural(item[0])


def read_chain(shapes: Shapes, channels: int) -> list[Layer] | None:
    """The layers in the order in which their widths fit; None where the weights are not those of a chain.

    channels: of the images. Tried are the order of the file and that of the names with numbers.
    """
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        head, _, leaf = name.rpartition(".")
        parts.setdefault(head, {})[leaf] = shape
    if "" in parts or not 0 < len(parts) <= 2 * _MOST or any(map(_BLOCK.search, parts)):
        return None
    layers, norms = {}, {}
    for name, leaves in parts.items():
        if "running_mean" in leaves and set(leaves) <= _BATCH_NORM:
            norms[name] = Norm(name, leaves["running_mean"][0], "weight" in leaves)
        elif set(leaves) <= {"weight", "bias"} and len(leaves.get("weight", ())) in (2, 4):
            outer, inner, *kernel = leaves["weight"]
            layers[name] = Layer(name, inner, outer, tuple(kernel), "bias" in leaves)
        else:
            return None
    for order in (list(parts), sorted(parts, key=natural)):
        chain = _connected([layers[name] for name in order if name in layers], channels)
        placed = None if chain is None else _with_norms(chain, [norms[name] for name in order if name in norms], order)
        if placed is not None:
            return _with_gaps(placed)
    return None


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts conv2 before conv10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _connected(order: Sequence[Layer], channels: int) -> list[Layer] | None:
    """Convolutions, then linear layers, each as wide as the one before it; with their groups."""
    ordered = [one for one in order if not one.is_linear] + [one for one in order if one.is_linear]
    if not ordered:
        return None
    chain: list[Layer] = []
    width = channels
    for number, layer in enumerate(ordered):
        if layer.is_linear:
            first = number == 0 or not ordered[number - 1].is_linear
            if (layer.inner % width if first else layer.inner != width) != 0:
                return None
        elif width % layer.inner or layer.outer % (width // layer.inner):
            return None
        else:
            layer = replace(layer, groups=width // layer.inner)
        chain.append(layer)
        width = layer.outer
    return chain


def _with_norms(chain: list[Layer], norms: list[Norm], order: list[str]) -> list[Layer] | None:
    """Each norm at the layer that stands before it, else at the one with its number, else at the first of its width."""
    place = {layer.name: number for number, layer in enumerate(chain)}
    taken: dict[int, Norm] = {}
    for norm in norms:
        before = [place[name] for name in order[: order.index(norm.name)] if name in place]
        numbered = [n for n, layer in enumerate(chain) if _number(layer.name) == _number(norm.name) is not None]
        for number in [*before[-1:], *numbered, *range(len(chain))]:
            if number not in taken and chain[number].outer == norm.width:
                taken[number] = norm
                break
        else:
            return None
    return [replace(layer, norm=taken.get(number)) for number, layer in enumerate(chain)]


def _number(name: str) -> str | None:
    found = re.findall(r"\d+", name)
    return found[-1] if found else None


def _with_gaps(chain: list[Layer]) -> list[Layer]:
    """With the numbers of modules without weights between the layers, where one Sequential holds both."""
    made = []
    for layer, after in pairwise([*chain, None]):
        assert layer is not None
        norm = layer.norm
        if norm is not None:
            between, behind = _gap(layer.name, norm.name), _gap(norm.name, after.name) if after else None
            made.append(replace(layer, gap=behind, norm=replace(norm, gap=between)))
        else:
            made.append(replace(layer, gap=_gap(layer.name, after.name) if after else None))
    return made


def _gap(one: str, other: str) -> int | None:
    (head, _, first), (other_head, _, second) = one.rpartition("."), other.rpartition(".")
    if head != other_head or not (first.isdecimal() and second.isdecimal()):
        return None
    return max(0, int(second) - int(first) - 1)
