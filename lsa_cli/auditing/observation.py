"""Observation: what one look at clean and perturbed inputs tells, per sample. No representation is kept."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.attacks.threat import Threat
from lsa_cli.auditing.draws import draw
from lsa_cli.layers import tap
from lsa_cli.measures import Measure
from lsa_cli.models.classifier import Classifier, predicted_class


@dataclass(frozen=True)
class Observation:
    """Plain arrays for N samples and L layers; two of them concatenate into one.

    index (N,): place in the data set. predicted (N,): class of the perturbed input in this pass, -1 for NaN.
    distance (N,), within (N,): size of the perturbation in the threat's norm; whether it obeys the budget.
    layers (R, L): comparison measure, R = N rows (R = 1 for a batch taken as one); NaN where undefined.
    yardstick (R, L): the same for random noise of the same size, NaN if there is none.
    noise_floor (R, L): the same for a second clean pass of a random network, NaN if that is not asked for.
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


def observe(
    classifier: Classifier,
    layers: Sequence[str],
    measure: Measure,
    threat: Threat,
    x: torch.Tensor,
    x_adv: torch.Tensor,
    index: torch.Tensor,
    *,
    seed: int = 0,
    with_yardstick: bool = True,
    with_floor: bool = False,
    whole_batch: bool = False,
) -> Observation:
    """One pass without gradients over [x, x_adv, x + noise as large as x_adv - x, x once more], each (N, ...).

    Each layer is reduced to one number a sample while it runs, so the memory is that of one layer. Valid in
    evaluation mode, which is set and restored. whole_batch: one ratio for the batch tensor, as the authors'
    package computes it.
    """
    count = len(x)
    distance = threat.distance(x_adv, x)
    inputs, kinds = [x, x_adv], [0]
    if with_yardstick:
        with per_sample(seed, index.to(x.device), "yardstick"):
            inputs.append(threat.random_direction(x, distance))
            kinds.append(1)
    if with_floor:
        inputs.append(x)
        kinds.append(2)

    def compare(clean: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (R,)
        clean, moved = clean.float(), moved.float()
        if whole_batch or clean.ndim == 1:  # or a layer of one number for each sample
            clean, moved = (output.reshape(1 if whole_batch else len(output), -1) for output in (clean, moved))
        return measure(clean, moved)

    seen: dict[str, torch.Tensor] = {}

    def reduce(name: str, output: torch.Tensor) -> None:
        clean, *others = output.detach().split(count)
        seen[name] = torch.stack([compare(clean, other) for other in others])

    # Of a random network every row draws for itself: noise that clean and perturbed input share would not show.
    rows_of_all = torch.cat([index + (number << 40) for number in range(len(inputs))]).to(x.device)
    chance = draw(seed, rows_of_all, 0) if with_floor else nullcontext()
    with torch.no_grad(), undisturbed(classifier), tap(classifier.body, layers, reduce), chance:
        logits = classifier(torch.cat(inputs))
    rows = 1 if whole_batch else count
    values = torch.full((3, rows, len(layers)), torch.nan, device=x.device)
    for position, name in enumerate(layers):
        values[kinds, :, position] = seen[name]
    # An infinite measure comes from an infinite activation: it has no mean, so it counts as undefined.
    values = torch.where(torch.isfinite(values), values, torch.nan).double().cpu().numpy()
    return Observation(
        index=index.cpu().numpy(),
        predicted=predicted_class(logits[count : 2 * count]).cpu().numpy(),
        distance=distance.double().cpu().numpy(),
        within=threat.contains(x_adv, x).cpu().numpy(),
        layers=values[0],
        yardstick=values[1],
        noise_floor=values[2],
        input_error=compare(x, x_adv).double().cpu().numpy(),
    )
