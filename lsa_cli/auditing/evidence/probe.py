"""Probe: a few samples that checks may spend passes on, and the network as the attacks see it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from lsa_cli.attacks import Attack, Threat
from lsa_cli.attacks.base import Model, input_gradient, undisturbed
from lsa_cli.attacks.losses import Loss, cross_entropy, margin
from lsa_cli.errors import NumericalError

FEW_ULP = 16  # float32 sums over a layer are off by a few units in the last place of the logits


@dataclass(frozen=True)
class Probe:
    """model: images -> (N, K) logits. x (N, ...), y (N,), index (N,) places in the data set; threat with one radius.
    batch_size: at most so many samples go through the network at once.
    """

    model: Model
    x: torch.Tensor
    y: torch.Tensor
    index: torch.Tensor
    threat: Threat
    seed: int = 0
    batch_size: int = 128

    def __len__(self) -> int:
        return len(self.x)

    def select(self, rows: torch.Tensor) -> "Probe":
        """These samples only: (N,) bool, or positions."""
        return dataclasses.replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows])

    def first(self, count: int) -> "Probe":
        return self.select(torch.arange(min(count, len(self)), device=self.x.device))

    def by_batch(self, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        """`function` of the tensors (N, ...), cut into batches; its results (N, ...) in one."""
        parts = [tensor.split(self.batch_size) for tensor in tensors]
        return torch.cat([function(*batch) for batch in zip(*parts, strict=True)])

    def look(self, x: torch.Tensor) -> torch.Tensor:  # (M, ...) -> (M, K)
        with torch.no_grad(), undisturbed(self.model):
            return self.by_batch(self.model, x)

    def margin(self, x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N,), positive where wrong
        """Of the network at these inputs. NaN, where no class is predicted, counts as wrong."""
        return margin(self.look(x), self.y).nan_to_num(torch.inf)

    def loss(self, x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N,)
        return cross_entropy(self.look(x), self.y)

    def run(self, attack: Attack, model: Model | None = None) -> torch.Tensor:  # -> (N, ...)
        """What the attack makes of the samples; model: another network to attack in the place of this one."""

        def perturb(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return attack(model or self.model, x, y, index=index, seed=self.seed, goal="break")

        with undisturbed(self.model):
            return self.by_batch(perturb, self.x, self.y, self.index)

    @cached_property
    def clean(self) -> torch.Tensor:  # (N, K)
        return self.look(self.x)

    @cached_property
    def gradient(self) -> torch.Tensor:  # (N, ...)
        """Of the loss that attacks climb; zero where it is not finite, or where autograd sees no way to the input."""
        return self.slope(self.x, cross_entropy)

    def slope(self, x: torch.Tensor, loss: Loss) -> torch.Tensor:  # (N, ...) -> (N, ...)
        """The gradient of a loss at these inputs, as `gradient`."""

        def of_batch(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            try:
                return input_gradient(self.model, x, y, loss)[0].nan_to_num(0, 0, 0)
            except NumericalError:
                return torch.zeros_like(x)

        with undisturbed(self.model), torch.enable_grad():
            return self.by_batch(of_batch, x, self.y)

    @property
    def resolution(self) -> torch.Tensor:  # (N,)
        """Changes of the loss up to this are rounding."""
        return FEW_ULP * torch.finfo(torch.float32).eps * self.clean.abs().amax(1)

    @property
    def full_range(self) -> float:
        """From the smallest input there can be to the largest; of inputs without a range, that there is."""
        low, high = self.threat.bounds or (float(self.x.min()), float(self.x.max()))
        return high - low
