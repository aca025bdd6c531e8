"""The operations that every network is read into: affine maps, sums, ReLU and max pooling.

They work on float64 tensors of shape (N, ...). A coefficient tensor (R, ...) has one row for each linear form that is bounded.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from lsa_cli.proofs.coefficients import Coefficients, OneHot, Patches, Shape, dense, values_of

Map = Callable[[torch.Tensor], torch.Tensor]


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
        if isinstance(rows, OneHot):
            factor = self.factor.expand(1, *self.shape).reshape(-1)[rows.index]
            return OneHot(rows.index, rows.values * factor, rows.shape)
        if isinstance(rows, Patches) and self.factor.shape[2:].numel() == 1:  # the same for all places of a channel
            return Patches(rows.values * self.factor, rows.corner, rows.shape)
        return dense(rows) * self.factor


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
        return dense(rows) @ self.weight.T


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
            channel, *places = torch.unravel_index(rows.index, self.out_shape)
            values = self._kernels[channel] * rows.values.reshape(-1, *[1] * len(self.shape))
            return Patches(values, self._start(torch.stack(places, 1)), self.shape).fitted()
        if isinstance(rows, Patches):
            zeros = [0] * len(self.stride)
            values = self._spread(rows.values, zeros, zeros)
            return Patches(values, self._start(rows.corner), self.shape).fitted()
        reach = [gap * (size - 1) for gap, size in zip(self.dilation, self.weight.shape[2:], strict=True)]
        sizes = zip(self.shape[1:], rows.shape[2:], self.stride, self.padding, reach, strict=True)
        rest = [size - ((out - 1) * step - 2 * pad + far + 1) for size, out, step, pad, far in sizes]
        return self._spread(rows, self.padding, rest)

    def _spread(self, rows: torch.Tensor, padding: Sequence[int], rest: Sequence[int]) -> torch.Tensor:
        return torch.ops.aten.convolution(
            rows, self.weight, None, self.stride, padding, self.dilation, True, rest, self.groups
        )

    def _start(self, places: torch.Tensor) -> torch.Tensor:  # (R, D) -> (R, D)
        """The first place of the input that the kernel at each place of the output reads."""
        step, pad = (torch.tensor(sizes, device=places.device) for sizes in (self.stride, self.padding))
        return places * step - pad

    @cached_property
    def _kernels(self) -> torch.Tensor:  # -> (out, in, *box)
        """The kernel of each channel over all channels of the input, with zeros between dilated entries."""
        out, each = self.weight.shape[:2]
        box = [gap * (size - 1) + 1 for gap, size in zip(self.dilation, self.weight.shape[2:], strict=True)]
        kernels = self.weight.new_zeros(out, self.groups, each, *box)
        group = torch.arange(out, device=self.weight.device) // (out // self.groups)
        own = self.weight.new_zeros(out, each, *box)
        own[(slice(None), slice(None), *(slice(None, None, gap) for gap in self.dilation))] = self.weight
        kernels[torch.arange(out, device=self.weight.device), group] = own
        return kernels.flatten(1, 2)


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
    """max(z, 0).

    refined: whether the bounds of z are worth a backward pass.
    """

    refined: bool = True
    terms: ClassVar[int] = 0


@dataclass(frozen=True)
class MaxPool:
    """The largest entry of each window of an image. Settings are per dimension.

    shape, out_shape: of one sample of the input and of the output.
    """

    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    shape: Shape
    out_shape: Shape
    terms: ClassVar[int] = 0

    def _cuts(self, outs: Sequence[int]) -> list[tuple[Any, ...]]:
        """For each place of the kernel: where it reads a padded image, for windows of these numbers."""
        settings = list(zip(self.dilation, self.stride, outs, strict=True))
        return [
            (..., *(slice(at * gap, at * gap + (out - 1) * step + 1, step) for at, (gap, step, out) in zip(place, settings, strict=True)))
            for place in itertools.product(*(range(size) for size in self.kernel))
        ]  # fmt: skip

    def _reach(self, outs: Sequence[int]) -> list[int]:
        """The size of the image that windows of these numbers read."""
        settings = zip(self.kernel, self.stride, self.dilation, outs, strict=True)
        return [(out - 1) * step + gap * (size - 1) + 1 for size, step, gap, out in settings]

    def windows(self, z: torch.Tensor) -> torch.Tensor:  # (N, *shape) -> (K, N, *out_shape)
        """The K entries of each window; those outside the image are -inf."""
        outs = self.out_shape[1:]
        after = [
            reach - size - pad for reach, size, pad in zip(self._reach(outs), z.shape[2:], self.padding, strict=True)
        ]
        ends = [end for pair in reversed(list(zip(self.padding, after, strict=True))) for end in pair]
        padded = F.pad(z, ends, value=-math.inf)
        return torch.stack([padded[cut] for cut in self._cuts(outs)])

    def transposed(self, rows: torch.Tensor | Patches, parts: Callable[[int], torch.Tensor]) -> Coefficients:
        """The coefficients of the input. parts: those of each entry k of the windows, of the shape of the rows."""
        values = values_of(rows)
        outs = values.shape[2:]
        spread = values.new_zeros(*values.shape[:2], *self._reach(outs))
        for number, cut in enumerate(self._cuts(outs)):
            spread[cut] += parts(number)
        if isinstance(rows, Patches):
            step, pad = (torch.tensor(sizes, device=values.device) for sizes in (self.stride, self.padding))
            return Patches(spread, rows.corner * step - pad, self.shape).fitted()
        settings = zip(self.shape[1:], self.padding, spread.shape[2:], strict=True)
        ends = [(-pad, size + pad - reach) for size, pad, reach in settings]
        return F.pad(spread, [end for pair in reversed(ends) for end in pair])


Operation = Affine | Sum | Relu | MaxPool
