"""How each operation of torch (ATen) that is no mere rearrangement is written with affine maps, sums, ReLU and max pooling."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from lsa_cli.proofs.builder import AT_END, Builder, End, Ref, Shares, kernel_of, refusal
from lsa_cli.proofs.graph import Interval
from lsa_cli.proofs.operations import Convolution, LogSoftmax, Matrix, MaxPool
from lsa_cli.registry import into

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}
# The decorated function reads the ATen operations of these names: (builder, *arguments) -> Ref, or several.
reads = into(HANDLERS)


@reads("_to_copy")
def _to_copy(build: Builder, z: Ref, **_: Any) -> Ref:
    return z


# ---- sums and products with constants ----


@reads("add")
def _add(build: Builder, a: Any, b: Any, *, alpha: float = 1) -> Ref:
    if isinstance(a, Ref) and isinstance(b, Ref):
        return build.sum([(1, a), (alpha, b)])
    return build.scale(a, 1.0, alpha * b) if isinstance(a, Ref) else build.scale(b, alpha, a)


@reads("sub")
def _sub(build: Builder, a: Any, b: Any, *, alpha: float = 1) -> Ref:
    return _add(build, a, b, alpha=-alpha)


@reads("rsub")
def _rsub(build: Builder, a: Any, b: Any, alpha: float = 1) -> Ref:
    return _sub(build, b, a, alpha=alpha)


@reads("neg")
def _neg(build: Builder, z: Ref) -> Ref:
    return build.scale(z, -1.0, terms=0)


@reads("mul")
def _mul(build: Builder, a: Any, b: Any) -> Ref:
    if isinstance(a, Ref) and isinstance(b, Ref):
        raise refusal("mul", "multiplies two values that depend on the input")
    return build.scale(a, b) if isinstance(a, Ref) else build.scale(b, a)


@reads("div")
def _div(build: Builder, a: Any, b: Any, **rounding: Any) -> Ref:
    if isinstance(b, Ref) or any(rounding.values()):
        raise refusal("div", "divides by a value that depends on the input, or rounds")
    return build.scale(a, 1 / torch.as_tensor(b).double())


@reads("mm")
def _mm(build: Builder, z: Any, weight: Any) -> Ref:
    return _addmm(build, None, z, weight)


@reads("addmm")
def _addmm(build: Builder, bias: Any, z: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Ref:
    if isinstance(weight, Ref) or isinstance(bias, Ref):
        raise refusal("matmul", "multiplies two values that depend on the input")
    bias = None if bias is None else beta * bias.double()
    return build.put(Matrix(alpha * weight.double(), bias), (z,), (weight.shape[1],))


@reads("convolution", "_convolution")
def _convolution(
    build: Builder, z: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, *_: Any,
) -> Ref:  # fmt: skip
    if transposed or isinstance(weight, Ref) or isinstance(bias, Ref):
        raise refusal("convolution", "is transposed" if transposed else "has weights that depend on the input")
    dimensions = weight.ndim - 2
    stride, padding, dilation = (tuple(kernel_of(sizes, dimensions)) for sizes in (stride, padding, dilation))
    shape = build.shape(z)
    empty = torch.ops.aten.convolution(
        torch.empty(1, *shape, device="meta"),
        weight.to("meta"),
        None,
        stride,
        padding,
        dilation,
        False,
        [0] * dimensions,
        groups,
    )
    out = tuple(empty.shape[1:])
    if bias is not None:
        bias = bias.double().reshape(1, -1, *[1] * dimensions)
    return build.put(Convolution(weight.double(), bias, stride, padding, dilation, groups, shape, out), (z,), out)


@reads("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
def _batch_norm(
    build: Builder, z: Ref, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> tuple[Ref]:
    if training:
        raise refusal("batch_norm", "uses the statistics of the batch")
    shape = (1, -1, *[1] * (len(build.shape(z)) - 1))
    factor = 1 / (var.double() + eps).sqrt()
    factor = factor if weight is None else factor * weight.double()
    shift = -mean.double() * factor
    shift = shift if bias is None else shift + bias.double()
    return (build.scale(z, factor.reshape(shape), shift.reshape(shape), terms=8),)


@reads("_native_batch_norm_legit_no_training")
def _batch_norm_of_eval(build: Builder, z: Ref, *settings: Any) -> tuple[Ref]:
    return _batch_norm(build, z, *settings[:4], False, *settings[4:])


# ---- ReLU and its kin ----


@reads("relu")
def _relu(build: Builder, z: Ref) -> Ref:
    return build.relu(z)


@reads("threshold")
def _threshold(build: Builder, z: Ref, at: float, value: float) -> Ref:
    if at != 0 or value != 0:
        raise refusal("threshold", "jumps")
    return build.relu(z)


@reads("leaky_relu", "prelu", "_prelu_kernel")
def _leaky_relu(build: Builder, z: Any, slope: Any = 0.01) -> Ref:
    """slope * z + (1 - slope) * ReLU(z)."""
    if isinstance(slope, Ref) or not isinstance(z, Ref):
        raise refusal("prelu", "has slopes that depend on the input")
    slope = torch.as_tensor(slope).double()
    if slope.ndim == 1:
        slope = slope.reshape(1, -1, *[1] * (len(build.shape(z)) - 1))
    return build.sum([(1, build.scale(z, slope)), (1, build.scale(build.relu(z), 1 - slope))])


@reads("abs")
def _abs(build: Builder, z: Ref) -> Ref:
    return _leaky_relu(build, z, -1.0)


@reads("hardtanh", "clamp")
def _clamp(build: Builder, z: Any, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Ref:
    """low + ReLU(z - low) - ReLU(z - high)."""
    low, high = low if min is None else min, high if max is None else max
    if not isinstance(z, Ref) or isinstance(low, Ref) or isinstance(high, Ref):
        raise refusal("clamp", "has limits that depend on the input")
    # Numbers are rounded to float32 first, as the network does.
    low, high = (None if end is None else torch.as_tensor(end).to(build.device, torch.double) for end in (low, high))
    out = z if low is None else build.scale(build.relu(build.scale(z, 1.0, -low, terms=1)), 1.0, low, terms=1)
    if high is None:
        return out
    over = build.relu(build.scale(z, 1.0, -high, terms=1))
    if low is not None and bool((low > high).any()):
        raise refusal("clamp", "has a lower limit above the upper one")

    def hull(interval: Interval) -> Interval:
        return interval[0].clamp(low, high), interval[1].clamp(low, high)

    return build.sum([(1, out), (-1, over)], hull=hull, hull_of=(z,))


@reads("clamp_min")
def _clamp_min(build: Builder, z: Ref, low: Any) -> Ref:
    return _clamp(build, z, low)


@reads("clamp_max")
def _clamp_max(build: Builder, z: Ref, high: Any) -> Ref:
    return _clamp(build, z, None, high)


@reads("hardsigmoid")
def _hardsigmoid(build: Builder, z: Ref) -> Ref:
    return _clamp(build, build.scale(z, 1 / 6, 0.5, terms=4), 0.0, 1.0)


@reads("maximum")
def _maximum(build: Builder, a: Any, b: Any) -> Ref:
    if not isinstance(a, Ref) or not isinstance(b, Ref):
        return _clamp(build, *((a, b) if isinstance(a, Ref) else (b, a)))
    return build.maximum(a, b)


@reads("minimum")
def _minimum(build: Builder, a: Any, b: Any) -> Ref:
    if not isinstance(a, Ref) or not isinstance(b, Ref):
        return _clamp(build, *((a, None, b) if isinstance(a, Ref) else (b, None, a)))
    return _neg(build, build.maximum(_neg(build, a), _neg(build, b)))


@reads("max_pool2d_with_indices")
def _max_pool(
    build: Builder, z: Ref, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Ref]:
    kernel, padding, dilation = (tuple(kernel_of(sizes, 2)) for sizes in (kernel, padding, dilation))
    stride = tuple(kernel_of(stride, 2)) if stride else kernel
    shape = build.shape(z)
    empty = F.max_pool2d(torch.empty(1, *shape, device="meta"), kernel, stride, padding, dilation, ceil_mode)
    out = tuple(empty.shape[1:])
    return (build.put(MaxPool(kernel, stride, padding, dilation, shape, out), (z,), out),)


@reads("adaptive_max_pool2d")
def _adaptive_max_pool(build: Builder, z: Ref, sizes: Any) -> tuple[Ref]:
    shape = build.shape(z)
    if any(size % out for size, out in zip(shape[1:], sizes, strict=True)):
        raise refusal("adaptive_max_pool2d", "has windows of different sizes")
    return _max_pool(build, z, [size // out for size, out in zip(shape[1:], sizes, strict=True)])


@reads("_log_softmax")
def _log_softmax(build: Builder, z: Ref, dim: int, half_to_float: bool) -> End:
    return End(_normalised(build, z, dim, "log_softmax"))


@reads("_softmax")
def _softmax(build: Builder, z: Ref, dim: int, half_to_float: bool) -> Shares:
    """The logits, in place of the shares, which have the same order.

    The larger logit has the larger share in float32, also after a logarithm, where the logits differ by more than the errors
    of the exponential, the quotient and the logarithm: 2^-24 (2 max |z| + 4 + 4 log K). `LogSoftmax` subtracts more.
    """
    return Shares(_normalised(build, z, dim, "softmax", terms=16))


def _normalised(build: Builder, z: Ref, dim: int, name: str, terms: int = 4) -> Ref:
    shape = build.shape(z)
    if len(shape) != 1 or dim not in (1, -1):
        raise refusal(name, AT_END)
    return build.put(LogSoftmax(terms), (z,), shape)


# ---- joining and cutting ----


@reads("cat")
def _cat(build: Builder, parts: Any, dim: int = 0) -> Ref:
    """The sum of the parts, each padded with zeros to the size of the whole."""
    ndim = 1 + max(len(build.shape(part)) if isinstance(part, Ref) else part.ndim - 1 for part in parts)
    dim %= ndim
    if dim == 0:
        raise refusal("cat", "mixes the samples of a batch")
    sizes = [build.shape(part)[dim - 1] if isinstance(part, Ref) else part.shape[dim] for part in parts]
    after = [0, 0] * (ndim - 1 - dim)
    refs, constants = [], []
    for number, part in enumerate(parts):
        pad = [*after, sum(sizes[:number]), sum(sizes[number + 1 :])]
        if isinstance(part, Ref):
            refs.append((1.0, build.rearrange(part, partial(F.pad, pad=pad))))
        else:
            constants.append(F.pad(part.double(), pad))
    joined = build.sum(refs, terms=0) if len(refs) > 1 else refs[0][1]
    return build.scale(joined, 1.0, sum(constants), terms=0) if constants else joined


@reads("constant_pad_nd")
def _pad(build: Builder, z: Ref, pad: Any, value: float = 0.0) -> Ref:
    padded = build.rearrange(z, partial(F.pad, pad=pad))
    if value == 0:
        return padded
    zeros = torch.zeros(1, *build.shape(z), dtype=torch.double)
    return build.scale(padded, 1.0, F.pad(zeros, pad, value=value), terms=0)


@reads("split", "split_with_sizes")
def _split(build: Builder, z: Ref, sizes: Any, dim: int = 0) -> list[Ref]:
    dim %= 1 + len(build.shape(z))
    if dim == 0:
        raise refusal("split", "mixes the samples of a batch")
    total = build.shape(z)[dim - 1]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [
        build.rearrange(z, partial(torch.narrow, dim=dim, start=at, length=size))
        for at, size in zip(starts, sizes, strict=True)
    ]
