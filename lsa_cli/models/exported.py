"""The network of a program of torch.export."""

import warnings
from typing import Any

import torch

from lsa_cli.layers import Wrapper
from lsa_cli.models.batching import in_batches

# Copies of a program copy the example tensors in its graph, which have no data.
warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")


class ExportedNetwork(Wrapper):
    """A program whose graph runs node by node, in modules with the names that they had when it was exported.

    So hooks see its layers. batch: the only size of a batch that it takes; None: any.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.network = torch.export.unflatten(program)
        self.batch = _fixed_batch(program)

    def forward(self, x: torch.Tensor) -> Any:
        return self.network(x) if self.batch is None else in_batches(self.network, x, self.batch)


def _fixed_batch(program: torch.export.ExportedProgram) -> int | None:
    """The first size of the first input, where it is a number and not a name."""
    first = program.graph_signature.user_inputs[0]
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == first)
    return shape[0] if isinstance(shape[0], int) else None
