"""CROWN: bounds of a network over a ball by linear relaxation of its ReLUs (arXiv 1811.00866), for a batch of samples.

Intervals come first (forward); a backward pass then tightens those of the ReLU inputs that may have either sign. The
upper ends come first: an entry that cannot be positive needs no other bound. Rows of convolutions are boxes (`coefficients`).

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

from lsa_cli.attacks.threat import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, Threat, as_rows
from lsa_cli.proofs.coefficients import Coefficients, OneHot, Patches, dot, plus, rows_of, values_of, with_values
from lsa_cli.proofs.graph import Graph
from lsa_cli.proofs.operations import Affine, MaxPool, Rearrange, Relu, Scale, Sum
from lsa_cli.proofs.relaxations import Lines, Slopes, lines

FLOAT32, FLOAT64 = 2.0**-24, 2.0**-36  # 2^-36 holds sums of 2^17 terms in float64
TINY = 1e-30  # results below the smallest float32
LARGEST = 2**22  # bytes of the coefficients of one node in a backward pass; a pass holds a few such tensors
MOST_KEPT = 2**26  # bytes of those of all nodes, which a gradient keeps, several times
# Coefficients that the backward passes of one sample may compute (about 8 s of one core), and how many times as many
# count where slopes are optimised for hidden layers.
WORK, DEARER = 2**30, 20

FEWEST = 16  # entries of a node by which an estimate judges the others

# (bounds, place, rows, sample, least) -> least
Improve = Callable[["Bounds", int, Coefficients, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Region:
    """The inputs of each sample: a ball around x within a box. Both are wider than those of a threat model by twice its
    tolerance, so that they hold every input that `Threat.contains` accepts. Tensors are (B, ...) in float64; radius (B,)."""

    x: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    radius: torch.Tensor
    order: float  # of the norm

    @classmethod
    def of(cls, x: torch.Tensor, eps: torch.Tensor, threat: Threat) -> "Region":
        """eps: (B,)."""
        x = x.double()
        radius = eps.double() * (1 + 2 * RELATIVE_TOLERANCE) + 2 * ABSOLUTE_TOLERANCE
        low, high = x - as_rows(radius, x), x + as_rows(radius, x)
        if threat.bounds is not None:
            bottom, top = threat.bounds
            low = torch.minimum(low.clamp_min(bottom - 2 * ABSOLUTE_TOLERANCE), x)
            high = torch.maximum(high.clamp_max(top + 2 * ABSOLUTE_TOLERANCE), x)
        return cls(x, low, high, radius, threat._order)

    def __getitem__(self, samples: torch.Tensor) -> "Region":
        return Region(self.x[samples], self.low[samples], self.high[samples], self.radius[samples], self.order)

    def least(self, rows: Coefficients, sample: torch.Tensor) -> torch.Tensor:  # (R, ...) -> (R,)
        """A lower bound of rows . x over the region: the larger one of those over the box and over the ball."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        values = values_of(rows)
        box = dot(rows, middle, sample) - dot(with_values(rows, values.abs()), half, sample)
        if math.isinf(self.order):
            return box
        dual = torch.linalg.vector_norm(values.flatten(1), ord=2 if self.order == 2 else math.inf, dim=1)
        return torch.maximum(box, dot(rows, self.x, sample) - self.radius[sample] * dual)


