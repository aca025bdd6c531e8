"""Checks before any attack: of the logits, the labels, the gradients, and the history of the checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsa_cli.auditing.evidence.decision import Checked, doubt
from lsa_cli.errors import DataError, NumericalError
from lsa_cli.report.schema import Warning
from lsa_cli.wording import first_of


@dataclass(frozen=True)
class LogitsSummary:
    """What `useless_logits` needs of the clean logits; two summaries add up.

    n: samples. not_finite: samples with a NaN or infinite logit. low, high (K,): smallest and largest logit of each
    class. sums_to_one: whether the logits of every sample sum to 1.
    """

    n: int
    not_finite: int
    low: np.ndarray
    high: np.ndarray
    sums_to_one: bool

    @staticmethod
    def of(logits: np.ndarray) -> "LogitsSummary":  # (N, K), N > 0
        return LogitsSummary(
            n=len(logits),
            not_finite=int((~np.isfinite(logits).all(1)).sum()),
            low=logits.min(0),
            high=logits.max(0),
            sums_to_one=bool((np.abs(logits.sum(1) - 1) < 1e-3).all()),
        )

    def __add__(self, other: "LogitsSummary") -> "LogitsSummary":
        return LogitsSummary(
            n=self.n + other.n,
            not_finite=self.not_finite + other.not_finite,
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
            sums_to_one=self.sums_to_one and other.sums_to_one,
        )

    @property
    def are_probabilities(self) -> bool:
        if len(self.low) == 2 and self.low[0] == self.high[0] == 0:  # a network with a single output
            return bool(self.low[1] >= 0 and self.high[1] <= 1)
        return bool((self.low >= 0).all() and (self.high <= 1 + 1e-5).all() and self.sums_to_one)


def refuse_useless_logits(seen: LogitsSummary, raw_probabilities: bool, source: str) -> None:
    """Raises NumericalError where `useless_logits` finds something; source: the name of the network."""
    finding = useless_logits(seen, raw_probabilities).finding
    if finding is not None:
        raise NumericalError(f"{source}: {finding.message}; {finding.advice}")


def useless_logits(seen: LogitsSummary, raw_probabilities: bool = False) -> Checked:
    """Are clean logits NaN or infinite, the same for all samples, or probabilities?

    raw_probabilities: the network is known to return probabilities, and they are already converted to logits.
    """
    finding = None
    if seen.not_finite:
        finding = doubt(
            "logits-not-finite",
            f"the network's output is NaN or infinite for {seen.not_finite} of {seen.n} clean samples, so its accuracy has no meaning",
            "check the weights, the normalisation and the precision",
            "invalid",
        )
    elif seen.n > 1 and (seen.low == seen.high).all():
        finding = doubt(
            "constant-logits",
            f"the network returns the same output for all {seen.n} samples: it ignores its input, or the samples are all the same",
            "check for wrong weights, a wrong input range, dead layers, and data that repeat one image",
            "invalid",
        )
    elif not raw_probabilities and seen.n > 1 and seen.are_probabilities:
        finding = doubt(
            "probabilities",
            "the network returns probabilities, not logits, and attacks on probabilities find too little",
            "remove the final softmax or sigmoid, or use --returns probabilities, which attacks their logarithm",
            "invalid",
        )
    return Checked("useless logits", seen.n, {"NaN or infinite": seen.not_finite}, finding)


def zero_gradients(count: int, n: int) -> list[Warning]:
    """A warning about `count` of n samples for which gradient attacks cannot work, whatever the robust accuracy."""
    if not count:
        return []
    message = (
        f"the input gradient is zero or NaN for {count} of {n} clean samples ({count / n:.1%}): gradient attacks fail on "
        "these samples, robust or not; look for rounding, a hard threshold or a saturated output, and attack the network "
        "without it"
    )
    return [Warning(code="zero-gradient", message=message)]


def repeated_samples(content: np.ndarray) -> list[Warning]:
    """A warning where more than 1% (our choice) of the samples, by their digests (N,), are copies of others."""
    copies = len(content) - len(np.unique(content))
    if copies <= 0.01 * len(content):
        return []
    message = (
        f"{copies} of {len(content)} samples are copies of others: the intervals count them as different samples, and are too "
        "narrow; audit each sample once"
    )
    return [Warning(code="repeated-samples", message=message)]


def check_labels(labels: np.ndarray, classes: int, source: str) -> None:
    """Raises DataError where a label does not belong to that many classes."""
    if labels.max() >= classes:
        row = int(labels.argmax())
        from_one = labels.min() == 1 and labels.max() == classes
        raise DataError(
            f"{source}: labels out of range: sample {row} has label {labels[row]}, and the network has {classes} "
            f"classes (0 to {classes - 1}); "
            + (
                "the labels count from 1; subtract 1"
                if from_one
                else "give data of the classes that the network was trained on"
            )
        )


def empty_classes(counts: np.ndarray, in_data: np.ndarray, names: Sequence[str]) -> list[Warning]:
    """Warnings about classes without a sample: they have no accuracy, and their limits cannot be decided.

    counts, in_data (K,): the number of samples of each class in the audit, and in the data.
    """
    found = []
    for why, is_empty in (
        ("in the data", in_data == 0),
        ("in the audited samples; raise --limit", (counts == 0) & (in_data > 0)),
    ):
        empty = [name for name, flag in zip(names, is_empty, strict=True) if flag]
        if empty:
            message = f"{len(empty)} of {len(names)} classes have no sample {why}: {first_of(empty, 5)}; nothing is known about them"
            found.append(Warning(code="empty-class", message=message))
    return found


def trained_on_the_same(history: Sequence[Mapping[str, Any]], source: str, split: str) -> Checked:
    """Does the history of the checkpoint state that it was trained on the audited samples?

    An entry names a data spec (data, train_data or dataset) and a split (split or train_split, or in the spec). Specs are
    compared as text, without options and, as folders move, by the last part of the path. An entry without data is not
    counted. An entry without a split does not match an audit that names one.
    """
    here = _name_of(source.removesuffix(f"/{split}"))  # a folder of images is named together with its split
    named = [(data, part) for entry in history for data, part in [_samples_of(entry)] if data]
    same = [data for data, part in named if _name_of(data) == here and part == (split or _split_in(source))]
    finding = doubt(
        "trained-on-these-samples",
        f"the checkpoint states that it was trained on {same[0] if same else ''}"
        + (f", split {split}" if split else "")
        + ", the samples of this audit: accuracy on training samples says little about new samples",
        "audit it on samples that it was not trained on, for example --split test",
    )
    return Checked("trained on the same samples", len(named), {"entries": len(same)}, finding if same else None)


def _samples_of(entry: Mapping[str, Any]) -> tuple[str, str]:
    data = next((str(entry[key]) for key in ("data", "train_data", "dataset") if entry.get(key)), "")
    split = next((str(entry[key]) for key in ("split", "train_split") if entry.get(key)), _split_in(data))
    return data, split


def _split_in(spec: str) -> str:
    options = spec.partition("?")[2].split("&")
    return next((option.partition("=")[2] for option in options if option.startswith("split=")), "")


def _name_of(spec: str) -> str:
    return spec.partition("?")[0].rstrip("/").replace(":", "/").rsplit("/", 1)[-1].lower()
