"""Operators of ONNX that become modules of torch: layers with weights, activations, norms and pools."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.models.graphs.node import Node, Values
from lsa_cli.registry import into

_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TRANSPOSED = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
_MAX_POOLS = {3: nn.MaxPool1d, 4: nn.MaxPool2d, 5: nn.MaxPool3d}
_AVERAGE_POOLS = {3: nn.AvgPool1d, 4: nn.AvgPool2d, 5: nn.AvgPool3d}
_GLOBAL = {
    "GlobalAveragePool": {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d},
    "GlobalMaxPool": {3: nn.AdaptiveMaxPool1d, 4: nn.AdaptiveMaxPool2d, 5: nn.AdaptiveMaxPool3d},
}
_SIXTH = 1e-6  # how near to 1/6 the slope of a hard sigmoid is written


@dataclass(frozen=True)
class Around:
    """What is added around a picture before a module. padding: as for torch's `pad`."""

    padding: Callable[[torch.Tensor], list[int]]
    filling: float = 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, self.padding(x), value=self.filling)


@dataclass(frozen=True)
class Made:
    """The module of a node, which takes its first input. before: what is done to that input, if anything."""

    module: nn.Module
    before: Around | None = None


# A module where the other inputs are constants of the graph, otherwise None.
Maker = Callable[[Node, Values], Made | nn.Module | None]
LAYERS: dict[str, Maker] = {}
_layer = into(LAYERS)


def _with(module: nn.Module, **tensors: torch.Tensor | None) -> nn.Module:
    """A module, made without memory, with these parameters and buffers."""
    for name, tensor in tensors.items():
        if tensor is not None and name in module._buffers:
            module._buffers[name] = tensor.detach().clone()
        elif tensor is not None:
            setattr(module, name, nn.Parameter(tensor.detach().clone()))
    return module


# ---- weights -------------------------------------------------------------------------------------------


@_layer("Conv", "ConvTranspose")
def _convolution(node: Node, values: Values) -> Made | None:
    _, weight, *rest = values
    bias = rest[0] if rest else None
    transposed, rank = node.kind == "ConvTranspose", weight.ndim
    kinds = _TRANSPOSED if transposed else _CONVOLUTIONS
    if rank not in kinds:
        raise node.refused(f"over {rank - 2} dimensions")
    groups, kernel = node.get("group", 1), tuple(weight.shape[2:])
    strides, dilations = _each(node, "strides", rank), _each(node, "dilations", rank)
    padding, around = _padding(node, kernel, strides, dilations)
    more: dict[str, Any] = {}
    if transposed:
        if around is not None or node.get("output_shape"):
            raise node.refused("with unequal padding or a given shape")
        more["output_padding"] = _each(node, "output_padding", rank, 0)
    first, second = weight.shape[0], weight.shape[1] * groups
    with torch.device("meta"):
        module = kinds[rank](
            first if transposed else second, second if transposed else first, kernel, strides, padding,
            dilation=dilations, groups=groups, bias=bias is not None, **more,
        )  # fmt: skip
    return Made(_with(module, weight=weight, bias=bias), around)


@_layer("Gemm")
def _gemm(node: Node, values: Values) -> nn.Module | None:
    _, weight, *rest = values
    bias = rest[0] if rest else None
    weight = node.get("alpha", 1.0) * (weight if node.get("transB") else weight.T)
    if node.get("transA") or (bias is not None and bias.numel() not in (1, len(weight))):
        return None
    if bias is not None:
        bias = node.get("beta", 1.0) * bias.flatten().expand(len(weight))
    return _linear(weight, bias)


@_layer("MatMul")
def _multiply(node: Node, values: Values) -> nn.Module | None:
    """x @ weight, or with a third input x @ weight + bias."""
    _, weight, *rest = values
    return _linear(weight.T, rest[0] if rest else None) if weight.ndim == 2 else None


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    with torch.device("meta"):
        module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _with(module, weight=weight, bias=bias)


# ---- norms ---------------------------------------------------------------------------------------------


@_layer("BatchNormalization")
def _batch_norm(node: Node, values: Values) -> nn.Module | None:
    x, scale, bias, mean, variance = values
    if node.get("training_mode") or x.ndim not in _BATCH_NORMS:
        raise node.refused("in training mode" if node.get("training_mode") else f"of {x.ndim} dimensions")
    with torch.device("meta"):
        module = _BATCH_NORMS[x.ndim](len(mean), node.get("epsilon", 1e-5))
    return _with(module, weight=scale, bias=bias, running_mean=mean, running_var=variance, num_batches_tracked=torch.tensor(0))  # fmt: skip


