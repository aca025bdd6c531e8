"""PGD on the margin from diverse starts: output diversification (arXiv 2003.06878), directed at wrong classes."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lsa_cli.attacks.base import (
    ATTACKS,
    Attack,
    Model,
    annealed,
    at_least_one,
    expected_gradient,
    expected_logits,
    slope,
)
from lsa_cli.attacks.deepfool import DUAL, rivals_of
from lsa_cli.attacks.losses import LOSSES, Loss, margin
from lsa_cli.attacks.randomness import uniform_like
from lsa_cli.attacks.search import Search
from lsa_cli.attacks.threat import Threat, each, per_sample
from lsa_cli.errors import UsageError

SHORTEST = 0.01  # the last step, as a share of the first
TOWARDS = 0.8  # weight of the target class in the direction of the outputs
AWAY = (-0.5, 0.1)  # range of the weight of the true class
# (share of `steps`, limit): a run is given up if the rest to a margin of 0 exceeds this share of its rise from the clean margin.
# Our choice: about twice the largest value of a run that broke its sample later, on four networks and two seeds.
HOPELESS = ((0.3, 1.5), (0.4, 1.0), (0.5, 0.75), (0.7, 0.3))
LONG = 20  # runs of fewer steps are never given up
CANDIDATES = 20  # likeliest wrong classes of which the linearly nearest ones are the targets


@ATTACKS.register("odi-pgd")
@dataclass(frozen=True)
class ODI(Attack):
    """PGD whose steps shrink along a cosine, from starts that differ in the outputs of the network.

    The first `spread` steps of a run have the length eps and increase the product of the logits and a random direction w
    (ODI, arXiv 2003.06878, eq. 2): w is uniform in [-1, 1], and larger for a target class than for the true class, as in
    A3 (arXiv 2203.05154, section 3.1; its weights of the later rounds). Run r has the r-th target class: that whose
    boundary is the r-th nearest in the linearised network (MALT, arXiv 2407.02240). Then `steps` steps increase `loss`;
    their length falls from eps to eps / 100 (our choice). Any wrong class breaks a sample.

    restarts: runs. at_once: runs of a sample in one pass, which is faster for few samples. eot: number of passes
    through a stochastic network whose mean is a gradient. With goal "break" a linf run from a diverse start is given up where
    its margin is hopelessly far from zero on the network itself (our choice). With spread 0 and one run it is PGD with a cosine schedule.
    """

    role = "gradient"
    threat: Threat
    steps: int = 23
    restarts: int = 1
    spread: int = 7
    loss: str = "margin"
    at_once: int = 1
    eot: int = 1
    on_copy: ClassVar[float] = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("odi-pgd", steps=self.steps, restarts=self.restarts, at_once=self.at_once, eot=self.eot)
        if self.spread < 0:
            raise UsageError(f"odi-pgd: spread must be 0 or more, not {self.spread}")
        LOSSES.get(self.loss)

    @property
    def passes(self) -> float:
        order = 0.4 + 0.6 * CANDIDATES / 2 if self._in_order else 0.4
        return self.eot * self.restarts * (self.spread + self.steps + 0.4) + order

    @property
    def stream(self) -> str:
        """Rounds of a cascade that differ in settings begin elsewhere."""
        return f"{super().stream} {self.loss} {self.spread} {self.steps} {self.restarts}"

    @property
    def inputs_each(self) -> int:
        return 3 * min(self.at_once, self.restarts)

    @property
    def _in_order(self) -> bool:
        """Whether it is measured which class is the nearest: one run, or runs without targets, need no order."""
        return self.spread > 0 and self.restarts > 1

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Search(x, y, self.threat)
        logits = expected_logits(model, x, self.eot)
        search.offer(x, logits)
        targets = self._targets(model, x, y, logits)
        for first in range(0, self.restarts, self.at_once):
            search.still()
            if search.is_over:
                break
            with search.aside():
                chosen = targets[search.rows, first : first + self.at_once]
                self._run(model, search, chosen, logits)
        return search.x_adv

    def _targets(self, model: Model, x: torch.Tensor, y: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The target class of every run, (N, restarts). With more runs than classes they repeat in order."""
        rivals = rivals_of(logits, y, CANDIDATES)
        if self._in_order:
            nearest = linear_distances(model, x, y, rivals, self.threat.norm).argsort(1)
            rivals = rivals.gather(1, nearest)
        runs = torch.arange(self.restarts, device=x.device)
        return rivals[:, runs % max(1, rivals.shape[1])] if rivals.shape[1] else y[:, None].expand(-1, self.restarts)

    def _run(self, model: Model, search: Search, targets: torch.Tensor, logits: torch.Tensor) -> None:
        """One run for each column of targets (M, R). logits (N, K): of the inputs of the whole batch."""
        runs, classes = targets.shape[1], logits.shape[1]
        x_adv = torch.stack([search.threat.sample(search.x) for _ in range(runs)], 1).flatten(0, 1)
        direction = (
            _directions(search, targets, classes).flatten(0, 1) if self.spread else x_adv.new_zeros(len(x_adv), 1)
        )
        clean = each(margin(logits[search.rows], search.y), runs)
        search.stack(runs)
        given_up = search.milestones(HOPELESS, self.steps, LONG) if self.spread else {}
        total = self.spread + self.steps
        for step in range(total):
            network = search.network_at(model, step / total)
            loss = _along(direction) if step < self.spread else LOSSES.get(self.loss)
            gradient, logits, _ = expected_gradient(network, x_adv, search.y, loss, self.eot)
            value = search.offer(x_adv, logits)
            limit = given_up.get(step - self.spread)
            if limit is not None:
                value = search.on_network(x_adv, value)
            threat = search.threat
            length = per_sample(threat.eps * self._length(step), x_adv)
            moved = threat.project(x_adv + length * threat.steepest(gradient.nan_to_num(0), x_adv), search.x)
            x_adv, direction, value, clean = search.still(moved, direction, value, clean)
            if limit is not None:
                x_adv, direction, clean = search.drop(-value > limit * (value - clean), x_adv, direction, clean)
            if search.is_over:
                return
        search.offer(x_adv, expected_logits(search.network_at(model, 1), x_adv, self.eot))

    def _length(self, step: int) -> float:
        """The length of a step, as a share of eps."""
        share = max(0, step - self.spread) / self.steps
        return annealed(1, SHORTEST, share)


