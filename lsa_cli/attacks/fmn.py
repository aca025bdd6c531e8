"""FMN, the Fast Minimum-Norm attack (arXiv 2102.12827): one run gives the distances of a whole robustness curve."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from lsa_cli.attacks.base import ATTACKS, Attack, Model, annealed, at_least_one, input_gradient
from lsa_cli.attacks.deepfool import DUAL, onto_plane
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.search import Nearest
from lsa_cli.attacks.threat import Threat, as_rows, per_sample
from lsa_cli.errors import UsageError

_BEYOND = 1.05  # as FAB's eta
_USUAL = {"linf": (1.0, 0.05), "l2": (0.5, 0.2), "l1": (1.0, 0.2)}  # step size and gamma
_SHORTEN = 0.8  # 0.5 and 0.9 give the same results


@ATTACKS.register("fmn")
@dataclass(frozen=True)
class FMN(Attack):
    """Gradient steps on the margin within a ball whose radius follows the decision boundary (Algorithm 1).

    The radius shrinks by the share gamma where the sample is broken and grows by it where it is not. The step size (an l2
    norm) and gamma are annealed along a cosine, to 1/100 and to gamma_final. None is a step size of 1 and a gamma of 0.05, as
    in the paper; in l2 0.5 and 0.2, and in l1 1 and 0.2 (our choice by `python -m benchmarks.minimal`): a radius that changes
    more leads further around networks that are trained for linf.

    Our choices:
    - Up to the first adversarial example, steps go onto the linearised boundary. In the paper the radius grows up to it;
      such steps from the input never break half of the samples of a robust network.
    - From an adversarial example the radius shrinks to the linearised boundary too, at most to 0.8 of itself. This soon
      makes up for a first example that is far away.
    - l2 steps end on the sphere and not within it, as in DDN (arXiv 1811.09600), and so follow the boundary.
    """

    role = "gradient"
    threat: Threat
    steps: int = 100
    step_size: float | None = None
    gamma: float | None = None
    gamma_final: float = 0.001

    kind = "minimal"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("fmn", steps=self.steps)
        if self.step_size is not None and self.step_size <= 0:
            raise UsageError(f"fmn: step_size must be positive, not {self.step_size:g}")
        if not 0 < self.gamma_final <= self.first_gamma < 1:
            raise UsageError("fmn: the settings must satisfy 0 < gamma_final <= gamma < 1")

    @property
    def passes(self) -> float:
        return self.steps + 0.4

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "step_size": self.first_length, "gamma": self.first_gamma}

    @property
    def first_length(self) -> float:
        return self.step_size or _USUAL[self.threat.norm][0]

    @property
    def first_gamma(self) -> float:
        return _USUAL[self.threat.norm][1] if self.gamma is None else self.gamma

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Nearest(x, y, self.threat)
        point, radius = x, torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        for step in range(self.steps):
            gradient, logits = input_gradient(model, point, search.y, margin)
            search.offer(point, logits)
            point, radius, gradient, logits = search.still(point, radius, gradient.nan_to_num(0), logits)
            if search.is_over:
                return search.x_adv
            gamma = annealed(self.first_gamma, self.gamma_final, step / self.steps)
            value, nearest = margin(logits, search.y), search.distance[search.rows]
            inwards = torch.minimum(
                torch.minimum(radius * (1 - gamma), nearest), self._back(search, point, gradient, value)
            )
            radius = torch.where(value > 0, inwards, radius * (1 + gamma))
            length = self.first_length * annealed(1, 0.01, step / self.steps)
            moved = point + length * F.normalize(gradient.flatten(1), eps=1e-30).reshape(point.shape)
            found = as_rows(nearest.isfinite(), x)
            point = torch.where(
                found, self._to_radius(moved, search.x, radius), self._to_boundary(point, gradient, value)
            )
        with torch.no_grad():
            search.offer(point, model(point))
        return search.x_adv

    def _to_boundary(self, point: torch.Tensor, gradient: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """A point just beyond the linearised boundary. l1 uses the l2 projection, because few pixels are a poor start."""
        norm = "linf" if self.threat.norm == "linf" else "l2"
        gap = (-value).clamp_min(1e-5)[:, None]  # so that a tie moves
        move = onto_plane(point.flatten(1), gradient.flatten(1), gap, norm, self.threat.bounds)
        return self.threat.clamp(point + _BEYOND * move.reshape(point.shape))

    def _back(self, search: Nearest, point: torch.Tensor, gradient: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The radius (M,) of the linearised boundary at an adversarial example, at most a fifth shorter than its own."""
        length = self.threat.distance(point, search.x)
        slope = torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[self.threat.norm], dim=1)
        return torch.maximum(length - value / slope, _SHORTEN * length)

    def _to_radius(self, moved: torch.Tensor, x: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        if self.threat.norm == "l2":
            scale = radius / self.threat.distance(moved, x).clamp_min(1e-12)
            moved = x + (moved - x) * per_sample(scale, x)
        return dataclasses.replace(self.threat, eps=radius).project(moved, x)
