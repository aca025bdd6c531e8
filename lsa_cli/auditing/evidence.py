"""Doubts about the numbers: networks that cannot carry a verdict are refused, doubtful ones are told."""

import numpy as np
import torch

from lsa_cli.attacks.base import Model, input_gradient, undisturbed
from lsa_cli.attacks.losses import LOSSES
from lsa_cli.errors import DataError, NumericalError
from lsa_cli.report.schema import Rate, Warning

_LIST_AT_MOST = 5


def refuse_useless_logits(logits: np.ndarray, raw_probabilities: bool, source: str) -> None:
    """logits (N, K) of clean samples. Raises NumericalError for NaN, infinity, constants and probabilities.

    raw_probabilities: what the network returns is known to be probabilities, already turned into logits.
    """
    finite = np.isfinite(logits).all(1)
    if not finite.all():
        raise NumericalError(
            f"{source}: the network's output is NaN or infinite for {int((~finite).sum())} of {len(logits)} clean "
            "samples, so no accuracy means anything; check the weights, the normalisation and the precision"
        )
    if len(logits) > 1 and (np.ptp(logits, axis=0) == 0).all():
        raise NumericalError(
            f"{source}: the network returns the same output for all {len(logits)} samples; it does not look at its "
            "input (wrong weights, wrong scale, or a dead layer)"
        )
    if raw_probabilities or len(logits) < 2:
        return
    if logits.shape[1] == 2 and (logits[:, 0] == 0).all():
        scores = logits[:, 1]  # a single-output head
        probabilities = bool((scores >= 0).all() and (scores <= 1).all())
    else:
        sums_to_one = np.abs(logits.sum(1) - 1) < 1e-3
        probabilities = bool((logits >= 0).all() and (logits <= 1 + 1e-5).all() and sums_to_one.all())
    if probabilities:
        raise NumericalError(
            f"{source}: the network returns probabilities, not logits, and attacks on those find too little; remove "
            "the final softmax or sigmoid, or say --output probabilities so that their logarithm is attacked"
        )


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


def clean_accuracy(clean: Rate, classes: int, claimed: float | None) -> list[Warning]:
    """Told: accuracy near chance, and accuracy far below what the checkpoint says of itself."""
    warnings = []
    if clean.low is not None and clean.low <= 1.25 / classes:
        warnings.append(
            Warning(
                code="clean-accuracy-near-chance",
                message=f"clean accuracy is {clean.value:.1%}, near chance for {classes} classes: wrong normalisation, "
                "class order or architecture?",
            )
        )
    elif claimed is not None and clean.high is not None and clean.high < claimed - 0.01:
        warnings.append(
            Warning(
                code="clean-accuracy-below-claim",
                message=f"clean accuracy is {clean.value:.1%}, and the checkpoint states {claimed:.1%}: other data, "
                "another normalisation, or damaged weights?",
            )
        )
    return warnings


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
