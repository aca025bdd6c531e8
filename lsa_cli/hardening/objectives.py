"""Objectives of adversarial training (option --base): how to make the examples of a batch, and the loss on them.

Madry's with FGSM, PGD or APGD (arXiv 1412.6572, 1706.06083, 2003.01690), Fast (2001.03994), N-FGSM (2202.01181),
Free (1904.12843), TRADES (1901.08573), MART (openreview rklOg6EFwS).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.attacks.apgd import APGD
from lsa_cli.attacks.base import Attack, Model, input_gradient, slope
from lsa_cli.attacks.gradient import FGSM, PGD
from lsa_cli.attacks.losses import unscaled_cross_entropy
from lsa_cli.attacks.randomness import normal_like
from lsa_cli.attacks.threat import Threat, per_sample
from lsa_cli.errors import UsageError
from lsa_cli.hardening.methods import Batch, Task
from lsa_cli.models.classifier import Classifier
from lsa_cli.registry import Registry, build


@contextmanager
def as_attacked(model: Classifier, mode: str) -> Iterator[Model]:
    """A context that yields the network in the mode in which it is attacked.

    "eval", the default: as an attacker of the finished network finds it. "train": with batch statistics and dropout as in
    the update; running statistics do not change.
    """
    if mode == "eval":
        yield model
        return
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield lambda x: model(x)  # not a module, so that the attack does not change the mode
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@dataclass
class Objective:
    """How to make the adversarial examples of a batch, and the loss on them.

    needs_clean: the loss takes the clean logits. is_one_step: one gradient makes the examples, so that PGD can take its place.
    uses: the attack settings that change the examples. attack_names: prefixes of the attacks against which it trains when a
    hardening follows an audit. eps_of_class, weight_of_class: (K,) factors of eps and of the cross-entropy, for methods that
    treat classes differently; None: 1.
    """

    task: Task
    needs_clean: ClassVar[bool] = False
    is_one_step: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ("train_eps", "steps", "step_size", "attack_mode")
    attack_names: ClassVar[tuple[str, ...]] = ()
    eps_of_class: torch.Tensor | None = field(default=None, init=False)
    weight_of_class: torch.Tensor | None = field(default=None, init=False)

    @property
    def updates(self) -> int:
        """Number of weight updates on one batch."""
        return 1

    def threat(self, batch: Batch) -> Threat:
        """The threat model with the eps that the warm-up has reached."""
        eps = self.task.threat.eps * batch.strength
        return replace(self.task.threat, eps=eps * _of_samples(self.eps_of_class, batch.y))

    def attack(self, threat: Threat) -> Attack:
        raise NotImplementedError

    def examples(self, model: Classifier, batch: Batch) -> torch.Tensor:  # -> (N, ...)
        attack = self.attack(self.threat(batch))
        with as_attacked(model, self.task.attack_mode) as attacked:
            return attack(attacked, batch.x, batch.y, index=batch.index, seed=batch.seed)

    def losses(
        self, logits: torch.Tensor, clean_logits: torch.Tensor | None, y: torch.Tensor
    ) -> torch.Tensor:  # (N, K), (N, K), (N,) -> (N,)
        return self.cross_entropy(logits, y)

    def cross_entropy(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # (N, K), (N,) -> (N,)
        losses = F.cross_entropy(logits, y, reduction="none", label_smoothing=self.task.label_smoothing)
        return losses * _of_samples(self.weight_of_class, y)

    def inside(self, model: Classifier) -> AbstractContextManager[None]:
        """A context for the forward pass of the examples, for objectives that perturb hidden layers."""
        return nullcontext()

    def learn(self, x_adv: torch.Tensor, batch: Batch) -> None:
        """Called after the update. x_adv.grad is the input gradient if x_adv requires one."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


OBJECTIVES: Registry[type[Objective]] = Registry("base of adversarial training")


def make_objective(task: Task, base: str, **options: float | None) -> Objective:
    """The objective `base`. An option that is None keeps its default. Raises UsageError for options that it does not have."""
    given = {name: str(value) for name, value in options.items() if value is not None}
    made: Objective = build(OBJECTIVES.get(base), given, f"base '{base}'", task=task)
    return made


