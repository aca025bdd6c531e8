"""Several nodes that one module of torch computes: a linear layer with its bias, SiLU, hard swish, and GELU.

Exporters write these in parts. As one module they are layers like any other.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lsa_cli.models.graphs.node import Node, Value

_NEAR = 1e-4
_INPUTS = {"MatMul": 2, "Mul": 2, "Add": 2, "Sigmoid": 1, "HardSigmoid": 1, "Erf": 1}


def fuse(nodes: Sequence[Node], constants: Mapping[str, Value], outputs: Sequence[str]) -> list[Node]:
    """The nodes, with groups that are one layer replaced by one node, in the place of the last node of the group."""
    graph = _Graph(nodes, constants, outputs)
    for node in nodes:
        if len(node.inputs) != 2:
            continue
        if node.kind == "Add":
            graph.join_bias(node)
        elif node.kind == "Mul":
            graph.join_gate(node)
            graph.join_gelu(node)
    return [graph.joined.get(node.outputs[0], node) for node in nodes if node.outputs[0] not in graph.gone]


class _Graph:
    def __init__(self, nodes: Sequence[Node], constants: Mapping[str, Value], outputs: Sequence[str]) -> None:
        self.constants = constants
        self.maker = {name: node for node in nodes for name in node.outputs}
        self.uses = Counter([*outputs, *(name for node in nodes for name in node.inputs)])
        self.joined: dict[str, Node] = {}  # by the first output of the last node of a group
        self.gone: set[str] = set()  # first outputs of the other nodes

    def only(self, kind: str, name: str) -> Node | None:
        """The node of this kind that makes the value, if nothing else uses the value."""
        node = self.maker.get(name)
        fits = node is not None and node.kind == kind and len(node.inputs) == _INPUTS[kind] and self.uses[name] == 1
        return node if fits else None

    def is_number(self, name: str, number: float) -> bool:
        value = self.constants.get(name)
        return value is not None and math.prod(value.shape) == 1 and math.isclose(value.item(), number, rel_tol=_NEAR)

    def join(self, node: Node, kind: str, inputs: tuple[str, ...], parts: Sequence[Node], layer: Node) -> None:
        """layer: the part that has the name of the module."""
        self.joined[node.outputs[0]] = replace(layer, kind=kind, inputs=inputs, outputs=node.outputs, attributes={})
        self.gone |= {part.outputs[0] for part in parts}

    def join_bias(self, node: Node) -> None:
        """x @ weight + bias."""
        for product, bias in (node.inputs, reversed(node.inputs)):
            part, number = self.only("MatMul", product), self.constants.get(bias)
            weight = self.constants.get(part.inputs[1]) if part is not None else None
            if part is None or weight is None or number is None or isinstance(number, np.ndarray):
                continue
            if weight.ndim == 2 and tuple(number.shape) == (weight.shape[1],):
                self.join(node, "MatMul", (*part.inputs, bias), [part], part)
                return

    def join_gate(self, node: Node) -> None:
        """x * sigmoid(x)."""
        for x, gate in (node.inputs, reversed(node.inputs)):
            for kind, whole in (("Sigmoid", "Swish"), ("HardSigmoid", "HardSwish")):
                part = self.only(kind, gate)
                if part is None or part.inputs[0] != x:
                    continue
                if kind == "Sigmoid" or math.isclose(part.get("alpha", 0.2), 1 / 6, rel_tol=_NEAR):
                    self.join(node, whole, (x,), [part], node)
                    return

    def join_gelu(self, node: Node) -> None:
        """x * (1 + erf(x / sqrt 2)) * 0.5, in any order."""
        parts: list[Node] = []
        factors = [*node.inputs]
        for name in node.inputs:
            if (inner := self.only("Mul", name)) is not None:
                parts.append(inner)
                factors.remove(name)
                factors += inner.inputs
        for total in factors:
            others = [name for name in factors if name != total]
            added = self.only("Add", total)
            if added is None or len(others) != 2:
                continue
            x = next((name for name in others if not self.is_number(name, 0.5)), None)
            found = self._erf_of(added, x) if x is not None and len({*others} - {x}) == 1 else None
            if found is not None:
                assert x is not None
                self.join(node, "Gelu", (x,), [*parts, added, *found], node)
                return

    def _erf_of(self, added: Node, x: str) -> list[Node] | None:
        """The nodes of erf(x / sqrt 2), if the sum is 1 more than that."""
        for name, one in (added.inputs, reversed(added.inputs)):
            erf = self.only("Erf", name)
            inner = self.maker.get(erf.inputs[0]) if erf is not None and self.is_number(one, 1.0) else None
            if erf is None or inner is None or self.uses[inner.outputs[0]] != 1 or inner.inputs[:1] != (x,):
                continue
            scale = {"Div": math.sqrt(2), "Mul": math.sqrt(0.5)}.get(inner.kind)
            if scale is not None and len(inner.inputs) == 2 and self.is_number(inner.inputs[1], scale):
                return [erf, inner]
        return None
