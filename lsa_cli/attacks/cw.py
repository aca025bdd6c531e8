"""Carlini & Wagner's l2 attack (arXiv 1608.04644): Adam on the distance plus the weighted margin."""

from dataclasses import dataclass

import torch

from lsa_cli.attacks.base import ATTACKS, Attack, Model, at_least_one, input_gradient
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.search import Nearest
from lsa_cli.attacks.threat import Threat
from lsa_cli.errors import UsageError

_DECAY, _DECAY_SQUARE, _TINY = 0.9, 0.999, 1e-8  # Adam as published (arXiv 1412.6980)


@ATTACKS.register("cw")
@dataclass(frozen=True)
class CW(Attack):
    """Minimises ||d||^2 + weight * max(0, -margin(x + d)), with a binary search of the weight for each sample.

    x + d = middle + half * tanh(z) stays in the input range; without a range z is d itself. A descent ends early for
    samples (in the authors' code: for batches) whose objective fell by less than 1/10,000 within a tenth of the steps.
    """

    role = "gradient"
    threat: Threat
    steps: int = 1000
    lr: float = 0.01
    searches: int = 9
    initial_weight: float = 0.001

    kind = "minimal"
    norms = ("l2",)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("cw", steps=self.steps, searches=self.searches)
        if self.lr <= 0 or self.initial_weight <= 0:
            raise UsageError("cw: lr and initial_weight must be positive")

    @property
    def passes(self) -> float:
        return 0.5 * self.searches * self.steps  # descents that end early save about half of the steps

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Nearest(x, y, self.threat)
        with torch.no_grad():
            search.offer(x, model(x))
        low = torch.zeros(len(x), device=x.device, dtype=x.dtype)
        low, high, weight = search.still(low, low + torch.inf, low + self.initial_weight)
        for _ in range(self.searches):
            if search.is_over:
                break
            broken, low, high, weight = self._descend(model, search, low, high, weight)
            high, low = torch.where(broken, weight, high), torch.where(broken, low, weight)
            weight = torch.where(high.isfinite(), (low + high) / 2, 10 * weight)
        return search.x_adv

    def _descend(
        self, model: Model, search: Nearest, low: torch.Tensor, high: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """One run of Adam: which samples it broke (M,) bool, and the state of the binary search for those still attacked."""
        z = self._to_z(search.x)
        mean, square, x_adv = torch.zeros_like(z), torch.zeros_like(z), search.x
        logits = torch.empty(0)
        broken, going = torch.zeros_like(weight, dtype=torch.bool), torch.ones_like(weight, dtype=torch.bool)
        previous = torch.full_like(weight, torch.inf)
        here = torch.arange(len(z), device=z.device)  # samples whose descent continues
        for step in range(1, self.steps + 1):
            gradient, image, new_logits, objective = self._evaluate(
                model, z[here], search.x[here], search.y[here], weight[here]
            )
            logits = new_logits if step == 1 else logits.index_copy(0, here, new_logits)
            x_adv = x_adv.index_copy(0, here, image)
            search.offer(x_adv, logits)
            broken[here] |= margin(new_logits, search.y[here]) > 0
            mean[here] = _DECAY * mean[here] + (1 - _DECAY) * gradient
            square[here] = _DECAY_SQUARE * square[here] + (1 - _DECAY_SQUARE) * gradient.square()
            deviation = (square[here] / (1 - _DECAY_SQUARE**step)).sqrt() + _TINY
            z[here] -= self.lr / (1 - _DECAY**step) * mean[here] / deviation
            if step % max(1, self.steps // 10) == 0:
                going[here] = objective <= 0.9999 * previous[here]
                previous[here] = objective
            attacked = len(search.rows)
            z, mean, square, x_adv, logits, broken, going, previous, low, high, weight = search.still(
                z, mean, square, x_adv, logits, broken, going, previous, low, high, weight
            )
            if step % max(1, self.steps // 10) == 0 or len(search.rows) < attacked:
                here = going.nonzero().squeeze(1)
                if len(here) == 0:
                    break
        return broken, low, high, weight

    def _evaluate(
        self, model: Model, z: torch.Tensor, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradient with respect to z, the image of z, its logits, and the objective (M,)."""
        image, slope = self._to_image(z, x)

        def penalty(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return weight * (-margin(logits, y)).clamp_min(0)

        gradient, logits = input_gradient(model, image, y, penalty)
        change = image - x
        objective = change.flatten(1).square().sum(1) + penalty(logits, y)
        return (slope * (gradient + 2 * change)).nan_to_num(0), image, logits, objective

    def _to_z(self, x: torch.Tensor) -> torch.Tensor:
        if self.threat.bounds is None:
            return torch.zeros_like(x)
        low, high = self.threat.bounds
        # At the ends of the range z would be infinite and its gradient zero.
        return torch.atanh((2 * (x - low) / (high - low) - 1) * (1 - 1e-6))

    def _to_image(self, z: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The image of z, and its derivative with respect to z."""
        if self.threat.bounds is None:
            return x + z, torch.ones_like(z)
        low, high = self.threat.bounds
        squashed = z.tanh()
        return self.threat.clamp(low + (high - low) / 2 * (1 + squashed)), (high - low) / 2 * (1 - squashed.square())
