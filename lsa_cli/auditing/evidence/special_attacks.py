"""Attacks on networks that hide their weakness from the usual attacks: on other classes, other inputs, other outputs.

Logits can mislead a loss, a backward pass of its own can mislead a gradient, and a network can recognise inputs that only
an attack makes. Each attack here avoids one of these; an honest network needs none of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lsa_cli.attacks import Attack, Threat
from lsa_cli.attacks.base import Model, expected_logits, input_gradient, slope
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.attacks.search import Search
from lsa_cli.auditing.evidence.probe import Probe

LEVELS = 255
_DUAL = {"linf": 1, "l2": 2, "l1": math.inf}  # the norm of a gradient, for perturbations measured in each norm
_RIDGE = 0.01  # of the mean squared length of the features


@dataclass(frozen=True)
class TowardsNearestClasses(Attack):
    """PGD from the sample itself towards the classes whose boundary is nearest to first order (arXiv 2407.02240).

    Of the `classes` largest wrong logits it takes the `targets` with the smallest (z_y - z_t) / |grad (z_y - z_t)|, in the
    dual norm, with `steps` on z_t - z_y for each. A class with a logit just below the largest is not near if that logit does
    not change with the input. It costs classes + targets * steps passes; the former are backward only.
    """

    threat: Threat
    classes: int = 5
    targets: int = 2
    steps: int = 8

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
    """PGD on the cross-entropy, of which every iterate is an image with 8 bits per channel, as image files hold them."""

    threat: Threat
    steps: int = 10

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
        for _ in range(self.steps):
            gradient, logits = input_gradient(model, x_adv, search.y, cross_entropy)
            self._offer(search, x_adv, logits)
            direction = inner.steepest(gradient, x_adv).nan_to_num(0)
            x_adv = on_grid(inner.project(x_adv + length * direction, search.x))
            (x_adv,) = search.still(x_adv)
            if search.is_over:
                return search.x_adv
        self._offer(search, x_adv, expected_logits(model, x_adv))
        return search.x_adv

    def _offer(self, search: Search, x_adv: torch.Tensor, logits: torch.Tensor) -> None:
        """Offer the inputs; one that rounding has moved out of the budget does not count as adversarial."""
        inside = self.threat.contains(x_adv, search.x)
        failed = torch.full_like(logits, -torch.inf).scatter(1, search.y[:, None], 0.0)
        search.offer(x_adv, torch.where(inside[:, None], logits, failed))


def on_grid(x: torch.Tensor) -> torch.Tensor:
    """The nearest image with 8 bits per channel."""
    return (x * LEVELS).round() / LEVELS


# ---- other outputs of the network ----------------------------------------------------------------------


class _NoRows(Exception):
    """A module runs never or several times in a pass, or not on one row for each sample."""


def _reader(model: Model, module: nn.Module, inputs: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """images (N, ...) -> what `module` gets (inputs), or returns, in a pass of `model`: (N, ...). Raises _NoRows."""

    def read(x: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda _, given, output: seen.append(given[0] if inputs else output))
        try:
            model(x)
        finally:
            handle.remove()
        if len(seen) != 1 or not isinstance(seen[0], torch.Tensor) or len(seen[0]) != len(x):
            raise _NoRows
        return seen[0].float()

    return read


def _read_all(probe: Probe, read: Model) -> torch.Tensor | None:
    """What a reader gives for the probe; None where it fails in a pass without gradients or in one with them."""
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            read(probe.x[:2].clone().requires_grad_())
        return probe.logits(probe.x, read)
    except _NoRows:
        return None


def bare_logits(probe: Probe, module: nn.Module) -> Model | None:
    """The network without what follows `module`, its last layer with weights.

    None where the output of `module` is not one number for each class, or is just the logits, shifted and scaled.
    """
    outputs = _reader(probe.model, module, inputs=False)
    bare = _read_all(probe, outputs)
    if bare is None or bare.shape != probe.clean.shape:
        return None
    one, other = (rows - rows.mean(1, keepdim=True) for rows in (bare.double(), probe.clean.double()))
    same = torch.nn.functional.cosine_similarity(one, other).min() > 1 - 1e-6
    return None if same else outputs


def features_of(probe: Probe, module: nn.Module) -> tuple[Model, torch.Tensor] | None:
    """images (N, ...) -> (N, D), the inputs of `module`, the last layer with weights; and those for the probe.

    None where the module is not part of a pass, or does not get one tensor for all samples.
    """
    inputs = _reader(probe.model, module, inputs=True)

    def features(x: torch.Tensor) -> torch.Tensor:
        return inputs(x).flatten(1)

    known = _read_all(probe, features)
    return None if known is None else (features, known)


def fresh_head(probe: Probe, module: nn.Module) -> Model | None:
    """The network with a new last layer: ridge regression of the classes on `features_of` the module, fitted on the probe.

    It leaves out everything between the features and the logits. None where there are no features.
    """
    found = features_of(probe, module)
    if found is None:
        return None
    features, known = found
    with torch.no_grad():
        mean = known.mean(0)
        centred = known - mean
        wanted = nn.functional.one_hot(probe.y, probe.clean.shape[1]).float() - 1 / probe.clean.shape[1]
        kernel = centred @ centred.T
        kernel += (_RIDGE * kernel.diagonal().mean() + 1e-12) * torch.eye(len(known), device=known.device)
        weight = centred.T @ torch.linalg.solve(kernel, wanted)
    return lambda x: (features(x) - mean) @ weight
