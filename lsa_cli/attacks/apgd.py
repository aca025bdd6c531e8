"""Auto-PGD (arXiv 2003.01690, Algorithm 1) in linf and l2, and its l1 variant (arXiv 2103.01208, Algorithm 1).

A run compares losses, and steps along signs, unit vectors or largest entries of gradients. So any increasing function of a
loss gives the same run, and the log-odds of `losses.cross_entropy` replace the cross-entropy.
"""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from lsa_cli.attacks.base import ATTACKS, Attack, Model, at_least_one, expected_gradient, expected_logits
from lsa_cli.attacks.deepfool import rivals_of
from lsa_cli.attacks.losses import DLR_CLASSES, LOSSES, Loss, targeted_dlr
from lsa_cli.attacks.randomness import normal_like
from lsa_cli.attacks.search import Search
from lsa_cli.attacks.threat import Threat, as_rows, per_sample

ALPHA = 0.75  # weight of the gradient step; the rest is momentum
RHO = 0.75  # condition 1: the least share of steps that increase the loss
CHECK_EVERY = 0.04  # l1: share of the steps between two checkpoints
SPARSER = 1.5  # l1: a step changes this many times fewer inputs than the best point does
FEWER = 0.95  # l1: the best point is sparser if it changes less than this share of the inputs that it changed before
SHORTER = 1.5  # l1: otherwise the step size is divided by this,
SHORTEST = 0.1  # down to this share of the first
# (share of the steps, targeted DLR below which a run is given up): twice as far from zero as any run at that step which
# broke its sample later (benchmarks/RESULTS.md).
HOPELESS = ((0.41, -0.43), (0.57, -0.24))
LONG = 50  # shorter runs are never given up


