"""Square Attack (arXiv 1912.00049): random search that changes one square window a query. It uses logits only.

The windows of a query have one size, and a place of their own for each sample. Our choices: one pass of the network may
evaluate several windows of each sample, of which the best counts; a vector is an image of one row; a window that is higher
or wider than the image becomes a rectangle of the same area; and the signs of a linf window that would change nothing are
inverted (on grey images, half of the windows of one pixel).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

from lsa_cli.attacks.base import ATTACKS, Attack, Model, at_least_one
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.randomness import in_parts, kept_aside, repeat, uniform_like
from lsa_cli.attacks.search import Search
from lsa_cli.attacks.threat import Threat, each, per_sample
from lsa_cli.errors import UsageError

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
_AHEAD = 64  # queries whose random numbers are drawn together: a draw takes the same time for many as for one
# Inputs of one pass on a CPU. A process that returns freed memory to the system, unlike a command of lsa, takes up to three
# times as long for each input of a larger pass.
_AT_MOST = 256
_TINY = 1e-12
# (share of the queries, limit): a sample is given up if the rest to a margin of 0 exceeds this share of the rise so far.
# 1.5 to 2 times the largest rest in runs of 2,000 queries that broke their sample, alone or with the steps of `square-pgd`
# after them, on three networks and two seeds (our choice).
HOPELESS = ((0.1, 1.1), (0.2, 0.65), (0.4, 0.4), (0.6, 0.2))
LONG = 1000  # runs with fewer queries are never given up


@ATTACKS.register("square")
@dataclass(frozen=True)
class Square(Attack):
    """Random search that keeps each square which raises the margin loss. It needs no gradient.

    queries: forward passes of a sample, including that of the start. p_init: the share of the image that the first windows
    cover. restarts: runs from new random stripes, each with all of the queries. at_once: queries of each sample in one pass of
    the network (our choice; the paper has 1). Each of them changes another window of the best image so far; all of these
    windows have one size, and only the best query can be kept. This saves time on small batches, where a pass of few inputs
    takes almost as long as one of many. With goal "break" a linf run is given up where its pace is hopelessly slow (our
    choice).
    """

    role = "search"
    threat: Threat
    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    at_once: int = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    uses_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("square", queries=self.queries, restarts=self.restarts, at_once=self.at_once)
        if not 0 < self.p_init <= 1:
            raise UsageError(f"square: p_init must be a share of the image, above 0 and at most 1, not {self.p_init:g}")

    @property
    def passes(self) -> float:
        return 0.4 * self.restarts * self.queries  # no query needs a gradient

    @property
    def inputs_each(self) -> int:
        return self.at_once

    def share(self, query: int) -> float:
        """The share of the image that a query changes. It is halved at the queries of section 5, scaled from 10,000."""
        return float(self.p_init / 2 ** sum(query * 10_000 // self.queries > after for after in _HALVED_AFTER))

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Search(x, y, self.threat)
        with torch.no_grad():
            for _ in range(self.restarts):
                search.still()
                if not search.is_over:
                    with search.aside():
                        self.climb(model, search)
        return search.x_adv

    def climb(self, model: Model, search: Search) -> None:
        """Algorithm 1, once. Afterwards the search goes on with the samples that are neither broken nor given up."""
        canvas = Canvas.of(search.x)
        numbers, start, repaint = _NORMS[self.threat.norm]
        candidates = start(canvas, search.threat, search.x)
        x_adv = candidates.clone()
        best = torch.full((len(x_adv),), -torch.inf, device=x_adv.device, dtype=x_adv.dtype)
        drawn = x_adv.new_empty(len(x_adv), 0)
        block = self.at_once * math.ceil(_AHEAD / self.at_once)
        given_up = search.milestones(HOPELESS, self.queries, LONG)
        clean = margin(model(search.x), search.y) if given_up else best
        for query in (0, *range(1, self.queries, self.at_once)):
            count = min(self.at_once, self.queries - query) if query else 1
            was_on_copy = search.is_on_copy
            network = search.network_at(model, query / self.queries)
            if was_on_copy and not search.is_on_copy:  # the copy's margins are not those of the network
                best = margin(model(x_adv), search.y)
            if query:
                ahead = (query - 1) % block
                if ahead == 0:
                    drawn = canvas.uniform(len(x_adv), min(block, self.queries - query), numbers + canvas.channels)
                threat, x, x_best = search.threat.repeated(count), each(search.x, count), each(x_adv, count)
                chance = drawn[:, ahead : ahead + count].flatten(0, 1)
                candidates = repaint(canvas, threat, x, x_best, self.share(query), chance)
            candidate, value = search.offer_best(candidates, _logits(network, candidates, count), count)
            better = (value > best).nonzero().flatten()
            if len(better):
                x_adv[better], best[better] = candidate[better], value[better].to(best.dtype)
            x_adv, best, drawn, clean = search.still(x_adv, best, drawn, clean)
            for after, limit in given_up.items():
                if query < after <= query + count:
                    value = search.on_network(x_adv, best)
                    x_adv, best, drawn, clean = search.drop(-value > limit * (value - clean), x_adv, best, drawn, clean)
            if search.is_over:
                return
        search.network_at(model, 1)


def _logits(model: Model, candidates: torch.Tensor, count: int) -> torch.Tensor:
    """Logits (N * count, K) of `count` candidates in a row for each sample. A stochastic network draws for each one anew."""
    with kept_aside():
        repeat(count)
        at_once = _AT_MOST if candidates.device.type == "cpu" else len(candidates)
        return in_parts(lambda part: model(candidates[part]), len(candidates), at_once)


@dataclass(frozen=True)
class Canvas:
    """The layout of a batch as images (N, C, H * W)."""

    channels: int
    height: int
    width: int
    device: torch.device

    @classmethod
    def of(cls, x: torch.Tensor) -> "Canvas":
        shape = [1, 1, *map(int, x.shape[1:])]
        return cls(math.prod(shape[:-2]), shape[-2], shape[-1], x.device)

    def uniform(self, *shape: int) -> torch.Tensor:
        return uniform_like(torch.empty(shape, device=self.device))

    def flat(self, x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, C, H * W)
        return x.reshape(len(x), self.channels, -1)

    def window(self, share: float) -> tuple[int, int]:
        """Height and width of a window with this share of the image: a square, where one fits."""
        side = max(1, round(math.sqrt(share * self.height * self.width)))
        if side <= min(self.height, self.width):
            return side, side
        short_is_height = self.height < self.width
        long = max(1, round(share * max(self.height, self.width)))
        return (self.height, long) if short_is_height else (long, self.width)

    def pixels(self, size: tuple[int, int], place: torch.Tensor) -> torch.Tensor:
        """place (N, 2) in (0, 1) -> (N, C, h * w): the indices into H * W of the pixels of each sample's window."""
        top = (place[:, :1] * (self.height - size[0] + 1)).long()
        left = (place[:, 1:] * (self.width - size[1] + 1)).long()
        inside = _inside(*size, self.width, self.device)
        return (inside + (top * self.width + left))[:, None].expand(-1, self.channels, -1)


