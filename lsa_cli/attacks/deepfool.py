"""DeepFool (arXiv 1511.04599): steps onto the nearest decision boundary of the linearised network."""

from dataclasses import dataclass

import torch

from lsa_cli.attacks.base import ATTACKS, Attack, Model, at_least_one, slope
from lsa_cli.attacks.search import Nearest
from lsa_cli.attacks.threat import Bounds, Threat
from lsa_cli.errors import UsageError

DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}  # order of the dual norm, which measures gradients
_TINY = 1e-5  # difference of logits beyond the boundary; at 0 rounding would keep a sample on it


def rivals_of(logits: torch.Tensor, y: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` likeliest wrong classes of each sample, (N, K) -> (N, at most count), likeliest first."""
    wrong = logits.scatter(1, y[:, None], -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices


def nearest_plane(
    model: Model, x: torch.Tensor, y: torch.Tensor, rivals: torch.Tensor, norm: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The nearest decision boundary of the network's linearisation at x (N, ...).

    Returns the plane as gap (N,) and normal (N, D): a perturbation d reaches it where normal . d = gap; and the logits
    (N, K) at x. It takes one forward pass, and one backward pass for each column of rivals (N, R).
    """
    x = x.detach().requires_grad_(True)
    logits = model(x)
    leads = logits.gather(1, y[:, None]) - logits.gather(1, rivals)  # of the label over each rival
    gap, normal = leads.detach()[:, 0], torch.zeros_like(x).flatten(1)
    nearest = torch.full_like(gap, torch.inf)
    last = leads.shape[1] - 1
    for column, lead in enumerate(leads.unbind(1)):
        gradient = slope(lead.sum(), x, retain_graph=column < last).flatten(1)
        steepness = torch.linalg.vector_norm(gradient, ord=DUAL[norm], dim=1)
        distance = lead.detach().abs() / steepness  # infinite where the gradient is zero
        nearer = distance < nearest
        nearest = torch.where(nearer, distance, nearest)
        gap = torch.where(nearer, lead.detach(), gap)
        normal = torch.where(nearer[:, None], -gradient, normal)
    return gap, normal, logits.detach()


def onto_plane(x: torch.Tensor, normal: torch.Tensor, gap: torch.Tensor, norm: str, bounds: Bounds) -> torch.Tensor:
    """The smallest d (..., D) with normal . d = gap and x + d within the bounds (projections of arXiv 1907.02044).

    x (..., D), normal (..., D) and gap (..., 1) broadcast. Where no point of the box is on the plane, d leads to the corner
    nearest to it; where the normal is zero, d is zero.

    Every coordinate moves in the direction that closes the gap, at most by its room in the box. For linf all coordinates
    move by the same length, for l2 in proportion to |normal|, until their room is used up (Lagrange). The one unknown, the
    common factor, is the root of a piecewise linear, concave function; Newton's method from 0 never oversteps it and is
    exact when it stops. For l1 the steepest coordinates use up their room one after the other.
    """
    size = normal.abs()
    # Only the ratio counts. Scaling keeps tiny gradients from underflow and from division to infinity.
    scale = size.amax(-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    size, wanted = size / scale, gap.abs() / scale
    direction = normal.sign() * gap.sign()
    room = torch.full_like(direction, torch.inf)
    if bounds is not None:
        low, high = bounds
        room = torch.where(direction > 0, high - x, x - low).clamp_min(0)
    if norm == "l1":
        return direction * _steepest_first(size, room, wanted)
    rate = torch.ones_like(size) if norm == "linf" else size
    push = size * rate  # by which a coordinate with room closes the gap, per unit of the factor
    factor = wanted / push.sum(-1, keepdim=True).clamp_min(1e-30)
    step = torch.minimum(factor * rate, room)
    for _ in range(x.shape[-1]):
        missing = wanted - (size * step).sum(-1, keepdim=True)
        left = (push * (step < room)).sum(-1, keepdim=True)
        farther = factor + torch.where(left > 0, missing / left, 0.0)
        # Differences below a millionth are rounding errors of the sums.
        if not bool((farther > factor * (1 + 1e-6)).any()):
            break
        factor = torch.maximum(farther, factor)
        step = torch.minimum(factor * rate, room)
    return direction * step


def _steepest_first(size: torch.Tensor, room: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    order = size.argsort(-1, descending=True).expand(room.shape)
    size, room = size.expand(room.shape).gather(-1, order), room.gather(-1, order)
    closes = torch.where(size > 0, size * room, 0.0)
    closed_before = closes.cumsum(-1).roll(1, -1)
    closed_before[..., 0] = 0
    needed = torch.where(size > 0, (wanted - closed_before).clamp_min(0) / size, 0.0)
    return torch.zeros_like(room).scatter(-1, order, torch.minimum(needed, room))


@ATTACKS.register("deepfool")
@dataclass(frozen=True)
class DeepFool(Attack):
    """Steps to the nearest boundary of the linearised network (Algorithm 2), also in linf. A sample stops at its first adversarial example.

    Every step goes beyond its boundary by the share `overshoot`, as in the authors' code. classes: the label and its
    likeliest wrong classes on the clean input. Steps are clamped into the input range. (Exact steps within it, as in `fab`,
    jump farther where the network is curved, and need perturbations twice as large on robust networks.)
    """

    role = "gradient"
    threat: Threat
    steps: int = 50
    overshoot: float = 0.02
    classes: int = 10

    kind = "minimal"
    norms = ("linf", "l2")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("deepfool", steps=self.steps)
        if self.classes < 2:
            raise UsageError(f"deepfool: classes must be at least 2, not {self.classes}")
        if self.overshoot <= 0:
            raise UsageError(f"deepfool: overshoot must be positive, not {self.overshoot:g}")

    @property
    def passes(self) -> float:
        return min(self.steps, 5) * (0.8 + 0.6 * (self.classes - 1))  # most samples break within five steps

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Nearest(x, y, self.threat)
        with torch.no_grad():
            logits = model(x)
        search.offer(x, logits)
        point, rivals = search.still(x, rivals_of(logits, y, self.classes - 1))
        for _ in range(self.steps):
            if search.is_over or rivals.shape[1] == 0:  # one class has no boundary
                break
            gap, normal, _ = nearest_plane(model, point, search.y, rivals, self.threat.norm)
            move = onto_plane(point.flatten(1), normal, gap.abs()[:, None] + _TINY, self.threat.norm, None)
            point = self.threat.clamp(point + ((1 + self.overshoot) * move).reshape(point.shape))
            with torch.no_grad():
                search.offer(point, model(point))
            point, rivals = search.drop(search.distance[search.rows].isfinite(), point, rivals)
        return search.x_adv
