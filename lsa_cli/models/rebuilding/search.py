"""The variant of a network that was trained: searched on a few labelled images, confirmed by a contest on many.

1. The most usual geometries of every structure, each with a few activations and normalisations, are ranked by the
   probability of the labels on few images. Variants with equal answers count as one, the most usual.
2. From the best ones, on more images, one choice at a time is changed (activation, pooling, order, sum, normalisation) as
   long as that helps.
3. All other geometries are tried with the choices of the best one.
4. Every variant that the best one does not beat beyond noise on these images enters a contest on many images.

A trained network gives probabilities, so a temperature far from 1 is unusual: each factor of ten costs 1 (our choice).
Numbers of images and variants are our choice; for large networks there are fewer.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from lsa_cli.models.classifier import Normalization, Normalize, as_logits
from lsa_cli.models.contest import Entrant, Outcome, Read, Standing, gives_same_answers, hold, losses, tempered
from lsa_cli.models.normalizations import coarse, has_same_scale
from lsa_cli.models.rebuilding.chain import fast_layout, with_weights
from lsa_cli.models.rebuilding.geometry import FLATTEN, Geometry, dilated, geometries, near, work
from lsa_cli.models.rebuilding.grouping import DENSE, SUM, Structure
from lsa_cli.models.rebuilding.layers import Layer
from lsa_cli.models.rebuilding.stationarity import AT_REST, unrest
from lsa_cli.models.rebuilding.statistics import running_misfit
from lsa_cli.models.rebuilding.variants import (
    ACTIVATIONS,
    ORDERS,
    POOLINGS,
    SUMS,
    SUMS_BEFORE,
    SUMS_DENSE,
    SUMS_FIRE,
    SUMS_NONE,
    USUAL,
    Variant,
    parts_of,
)
from lsa_cli.models.rebuilding.weighing import Weighing

_ENTRANTS = 40  # of the contest
_BATCH = 32  # images that are asked at once: the outputs of more leave the cache
_GLANCE, _FAR_BELOW = 8, 0.5  # images that every variant is asked; share of right answers below the best that ends it
_UNDECIDED = 0.999  # share of the cost of an activation that is left out of the contest
_NATS = 1.5  # of log-probability for each unit of cost
_FITS = (
    0.3  # nats: networks that were trained have less than a tenth of it, and wrong orders of their layers several nats
)
_LEAST_TRAINED = 1000  # training images, also where the contest has fewer images
_OF_EACH = 1  # geometries of every structure that the first step asks in any case
_TOP = 2  # variants that are changed
_STYLES = (("ReLU", "max"), ("ReLU", "average"), ("tanh", "max"), ("tanh", "average"), ("sigmoid", "average"))
_ORDERS_OF_NORMS = (("act", "norm", "pool"), ("act", "pool", "norm"))
_ACTIVATIONS_OF_BLOCKS = ("ReLU", "LeakyReLU(0.01)", "LeakyReLU(0.1)", "LeakyReLU(0.2)", "ELU", "SiLU", "GELU", "ReLU6")
_SIZES = (128, 400, 1000, 2000, 4000)
_MISFIT, _LEAST_MISFIT = 2.0, 0.02  # times that of the best; nats; what fits the running statistics worse is left out


class Effort(NamedTuple):
    """few, images: of the first and third step, and of the second one. first, less: geometries of the first step, and of its
    less usual styles. most, near: geometries of the third step, the most usual of all, and of those like the best. kept, usual: variants for the second step, the best and the most
    usual. contest: images at most. slopes: images whose gradients are computed."""

    few: int
    images: int
    first: int
    less: int
    most: int
    near: int
    kept: int
    usual: int
    contest: int
    slopes: int


_EFFORTS = {  # by multiplications for an image, at most
    2e7: Effort(32, 128, 30, 10, 200, 40, 12, 4, 4000, 1000),
    1e8: Effort(32, 64, 12, 4, 40, 30, 6, 2, 1000, 400),
    math.inf: Effort(8, 32, 4, 2, 8, 8, 3, 1, 400, 100),
}


class Search:
    """Variants of a chain, asked on the same images. trained: images and labels of the training, where they are known.
    activation: the only one that is tried; None: all. flatten: FLATTEN or CHANNELS_LAST.
    wait: gets the number of variants that were asked, and the best accuracy, after each of them."""

    def __init__(
        self, structures: Sequence[Structure], tensors: Mapping[str, torch.Tensor], read: Read, available: int,
        normalizations: Mapping[str, Normalization], costs: Callable[[str], float],
        trained: tuple[torch.Tensor, torch.Tensor] | None = None, activation: str | None = None,
        flatten: str = FLATTEN, wait: Callable[[int, float], None] = lambda asked, best: None,
    ) -> None:  # fmt: skip
        self.structures, self.tensors, self.read, self.available = list(structures), tensors, read, available
        self.made: dict[tuple[Any, ...], nn.Module] = {}
        self.normalizations = normalizations
        self.shifts = {
            name: nn.Identity() if value is None else Normalize(*value) for name, value in normalizations.items()
        }
        self.costs = costs
        self.flatten, self.wait = flatten, wait
        self.activations = tuple(ACTIVATIONS) if activation is None else (activation,)
        self.trained, self.on_training = trained, dict[Variant, torch.Tensor]()
        self.unrest: dict[Variant, float] = {}
        self.x, self.y = read(0, min(_SIZES[0], available))
        self.few: dict[Variant, Standing] = {}
        self.asked: dict[Variant, Standing] = {}
        self.answers: dict[Variant, torch.Tensor] = {}  # logits of the first images of a contest
        self.misfit: dict[Variant, float] = {}
        self.poor: set[Variant] = set()
        self.variants: list[Variant] = []
        self.weighing = Weighing(
            self.variant_of, self.on_training_images, lambda one: self.misfit[self.variant_of(one)], self.unrest_of,
            self.is_alike,
        )  # fmt: skip

    def best(self) -> Outcome | None:
        """The outcome of the contest, whose entrants are named by the place of their variant in `variants`; None where
        no geometry is consistent, or every variant answers NaN or infinity."""
        every = self._geometries()
        if not every:
            return None
        self._screen(self._starts(every))
        if not self.asked:
            return None
        self._climb()
        while True:
            before = self._ranked()[0]
            self._screen([before, *self._with_other_geometries(before, every)])
            self._climb()
            if self._ranked()[0] == before:
                break
        leader, *others = self._ranked()
        most = max(_MISFIT * self.misfit[leader], self.misfit[leader] + _LEAST_MISFIT)
        kept = [one for one in others if not self.asked[leader].beats(self.asked[one]) and self.misfit[one] <= most]
        outcome = self._contest([leader, *self._twins(leader), *kept])
        # On few images an activation that smooths an overfitted network can beat the one of its training, and an exception the
        # lack of one. So the winner must also win against those that differ from it in these alone.
        winners: list[Variant] = []
        while (winner := self.variant_of(outcome.best)) not in winners:
            winners.append(winner)
            # Other geometries were tried with the activation of the leader, which may be another one.
            self._screen([winner, *self._with_other_geometries(winner, every)])
            twins = [*self._twins(winner), *self._other_geometries_near(winner)]
            if all(one in self.variants for one in twins):
                break
            standing = [self.variant_of(one) for one in (*outcome.alike, *outcome.rivals)]
            outcome = self._contest([winner, *twins, *winners, *standing])
        return outcome

    def _other_geometries_near(self, winner: Variant) -> list[Variant]:
        """The variants that differ in the geometry alone, and that it does not beat on some images."""
        same = [one for one in self._ranked() if replace(one, geometry=winner.geometry) == winner and one != winner]
        return [one for one in same if not self.asked[winner].beats(self.asked[one])][: self.effort.kept]

    def _contest(self, variants: Iterable[Variant]) -> Outcome:
        self.variants = list(dict.fromkeys(variants))[:_ENTRANTS]
        # How usual an activation is decides between equal answers alone: a wrong one can give nearly the same accuracy.
        entrants = [
            Entrant(
                str(place),
                self.asked[one].entrant.cost - _UNDECIDED * ACTIVATIONS[one.activation][2],
                self._asking(one),
                self.answers.get(one, self.asked[one].logits),
            )
            for place, one in enumerate(self.variants)
        ]
        sizes = [size for size in _SIZES if size <= self.effort.contest]
        outcome = hold(entrants, self.read, self.available, sizes, self.is_alike)
        for standing in (outcome.best, *outcome.alike, *outcome.rivals, *outcome.others):
            variant = self.variant_of(standing)
            if len(standing.logits) > len(self.answers.get(variant, ())):
                self.answers[variant] = standing.logits
        return self.weighing.weighed(outcome)

    def _twins(self, one: Variant) -> list[Variant]:
        """The variants that differ in the activation, or in having an exception, and answer some images."""
        exceptions = dict.fromkeys((one.exception, ""))
        names = self.activations
        every = [replace(one, activation=name, exception=exception) for exception in exceptions for name in names]
        self._ask(every, self.asked, self.effort.images)
        return [other for other in every if other in self.asked and other != one]

    def on_training_images(self, one: Standing) -> torch.Tensor | None:
        """Losses on training images; None without images."""
        if self.trained is None:
            return None
        variant = self.variant_of(one)
        if variant not in self.on_training:
            x, y = (part[: max(_LEAST_TRAINED, self.effort.contest)] for part in self.trained)
            with torch.no_grad():
                self.on_training[variant] = losses(one.entrant.ask(x).float(), y)
        return self.on_training[variant]

    def unrest_of(self, one: Standing) -> float:
        """How far an entrant is from a minimum of the loss, on training images where there are some."""
        variant = self.variant_of(one)
        if variant not in self.unrest:
            x, y = self.trained or self.read(0, min(self.effort.slopes, self.available))
            x, y = x[: self.effort.slopes], y[: self.effort.slopes]
            network = with_weights(parts_of(variant), self.tensors, self.made)
            self.unrest[variant] = unrest(network, fast_layout(self.shifts[variant.normalization](x)), y)
        return self.unrest[variant]

    def is_alike(self, one: Standing, other: Standing) -> bool:
        """Whether two entrants do not differ in effect: they give nearly the same answers, with normalisations of one scale."""
        both = (self.normalizations[self.variant_of(each).normalization] for each in (one, other))
        return gives_same_answers(one, other) and has_same_scale(*both)

    def fits(self, one: Standing) -> bool:
        """Whether the running statistics of BatchNorm are about those of the images."""
        return self.misfit[self.variant_of(one)] <= _FITS

    def is_at_rest(self, one: Standing) -> bool:
        """Whether an entrant can be at a minimum of the loss of its training. True where no image of the training is known, and
        with BatchNorm, which answers otherwise in training."""
        if self.trained is None or any(name.endswith("running_var") for name in self.tensors):
            return True
        return self.unrest_of(one) <= AT_REST

    def _geometries(self) -> list[tuple[Structure, Geometry]]:
        """Of all structures, the most usual first."""
        size = size_of(self.x)
        of_each = [(one, geometries(one.elements, size, self.flatten)) for one in self.structures]
        found = [(one, geometry) for one, several in of_each for geometry in islice(several, 1)]
        if found:
            least = min(work(*pair) for pair in found)
            self.effort = next(effort for most, effort in _EFFORTS.items() if least <= most)
            found += [(one, geometry) for one, several in of_each for geometry in islice(several, self.effort.most - 1)]
        return sorted(found, key=lambda pair: pair[0].cost + pair[1].cost)

    def _with_other_geometries(self, one: Variant, every: list[tuple[Structure, Geometry]]) -> Iterable[Variant]:
        for structure, geometry in every[: self.effort.most]:
            if structure == one.structure:
                yield replace(one, geometry=geometry)
        size = size_of(self.x)
        for geometry in near(one.structure.elements, size, one.geometry)[: self.effort.near]:
            yield replace(one, geometry=geometry)

    def _screen(self, variants: Iterable[Variant]) -> None:
        """Ask on few images, and the best and the most usual of those that the best one does not beat on more."""
        self._ask(variants, self.few, self.effort.few)
        ranked = self._without_equal(self.few)
        if not ranked:
            return
        best, *others = ranked
        left = [one for one in others if not self.few[best].beats(self.few[one])]
        usual = sorted(left, key=lambda one: one.cost)[: self.effort.usual]
        self._ask([best, *left[: self.effort.kept], *usual], self.asked, self.effort.images)

    def variant_of(self, one: Standing) -> Variant:
        """The variant of an entrant of the contest."""
        return self.variants[int(one.entrant.name)]

    def _starts(self, every: list[tuple[Structure, Geometry]]) -> Iterable[Variant]:
        """The most usual geometries, among them one of every structure."""
        usual = next(iter(ORDERS))
        styles = [(*style, usual) for style in _STYLES if style[0] in self.activations]
        styles = styles or [(self.activations[0], pooling, usual) for pooling in POOLINGS]
        styles += [(*styles[0][:2], order) for order in _ORDERS_OF_NORMS]
        for number, (activation, pooling, order) in enumerate(styles):
            starts = every[: self.effort.less if number else self.effort.first]
            for one in self.structures if not number else []:
                starts += [pair for pair in every if pair[0] == one and pair not in starts][:_OF_EACH]
            for structure, geometry in starts:
                has_norms = any(element.norm is not None for element in structure.elements)
                blocks = structure.blocks
                if (blocks and number > (blocks[0].joins != SUM)) or (order != usual and not has_norms):
                    continue
                pools = any(step.pool is not None for step in geometry.steps)
                if pooling == "max" or pools:
                    for sums in sums_of(structure):
                        for normalization in coarse(self.shifts):
                            yield Variant(structure, geometry, activation, pooling, order, sums, normalization)

    def _climb(self) -> None:
        """Change one choice of the best variants at a time, as long as that helps."""
        seen: set[Variant] = set()
        while fresh := [one for one in self._ranked()[:_TOP] if one not in seen]:
            seen.add(fresh[0])
            self._ask(self._neighbours(fresh[0]), self.asked, self.effort.images)

    def _neighbours(self, one: Variant) -> Iterable[Variant]:
        rare = set(ACTIVATIONS) - set(_ACTIVATIONS_OF_BLOCKS) if one.structure.blocks else set()
        yield from (replace(one, normalization=name) for name in self.shifts)
        yield from (replace(one, activation=name) for name in self.activations if name not in rare)
        if any(step.pool is not None for step in one.geometry.steps):
            yield from (replace(one, pooling=name) for name in POOLINGS)
        yield from (replace(one, order=order) for order in ORDERS)
        yield from (replace(one, geometry=other) for other in dilated(one.structure.elements, one.geometry))
        yield from (replace(one, sums=sums) for sums in sums_of(one.structure))
        yield from (replace(one, exception=name) for name in exceptions_of(one))

    def _ranked(self) -> list[Variant]:
        return self._without_equal(self.asked)

    def _without_equal(self, asked: Mapping[Variant, Standing]) -> list[Variant]:
        """Variants with the best first, and of those with equal losses on all images only the most usual.

        Where all losses are nil, because every answer is right, variants of other normalisations are not equal.
        """
        found: dict[tuple[float | str, ...], Variant] = {}
        for one in sorted(asked, key=lambda one: asked[one].entrant.cost):
            losses = asked[one].loss.round(decimals=3)
            key = (*losses.tolist(), "" if bool(losses.any()) else one.normalization)
            found.setdefault(key, one)
        return sorted(found.values(), key=lambda one: self._score(asked[one]) + self.misfit[one])

    def _score(self, one: Standing) -> float:
        """Nats for an image: the loss, and what is unusual as prior probability."""
        return float(one.loss.mean()) + _NATS * one.entrant.cost / len(one.loss)

    def _ask(self, variants: Iterable[Variant], known: dict[Variant, Standing], images: int) -> None:
        x, y = self.x[:images], self.y[:images]
        best = max((one.accuracy for one in known.values()), default=0.0)
        for one in variants:
            if one in known or one in self.poor:
                continue
            self.wait(len(self.few) + len(self.asked), best)
            network = with_weights(parts_of(one), self.tensors, self.made)
            ask = self._asking(one, network)
            with torch.no_grad():
                right = float((ask(x[:_GLANCE]).argmax(1) == y[:_GLANCE]).float().mean())
            if right <= best - _FAR_BELOW:
                self.poor.add(one)
                continue
            logits, misfit = running_misfit(network, partial(ask, x, len(x)))
            if bool(logits.isfinite().all()):
                loss, temperature = tempered(logits, y)
                cost = one.cost + self.costs(one.normalization) + abs(math.log10(temperature))
                known[one] = Standing(Entrant("", cost, self._asking(one)), logits, loss, logits.argmax(1) == y)
                if known is self.asked or one not in self.asked:  # that on more images is kept
                    self.misfit[one] = misfit
                best = max(best, known[one].accuracy)

    def _asking(self, one: Variant, network: nn.Module | None = None) -> Callable[..., torch.Tensor]:
        shift = self.shifts[one.normalization]

        def ask(x: torch.Tensor, batch: int = _BATCH) -> torch.Tensor:
            body = network if network is not None else with_weights(parts_of(one), self.tensors, self.made)
            return as_logits(torch.cat([body(fast_layout(shift(part))) for part in x.split(batch)]), len(x))

        return ask


def size_of(x: torch.Tensor) -> tuple[int, int]:
    """Height and width of images (n, C, H, W); (1, 1) of vectors (n, F)."""
    return (x.shape[2], x.shape[3]) if x.ndim == 4 else (1, 1)


def sums_of(structure: Structure) -> tuple[str, ...]:
    """What may happen in the blocks of a structure."""
    blocks = structure.blocks
    if not blocks:
        return ("",)
    if blocks[0].joins != SUM:
        return tuple(SUMS_DENSE if blocks[0].joins == DENSE else SUMS_FIRE)
    return tuple(SUMS_BEFORE if blocks[0].before else SUMS if blocks[0].adds else SUMS_NONE)


def exceptions_of(one: Variant) -> tuple[str, ...]:
    """The exceptions that a variant may have."""
    *hidden, _ = elements = one.structure.elements
    found = ["", "an activation behind the last layer"] if isinstance(elements[-1], Layer) else [""]
    if any(element.is_linear for element in hidden):
        found.append("no activation behind linear layers")
        if one.activation != USUAL and not hidden[0].is_linear:
            found.append("ReLU behind linear layers")
    found += _bare_ends(one)
    normed = [element.norm is not None for element in hidden if not element.is_linear]
    if normed and not all(normed) and not one.structure.blocks:
        found.append("no activation behind convolutions without a norm")
    return tuple(found)


def _bare_ends(one: Variant) -> list[str]:
    """The exceptions at one place: behind the last block, convolution or hidden layer."""
    *hidden, _ = one.structure.elements
    blocks = one.structure.blocks
    if blocks and blocks[0].joins != SUM:
        return []
    if blocks:
        has_none = all(block.norm is None for block in blocks) if blocks[0].before else one.sums != "sum, activation"
        return ["an activation behind the last block"] if has_none else []
    linear = sum(element.is_linear for element in hidden)
    found = ["no activation behind the last hidden layer"] if linear > 1 or (linear and len(hidden) > 1) else []
    if linear != len(hidden):
        found.append(
            "no activation behind the last convolution" if linear else "no activation behind the last hidden layer"
        )
    return found if len(hidden) > 1 else []
