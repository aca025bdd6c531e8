"""Operators of ONNX that move numbers: shapes, parts, padding, resizing, and constants."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lsa_cli.models.graphs.node import Node, Values, are_host, as_tensors, operation, tensor_of

_MOST_NUMBERS = 2**26  # in an array that a graph makes of nothing
_RESIZED = {
    ("nearest", "asymmetric"): ("nearest", None), ("linear", "half_pixel"): ("bilinear", False),
    ("linear", "pytorch_half_pixel"): ("bilinear", False), ("linear", "align_corners"): ("bilinear", True),
    ("cubic", "half_pixel"): ("bicubic", False), ("cubic", "align_corners"): ("bicubic", True),
}  # fmt: skip


@operation("Identity", "Dropout")
def _same(node: Node, values: Values) -> Any:
    """Dropout drops nothing after training."""
    return values[0]


@operation("Constant")
def _constant(node: Node, values: Values) -> Any:
    for name, kind in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32), ("value_floats", np.float32)):  # fmt: skip
        if name in node.attributes:
            return np.asarray(node.attributes[name], dtype=kind)
    raise node.refused("of this kind")


@operation("Shape")
def _shape(node: Node, values: Values) -> Any:
    value = values[0]
    return np.asarray(value.shape[node.get("start", 0) : node.get("end")], dtype=np.int64)


@operation("Size")
def _size(node: Node, values: Values) -> Any:
    value = values[0]
    return np.asarray(math.prod(value.shape), dtype=np.int64)


@operation("ConstantOfShape")
def _filled(node: Node, values: Values) -> Any:
    shape = node.host(values[0]).tolist()
    _refuse_large(node, shape)
    value = node.get("value")
    return np.full(shape, value.reshape(-1)[0]) if value is not None else np.zeros(shape, dtype=np.float32)


@operation("Range")
def _range(node: Node, values: Values) -> Any:
    start, end, step = (node.host(value).reshape(-1)[0] for value in values)
    _refuse_large(node, [max(0, int((end - start) / step))])
    return np.arange(start, end, step)


def _refuse_large(node: Node, shape: Sequence[int]) -> None:
    if math.prod(shape) > _MOST_NUMBERS or min(shape, default=0) < 0:
        raise node.refused(f"of shape {shape}")


@operation("Reshape")
def _reshape(node: Node, values: Values) -> Any:
    x, shape = values[0], node.present("shape", values, 1)
    if not node.get("allowzero"):
        shape = [x.shape[place] if size == 0 and place < x.ndim else size for place, size in enumerate(shape)]
    return x.reshape(shape)


@operation("Flatten")
def _flatten(node: Node, values: Values) -> Any:
    x, axis = tensor_of(values[0]), node.get("axis", 1)
    if axis == 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operation("Transpose")
def _transpose(node: Node, values: Values) -> Any:
    x = values[0]
    order = node.get("perm") or list(reversed(range(x.ndim)))
    return x.transpose(order) if isinstance(x, np.ndarray) else x.permute(order)


@operation("Squeeze")
def _squeeze(node: Node, values: Values) -> Any:
    x, axes = values[0], node.numbers("axes", values, 1)
    if axes is None:
        axes = [place for place, size in enumerate(x.shape) if size == 1]
    if isinstance(x, np.ndarray):
        return np.squeeze(x, tuple(axes))
    if any(x.shape[axis] != 1 for axis in axes):
        raise node.refused("of a dimension that is not 1")
    return x.squeeze(axes)


@operation("Unsqueeze")
def _unsqueeze(node: Node, values: Values) -> Any:
    x, axes = values[0], node.present("axes", values, 1)
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = np.expand_dims(x, axis) if isinstance(x, np.ndarray) else x.unsqueeze(axis)
    return x


@operation("Expand")
def _expand(node: Node, values: Values) -> Any:
    x, shape = values[0], node.present("shape", values, 1)
    _refuse_large(node, shape)
    shape = list(np.broadcast_shapes(tuple(x.shape), tuple(shape)))
    return np.broadcast_to(x, shape) if isinstance(x, np.ndarray) else x.expand(shape)


@operation("Tile")
def _tile(node: Node, values: Values) -> Any:
    x, counts = values[0], node.present("repeats", values, 1)
    _refuse_large(node, counts)
    return np.tile(x, counts) if isinstance(x, np.ndarray) else x.repeat(counts)


@operation("Concat")
def _concat(node: Node, values: Values) -> Any:
    axis = node.get("axis", 1)
    if are_host(values):
        return np.concatenate(values, axis)
    tensors = as_tensors(values)
    count = max(len(tensor) for tensor in tensors)
    if axis % tensors[0].ndim:  # a constant of a graph for one image is there once
        tensors = [tensor.expand(count, *tensor.shape[1:]) if len(tensor) == 1 else tensor for tensor in tensors]
    return torch.cat(tensors, axis)


@operation("Split")
def _split(node: Node, values: Values) -> Any:
    x, axis, sizes = values[0], node.get("axis", 0), node.numbers("split", values, 1)
    if sizes is None:
        size = math.ceil(x.shape[axis] / len(node.outputs))
        sizes = [min(size, x.shape[axis] - size * place) for place in range(len(node.outputs))]
    if isinstance(x, np.ndarray):
        return np.split(x, np.cumsum(sizes)[:-1], axis)
    return x.split(sizes, axis)


@operation("Slice")
def _slice(node: Node, values: Values) -> Any:
    x = values[0]
    starts, ends = node.present("starts", values, 1), node.present("ends", values, 2)
    axes = node.numbers("axes", values, 3) or list(range(len(starts)))
    steps = node.numbers("steps", values, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        taken = range(x.shape[axis])[slice(start, end, step)]
        if isinstance(x, np.ndarray):
            x = x.take(np.asarray(taken, dtype=np.int64), axis)
        elif step == 1:
            x = x.narrow(axis, taken.start, len(taken))
        else:
            x = x.index_select(axis, torch.as_tensor(list(taken), dtype=torch.int64, device=x.device))
    return x


@operation("Gather")
def _gather(node: Node, values: Values) -> Any:
    x, index = values[0], values[1]
    axis = node.get("axis", 0) % x.ndim
    if are_host(values):
        return np.take(x, index, axis)
    x = tensor_of(x)
    where = torch.as_tensor(index, device=x.device)
    where = torch.where(where < 0, where + x.shape[axis], where)
    if where.ndim == 0 and isinstance(index, np.ndarray):
        return x.select(axis, int(index))
    return x.index_select(axis, where.flatten()).reshape(*x.shape[:axis], *where.shape, *x.shape[axis + 1 :])


@operation("Pad")
def _pad(node: Node, values: Values) -> Any:
    x, pads = tensor_of(values[0]), node.present("pads", values, 1)
    value = node.number("value", values, 2, 0.0)
    axes = node.numbers("axes", values, 3) or list(range(x.ndim))
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(node.get("mode", "constant"))
    if mode is None:
        raise node.refused(f"in the mode {node.get('mode')}")
    before, after = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(axes):
        before[axis], after[axis] = pads[place], pads[place + len(axes)]
    both = [size for axis in reversed(range(x.ndim)) for size in (before[axis], after[axis])]
    if mode != "constant":  # of a picture, whose samples and channels are not padded
        if any(both[2 * (x.ndim - 2) :]):
            raise node.refused("of channels")
        return F.pad(x, both[: 2 * (x.ndim - 2)], mode)
    return F.pad(x, both, mode, value)


@operation("DepthToSpace")
def _depth_to_space(node: Node, values: Values) -> Any:
    x, size = tensor_of(values[0]), node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    count, channels, height, width = x.shape
    parts = x.reshape(count, size, size, channels // size**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(count, channels // size**2, height * size, width * size)


@operation("SpaceToDepth")
def _space_to_depth(node: Node, values: Values) -> Any:
    x, size = tensor_of(values[0]), node.get("blocksize")
    count, channels, height, width = x.shape
    parts = x.reshape(count, channels, height // size, size, width // size, size)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(count, channels * size**2, height // size, width // size)


@operation("Resize", "Upsample")
def _resize(node: Node, values: Values) -> Any:
    x = tensor_of(values[0])
    places = {"Upsample": (1, 9), "Resize": (1 if node.opset < 11 else 2, 3)}[node.kind]
    sizes = node.numbers("sizes", values, places[1])
    if sizes is None:
        scales = node.get("scales") or node.host(values[places[0]]).tolist()
        sizes = [math.floor(size * scale) for size, scale in zip(x.shape, scales, strict=True)]
    mode, place = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    if node.opset < 11:
        place = "asymmetric"
    if sizes[1] != x.shape[1] or node.get("antialias") or (mode, place) not in _RESIZED:
        raise node.refused(f"in the mode {mode}, {place}")
    kind, corners = _RESIZED[mode, place]
    if mode == "nearest" and node.opset >= 11 and node.get("nearest_mode", "round_prefer_floor") != "floor":
        raise node.refused("in the mode nearest with rounding")
    kind = {3: "linear", 4: kind}[x.ndim] if kind == "bilinear" else kind
    return F.interpolate(x, size=sizes[2:], mode=kind, align_corners=corners)
