"""The variant of a chain that was trained: searched on a few labelled images, confirmed by a contest on many.

1. The most usual geometries, each with a few activations and normalisations, are ranked by the probability of the labels
   on few images. Variants with equal answers count as one, the most usual.
2. From the best ones, on more images, one choice at a time is changed (activation, pooling, order, normalisation) as long
   as that helps.
3. All other geometries are tried with the choices of the best one.
4. Every variant that the best one does not beat beyond noise on these images enters a contest on many images.

Numbers of images and variants are our choice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import nn

from lsa_cli.models.classifier import Normalization, Normalize, as_logits
from lsa_cli.models.contest import Entrant, Outcome, Read, Standing, hold, losses
from lsa_cli.models.rebuilding.chain import ACTIVATIONS, ORDERS, POOLINGS, Variant, parts_of, with_weights
from lsa_cli.models.rebuilding.geometry import Geometry, geometries
from lsa_cli.models.rebuilding.layers import Layer

_FEW_IMAGES, _IMAGES = 32, 128  # of the first and third step, and of the second one
_FIRST, _FEW, _MOST = 30, 10, 200  # geometries of the first step, of its less usual styles, and of the third step
_KEPT, _USUAL, _TOP = 12, 4, 2  # variants for the second step: the best, the most usual; those that are changed
_ENTRANTS = 40  # of the contest
_STYLES = (("ReLU", "max"), ("ReLU", "average"), ("tanh", "max"), ("tanh", "average"), ("sigmoid", "average"))
_SIZES = (_IMAGES, 400, 1000, 2000, 4000)


class Search:
    """Variants of a chain, asked on the same images."""

    def __init__(
        self, layers: Sequence[Layer], tensors: Mapping[str, torch.Tensor], read: Read, available: int,
        normalizations: Mapping[str, Normalization], costs: Callable[[str], float],
    ) -> None:  # fmt: skip
        self.layers, self.tensors, self.read, self.available = list(layers), tensors, read, available
        self.made: dict[str, nn.Module] = {}
        self.shifts = {
            name: nn.Identity() if value is None else Normalize(*value) for name, value in normalizations.items()
        }
        self.costs = costs
        self.x, self.y = read(0, min(_IMAGES, available))
        self.few: dict[Variant, Standing] = {}
        self.asked: dict[Variant, Standing] = {}
        self.variants: list[Variant] = []

    def best(self) -> Outcome | None:
        """The outcome of the contest, whose entrants are named by the place of their variant in `variants`; None where
        no geometry is consistent."""
        every = list(islice(geometries(self.layers, (self.x.shape[2], self.x.shape[3])), _MOST))
        if not every:
            return None
        self._screen(self._starts(every))
        self._climb()
        while True:
            before = self._ranked()[0]
            self._screen([before, *(replace(before, geometry=other) for other in every)])
            self._climb()
            if self._ranked()[0] == before:
                break
        leader, *others = self._ranked()
        self.variants = [leader, *(one for one in others if not self.asked[leader].beats(self.asked[one]))][:_ENTRANTS]
        entrants = [
            Entrant(str(place), one.cost + self.costs(one.normalization), self._asking(one))
            for place, one in enumerate(self.variants)
        ]
        return hold(entrants, self.read, self.available, _SIZES)

    def _screen(self, variants: Iterable[Variant]) -> None:
        """Ask on few images, and the best and the most usual of those that the best one does not beat on more."""
        self._ask(variants, self.few, _FEW_IMAGES)
        best, *others = without_equal(self.few)
        left = [one for one in others if not self.few[best].beats(self.few[one])]
        usual = sorted(left, key=lambda one: one.cost)[:_USUAL]
        self._ask([best, *left[:_KEPT], *usual], self.asked, _IMAGES)

    def variant_of(self, one: Standing) -> Variant:
        """The variant of an entrant of the contest."""
        return self.variants[int(one.entrant.name)]

    def _starts(self, every: list[Geometry]) -> Iterable[Variant]:
        order = next(iter(ORDERS))
        for number, (activation, pooling) in enumerate(_STYLES):
            for geometry in every[: _FEW if number else _FIRST]:
                pools = any(step.pool is not None for step in geometry.steps)
                if pooling == "max" or pools:
                    for normalization in self._coarse():
                        yield Variant(geometry, activation, pooling, order, normalization)

    def _coarse(self) -> list[str]:
        """Three normalisations, to one of which every other one is similar."""
        wanted = ("none", "0.5/0.5")
        names = list(self.shifts)
        found = [name for name in names if name.removeprefix("--normalize ") in wanted]
        others = [name for name in names if name not in found and "--input-range" not in name]
        return [*found, *others[:1]] or names[:1]

    def _climb(self) -> None:
        """Change one choice of the best variants at a time, as long as that helps."""
        seen: set[Variant] = set()
        while fresh := [one for one in self._ranked()[:_TOP] if one not in seen]:
            seen.add(fresh[0])
            self._ask(self._neighbours(fresh[0]), self.asked, _IMAGES)

    def _neighbours(self, one: Variant) -> Iterable[Variant]:
        yield from (replace(one, activation=name) for name in ACTIVATIONS)
        yield from (replace(one, normalization=name) for name in self.shifts)
        if any(step.pool is not None for step in one.geometry.steps):
            yield from (replace(one, pooling=name) for name in POOLINGS)
        yield from (replace(one, order=order) for order in ORDERS)

    def _ranked(self) -> list[Variant]:
        return without_equal(self.asked)

    def _ask(self, variants: Iterable[Variant], known: dict[Variant, Standing], images: int) -> None:
        x, y = self.x[:images], self.y[:images]
        for one in variants:
            if one in known:
                continue
            ask = self._asking(one)
            with torch.no_grad():
                logits = ask(x)
            if bool(logits.isfinite().all()):
                cost = one.cost + self.costs(one.normalization)
                known[one] = Standing(Entrant("", cost, ask), logits, losses(logits, y), logits.argmax(1) == y)

    def _asking(self, one: Variant) -> Callable[[torch.Tensor], torch.Tensor]:
        network = with_weights(parts_of(self.layers, one), self.tensors, self.made)
        shift = self.shifts[one.normalization]

        def ask(x: torch.Tensor) -> torch.Tensor:
            return as_logits(torch.cat([network(shift(part)) for part in x.split(100)]), len(x))

        return ask


def without_equal(asked: Mapping[Variant, Standing]) -> list[Variant]:
    """Variants with the best first, and of those with equal losses on all images only the most usual."""
    found: dict[tuple[float, ...], Variant] = {}
    for one in sorted(asked, key=lambda one: asked[one].entrant.cost):
        found.setdefault(tuple(asked[one].loss.round(decimals=3).tolist()), one)
    return sorted(found.values(), key=lambda one: float(asked[one].loss.mean()))