@_layer("InstanceNormalization")
def _instance_norm(node: Node, values: Values) -> nn.Module | None:
    x, scale, bias = values
    if x.ndim not in _INSTANCE_NORMS:
        raise node.refused(f"of {x.ndim} dimensions")
    with torch.device("meta"):
        module = _INSTANCE_NORMS[x.ndim](len(scale), node.get("epsilon", 1e-5), affine=True)
    return _with(module, weight=scale, bias=bias)


@_layer("GroupNormalization")
def _group_norm(node: Node, values: Values) -> nn.Module | None:
    """Before version 21 scale and bias are those of the groups."""
    x, scale, bias = values
    groups, channels = node.get("num_groups"), x.shape[1]
    with torch.device("meta"):
        module = nn.GroupNorm(groups, channels, node.get("epsilon", 1e-5))
    scale, bias = (part.repeat_interleave(channels // len(part)) for part in (scale, bias))
    return _with(module, weight=scale, bias=bias)


@_layer("LayerNormalization")
def _layer_norm(node: Node, values: Values) -> nn.Module | None:
    x, scale, *rest = values
    shape = tuple(x.shape[node.get("axis", -1) :])
    bias = rest[0] if rest else None
    if tuple(scale.shape) != shape or (bias is not None and tuple(bias.shape) != shape):
        raise node.refused("with a scale that is broadcast")
    with torch.device("meta"):
        module = nn.LayerNorm(shape, node.get("epsilon", 1e-5), bias=bias is not None)
    return _with(module, weight=scale, bias=bias)


@_layer("LRN")
def _local_response(node: Node, values: Values) -> nn.Module:
    return nn.LocalResponseNorm(node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0))  # fmt: skip


# ---- activations ---------------------------------------------------------------------------------------

_PLAIN = {
    "Relu": nn.ReLU, "Sigmoid": nn.Sigmoid, "Tanh": nn.Tanh, "HardSwish": nn.Hardswish, "Softplus": nn.Softplus,
    "Softsign": nn.Softsign, "Mish": nn.Mish,
}  # fmt: skip


@_layer(*_PLAIN)
def _activation(node: Node, values: Values) -> nn.Module:
    return _PLAIN[node.kind]()


@_layer("LeakyRelu")
def _leaky(node: Node, values: Values) -> nn.Module:
    return nn.LeakyReLU(node.get("alpha", 0.01))


@_layer("Elu", "Celu")
def _elu(node: Node, values: Values) -> nn.Module:
    return (nn.ELU if node.kind == "Elu" else nn.CELU)(node.get("alpha", 1.0))


@_layer("Selu")
def _selu(node: Node, values: Values) -> nn.Module:
    for name, usual in (("alpha", 1.6732632), ("gamma", 1.0507010)):
        if not math.isclose(node.get(name, usual), usual, rel_tol=1e-5):
            raise node.refused(f"with {name} {node.get(name)}")
    return nn.SELU()


@_layer("Gelu")
def _gelu(node: Node, values: Values) -> nn.Module:
    return nn.GELU(node.get("approximate", "none"))


@_layer("Swish")
def _swish(node: Node, values: Values) -> nn.Module:
    if node.get("alpha", 1.0) != 1:
        raise node.refused(f"with alpha {node.get('alpha')}")
    return nn.SiLU()


@_layer("HardSigmoid")
def _hard_sigmoid(node: Node, values: Values) -> nn.Module:
    slope, shift = node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(slope - 1 / 6) > _SIXTH or shift != 0.5:
        return _HardSigmoid(slope, shift)
    return nn.Hardsigmoid()


class _HardSigmoid(nn.Module):
    """max(0, min(1, slope x + shift)), as in Keras, whose slope is 0.2."""

    def __init__(self, slope: float, shift: float) -> None:
        super().__init__()
        self.slope, self.shift = slope, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.slope * x + self.shift).clamp(0, 1)


@_layer("ThresholdedRelu")
def _threshold(node: Node, values: Values) -> nn.Module:
    return nn.Threshold(node.get("alpha", 1.0), 0.0)


