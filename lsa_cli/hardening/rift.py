"""RiFT, robust critical fine-tuning (arXiv 2308.02533): better on clean images, hardly less robust.

Of an adversarially trained network, the module that matters least for robustness is fine-tuned on clean samples. The weights
before and after are then interpolated.

Our choices, beside those that the functions name: the held-out samples of the training data decide everything, in place of a
test set; the recipe is that of lsa, in place of SGD with momentum at a rate of 0.001 for 10 epochs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis
from lsa_cli.errors import UsageError
from lsa_cli.failures import backward_of_network
from lsa_cli.hardening.methods import HARDENINGS, Batch, Hardening, Step, Task
from lsa_cli.hardening.validation import attacked
from lsa_cli.hardening.weights import weights_of
from lsa_cli.layers import Layer
from lsa_cli.models.classifier import Classifier, predicted_class
from lsa_cli.models.loading import Say
from lsa_cli.stats import not_inferior
from lsa_cli.wording import plural

_RADIUS = 0.1  # of the ball of weights, as a share of their norm
_ASCENT = 10  # steps of the ascent in it
_STEPS = 10  # of every attack
_SHARES = tuple(tenth / 10 for tenth in range(1, 11))
_ERROR = 0.05  # of the test against the margin


@HARDENINGS.register("rift")
@dataclass
class RobustCriticalFineTuning(Hardening):
    """Fine-tune the least critical module of a robust network on clean samples; interpolate so that it stays robust.

    margin: the largest fall of robust accuracy that is allowed, 0.01 for one point.
    """

    chooses: ClassVar[bool] = True
    attacks: ClassVar[bool] = False
    chosen_by: ClassVar[str] = "clean accuracy"
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 10, "lr": 1e-3, "optimizer": "sgd", "weight_decay": 5e-4, "schedule": "cosine", "warmup": 0.0,
        "average": "none",
    }  # fmt: skip

    task: Task
    margin: float = 0.01
    parts: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    before: dict[str, torch.Tensor] = field(default_factory=dict, init=False)  # the weights before training

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise UsageError(f"rift: margin={self.margin:g} must be above 0 and below 1, for example 0.01")
        held_out = self.task.held_out
        if not_inferior(0, 0, held_out, self.margin) > _ERROR:
            least = next(m for m in range(1, 1000) if not_inferior(0, 0, held_out, m / 1000) <= _ERROR) / 1000
            raise UsageError(
                f"rift: {plural(held_out, 'held-out sample')} cannot exclude a fall of robust accuracy by {self.margin:g}, even if "
                f"none changes; give --method rift:margin={least:g} or more, or a larger --val-fraction"
            )

    def choose(
        self, model: Classifier, layers: Sequence[Layer], held_out: Sequence[Batch], say: Say
    ) -> tuple[str, ...]:
        """The layer whose weights have the smallest robust criticality, on adversarial examples that are made once."""
        attack = PGD(threat=self.task.threat, steps=_STEPS)
        examples = [(attack(model, b.x, b.y, index=b.index, seed=b.seed), b.y) for b in held_out]
        with undisturbed(model), torch.no_grad():
            robust = sum(int((predicted_class(model(x_adv)) == y).sum()) for x_adv, y in examples)
        if robust <= self.margin * self.task.held_out:
            raise UsageError(
                f"rift keeps the robust accuracy of a network that was trained adversarially; this one resists PGD on {robust} of "
                f"{plural(self.task.held_out, 'held-out sample')}: train it with --method at before"
            )
        found = {
            layer.name: robust_criticality(model, _weights(layer), examples)
            for layer in layers if layer.is_learnable and "#" not in layer.name
        }  # fmt: skip
        if not found:
            raise UsageError("rift fine-tunes one layer with weights, and this network has none; use --method at")
        say(
            "robust criticality, the rise of the adversarial loss when the weights of a layer change by 10%: "
            f"{', '.join(f'{name} {value:.3g}' for name, value in found.items())}"
        )
        least = min(found, key=lambda name: found[name])
        say(f"fine-tuned on clean samples: {least}, the least critical layer")
        return (least,)

    def prepare(self, model: Classifier) -> None:
        self.before = weights_of(model)

    def steps(self, model: Classifier, batch: Batch) -> Iterator[Step]:
        losses = F.cross_entropy(model(batch.x), batch.y, reduction="none", label_smoothing=self.task.label_smoothing)
        self.parts = {"J": losses.detach()}
        yield losses.mean(), ("weights",)

    @property
    def takes_nothing(self) -> bool:
        return self.findings.get("interpolation") == 0.0

    def score(self, diagnosis: ClassDiagnosis) -> float:
        return float(diagnosis.right.mean())

    def finish(self, model: Classifier, validation: Iterable[Batch]) -> str:
        """Interpolate: of the shares of the way that pass the test, the one with the largest clean accuracy.

        The test: robust accuracy is less than `margin` below that before training, with p <= 0.05, paired on the held-out
        samples (`not_inferior`). Shares are tested in order, 0.1, 0.2, ..., and the first that fails ends it, so that the
        error of all tests together is 5% (our choices; the paper allows a fall of 0.1 points that is not tested).
        """
        held_out, after = list(validation), weights_of(model)
        start = self._attacked(model, held_out, self.before)
        best, share = start, 0.0
        for tried in _SHARES:
            found = self._attacked(model, held_out, interpolated(self.before, after, tried))
            lost, gained = (int(flags.sum()) for flags in (start.robust & ~found.robust, found.robust & ~start.robust))
            if not_inferior(lost, gained, len(found.robust), self.margin) > _ERROR:
                break
            if found.right.sum() > best.right.sum():
                best, share = found, tried
        model.load_state_dict(interpolated(self.before, after, share))
        self.findings = {"interpolation": share}
        return (
            f"interpolation: {share:.0%} of the way from the weights before; held out: clean {start.right.mean():.1%} -> "
            f"{best.right.mean():.1%}, PGD {start.robust.mean():.1%} -> {best.robust.mean():.1%}, the margin is "
            f"{100 * self.margin:g} points"
        )

    def _attacked(
        self, model: Classifier, held_out: Sequence[Batch], weights: dict[str, torch.Tensor]
    ) -> ClassDiagnosis:
        model.load_state_dict(weights)
        return attacked(model, held_out, PGD(threat=self.task.threat, steps=_STEPS))[0]


def _weights(layer: Layer) -> list[nn.Parameter]:
    """The weights of a layer, without biases."""
    return [] if layer.module is None else [weight for weight in layer.module.parameters() if weight.ndim > 1]


def robust_criticality(
    model: Classifier, weights: Sequence[nn.Parameter], examples: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> float:
    """max R(theta + d) - R(theta) over ||d|| <= 0.1 ||theta||: R is the mean cross-entropy on fixed adversarial examples.

    theta: the weights of one module (arXiv 2308.02533, the module robust criticality). examples: x_adv (N, ...) and y (N,) of
    each batch. The maximum is sought by 10 steps of projected gradient ascent. Each has the length 2.5 * radius / steps (our
    choice; the authors' code takes SGD at a rate of 1, which depends on the size of the loss). The model does not change.
    """
    start = [weight.detach().clone() for weight in weights]
    radius = _RADIUS * float(_norm(start))
    losses = []
    with undisturbed(model):
        for weight in weights:
            weight.requires_grad_(True)
        for _ in range(_ASCENT + 1):
            loss, slopes = _loss_and_slopes(model, weights, examples)
            losses.append(loss)
            with torch.no_grad():
                step = 2.5 * radius / _ASCENT / max(float(_norm(slopes)), 1e-20)
                moves = [w + step * g - s for w, g, s in zip(weights, slopes, start, strict=True)]
                shrink = min(1.0, radius / max(float(_norm(moves)), 1e-20))
                for weight, move, origin in zip(weights, moves, start, strict=True):
                    weight.copy_(origin + shrink * move)
    with torch.no_grad():
        for weight, origin in zip(weights, start, strict=True):
            weight.copy_(origin)
    return max(losses) - losses[0]


def _loss_and_slopes(
    model: Classifier, weights: Sequence[nn.Parameter], examples: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[float, list[torch.Tensor]]:
    """The mean loss over all examples, and its gradient by each weight."""
    count, total = sum(len(y) for _, y in examples), 0.0
    slopes = [torch.zeros_like(weight) for weight in weights]
    for x_adv, y in examples:
        loss = F.cross_entropy(model(x_adv), y, reduction="sum") / count
        with backward_of_network():
            for slope, part in zip(slopes, torch.autograd.grad(loss, list(weights)), strict=True):
                slope += part
        total += float(loss.detach())
    return total, slopes


def _norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt()


def interpolated(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], share: float) -> dict[str, Any]:
    """(1 - share) * before + share * after; counters are those after."""
    return {
        name: before[name].lerp(value, share) if value.is_floating_point() else value for name, value in after.items()
    }
