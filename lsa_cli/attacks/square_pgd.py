"""Square Attack, and then PGD from the strongest input that it found (our combination)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lsa_cli.attacks.base import ATTACKS, Attack, Model, annealed, at_least_one, expected_gradient, expected_logits
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.search import Search
from lsa_cli.attacks.square import Square
from lsa_cli.attacks.threat import Threat, per_sample

LONGEST = 0.25  # the first step of PGD, as a share of eps; the last is a hundredth of it


@ATTACKS.register("square-pgd")
@dataclass(frozen=True)
class SquarePGD(Attack):
    """Random search (arXiv 1912.00049), then `steps` steps of PGD on the margin from its strongest input.

    Where gradients mislead from most starts, as on networks that hide them, the random search leaves the samples so near to
    the boundary that a few steps along the gradient finish. Samples that the random search gives up get no steps: its limits
    allow for them. Steps shrink along a cosine from eps / 4 (our choice). queries, at_once: of `square`.
    """

    threat: Threat
    queries: int = 2000
    steps: int = 40
    at_once: int = 4
    norms: ClassVar[tuple[str, ...]] = Square.norms
    on_copy: ClassVar[float] = 0.1  # of the queries; with 0.4 the margins end lower (our choice)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("square-pgd", queries=self.queries, steps=self.steps, at_once=self.at_once)

    @property
    def stream(self) -> str:
        """Rounds of a cascade that differ in settings draw other numbers."""
        return f"{super().stream} {self.queries} {self.at_once}"

    @property
    def _square(self) -> Square:
        return Square(self.threat, self.queries, at_once=self.at_once)

    @property
    def passes(self) -> float:
        return self._square.passes + self.steps + 0.4

    @property
    def inputs_each(self) -> int:
        return self.at_once

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Search(x, y, self.threat)
        with torch.no_grad():
            self._square.climb(model, search)
        x_adv = search.x_adv[search.rows]
        for step in range(self.steps):
            if search.is_over:
                return search.x_adv
            gradient, logits, _ = expected_gradient(model, x_adv, search.y, margin)
            search.offer(x_adv, logits)
            length = LONGEST * annealed(1, 0.01, step / self.steps)
            moved = x_adv + per_sample(length * search.threat.eps, x_adv) * search.threat.steepest(
                gradient.nan_to_num(0), x_adv
            )
            (x_adv,) = search.still(search.threat.project(moved, search.x))
        if not search.is_over:
            search.offer(x_adv, expected_logits(model, x_adv))
        return search.x_adv
