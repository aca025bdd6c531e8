"""Builds the graph of a network: affine maps, sums, ReLU and max pooling, each for one sample of a batch."""

from collections.abc import Callable
from typing import Any

import torch

from lsa_cli.proofs.coefficients import Shape
from lsa_cli.proofs.graph import Graph, Interval, Node, NotProvable
from lsa_cli.proofs.operations import Operation, Rearrange, Relu, Scale, Sum

BATCH = 3  # samples in the pass that is read: a number that few networks have another use for
WHAT_CAN = (
    "lsa proves bounds for convolutions, linear layers, BatchNorm, ReLU and its piecewise linear kin, pooling, "
    "residual additions and reshaping"
)


AT_END = "has a bound only at the end of the network"


class Ref(int):
    """A place in the graph."""


class End(Ref):
    """The place of an output that no operation may follow."""


class Shares(End):
    """The place of the logits, where the network goes on to their softmax: no class overtakes another by it."""


def refusal(name: str, why: str) -> NotProvable:
    return NotProvable(f"the network's operation '{name}' {why}; {WHAT_CAN}", name)


def kernel_of(sizes: Any, dimensions: int) -> list[int]:
    """A size for each dimension: torch repeats a single one."""
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return sizes * dimensions if len(sizes) == 1 else sizes


class Builder:
    def __init__(self, shape: Shape, device: torch.device) -> None:
        """shape: of one input sample."""
        self.device = device
        self._nodes: list[Node] = []
        self.input = self.put(None, (), shape)

    def graph(self, logits: Any) -> Graph:
        if not isinstance(logits, Ref) or len(self.shape(logits)) != 1:
            raise NotProvable("the logits do not depend on the input through operations of torch")
        return Graph(tuple(self._nodes[: logits + 1]), isinstance(logits, Shares))

    def put(self, operation: Operation | None, inputs: tuple[int, ...], shape: Shape, **more: Any) -> Ref:
        self._nodes.append(Node(operation, inputs, tuple(shape), **more))
        return Ref(len(self._nodes) - 1)

    def shape(self, z: int) -> Shape:
        """Of one sample."""
        return self._nodes[z].shape

    def rearrange(self, z: Ref, linear: Callable[[torch.Tensor], torch.Tensor], terms: int = 0) -> Ref:
        """Raises NotProvable where `linear` mixes samples of a batch."""
        drawn = torch.Generator().manual_seed(0)
        batch = torch.rand(BATCH + 2, *self.shape(z), dtype=torch.double, generator=drawn).to(self.device)
        out = linear(batch)
        alone = [linear(sample[None]) for sample in batch]
        if len(out) != len(batch) or not torch.allclose(torch.cat(alone), out, rtol=1e-12, atol=0):
            raise NotProvable("the network mixes the samples of a batch, so that no sample has a bound of its own")
        return self.put(Rearrange(linear, self.shape(z), terms), (z,), tuple(out.shape[1:]))

    def scale(self, z: Ref, factor: Any = 1.0, bias: Any = None, terms: int = 2) -> Ref:
        """factor * z + bias with constants that broadcast against the batch."""
        ndim = len(self.shape(z))
        factor = self._constant(factor, ndim)
        bias = None if bias is None else self._constant(bias, ndim)
        out = torch.broadcast_shapes((1, *self.shape(z)), factor.shape, (1,) if bias is None else bias.shape)
        if len(out) != ndim + 1 or out[0] != 1:
            raise refusal("broadcasting", "mixes the samples of a batch")
        z = self._expanded(z, out[1:])
        return self.put(Scale(factor, bias, tuple(out[1:]), terms), (z,), tuple(out[1:]))

    def _constant(self, value: Any, ndim: int) -> torch.Tensor:
        """A constant in float64 for samples of `ndim` dimensions, with a leading dimension of 1."""
        tensor = torch.as_tensor(value).to(self.device, torch.double)
        if tensor.ndim <= ndim:
            return tensor.reshape(*[1] * (ndim + 1 - tensor.ndim), *tensor.shape)
        if len(tensor) == BATCH and not bool((tensor == tensor[:1]).all()):
            raise NotProvable("the network uses constants that differ between the samples of a batch")
        return tensor[:1]

    def sum(self, parts: list[tuple[float, Ref]], terms: int = 1, **more: Any) -> Ref:
        shape = torch.broadcast_shapes(*(self.shape(z) for _, z in parts))
        refs = [self._expanded(z, shape) for _, z in parts]
        return self.put(Sum(tuple(factor for factor, _ in parts), terms), tuple(refs), tuple(shape), **more)

    def _expanded(self, z: Ref, shape: Shape) -> Ref:
        if self.shape(z) == tuple(shape):
            return z
        if len(self.shape(z)) != len(shape):
            raise refusal("broadcasting", "mixes samples of a batch")
        return self.rearrange(z, lambda z: z.expand(len(z), *shape))

    def relu(self, z: Ref, refined: bool = True) -> Ref:
        if not self.shape(z):  # one number of each sample: its bounds are those of a vector
            vector = self.relu(self.rearrange(z, lambda z: z.reshape(-1, 1)), refined)
            return self.rearrange(vector, lambda z: z.reshape(-1))
        return self.put(Relu(refined), (z,), self.shape(z))

    def maximum(self, a: Ref, b: Ref) -> Ref:
        """max(a, b) = b + ReLU(a - b)."""

        def hull(a: Interval, b: Interval) -> Interval:
            return torch.maximum(a[0], b[0]), torch.maximum(a[1], b[1])

        over = self.relu(self.sum([(1, a), (-1, b)], terms=0), refined=False)
        return self.sum([(1, b), (1, over)], terms=0, hull=hull, hull_of=(a, b))