def linear_distances(model: Model, x: torch.Tensor, y: torch.Tensor, rivals: torch.Tensor, norm: str) -> torch.Tensor:
    """The distances (N, R) from x (N, ...) to the boundaries to the classes `rivals` (N, R) in the linearised network.

    The lead of the label over the rival, divided by the dual norm of its gradient (arXiv 2407.02240, eq. 3); infinite
    where the gradient is zero. It takes one forward pass, and a backward pass for each column.
    """
    x = x.detach().requires_grad_(True)
    logits = model(x)
    leads = logits.gather(1, y[:, None]) - logits.gather(1, rivals)
    distances, last = [], leads.shape[1] - 1
    for column, lead in enumerate(leads.unbind(1)):
        gradient = slope(lead.sum(), x, retain_graph=column < last).flatten(1)
        distances.append(lead.detach() / torch.linalg.vector_norm(gradient, ord=DUAL[norm], dim=1))
    found = torch.stack(distances, 1) if distances else leads.detach()
    return found.nan_to_num(torch.inf)


def _directions(search: Search, targets: torch.Tensor, classes: int) -> torch.Tensor:
    """Random weights of the logits, (M, R, K)."""
    uniform = uniform_like(search.x.new_empty(*targets.shape, classes))
    true = search.y[:, None, None].expand(-1, targets.shape[1], 1)
    low, high = AWAY
    away = low + (high - low) * uniform.gather(2, true)
    return (2 * uniform - 1).scatter(2, true, away).scatter(2, targets[..., None], TOWARDS)


def _along(direction: torch.Tensor) -> Loss:
    return lambda logits, y: (direction * logits).sum(1)
