"""Class-fair training raises the worst class: CFA (arXiv 2303.14460), DAFA (ICLR 2024), WAT (2302.04025), TRIX (2507.07768).

The formulas are those of the papers, and the statistics differ (our choices). The papers begin after 50 to 70 epochs of a
training from random weights; here a trained checkpoint is fine-tuned, and the rules begin after the warm-up. Also:
- CFA: t of a class is its robust accuracy in training in the last epoch; in the paper, a moving average over epochs.
- DAFA: p is the mean over the samples of the first epoch at full strength, while the weights change; in the paper, it is
  measured at the end of the warm-up. lambda is 1 for all data; in the paper, 1.5 for CIFAR-100 and STL-10.
- WAT: the cost of a class is its mean training loss in the epoch, for any base; in the paper, the cross-entropy of clean
  held-out samples plus beta times the divergence under attack.
- TRIX: the attacked samples of the last epoch decide which classes are strong; in the paper, the clean samples of each batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from lsa_cli import distributed
from lsa_cli.attacks.base import Attack, Model, input_gradient, undisturbed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.attacks.losses import unscaled_cross_entropy
from lsa_cli.attacks.randomness import uniform_like
from lsa_cli.attacks.threat import Threat, per_sample
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis
from lsa_cli.errors import UsageError
from lsa_cli.hardening.adversarial_training import AdversarialTraining
from lsa_cli.hardening.methods import HARDENINGS, Batch, Step
from lsa_cli.hardening.objectives import PGDObjective, TradesObjective, as_attacked
from lsa_cli.hardening.validation import attacked
from lsa_cli.hardening.weights import blend, weights_of
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.surgery import operate
from lsa_cli.registry import unknown

RULES = ("cfa", "dafa", "wat", "trix", "none")
_EPS_SHIFT = {"trades": 0.3}  # lambda_1 of CFA, by base
_USUAL_EPS_SHIFT = _BETA_SHIFT = 0.5  # lambda_1 of adversarial training, lambda_2
_DECAY = 0.85  # of CFA's weight average
_DISTANCE = 1.0  # lambda of DAFA
_RATE = 0.1  # eta of WAT
_DELTA = 0.2  # least accuracy of the worst class of weights that enter the average
_FITS, _FIT_STEPS = 12, 10  # trials of the offset, and steps of each attack
_LOSS = 0.02  # largest reduction of a mean over classes by an offset
_OF_CLASS = ("eps_of_class", "weight_of_class", "beta_of_class")  # fields of an objective; some have not all


def cfa_factors(robust: torch.Tensor, shift: float) -> torch.Tensor:  # (K,) -> (K,)
    """The factor of eps, or of beta, for each class: shift + its robust accuracy in training in one epoch (CFA)."""
    return shift + robust


def dafa_weights(mass: torch.Tensor) -> torch.Tensor:  # (K, K) -> (K,)
    """W_i = 1 + sum over j of lambda p_i(j) p_j(j) where p_i(i) < p_j(j), and of -lambda p_j(i) p_i(i) where greater.

    mass[i, j] = p_i(j): the mean probability of class j for attacked samples of class i. A class loses what its weaker
    neighbours gain, so that the weights sum to K. Here they are at least 0.
    """
    own = mass.diagonal()
    gain = _DISTANCE * mass * own[None, :] * (own[:, None] < own[None, :])  # of i from j
    return (1 + gain.sum(1) - gain.sum(0)).clamp_min(0)


def wat_weights(cost: torch.Tensor) -> torch.Tensor:  # (K,) -> (K,)
    """Weights of samples by class: K p_c + p_0, where p is proportional to exp(eta * cost); p_0 is that of the mean cost.

    cost is summed over epochs. The mean of the weights over the classes is 1.
    """
    p = (_RATE * torch.cat([cost.mean()[None], cost])).softmax(0)
    return len(cost) * p[1:] + p[0]


@dataclass(frozen=True)
class _Targeted(Attack):
    """PGD towards another class, drawn uniformly for each sample: TRIX's attack on strong classes. step_size: of each sample."""

    threat: Threat
    classes: int
    steps: int
    step_size: float | torch.Tensor | None

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        further = 1 + (uniform_like(x.new_empty(len(x), 1)).flatten() * (self.classes - 1)).long()
        target = (y + further) % self.classes
        length = 2.5 * self.threat.eps / self.steps if self.step_size is None else self.step_size
        x_adv = self.threat.sample(x)
        for _ in range(self.steps):
            gradient = input_gradient(model, x_adv, target, unscaled_cross_entropy)[0]
            step = self.threat.steepest(gradient, x_adv).nan_to_num(0)
            x_adv = self.threat.project(x_adv - per_sample(length, x) * step, x)
        return x_adv


