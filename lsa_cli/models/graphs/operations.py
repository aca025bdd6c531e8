"""Operators of ONNX that compute with numbers: arithmetic, comparisons, sums over dimensions."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lsa_cli.models.graphs.node import Node, Values, are_host, as_tensors, operation, tensor_of

# fmt: off
_BINARY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {  # of tensors, of arrays
    name: (function, function)
    for name, function in {
        "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Pow": operator.pow, "Equal": operator.eq,
        "Greater": operator.gt, "Less": operator.lt, "GreaterOrEqual": operator.ge, "LessOrEqual": operator.le,
        "And": operator.and_, "Or": operator.or_, "Xor": operator.xor,
    }.items()
} | {"Min": (torch.minimum, np.minimum), "Max": (torch.maximum, np.maximum), "Sum": (torch.add, np.add), "Mod": (torch.remainder, np.mod)}
_UNARY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "Abs": (torch.abs, np.abs), "Neg": (torch.neg, np.negative), "Sqrt": (torch.sqrt, np.sqrt), "Exp": (torch.exp, np.exp),
    "Log": (torch.log, np.log), "Reciprocal": (torch.reciprocal, np.reciprocal), "Floor": (torch.floor, np.floor),
    "Ceil": (torch.ceil, np.ceil), "Round": (torch.round, np.round), "Sign": (torch.sign, np.sign),
    "Not": (torch.logical_not, np.logical_not), "Sin": (torch.sin, np.sin), "Cos": (torch.cos, np.cos),
}
_REDUCED: dict[str, Callable[..., torch.Tensor]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceL1": lambda x, axes, keepdim: x.abs().sum(axes, keepdim),
    "ReduceL2": lambda x, axes, keepdim: x.square().sum(axes, keepdim).sqrt(),
    "ReduceSumSquare": lambda x, axes, keepdim: x.square().sum(axes, keepdim),
}
_REDUCED_ARRAYS: dict[str, Callable[..., Any]] = {"ReduceSum": np.sum, "ReduceProd": np.prod, "ReduceMax": np.max, "ReduceMin": np.min}
_FLOATS, _BOOL, _SIGNED = (1, 10, 11, 16), 9, (3, 5, 6, 7)  # of TensorProto.DataType
# fmt: on

# ---- arithmetic ----------------------------------------------------------------------------------------


@operation(*_BINARY)
def _binary(node: Node, values: Values) -> Any:
    of_tensors, of_arrays = _BINARY[node.kind]
    if are_host(values):
        first, *others = values
        function = of_arrays
    else:
        first, *others = as_tensors(values)
        function = of_tensors
    for other in others:
        first = function(first, other)
    return np.asarray(first) if are_host(values) else first


@operation("Div")
def _divide(node: Node, values: Values) -> Any:
    if are_host(values):
        a, b = values
        whole = np.issubdtype(a.dtype, np.integer) and np.issubdtype(b.dtype, np.integer)
        return np.trunc(a / b).astype(a.dtype) if whole else np.asarray(a / b)
    a, b = as_tensors(values)
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() or b.is_floating_point() else "trunc")


@operation("Mean")
def _mean(node: Node, values: Values) -> Any:
    tensors = as_tensors(values)
    return sum(tensors[1:], tensors[0]) / len(tensors)


@operation(*_UNARY)
def _unary(node: Node, values: Values) -> Any:
    of_tensors, of_arrays = _UNARY[node.kind]
    return np.asarray(of_arrays(values[0])) if are_host(values) else of_tensors(values[0])


@operation("Erf")
def _erf(node: Node, values: Values) -> Any:
    return torch.erf(tensor_of(values[0]))


@operation("Where")
def _where(node: Node, values: Values) -> Any:
    return np.where(*values) if are_host(values) else torch.where(*as_tensors(values))


@operation("MatMul")
def _multiply(node: Node, values: Values) -> Any:
    return torch.matmul(*as_tensors(values))


@operation("Gemm")
def _gemm(node: Node, values: Values) -> Any:
    a, b, *c = as_tensors(values)
    product = (a.T if node.get("transA") else a) @ (b.T if node.get("transB") else b)
    return node.get("alpha", 1.0) * product + (node.get("beta", 1.0) * c[0] if c else 0)


@operation("Einsum")
def _einsum(node: Node, values: Values) -> Any:
    return torch.einsum(node.get("equation"), *as_tensors(values))


@operation("Cast", "CastLike")
def _cast(node: Node, values: Values) -> Any:
    value, kind = values[0], node.get("to")
    if node.kind == "CastLike":
        kind = 1 if tensor_of(values[1]).is_floating_point() else 7
    if kind in _FLOATS:  # of any width: networks are audited in float32
        return value.astype(np.float32) if isinstance(value, np.ndarray) else tensor_of(value).float()
    if kind not in (*_SIGNED, _BOOL):
        raise node.refused(f"to the type {kind}")
    if isinstance(value, np.ndarray):
        return value.astype(bool if kind == _BOOL else np.int64)
    return tensor_of(value).to(torch.bool if kind == _BOOL else torch.int64)


# ---- over some dimensions ------------------------------------------------------------------------------


@operation(*_REDUCED, "ReduceProd")
def _reduce(node: Node, values: Values) -> Any:
    x = values[0]
    axes, keep = node.numbers("axes", values, 1), bool(node.get("keepdims", 1))
    if not axes:
        if node.get("noop_with_empty_axes"):
            return x
        axes = list(range(x.ndim))
    if isinstance(x, np.ndarray):
        if node.kind not in _REDUCED_ARRAYS:
            raise node.refused("of a shape")
        return np.asarray(_REDUCED_ARRAYS[node.kind](x, axis=tuple(axes), keepdims=keep))
    if node.kind not in _REDUCED:
        raise node.refused()
    return _REDUCED[node.kind](x, axes, keepdim=keep) if axes else x


@operation("ArgMax", "ArgMin")
def _arg(node: Node, values: Values) -> Any:
    function = torch.argmax if node.kind == "ArgMax" else torch.argmin
    return function(tensor_of(values[0]), node.get("axis", 0), bool(node.get("keepdims", 1)))


@operation("Softmax", "LogSoftmax")
def _softmax(node: Node, values: Values) -> Any:
    """Before version 13 over all dimensions from `axis` on."""
    x = tensor_of(values[0])
    function = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    return function(x.flatten(node.get("axis", 1)), -1).reshape(x.shape)


@operation("LpNormalization")
def _normalize(node: Node, values: Values) -> Any:
    x, axis = tensor_of(values[0]), node.get("axis", -1)
    return x / x.norm(node.get("p", 2), axis, keepdim=True)
