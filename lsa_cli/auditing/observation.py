"""Observation: what one look at clean and perturbed inputs tells, per sample. No representation is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.attacks.threat import Threat
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
    input_error (R,): the measure on the inputs themselves.
    """

    index: np.ndarray
    predicted: np.ndarray
    distance: np.ndarray
    within: np.ndarray
    layers: np.ndarray
    yardstick: np.ndarray
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
    whole_batch: bool = False,
) -> Observation:
    """One pass without gradients over [x, x_adv, x + noise as large as x_adv - x], each (N, ...).

    Each layer is reduced to one number a sample while it runs, so the memory is that of one layer. Valid in
    evaluation mode, which is set and restored. whole_batch: one ratio for the batch tensor, as the authors'
    package computes it.
    """
    count = len(x)
    distance = threat.distance(x_adv, x)
    inputs = [x, x_adv]
    if with_yardstick:
        with per_sample(seed, index.to(x.device), "yardstick"):
            inputs.append(threat.random_direction(x, distance))

    def compare(clean: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (R,)
        clean, moved = clean.float(), moved.float()
        return measure(clean.reshape(1, -1), moved.reshape(1, -1)) if whole_batch else measure(clean, moved)

    seen: dict[str, torch.Tensor] = {}

    def reduce(name: str, output: torch.Tensor) -> None:
        clean, *others = output.detach().split(count)
        seen[name] = torch.stack([compare(clean, other) for other in others])

    with torch.no_grad(), undisturbed(classifier), tap(classifier.body, layers, reduce):
        logits = classifier(torch.cat(inputs))
    rows = 1 if whole_batch else count
    values = torch.full((2, rows, len(layers)), torch.nan, device=x.device)
    for position, name in enumerate(layers):
        values[: len(inputs) - 1, :, position] = seen[name]
    # An infinite measure comes from an infinite activation: it has no mean, so it counts as undefined.
    values = torch.where(torch.isfinite(values), values, torch.nan).double().cpu().numpy()
    return Observation(
        index=index.cpu().numpy(),
        predicted=predicted_class(logits[count : 2 * count]).cpu().numpy(),
        distance=distance.double().cpu().numpy(),
        within=threat.contains(x_adv, x).cpu().numpy(),
        layers=values[0],
        yardstick=values[1],
        input_error=compare(x, x_adv).double().cpu().numpy(),
    )