@HARDENINGS.register("class-fair")
@dataclass
class ClassFair(AdversarialTraining):
    """Adversarial training with any base, in which classes have different weights; the best epoch has the largest mean plus
    worst-class robust accuracy on held-out samples.

    rule: cfa (eps, and beta of trades, by the robust accuracy of the class), dafa (weights and eps by the similarity of
    classes), wat (exponential weights by loss), trix (dafa, and a class of less than average weight is attacked towards other
    classes only, which is weaker), none. fawa: average weights over the epochs whose worst class reaches delta
    (0.2) on held-out samples; by default with cfa, of which it is a part. offset: after training, fit a logit offset for each
    class under attack on held-out samples, which raises the worst class at little cost; it is part of the checkpoint.
    """

    diagnosed: ClassVar[bool] = True
    chosen_by: ClassVar[str] = "mean + worst-class robust accuracy"

    rule: str = "cfa"
    fawa: bool | None = None
    delta: float | None = None
    offset: bool = False
    # Sums over the epoch, at full strength: probabilities by class (K, K), robust samples, losses, samples (K,).
    sums: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    cost: torch.Tensor = field(default_factory=lambda: torch.empty(0), init=False)
    loss_of_class: torch.Tensor | None = field(default=None, init=False)
    is_strong: torch.Tensor | None = field(default=None, init=False)  # (K,), of trix
    average: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    averaged_epochs: int = field(default=0, init=False)
    strength: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule == "offset":
            raise UsageError("class-fair: offset is not a rule; add offset=true to any rule")
        if self.rule not in RULES:
            raise UsageError(unknown("rule of class-fair", self.rule, RULES))
        if self.rule == "trix" and not isinstance(self.objective, PGDObjective):
            raise UsageError("class-fair: rule=trix needs base pgd, trades or mart, whose examples are made in steps")
        if self.delta is not None and not self.averages:
            raise UsageError("class-fair: delta belongs to the average of weights; add fawa=true, or leave it out")
        if self.delta is not None and not 0 <= self.delta < 1:
            raise UsageError(f"class-fair: delta={self.delta:g} must be an accuracy of 0 or more and below 1")
        if self.rule == "cfa" and isinstance(self.objective, TradesObjective):
            self.objective.beta_of_class = torch.full((self.task.classes,), self.objective.beta)
        self.surgeries: list[dict[str, Any]] = []
        self.cost = torch.zeros(self.task.classes)

    @property
    def averages(self) -> bool:
        return self.rule == "cfa" if self.fawa is None else self.fawa

    def prepare(self, model: Classifier) -> None:
        if self.offset and not hasattr(model.body, "logit_offset"):
            if model.output != "logits":
                raise UsageError("class-fair: an offset is added to logits, and this network returns probabilities")
            device = next(model.parameters()).device
            with undisturbed(model), torch.no_grad():
                scores = model.scores(torch.zeros(2, *self.task.input_shape, device=device))
            width = scores.shape[1] if scores.ndim > 1 else 1
            which = {} if model.which is None else {"which": model.which}
            self.surgeries = [{"kind": "logit-offset", "outputs": width, **which}]
            model.body = operate(model.body, self.surgeries).to(device)

    # ---- training --------------------------------------------------------------------------------------

    def steps(self, model: Classifier, batch: Batch) -> Iterator[Step]:
        self.strength = batch.strength
        for step in super().steps(model, batch):
            if batch.strength == 1:
                self._count(batch.y)
            yield step

    def examples(self, model: Classifier, batch: Batch) -> torch.Tensor:
        if self.is_strong is None:
            return super().examples(model, batch)
        strong, x_adv = self.is_strong.to(batch.y.device)[batch.y], batch.x.clone()
        for rows, make in ((~strong, super().examples), (strong, self._targeted)):
            if bool(rows.any()):
                part = replace(batch, x=batch.x[rows], y=batch.y[rows], index=batch.index[rows])
                x_adv[rows] = make(model, part)
        return x_adv

    def _targeted(self, model: Classifier, batch: Batch) -> torch.Tensor:
        assert isinstance(self.objective, PGDObjective)
        threat, steps = self.objective.threat(batch), self.objective.task.steps
        attack = _Targeted(threat, self.task.classes, steps, self.objective.step_size(threat))
        with as_attacked(model, self.task.attack_mode) as attacked:
            return attack(attacked, batch.x, batch.y, index=batch.index, seed=batch.seed)

    def losses(self, model: Classifier, batch: Batch, x_adv: torch.Tensor) -> torch.Tensor:
        losses = super().losses(model, batch, x_adv)
        return losses if self.loss_of_class is None else losses * self.loss_of_class.to(losses.device)[batch.y]

    def _count(self, y: torch.Tensor) -> None:
        """Add the logits and values of the last loss to the sums of the epoch."""
        found = {
            "mass": self.seen.float().softmax(1), "robust": (self.seen.argmax(1) == y).float(),
            "loss": self.parts["J"].float(), "count": torch.ones(len(y), device=y.device),
        }  # fmt: skip
        for name, value in found.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(self.task.classes, *value.shape[1:], device=y.device)
            self.sums[name].index_add_(0, y, value)

    def end_epoch(self, model: Classifier, diagnosis: ClassDiagnosis) -> None:
        gathered = [part for part in distributed.gather_objects(self.sums) if part]
        if gathered:
            self._set_factors(
                {name: torch.stack([part[name].cpu() for part in gathered]).sum(0) for name in gathered[0]}
            )
        self.sums = {}
        worst = np.nanmin(diagnosis.by_class(self.task.classes))
        if self.averages and self.strength == 1 and worst >= (_DELTA if self.delta is None else self.delta):
            self._add_to_average(model)

    def _set_factors(self, sums: dict[str, torch.Tensor]) -> None:
        """Set the factors of the classes by the sums of this epoch. A class without samples gets the mean of the others."""
        count = sums["count"].clamp_min(1)
        robust, mass, loss = sums["robust"] / count, sums["mass"] / count[:, None], sums["loss"] / count
        known = sums["count"] > 0
        robust, loss = (torch.where(known, value, value[known].mean()) for value in (robust, loss))
        if self.rule == "cfa":
            self.objective.eps_of_class = cfa_factors(robust, _EPS_SHIFT.get(self.base, _USUAL_EPS_SHIFT))
            if isinstance(self.objective, TradesObjective):
                self.objective.beta_of_class = self.objective.beta * cfa_factors(robust, _BETA_SHIFT)
        elif self.rule in ("dafa", "trix"):
            if self.objective.eps_of_class is None:  # once
                self.objective.eps_of_class = self.objective.weight_of_class = dafa_weights(mass)
            if self.rule == "trix":
                self.is_strong = dafa_weights(mass) < 1
        elif self.rule == "wat":
            self.cost = self.cost + loss
            self.loss_of_class = wat_weights(self.cost)

    # ---- fairness-aware weight average (CFA) ------------------------------------------------------------

    def _add_to_average(self, model: Classifier) -> None:
        """Add the weights of an epoch: to a mean at first, and later to a moving average with decay 0.85.

        Our choice: a decay from the start, as in the paper, keeps too much of the first epochs of a short training.
        """
        if not self.average:
            self.average = weights_of(model)
        self.averaged_epochs += 1
        blend(self.average, model, max(1 - _DECAY, 1 / self.averaged_epochs))

    def averaged(self) -> dict[str, torch.Tensor] | None:
        return self.average or None

    def score(self, diagnosis: ClassDiagnosis) -> float:
        """CFA's score of checkpoints: mean over classes plus worst class."""
        shares = diagnosis.by_class(self.task.classes)
        return float(np.nanmean(shares) + np.nanmin(shares))

    # ---- inference phase -------------------------------------------------------------------------------

    def finish(self, model: Classifier, validation: Iterable[Batch]) -> str | None:
        """Fit the offset: raise the worst class of held-out samples step by step, as far as `is_fairer` allows.

        Every trial is attacked anew, because the attack must know the offset. Classes that are equally bad are raised
        together, or the worst accuracy would not rise. Where no trial is fairer the offset stays zero.
        arXiv 2105.14240 names a change of the weakest class at inference; its formula could not be read, so this is ours.
        """
        if not self.offset:
            return None
        held_out, offset = list(validation), model.body.logit_offset
        start, margins = self._attacked(model, held_out)
        best, share = start, 1.0
        for _ in range(_FITS):
            shares, before = best.by_class(self.task.classes), offset.clone()
            for worst in np.flatnonzero(shares == np.nanmin(shares)).tolist():
                lost = margins[(best.y == worst) & (margins > 0)]
                if len(lost):  # against the same examples, the full step would correct half of them
                    raised(offset, worst, share * float(np.median(lost)))
            if torch.equal(offset, before):
                break
            tried, tried_margins = self._attacked(model, held_out)
            if is_fairer(tried, best, start, self.task.classes):
                best, margins = tried, tried_margins
            else:
                offset.copy_(before)
                share /= 2
        self.findings = {"logit_offset": [round(value, 6) for value in offset.tolist()]}
        if not offset.any():
            return "offset: none is added, because none of those tried raises the worst class of the held-out samples at little cost"
        was, now = start.by_class(self.task.classes), best.by_class(self.task.classes)
        return (
            f"offset: {', '.join(f'{value:+.3g}' for value in offset.tolist())} is added to the logits; held out under PGD: worst "
            f"class {np.nanmin(was):.1%} -> {np.nanmin(now):.1%}, mean over classes {np.nanmean(was):.1%} -> {np.nanmean(now):.1%}"
        )

    def _attacked(self, model: Classifier, held_out: list[Batch]) -> tuple[ClassDiagnosis, np.ndarray]:
        return attacked(model, held_out, PGD(threat=self.task.threat, steps=_FIT_STEPS))

    # ---- resume ----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        objective = self.objective
        return {
            "base": super().state(), "sums": self.sums, "cost": self.cost, "average": self.average,
            "averaged_epochs": self.averaged_epochs, "loss_of_class": self.loss_of_class,
            "is_strong": self.is_strong,
            "of_class": {name: getattr(objective, name) for name in _OF_CLASS if hasattr(objective, name)},
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state["base"])
        for name in ("sums", "cost", "average", "averaged_epochs", "loss_of_class", "is_strong"):
            setattr(self, name, state[name])
        self.cost = self.cost.cpu()  # a state is read to the device of the training
        for name, value in state["of_class"].items():
            setattr(self.objective, name, value)