@_layer("PRelu")
def _prelu(node: Node, values: Values) -> nn.Module | None:
    x, slope = values
    if slope.numel() not in (1, x.shape[1]) or (slope.numel() > 1 and len(slope.squeeze().shape) != 1):
        raise node.refused("with a slope for each place")
    with torch.device("meta"):
        module = nn.PReLU(slope.numel())
    return _with(module, weight=slope.flatten())


@_layer("Clip")
def _clip(node: Node, values: Values) -> nn.Module | None:
    low, high = node.number("min", values, 1, -math.inf), node.number("max", values, 2, math.inf)
    if (low, high) == (0, math.inf):
        return nn.ReLU()
    if (low, high) == (0, 6):
        return nn.ReLU6()
    return nn.Hardtanh(low, high)


# ---- pools and the end ---------------------------------------------------------------------------------


@_layer("MaxPool")
def _max_pool(node: Node, values: Values) -> Made:
    x, kernel = values[0], tuple(node.get("kernel_shape"))
    if len(node.outputs) > 1:
        raise node.refused("with the places of the largest numbers")
    strides, dilations = _each(node, "strides", x.ndim), _each(node, "dilations", x.ndim)
    padding, around = _padding(node, kernel, strides, dilations, -math.inf)
    module = _MAX_POOLS[x.ndim](kernel, strides, padding, dilations, ceil_mode=bool(node.get("ceil_mode")))
    return Made(module, around)


@_layer("AveragePool")
def _average_pool(node: Node, values: Values) -> Made:
    x, kernel = values[0], tuple(node.get("kernel_shape"))
    strides, dilations = _each(node, "strides", x.ndim), _each(node, "dilations", x.ndim)
    padding, around = _padding(node, kernel, strides, dilations)
    counted, upwards = bool(node.get("count_include_pad")), bool(node.get("ceil_mode"))
    if max(dilations) > 1 or (around is not None and not counted):
        raise node.refused("with dilation, or with unequal padding that is not counted")
    return Made(_AVERAGE_POOLS[x.ndim](kernel, strides, padding, upwards, counted), around)


@_layer(*_GLOBAL)
def _global_pool(node: Node, values: Values) -> nn.Module:
    return _GLOBAL[node.kind][values[0].ndim](1)


@_layer("Softmax", "LogSoftmax")
def _softmax(node: Node, values: Values) -> nn.Module | None:
    """Before version 13, softmax is over all dimensions from `axis` on, which a module does for the last one alone."""
    rank = values[0].ndim
    axis = node.get("axis", -1 if node.opset >= 13 else 1) % rank
    if node.opset < 13 and axis != rank - 1:
        return None
    return nn.Softmax(axis) if node.kind == "Softmax" else nn.LogSoftmax(axis)


def _each(node: Node, name: str, rank: int, default: int = 1) -> tuple[int, ...]:
    """One number for each dimension of a picture."""
    return tuple(node.get(name) or (default,) * (rank - 2))


def _padding(
    node: Node, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...], filling: float = 0.0
) -> tuple[tuple[int, ...], Around | None]:
    """The padding of a module, equal on both sides; or none, and what to add around the input before."""
    none, how = (0,) * len(kernel), node.get("auto_pad", "NOTSET")
    if how == "VALID":
        return none, None
    if how.startswith("SAME"):
        reach = [step * (size - 1) + 1 for size, step in zip(kernel, dilations, strict=True)]
        return none, Around(lambda x: _same(x.shape[2:], strides, reach, how == "SAME_UPPER"), filling)
    pads = node.get("pads") or [0] * (2 * len(kernel))
    before, after = tuple(pads[: len(kernel)]), tuple(pads[len(kernel) :])
    too_wide = node.kind.endswith("Pool") and any(2 * pad > size for pad, size in zip(before, kernel, strict=True))
    if before == after and not too_wide:
        return before, None
    fixed = [size for pair in reversed(list(zip(before, after, strict=True))) for size in pair]
    return none, Around(lambda x: fixed, filling)


def _same(shape: tuple[int, ...], strides: tuple[int, ...], reach: list[int], more_after: bool) -> list[int]:
    """The padding for as many outputs as inputs / stride. more_after: the larger half comes after the picture."""
    found: list[int] = []
    for size, stride, covered in reversed(list(zip(shape, strides, reach, strict=True))):
        total = max(0, (math.ceil(size / stride) - 1) * stride + covered - size)
        less, more = total // 2, total - total // 2
        found += [less, more] if more_after else [more, less]
    return found
