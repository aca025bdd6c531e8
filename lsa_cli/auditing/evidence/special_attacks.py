"""Attacks on networks that hide their weakness from the usual attacks: towards other classes, and among other inputs.

Logits can mislead a loss, and a network can recognise inputs that only an attack makes. Each attack here avoids one of
these; an honest network needs none of them. Those of `guided` follow other outputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch.nn import functional as F

from lsa_cli.attacks import Attack, Threat
from lsa_cli.attacks.base import Model, expected_logits, input_gradient, slope
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.attacks.search import Search
from lsa_cli.auditing.evidence.guided import follow

LEVELS = 255
_SQUARES, _EQUAL = (2, 3, 4), 1e-3  # sides in pixels; differences below that are none
Kept = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # a gradient, its samples -> the part that is followed
_DUAL = {"linf": 1, "l2": 2, "l1": math.inf}  # the norm of a gradient, for perturbations measured in each norm


@dataclass(frozen=True)
class TowardsNearestClasses(Attack):
    """PGD from the sample itself towards the classes whose boundary is nearest to first order (arXiv 2407.02240).

    Of the `classes` largest wrong logits it takes the `targets` with the smallest (z_y - z_t) / |grad (z_y - z_t)|, in the
    dual norm, with `steps` on z_t - z_y for each. A class with a logit just below the largest is not near if that logit does
    not change with the input. It costs classes + targets * steps passes; the former are backward only.
    """

    threat: Threat
    classes: int = 5
    targets: int = 1
    steps: int = 8
    on_copy: ClassVar[float] = 0.75

    @property
    def passes(self) -> float:
        return 0.6 * self.classes + self.targets * (self.steps + 0.4)

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Search(x, y, self.threat)
        for target in self._nearest(model, x, y).unbind(1):
            search.still()
            if search.is_over:
                break
            with search.aside():
                self._run(model, search, target)
        return search.x_adv

    def _nearest(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # (N, targets)
        leaf = x.detach().requires_grad_(True)
        logits = model(leaf)
        wrong = logits.detach().scatter(1, y[:, None], -torch.inf)
        candidates = wrong.topk(min(self.classes, logits.shape[1] - 1), dim=1).indices
        gaps = logits.gather(1, y[:, None]) - logits.gather(1, candidates)
        lengths = [
            torch.linalg.vector_norm(slope(gap.sum(), leaf, True).flatten(1), ord=_DUAL[self.threat.norm], dim=1)
            for gap in gaps.unbind(1)
        ]
        near = (gaps.detach() / torch.stack(lengths, 1).clamp_min(1e-30)).nan_to_num(torch.inf)
        return candidates.gather(1, near.argsort(1)[:, : self.targets])

    def _run(self, model: Model, search: Search, target: torch.Tensor) -> None:
        def towards(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            wanted = target[search.rows]
            return (logits.gather(1, wanted[:, None]) - logits.gather(1, y[:, None])).squeeze(1)

        follow(model, search, self.steps, lambda network, x: input_gradient(network, x, search.y, towards))


@dataclass(frozen=True)
class PartsOfImage(Attack):
    """PGD on the cross-entropy that leaves a part of the image (N, C, H, W) as it is: its frame, and then its background. And where
    all images have equal channels, or squares of equal pixels, one that keeps them equal.

    The frame is an eighth of each side, the background all pixels of the most frequent value. A network may recognise an
    attack by changes in these parts, which the classes of most images do not need, or by what its images have in common.
    """

    threat: Threat
    steps: int = 10
    on_copy: ClassVar[float] = 0.75

    @property
    def passes(self) -> float:
        return 2 * (self.steps + 0.4)

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Search(x, y, self.threat)
        parts: list[Kept] = [partial(_masked, part) for part in (_inner(x), _foreground(x))]
        for keep in [*parts, *_common(x)]:
            search.still()
            if search.is_over:
                break
            with search.aside():
                self._run(model, search, keep)
        return search.x_adv

    def _run(self, model: Model, search: Search, keep: Kept) -> None:
        def gradient(network: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            slopes, logits = input_gradient(network, x, search.y, cross_entropy)
            return keep(slopes, search.rows), logits

        follow(model, search, self.steps, gradient)


def _inner(x: torch.Tensor) -> torch.Tensor:  # (N, C, H, W) -> the same, bool
    """The pixels inside the frame."""
    inner = torch.zeros_like(x, dtype=torch.bool)
    rows, columns = (max(1, size // 8) for size in x.shape[2:])
    inner[..., rows:-rows, columns:-columns] = True
    return inner


def _foreground(x: torch.Tensor) -> torch.Tensor:  # (N, C, H, W) -> the same, bool
    """The pixels whose value is not the most frequent one of their image."""
    return x != x.flatten(1).mode(1).values.reshape(-1, 1, 1, 1)


def _masked(part: torch.Tensor, gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return gradient * part[rows]


def _channel_mean(gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return gradient.mean(1, keepdim=True).expand_as(gradient)


def _square_mean(side: int, gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return F.interpolate(F.avg_pool2d(gradient, side), scale_factor=side)


def _common(x: torch.Tensor) -> list[Kept]:  # (N, C, H, W)
    """For each property that all the images have, what makes a gradient keep it: equal channels, squares of equal pixels."""
    every = torch.arange(len(x), device=x.device)
    means: list[Kept] = [_channel_mean] if x.shape[1] > 1 else []
    means += [partial(_square_mean, side) for side in _SQUARES if x.shape[2] % side == x.shape[3] % side == 0]
    return [mean for mean in means if bool(((mean(x, every) - x).abs() < _EQUAL).all())]


@dataclass(frozen=True)
class OnGrid(Attack):
    """PGD on the cross-entropy, of which every iterate is an image with 8 bits per channel, as image files hold them."""

    threat: Threat
    steps: int = 10
    on_copy: ClassVar[float] = 0.75

    @property
    def passes(self) -> float:
        return self.steps + 0.4

    @staticmethod
    def fits(threat: Threat) -> bool:
        """Whether eps is large enough to change a pixel by one level."""
        return float(threat.eps) * LEVELS >= 1

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Search(x, y, self.threat)
        inner = self.threat
        if self.threat.norm == "linf":  # whole levels, so that rounding stays within the budget
            inner = type(self.threat)(math.floor(self.threat.eps * LEVELS + 1e-4) / LEVELS, self.threat.bounds)
        length = max(2.5 * float(inner.eps) / self.steps, 1 / LEVELS)
        x_adv = x
        for step in range(self.steps):
            network = search.network_at(model, step / self.steps)
            gradient, logits = input_gradient(network, x_adv, search.y, cross_entropy)
            self._offer(search, x_adv, logits)
            direction = inner.steepest(gradient, x_adv).nan_to_num(0)
            x_adv = on_grid(inner.project(x_adv + length * direction, search.x))
            (x_adv,) = search.still(x_adv)
            if search.is_over:
                return search.x_adv
        self._offer(search, x_adv, expected_logits(search.network_at(model, 1), x_adv))
        return search.x_adv

    def _offer(self, search: Search, x_adv: torch.Tensor, logits: torch.Tensor) -> None:
        """Offer the inputs; one that rounding has moved out of the budget does not count as adversarial."""
        inside = self.threat.contains(x_adv, search.x)
        failed = torch.full_like(logits, -torch.inf).scatter(1, search.y[:, None], 0.0)
        search.offer(x_adv, torch.where(inside[:, None], logits, failed))


def on_grid(x: torch.Tensor) -> torch.Tensor:
    """The nearest image with 8 bits per channel."""
    return (x * LEVELS).round() / LEVELS
