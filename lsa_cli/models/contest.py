"""Which of several readings of a network is the one that was trained: a contest on labelled images.

A trained network is at a minimum of its loss, so a wrong normalisation, activation or stride gives the labels a lower
probability. The test is paired and uses every image: right and wrong answers alone need far more images. The
probabilities are compared at the temperature that is best for each entrant, because the scale of logits is no evidence.
All limits are our choice.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lsa_cli.stats import binomial_tail

NOISE = 3.5  # standard errors; a difference below is noise: probability 0.0002 on one side
NOISE_UNUSUAL, _UNUSUAL = 2.0, 0.9  # the same against an entrant that costs so much more
NATS = 5.0  # of log-likelihood; a smaller gain is noise too: few images can all be easy
ALIKE = 0.99  # of the images; entrants that give so many of them the same class do not differ in effect
SIZES = (40, 200, 1000, 2000, 4000)  # images after each round
_ENOUGH = 1000  # images after which entrants that do not differ in effect need no more
_STAY, _UNTIL = 3, 200  # so many entrants stay until so many images, for the figures that are told
_LARGEST_LOSS = math.log(1000)
_SAME = 1e-3  # relative difference of logits that are equal
_CHANCE = 1e-6  # probability that answers unrelated to the labels are right so often
_TEMPERATURES = torch.logspace(-2, 3, 51, base=10.0)

Read = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]  # from, to -> images (n, ...), labels (n,)
Alike = Callable[["Standing", "Standing"], bool]  # whether two entrants do not differ in effect


@dataclass(frozen=True)
class Entrant:
    """A reading of a network. cost: how unusual it is. ask: images (n, ...) -> logits (n, K). known: those of the first images
    of the contest, which are not asked again; None where none are known."""

    name: str
    cost: float
    ask: Callable[[torch.Tensor], torch.Tensor]
    known: torch.Tensor | None = None


@dataclass(eq=False)
class Standing:
    """An entrant with its answers to the first images. logits (n, K); loss (n,): -log p of the label; right (n,)."""

    entrant: Entrant
    logits: torch.Tensor
    loss: torch.Tensor
    right: torch.Tensor

    @property
    def accuracy(self) -> float:
        return float(self.right.float().mean())

    def agreement(self, other: "Standing") -> float:
        """The share of the images that both have seen, to which both give the same class."""
        n = min(len(self.right), len(other.right))
        return float((self.logits[:n].argmax(1) == other.logits[:n].argmax(1)).float().mean())

    def beats(self, other: "Standing") -> bool:
        """Whether the labels are more probable here, beyond noise, and are not missed more often beyond noise."""
        n = min(len(self.loss), len(other.loss))
        gain = (other.loss[:n] - self.loss[:n]).double()
        won, lost = int((self.right[:n] & ~other.right[:n]).sum()), int((other.right[:n] & ~self.right[:n]).sum())
        error = float(gain.std()) / math.sqrt(n) if n > 1 else math.inf
        noise = NOISE_UNUSUAL if other.entrant.cost >= self.entrant.cost + _UNUSUAL else NOISE
        is_large = float(gain.sum()) > NATS and float(gain.mean()) > noise * error
        if other.entrant.cost <= self.entrant.cost - _UNUSUAL and n >= _UNTIL:
            is_large = (
                is_large and binomial_tail(won, won + lost, 0.5) < 0.001
            )  # the loss alone does not do for the unusual
        return is_large and binomial_tail(lost, won + lost, 0.5) > 0.001


@dataclass(frozen=True)
class Outcome:
    """The end of a contest. best: the entrant that is taken, if there are no rivals. n: images that it has seen.

    alike: entrants within noise of the best that give nearly all images the same class. rivals: those within noise that
    differ. others: the beaten ones, the best first. above_chance: whether the best is better than guessing.
    """

    best: Standing
    alike: list[Standing]
    rivals: list[Standing]
    others: list[Standing]
    above_chance: bool

    @property
    def n(self) -> int:
        return len(self.best.right)

    @property
    def next(self) -> Standing | None:
        """The best entrant that differs in effect."""
        return next((one for one in [*self.rivals, *self.others] if one.agreement(self.best) < ALIKE), None)


def gives_same_answers(one: Standing, other: Standing) -> bool:
    return one.agreement(other) >= ALIKE


def hold(
    entrants: Sequence[Entrant], read: Read, available: int, sizes: Sequence[int] = SIZES, is_alike: Alike = gives_same_answers
) -> Outcome:  # fmt: skip
    """Ask all entrants on more and more images, up to `available`, until one is better than all others beyond noise.

    Equal entrants count as one, the least unusual. Raises ValueError where no entrant gives finite logits.
    """
    running = [Standing(entrant, torch.empty(0), torch.empty(0), torch.empty(0)) for entrant in entrants]
    beaten: list[Standing] = []
    seen, labels = 0, torch.empty(0, dtype=torch.int64)
    for size in sorted({min(size, available) for size in sizes}):
        x, y = read(seen, size)
        labels, seen = torch.cat([labels, y]), size
        running = _without_equal([now for one in running if (now := _after(one, x, labels)) is not None])
        if not running:
            raise ValueError("no reading of the network gives finite numbers")
        running.sort(key=lambda one: float(one.loss.mean()))
        kept = _STAY if seen < _UNTIL else 1
        beaten = [one for one in running[kept:] if running[0].beats(one)] + beaten
        running = [one for one in running if one not in beaten]
        if seen >= _UNTIL:
            out = [one for one in running[1:] if running[0].beats(one)]
            beaten, running = out + beaten, [one for one in running if one not in out]
        if len(running) == 1 or (seen >= _ENOUGH and all(is_alike(one, running[0]) for one in running)):
            break
    return _outcome(running, beaten, labels, is_alike)


def _after(one: Standing, x: torch.Tensor, labels: torch.Tensor) -> Standing | None:
    """The standing after more images; None where an answer is not finite."""
    seen, known = len(one.logits), one.entrant.known
    several = [one.logits] if seen else []
    several += [] if known is None or len(known) <= seen else [known[seen : len(labels)]]
    asked = len(x) - (len(labels) - sum(map(len, several)))  # images of x whose answers are known
    if asked < len(x):
        with torch.no_grad():
            several.append(one.entrant.ask(x[asked:]).detach().cpu().float())
    logits = torch.cat(several)
    if not bool(logits.isfinite().all()) or int(labels.max()) >= logits.shape[1]:
        return None
    return Standing(one.entrant, logits, losses(logits, labels), logits.argmax(1) == labels)


def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # (n, K), (n,) -> (n,)
    """-log p of the label, at the temperature of a grid that is best on these images, at most log 1000."""
    return tempered(logits, labels)[0]


def tempered(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """`losses`, and the temperature. The unit of the grid is the standard deviation of the logits."""
    unit = float(logits.std()) or 1.0
    # Classes before images: torch computes log_softmax along the last of few numbers many times slower.
    scaled = logits.T.contiguous()[None] / (unit * _TEMPERATURES[:, None, None])
    each = -scaled.log_softmax(1).gather(1, labels[None, None].expand(len(scaled), 1, -1))[:, 0]
    each = each.clamp_max(_LARGEST_LOSS)
    best = int(each.mean(1).argmin())
    return each[best], unit * float(_TEMPERATURES[best])


def _without_equal(several: list[Standing]) -> list[Standing]:
    kept: list[Standing] = []
    for one in sorted(several, key=lambda one: one.entrant.cost):
        if not any(_is_equal(one, other) for other in kept):
            kept.append(one)
    return kept


def _is_equal(one: Standing, other: Standing) -> bool:
    """Whether the logits are equal up to rounding."""
    if abs(float(one.loss.sum()) - float(other.loss.sum())) > 1e-2 * len(one.loss):
        return False
    return one.logits.shape == other.logits.shape and bool(
        (one.logits - other.logits).abs().max() <= _SAME * float(one.logits.abs().max())
    )


def _outcome(running: list[Standing], beaten: list[Standing], labels: torch.Tensor, is_alike: Alike) -> Outcome:
    first = running[0]
    alike = [one for one in running if one is first or is_alike(one, first)]
    rivals = [one for one in running if one not in alike]
    # A better loss than that of a more usual entrant with nearly the same answers can come from the images, not from the
    # training: which of the two it is remains open.
    usual = [
        one for one in beaten if one.entrant.cost <= first.entrant.cost - _UNUSUAL and gives_same_answers(one, first)
    ]
    rivals, beaten = rivals + usual, [one for one in beaten if one not in usual]
    best = min(alike, key=lambda one: (one.entrant.cost, float(one.loss.mean())))
    chance = float(torch.bincount(labels).max()) / len(labels)
    above = binomial_tail(int(best.right.sum()), len(best.right), chance) < _CHANCE
    return Outcome(best, [one for one in alike if one is not best], rivals, beaten, above)
