"""CROWN: bounds of a network over a ball by linear relaxation of its ReLUs (arXiv 1811.00866), one sample at a time.

Intervals come first (forward); a backward pass then tightens those of the ReLU inputs that may have either sign.

Rounding. The output of each operation is taken for an interval around its exact value: of half width n 2^-24 m, where n is
the number of terms of a sum and m the sum of their absolute values over the ball. This holds the result of the network
in float32, in any order of its sums (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). It is 2^12 times
or more what the same operation errs in float64, in which the bounds are computed, so that it also holds the errors of the
operations between two sums (ReLU, views), which are a few units in the last place of a float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lsa_cli.attacks.threat import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, Threat
from lsa_cli.proofs.graph import Graph
from lsa_cli.proofs.operations import Affine, Coefficients, OneHot, Rearrange, Relu, Scale, Sum, dense

FLOAT32, FLOAT64 = 2.0**-24, 2.0**-36  # 2^-36 holds sums of 2^17 terms in float64
TINY = 1e-30  # results below the smallest float32
LARGEST = 2**24  # bytes of the coefficients of one node in a backward pass; a pass holds a few such tensors
# Coefficients that the backward passes of one sample may compute (about 8 s of one core), and how many times as many
# count where slopes are optimised for hidden layers.
WORK, DEARER = 2**30, 20

Improve = Callable[["Bounds", int, torch.Tensor, torch.Tensor], torch.Tensor]  # (bounds, place, rows, least) -> least


@dataclass(frozen=True)
class Region:
    """The inputs of one sample: a ball around x within a box. Both are wider than those of a threat model by twice its
    tolerance, so that they hold every input that `Threat.contains` accepts. Tensors are (1, ...) in float64."""

    x: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    radius: float
    order: float  # of the norm

    @classmethod
    def of(cls, x: torch.Tensor, eps: float, threat: Threat) -> "Region":
        x = x.double()
        radius = eps * (1 + 2 * RELATIVE_TOLERANCE) + 2 * ABSOLUTE_TOLERANCE
        low, high = x - radius, x + radius
        if threat.bounds is not None:
            bottom, top = threat.bounds
            low = torch.minimum(low.clamp_min(bottom - 2 * ABSOLUTE_TOLERANCE), x)
            high = torch.maximum(high.clamp_max(top + 2 * ABSOLUTE_TOLERANCE), x)
        return cls(x, low, high, radius, threat._order)

    def least(self, rows: torch.Tensor) -> torch.Tensor:  # (R, ...) -> (R,)
        """A lower bound of rows . x over the region: the larger one of those over the box and over the ball."""
        flat = rows.flatten(1)
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        box = flat @ middle.flatten() - flat.abs() @ half.flatten()
        if math.isinf(self.order):
            return box
        dual = torch.linalg.vector_norm(flat, ord=2 if self.order == 2 else math.inf, dim=1)
        return torch.maximum(box, flat @ self.x.flatten() - self.radius * dual)


@dataclass
class Bounds:
    """The intervals of every node for one sample: lower and upper (1, ...) by place, and the half widths of rounding."""

    graph: Graph
    region: Region
    lower: list[torch.Tensor] = field(default_factory=list)
    upper: list[torch.Tensor] = field(default_factory=list)
    rounding: list[torch.Tensor] = field(default_factory=list)
    work: int = WORK  # what is left of it
    improve: Improve | None = None

    @classmethod
    def of(cls, graph: Graph, region: Region, improve: Improve | None = None) -> "Bounds":
        """improve: makes the bounds of hidden layers tighter, as `slopes.optimised` does."""
        bounds = cls(graph, region, improve=improve)
        exact = _exactness(graph) if math.isinf(region.order) else [0] * len(graph.nodes)
        refined = set()
        for place, node in enumerate(graph.nodes):
            if isinstance(node.operation, Relu):
                (before,) = node.inputs
                if node.operation.refined and not exact[before] and before not in refined:
                    bounds._refine(before)
                    refined.add(before)
            bounds._append(place)
        return bounds

    def _append(self, place: int) -> None:
        """The interval of the next node from those of its operands."""
        node = self.graph.nodes[place]
        operation = node.operation
        low, high = [self.lower[i] for i in node.inputs], [self.upper[i] for i in node.inputs]
        terms = 0
        if operation is None:
            below, above = self.region.low, self.region.high
            size = torch.maximum(below.abs(), above.abs())
        elif isinstance(operation, Relu):
            below, above = low[0].relu(), high[0].relu()
            size = above
        elif isinstance(operation, Sum):
            ends = [(f * a, f * b) for f, a, b in zip(operation.factors, low, high, strict=True)]
            below, above = (
                torch.stack([pick(a, b) for a, b in ends]).sum(0) for pick in (torch.minimum, torch.maximum)
            )
            size = torch.stack([torch.maximum(a.abs(), b.abs()) for a, b in ends]).sum(0)
            terms = operation.terms
        else:
            middle = operation.linear((low[0] + high[0]) / 2)
            middle = middle if operation.bias is None else middle + operation.bias
            half = operation.absolute((high[0] - low[0]) / 2)
            below, above = middle - half, middle + half
            size = operation.magnitude(torch.maximum(low[0].abs(), high[0].abs()))
            terms = operation.terms
        error = (terms * FLOAT32 + FLOAT64) * size + TINY
        below, above = below - error, above + error
        if node.hull is not None:
            lows, highs = node.hull(*((self.lower[i], self.upper[i]) for i in node.hull_of))
            below, above = torch.maximum(below, lows - error), torch.minimum(above, highs + error)
        self.lower.append(below)
        self.upper.append(above)
        self.rounding.append(error)

    def _refine(self, place: int) -> None:
        """Tighten the interval of the entries of a node that may have either sign, by a backward pass.

        A node for which not enough work is left keeps its interval, which is wider.
        """
        lower, upper = self.lower[place].reshape(-1), self.upper[place].reshape(-1)
        shape = self.graph.nodes[place].shape
        either = ((lower < 0) & (upper > 0)).nonzero()[:, 0]
        work = 2 * len(either) * sum(math.prod(node.shape) for node in self.graph.nodes[: place + 1])
        work *= 1 if self.improve is None else DEARER
        if not len(either) or work > self.work:
            return
        self.work -= work
        for part in either.split(self._rows_at_once(place)):
            for sign, ends in ((1.0, lower), (-1.0, upper)):
                rows = OneHot(part, torch.full((len(part),), sign, dtype=torch.double, device=part.device), shape)
                least = torch.maximum(sign * ends[part], self.least(place, rows))
                if self.improve is not None:
                    least = self.improve(self, place, rows.dense(), least)
                ends[part] = sign * least
        self.lower[place], self.upper[place] = lower.reshape(1, *shape), upper.reshape(1, *shape)

    def _rows_at_once(self, place: int) -> int:
        """Rows of a backward pass from a node whose coefficients of any node take at most LARGEST bytes."""
        return max(1, LARGEST // (8 * max(math.prod(node.shape) for node in self.graph.nodes[: place + 1])))

    def least(
        self, place: int, rows: Coefficients, slopes: dict[int, torch.Tensor] | None = None
    ) -> torch.Tensor:  # (R, ...) -> (R,)
        """A lower bound of rows . z over the region, for the output z of the node at `place`.

        slopes: for the places of ReLUs the slopes of their lower bounds (R, U), in place of CROWN's (`Relaxation`).
        """
        constant = torch.zeros((), dtype=torch.double)
        waiting: dict[int, Coefficients] = {place: rows}
        for here in range(place, 0, -1):
            if here not in waiting:
                continue
            node, rows = self.graph.nodes[here], waiting.pop(here)
            operation = node.operation
            assert operation is not None  # only the first node has none
            if here == place or operation.terms:
                constant = constant - _dot(rows, self.rounding[here], absolute=True)
            if isinstance(operation, Relu):
                relaxation = self.relaxation(node.inputs[0])
                rows, shift = relaxation.through(dense(rows), None if slopes is None else slopes.get(here))
                constant = constant + shift
                parts = [rows]
            elif isinstance(operation, Sum):
                parts = [_times(rows, factor) for factor in operation.factors]
            else:
                if operation.bias is not None:
                    constant = constant + _dot(
                        rows, operation.bias.expand(1, *node.shape) if operation.bias.ndim > 1 else operation.bias[None]
                    )
                parts = [operation.transposed(rows)]
            for before, part in zip(node.inputs, parts, strict=True):
                waiting[before] = dense(waiting[before]) + dense(part) if before in waiting else part
        rows = dense(waiting[0])
        return constant - _dot(rows, self.rounding[0], absolute=True) + self.region.least(rows)

    def relaxation(self, before: int) -> "Relaxation":
        """Of the ReLU of the node `before`."""
        lower, upper = self.lower[before].reshape(-1), self.upper[before].reshape(-1)
        either = ((lower < 0) & (upper > 0)).nonzero()[:, 0]
        low, high = lower[either], upper[either]
        passes = (lower >= 0).double()
        ratio = high / (high - low)
        return Relaxation(passes, either, (high > -low).double(), ratio, -ratio * low)


@dataclass(frozen=True)
class Relaxation:
    """Lines around a ReLU with inputs in [l, u]: entries with l >= 0 pass, those with u <= 0 are zero. Those of either
    sign, at the flat places `either` (U,), lie above slope * z and below ratio * z + intercept, the line through (l, 0) and
    (u, u). CROWN's slope is 1 where u > -l, else 0."""

    passes: torch.Tensor  # (size,) 1 or 0; 0 for entries of either sign
    either: torch.Tensor
    slope: torch.Tensor  # (U,), as the following
    ratio: torch.Tensor
    intercept: torch.Tensor

    def through(self, rows: torch.Tensor, slope: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients (R, ...) of the output -> those of the input, and the constant (R,). slope: (R, U), in [0, 1]."""
        flat = rows.flatten(1)
        part = flat[:, self.either]
        positive, negative = part.clamp_min(0), part.clamp_max(0)
        mixed = positive * (self.slope if slope is None else slope) + negative * self.ratio
        passed = (flat * self.passes).index_add_(1, self.either, mixed)
        return passed.reshape(rows.shape), negative @ self.intercept


def _dot(rows: Coefficients, values: torch.Tensor, absolute: bool = False) -> torch.Tensor:
    """rows (R, ...) . values (1, ...) -> (R,)"""
    if isinstance(rows, OneHot):
        chosen = values.flatten()[rows.index]
        return (rows.values.abs() if absolute else rows.values) * chosen
    flat = rows.flatten(1)
    return (flat.abs() if absolute else flat) @ values.flatten()


def _times(rows: Coefficients, factor: float) -> Coefficients:
    if isinstance(rows, OneHot):
        return OneHot(rows.index, rows.values * factor, rows.shape)
    return rows if factor == 1 else rows * factor


def _exactness(graph: Graph) -> list[int]:
    """For a box of inputs: 2 where the entries of a node vary independently, 1 where each interval is tight, else 0."""
    levels: list[int] = []
    for node in graph.nodes:
        given = [levels[place] for place in node.inputs]
        if node.operation is None:
            levels.append(2)
        elif isinstance(node.operation, (Relu, Scale)) or (
            isinstance(node.operation, Rearrange) and not node.operation.terms
        ):
            levels.append(given[0])
        else:
            levels.append(1 if isinstance(node.operation, Affine) and given[0] == 2 else 0)
    return levels
