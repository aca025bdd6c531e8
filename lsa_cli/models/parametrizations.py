"""Compute weights that are stored in parts, as pruning, weight norm and spectral norm do.

The result is what torch's own hooks compute in evaluation mode, in float32. Tensors do not show other parametrizations
(orthogonal ones, the user's own), which stay as they are.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lsa_cli.models.pickles.symbols import TensorSpec

Load = Callable[[TensorSpec], torch.Tensor]
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Made:
    """A weight that is computed from others. kind: "pruning", "weight norm" or "spectral norm". dim: dimension of the norm."""

    kind: str
    parts: tuple["Stored", ...]
    shape: tuple[int, ...]
    dim: int = 0

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    def load(self, load: Load) -> torch.Tensor:
        first, *others = (read(part, load).float() for part in self.parts)
        if self.kind == "pruning":
            return first * others[0]
        if self.kind == "weight norm":
            return torch._weight_norm(first, others[0], self.dim)
        u, v = others
        matrix = first.movedim(self.dim, 0).flatten(1)
        return first / torch.dot(u, torch.mv(matrix, v))


Stored = TensorSpec | Made


def read(stored: Stored, load: Load) -> torch.Tensor:
    return stored.load(load) if isinstance(stored, Made) else load(stored)


def put_together(tensors: Mapping[str, Stored], body: nn.Module | None = None) -> dict[str, Stored]:
    """Weights under the names that they have without parametrization.

    body: the network that they are for, which tells the dimension of spectral norm.
    """
    made = dict(tensors)
    while True:
        before = len(made)
        for name in list(made):
            if name in made:
                _replace(made, name, body)
        if len(made) == before:
            return made


def _replace(tensors: dict[str, Stored], name: str, body: nn.Module | None) -> None:
    """Replace the parts of a weight, of which `name` is the first, by the weight. Other names change nothing."""
    base, _, last = name.rpartition("_")
    if last == "orig" and f"{base}_mask" in tensors:
        _put(tensors, base, "pruning", (name, f"{base}_mask"))
    elif last == "v" and f"{base}_g" in tensors:
        _put_norm(tensors, base, name, f"{base}_g")
    elif last == "orig" and {f"{base}_u", f"{base}_v"} <= tensors.keys():
        _put_spectral(tensors, base, (name, f"{base}_u", f"{base}_v"), body)
    start, mark, rest = name.rpartition("parametrizations.")
    weight, _, part = rest.partition(".")
    if mark and part in ("original", "original1"):
        inside = f"{start}parametrizations.{weight}."
        parts = {other.removeprefix(inside) for other in tensors if other.startswith(inside)}
        if parts == {"original0", "original1"}:
            _put_norm(tensors, start + weight, name, f"{inside}original0")
        elif parts == {"original", "0._u", "0._v"}:
            _put_spectral(tensors, start + weight, (name, f"{inside}0._u", f"{inside}0._v"), body)


def _put(tensors: dict[str, Stored], base: str, kind: str, parts: tuple[str, ...], dim: int = 0) -> None:
    shape = tensors[parts[0]].shape
    if base not in tensors and (kind != "pruning" or tensors[parts[1]].shape == shape):
        tensors[base] = Made(kind, tuple(tensors.pop(part) for part in parts), shape, dim)


def _put_norm(tensors: dict[str, Stored], base: str, direction: str, length: str) -> None:
    """The length has the size of one dimension of the direction and 1 elsewhere, or is one number for all of it."""
    v, g = tensors[direction].shape, tensors[length].shape
    if not g:
        _put(tensors, base, "weight norm", (direction, length), -1)
        return
    fitting = [dim for dim in range(len(v)) if g == tuple(size if k == dim else 1 for k, size in enumerate(v))]
    if fitting:
        _put(tensors, base, "weight norm", (direction, length), fitting[0])


def _put_spectral(tensors: dict[str, Stored], base: str, parts: tuple[str, ...], body: nn.Module | None) -> None:
    shape, u, v = (tensors[part].shape for part in parts)
    dim = 1 if isinstance(_module_of(base, body), _TRANSPOSED) else 0
    if len(shape) > 1 and u == (shape[dim],) and v == (torch.Size(shape).numel() // shape[dim],):
        _put(tensors, base, "spectral norm", parts, dim)


def _module_of(base: str, body: nn.Module | None) -> nn.Module | None:
    """The module of the network whose weight has this name, or the end of this name."""
    if body is None:
        return None
    path = base.rpartition(".")[0]
    return next((module for name, module in body.named_modules() if name and f".{path}".endswith(f".{name}")), None)


def kinds_of(tensors: Mapping[str, Stored]) -> dict[str, int]:
    """The number of weights that were computed from parts, by kind."""
    kinds: Counter[str] = Counter()
    waiting: list[Stored] = list(tensors.values())
    while waiting:
        item = waiting.pop()
        if isinstance(item, Made):
            kinds[item.kind] += 1
            waiting.extend(item.parts)
    return kinds
