"""Linear bounds of the operations that are not linear: ReLU and max pooling."""

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch

from lsa_cli.proofs.coefficients import Coefficients, Patches, dot, entries, values_of, with_values
from lsa_cli.proofs.operations import MaxPool, Relu

Slopes = MutableMapping[int, torch.Tensor] | None


@dataclass(frozen=True)
class LinesOfRelu:
    """Lines around a ReLU: slope * z below; ratio * z + intercept above, (B, ...) each.

    Entries z in [l, u] with l >= 0 pass, those with u <= 0 are zero. The line above the others goes through (l, 0) and
    (u, u). CROWN's slope is 1 where u > -l, else 0: the ratio, rounded.
    """

    ratio: torch.Tensor
    intercept: torch.Tensor

    @classmethod
    def of(cls, low: torch.Tensor, high: torch.Tensor) -> "LinesOfRelu":
        either = (low < 0) & (high > 0)
        ratio = torch.where(either, high / (high - low), (low >= 0).double())
        return cls(ratio, torch.where(either, -ratio * low, 0))

    def through(
        self, rows: torch.Tensor | Patches, sample: torch.Tensor, place: int, slopes: Slopes
    ) -> tuple[Coefficients, torch.Tensor]:
        """Coefficients of the output -> those of the input, and the constant (R,); see `Bounds.least`."""
        values = values_of(rows)
        ratio = entries(rows, self.ratio, sample)
        slope = ratio.round()
        if slopes is not None:
            if place not in slopes:
                slopes[place] = slope.expand_as(values).clone().requires_grad_(True)
            slope = torch.where(slope == ratio, slope, slopes[place])  # the ReLU itself
        shift = dot(with_values(rows, values.clamp_max(0)), self.intercept, sample)
        return with_values(rows, values * torch.where(values > 0, slope, ratio)), shift


@dataclass(frozen=True)
class LinesOfMaxPool:
    """Planes around the largest of z_k in [l_k, u_k], (B, ...) each: z at `lowest` below; ratio * z at `highest` + intercept
    above.

    Below: the entry with the largest middle. Above: i has the largest u, and t is the second largest u, at least l_i. Then
    max z <= max(z_i, t), which lies below the line through (l_i, t) and (u_i, u_i). No plane above is lower in the middle of
    the box (our choice; the papers take the constant u_i where no entry is always the largest).
    """

    operation: MaxPool
    lowest: torch.Tensor
    highest: torch.Tensor
    ratio: torch.Tensor
    intercept: torch.Tensor

    @classmethod
    def of(cls, operation: MaxPool, low: torch.Tensor, high: torch.Tensor) -> "LinesOfMaxPool":
        below, above = operation.windows(low), operation.windows(high)
        lowest, highest = (below + above).argmax(0), above.argmax(0)
        top, least = (ends.gather(0, highest[None])[0] for ends in (above, below))
        others = above.scatter(0, highest[None], -torch.inf).amax(0)
        second = torch.maximum(others, least)
        ratio = torch.where(top > least, (top - second) / (top - least), 0)
        return cls(operation, lowest, highest, ratio, second - ratio * least)

    def through(
        self, rows: torch.Tensor | Patches, sample: torch.Tensor, place: int, slopes: Slopes
    ) -> tuple[Coefficients, torch.Tensor]:
        """As `LinesOfRelu.through`; no slopes are optimised."""
        values = values_of(rows)
        lowest, highest, ratio = (entries(rows, z, sample) for z in (self.lowest, self.highest, self.ratio))
        positive, negative = values.clamp_min(0), values.clamp_max(0)
        shift = dot(with_values(rows, negative), self.intercept, sample)
        sloped = negative * ratio
        before = self.operation.transposed(
            rows, lambda k: torch.where(lowest == k, positive, 0) + torch.where(highest == k, sloped, 0)
        )
        return before, shift


Lines = LinesOfRelu | LinesOfMaxPool


def lines(operation: Relu | MaxPool, low: torch.Tensor, high: torch.Tensor) -> Lines:
    """low, high: intervals (B, ...) of the input."""
    return LinesOfRelu.of(low, high) if isinstance(operation, Relu) else LinesOfMaxPool.of(operation, low, high)
