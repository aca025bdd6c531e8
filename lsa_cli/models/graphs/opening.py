"""From the parsed model of an ONNX file to a network that agrees with onnxruntime."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lsa_cli.errors import CheckpointError, summary_of
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.models.graphs.fusing import fuse
from lsa_cli.models.graphs.inputs import Input
from lsa_cli.models.graphs.network import GraphNetwork, build
from lsa_cli.models.graphs.node import Node, NotRead, Value
from lsa_cli.models.pickles.symbols import shown

_OLDEST = 7  # version of the operators: since then shapes are broadcast as in numpy
_SIZES = (64, 32, 28, 224, 299)  # tried where the graph takes images of any size
_ON_HOST = ("Resize", "Upsample", "Pad")  # whose other inputs are numbers that decide shapes
_FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
_SAMPLES = 4
_SAME, _SAME_HALF = 1e-4, 2e-2  # of the largest output of a sample: in float32 and in half precision (our choice)


@dataclass(frozen=True)
class Opened:
    """network: of the graph. shape: of its images (C, H, W), () where any size will do. notes: for the report."""

    network: GraphNetwork
    shape: tuple[int, ...]
    notes: list[str]


def network_of(checkpoint: Checkpoint) -> Opened:
    """The network of an ONNX file, whose outputs on a few random inputs are those of onnxruntime.

    The batch of a graph that takes one size alone is made free where that changes no output; otherwise inputs are given
    in batches of that size. Raises CheckpointError for an operator that is not read, and where the outputs differ.
    """
    graph = _Graph(checkpoint)
    refusal: CheckpointError | None = None
    for shape in _shapes(graph.takes):
        x = _examples(shape)
        wanted: dict[str, np.ndarray] | None = None
        for batch in dict.fromkeys((None, graph.takes.batch)):
            try:
                network = graph.build(x, batch)
            except NotRead as error:
                refusal = refusal or error
                continue
            wanted = wanted or graph.runtime(x)
            apart = _apart(network, x, wanted)
            if apart <= graph.tolerance:
                return Opened(
                    network, shape if all(graph.takes.images) else (), _notes(graph.takes, batch, len(x), apart)
                )
            refusal = CheckpointError(
                f"{graph.path}: what lsa reads from this ONNX graph and what onnxruntime computes differ by {apart:.2g} of "
                f"the largest output on {len(x)} random inputs; audit the PyTorch network that it was exported from"
            )
    if isinstance(refusal, NotRead):
        refusal = CheckpointError(
            f"{graph.path}: lsa does not read {refusal}; audit the PyTorch network that it was exported from"
        )
    assert refusal is not None
    raise refusal


def _notes(takes: Input, batch: int | None, count: int, apart: float) -> list[str]:
    read = (
        f"network read node by node from the ONNX graph: on {count} random inputs its outputs differ from those of "
        f"onnxruntime by at most {apart:.1g} of the largest"
    )
    notes = [read]
    if takes.arrangement is not None:
        notes.append(takes.arrangement)
    if batch is not None:
        notes.append(
            f"the ONNX graph takes {batch} images at a time; it is given so many, and its layers are not shown; an export with a batch of any size shows them"
        )
    elif takes.batch is not None:
        notes.append(
            f"the ONNX graph takes {takes.batch} images at a time; lsa gives it any number, with the same outputs"
        )
    return notes


def _apart(network: GraphNetwork, x: torch.Tensor, wanted: dict[str, np.ndarray]) -> float:
    """The largest difference of an output, as a share of the largest output of the sample; infinite where it fails."""
    try:
        with torch.no_grad():
            found = network(x)
    except RuntimeError:  # of sizes, with a batch that the graph does not take
        return float("inf")
    found = found if isinstance(found, dict) else {next(iter(wanted)): found}
    apart = 0.0
    for name, expected in wanted.items():
        if tuple(found[name].shape) != expected.shape:
            return float("inf")
        one, other = (torch.as_tensor(value).double().reshape(len(x), -1) for value in (found[name], expected))
        share = (one - other).abs().amax(1) / other.abs().amax(1).clamp_min(1e-30)
        apart = max(apart, float(share.nan_to_num(float("inf")).max()))
    return apart


class _Graph:
    """A graph as nodes and constants, and the runtime that it is compared with."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path, self._checkpoint, model = checkpoint.path, checkpoint, checkpoint.graph
        versions = {entry.domain: entry.version for entry in model.opset_import}
        self.opset = versions.get("", versions.get("ai.onnx", 0))
        if self.opset < _OLDEST:
            raise CheckpointError(
                f"{self.path} has operators of version {self.opset}, older than {_OLDEST}; convert it with "
                "onnx.version_converter, or export it again"
            )
        if model.functions:
            raise CheckpointError(
                f"{self.path} defines functions of its own; write the model without them: "
                "onnx.save(onnx.inliner.inline_local_functions(onnx.load(FILE)), NEW_FILE)"
            )
        tensors = checkpoint.weights.tensors
        self._is_half = any(spec.dtype in ("float16", "bfloat16") for spec in tensors.values())
        self.takes = _input_of(checkpoint, model.graph)
        self._nodes = [_node(node, self.opset) for node in model.graph.node if not _is_held(node, tensors)]
        self._constants = self._read_constants()
        self._outputs = [output.name for output in model.graph.output if output.type.tensor_type.elem_type in _FLOATS]
        if not self._outputs:
            raise CheckpointError(
                f"{self.path} returns no scores of the classes; export it with its logits as an output"
            )
        odd = next(
            (node for node in self._nodes if not node.outputs or (not node.inputs and node.kind != "Constant")), None
        )
        if odd is not None:
            raise CheckpointError(f"{self.path} is a damaged ONNX model: {odd.refused('has no input or no output')}")
        self._nodes = fuse(self._nodes, self._constants, self._outputs)

    def _read_constants(self) -> dict[str, Value]:
        """Weights as tensors in float32; whole numbers, and what decides shapes, as arrays."""
        on_host = {name for node in self._nodes if node.kind in _ON_HOST for name in node.inputs[1:]}
        found: dict[str, Value] = {}
        for name, spec in self._checkpoint.weights.tensors.items():
            value = self._checkpoint.load(spec)
            if value.is_floating_point():
                value = value.float()
                if not torch.isfinite(value).all() and value.numel() > 1:
                    raise CheckpointError(
                        f"{self.path}: the tensor {shown(name)} holds NaN or infinity; the training diverged, take an earlier one"
                    )
            found[name] = value if value.is_floating_point() and name not in on_host else value.numpy()
        return found

    @property
    def tolerance(self) -> float:
        return _SAME_HALF if self._is_half or self.takes.dtype != "float32" else _SAME

    def build(self, x: torch.Tensor, batch: int | None) -> GraphNetwork:
        """The network for batches of any size, or of the fixed size `batch`. x: example images."""
        if batch is None:
            return build(self._nodes, self._constants, x, self.takes, self._outputs, self.takes.batch)
        few = x[torch.arange(batch) % len(x)]
        network = build(self._nodes, self._constants, few, self.takes, self._outputs, None)
        network.batch = batch
        return network

    def runtime(self, x: torch.Tensor) -> dict[str, np.ndarray]:
        """The outputs of onnxruntime for images x (N, C, H, W), in batches of the size that the graph takes."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        given = self.takes.arrange(x).contiguous().numpy().astype(self.takes.dtype)
        size = self.takes.batch or len(x)
        rest = np.repeat(given[-1:], -len(x) % size, axis=0)
        batches = np.split(np.concatenate([given, rest]), (len(given) + len(rest)) // size)
        try:
            session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
            found = [session.run(self._outputs, {self.takes.name: batch}) for batch in batches]
        except Exception as error:  # its errors have no common class
            raise CheckpointError(f"{self.path} does not run in onnxruntime: {summary_of(error)}") from error
        return {
            name: np.concatenate(parts)[: len(x)]
            for name, parts in zip(self._outputs, zip(*found, strict=True), strict=True)
        }


def _input_of(checkpoint: Checkpoint, graph: Any) -> Input:
    inputs = [value for value in graph.input if value.name not in checkpoint.weights.tensors]
    if len(inputs) != 1:
        raise CheckpointError(
            f"{checkpoint.path} takes {len(inputs)} inputs; lsa audits networks that take images alone"
        )
    (taken,) = inputs
    kind = taken.type.tensor_type
    if kind.elem_type not in _FLOATS:
        raise CheckpointError(
            f"{checkpoint.path} takes whole numbers (type {kind.elem_type}), through which no gradient flows; export the "
            "network without the conversion of its input"
        )
    shape = tuple(size.dim_value if size.dim_value > 0 else 0 for size in kind.shape.dim)
    if not 2 <= len(shape) <= 4:
        raise CheckpointError(
            f"{checkpoint.path} takes inputs of {len(shape)} dimensions, which are no batch of images"
        )
    return Input(taken.name, shape, "float32" if kind.elem_type == 16 else _FLOATS[kind.elem_type])


def _is_held(node: Any, tensors: Any) -> bool:
    """Whether it is a constant whose tensor is already among the weights."""
    return node.op_type == "Constant" and bool(node.output) and node.output[0] in tensors


def _node(node: Any, opset: int) -> Node:
    kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    noted = {entry.key: entry.value for entry in node.metadata_props} if hasattr(node, "metadata_props") else {}
    attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
    return Node(kind, node.name, tuple(node.input), tuple(node.output), attributes, opset, _path(noted))


def _attribute(attribute: Any) -> Any:
    from onnx import helper, numpy_helper

    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if type(value).__name__ == "TensorProto":
        return numpy_helper.to_array(value)
    return list(value) if not isinstance(value, (int, float)) and hasattr(value, "__iter__") else value


def _path(noted: dict[str, str]) -> str:
    """The path of the module that torch.onnx noted: of an activation module itself, or of the code that calls a function."""
    try:
        names = ast.literal_eval(noted.get("pkg.torch.onnx.name_scopes", "[]"))
        classes = ast.literal_eval(noted.get("pkg.torch.onnx.class_hierarchy", "[]"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        return ""
    own = str(classes[-2]) if isinstance(classes, list) and len(classes) == len(names) else ""
    *_, module, function = names
    is_function = not own.startswith("torch.nn.modules.") or own.startswith("torch.nn.modules.container.")
    return ".".join(filter(None, (module, function))) if is_function else module


def _shapes(takes: Input) -> Iterator[tuple[int, ...]]:
    """Sizes of images to try, the ones that the graph states alone where it does."""
    if not takes.images:
        if not all(takes.shape[1:]):
            raise CheckpointError(f"the ONNX graph does not say of which size its inputs are: {takes.shape}")
        yield takes.shape[1:]
        return
    channels, height, width = takes.images
    for count in [channels] if channels else [3, 1]:
        for size in [0] if height and width else _SIZES:
            yield count, height or size, width or size


def _examples(shape: tuple[int, ...]) -> torch.Tensor:
    """A few random inputs of different range: pixels in [0, 1] and in [0, 255], and normalised ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((_SAMPLES, *shape), generator=generator)
    x[1] = torch.randn(shape, generator=generator)
    x[2] = 2 * x[2] - 1
    x[3] *= 255
    return x
