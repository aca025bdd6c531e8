"""The coefficients of linear forms of one node of a graph: R rows, each a form of the node's output for one sample.

A row of a convolution reads a small box of its input. So rows of images are kept as that box (`Patches`) until it is as large as
the image; then they are tensors (R, *shape).
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn import functional as F

Shape = tuple[int, ...]


@dataclass(frozen=True)
class OneHot:
    """R rows with one entry each: `values` (R,) at the flat places `index` (R,) of a tensor of `shape`."""

    index: torch.Tensor
    values: torch.Tensor
    shape: Shape

    def dense(self) -> torch.Tensor:  # -> (R, *shape)
        rows = self.values.new_zeros(len(self.index), math.prod(self.shape))
        return rows.scatter(1, self.index[:, None], self.values[:, None]).reshape(-1, *self.shape)

    def spread(self) -> "Patches | torch.Tensor":
        """All channels at the place of the entry; dense rows where the node is no image."""
        if len(self.shape) < 2:
            return self.dense()
        channel, *corner = torch.unravel_index(self.index, self.shape)
        rows = self.values.new_zeros(len(channel), self.shape[0])
        rows = rows.scatter(1, channel[:, None], self.values[:, None])
        return Patches(rows.reshape(*rows.shape, *[1] * len(corner)), torch.stack(corner, 1), self.shape)


@dataclass(frozen=True)
class Patches:
    """R rows for images of `shape` (C, *sizes): `values` (R, C, *box) in a box whose first place is `corner` (R, D).

    A box may reach over the edges of the image; its entries are zero there.
    """

    values: torch.Tensor
    corner: torch.Tensor
    shape: Shape

    @property
    def _far(self) -> torch.Tensor:  # -> (R, D), the place after the last one
        return self.corner + torch.tensor(self.values.shape[2:], device=self.corner.device)

    def fitted(self) -> "Patches | torch.Tensor":
        """Rows with zeros outside the image; dense where the box is as large as the image."""
        if math.prod(self.values.shape[2:]) >= math.prod(self.shape[1:]):
            return self.dense()
        sizes = torch.tensor(self.shape[1:], device=self.corner.device)
        if bool((self.corner >= 0).all()) and bool((self._far <= sizes).all()):
            return self
        return Patches(self.values * self._inside(), self.corner, self.shape)

    def _places(self, number: int) -> torch.Tensor:  # -> (R, box)
        steps = torch.arange(self.values.shape[2 + number], device=self.corner.device)
        return self.corner[:, number, None] + steps

    def _inside(self) -> torch.Tensor:  # -> (R, 1, *box) bool
        inside = torch.ones(len(self.corner), 1, dtype=torch.bool, device=self.corner.device)
        for number, size in enumerate(self.shape[1:]):
            places = self._places(number)
            here = (places >= 0) & (places < size)
            inside = inside[..., None] & here.reshape(len(here), *[1] * (number + 1), -1)
        return inside

    def dense(self) -> torch.Tensor:  # -> (R, *shape)
        flat = torch.arange(self.shape[0], device=self.corner.device).expand(len(self.corner), -1)
        for number, size in enumerate(self.shape[1:]):
            places = self._places(number).clamp(0, size - 1)
            flat = flat[..., None] * size + places.reshape(len(places), *[1] * (number + 1), -1)
        rows = self.values.new_zeros(len(self.values), math.prod(self.shape))
        values = (self.values * self._inside()).flatten(1)
        return rows.scatter_add(1, flat.flatten(1), values).reshape(-1, *self.shape)

    def of(self, values: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The entries (R, C, *box) of the images `values` (B, *shape), each row those of its sample (R,); zero outside.

        Each box is read once for rows that follow each other.
        """
        places = torch.cat([sample[:, None], self.corner], 1)
        differ = (places[1:] != places[:-1]).any(1)
        if not bool(differ.all()):
            first = torch.cat([differ.new_ones(1), differ])
            box = Patches(self.values[first], self.corner[first], self.shape)
            return box.of(values, sample[first])[first.cumsum(0) - 1]
        before = (-self.corner).amax(0).clamp_min(0).tolist()
        after = (self._far.amax(0) - torch.tensor(self.shape[1:], device=self.corner.device)).clamp_min(0).tolist()
        pads = [pad for pair in zip(before, after, strict=True) for pad in pair]
        ends = [end for pair in reversed(list(zip(pads[::2], pads[1::2], strict=True))) for end in pair]
        windows = F.pad(values, ends) if any(ends) else values
        for number, size in enumerate(self.values.shape[2:]):
            windows = windows.unfold(2 + number, size, 1)
        places = [self.corner[:, number] + pad for number, pad in enumerate(before)]
        return windows[(sample, slice(None), *places)]

    def plus(self, other: "Patches") -> "Patches | torch.Tensor":
        """The sum of two, in a box that holds both; dense where their boxes lie differently from row to row."""
        apart = other.corner - self.corner
        if not bool((apart == apart[:1]).all()):
            return self.dense() + other.dense()
        start = torch.minimum(self.corner, other.corner)
        end = torch.maximum(self._far, other._far)
        padded = []
        for one in (self, other):
            ends = [*zip((one.corner - start)[0].tolist(), (end - one._far)[0].tolist(), strict=True)]
            padded.append(F.pad(one.values, [pad for pair in reversed(ends) for pad in pair]))
        return Patches(padded[0] + padded[1], start, self.shape).fitted()