@OBJECTIVES.register("fgsm")
@dataclass
class FGSMObjective(Objective):
    """One step of length eps, no random start."""

    is_one_step: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("train_eps", "attack_mode")
    attack_names: ClassVar[tuple[str, ...]] = ("fgsm",)

    def attack(self, threat: Threat) -> Attack:
        return FGSM(threat=threat)


@OBJECTIVES.register("pgd")
@dataclass
class PGDObjective(Objective):
    """Madry's adversarial training (arXiv 1706.06083)."""

    def attack(self, threat: Threat) -> Attack:
        return PGD(threat=threat, steps=self.task.steps, step_size=self.step_size(threat))

    def step_size(self, threat: Threat) -> float | torch.Tensor | None:  # or (N,)
        """The step size of the settings, scaled like eps by the warm-up and the class; None where none is set."""
        if self.task.step_size is None:
            return None
        length = self.task.step_size * torch.as_tensor(threat.eps).double() / float(self.task.threat.eps)
        return length.clamp_min(1e-12) if length.ndim else max(float(length), 1e-12)


@OBJECTIVES.register("apgd")
@dataclass
class APGDObjective(Objective):
    """Adversarial training with APGD on the cross-entropy."""

    uses: ClassVar[tuple[str, ...]] = ("train_eps", "steps", "attack_mode")
    attack_names: ClassVar[tuple[str, ...]] = ("apgd",)

    def attack(self, threat: Threat) -> Attack:
        return APGD(threat=threat, steps=self.task.steps)


@OBJECTIVES.register("fast")
@dataclass
class FastObjective(Objective):
    """FGSM with a random start and a step of 1.25 eps (arXiv 2001.03994, Algorithm 3)."""

    is_one_step: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("train_eps", "attack_mode")

    def attack(self, threat: Threat) -> Attack:
        return FGSM(threat=threat, random_start=True)


@dataclass(frozen=True)
class _NoisyFGSM(Attack):
    """A step of length eps from a random point of twice the budget; only the range of inputs bounds the result."""

    threat: Threat

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        start = replace(self.threat, eps=2 * self.threat.eps).sample(x)
        step = self.threat.steepest(input_gradient(model, start, y, unscaled_cross_entropy)[0], start)
        return self.threat.clamp(start + per_sample(self.threat.eps, x) * step)


@OBJECTIVES.register("n-fgsm")
@dataclass
class NoisyFGSMObjective(Objective):
    """FGSM from noise that is larger than eps, and not clipped (N-FGSM, arXiv 2202.01181, with its k = 2 and alpha = eps).

    So examples can be up to 3 eps away. The paper has linf; noise from the ball of 2 eps in other norms is our choice.
    """

    is_one_step: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("train_eps", "attack_mode")

    def attack(self, threat: Threat) -> Attack:
        return _NoisyFGSM(threat)


@OBJECTIVES.register("free")
@dataclass
class FreeObjective(Objective):
    """Every batch is used `replays` times, and the input gradient of each update changes its perturbation.

    arXiv 1904.12843, Algorithm 1. One pass gives both gradients. So the perturbation also depends on the regularizer, where
    there is one, and the network is in training mode (our choice: separate passes would cost as much as PGD).
    """

    uses: ClassVar[tuple[str, ...]] = ("train_eps",)
    replays: int = 8
    _delta: torch.Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.replays < 1:
            raise UsageError(f"base free: replays must be at least 1, not {self.replays}")

    @property
    def updates(self) -> int:
        return self.replays

    def examples(self, model: Classifier, batch: Batch) -> torch.Tensor:
        if self._delta is None or len(self._delta) < len(batch.x):
            self._delta = torch.zeros_like(batch.x)
        moved = batch.x + self._delta[: len(batch.x)]
        return self.threat(batch).project(moved, batch.x).detach().requires_grad_(True)

    def learn(self, x_adv: torch.Tensor, batch: Batch) -> None:
        assert self._delta is not None
        assert x_adv.grad is not None
        threat = self.threat(batch)
        with torch.no_grad():
            step = threat.steepest(x_adv.grad, x_adv).nan_to_num(0)
            moved = threat.project(x_adv + per_sample(threat.eps, x_adv) * step, batch.x)
            self._delta[: len(batch.x)] = moved - batch.x

    def state(self) -> dict[str, Any]:
        return {} if self._delta is None else {"delta": self._delta}

    def restore(self, state: dict[str, Any]) -> None:
        self._delta = state.get("delta")