@lru_cache(maxsize=4)  # some hundred consecutive queries have windows of the same size
def _inside(high: int, wide: int, width: int, device: torch.device) -> torch.Tensor:  # (h * w)
    rows, columns = torch.arange(high, device=device), torch.arange(wide, device=device)
    return (rows[:, None] * width + columns).flatten()


def _sign(uniform: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(x.dtype)


def _stripes(canvas: Canvas, threat: Threat, x: torch.Tensor) -> torch.Tensor:
    """The linf start: vertical stripes at plus and minus eps."""
    eps = per_sample(threat.eps, canvas.flat(x))
    signs = _sign(canvas.uniform(len(x), canvas.channels, 1, canvas.width), x)
    painted = signs.expand(-1, -1, canvas.height, -1).flatten(2)
    return threat.clamp((canvas.flat(x) + eps * painted).reshape(x.shape))


def _repaint_signs(
    canvas: Canvas, threat: Threat, x: torch.Tensor, x_adv: torch.Tensor, share: float, drawn: torch.Tensor
) -> torch.Tensor:
    """Algorithm 2: a window is set to plus or minus eps, with a sign for each channel."""
    pixels = canvas.pixels(canvas.window(share), drawn[:, :2])
    candidate = canvas.flat(x_adv).clone()
    clean, before = canvas.flat(x).gather(2, pixels), candidate.gather(2, pixels)
    step = per_sample(threat.eps, clean) * _sign(drawn[:, 2:, None], clean)
    after = threat.clamp(clean + step)
    unchanged = (after == before).flatten(1).all(1)[:, None, None]
    after = torch.where(unchanged, threat.clamp(clean - step), after)
    return candidate.scatter_(2, pixels, after).reshape(x_adv.shape)


def _bump(height: int, width: int) -> torch.Tensor:  # (h, w)
    """Equation 2: a hill of rings; ring i is 1 / i^2 higher than the ring around it."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = torch.maximum(rows.abs()[:, None], columns.abs())
    heights = (1 / torch.arange(1, max(height, width) // 2 + 2) ** 2).flip(0).cumsum(0).flip(0)
    return heights[ring]


@lru_cache(maxsize=4)
def bumps(height: int, width: int) -> torch.Tensor:
    """(2, h * w) of norm 1: a hill above a valley, and (the second) a hill beside a valley."""

    def halves(first: int, second: int) -> torch.Tensor:
        return torch.cat([_bump(first // 2, second), -_bump(first - first // 2, second)])

    beside = halves(width, height).T
    both = torch.stack([halves(height, width) if height > 1 else beside, beside]).flatten(1)
    return both / both.norm(dim=1, keepdim=True)


def _tiles(canvas: Canvas, threat: Threat, x: torch.Tensor) -> torch.Tensor:
    """The l2 start: hills and valleys on a grid of 5 x 5 tiles, or a few more where the sides are no multiples of 5."""
    high, wide = max(1, canvas.height // 5), max(1, canvas.width // 5)
    down, across = canvas.height // high, canvas.width // wide
    shape = len(x), canvas.channels, down, 1, across, 1
    above, beside = bumps(high, wide).to(x).reshape(2, high, 1, wide)
    turned = canvas.uniform(len(x), 1, *shape[2:]) < 0.5
    painted = _sign(canvas.uniform(*shape), x) * torch.where(turned, above, beside)
    painted = painted.reshape(len(x), canvas.channels, down * high, across * wide)
    top, left = (canvas.height - down * high) // 2, (canvas.width - across * wide) // 2
    delta = x.new_zeros(len(x), canvas.channels, canvas.height, canvas.width)
    delta[:, :, top : top + down * high, left : left + across * wide] = painted
    length = per_sample(threat.eps, delta) / delta.flatten(1).norm(dim=1)[:, None, None, None]
    return threat.clamp(x + (delta * length).reshape(x.shape))


def _repaint_bumps(
    canvas: Canvas, threat: Threat, x: torch.Tensor, x_adv: torch.Tensor, share: float, drawn: torch.Tensor
) -> torch.Tensor:
    """Algorithm 3: one window is set to zero, and another one takes its norm and the unused rest of eps.

    The perturbation of the second window is mixed with a hill and valley of random sign. Windows have odd sides of at least 3.
    """
    high, wide = canvas.window(share)
    size = min(canvas.height, max(3, high | 1)), min(canvas.width, max(3, wide | 1))
    filled, emptied = canvas.pixels(size, drawn[:, :2]), canvas.pixels(size, drawn[:, 2:4])
    clean = canvas.flat(x)
    delta = canvas.flat(x_adv) - clean
    unused = per_sample(threat.eps, clean) ** 2 - delta.square().sum((1, 2), keepdim=True)
    own = delta.gather(2, filled)
    squared = own.square().sum(2, keepdim=True)
    delta.scatter_(2, filled, 0)
    # Rounding may make the perturbation too long; `unused` is then negative and shortens it.
    room = squared + delta.gather(2, emptied).square().sum(2, keepdim=True) + unused / canvas.channels
    delta.scatter_(2, emptied, 0)
    above, beside = bumps(*size).to(delta)
    bump = torch.where(drawn[:, 4, None] < 0.5, above, beside)[:, None] * _sign(drawn[:, 5:, None], delta)
    mixed = bump + own / squared.sqrt().clamp_min(_TINY)
    length = mixed.norm(dim=2, keepdim=True)
    painted = torch.where(length > _TINY, mixed / length, bump)  # in a window of one pixel, the two may cancel out
    delta.scatter_(2, filled, painted * room.clamp_min(0).sqrt())
    return threat.clamp((clean + delta).reshape(x_adv.shape))


Repaint = Callable[[Canvas, Threat, torch.Tensor, torch.Tensor, float, torch.Tensor], torch.Tensor]
# norm: random numbers that a query needs besides one for each channel, the start, the step
_NORMS: dict[str, tuple[int, Callable[[Canvas, Threat, torch.Tensor], torch.Tensor], Repaint]] = {
    "linf": (2, _stripes, _repaint_signs),
    "l2": (5, _tiles, _repaint_bumps),
}
