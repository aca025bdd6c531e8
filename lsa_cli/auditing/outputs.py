"""Which of the tensors that a network returns are its logits: as wide as there are classes, and right on the labels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lsa_cli.data import LabelledData, stratified_subset
from lsa_cli.errors import CheckpointError, DataError, UsageError
from lsa_cli.models.classifier import as_logits
from lsa_cli.models.outputs import NAMED_LOGITS, describe
from lsa_cli.stats import binomial_tail

SAMPLES = 64  # that outputs are compared with the labels on
_AT_ONCE = 16
_CHANCE = 1e-3  # probability that an output unrelated to the labels is taken for the logits
_CLOSE = 1e-4

Labels = Callable[
    [int], np.ndarray
]  # number of classes -> labels (N,) in the network's order; DataError: they do not fit
Look = Callable[[np.ndarray], dict[str, torch.Tensor]]  # places in the data set -> outputs by name


@dataclass(frozen=True)
class _Candidate:
    """An output that could be logits: (n, K), and the share of samples on which the largest is the label."""

    name: str
    logits: torch.Tensor
    right: int
    n: int
    chance: float

    @property
    def agrees(self) -> bool:
        return binomial_tail(self.right, self.n, self.chance) < _CHANCE

    def __str__(self) -> str:
        return f"{self.name} ({self.logits.shape[1]} classes, right on {self.right} of {self.n})"


def choose_output(data: LabelledData, look: Look, labels_for: Labels, returns: str, classes: int) -> tuple[str, str]:
    """The place of the logits among several outputs, and why it was taken, in words.

    look: runs the network. classes: how many the data are known to have. An output counts that has a number for each
    class. Softmax of another one, and what is equal to another one, is left out. Of the rest, the one that agrees with
    the labels beyond chance on up to 64 samples; of several such, the one with exactly `classes` columns, or called
    logits. Raises UsageError that names the outputs where more than one could be meant; CheckpointError where none.
    """
    rows = stratified_subset(data.labels, min(SAMPLES, len(data)), 0)
    parts = [look(part) for part in np.array_split(rows, max(1, -(-len(rows) // _AT_ONCE)))]
    outputs = {
        name: torch.cat([part[name] for part in parts])
        for name in parts[0]
        if all(name in part and part[name].ndim for part in parts)
    }
    outputs = {name: tensor for name, tensor in outputs.items() if len(tensor) == len(rows)}
    candidates, refused = [], None
    for name, tensor in outputs.items():
        if returns == "probabilities" and not ((tensor >= 0) & (tensor <= 1 + _CLOSE)).all():
            continue
        try:
            logits = as_logits(tensor.float(), len(rows), returns)
            labels = torch.from_numpy(labels_for(logits.shape[1])[rows])
        except CheckpointError:
            continue  # of another shape
        except DataError as error:
            refused = error
            continue
        right = int((logits.argmax(1) == labels).sum())
        chance = float(torch.bincount(labels).max()) / len(rows)
        candidates.append(_Candidate(name, logits, right, len(rows), chance))
    if not candidates:
        if refused is not None:
            raise refused
        raise CheckpointError(f"the network returns {describe(parts[0])}, none of which has one number per class")
    several = _without_derived(candidates, returns)
    for rule in (
        lambda c: c.agrees,
        lambda c: c.logits.shape[1] == classes,
        lambda c: c.name.rpartition(".")[2] in NAMED_LOGITS,
        lambda c: "aux" not in c.name,
    ):
        several = [candidate for candidate in several if rule(candidate)] or several
    if len(several) > 1:
        raise UsageError(
            f"the network returns {describe(parts[0])}, and {len(several)} of these could be the logits: "
            f"{', '.join(map(str, several))}; choose one with --output-index, such as --output-index {several[0].name}"
        )
    chosen = several[0]
    return chosen.name, (
        f"the network returns {describe(parts[0])}; output {chosen.name} is taken as the logits, right on {chosen.right} of "
        f"{chosen.n} samples (--output-index chooses another)"
    )


def _without_derived(candidates: list[_Candidate], returns: str) -> list[_Candidate]:
    """Without repetitions, and of logits and their own softmax or sigmoid without the one that is not asked for."""
    left: list[_Candidate] = []
    for candidate in candidates:
        if not any(_close(candidate.logits, other.logits) for other in left):
            left.append(candidate)
    if returns == "probabilities":
        return left
    return [one for one in left if not any(_is_softmax(one.logits, other.logits) for other in left if other is not one)]


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=_CLOSE, atol=_CLOSE)


def _is_softmax(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a is softmax or log softmax of b, or for two classes of one score its sigmoid."""
    if a.shape != b.shape:
        return False
    is_score = not a[:, 0].any() and not b[:, 0].any()
    return any(_close(a, made) for made in ([b.sigmoid() * (b != 0)] if is_score else [b.softmax(1), b.log_softmax(1)]))
