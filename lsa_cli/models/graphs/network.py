"""GraphNetwork: the nodes of an ONNX graph in order, as modules and functions of torch."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

# The imports register operators.
from lsa_cli.models.batching import in_batches
from lsa_cli.models.graphs import operations, shapes  # noqa: F401
from lsa_cli.models.graphs.inputs import Input
from lsa_cli.models.graphs.layers import LAYERS, Around, Made
from lsa_cli.models.graphs.node import OPERATIONS, Node, NotRead, Value, are_host
from lsa_cli.models.pickles.symbols import shown

_OF_BATCH = ("Reshape", "Expand")  # whose second input is a shape that starts with the size of the batch
_QUANTIZED = re.compile("Quant|Integer|^QLinear")


@dataclass(frozen=True)
class Step:
    """One node that runs. path: of its module; None: it is a function. frees: the batch in its shape is that of the input.

    last: the names of values that no later step uses.
    """

    node: Node
    path: str | None
    before: Around | None
    frees: bool
    last: tuple[str, ...] = ()

    def run(self, network: nn.Module, values: Sequence[Any], count: int) -> Any:
        if self.path is not None:
            x = values[0] if self.before is None else self.before(values[0])
            return network.get_submodule(self.path)(x)
        if self.frees:
            values = [values[0], np.asarray([count, *values[1][1:]]), *values[2:]]
        return OPERATIONS[self.node.kind](self.node, values)


class GraphNetwork(nn.Module):
    """The network of a graph: images (N, C, H, W) -> its output, or a dictionary of several outputs by name.

    Its modules have the names of the graph's weights, or of its nodes. batch: the size of the batch to which inputs are
    brought, where the graph takes no other one; None: any.
    """

    def __init__(self, takes: Input, outputs: Sequence[str]) -> None:
        super().__init__()
        self.batch: int | None = None
        self._takes, self._outputs = takes, tuple(outputs)
        self._steps: list[Step] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._tensors: dict[str, str] = {}  # from the names in the graph to those of buffers

    def forward(self, x: torch.Tensor) -> Any:
        x = self._takes.arrange(x)
        return self._run(x) if self.batch is None else in_batches(self._run, x, self.batch)

    def _run(self, x: torch.Tensor) -> Any:
        values: dict[str, Any] = {**self._arrays, self._takes.name: x, "": None}
        values |= {name: getattr(self, buffer) for name, buffer in self._tensors.items()}
        for step in self._steps:
            names = step.node.inputs if step.path is None else step.node.inputs[:1]
            _keep(values, step.node, step.run(self, [values[name] for name in names], len(x)))
            for name in step.last:
                values.pop(name, None)
        found = {name: values[name] for name in self._outputs}
        return next(iter(found.values())) if len(found) == 1 else found


def _keep(values: dict[str, Any], node: Node, output: Any) -> None:
    outputs = output if isinstance(output, (list, tuple)) else [output]
    outputs = [np.asarray(value) if isinstance(value, np.generic) else value for value in outputs]
    values.update((name, value) for name, value in zip(node.outputs, outputs, strict=False) if name)


# ---- building ------------------------------------------------------------------------------------------


def build(
    nodes: Sequence[Node],
    constants: Mapping[str, Value],
    x: torch.Tensor,
    takes: Input,
    outputs: Sequence[str],
    batch: int | None,
) -> GraphNetwork:
    """The network, built while its nodes run on the example images x.

    batch: the fixed size of a batch that is made free; None where there is none, or it stays. Raises NotRead, with the node, where the graph has an operation that is not read.
    """
    network, x = GraphNetwork(takes, outputs), takes.arrange(x)
    values: dict[str, Any] = {**constants, takes.name: x, "": None}
    fixed, paths = set(constants), _wanted_paths(nodes)
    for node in nodes:
        absent = next((name for name in node.inputs if name not in values), None)
        if absent is not None:
            raise NotRead(f"the value {shown(absent)}, which nothing makes")
        if node.kind == "Concat" and batch is not None:
            values |= {name: _one_row(values[name], batch) for name in node.inputs if name in fixed}
        given = [values[name] for name in node.inputs]
        try:
            step = _step(network, node, given, fixed, paths[node.outputs[0]], batch)
            with torch.no_grad():
                _keep(values, node, step.run(network, given, len(x)))
        except NotRead:
            raise
        except Exception as error:  # torch raises anything for sizes and types that do not fit
            raise node.refused(f"with these inputs ({str(error).splitlines()[0][:120]})") from error
        if all(not name or name in fixed for name in node.inputs) and step.path is None:
            fixed.update(node.outputs)
        else:
            network._steps.append(step)
    _give_constants(network, {name: values[name] for name in fixed})
    return network.eval()


def _step(
    network: GraphNetwork, node: Node, values: Sequence[Any], fixed: set[str], path: str, batch: int | None
) -> Step:
    if node.kind in LAYERS and not are_host(values[:1]) and all(not name or name in fixed for name in node.inputs[1:]):
        made = LAYERS[node.kind](node, values)
        if made is not None:
            made = made if isinstance(made, Made) else Made(made)
            return Step(node, _add(network, made.module.eval(), path), made.before, False)
    if node.kind not in OPERATIONS:
        if _QUANTIZED.search(node.kind):
            raise node.refused("of a quantised network, through which no gradient flows; export the network in float32")
        raise node.refused("whose weights are computed" if node.kind in LAYERS else "")
    shape = values[1] if len(values) > 1 else None
    frees = batch is not None and node.kind in _OF_BATCH and node.inputs[0] not in fixed
    frees = frees and isinstance(shape, np.ndarray) and shape.ndim == 1 and shape.size > 0 and int(shape[0]) == batch
    return Step(node, None, None, frees)


def _one_row(value: Any, batch: int) -> Any:
    """A constant with the same row for each sample of a fixed batch, as one row, which `Concat` repeats."""
    same = (
        isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == batch and bool((value == value[:1]).all())
    )
    return value[:1] if same else value


def _give_constants(network: GraphNetwork, constants: dict[str, Any]) -> None:
    """Keep the constants that functions use, and note after which step each other value is not needed."""
    used = {name for step in network._steps if step.path is None for name in step.node.inputs}
    for name in sorted(used & constants.keys()):
        value = constants[name]
        if isinstance(value, np.ndarray):
            network._arrays[name] = value
        else:
            network._tensors[name] = f"constant_{len(network._tensors)}"
            network.register_buffer(network._tensors[name], value)
    needed = {*network._outputs}
    for place in reversed(range(len(network._steps))):
        step = network._steps[place]
        names = {*step.node.inputs, *step.node.outputs} - needed - {""}
        network._steps[place] = Step(step.node, step.path, step.before, step.frees, tuple(sorted(names)))
        needed |= names


# ---- names ---------------------------------------------------------------------------------------------


def _wanted_paths(nodes: Sequence[Node]) -> dict[str, str]:
    """The path of the module that each node becomes, by the first output of the node."""
    paths = {node.outputs[0]: _wanted_path(node) for node in nodes}
    parents = {path[:place] for path in paths.values() for place, letter in enumerate(path) if letter == "."}
    # A function in the code of a module that has modules itself.
    own = {node.outputs[0]: _plain(node.name.rpartition("/")[2] or node.kind) for node in nodes}
    return {name: f"{path}.{own[name]}" if path in parents else path for name, path in paths.items()}


def _wanted_path(node: Node) -> str:
    """That of its weight, else what PyTorch noted, else the name of the node: "/layer1/layer1.0/relu/Relu"."""
    weights = [name for name in node.inputs[1:2] if name.endswith(".weight")]
    if weights:
        path = weights[0].removesuffix(".weight")
    elif node.path:
        path = node.path
    else:
        *parts, last = node.name.strip("/").split("/")
        parts = parts if parts and last[:1].isupper() else [*parts, last]
        path = ""
        for part in parts:  # a part may repeat those before it
            path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
    return ".".join(_plain(part) for part in path.split(".") if part) or _plain(node.kind.lower())


def _plain(part: str) -> str:
    """A name that a module may have."""
    name = re.sub(r"\W", "_", part)[:80] or "_"
    return f"{name}_" if hasattr(GraphNetwork, name) or name.startswith(("constant_", "_")) else name


def _add(network: nn.Module, module: nn.Module, path: str) -> str:
    """Put a module at a path, or at one that is free with a number behind it. A module without weights is used again."""
    for number in itertools.count(1):
        wanted = path if number == 1 else f"{path}_{number}"
        *parents, name = wanted.split(".")
        place = network
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        if type(place) not in (nn.Module, GraphNetwork):  # a layer, in which there is no place for others
            path = path.replace(".", "_")
        elif not hasattr(place, name):
            place.add_module(name, module)
            return wanted
        elif _is_same(getattr(place, name), module):
            return wanted
    raise AssertionError


def _is_same(one: Any, other: nn.Module) -> bool:
    return type(one) is type(other) and repr(one) == repr(other) and next(iter(other.state_dict()), None) is None
