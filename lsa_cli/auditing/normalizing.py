"""The normalisation of a network that nobody states: found by a contest on labelled images of the audit's data."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lsa_cli.attacks.base import undisturbed
from lsa_cli.data import LabelledData
from lsa_cli.errors import UsageError
from lsa_cli.models.classifier import Classifier, Normalization, with_normalization
from lsa_cli.models.contest import SIZES, Entrant, Outcome, Read, Standing, hold
from lsa_cli.models.normalizations import cost_of, normalizations_to_try
from lsa_cli.wording import plural

_OWN_FROM = 1000  # images from which the mean and std of the data are taken
_BATCH_NUMBERS = 400_000  # input numbers in a batch
_MOST_NUMBERS = 4000 * 3 * 32 * 32  # input numbers in all images of a contest, beyond its first 200 images
_SHOWN = 4


@dataclass(frozen=True)
class Found:
    """What a contest found. sentence: for the first lines and the report. decided: whether it is better than guessing."""

    normalization: Normalization
    sentence: str
    decided: bool


def find_normalization(
    classifier: Classifier, data: LabelledData, labels: np.ndarray, look: Callable[[np.ndarray], torch.Tensor], said: str | None
) -> Found:  # fmt: skip
    """The normalisation under which the labels are most probable, beyond noise; see `models.contest`.

    classifier: without normalisation. labels (N,): in its order of classes. look: rows of the data -> images (n, C, H, W) in
    [0, 1]. said: mean and std beside the network in the file: taken unless another one is better.
    Raises UsageError, with a table, where images do not decide, or contradict the file.
    """
    order = np.random.default_rng(0).permutation(len(data))
    tried = normalizations_to_try(look(np.sort(order[:_OWN_FROM])), said)
    entrants = [
        Entrant(
            option,
            -1.0 if said is not None and short(option) == said else cost_of(option, data.name),
            _asking(with_normalization(classifier, normalization)),
        )
        for option, normalization in tried.items()
    ]
    with undisturbed(classifier):
        outcome = hold(entrants, reading(order, labels, look), len(order), sizes_for(look(order[:1]).numel()))
    first = entrants[0].name
    if said is not None and outcome.best.entrant.name != first:
        _refuse_what_is_said(first, outcome)
    if not outcome.above_chance:
        return Found(
            None, f"none of {len(entrants)} usual normalisations makes the network better than guessing", False
        )
    if outcome.rivals:
        _ask(outcome)
    return Found(tried[outcome.best.entrant.name], _sentence(outcome), True)


def _asking(model: Classifier) -> Callable[[torch.Tensor], torch.Tensor]:
    def ask(x: torch.Tensor) -> torch.Tensor:
        size = max(2, _BATCH_NUMBERS // x[0].numel())
        model.eval()
        return torch.cat([model(part) for part in x.split(size)])

    return ask


def reading(order: np.ndarray, labels: np.ndarray, look: Callable[[np.ndarray], torch.Tensor]) -> Read:
    """Images and labels at places of an order."""

    def read(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = np.sort(order[start:stop])
        return look(rows), torch.from_numpy(labels[rows])

    return read


def sizes_for(numbers: int) -> list[int]:
    """The rounds of a contest on inputs of so many numbers."""
    return [size for size in SIZES if size <= max(200, _MOST_NUMBERS // numbers)]


def short(option: str) -> str:
    """An option without its name: "cifar10", "0.5/0.5 --input-range -1,1"."""
    return option.removeprefix("--normalize ")


def accuracy_text(one: Standing) -> str:
    return f"{short(one.entrant.name)} {100 * one.accuracy:.1f}%"


def _sentence(outcome: Outcome) -> str:
    best, others = outcome.best, outcome.next
    text = f"normalisation {short(best.entrant.name)}: clean {100 * best.accuracy:.1f}% of {outcome.n}"
    text += f" (next: {accuracy_text(others)})" if others is not None else ""
    if outcome.alike:
        text += f"; nearly the same answers with {', '.join(short(one.entrant.name) for one in outcome.alike[:_SHOWN])}"
    return text


def _table(standings: list[Standing]) -> str:
    return ", ".join(f"{accuracy_text(one)} of {len(one.right)}" for one in standings[:_SHOWN])


def _ask(outcome: Outcome) -> None:
    raise UsageError(
        f"the normalisation is not known, and {plural(outcome.n, 'image')} do not decide which it is: "
        f"{_table([outcome.best, *outcome.rivals])}; give the one that the network was trained with, such as "
        f"{outcome.best.entrant.name}"
    )


def _refuse_what_is_said(first: str, outcome: Outcome) -> None:
    own = [one for one in [*outcome.rivals, *outcome.others] if one.entrant.name == first]
    raise UsageError(
        f"the file holds the normalisation {short(first)}, and another one is better: {_table([*own, outcome.best])}; give the "
        f"one that the network was trained with, {first} or {outcome.best.entrant.name}"
    )
