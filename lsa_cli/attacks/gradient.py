"""FGSM (arXiv 1412.6572), PGD (1706.06083), MI-FGSM (1710.06081), Temperature-PGD (2105.14240)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lsa_cli.attacks.base import (
    ATTACKS,
    Attack,
    Model,
    at_least_one,
    expected_gradient,
    expected_logits,
    input_gradient,
)
from lsa_cli.attacks.losses import LOSSES, Loss, tempered, unscaled_cross_entropy
from lsa_cli.attacks.search import Search
from lsa_cli.attacks.threat import Threat, per_sample
from lsa_cli.errors import UsageError


@ATTACKS.register("fgsm")
@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the gradient of the cross-entropy, also where logits are nearly equal, as in the paper.

    random_start: the step is 1.25 eps long and starts at a random point of the budget (arXiv 2001.03994, Algorithm 3).
    """

    role = "one-step"
    threat: Threat
    random_start: bool = False

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        start = self.threat.sample(x) if self.random_start else x
        return self.step(input_gradient(model, start, y, unscaled_cross_entropy)[0], start, x)

    def step(self, gradient: torch.Tensor, start: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The perturbed inputs (N, ...) of x (N, ...), from the gradient of `unscaled_cross_entropy` at start."""
        length = 1.25 if self.random_start else 1.0
        step = self.threat.steepest(gradient, start)
        return self.threat.project(start + per_sample(length * self.threat.eps, x) * step, x)


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD(Attack):
    """Steps along the gradient, projected into the budget. The result is the strongest iterate.

    step_size: of all samples, or of each (N,); None is 2.5 * eps / steps (arXiv 1706.06083). restarts: random starts; the
    worst case of each sample counts. momentum: the steps follow a sum of all gradients, each divided by its l1 norm, that
    decays by this factor (MI-FGSM, arXiv 1710.06081, Algorithm 1; 1.0 there). eot: number of passes through a stochastic
    network whose mean is a gradient.
    """

    role = "gradient"
    threat: Threat
    steps: int = 20
    step_size: float | torch.Tensor | None = None
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    momentum: float = 0.0
    eot: int = 1
    on_copy: ClassVar[float] = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("pgd", steps=self.steps, restarts=self.restarts, eot=self.eot)
        least = float(self.step_size.min()) if isinstance(self.step_size, torch.Tensor) else self.step_size
        if least is not None and least <= 0:
            raise UsageError(f"the step size must be positive, not {least:g}")
        if self.momentum < 0:
            raise UsageError(f"the momentum must be 0 or more, not {self.momentum:g}")
        LOSSES.get(self.loss)

    @property
    def passes(self) -> float:
        return self.restarts * self.eot * (self.steps + 0.4)  # the last iterate needs no gradient

    @property
    def settings(self) -> dict[str, Any]:
        step_size = self._default_length(self.threat) if self.step_size is None else self.step_size
        return {**super().settings, "step_size": step_size}

    def _loss(self) -> Loss:
        return LOSSES.get(self.loss)

    def _default_length(self, threat: Threat) -> float | torch.Tensor:
        return 2.5 * threat.eps / self.steps

    def _length(self, search: Search) -> float | torch.Tensor:  # or (M,)
        """The length of a step, for the samples that are still attacked."""
        if self.step_size is None:
            return self._default_length(search.threat)
        return self.step_size[search.rows] if isinstance(self.step_size, torch.Tensor) else self.step_size

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = self._loss()
        search = Search(x, y, self.threat)
        for _ in range(self.restarts):
            search.still()
            x_adv = search.threat.sample(search.x) if self.random_start else search.x
            total = torch.zeros_like(x_adv)
            for step in range(self.steps):
                if search.is_over:
                    return search.x_adv
                network = search.network_at(model, step / self.steps)
                gradient, logits, _ = expected_gradient(network, x_adv, search.y, loss, self.eot)
                search.offer(x_adv, logits)
                if self.momentum:
                    gradient = total = self.momentum * total + _normalized(gradient)
                direction = search.threat.steepest(gradient, x_adv).nan_to_num(0)
                x_adv = search.threat.project(x_adv + per_sample(self._length(search), x_adv) * direction, search.x)
                x_adv, total = search.still(x_adv, total)
            if not search.is_over:
                search.offer(x_adv, expected_logits(search.network_at(model, 1), x_adv, self.eot))
        return search.x_adv


def _normalized(gradient: torch.Tensor) -> torch.Tensor:
    """gradient / ||gradient||_1 per sample; zero stays zero, and NaN becomes zero."""
    gradient = gradient.nan_to_num(0)
    size = gradient.flatten(1).abs().sum(1)
    return gradient / per_sample(torch.where(size == 0, 1.0, size), gradient)


@ATTACKS.register("t-pgd")
@dataclass(frozen=True)
class TemperaturePGD(PGD):
    """PGD on the cross-entropy of logits / temperature; the default temperature is our choice."""

    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise UsageError(f"the temperature must be positive, not {self.temperature:g}")
        if self.loss != "ce":
            raise UsageError("t-pgd maximises a tempered cross-entropy; for another loss use pgd:loss=...")

    @property
    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings.items() if name != "loss"}

    def _loss(self) -> Loss:
        return tempered(self.temperature)
