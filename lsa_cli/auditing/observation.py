"""Observation: what one forward pass of clean and perturbed inputs shows of each sample. No representation is kept."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.attacks.threat import RELATIVE_TOLERANCE, Threat
from lsa_cli.auditing.draws import draw
from lsa_cli.layers import tap
from lsa_cli.measures import Measure
from lsa_cli.models.classifier import Classifier, predicted_class

_ADVERSARIAL, _YARDSTICK, _FLOOR = range(3)  # kinds of inputs beside the clean ones


@dataclass(frozen=True)
class Observation:
    """Plain arrays for N samples and L layers; two of them add up to one.

    index (N,): place in the data set. predicted (N,): class of the perturbed input in this pass, -1 for NaN.
    distance (N,), within (N,): size of the perturbation in the threat's norm; whether it obeys the budget.
    layers (R, L): comparison measure, R = N rows (R = 1 for a batch taken as one); NaN where undefined.
    yardstick (R, L): the same for random noise of the same size, NaN without it.
    noise_floor (R, L): the same for a second clean pass of a stochastic network, NaN without it.
    input_error (R,): the measure on the inputs themselves.
    """

    index: np.ndarray
    predicted: np.ndarray
    distance: np.ndarray
    within: np.ndarray
    layers: np.ndarray
    yardstick: np.ndarray
    noise_floor: np.ndarray
    input_error: np.ndarray

    @staticmethod
    def concatenate(parts: Sequence["Observation"]) -> "Observation":
        fields = Observation.__dataclass_fields__
        return Observation(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})

    def __add__(self, other: "Observation") -> "Observation":
        return Observation.concatenate([self, other])


@dataclass(frozen=True)
class Moved:
    """Perturbed inputs x_adv (N, ...), and the threat in whose norm they are measured.

    with_yardstick: whether random noise of the same size is observed beside them.
    """

    x_adv: torch.Tensor
    threat: Threat
    with_yardstick: bool = True


def observe(
    classifier: Classifier,
    layers: Sequence[str],
    measure: Measure,
    threat: Threat,
    x: torch.Tensor,
    x_adv: torch.Tensor,
    index: torch.Tensor,
    *,
    with_yardstick: bool = True,
    **options: Any,
) -> Observation:
    """`observe_all` of the clean inputs x and one x_adv, (N, ...) each, without the logits."""
    moved = Moved(x_adv, threat, with_yardstick)
    return observe_all(classifier, layers, measure, x, [moved], index, **options)[0][0]


def observe_all(
    classifier: Classifier,
    layers: Sequence[str],
    measure: Measure,
    x: torch.Tensor,
    moved: Sequence[Moved],
    index: torch.Tensor,
    *,
    seed: int = 0,
    with_floor: bool = False,
    whole_batch: bool = False,
) -> list[tuple[Observation, torch.Tensor]]:
    """One pass without gradients over x (N, ...), every x_adv and its yardstick, and for the noise floor x once more.

    Returns for each of `moved` the observation, and the logits (N, K) of x_adv. Each layer is reduced to one number a sample
    while it runs, so that memory holds one layer at a time. Perturbations of one size share their yardstick. The classifier
    runs in evaluation mode, and is restored. whole_batch: one ratio for the batch tensor, as the authors' package computes it.
    """
    count, rows = len(x), 1 if whole_batch else len(x)
    distances = [one.threat.distance(one.x_adv, x) for one in moved]
    inputs, slots = _inputs(x, moved, distances, index, seed, with_floor)
    seen: dict[str, torch.Tensor] = {}

    def reduce(name: str, output: torch.Tensor) -> None:
        clean, *others = output.detach().split(count)
        seen[name] = torch.stack([_compare(measure, clean, other, whole_batch) for other in others])

    # Clean and perturbed inputs of a stochastic network draw on their own: noise that they share would not show.
    drawn_for = torch.cat([index + (number << 40) for number in (0, *(kind + 1 for _, kind in slots))]).to(x.device)
    randomness = draw(seed, drawn_for, 0) if with_floor else nullcontext()
    with torch.no_grad(), undisturbed(classifier), tap(classifier.body, layers, reduce), randomness:
        logits = classifier(torch.cat(inputs)).split(count)[1:]  # of x_adv first
    values = torch.full((len(moved), 3, rows, len(layers)), torch.nan, device=x.device)
    for column, name in enumerate(layers):
        if name not in seen:  # a network that runs other layers in this pass than in its first one
            continue
        for (positions, kind), found in zip(slots, seen[name], strict=True):
            values[positions, kind, :, column] = found
    # An infinite measure comes from an infinite activation: it has no mean, so it counts as undefined.
    finite = torch.where(torch.isfinite(values), values, torch.nan).double().cpu().numpy()
    observations = [
        Observation(
            index=index.cpu().numpy(),
            predicted=predicted_class(logits[position]).cpu().numpy(),
            distance=distances[position].double().cpu().numpy(),
            within=one.threat.contains(one.x_adv, x).cpu().numpy(),
            layers=finite[position, _ADVERSARIAL],
            yardstick=finite[position, _YARDSTICK],
            noise_floor=finite[position, _FLOOR],
            input_error=_compare(measure, x, one.x_adv, whole_batch).double().cpu().numpy(),
        )
        for position, one in enumerate(moved)
    ]
    return list(zip(observations, logits[: len(moved)], strict=True))


def _inputs(
    x: torch.Tensor, moved: Sequence[Moved], distances: Sequence[torch.Tensor], index: torch.Tensor, seed: int, with_floor: bool
) -> tuple[list[torch.Tensor], list[tuple[list[int], int]]]:  # fmt: skip
    """The inputs of the pass, x first and every x_adv next; for each but x its positions in `moved`, and its kind."""
    inputs = [x, *(one.x_adv for one in moved)]
    slots = [([position], _ADVERSARIAL) for position in range(len(moved))]
    for positions in _of_one_size(moved, distances):
        with per_sample(seed, index.to(x.device), "yardstick"):
            inputs.append(moved[positions[0]].threat.random_direction(x, distances[positions[0]]))
        slots.append((positions, _YARDSTICK))
    if with_floor:
        inputs.append(x)
        slots.append((list(range(len(moved))), _FLOOR))
    return inputs, slots


def _of_one_size(moved: Sequence[Moved], distances: Sequence[torch.Tensor]) -> list[list[int]]:
    """The positions in `moved` whose yardstick is the same: of one norm and range, and of equal distances up to rounding."""
    groups: list[list[int]] = []
    for position, one in enumerate(moved):
        if not one.with_yardstick:
            continue
        for group in groups:
            first = moved[group[0]].threat
            same = type(first) is type(one.threat) and first.bounds == one.threat.bounds
            if same and torch.allclose(distances[position], distances[group[0]], rtol=RELATIVE_TOLERANCE, atol=0):
                group.append(position)
                break
        else:
            groups.append([position])
    return groups


def _compare(measure: Measure, clean: torch.Tensor, other: torch.Tensor, whole_batch: bool) -> torch.Tensor:
    """(N, ...) x2 -> (R,), in float32."""
    clean, other = clean.float(), other.float()
    if whole_batch or clean.ndim == 1:  # or a layer of one number for each sample
        clean, other = (output.reshape(1 if whole_batch else len(output), -1) for output in (clean, other))
    return measure(clean, other)
