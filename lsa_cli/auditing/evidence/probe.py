"""Probe: the few samples that checks spend queries on, and the network as attacks see it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from lsa_cli.attacks import Attack, Threat
from lsa_cli.attacks.base import Model, slope, undisturbed
from lsa_cli.attacks.ensemble import confined
from lsa_cli.attacks.losses import Loss, cross_entropy, decision_margin
from lsa_cli.auditing.contradiction import refuse_contradictions
from lsa_cli.errors import NumericalError
from lsa_cli.wording import eps_as_text

FEW_ULP = 16  # float32 sums over a layer are off by a few units in the last place of the logits


def gradient_and_logits(
    model: Model, x: torch.Tensor, y: torch.Tensor, loss: Loss
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The gradient (N, ...) of a loss at x (N, ...), None where autograd finds no path to the input; and the logits (N, K)."""
    with undisturbed(model), torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        logits = model(leaf)
        try:
            gradient = slope(loss(logits, y).sum(), leaf)
        except NumericalError:
            gradient = None
    return gradient, logits.detach()


def finite_gradient(model: Model, x: torch.Tensor, y: torch.Tensor, loss: Loss) -> tuple[torch.Tensor, torch.Tensor]:
    """As `gradient_and_logits`. The gradient is zero where it is not finite, and where there is none."""
    gradient, logits = gradient_and_logits(model, x, y, loss)
    return torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0, 0, 0), logits


@dataclass(frozen=True)
class Probe:
    """model: images -> (N, K) logits. x (N, ...), y (N,), index (N,) places in the data set. threat: with one radius.
    batch_size: the largest number of samples in one forward pass. proven (N,) bool: no input within the budget changes the
    class; None where nothing is proven. copy: the optimized copy, on which attacks may start.
    """

    model: Model
    x: torch.Tensor
    y: torch.Tensor
    index: torch.Tensor
    threat: Threat
    seed: int = 0
    batch_size: int = 128
    proven: torch.Tensor | None = None
    copy: Model | None = None

    def __len__(self) -> int:
        return len(self.x)

    def select(self, rows: torch.Tensor) -> "Probe":
        """These samples only: (N,) bool, or positions."""
        proven = None if self.proven is None else self.proven[rows]
        return dataclasses.replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows], proven=proven)

    def first(self, count: int) -> "Probe":
        return self.select(torch.arange(min(count, len(self)), device=self.x.device))

    def by_batch(self, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        """`function` of the tensors (N, ...), batch by batch; the results (N, ...) are joined."""
        parts = [tensor.split(self.batch_size) for tensor in tensors]
        return torch.cat([function(*batch) for batch in zip(*parts, strict=True)])

    def logits(self, x: torch.Tensor, model: Model | None = None) -> torch.Tensor:  # (M, ...) -> (M, K)
        """Of the network, or of another function of the images, without gradients."""
        with torch.no_grad(), undisturbed(self.model):
            return self.by_batch(model or self.model, x)

    def margin(self, x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N,), positive where misclassified
        """The `decision_margin` of the network at these inputs.

        Raises Contradiction for a proven sample that is misclassified within the budget.
        """
        found = decision_margin(self.logits(x), self.y, x)
        if self.proven is not None:
            broken = (found > 0) & self.threat.contains(x, self.x)
            within = f"{self.threat.norm} {eps_as_text(self.threat.eps)}"
            index, proven, both = (tensor.cpu().numpy() for tensor in (self.index, self.proven, broken))
            refuse_contradictions(index, proven, both, "an attack of the evidence", within)
        return found

    def loss(self, x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N,)
        return cross_entropy(self.logits(x), self.y)

    def run(self, attack: Attack, copy: bool = True) -> torch.Tensor:  # -> (N, ...)
        """The perturbed samples, within the budget. copy: whether the attack may start on the optimized copy."""

        def perturb(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            start = self.copy if copy else None
            found = attack(self.model, x, y, index=index, seed=self.seed, goal="break", copy=start)
            return confined(attack, found, x) if attack.kind == "minimal" else found

        size = max(1, min(self.batch_size, 3 * self.batch_size // attack.inputs_each))
        return dataclasses.replace(self, batch_size=size).by_batch(perturb, self.x, self.y, self.index)

    def unbroken_by(self, attack: Attack, copy: bool = True) -> "Probe":
        """The samples that are classified correctly under this attack. copy: as for `run`."""
        return self.select(self.margin(self.run(attack, copy)) <= 0)

    @cached_property
    def clean(self) -> torch.Tensor:  # (N, K)
        return self.logits(self.x)

    @cached_property
    def gradient(self) -> torch.Tensor:  # (N, ...)
        """Of the loss that attacks increase; see `finite_gradient`."""
        return self.slope(self.x, cross_entropy)

    def slope(self, x: torch.Tensor, loss: Loss) -> torch.Tensor:  # (N, ...) -> (N, ...)
        """The gradient of a loss at these inputs; see `finite_gradient`."""
        return self.by_batch(lambda x, y: finite_gradient(self.model, x, y, loss)[0], x, self.y)

    @property
    def resolution(self) -> torch.Tensor:  # (N,)
        """Changes of the loss up to this size are rounding errors."""
        return FEW_ULP * torch.finfo(torch.float32).eps * self.clean.abs().amax(1)

    @property
    def full_range(self) -> float:
        """The largest input value minus the smallest: of the input range, or of these inputs where none is known."""
        low, high = self.threat.bounds or (float(self.x.min()), float(self.x.max()))
        return high - low
