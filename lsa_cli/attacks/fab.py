"""FAB, the Fast Adaptive Boundary attack (arXiv 1907.02044), and FAB-T, its targeted runs in AutoAttack."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lsa_cli.attacks.base import ATTACKS, Attack, Model, at_least_one
from lsa_cli.attacks.deepfool import nearest_plane, onto_plane, rivals_of
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.search import Nearest
from lsa_cli.attacks.threat import Threat, as_rows, per_sample
from lsa_cli.errors import UsageError

_FINAL_QUERIES = 3  # of the final search, as in the paper
# (share of the steps, distance in eps of the nearest adversarial example beyond which a run is given up). In all runs but
# one, the later steps reduced the distance by at most two thirds of what was missing (benchmarks/RESULTS.md).
HOPELESS = ((0.3, 1.5), (0.4, 1.25), (0.5, 1.16), (0.6, 1.08), (0.7, 1.05))
LONG = 50  # shorter runs are never given up
_PUSH = 0.01  # share of the remaining way to go beyond the interpolated boundary


@ATTACKS.register("fab")
@dataclass(frozen=True)
class FAB(Attack):
    """Projections onto the linearised boundary, biased to the input, and backward steps across it (Algorithm 1).

    Each step chooses the nearest of the boundaries to the `targets` likeliest wrong classes, with a backward pass for each.
    Up to ten classes these are all; with more, the limit is our choice. Restarts begin at a random point within half of
    eps, or of the distance found so far if that is less. The final search aims a little beyond the paper's interpolated
    boundary, so that rounding does not undo the misclassification. With goal "break" a linf run is given up where its
    nearest adversarial example is hopelessly far from the budget (our choice).
    """

    role = "gradient"
    threat: Threat
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    kind = "minimal"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("fab", steps=self.steps, restarts=self.restarts, targets=self.targets)
        if not (0 <= self.alpha_max <= 1 and 0 < self.beta < 1 and self.eta >= 1):
            raise UsageError("fab: alpha_max must be in [0, 1], beta between 0 and 1, and eta at least 1")

    @property
    def passes(self) -> float:
        return self.restarts * self.steps * (0.8 + 0.6 * self.targets)

    def _in_passes(self, rivals: torch.Tensor) -> Sequence[torch.Tensor]:
        """The rivals (N, T) of the runs of each pass, (N, R, C): R runs of C rivals."""
        return [rivals[:, None]]

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Nearest(x, y, self.threat)
        with torch.no_grad():
            logits = model(x)
        search.offer(x, logits)
        rivals = rivals_of(logits, y, self.targets)
        search.still()
        for restart in range(self.restarts):
            for of_a_pass in self._in_passes(rivals) if rivals.shape[1] else ():
                with search.aside():
                    self._run(model, search, bool(restart), of_a_pass[search.rows])
                if search.is_over:
                    return search.x_adv
        self._approach(model, search)
        return search.x_adv

    def _start(self, search: Nearest) -> torch.Tensor:
        eps = torch.as_tensor(search.threat.eps, device=search.x.device, dtype=search.x.dtype)
        radius = torch.minimum(eps, search.distance[search.rows]) / 2
        return dataclasses.replace(search.threat, eps=radius).sample(search.x)

    def _run(self, model: Model, search: Nearest, from_random: bool, rivals: torch.Tensor) -> None:
        """One run for each column of rivals (M, R, C)."""
        runs, rivals = rivals.shape[1], rivals.flatten(0, 1)
        points = [self._start(search) if from_random else search.x for _ in range(runs)]
        point = torch.stack(points, 1).flatten(0, 1)
        search.stack(runs)
        reached = torch.full_like(search.distance[search.rows], torch.inf)
        given_up = search.milestones(HOPELESS, self.steps, LONG)
        for step in range(1, self.steps + 1):
            if search.is_over:
                return
            point, rivals, reached = self._step(model, search, point, rivals, reached)
            if step in given_up:
                far = reached > given_up[step] * torch.as_tensor(search.threat.eps, device=reached.device)
                point, rivals, reached = search.drop(far & reached.isfinite(), point, rivals, reached)

    def _step(
        self, model: Model, search: Nearest, point: torch.Tensor, rivals: torch.Tensor, reached: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The next point, the rivals, and the distance found in this run, of the samples that are still attacked."""
        x, threat = search.x, search.threat
        gap, normal, logits = nearest_plane(model, point, search.y, rivals, threat.norm)
        reached = torch.minimum(reached, search.offer(point, logits))
        both = torch.stack([point, x]).flatten(2)
        gaps = torch.stack([gap, gap - (normal * (both[1] - both[0])).sum(1)])[..., None]
        moves = onto_plane(both, normal, gaps, threat.norm, threat.bounds)
        zero = torch.zeros_like(moves[0])
        from_point, from_x = (threat.distance(move, zero).clamp_min(1e-8) for move in moves)
        alpha = (from_point / (from_point + from_x)).clamp_max(self.alpha_max)[:, None]
        ahead = both + self.eta * moves
        point = threat.clamp(((1 - alpha) * ahead[0] + alpha * ahead[1]).reshape(x.shape))
        with torch.no_grad():
            logits = model(point)
        reached = torch.minimum(reached, search.offer(point, logits))
        share = torch.where(margin(logits, search.y) > 0, self.beta, 1.0)
        point = x + per_sample(share, x) * (point - x)
        return search.still(point, rivals, reached)

    def _approach(self, model: Model, search: Nearest) -> None:
        """The final search: the zero of the margin between the input and its nearest adversarial example."""
        if search.is_over:
            return
        near, far, beyond = search.x, search.x_adv[search.rows], search.value[search.rows]
        with torch.no_grad():
            before = margin(model(near), search.y)
        for _ in range(_FINAL_QUERIES):
            share = before / (before - beyond)
            share = (share + _PUSH * (1 - share)).clamp(0, 1).nan_to_num(0)
            middle = search.threat.clamp(near + per_sample(share, near) * (far - near))
            with torch.no_grad():
                logits = model(middle)
            search.offer(middle, logits)
            value = margin(logits, search.y)
            broken = value > 0
            rows = as_rows(broken, near)
            near, far = torch.where(rows, near, middle), torch.where(rows, middle, far)
            before, beyond = torch.where(broken, before, value), torch.where(broken, value, beyond)
            near, far, before, beyond = search.still(near, far, before, beyond)
            if search.is_over:
                return


@ATTACKS.register("fab-t")
@dataclass(frozen=True)
class FABT(FAB):
    """FAB with one run for each of the likeliest wrong classes, and one backward pass a step (AutoAttack's FAB-T).

    A run projects onto the boundary to its class; any wrong class counts. at_once: runs of a sample in one pass, which is
    faster for few samples.
    """

    at_once: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("fab-t", at_once=self.at_once)

    @property
    def passes(self) -> float:
        return self.restarts * self.targets * self.steps * 1.4

    @property
    def inputs_each(self) -> int:
        return 3 * min(self.at_once, self.targets)

    def _in_passes(self, rivals: torch.Tensor) -> Sequence[torch.Tensor]:
        return rivals[:, :, None].split(self.at_once, 1)
