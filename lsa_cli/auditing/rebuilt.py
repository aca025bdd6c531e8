"""What every network that is put together again from weights has: its result, its doubts, and the images to try it on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lsa_cli.attacks.threat import Bounds
from lsa_cli.auditing.normalizing import Found, short
from lsa_cli.auditing.suggesting import write_command
from lsa_cli.data import LabelledData, check_inputs, open_data, runs_user_code
from lsa_cli.errors import LsaError
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.models.classifier import AUTO, PRESETS, Normalization, parse_input_range, parse_normalize, rescaled
from lsa_cli.models.contest import Outcome
from lsa_cli.models.loading import Loaded, Say, UnknownNetworkError
from lsa_cli.models.normalizations import normalizations_to_try
from lsa_cli.settings import AuditSettings
from lsa_cli.stats import wilson

ARCHITECTURE = "reconstructed from the weights"
ASKED = "lsa:reconstructed"  # as --arch, with the choices of the user in --arch-args
_TRAINED, _MOST_TRAINED, _LEAST_TRAINED = 1000, 4000, 200  # images of the training split; the most are for small ones
_SMALL = 3 * 32 * 32  # numbers in an image of which _MOST_TRAINED are read
OWN_FROM = 1000  # images from which the mean and std of the data are taken
_LEAST = 0.35  # of the way from chance to 1: a network that is right less often is not taken (our choice)
_CLAIM_TOLERANCE = 0.01
SHOWN = 3  # other networks
_GREY = 28 * 28  # numbers of an image of MNIST
NO_NUMBERS = "every network that these weights fit answers these images with NaN or infinity"
STATED = "as the file states"  # the normalisation, for which no option is needed
Look = Callable[[np.ndarray], torch.Tensor]  # rows of the data -> images
IN_PYTHON = "data given in Python"  # in place of a data spec


@dataclass(frozen=True)
class Doubt:
    """Why a network may not be the one that was trained. how: what to do; commands: of the user, each of which does it."""

    sentence: str
    how: str = ""
    commands: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.sentence}; {self.how}" if self.how else self.sentence
        return f"{text}: {' | or '.join(self.commands)}" if self.commands else text


@dataclass(frozen=True)
class Rebuilt:
    """A network with the file's weights, its normalisation and the option for it (empty where none is needed).

    source: the text of a file that builds it. doubt: why it may not be the one that was trained; None without doubt.
    """

    loaded: Loaded
    found: Found
    option: str
    source: str
    doubt: Doubt | None


def normalizations_of(
    settings: AuditSettings, checkpoint: Checkpoint, images: torch.Tensor
) -> dict[str, Normalization]:
    """The one that the user or the file states, else all usual ones; for vectors (n, F) those of grey images, with those of
    data sets only for vectors as long as an image of MNIST."""
    description = checkpoint.description
    if settings.normalize not in (None, AUTO) or settings.input_range is not None:
        scale = parse_input_range(settings.input_range or "0,1")
        text = settings.normalize or "none"
        given = "" if settings.input_range is None else f" --input-range {settings.input_range}"
        return {f"--normalize {text}{given}": rescaled(parse_normalize(text, scale), scale)}
    if description is not None:
        stated = (description.mean, description.std)
        return {STATED: None if stated[0] is None or stated[1] is None else (stated[0], stated[1])}
    if images.ndim == 4:
        return normalizations_to_try(images, None)
    found = normalizations_to_try(images[:, None, None], None)
    if images.shape[1] == _GREY:
        return found
    return {option: value for option, value in found.items() if short(option) not in PRESETS}


def spec_given(data: LabelledData, settings: AuditSettings) -> str:
    """The data as the user gave them: the name of the source leaves out what is converted. IN_PYTHON where there is none."""
    return IN_PYTHON if data.spec == IN_PYTHON else settings.data or data.spec


def training_images(
    data: LabelledData, spec: str, images: torch.Tensor, bounds: Bounds
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Images and labels of the training split of the data set; None where it has none, or other images or classes."""
    if spec == IN_PYTHON or data.split == "train" or runs_user_code(spec):
        return None
    try:
        split = open_data(spec, split="train", channels=images.shape[1] if images.ndim == 4 else None)
        count = max(_TRAINED, min(_MOST_TRAINED, _MOST_TRAINED * _SMALL // images[0].numel()))
        rows = np.sort(np.random.default_rng(0).permutation(len(split))[:count])
        x = check_inputs(split.read(rows), rows, bounds, split.spec)
    except (LsaError, OSError):
        return None
    fits = x.shape[1:] == images.shape[1:] and split.class_names == data.class_names and split.split == "train"
    return (x, torch.from_numpy(split.labels[rows].astype(np.int64))) if fits and len(rows) >= _LEAST_TRAINED else None


def refuse_doubt(
    checkpoint: Checkpoint, doubt: Doubt | None, asked: AuditSettings | None, why: UnknownNetworkError, say: Say, doubtful: bool
) -> None:  # fmt: skip
    """Raise UnknownNetworkError for a doubt, or say it, where `doubtful`. asked: as for `with_commands`."""
    if doubt is not None and not doubtful:
        text, commands = f"{why}; put together again from its weights, {doubt.sentence}", doubt.commands
        text += f"; {doubt.how}" if doubt.how else ""
        if asked is not None:
            write = write_command(checkpoint.path, asked)
            is_there = any(write in command for command in commands)
            text += "" if is_there else f"{', or' if doubt.how else ';'} write and correct it"
            commands += () if is_there else (write,)
        raise UnknownNetworkError(text, commands)
    if doubt is not None:
        say(f"not certain: {doubt}")


def too_few(checkpoint: Checkpoint, outcome: Outcome, classes: int, tried: int) -> Doubt | None:
    """The doubt that the best of the `tried` networks is right too seldom; None without doubt."""
    best = outcome.best
    right = f"right on {100 * best.accuracy:.1f}% of {outcome.n} images"
    if not is_right(outcome, classes):
        return Doubt(f"the best of {tried} networks is {right}, which is too few to be the one that was trained")
    claimed, interval = checkpoint.claimed_accuracy, wilson(int(best.right.sum()), outcome.n)
    if claimed is not None and interval is not None and interval[1] < claimed[0] - _CLAIM_TOLERANCE:
        return Doubt(f"the best network is {right}, and the file states {100 * claimed[0]:.1f}% ({claimed[1]})")
    return None


def is_right(outcome: Outcome, classes: int) -> bool:
    """Whether the best network is right so often that it can be the one that was trained."""
    return outcome.above_chance and outcome.best.accuracy >= least_right(classes)


def least_right(classes: int) -> float:
    return 1 / classes + _LEAST * (1 - 1 / classes)
