"""FAB, the Fast Adaptive Boundary attack (arXiv 1907.02044), and its targeted runs as AutoAttack has them."""

import dataclasses
from dataclasses import dataclass

import torch

from lsa_cli.attacks.base import ATTACKS, Attack, Model
from lsa_cli.attacks.deepfool import nearest_plane, onto_plane, rivals_of
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.search import Nearest
from lsa_cli.attacks.threat import Threat, per_sample
from lsa_cli.errors import UsageError

_FINAL_LOOKS = 3  # of the final search, as in the paper
# After which share of the steps a run is given up whose nearest adversarial is more than how many times eps away. The
# steps after that brought it at most two thirds as much nearer, in all runs but one (benchmarks/RESULTS.md).
HOPELESS = ((0.3, 1.5), (0.4, 1.25), (0.5, 1.16), (0.6, 1.08), (0.7, 1.05))
LONG = 50  # steps from which on that is asked
_PUSH = 0.01  # of the way left, beyond where a straight line says that the boundary is


@ATTACKS.register("fab")
@dataclass(frozen=True)
class FAB(Attack):
    """Algorithm 1: projections onto the linearised boundary, kept near the input, and back across it.

    Each step looks for the nearest among the boundaries to the `targets` likeliest wrong classes, at the price of a
    backward pass for each: all of them up to ten classes; beyond, the cut is our choice. Restarts begin at a
    random point within half of the budget, or of the distance already found if that is less. The final search aims
    a little beyond where the paper's straight line meets the boundary, so that rounding keeps it broken.
    With goal "break" a linf run is given up where the nearest that it has found is hopelessly far from the budget (ours).
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
        if self.steps < 1 or self.restarts < 1 or self.targets < 1:
            raise UsageError(
                f"fab: steps, restarts and targets must be at least 1, not {self.steps}, {self.restarts} and {self.targets}"
            )
        if not (0 <= self.alpha_max <= 1 and 0 < self.beta < 1 and self.eta >= 1):
            raise UsageError("fab: alpha_max must be in [0, 1], beta between 0 and 1, and eta at least 1")

    @property
    def passes(self) -> float:
        return self.restarts * self.steps * (0.8 + 0.6 * self.targets)

    def _runs(self, targets: int) -> list[slice]:
        """Which columns of the rivals each run is about."""
        return [slice(0, targets)] if targets else []

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Nearest(x, y, self.threat)
        with torch.no_grad():
            logits = model(x)
        search.offer(x, logits)
        rivals = rivals_of(logits, y, self.targets)
        search.still()
        for restart in range(self.restarts):
            for columns in self._runs(rivals.shape[1]):
                with search.aside():
                    self._run(model, search, bool(restart), rivals[search.rows, columns])
                if search.is_over:
                    return search.x_adv
        self._approach(model, search)
        return search.x_adv

    def _start(self, search: Nearest) -> torch.Tensor:
        eps = torch.as_tensor(search.threat.eps, device=search.x.device, dtype=search.x.dtype)
        radius = torch.minimum(eps, search.distance[search.rows]) / 2
        return dataclasses.replace(search.threat, eps=radius).sample(search.x)

    def _run(self, model: Model, search: Nearest, from_random: bool, rivals: torch.Tensor) -> None:
        point = self._start(search) if from_random else search.x
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
        """The next point, the rivals, and the distance to the nearest that the run found, of the samples to go on with."""
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
        """The final search: where on the way from the input to its nearest adversarial the margin is zero."""
        if search.is_over:
            return
        near, far, beyond = search.x, search.x_adv[search.rows], search.value[search.rows]
        with torch.no_grad():
            before = margin(model(near), search.y)
        for _ in range(_FINAL_LOOKS):
            share = before / (before - beyond)
            share = (share + _PUSH * (1 - share)).clamp(0, 1).nan_to_num(0)
            middle = search.threat.clamp(near + per_sample(share, near) * (far - near))
            with torch.no_grad():
                logits = model(middle)
            search.offer(middle, logits)
            value = margin(logits, search.y)
            breaks = value > 0
            whole = breaks.reshape(-1, *[1] * (near.ndim - 1))
            near, far = torch.where(whole, near, middle), torch.where(whole, middle, far)
            before, beyond = torch.where(breaks, before, value), torch.where(breaks, value, beyond)
            near, far, before, beyond = search.still(near, far, before, beyond)
            if search.is_over:
                return


@ATTACKS.register("fab-t")
@dataclass(frozen=True)
class FABT(FAB):
    """FAB with one run for each of the likeliest wrong classes, a single backward pass a step (AutoAttack's FAB-T).

    A run heads for the boundary to its class; any wrong class counts as found.
    """

    @property
    def passes(self) -> float:
        return self.restarts * self.targets * self.steps * 1.4

    def _runs(self, targets: int) -> list[slice]:
        return [slice(column, column + 1) for column in range(targets)]
