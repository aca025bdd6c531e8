"""Adversarial training with any base objective (`at`), and with the layer-wise regularizer added (`at-lr`)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from lsa_cli.errors import UsageError
from lsa_cli.hardening.methods import HARDENINGS, Batch, Hardening, Step, Task
from lsa_cli.hardening.objectives import Objective, make_objective
from lsa_cli.hardening.regularizer import LayerRegularizer, record
from lsa_cli.hardening.weights import adversarial_weights
from lsa_cli.models.classifier import Classifier

_MOST_RAISES = 3


@HARDENINGS.register("at")
@dataclass
class AdversarialTraining(Hardening):
    """Training on adversarial examples that are made anew for every batch.

    base: fgsm, pgd, apgd, fast, n-fgsm, free, apart, trades or mart. beta: of trades and mart. replays: of free.
    """

    task: Task
    base: str = "pgd"
    beta: float | None = None
    replays: int | None = None
    parts: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    seen: torch.Tensor = field(default_factory=lambda: torch.empty(0), init=False)  # (N, K) of the last loss
    objective: Objective = field(init=False)
    regularizer: LayerRegularizer | None = field(default=None, init=False)
    raises: int = field(default=0, init=False)  # how often the training was strengthened

    def __post_init__(self) -> None:
        self.objective = make_objective(self.task, self.base, beta=self.beta, replays=self.replays)
        if self.regularizes:
            task = self.task
            self.regularizer = LayerRegularizer(task.layers, task.gammas, task.measure, task.detach_clean)

    def steps(self, model: Classifier, batch: Batch) -> Iterator[Step]:
        for _ in range(self.objective.updates):
            x_adv = self.examples(model, batch)
            perturbed_weights: AbstractContextManager[None] = nullcontext()
            if self.task.awp > 0 and batch.strength == 1:
                ascent = self.losses(model, batch, x_adv.detach()).sum()
                perturbed_weights = adversarial_weights(model, ascent, self.task.awp)
            with perturbed_weights:
                yield self.losses(model, batch, x_adv).mean(), ("weights",)
            self.objective.learn(x_adv, batch)

    def examples(self, model: Classifier, batch: Batch) -> torch.Tensor:  # -> (N, ...)
        """The adversarial examples of a batch."""
        return self.objective.examples(model, batch)

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
            losses = losses + batch.strength * 2**self.raises * penalty
        return losses

    def strengthen(self) -> str | None:
        """Double gamma where there is a regularizer, otherwise the steps of the attack; at most three times.

        Instead of an attack of one step, PGD then makes the examples (all our choices).
        """
        can_rise = self.regularizer is not None or self.objective.is_one_step or "steps" in self.objective.uses
        if self.raises == _MOST_RAISES or not can_rise:
            return None
        was_one_step = self.objective.is_one_step
        self._raise(self.raises + 1)
        if self.regularizer is not None:
            return f"gamma to {2**self.raises} times its value"
        of_base = ", with base pgd" if was_one_step else ""
        return f"the steps of the training attack to {self.objective.task.steps}{of_base}"

    def _raise(self, times: int) -> None:
        self.raises = times
        if self.regularizer is not None or times == 0:
            return
        first, weaker = make_objective(self.task, self.base, beta=self.beta, replays=self.replays), self.objective
        if first.is_one_step:
            self.objective = make_objective(replace(self.task, steps=2**times), "pgd")
            self.objective.eps_of_class, self.objective.weight_of_class = weaker.eps_of_class, weaker.weight_of_class
        else:
            self.objective.task = replace(self.task, steps=self.task.steps * 2**times)

    def state(self) -> dict[str, Any]:
        return {"objective": self.objective.state(), "raises": self.raises}

    def restore(self, state: dict[str, Any]) -> None:
        self.objective.restore(state["objective"])
        self._raise(state["raises"])


@HARDENINGS.register("at-lr")
@dataclass
class LayerRegularizedTraining(AdversarialTraining):
    """AT-LR (arXiv 2202.02626, Algorithm 3): J(x_adv, y) + sum over flagged layers of gamma_l * CM_l(x, x_adv)."""

    regularizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.task.layers:
            raise UsageError("at-lr regularizes layers, and none is named; give --layers, --mvl audit.json, or use at")
        super().__post_init__()