@dataclass
class Bounds:
    """The intervals of every node: lower and upper (B, ...) by place, and the half widths of rounding.

    work: what is left of it for each sample (B,). cost: by place, the largest number of coefficients of one node in one row
    of a backward pass, and that of all nodes."""

    graph: Graph
    region: Region
    lower: list[torch.Tensor] = field(default_factory=list)
    upper: list[torch.Tensor] = field(default_factory=list)
    rounding: list[torch.Tensor] = field(default_factory=list)
    work: torch.Tensor = field(default_factory=lambda: torch.tensor([WORK]))
    improve: Improve | None = None
    stride: int = 1
    cost: dict[int, tuple[int, int]] = field(default_factory=dict)
    _lines: dict[int, Lines] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, region: Region, improve: Improve | None = None, stride: int = 1) -> "Bounds":
        """improve: makes the bounds of hidden layers tighter, as `slopes.optimised` does.

        stride: only one of so many entries is bounded by a backward pass; 0: none. With more than 1 the others get an interval
        that is tighter by as much as those on average: an estimate, which bounds nothing.
        """
        work = torch.full((len(region.x),), WORK, device=region.x.device)
        bounds = cls(graph, region, work=work, improve=improve, stride=stride)
        exact = _exactness(graph) if math.isinf(region.order) else [0] * len(graph.nodes)
        refined = set()
        for place, node in enumerate(graph.nodes):
            if isinstance(node.operation, Relu):
                (before,) = node.inputs
                if stride and node.operation.refined and not exact[before] and before not in refined:
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
        elif isinstance(operation, MaxPool):
            below, above = (operation.windows(ends[0]).amax(0) for ends in (low, high))
            size = torch.maximum(below.abs(), above.abs())
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

        The node keeps its wider interval for a sample for which not enough work is left.
        """
        shape = self.graph.nodes[place].shape
        lower, upper = self.lower[place].flatten(1), self.upper[place].flatten(1)
        wanted = either = _by_place(((lower < 0) & (upper > 0)).reshape(-1, *shape))
        if self.stride > 1:
            either = either[_spread(either[:, 0], self.stride)]
        either = self._affordable(place, either)
        width = upper - lower
        for sign, ends in ((-1.0, upper), (1.0, lower)):
            either = either[upper[tuple(either.T)] > 0]
            if not len(either):
                break
            sample, index = either.T
            rows = OneHot(index, torch.full((len(index),), sign, dtype=torch.double, device=index.device), shape)
            before = sign * ends[sample, index]
            least = torch.fmax(before, self.least(place, rows, sample))
            if self.improve is not None:
                least = self.improve(self, place, rows, sample, least)
            if self.stride > 1:
                gained = ((least - before) / width[sample, index]).nan_to_num()
                ends[tuple(wanted.T)] += sign * (_mean(gained, sample, len(ends))[:, None] * width)[tuple(wanted.T)]
            ends[sample, index] = sign * least
        self.lower[place], self.upper[place] = lower.reshape(-1, *shape), upper.reshape(-1, *shape)

    def _affordable(self, place: int, either: torch.Tensor) -> torch.Tensor:
        """The entries (U, 2) of a node, by sample and place, of the samples for which enough work is left. Takes it."""
        if not len(either):
            return either
        one = either[:1]
        row = OneHot(one[:, 1], one.new_ones(1, dtype=torch.double), self.graph.nodes[place].shape)
        self._measure(place, row, one[:, 0])
        work = either[:, 0].bincount(minlength=len(self.work)) * 2 * self.cost[place][1]
        work *= 1 if self.improve is None else DEARER
        enough = work <= self.work
        self.work -= torch.where(enough, work, 0)
        return either[enough[either[:, 0]]]

    def _measure(self, place: int, rows: Coefficients, sample: torch.Tensor) -> None:
        """The cost of a backward pass from a node, where it is not known yet: one row tells."""
        if place not in self.cost:
            one = torch.zeros(1, dtype=torch.long, device=sample.device)
            self.sloped(place, rows_of(rows, one), sample[:1], None)

    def rows_at_once(self, place: int, kept: bool = False) -> int:
        """Rows of a backward pass from a node whose coefficients of any node take at most LARGEST bytes. kept: those of all
        nodes stay, for a gradient, and take at most MOST_KEPT."""
        largest, together = self.cost[place]
        return max(1, MOST_KEPT // (8 * together) if kept else LARGEST // (8 * largest))

    def least(self, place: int, rows: Coefficients, sample: torch.Tensor) -> torch.Tensor:  # (R, ...) -> (R,)
        """A lower bound of rows . z over the region, for the output z of the node at `place`.

        sample: (R,) ascending, of each row.
        """
        self._measure(place, rows, sample)
        parts = torch.arange(len(sample), device=sample.device).split(self.rows_at_once(place))
        return torch.cat([self.sloped(place, rows_of(rows, part), sample[part], None) for part in parts])

    def sloped(
        self, place: int, rows: Coefficients, sample: torch.Tensor, slopes: Slopes
    ) -> torch.Tensor:  # (R, ...) -> (R,)
        """As `least`, in one pass; slopes: by the places of ReLUs, those of their lower bounds for every coefficient, in place of
        CROWN's. The first pass adds CROWN's."""
        constant = torch.zeros((), dtype=torch.double)
        waiting: dict[int, Coefficients] = {place: rows}
        sizes = []
        for here in range(place, 0, -1):
            if here not in waiting:
                continue
            node, rows = self.graph.nodes[here], waiting.pop(here)
            operation = node.operation
            assert operation is not None  # only the first node has none
            sizes.append(values_of(rows)[0].numel())
            if here == place or operation.terms:
                constant = constant - _error(rows, self.rounding[here], sample)
            if isinstance(operation, Relu | MaxPool):
                rows, shift = self._through(here, rows, sample, slopes)
                constant = constant + shift
                parts = [rows]
            elif isinstance(operation, Sum):
                parts = [
                    rows if factor == 1 else with_values(rows, values_of(rows) * factor) for factor in operation.factors
                ]
            else:
                if operation.bias is not None:
                    constant = constant + dot(rows, operation.bias.expand(1, *node.shape), sample)
                parts = [operation.transposed(rows)]
            for before, part in zip(node.inputs, parts, strict=True):
                waiting[before] = plus(waiting[before], part) if before in waiting else part
        rows = waiting[0]
        sizes.append(values_of(rows)[0].numel())
        self.cost.setdefault(place, (max(sizes), sum(sizes)))
        return constant - _error(rows, self.rounding[0], sample) + self.region.least(rows, sample)

    def _through(
        self, here: int, rows: Coefficients, sample: torch.Tensor, slopes: Slopes
    ) -> tuple[Coefficients, torch.Tensor]:
        """Coefficients of the output of a ReLU or a max pooling -> those of its input, and the constant (R,)."""
        rows = rows.spread() if isinstance(rows, OneHot) else rows
        node = self.graph.nodes[here]
        (before,) = node.inputs
        assert isinstance(node.operation, Relu | MaxPool)
        if here not in self._lines:
            self._lines[here] = lines(node.operation, self.lower[before], self.upper[before])
        return self._lines[here].through(rows, sample, here, slopes)


def _by_place(chosen: torch.Tensor) -> torch.Tensor:  # (B, C, ...) bool -> (U, 2)
    """Sample and flat place of the chosen entries; all channels of one place of an image stand in a row."""
    count = chosen.shape[2:].numel()
    sample, place, channel = chosen.reshape(*chosen.shape[:2], count).transpose(1, 2).nonzero().T
    return torch.stack([sample, channel * count + place], 1)


def _spread(sample: torch.Tensor, stride: int) -> torch.Tensor:  # (U,) ascending -> (U,) bool
    """One of `stride` entries of each sample, and at least FEWEST where it has as many."""
    counts = sample.bincount()
    number = torch.arange(len(sample), device=sample.device) - (counts.cumsum(0) - counts)[sample]
    return number % (counts // FEWEST).clamp(1, stride)[sample] == 0


def _mean(values: torch.Tensor, sample: torch.Tensor, samples: int) -> torch.Tensor:  # (U,), (U,) -> (samples,)
    """Of the values of each sample; 0 where it has none."""
    sums = torch.zeros(samples, dtype=values.dtype, device=values.device).index_add_(0, sample, values)
    return sums / sample.bincount(minlength=samples).clamp_min(1)


def _error(rows: Coefficients, rounding: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """At least |rows| . rounding (R,): boxes take the largest of a channel for all its places."""
    sizes = with_values(rows, values_of(rows).abs())
    if not isinstance(sizes, Patches):
        return dot(sizes, rounding, sample)
    each = sizes.values.flatten(2).sum(2)
    return torch.linalg.vecdot(each, rounding.flatten(2).amax(2)[sample])


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
