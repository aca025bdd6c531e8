"""Which of several networks has the accuracy that the file states: their right answers on all images are counted.

Networks that nothing else distinguishes seldom have the same number of right answers, and a file often states the accuracy on a
test set so exactly that it gives this number. It can also be the accuracy on other images or of another epoch; then it is a
coincidence that a network has it. Both cases are taken as equally probable. All limits are our choice.
"""

import math
from dataclasses import replace

import torch

from lsa_cli.models.contest import Outcome, Standing
from lsa_cli.models.rebuilding.geometry import work
from lsa_cli.models.rebuilding.search import Search
from lsa_cli.models.rebuilding.variants import USUAL
from lsa_cli.models.rebuilding.weighing import ODDS, SAME

_ROUNDING = 0.02  # images: float32 holds the accuracy on 100,000 images as exactly
_APART = 2.0  # images: so many answers change from machine to machine
_MOST_WORK = 1e12  # multiplications for all networks and images
_ROUNDED = 0.3  # probability that the last digit of a share was rounded, and is not followed by zeros
_DIGITS = 7  # that float32 holds
_PART = 500  # images that are read at once


def with_stated_accuracy(search: Search, outcome: Outcome, claimed: tuple[float, str] | None) -> tuple[Outcome, str]:
    """The outcome without rivals, and a sentence, where the accuracy that the file states ends the doubt between them.

    claimed: as `claims.claim` returns it. Otherwise the outcome as it is, and "".
    """
    standing = [outcome.best, *outcome.rivals]
    variants = [search.variant_of(one) for one in standing]
    if claimed is None or not outcome.rivals:
        return outcome, ""
    n, share = search.available, claimed[0]
    if sum(work(one.structure, one.geometry) for one in variants) * n > _MOST_WORK:
        return outcome, ""
    fit, near = fitting(share, n, _right_answers(search, standing))
    if not fit:
        return outcome, ""
    # Those with the same answers do not differ in effect: of them, the most usual one is taken, as in a contest.
    found = min((standing[place] for place in fit), key=lambda one: search.variant_of(one).cost)
    rivals = [one for one in standing if one is not found]
    same = [one for one in rivals if _is_same(search, one, found)]
    differ = [one for one in rivals if one not in same]
    odds = [nats_of(share, n) + search.weighing.log_odds_with_prior(found, one) for one in differ]
    if any(standing[place] in differ for place in near) or min(odds, default=-math.inf) < ODDS:
        return outcome, ""
    alike = [one for one in outcome.alike if search.is_alike(one, found)]
    others = [*differ, *(one for one in outcome.alike if one not in alike), *outcome.others]
    decided = replace(outcome, best=found, alike=[*same, *alike], rivals=[], others=others)
    which = f"only this one of {1 + len(differ)} networks that are as good"
    return decided, f"the file states {100 * share:.7g}% ({claimed[1]}), which {which} has on all {n:,} images"


def _is_same(search: Search, one: Standing, other: Standing) -> bool:
    """Whether two networks have the same answers and activations without or with a slope of 0.01 below 0."""
    names = {search.variant_of(each).activation for each in (one, other)}
    return (
        one.agreement(other) >= SAME
        and search.is_alike(one, other)
        and (len(names) == 1 or names == {USUAL, "LeakyReLU(0.01)"})
    )


def fitting(share: float, n: int, right: list[int]) -> tuple[list[int], list[int]]:
    """The places of the numbers of right answers of n images that are the stated share, and of those that are so near that
    rounding it to its last digit, or another machine, could give it."""
    half = _half_a_digit(share) * n
    off = [abs(one - share * n) for one in right]
    exact = max(_ROUNDING, half if half < 0.5 else 0.0)
    fits = [place for place, one in enumerate(off) if one <= exact]
    return fits, [place for place, one in enumerate(off) if one <= half + _APART]


def nats_of(share: float, n: int) -> float:
    """Log-odds of a network that has this share of right answers of n images exactly, against one that has it by chance: the
    normal density of the accuracy on another sample of as many images, times the numbers that such a share can stand for."""
    spread = math.sqrt(2 * n * share * (1 - share))
    rounded = max(1.0, 2 * _half_a_digit(share) * n)
    numbers = 1 - _ROUNDED + _ROUNDED * rounded
    return math.log(max(1.0, math.sqrt(2 * math.pi) * spread / numbers))


def _half_a_digit(share: float) -> float:
    """Half a unit of the last digit of a share."""
    decimals = f"{share:.{_DIGITS}f}".rstrip("0").partition(".")[2]
    return 0.5 * 10.0 ** -len(decimals)


def _right_answers(search: Search, standing: list[Standing]) -> list[int]:
    right = [0] * len(standing)
    for start in range(0, search.available, _PART):
        x, y = search.read(start, min(start + _PART, search.available))
        with torch.no_grad():
            for place, one in enumerate(standing):
                right[place] += int((one.entrant.ask(x).argmax(1) == y).sum())
    return right
