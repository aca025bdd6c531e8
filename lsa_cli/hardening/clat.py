"""CLAT, criticality-leveraged adversarial training (arXiv 2408.10204): only the most critical layers of a network are trained.

The paper's text and code could not be read; the formulas are those of a summary. Our choices, beside those that the functions
name: the loss is that of adversarial examples, as in at-lr, where the summary has clean ones; the layers are the hidden ones
with weights, and their outputs are taken before normalisation and activation; they are chosen on one batch of training samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lsa_cli import distributed
from lsa_cli.attacks.base import undisturbed
from lsa_cli.errors import UsageError
from lsa_cli.hardening.adversarial_training import AdversarialTraining
from lsa_cli.hardening.methods import HARDENINGS, Batch, Step
from lsa_cli.hardening.regularizer import LayerRegularizer, record
from lsa_cli.hardening.sites import hidden_layers
from lsa_cli.hardening.weights import training_mode
from lsa_cli.layers import plain_modules
from lsa_cli.models.classifier import Classifier

_TINY = 1e-20


@HARDENINGS.register("clat")
@dataclass
class CriticalLayerTraining(AdversarialTraining):
    """Fine-tune only the most critical layers of an adversarially trained network, so that their outputs move less.

    The loss is that of the base objective on adversarial examples, plus gamma times the mean squared error between the clean
    and the attacked output, summed over the critical layers. share: of the layers that train, at least one. every: epochs
    after which they are chosen again.
    """

    share: float = 0.05
    every: int = 10
    gamma: float = 1.0
    critical: tuple[str, ...] = field(default=(), init=False)  # the layers that train now
    is_due: bool = field(default=True, init=False)  # the next batch chooses them
    weights: dict[str, list[nn.Parameter]] = field(default_factory=dict, init=False)  # of each layer, in order
    movable: list[nn.Parameter] = field(default_factory=list, init=False)  # all that no option froze

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise UsageError(f"clat: share={self.share:g} must be above 0 and at most 1, for example 0.05")
        if self.every < 1:
            raise UsageError(f"clat: every={self.every} must be 1 or more")
        if not self.gamma > 0:
            raise UsageError(f"clat: gamma={self.gamma:g} must be above 0")

    def groups(self, model: Classifier) -> dict[str, list[nn.Parameter]]:
        self.movable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        modules = dict(plain_modules(model.body))
        for layer in hidden_layers(model, self.task):
            if layer.is_learnable and "#" not in layer.name:
                self.weights[layer.name] = [p for p in modules[layer.name].parameters() if p.requires_grad]
        self.weights = {name: own for name, own in self.weights.items() if own}
        if not self.weights:
            raise UsageError("clat trains hidden layers with weights, and there is none to train; use --method at")
        return self.weights

    def begin_epoch(self, epoch: int) -> None:
        self.is_due = self.is_due or (epoch - 1) % self.every == 0

    def steps(self, model: Classifier, batch: Batch) -> Iterator[Step]:
        if self.is_due:
            found = criticality(model, tuple(self.weights), batch.x, self.objective.examples(model, batch))
            count = max(1, round(self.share * len(found)))
            self._train(sorted(found, key=lambda name: -found[name])[:count])
            self.is_due = False
            training_mode(model)
        for loss, _ in super().steps(model, batch):
            yield loss, self.critical

    def _train(self, names: Sequence[str]) -> None:
        """Train these layers only."""
        self.critical = tuple(name for name in self.weights if name in names)
        for parameter in self.movable:
            parameter.requires_grad_(False)
        for name in self.critical:
            for parameter in self.weights[name]:
                parameter.requires_grad_(True)
        self.regularizer = LayerRegularizer(self.critical, (self.gamma,) * len(self.critical), mean_squared_error)

    def strengthen(self) -> str | None:
        return None

    def state(self) -> dict[str, Any]:
        return super().state() | {"critical": self.critical, "is_due": self.is_due}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.is_due = state["is_due"]
        self._train(state["critical"])


def criticality(model: Classifier, names: Sequence[str], x: torch.Tensor, x_adv: torch.Tensor) -> dict[str, float]:
    """C_i = W_i / W_(i-1) for the layers `names`, in order. W_i: the mean over samples of ||F_i(x_adv) - F_i(x)||^2 / N_i.

    N_i: the number of elements of the output F_i. W_0 is that of the input (our reading: the summary does not give C_1). One
    attack on the output of the network takes the place of one on each layer, as in the paper. All ranks get the same.
    """
    with undisturbed(model), torch.no_grad():
        with record(model, names) as clean:
            model(x)
        with record(model, names) as perturbed:
            model(x_adv)
    moved = [mean_squared_error(x, x_adv), *(mean_squared_error(clean[name], perturbed[name]) for name in names)]
    means = [column.double().mean() for column in moved]
    distributed.average(means)
    return {
        name: float(after / before.clamp_min(_TINY))
        for name, before, after in zip(names, means[:-1], means[1:], strict=True)
    }


def mean_squared_error(clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N,)
    """||perturbed - clean||^2 divided by the number of elements of one sample."""
    return (perturbed - clean).flatten(1).square().mean(1)