Coefficients: TypeAlias = torch.Tensor | OneHot | Patches


def dense(rows: Coefficients) -> torch.Tensor:
    return rows if isinstance(rows, torch.Tensor) else rows.dense()


def plus(a: Coefficients, b: Coefficients) -> Coefficients:
    a, b = (rows.spread() if isinstance(rows, OneHot) else rows for rows in (a, b))
    return a.plus(b) if isinstance(a, Patches) and isinstance(b, Patches) else dense(a) + dense(b)


def values_of(rows: Coefficients) -> torch.Tensor:
    return rows if isinstance(rows, torch.Tensor) else rows.values


def with_values(rows: Coefficients, values: torch.Tensor) -> Coefficients:
    if isinstance(rows, Patches):
        return Patches(values, rows.corner, rows.shape)
    return OneHot(rows.index, values, rows.shape) if isinstance(rows, OneHot) else values


def rows_of(rows: Coefficients, chosen: torch.Tensor) -> Coefficients:
    if isinstance(rows, Patches):
        return Patches(rows.values[chosen], rows.corner[chosen], rows.shape)
    return OneHot(rows.index[chosen], rows.values[chosen], rows.shape) if isinstance(rows, OneHot) else rows[chosen]


def entries(rows: Coefficients, values: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """What each coefficient multiplies: the entries of `values` (B, ...) for the samples (R,), ascending, of the rows.

    Of the shape of `values_of(rows)`, or (1, ...) for dense rows of a single sample.
    """
    if len(values) == 1:
        sample = torch.zeros_like(sample)
    if isinstance(rows, Patches):
        return rows.of(values, sample)
    if isinstance(rows, OneHot):
        return values.flatten(1)[sample, rows.index]
    first, last = int(sample[0]), int(sample[-1])
    return values[first : first + 1] if first == last else values[sample]


def dot(rows: Coefficients, values: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """rows (R, ...) . values (B, ...), each row with the values of its sample -> (R,)"""
    found, given = values_of(rows), entries(rows, values, sample)
    if isinstance(rows, torch.Tensor) and len(given) == 1:
        return found.reshape(len(found), -1) @ given.flatten()  # a node may have the shape ()
    return torch.linalg.vecdot(found.flatten(1), given.flatten(1)) if found.ndim > 1 else found * given
