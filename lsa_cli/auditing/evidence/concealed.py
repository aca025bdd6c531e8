"""Attacks on networks that conceal their weakness from the usual ones: other classes, other points, other outputs.

A loss on the logits can be led astray by the logits, a gradient by a backward pass of its own, and an attack by inputs
that only an attack makes. Each attack here avoids one of these, and none is needed on an honest network.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lsa_cli.attacks import Attack, Threat
from lsa_cli.attacks.base import Model, expected_logits, input_gradient, slope, undisturbed
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.attacks.search import Search
from lsa_cli.auditing.evidence.probe import Probe

LEVELS = 255
_DUAL = {"linf": 1, "l2": 2, "l1": math.inf}  # the norm that a gradient has for changes measured in each norm
_RIDGE = 0.01  # of the mean squared length of the features


@dataclass(frozen=True)
class TowardsNearestClasses(Attack):
    """PGD from the sample itself towards the classes whose boundary is nearest to first order (arXiv 2407.02240).

    Of the `classes` largest wrong logits the `targets` with the smallest (z_y - z_t) / |grad (z_y - z_t)|, in the dual
    norm; `steps` each, on z_t - z_y. A class that merely stands close below the winner is not near when its logit does not
    move with the input. Passes: classes + targets * steps, the former backward only.
    """

    threat: Threat
    classes: int = 5
    targets: int = 2
    steps: int = 8

    @property
    def passes(self) -> float:
        return self.classes + self.targets * (self.steps + 0.4)

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
        x_adv = search.x
        for _ in range(self.steps):

            def towards(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                wanted = target[search.rows]
                return (logits.gather(1, wanted[:, None]) - logits.gather(1, y[:, None])).squeeze(1)

            gradient, logits = input_gradient(model, x_adv, search.y, towards)
            search.offer(x_adv, logits)
            direction = search.threat.steepest(gradient, x_adv).nan_to_num(0)
            x_adv = search.threat.project(x_adv + 2.5 * self.threat.eps / self.steps * direction, search.x)
            (x_adv,) = search.still(x_adv)
            if search.is_over:
                return
        search.offer(x_adv, expected_logits(model, x_adv))


@dataclass(frozen=True)
class OnGrid(Attack):
    """PGD on the cross-entropy whose every iterate is a picture of 8 bits a channel, as image files hold them."""

    threat: Threat
    steps: int = 10

    @staticmethod
    def fits(threat: Threat) -> bool:
        """Whether the budget reaches the next level of a pixel."""
        return float(threat.eps) * LEVELS >= 1

    @property
    def passes(self) -> float:
        return self.steps + 0.4

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Search(x, y, self.threat)
        inner = self.threat
        if self.threat.norm == "linf":  # whole levels, so that rounding does not leave the budget
            inner = type(self.threat)(math.floor(self.threat.eps * LEVELS + 1e-4) / LEVELS, self.threat.bounds)
        length = max(2.5 * float(inner.eps) / self.steps, 1 / LEVELS)
        x_adv = x
        for _ in range(self.steps):
            gradient, logits = input_gradient(model, x_adv, search.y, cross_entropy)
            search.offer(*self._allowed(search, x_adv, logits))
            direction = inner.steepest(gradient, x_adv).nan_to_num(0)
            x_adv = on_grid(inner.project(x_adv + length * direction, search.x))
            (x_adv,) = search.still(x_adv)
            if search.is_over:
                return search.x_adv
        search.offer(*self._allowed(search, x_adv, expected_logits(model, x_adv)))
        return search.x_adv

    def _allowed(self, search: Search, x_adv: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where rounding has left the budget the input counts as no find."""
        inside = self.threat.contains(x_adv, search.x)
        nothing = torch.full_like(logits, -torch.inf).scatter(1, search.y[:, None], 0.0)
        return x_adv, torch.where(inside[:, None], logits, nothing)


class _NoFeatures(Exception):
    pass


def on_grid(x: torch.Tensor) -> torch.Tensor:
    return (x * LEVELS).round() / LEVELS


def bare_logits(probe: Probe, module: nn.Module) -> Model | None:
    """What `module`, the last layer with weights, returns: the logits before anything that follows it.

    None where that is not one number for each class, or no more than the logits themselves, shifted and scaled.
    """

    def outputs(x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, K)
        seen: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda *passed: seen.append(passed[2]))
        try:
            probe.model(x)
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].shape != (len(x), probe.clean.shape[1]):
            raise _NoFeatures
        return seen[0].float()

    try:
        with torch.no_grad(), undisturbed(probe.model):
            bare = probe.by_batch(outputs, probe.x)
    except _NoFeatures:
        return None
    one, other = (rows - rows.mean(1, keepdim=True) for rows in (bare.double(), probe.clean.double()))
    same = torch.nn.functional.cosine_similarity(one, other).min() > 1 - 1e-6
    return None if same else outputs


def fresh_head(probe: Probe, module: nn.Module) -> Model | None:
    """The network with another last layer: ridge regression of the classes on what `module` gets, fitted on the probe.

    Everything between the features and the logits is left out with it. module: the last layer with weights. None where
    it is not part of a pass, or gets more than one tensor for all samples.
    """

    def features(x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, D)
        seen: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            probe.model(x)
        finally:
            handle.remove()
        if len(seen) != 1 or len(seen[0]) != len(x):
            raise _NoFeatures
        return seen[0].flatten(1).float()

    try:
        with torch.no_grad(), undisturbed(probe.model):
            known = probe.by_batch(features, probe.x)
    except _NoFeatures:
        return None
    with torch.no_grad():
        mean = known.mean(0)
        centred = known - mean
        wanted = nn.functional.one_hot(probe.y, probe.clean.shape[1]).float() - 1 / probe.clean.shape[1]
        kernel = centred @ centred.T
        kernel += (_RIDGE * kernel.diagonal().mean() + 1e-12) * torch.eye(len(known), device=known.device)
        weight = centred.T @ torch.linalg.solve(kernel, wanted)
    return lambda x: (features(x) - mean) @ weight
