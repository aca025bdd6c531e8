"""FGSM (arXiv 1412.6572), PGD (arXiv 1706.06083), Temperature-PGD (arXiv 2105.14240): one loop, three settings."""

from dataclasses import dataclass

import torch

from lsa_cli.attacks.base import ATTACKS, Attack, Model, input_gradient
from lsa_cli.attacks.losses import LOSSES, Loss, margin, tempered
from lsa_cli.attacks.threat import Threat
from lsa_cli.errors import UsageError


class _Strongest:
    """The iterate nearest to, or farthest beyond, the decision boundary: per sample, over steps and restarts.

    An adversarial that was seen is never lost, and a NaN never wins.
    """

    def __init__(self, x: torch.Tensor) -> None:
        self.x_adv = x.clone()
        self.value = torch.full((len(x),), -torch.inf, device=x.device)

    def offer(self, x_adv: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> None:
        value = margin(logits, y)
        better = value > self.value
        self.value = torch.where(better, value, self.value)
        self.x_adv = torch.where(better.reshape(-1, *[1] * (x_adv.ndim - 1)), x_adv, self.x_adv)


@ATTACKS.register("fgsm")
@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the gradient, no random start."""

    threat: Threat

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        gradient, _ = input_gradient(model, x, y, LOSSES.get("ce"))
        step = self.threat.steepest(gradient, x)
        return self.threat.project(x + _times(self.threat.eps, step), x)


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD(Attack):
    """Steps along the gradient, projected into the budget; returns the strongest iterate.

    step_size: None is 2.5 * eps / steps (arXiv 1706.06083). restarts: random starts, the worst case for each
    sample. All steps are taken for every sample, so the result is the worst adversarial found, not the first.
    """

    threat: Threat
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"pgd needs at least one step and one restart, not {self.steps} and {self.restarts}")
        if self.step_size is not None and self.step_size <= 0:
            raise UsageError(f"the step size should be positive, not {self.step_size:g}")
        LOSSES.get(self.loss)

    @property
    def passes(self) -> float:
        return self.restarts * (self.steps + 0.4)  # the last iterate is looked at, without a gradient

    def _climbed(self) -> Loss:
        return LOSSES.get(self.loss)

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        threat, loss = self.threat, self._climbed()
        step_size = 2.5 * threat.eps / self.steps if self.step_size is None else self.step_size
        strongest = _Strongest(x)
        for _ in range(self.restarts):
            x_adv = threat.sample(x) if self.random_start else x
            for _ in range(self.steps):
                gradient, logits = input_gradient(model, x_adv, y, loss)
                strongest.offer(x_adv, logits, y)
                step = threat.steepest(gradient, x_adv).nan_to_num(0)
                x_adv = threat.project(x_adv + _times(step_size, step), x)
            with torch.no_grad():
                strongest.offer(x_adv, model(x_adv), y)
        return strongest.x_adv


@ATTACKS.register("t-pgd")
@dataclass(frozen=True)
class TemperaturePGD(PGD):
    """PGD on the cross-entropy of logits / temperature; the default temperature is our choice."""

    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise UsageError(f"the temperature should be positive, not {self.temperature:g}")
        if self.loss != "ce":
            raise UsageError("t-pgd climbs a tempered cross-entropy; for another loss use pgd:loss=...")

    def _climbed(self) -> Loss:
        return tempered(self.temperature)


def _times(length: float | torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    if isinstance(length, torch.Tensor) and length.ndim:
        length = length.to(step).reshape(-1, *[1] * (step.ndim - 1))
    return length * step
