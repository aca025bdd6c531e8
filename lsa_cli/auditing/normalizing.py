"""The normalisation of a network that nobody states: found by a contest on labelled images of the audit's data."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lsa_cli.attacks.base import undisturbed
from lsa_cli.data import LabelledData
from lsa_cli.errors import UsageError
from lsa_cli.models.beside import normalization_beside
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.models.classifier import Classifier, Normalization, with_normalization
from lsa_cli.models.contest import ALIKE, SIZES, Entrant, Outcome, Read, Standing, gives_same_answers, hold
from lsa_cli.models.normalizations import cost_of, has_same_scale, normalizations_to_try
from lsa_cli.models.training_inputs import remembered
from lsa_cli.wording import plural

_OWN_FROM = 1000  # images from which the mean and std of the data are taken
_BATCH_NUMBERS = 400_000  # input numbers in a batch
_MOST_NUMBERS = 4000 * 3 * 32 * 32  # input numbers in all images of a contest, beyond its first 200 images
_ENOUGH = 1000  # images that a normalisation is checked on for which there is other evidence
_SHOWN = 4
_REMEMBERED = "BatchNorm remembers inputs of this normalisation"


@dataclass(frozen=True)
class Said:
    """A normalisation that a file states. option: MEAN/STD, as for --normalize. where: "the file", or the name of a file beside it."""

    option: str
    where: str


@dataclass(frozen=True)
class Found:
    """What a contest found. sentence: for the first lines and the report. decided: whether it is better than guessing."""

    normalization: Normalization
    sentence: str
    decided: bool


def stated(checkpoint: Checkpoint | None, in_file: str | None) -> Said | None:
    """What a file states: in_file, the MEAN/STD that lie beside the weights in it, else a configuration beside it."""
    if in_file is not None or checkpoint is None:
        return None if in_file is None else Said(in_file, "the file")
    found = normalization_beside(checkpoint.path)
    return None if found is None else Said(*found)


def find_normalization(
    classifier: Classifier, data: LabelledData, labels: np.ndarray, look: Callable[[np.ndarray], torch.Tensor], said: Said | None
) -> Found:  # fmt: skip
    """The normalisation under which the labels are most probable, beyond noise; see `models.contest`.

    classifier: without normalisation. labels (N,): in its order of classes. look: rows of the data -> images (n, C, H, W) in
    [0, 1]. said: what the file or a file beside it states: taken unless another one is better. Where nothing is stated,
    what BatchNorm remembers decides among those that are within noise.
    Raises UsageError, with a table, where images do not decide, or contradict the file.
    """
    order = np.random.default_rng(0).permutation(len(data))
    images = look(np.sort(order[:_OWN_FROM]))
    tried = normalizations_to_try(images, said.option if said is not None else None)
    sizes = sizes_for(images[0].numel())

    def is_alike(one: Standing, other: Standing) -> bool:
        return gives_same_answers(one, other) and has_same_scale(tried[one.entrant.name], tried[other.entrant.name])

    with undisturbed(classifier):
        first = next(iter(tried)) if said is not None else remembered(classifier, tried, images)
        entrants = [
            Entrant(
                option,
                -1.0 if option == first else cost_of(option, data.name or data.called),
                _asking(with_normalization(classifier, normalization)),
            )
            for option, normalization in tried.items()
        ]
        enough = sizes if first is None else [size for size in sizes if size <= _ENOUGH]
        outcome = hold(entrants, reading(order, labels, look), len(order), enough, is_alike)
    if not outcome.above_chance:
        return Found(
            None, f"none of {len(entrants)} usual normalisations makes the network better than guessing", False
        )
    chosen, why = outcome.best, ""
    if first is not None:
        standing = [one for one in [outcome.best, *outcome.alike, *outcome.rivals] if one.entrant.name == first]
        if not standing and said is not None:
            _refuse_what_is_said(first, said, outcome)
        if standing:
            chosen, why = standing[0], f"stated in {said.where}" if said is not None else _REMEMBERED
    if outcome.rivals and not why:
        _ask(outcome)
    return Found(tried[chosen.entrant.name], _sentence(chosen, outcome, why), True)


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


def _sentence(chosen: Standing, outcome: Outcome, why: str) -> str:
    several = [outcome.best, *outcome.rivals, *outcome.others]
    other = next((one for one in several if one is not chosen and one.agreement(chosen) < ALIKE), None)
    alike = [one for one in [outcome.best, *outcome.alike] if one is not chosen and one.agreement(chosen) >= ALIKE]
    text = f"normalisation {short(chosen.entrant.name)}: clean {100 * chosen.accuracy:.1f}% of {len(chosen.right)}"
    text += f" (next: {accuracy_text(other)})" if other is not None else ""
    if alike:
        text += f"; nearly the same answers with {', '.join(short(one.entrant.name) for one in alike[:_SHOWN])}"
    return text + (f"; {why}" if why else "")


def _table(standings: list[Standing]) -> str:
    return ", ".join(f"{accuracy_text(one)} of {len(one.right)}" for one in standings[:_SHOWN])


def _ask(outcome: Outcome) -> None:
    raise UsageError(
        f"the normalisation is not known, and {plural(outcome.n, 'image')} do not decide which it is: "
        f"{_table([outcome.best, *outcome.rivals])}; give the one that the network was trained with, such as "
        f"{outcome.best.entrant.name}"
    )


def _refuse_what_is_said(first: str, said: Said, outcome: Outcome) -> None:
    own = [one for one in outcome.others if one.entrant.name == first]
    raise UsageError(
        f"{said.where} states the normalisation {short(first)}, and another one is better: {_table([*own, outcome.best])}; give "
        f"the one that the network was trained with, {first} or {outcome.best.entrant.name}"
    )
