"""The three operations that every network is read into: affine maps, sums and ReLU.

They work on float64 tensors of shape (N, ...). A coefficient tensor (R, ...) has one row for each linear form that is bounded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

import torch

Map = Callable[[torch.Tensor], torch.Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class OneHot:
    """R rows of coefficients with one entry each: `values` (R,) at the flat places `index` (R,) of a tensor of `shape`."""

    index: torch.Tensor
    values: torch.Tensor
    shape: Shape

    def dense(self) -> torch.Tensor:  # -> (R, *shape)
        rows = self.values.new_zeros(len(self.index), math.prod(self.shape))
        return rows.scatter_(1, self.index[:, None], self.values[:, None]).reshape(-1, *self.shape)


Coefficients: TypeAlias = torch.Tensor | OneHot


def dense(rows: Coefficients) -> torch.Tensor:
    return rows.dense() if isinstance(rows, OneHot) else rows


class Affine:
    """L z + bias with constant L. bias: a tensor that broadcasts against the output (1, ...), or None.

    terms: the number of float32 roundings that an output passes through, and so the number of terms of its sum.
    """

    bias: torch.Tensor | None
    terms: int

    def linear(self, z: torch.Tensor) -> torch.Tensor:  # (N, *in) -> (N, *out)
        raise NotImplementedError

    def absolute(self, z: torch.Tensor) -> torch.Tensor:  # (N, *in) -> (N, *out)
        """|L| z, with the absolute value of each coefficient."""
        raise NotImplementedError

    def transposed(self, rows: Coefficients) -> Coefficients:  # (R, *out) -> (R, *in)
        """The coefficients of z in rows . (L z)."""
        raise NotImplementedError

    def magnitude(self, z: torch.Tensor) -> torch.Tensor:  # (N, *in) -> (N, *out)
        """The sum of the absolute terms of each output, for inputs of absolute value at most z."""
        sums = self.absolute(z)
        return sums if self.bias is None else sums + self.bias.abs()


@dataclass(frozen=True)
class Rearrange(Affine):
    """A linear map without negative coefficients that torch computes: views, permutations, slices, padding, averages.

    shape: of one input sample.
    """

    map: Map
    shape: Shape
    terms: int = 0
    bias: None = None

    def linear(self, z: torch.Tensor) -> torch.Tensor:
        return self.map(z)

    def absolute(self, z: torch.Tensor) -> torch.Tensor:
        return self.map(z)

    def transposed(self, rows: Coefficients) -> Coefficients:
        rows = dense(rows)
        with torch.enable_grad():
            point = rows.new_zeros(len(rows), *self.shape, requires_grad=True)
            (result,) = torch.autograd.grad(self.map(point), point, rows, create_graph=rows.requires_grad)
        return result


@dataclass(frozen=True)
class Scale(Affine):
    """factor * z + bias, coordinate by coordinate. factor broadcasts against z (1, ...). shape: of one sample."""

    factor: torch.Tensor
    bias: torch.Tensor | None
    shape: Shape
    terms: int = 2

    def linear(self, z: torch.Tensor) -> torch.Tensor:
        return z * self.factor

    def absolute(self, z: torch.Tensor) -> torch.Tensor:
        return z * self.factor.abs()

    def transposed(self, rows: Coefficients) -> Coefficients:
        if isinstance(rows, torch.Tensor):
            return rows * self.factor
        factor = self.factor.expand(1, *self.shape).reshape(-1)[rows.index]
        return OneHot(rows.index, rows.values * factor, rows.shape)


@dataclass(frozen=True)
class Matrix(Affine):
    """z @ weight + bias on vectors: weight (in, out), bias (out,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def terms(self) -> int:  # type: ignore[override]
        return len(self.weight) + 1

    def linear(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.weight

    def absolute(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.weight.abs()

    def transposed(self, rows: Coefficients) -> Coefficients:
        if isinstance(rows, OneHot):
            return self.weight.T[rows.index] * rows.values[:, None]
        return rows @ self.weight.T


@dataclass(frozen=True)
class Convolution(Affine):
    """A convolution over any number of dimensions: weight (out, in / groups, *kernel), bias (1, out, 1, ...) or None.

    shape, out_shape: of one sample of the input and of the output.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int
    shape: Shape
    out_shape: Shape

    @property
    def terms(self) -> int:  # type: ignore[override]
        return self.weight[0].numel() + 1

    def _convolve(self, z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        zeros = [0] * len(self.stride)
        return torch.ops.aten.convolution(
            z, weight, None, self.stride, self.padding, self.dilation, False, zeros, self.groups
        )

    def linear(self, z: torch.Tensor) -> torch.Tensor:
        return self._convolve(z, self.weight)

    @cached_property
    def _absolute_weight(self) -> torch.Tensor:
        return self.weight.abs()

    def absolute(self, z: torch.Tensor) -> torch.Tensor:
        return self._convolve(z, self._absolute_weight)

    def transposed(self, rows: Coefficients) -> Coefficients:
        if isinstance(rows, OneHot):
            return self._kernels(rows.index) * rows.values.reshape(-1, *[1] * len(self.shape))
        sizes = zip(self.shape[1:], rows.shape[2:], self._settings(), strict=True)
        rest = [size - ((out - 1) * step - 2 * pad + reach + 1) for size, out, (step, pad, reach) in sizes]
        return torch.ops.aten.convolution(
            rows, self.weight, None, self.stride, self.padding, self.dilation, True, rest, self.groups
        )

    def _settings(self) -> list[tuple[int, int, int]]:
        """(stride, padding, distance between the first and the last entry of the kernel) of each dimension."""
        reach = [gap * (size - 1) for gap, size in zip(self.dilation, self.weight.shape[2:], strict=True)]
        return list(zip(self.stride, self.padding, reach, strict=True))

    def _kernels(self, index: torch.Tensor) -> torch.Tensor:  # (R,) -> (R, *in)
        """The rows of L for the outputs at these flat places: each is one kernel at its place."""
        channel, *places = torch.unravel_index(index, self.out_shape)
        kernels = self.weight[channel]
        inner = kernels.shape[1]
        start = channel // (len(self.weight) // self.groups) * inner
        flat = start[:, None] + torch.arange(inner, device=index.device)
        padded = [size + 2 * pad for size, pad in zip(self.shape[1:], self.padding, strict=True)]
        for number, (place, size) in enumerate(zip(places, padded, strict=True)):
            steps = torch.arange(kernels.shape[2 + number], device=index.device) * self.dilation[number]
            along = place[:, None] * self.stride[number] + steps
            flat = flat[..., None] * size + along.reshape(len(index), *[1] * (number + 1), -1)
        rows = kernels.new_zeros(len(index), self.shape[0] * math.prod(padded))
        rows = rows.scatter_(1, flat.flatten(1), kernels.flatten(1)).reshape(-1, self.shape[0], *padded)
        for number, (size, pad) in enumerate(zip(self.shape[1:], self.padding, strict=True)):
            rows = rows.narrow(2 + number, pad, size)
        return rows


@dataclass(frozen=True)
class LogSoftmax(Affine):
    """log_softmax of (N, K) without the number that it subtracts from all of a row, which no margin depends on."""

    terms: int = 4
    bias: None = None

    def linear(self, z: torch.Tensor) -> torch.Tensor:
        return z

    def absolute(self, z: torch.Tensor) -> torch.Tensor:
        return z

    def transposed(self, rows: Coefficients) -> Coefficients:
        return rows

    def magnitude(self, z: torch.Tensor) -> torch.Tensor:
        """What is subtracted is at most the largest absolute value plus log K, and is the same rounded number for all."""
        return (2 * z.amax(1, keepdim=True) + math.log(z.shape[1])).expand_as(z)


@dataclass(frozen=True)
class Sum:
    """The sum of the inputs, each times a number."""

    factors: tuple[float, ...]
    terms: int = 1


@dataclass(frozen=True)
class Relu:
    """max(z, 0), the only operation that is not linear.

    refined: whether the bounds of z are worth a backward pass. They are intervals for the many pairs of a max pooling.
    """

    refined: bool = True
    terms: ClassVar[int] = 0


Operation = Affine | Sum | Relu
