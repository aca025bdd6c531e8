"""The ranked cascade: rounds of attacks, each on the samples nearest to the decision boundary, cheap rounds first.

After an attack on all samples, nearly everything that stronger attacks break later is among the nearest samples. So a round
attacks the nearest part of the samples that are still robust. The part grows as long as samples far out in it break: in the end it
is at least three times as large as the rank of the farthest sample that the round broke. A random sample of the far ones meets every
round, and counts for this rule too, so that the rounds reach far where distance says little. The idea of ranks is that of A3
(arXiv 2203.05154, section 3.2); the rule, the rounds and their order are our choice. The order is greedy in samples
broken per pass (arXiv 2211.12713), measured by `python -m benchmarks.rounds`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lsa_cli.attacks.apgd import APGD, TargetedAPGD
from lsa_cli.attacks.base import ATTACKS, Attack, Model, expected_logits, undisturbed
from lsa_cli.attacks.ensemble import Ensemble, confined, for_rows
from lsa_cli.attacks.fab import FABT
from lsa_cli.attacks.fmn import FMN
from lsa_cli.attacks.losses import decision_margin
from lsa_cli.attacks.odi import ODI
from lsa_cli.attacks.randomness import drawn_for, per_sample, uniform_like
from lsa_cli.attacks.search import Search
from lsa_cli.attacks.square import Square
from lsa_cli.attacks.square_pgd import SquarePGD
from lsa_cli.attacks.threat import Threat

FAR_SHARE, FAR_LEAST = 0.02, 4  # of the far samples, those that meet every round
REACH = 3  # the part of a round grows to so many times the rank of the farthest sample that it broke


@dataclass(frozen=True)
class Round:
    """An attack on the nearest `share` of the samples that are still robust, at least on `least` of them."""

    name: str
    attack: Attack
    share: float = 1.0
    least: int = 0

    def border(self, count: int) -> int:
        """How many of `count` samples the round attacks at first."""
        return min(count, max(self.least, math.ceil(self.share * count)))


@dataclass(frozen=True)
class Met:
    """What a round did. robust: samples before it; first, last: how many of the nearest it attacked at first and in the end.

    far: random samples beyond `first` that it attacked as well; broken_far: those of them that it broke.
    """

    robust: int
    first: int
    last: int
    far: int
    broken_far: int


def rounds_of(threat: Threat) -> tuple[Round, ...]:
    """The rounds of a threat model: in l2 and l1 those of `_by_distance`."""
    if threat.norm != "linf":
        return _by_distance(threat)
    return (
        Round("pgd-margin", ODI(threat, 20, spread=0)),
        Round("pgd-ce", ODI(threat, 20, spread=0, loss="ce"), 0.4, 32),
        Round("odi-pgd", ODI(threat, restarts=9, at_once=9), 0.15, 16),
        Round("apgd-ce", APGD(threat, 50), 0.1, 16),
        Round("square-pgd", SquarePGD(threat, at_once=8), 0.015, 6),
        Round("apgd-t", TargetedAPGD(threat, 50, at_once=9), 0.04, 8),
        Round("fab-t", FABT(threat, 20, at_once=9), 0.03, 6),
        Round("odi-pgd long", ODI(threat, 93, restarts=9, at_once=9), 0.02, 6),
        Round("square-pgd again", SquarePGD(threat), 0.015, 6),
    )


def _by_distance(threat: Threat) -> tuple[Round, ...]:
    """The rounds in l2 and l1. They begin with minimal-norm attacks, which do not depend on a step size.

    Networks that are trained for linf hide their gradients from steps of fixed size there. FAB-T, with all of its steps,
    breaks samples that the rounds before it leave, and their ranks are spread out: so its likeliest class is tried on all, and
    its part is large. APGD in l1 has a geometry of its own, and takes the place of steps from diverse starts.
    """
    entropy = Round("pgd-ce", ODI(threat, 20, spread=0, loss="ce"), 0.4, 32)
    diverse = [Round("odi-pgd", ODI(threat, restarts=9, at_once=3), 0.15, 24)]
    if threat.norm == "l1":
        entropy, diverse = Round("apgd-ce", APGD(threat), 0.4, 32), []
    square = (Round("square", Square(threat, at_once=4), 0.015, 6),) if threat.norm in Square.norms else ()
    return (
        Round("fmn", FMN(threat)),
        Round("pgd-margin", ODI(threat, 20, spread=0)),
        entropy,
        Round("fab-t 1 class", FABT(threat, targets=1)),
        Round("fmn again", FMN(threat, 200), 0.25, 24),
        *diverse,
        Round("apgd-t", TargetedAPGD(threat, 50), 0.04, 12),
        Round("fab-t", FABT(threat), 0.2, 32),
        *square,
    )


def by_rank(
    rounds: Sequence[Round], margin: np.ndarray, lot: np.ndarray, attack: Callable[[int, np.ndarray], np.ndarray],
    others: int = 0,
) -> Iterator[Met]:  # fmt: skip
    """Run the rounds, one at each step of the iteration, which gives what it did. It ends when no sample is robust.

    margin (N,): the largest so far, positive or NaN for samples that are not attacked; it is updated in place. lot (N,):
    random numbers that choose the far samples. attack(number, rows) runs a round on the samples `rows` (M,), and
    returns their largest margins (M,), positive where it broke the sample. others: robust samples that need no attack; they
    count for the shares, so that a round attacks as many of the nearest samples as without them.
    """
    watched = None
    for number, one in enumerate(rounds):
        order = np.flatnonzero(margin <= 0)
        order = order[np.argsort(-margin[order], kind="stable")]
        if not len(order):
            return
        first = min(len(order), one.border(len(order) + others))
        if watched is None and first < len(order):
            watched = _far(order[min(later.border(len(order) + others) for later in rounds[number:]) :], lot)
        far = np.empty(0, dtype=int) if watched is None else watched[margin[watched] <= 0]
        yield _round(number, first, order, far, margin, attack)


def _far(beyond: np.ndarray, lot: np.ndarray) -> np.ndarray:
    return beyond[np.argsort(lot[beyond])[: max(FAR_LEAST, math.ceil(FAR_SHARE * len(beyond)))]]


def _round(
    number: int, first: int, order: np.ndarray, far: np.ndarray, margin: np.ndarray,
    attack: Callable[[int, np.ndarray], np.ndarray],
) -> Met:  # fmt: skip
    """Run one round on the nearest `first` of the samples in `order`, on `far`, and on as many more as it needs."""
    border, attacked = first, np.zeros(len(margin), dtype=bool)
    beyond = far[~np.isin(far, order[:first])]
    wanted = np.union1d(order[:first], beyond)
    while len(wanted):
        attacked[wanted] = True
        margin[wanted] = np.fmax(margin[wanted], attack(number, wanted))
        broken = np.flatnonzero(margin[order] > 0)
        farthest = int(broken[-1]) + 1 if len(broken) else 0
        border = min(len(order), max(border, REACH * farthest))
        wanted = order[:border][~attacked[order[:border]]]
    return Met(len(order), first, border, len(beyond), int((margin[beyond] > 0).sum()))


@ATTACKS.register("ranked-cascade")
@dataclass(frozen=True)
class RankedCascade(Ensemble):
    """The attacks of `rounds_of`, each on the nearest part of the samples that are still robust; see this module.

    Goal "patient": every round attacks every sample that is still robust. Goal "worst": every round attacks every sample to
    the end.
    """

    @property
    def members(self) -> tuple[Attack, ...]:
        return tuple(one.attack for one in rounds_of(self.threat))

    @property
    def passes(self) -> float:
        return sum(one.share * one.attack.passes for one in rounds_of(self.threat))

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Search(x, y, self.threat)
        if search.goal == "worst":
            return self._all_members(search, model, x, y)
        seed, index = drawn_for()
        lot = lots(seed, index)
        rounds = everywhere(rounds_of(self.threat)) if search.goal == "patient" else rounds_of(self.threat)

        def attack(number: int, rows: np.ndarray) -> np.ndarray:
            at = torch.from_numpy(rows).to(x.device)
            member = for_rows(rounds[number].attack, at)
            found, _ = member.run(model, x[at], y[at], index=index[at], seed=seed, goal=search.goal, copy=search.copy)
            found = confined(member, found, x[at])
            with undisturbed(model):
                value = decision_margin(expected_logits(model, found), y[at], found).float()
            stronger = value > search.value[at]
            search.value[at[stronger]], search.x_adv[at[stronger]] = value[stronger], found[stronger]
            search.found_at[at[(value > 0) & (search.found_at[at] == 0)]] = number + 1
            return value.double().cpu().numpy()

        for _ in by_rank(rounds, np.full(len(x), -np.inf), lot, attack):
            pass
        return search.x_adv


def everywhere(rounds: Sequence[Round]) -> tuple[Round, ...]:
    """The rounds, each on all samples that are still robust."""
    return tuple(Round(one.name, one.attack) for one in rounds)


def lots(seed: int, index: torch.Tensor) -> np.ndarray:
    """A random number (N,) for each sample `index`, by which `by_rank` chooses far samples."""
    with per_sample(seed, index, "lots of the ranked cascade"):
        return uniform_like(torch.empty(len(index), dtype=torch.float64, device=index.device)).cpu().numpy()