def is_fairer(tried: ClassDiagnosis, best: ClassDiagnosis, start: ClassDiagnosis, classes: int) -> bool:
    """Whether the worst robust accuracy of a class is above that of the best offset so far, at little cost.

    The cost: the means over classes of robust and of clean accuracy are at most 0.02 below those without an offset. Our
    choice: 0.02 is about the standard error of a mean over the usual 500 to 1,000 held-out samples. With fewer than 50
    samples one sample is more than 0.02, so that an offset may lose none on balance.
    """
    if not np.nanmin(tried.by_class(classes)) > np.nanmin(best.by_class(classes)):
        return False
    now, then = ((one.by_class(classes), one.clean_by_class(classes)) for one in (tried, start))
    return all(np.nanmean(a) >= np.nanmean(b) - _LOSS for a, b in zip(now, then, strict=True))


def raised(offset: torch.Tensor, label: int, step: float) -> None:
    """Make one class more likely. A single score of a binary network rises for class 1 and falls for class 0."""
    if len(offset) > 1:
        offset[label] += step
    else:
        offset += step if label == 1 else -step


@HARDENINGS.register("class-fair-lr")
@dataclass
class LayerRegularizedClassFair(ClassFair):
    """Class-fair training with the layer-wise regularizer of at-lr added to the loss."""

    regularizes: ClassVar[bool] = True