@dataclass(frozen=True)
class _Divergence(Attack):
    """PGD on KL(p(x) || p(x_adv)), which needs no label; the inner problem of TRADES (Algorithm 1 there)."""

    threat: Threat
    steps: int
    step_size: float | torch.Tensor | None

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = model(x).log_softmax(1)
        length = 2.5 * self.threat.eps / self.steps if self.step_size is None else self.step_size
        x_adv = self.threat.project(x + 0.001 * normal_like(x), x)
        for _ in range(self.steps):
            leaf = x_adv.detach().requires_grad_(True)
            divergence = F.kl_div(model(leaf).log_softmax(1), target, reduction="sum", log_target=True)
            gradient = slope(divergence, leaf)
            step = self.threat.steepest(gradient, leaf).nan_to_num(0)
            x_adv = self.threat.project(x_adv + per_sample(length, x) * step, x)
        return x_adv


@OBJECTIVES.register("trades")
@dataclass
class TradesObjective(PGDObjective):
    """CE(x, y) + beta * KL(p(x) || p(x_adv)) (arXiv 1901.08573, eq. 5); beta is 1/lambda there, 6 in its tables.

    With a beta for each class the sum is divided by 1 + beta, so that a larger beta gives a class no larger weight (CFA).
    """

    beta: float = 6.0
    needs_clean: ClassVar[bool] = True
    beta_of_class: torch.Tensor | None = field(default=None, init=False)  # (K,) instead of beta

    def __post_init__(self) -> None:
        _refuse_negative("trades", self.beta)

    def attack(self, threat: Threat) -> Attack:
        return _Divergence(threat, self.task.steps, self.step_size(threat))

    def losses(self, logits: torch.Tensor, clean_logits: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
        assert clean_logits is not None
        clean, divergence = self.cross_entropy(clean_logits, y), kl_divergence(clean_logits, logits)
        if self.beta_of_class is None:
            return clean + self.beta * divergence
        beta = _of_samples(self.beta_of_class, y)
        return (clean + beta * divergence) / (1 + beta)


@OBJECTIVES.register("mart")
@dataclass
class MartObjective(PGDObjective):
    """BCE(x_adv, y) + beta * KL(p(x) || p(x_adv)) * (1 - p_y(x)): misclassified samples have more weight.

    Wang et al., ICLR 2020 (openreview rklOg6EFwS), eq. 11; BCE is the cross-entropy plus -log(1 - largest wrong
    probability). PGD on the cross-entropy makes the examples.
    """

    beta: float = 5.0
    needs_clean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _refuse_negative("mart", self.beta)

    def losses(self, logits: torch.Tensor, clean_logits: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
        assert clean_logits is not None
        others = logits.softmax(1).scatter(1, y[:, None], 0.0).amax(1)
        boosted = super().losses(logits, None, y) - torch.log1p(-others.clamp_max(1 - 1e-6))
        unsure = 1 - clean_logits.softmax(1).gather(1, y[:, None]).squeeze(1)
        return boosted + self.beta * kl_divergence(clean_logits, logits) * unsure


def _refuse_negative(base: str, beta: float) -> None:
    if beta < 0:
        raise UsageError(f"base {base}: beta must be 0 or more, not {beta:g}")


def _of_samples(factors: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor | float:  # (K,), (N,) -> (N,)
    return 1.0 if factors is None else factors.to(y.device)[y]


def kl_divergence(clean_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:  # (N, K) x2 -> (N,)
    return F.kl_div(logits.log_softmax(1), clean_logits.log_softmax(1), reduction="none", log_target=True).sum(1)


def objective_for(attack: str) -> str:
    """The name of the objective that trains against an attack of this spec; pgd where no objective names it."""
    stated = (name for name in OBJECTIVES.names() if attack.startswith(OBJECTIVES.get(name).attack_names))
    return next(stated, "pgd")