def checkpoints(steps: int) -> list[int]:
    """w_0, w_1, ... = ceil(p_j * steps), with p_j in whole hundredths, because 0.22 * 100 exceeds 22 in floating point."""
    points, p, gap = [0], 22, 22
    while p <= 100:
        points.append(-(-p * steps // 100))
        gap = max(gap - 3, 6)
        p += gap
    return sorted(set(points))


def stages(norm: str, steps: int) -> list[tuple[int, int]]:
    """Multiples of eps and the steps within each: l1 begins in larger balls (arXiv 2103.01208, section 3.2)."""
    early = steps * 3 // 10
    return [(3, early), (2, early), (1, steps - 2 * early)] if norm == "l1" else [(1, steps)]


class _Run:
    """The state of a run. Every attribute is a tensor with a row for each sample that is still attacked, (M, ...) or (M,).

    target is the class of a targeted run, x_adv x^(k), before x^(k-1), best x_max, best_value f_max, length the step size eta.
    """

    def __init__(self, x_adv: torch.Tensor, length: torch.Tensor, target: torch.Tensor) -> None:
        self.target = target
        self.x_adv = self.before = self.best = x_adv
        self.gradient = self.best_gradient = torch.zeros_like(x_adv)
        self.value, self.best_value = torch.full_like(length, torch.inf), torch.full_like(length, -torch.inf)
        self.length = length

    def drop(self, search: Search, rows: torch.Tensor | None = None) -> None:
        """Drop these rows, (M,) bool; by default those that the search drops."""
        state = tuple(vars(self).values())
        kept = search.still(*state) if rows is None else search.drop(rows, *state)
        vars(self).update(zip(vars(self), kept, strict=True))

    def observe(self, gradient: torch.Tensor, value: torch.Tensor) -> None:
        """Add the gradient and the loss (M,) at x_adv. A NaN is never the best."""
        self.gradient, self.value = gradient.nan_to_num(0), value
        better = value > self.best_value
        rows = as_rows(better, gradient)
        self.best = torch.where(rows, self.x_adv, self.best)
        self.best_gradient = torch.where(rows, self.gradient, self.best_gradient)
        self.best_value = torch.where(better, value, self.best_value)

    def go_back(self, to_best: torch.Tensor) -> None:
        """Continue from the best point, for these samples (M,) bool."""
        rows = as_rows(to_best, self.x_adv)
        self.x_adv = torch.where(rows, self.best, self.x_adv)
        self.gradient = torch.where(rows, self.best_gradient, self.gradient)
        self.value = torch.where(to_best, self.best_value, self.value)

    def leave_copy(self) -> None:
        """Continue on the network itself from the best point, whose loss on the network is not known yet."""
        self.x_adv = self.best
        self.value, self.best_value = torch.full_like(self.value, torch.inf), torch.full_like(self.value, -torch.inf)

    def check(self, x: torch.Tensor, since: int) -> None:
        """Adapt the step size at a checkpoint, `since` steps after the last one."""
        raise NotImplementedError

    def move(self, x: torch.Tensor, threat: Threat, k: int) -> None:
        """Step from x^(k) to x^(k+1)."""
        raise NotImplementedError


class _Dense(_Run):
    """linf and l2. rises: how often f rose since the last checkpoint; highest: f_max there; halved: whether eta was."""

    def __init__(self, x_adv: torch.Tensor, x: torch.Tensor, eps: torch.Tensor, target: torch.Tensor) -> None:
        super().__init__(x_adv, 2 * eps, target)
        self.rises, self.highest, self.halved = torch.zeros_like(eps), self.best_value, torch.zeros_like(eps).bool()

    def observe(self, gradient: torch.Tensor, value: torch.Tensor) -> None:
        self.rises = self.rises + (value > self.value)
        super().observe(gradient, value)

    def check(self, x: torch.Tensor, since: int) -> None:
        oscillates = self.rises < RHO * since  # condition 1
        stands = ~self.halved & (self.highest >= self.best_value)  # condition 2
        self.halved = oscillates | stands
        self.length = torch.where(self.halved, self.length / 2, self.length)
        self.go_back(self.halved)
        self.rises, self.highest = torch.zeros_like(self.rises), self.best_value

    def move(self, x: torch.Tensor, threat: Threat, k: int) -> None:
        step = per_sample(self.length, x) * threat.steepest(self.gradient, self.x_adv)
        moved = threat.project(self.x_adv + step, x)
        if k > 0:
            momentum = self.x_adv + ALPHA * (moved - self.x_adv) + (1 - ALPHA) * (self.x_adv - self.before)
            moved = threat.project(momentum, x)
        self.before, self.x_adv = self.x_adv, moved


class _Sparse(_Run):
    """l1. changed: how many inputs x_max changed at the last checkpoint; longest: the first step size."""

    def __init__(self, x_adv: torch.Tensor, x: torch.Tensor, eps: torch.Tensor, target: torch.Tensor) -> None:
        super().__init__(x_adv, eps, target)
        self.longest, self.changed = eps, self._changed(x)

    def _changed(self, x: torch.Tensor) -> torch.Tensor:
        return (self.best != x).flatten(1).sum(1)

    def check(self, x: torch.Tensor, since: int) -> None:
        changed = self._changed(x)
        sparser = changed < FEWER * self.changed
        shorter = torch.maximum(self.length / SHORTER, SHORTEST * self.longest)
        self.length, self.changed = torch.where(sparser, self.longest, shorter), changed
        self.go_back(sparser)

    def move(self, x: torch.Tensor, threat: Threat, k: int) -> None:
        """Step along the signs of the largest entries of the gradient, with the same length in each."""
        flat = self.gradient.flatten(1)
        size = flat.abs()
        fewer = (self.changed / SPARSER).ceil().long()
        count = torch.minimum(fewer, self.changed - 1).clamp_min(1)  # rounding up would keep two at two (ours)
        least = size.sort(dim=1, descending=True).values.gather(1, count[:, None] - 1)
        signs = torch.where(size >= least, flat.sign(), 0.0)
        step = signs / signs.abs().sum(1, keepdim=True).clamp_min(1)
        self.x_adv = threat.project(self.x_adv + per_sample(self.length, x) * step.reshape(x.shape), x)


@ATTACKS.register("apgd-ce")
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD on the cross-entropy, which adapts its step size.

    restarts: random starts; the worst case of each sample counts. at_once: runs of a sample in one pass, which is faster for
    few samples. eot: number of passes through a stochastic network whose mean is a gradient. Runs in linf and l2 start at a uniformly random point of the ball (the official code: near its border).
    """

    role = "gradient"
    threat: Threat
    steps: int = 100
    restarts: int = 1
    at_once: int = 1
    eot: int = 1
    loss: ClassVar[str] = "ce"
    on_copy: ClassVar[float] = 0.57
    hopeless: ClassVar[tuple[tuple[float, float], ...]] = ()  # share of the steps, loss below which a run ends there

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("apgd", steps=self.steps, restarts=self.restarts, at_once=self.at_once, eot=self.eot)

    @property
    def passes(self) -> float:
        return self.restarts * self.eot * (self.steps + 0.4)  # the last iterate needs no gradient

    @property
    def inputs_each(self) -> int:
        return 3 * min(self.at_once, self._runs)

    @property
    def _runs(self) -> int:
        """The most runs of a sample."""
        return self.restarts

    def _targets(self, model: Model, search: Search) -> torch.Tensor:
        """The target class of every run, (N, runs). An untargeted loss has no use for it."""
        return search.y[:, None].expand(-1, self.restarts)

    def _loss(self, target: torch.Tensor) -> Loss:
        return LOSSES.get(self.loss)

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Search(x, y, self.threat)
        targets = self._targets(model, search)
        for of_a_pass in targets.split(self.at_once, 1) if targets.shape[1] else ():
            search.still()
            if search.is_over:
                break
            with search.aside():
                self._run(model, search, of_a_pass[search.rows])
        return search.x_adv

    def _start(self, search: Search) -> torch.Tensor:
        # In l1, a projected normal step changes few inputs; a uniform point of the ball changes all and is half as strong.
        return search.x + normal_like(search.x) if self.threat.norm == "l1" else search.threat.sample(search.x)

    def _run(self, model: Model, search: Search, targets: torch.Tensor) -> None:
        """One run for each column of targets (M, R)."""
        sparse, runs = self.threat.norm == "l1", targets.shape[1]
        x_adv = torch.stack([self._start(search) for _ in range(runs)], 1).flatten(0, 1)
        target = targets.flatten()
        search.stack(runs)
        before = 0  # steps of the earlier stages
        for factor, steps in stages(self.threat.norm, self.steps):
            threat = _widened(search.threat, factor)
            eps = torch.as_tensor(threat.eps, dtype=x_adv.dtype, device=x_adv.device).expand(len(x_adv))
            run = (_Sparse if sparse else _Dense)(threat.project(x_adv, search.x), search.x, eps, target)
            checks = list(range(0, steps, max(1, int(CHECK_EVERY * steps)))) if sparse else checkpoints(steps)
            given_up = search.milestones(self.hopeless, steps, LONG)
            since = {this: this - last for last, this in pairwise(checks)}
            for k in range(steps):
                was_on_copy = search.is_on_copy
                network = search.network_at(model, (before + k) / self.steps)
                if was_on_copy and not search.is_on_copy:
                    run.leave_copy()
                gradient, logits, value = expected_gradient(
                    network, run.x_adv, search.y, self._loss(run.target), self.eot
                )
                run.observe(gradient, value)
                if factor == 1:
                    search.offer(run.x_adv, logits)
                run.drop(search)
                if search.is_over:
                    return
                if k in since:
                    run.check(search.x, since[k])
                if k in given_up and not search.is_on_copy and logits.shape[1] >= DLR_CLASSES:
                    run.drop(search, run.best_value < given_up[k])
                    if search.is_over:
                        return
                run.move(search.x, _widened(search.threat, factor), k)
            x_adv, target, before = run.best, run.target, before + steps
        network = search.network_at(model, 1)
        search.offer(run.x_adv, expected_logits(network, run.x_adv, self.eot))


def _widened(threat: Threat, factor: int) -> Threat:
    return threat if factor == 1 else dataclasses.replace(threat, eps=factor * threat.eps)


@ATTACKS.register("apgd-dlr")
@dataclass(frozen=True)
class APGDDLR(APGD):
    """Auto-PGD on the difference of logits ratio, whose gradient does not depend on the scale of the logits."""

    loss: ClassVar[str] = "dlr"


@ATTACKS.register("apgd-t")
@dataclass(frozen=True)
class TargetedAPGD(APGD):
    """Auto-PGD on the targeted DLR, towards each of the `targets` wrong classes with the largest clean logits.

    Any wrong class breaks a sample. With fewer wrong classes than `targets`, each one is a target. With goal "break" a linf
    run is given up where its loss is hopelessly far from zero (our choice), except with fewer than four classes, where the
    loss depends on the scale of the logits.
    """

    targets: int = 9
    hopeless: ClassVar[tuple[tuple[float, float], ...]] = HOPELESS
    on_copy: ClassVar[float] = HOPELESS[0][0]  # so that the network itself decides which runs are given up

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("apgd-t", targets=self.targets)

    @property
    def passes(self) -> float:
        return self.targets * super().passes + 0.4 * self.eot

    @property
    def _runs(self) -> int:
        return self.targets * self.restarts

    def _targets(self, model: Model, search: Search) -> torch.Tensor:
        logits = expected_logits(model, search.x, self.eot)
        search.offer(search.x, logits)
        return rivals_of(logits, search.y, self.targets).repeat_interleave(self.restarts, 1)

    def _loss(self, target: torch.Tensor) -> Loss:
        return lambda logits, y: targeted_dlr(logits, y, target)
