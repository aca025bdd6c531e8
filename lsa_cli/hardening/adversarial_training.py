"""Adversarial training with any base objective (`at`), and with the layer-wise regularizer added (`at-lr`)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from lsa_cli.errors import UsageError
from lsa_cli.hardening.methods import HARDENINGS, Batch, Hardening, Step, Task
from lsa_cli.hardening.objectives import Objective, make_objective
from lsa_cli.hardening.regularizer import LayerRegularizer, record
from lsa_cli.hardening.weights import adversarial_weights
from lsa_cli.models.classifier import Classifier


@HARDENINGS.register("at")
@dataclass
class AdversarialTraining(Hardening):
    """Training on adversarial examples that are made anew for every batch.

    base: fgsm, pgd, apgd, fast, free, apart, trades or mart. beta: of trades and mart. replays: of free.
    """

    task: Task
    base: str = "pgd"
    beta: float | None = None
    replays: int | None = None
    parts: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    seen: torch.Tensor = field(default_factory=lambda: torch.empty(0), init=False)  # (N, K) of the last loss
    objective: Objective = field(init=False)
    regularizer: LayerRegularizer | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.objective = make_objective(self.task, self.base, beta=self.beta, replays=self.replays)
        if self.regularizes:
            task = self.task
            self.regularizer = LayerRegularizer(task.layers, task.gammas, task.measure, task.detach_clean)

    def steps(self, model: Classifier, batch: Batch) -> Iterator[Step]:
        for _ in range(self.objective.updates):
            x_adv = self.objective.examples(model, batch)
            perturbed_weights: AbstractContextManager[None] = nullcontext()
            if self.task.awp > 0 and batch.strength == 1:
                ascent = self.losses(model, batch, x_adv.detach()).sum()
                perturbed_weights = adversarial_weights(model, ascent, self.task.awp)
            with perturbed_weights:
                yield self.losses(model, batch, x_adv).mean(), ("weights",)
            self.objective.learn(x_adv, batch)

    def losses(self, model: Classifier, batch: Batch, x_adv: torch.Tensor) -> torch.Tensor:  # -> (N,)
        """J(x_adv, y), plus the regularizer.

        Clean and adversarial inputs are separate batches, because BatchNorm would mix their statistics.
        """
        layers = self.regularizer.layers if self.regularizer is not None else ()
        clean_logits = None
        clean: dict[str, torch.Tensor] = {}
        if self.objective.needs_clean or layers:
            needs_gradient = self.objective.needs_clean or not self.task.detach_clean
            with torch.set_grad_enabled(needs_gradient), record(model, layers) as clean:
                clean_logits = model(batch.x)
        with self.objective.inside(model), record(model, layers) as perturbed:
            logits = model(x_adv)
        self.seen = logits.detach()
        losses = self.objective.losses(logits, clean_logits, batch.y)
        self.parts = {"J": losses.detach()}
        if self.regularizer is not None:
            penalty, measures = self.regularizer(clean, perturbed)
            self.parts |= measures
            losses = losses + batch.strength * penalty
        return losses

    def state(self) -> dict[str, Any]:
        return self.objective.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.objective.restore(state)


@HARDENINGS.register("at-lr")
@dataclass
class LayerRegularizedTraining(AdversarialTraining):
    """AT-LR (arXiv 2202.02626, Algorithm 3): J(x_adv, y) + sum over flagged layers of gamma_l * CM_l(x, x_adv)."""

    regularizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.task.layers:
            raise UsageError("at-lr regularizes layers, and none is named; give --layers, --mvl audit.json, or use at")
        super().__post_init__()
