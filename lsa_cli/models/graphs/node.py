"""Node: one operation of an ONNX graph, with its attributes as plain values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from lsa_cli.errors import CheckpointError
from lsa_cli.models.pickles.symbols import shown
from lsa_cli.registry import into

# A tensor that depends on the input or is a weight, or a numpy array: shapes and other numbers that stay on the host.
Value: TypeAlias = torch.Tensor | np.ndarray
Values = Sequence[Any]  # of each input; None: an optional one that is absent


class NotRead(CheckpointError):
    """The graph has an operation that lsa does not read, or not with these attributes."""


@dataclass(frozen=True)
class Node:
    """kind: the operator, with its domain unless that is ONNX's own. inputs: "" where an optional one is absent.

    path: of the module that it was exported from, "" where the file does not say.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int
    path: str = ""

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def numbers(self, name: str, values: Values, place: int) -> list[int] | None:
        """Whole numbers that are an attribute in old versions of an operator and an input in new ones; None if absent."""
        if name in self.attributes:
            return [int(number) for number in self.attributes[name]]
        value = values[place] if len(values) > place else None
        return None if value is None else [int(number) for number in self.host(value).reshape(-1)]

    def present(self, name: str, values: Values, place: int) -> list[int]:
        """The same, of an attribute or input that every version of the operator has."""
        found = self.numbers(name, values, place)
        if found is None:
            raise self.refused(f"without its {name}")
        return found

    def number(self, name: str, values: Values, place: int, default: Any) -> Any:
        """One number that is an attribute in old versions of an operator and an input in new ones."""
        value = values[place] if len(values) > place else None
        return self.get(name, default) if value is None else value.item()

    def host(self, value: Value | None) -> np.ndarray:
        """A value that must not depend on the pixels of the input."""
        if not isinstance(value, np.ndarray):
            raise self.refused("with a shape or an index that is computed from the pixels")
        return value

    def refused(self, how: str = "") -> NotRead:
        """The error that names this node. how: with which attributes it is not read."""
        return NotRead(f"the operator {shown(self.kind)[1:-1]} (node {shown(self.name)}){' ' + how if how else ''}")


Operation = Callable[[Node, Values], Any]  # the output, or a sequence of several
OPERATIONS: dict[str, Operation] = {}
operation = into(OPERATIONS)  # registers a function for the operators that it names


def are_host(values: Values) -> bool:
    return all(value is None or isinstance(value, np.ndarray) for value in values)


def as_tensors(values: Values) -> list[torch.Tensor]:
    """Values as tensors on one device. Arrays become tensors; whole numbers keep their type."""
    device = next((value.device for value in values if isinstance(value, torch.Tensor)), torch.device("cpu"))
    found = [torch.as_tensor(value, device=device) for value in values if value is not None]
    return [value.float() if value.dtype == torch.float64 else value for value in found]


def tensor_of(value: Value | None) -> torch.Tensor:
    (found,) = as_tensors([value])
    return found
