"""DeepFool (arXiv 1511.04599): step onto the nearest decision boundary of the linearised network until it breaks."""

from dataclasses import dataclass

import torch

from lsa_cli.attacks.base import ATTACKS, Attack, Model, slope
from lsa_cli.attacks.search import Nearest
from lsa_cli.attacks.threat import Bounds, Threat
from lsa_cli.errors import UsageError

DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}  # order of the norm that measures gradients
_TINY = 1e-5  # of logits, beyond the boundary: rounding would keep a sample on it for ever


def rivals_of(logits: torch.Tensor, y: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` likeliest wrong classes of each sample, (N, K) -> (N, at most count), likeliest first."""
    wrong = logits.scatter(1, y[:, None], -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices


def nearest_plane(
    model: Model, x: torch.Tensor, y: torch.Tensor, rivals: torch.Tensor, norm: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The decision boundary nearest to x (N, ...) once the network is replaced by its tangent at x.

    Returns the plane as gap (N,) and normal (N, D): a change d reaches it where normal . d = gap; and the logits
    (N, K) at x. One forward pass, and one backward pass for each column of rivals (N, R).
    """
    x = x.detach().requires_grad_(True)
    logits = model(x)
    leads = logits.gather(1, y[:, None]) - logits.gather(1, rivals)  # how far the label is ahead of each rival
    gap, normal = leads.detach()[:, 0], torch.zeros_like(x).flatten(1)
    nearest = torch.full_like(gap, torch.inf)
    last = leads.shape[1] - 1
    for column, lead in enumerate(leads.unbind(1)):
        gradient = slope(lead.sum(), x, retain_graph=column < last).flatten(1)
        steepness = torch.linalg.vector_norm(gradient, ord=DUAL[norm], dim=1)
        distance = lead.detach().abs() / steepness  # infinite for a zero gradient: that rival is never reached
        nearer = distance < nearest
        nearest = torch.where(nearer, distance, nearest)
        gap = torch.where(nearer, lead.detach(), gap)
        normal = torch.where(nearer[:, None], -gradient, normal)
    return gap, normal, logits.detach()


def onto_plane(x: torch.Tensor, normal: torch.Tensor, gap: torch.Tensor, norm: str, bounds: Bounds) -> torch.Tensor:
    """The smallest d (..., D) with normal . d = gap and x + d within the bounds (projections of arXiv 1907.02044).

    x (..., D), normal (..., D) and gap (..., 1) broadcast. Where no point of the box lies on the plane, d leads to
    the corner nearest to it; where the normal is zero, d is.

    Every coordinate moves the way that closes the gap, no farther than its room. By Lagrange, for linf all move
    alike, for l2 in proportion to |normal|, until their room is used up: the one unknown is the common factor,
    the root of a piecewise linear, concave function. Newton's method from 0 never oversteps such a root and is
    exact once it stops. For l1 the steepest coordinates use up their room one after the other.
    """
    size = normal.abs()
    # Only the ratio counts; scaled, tiny gradients neither underflow nor divide to infinity.
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
    push = size * rate  # how fast a coordinate with room left closes the gap
    factor = wanted / push.sum(-1, keepdim=True).clamp_min(1e-30)
    step = torch.minimum(factor * rate, room)
    for _ in range(x.shape[-1]):
        missing = wanted - (size * step).sum(-1, keepdim=True)
        left = (push * (step < room)).sum(-1, keepdim=True)
        farther = factor + torch.where(left > 0, missing / left, 0.0)
        # Below a millionth it is the rounding of the sums that is chased.
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
    """Algorithm 2, and its extension to linf; a sample is left at its first adversarial.

    Every step oversteps its boundary by `overshoot`, as in the authors' code. classes: the label and its likeliest
    rivals on the clean input. Steps are clamped into the range; exact steps within it, as in `fab`, jump farther
    where the network is curved, and break at changes twice as large on networks trained to be robust.
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
        if self.steps < 1 or self.classes < 2:
            raise UsageError(
                f"deepfool: steps must be at least 1 and classes at least 2, not {self.steps} and {self.classes}"
            )
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
            if search.is_over or rivals.shape[1] == 0:  # of one class there is no boundary
                break
            gap, normal, _ = nearest_plane(model, point, search.y, rivals, self.threat.norm)
            move = onto_plane(point.flatten(1), normal, gap.abs()[:, None] + _TINY, self.threat.norm, None)
            point = self.threat.clamp(point + ((1 + self.overshoot) * move).reshape(point.shape))
            with torch.no_grad():
                search.offer(point, model(point))
            point, rivals = search.drop(search.distance[search.rows].isfinite(), point, rivals)
        return search.x_adv
