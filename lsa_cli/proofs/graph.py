"""A network as a graph of affine maps, sums, ReLU and max pooling."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lsa_cli.errors import UsageError
from lsa_cli.proofs.coefficients import Shape
from lsa_cli.proofs.operations import MaxPool, Operation, Relu, Sum

Interval = tuple[torch.Tensor, torch.Tensor]


class NotProvable(UsageError):
    """A network with an operation that has no bound, or that is no fixed function of each sample. operation: its name."""

    def __init__(self, message: str, operation: str = "") -> None:
        super().__init__(message)
        self.operation = operation


@dataclass(frozen=True)
class Node:
    """One operation. inputs: places of its operands in the graph. shape: of the output for one sample.

    hull: a second interval of the output, as a function of the intervals of the nodes `hull_of`. It is tighter than that
    of the operation where a maximum or a clamp is written with ReLU.
    """

    operation: Operation | None  # None: the input of the network
    inputs: tuple[int, ...]
    shape: Shape
    hull: Callable[..., Interval] | None = None
    hull_of: tuple[int, ...] = ()


@dataclass(frozen=True)
class Graph:
    """The nodes in the order of computation. The first is the input (N, ...), the last one holds the logits (N, K).

    gives_shares: the network returns the softmax of the logits.
    """

    nodes: tuple[Node, ...]
    gives_shares: bool = False

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, K) float64
        values: list[torch.Tensor] = []
        for node in self.nodes:
            given = [values[place] for place in node.inputs]
            values.append(x.double() if node.operation is None else apply(node.operation, given))
        return values[-1]


def apply(operation: Operation, given: list[torch.Tensor]) -> torch.Tensor:
    """The output of an operation for operands (N, ...)."""
    if isinstance(operation, Relu):
        return given[0].relu()
    if isinstance(operation, MaxPool):
        return operation.windows(given[0]).amax(0)
    if isinstance(operation, Sum):
        return torch.stack([factor * z for factor, z in zip(operation.factors, given, strict=True)]).sum(0)
    out = operation.linear(given[0])
    return out if operation.bias is None else out + operation.bias
