"""What can be known before any attack: of the logits, the labels, and what the checkpoint says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lsa_cli.attacks.base import Model, input_gradient, undisturbed
from lsa_cli.attacks.losses import LOSSES
from lsa_cli.auditing.evidence.judge import Checked, doubt
from lsa_cli.errors import DataError, NumericalError
from lsa_cli.report.schema import Finding, Warning

_LIST_AT_MOST = 5


@dataclass(frozen=True)
class LogitsSummary:
    """What `useless_logits` has to know of clean logits; two summaries add up.

    n: samples. not_finite: of these, samples with a NaN or infinite logit. low, high (K,): smallest and largest logit
    of each class. sums_to_one: whether the logits of every sample do.
    """

    n: int
    not_finite: int
    low: np.ndarray
    high: np.ndarray
    sums_to_one: bool

    @staticmethod
    def of(logits: np.ndarray) -> "LogitsSummary":  # (N, K), N > 0
        finite = np.isfinite(logits).all(1)
        return LogitsSummary(
            len(logits), int((~finite).sum()), logits.min(0), logits.max(0),
            bool((np.abs(logits.sum(1) - 1) < 1e-3).all()),
        )  # fmt: skip

    def __add__(self, other: "LogitsSummary") -> "LogitsSummary":
        return LogitsSummary(
            self.n + other.n, self.not_finite + other.not_finite, np.minimum(self.low, other.low),
            np.maximum(self.high, other.high), self.sums_to_one and other.sums_to_one,
        )  # fmt: skip

    @property
    def are_probabilities(self) -> bool:
        if len(self.low) == 2 and self.low[0] == self.high[0] == 0:  # a single score
            return bool(self.low[1] >= 0 and self.high[1] <= 1)
        return bool((self.low >= 0).all() and (self.high <= 1 + 1e-5).all() and self.sums_to_one)


def refuse_useless_logits(seen: LogitsSummary, raw_probabilities: bool, source: str) -> Checked:
    """The check `useless_logits`. Raises NumericalError where it finds something; source: the network's name."""
    checked = useless_logits(seen, raw_probabilities)
    for finding in checked.findings:
        raise NumericalError(f"{source}: {finding.message}; {finding.advice}")
    return checked


def useless_logits(seen: LogitsSummary, raw_probabilities: bool = False) -> Checked:
    """Of the logits of clean samples: is one NaN or infinite, are they all the same, are they probabilities?

    raw_probabilities: what the network returns is known to be probabilities, already turned into logits.
    """
    finding = None
    if seen.not_finite:
        finding = Finding(
            code="logits-not-finite",
            level="invalid",
            message=f"the network's output is NaN or infinite for {seen.not_finite} of {seen.n} clean "
            "samples, so no accuracy means anything",
            advice="check the weights, the normalisation and the precision",
        )
    elif seen.n > 1 and (seen.low == seen.high).all():
        finding = Finding(
            code="constant-logits",
            level="invalid",
            message=f"the network returns the same output for all {seen.n} samples",
            advice="it does not look at its input (wrong weights, wrong scale, or a dead layer)",
        )
    elif not raw_probabilities and seen.n > 1 and seen.are_probabilities:
        finding = Finding(
            code="probabilities",
            level="invalid",
            message="the network returns probabilities, not logits, and attacks on those find too little",
            advice="remove the final softmax or sigmoid, or say --returns probabilities so that their logarithm is "
            "attacked",
        )
    saw = {"NaN or infinite": float(seen.not_finite)}
    return Checked("useless logits", seen.n, saw, () if finding is None else (finding,))


def without_gradient(model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # (N, ...), (N,) -> (N,) bool
    """Where the attacks' loss has a gradient at x that is zero or not finite everywhere: they cannot climb it there.

    All of them where autograd sees no way from the input to the output.
    """
    with undisturbed(model), torch.enable_grad():
        try:
            gradient, _ = input_gradient(model, x, y, LOSSES.get("ce"))
        except NumericalError:
            return torch.ones(len(x), dtype=torch.bool)
    flat = gradient.flatten(1)
    return ~(torch.isfinite(flat) & (flat != 0)).any(1).cpu()


def zero_gradients(blind: int, count: int) -> list[Warning]:
    """Told: samples that gradient attacks cannot move, whatever their robust accuracy says."""
    if not blind:
        return []
    return [
        Warning(
            code="zero-gradient",
            message=f"the input gradient is zero or NaN for {blind} of {count} clean samples ({blind / count:.1%}): "
            "gradient attacks find nothing there, robust or not (a rounding, a hard threshold, a saturated or masked "
            "output?); attack the network without that step",
        )
    ]


def check_labels(labels: np.ndarray, classes: int, source: str) -> None:
    """Raises DataError when labels cannot belong to that many classes."""
    if labels.max() >= classes:
        row = int(labels.argmax())
        raise DataError(
            f"{source}: labels out of range: sample {row} has label {labels[row]}, and the network has {classes} "
            f"classes (0 to {classes - 1}); do the labels count from 1?"
        )


def empty_classes(counts: np.ndarray, names: list[str], subset: bool) -> list[Warning]:
    """Told: classes without a sample, whose rates do not exist and whose limits cannot be decided."""
    empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if not empty:
        return []
    shown = ", ".join(empty[:_LIST_AT_MOST]) + (
        f" and {len(empty) - _LIST_AT_MOST} more" if len(empty) > _LIST_AT_MOST else ""
    )
    why = "in the subset; raise --limit" if subset else "in the data"
    return [
        Warning(
            code="empty-class",
            message=f"{len(empty)} of {len(names)} classes have no sample {why}: {shown}; nothing is known of them",
        )
    ]


def trained_on_the_same(history: Sequence[Mapping[str, Any]], source: str, split: str) -> Checked:
    """Whether a checkpoint's history says that it was trained on the samples it is audited on.

    An entry says so with data (or train_data, dataset), a data spec, and split (or train_split), or a split in the
    spec. Compared as text: the spec without its options, of a path the last part, as folders move; and the split.
    An entry that does not name its data says nothing, and neither does one that leaves the split open where the
    audit names one.
    """
    here = _name_of(source.removesuffix(f"/{split}"))  # a folder of images is named together with its split
    told = [(data, named) for entry in history for data, named in [_samples_of(entry)] if data]
    same = [data for data, named in told if _name_of(data) == here and named == (split or _split_in(source))]
    finding = doubt(
        "trained-on-these-samples",
        f"the checkpoint says that it was trained on {same[0] if same else ''}"
        + (f", split {split}" if split else "")
        + ", which it is audited on: accuracy on samples seen in training says little about new ones",
        "audit it on samples it was not trained on, for example --split test",
    )
    return Checked("trained on the same samples", len(told), {"entries": len(same)}, (finding,) if same else ())


def _samples_of(entry: Mapping[str, Any]) -> tuple[str, str]:
    data = next((str(entry[key]) for key in ("data", "train_data", "dataset") if entry.get(key)), "")
    split = next((str(entry[key]) for key in ("split", "train_split") if entry.get(key)), _split_in(data))
    return data, split


def _split_in(spec: str) -> str:
    options = spec.partition("?")[2].split("&")
    return next((option.partition("=")[2] for option in options if option.startswith("split=")), "")


def _name_of(spec: str) -> str:
    return spec.partition("?")[0].rstrip("/").replace(":", "/").rsplit("/", 1)[-1].lower()
