"""Labels from files and Python objects -> one class number per sample."""

import numpy as np

from lsa_cli.errors import DataError

LARGEST_LABEL = 2**31 - 1  # no classifier has more classes


def class_numbers(values: np.ndarray, spec: str) -> tuple[np.ndarray, str]:  # (n,), (n, 1) or (n, K) -> (n,) int64
    """Class numbers from 0, and a description of the conversion ("" for none).

    Accepts whole numbers of any type, also in a column, and one-hot rows (one 1, otherwise 0). Raises DataError for
    text, fractions, numbers below 0, and several classes or shares of classes per sample.
    """
    said = ""
    if values.ndim > 1 and values.shape[0] == values.size:
        values, said = values.reshape(-1), f"labels of shape {values.shape} taken as a column of class numbers"
    _refuse_no_numbers(values, spec)
    values = values.astype(np.float64) if values.dtype.kind == "f" else values
    if values.ndim == 2 and values.shape[1] > 1:
        values, said = _from_one_hot(values, spec), f"one-hot labels of shape {values.shape} turned into class numbers"
    if values.ndim != 1:
        raise DataError(
            f"{spec}: labels have shape {values.shape}; give one class number per sample, as (n,), (n, 1) or one-hot (n, K)"
        )
    for wrong, why in (
        (values < 0, "classes count from 0"),
        (values > LARGEST_LABEL, "no network has that many classes"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"{spec}: the label of sample {row} is {values[row]}; {why}")
    return values.astype(np.int64), said


def _refuse_no_numbers(values: np.ndarray, spec: str) -> None:
    if values.dtype.kind not in "iubf":
        raise DataError(f"{spec}: labels are {values.dtype}; give whole class numbers from 0")
    fractions = ~np.isfinite(values) | (values != np.floor(values)) if values.dtype.kind == "f" else np.zeros(1, bool)
    if not fractions.any():
        return
    if values.ndim == 2 and values.shape[1] > 1 and (values >= 0).all() and np.allclose(values.sum(1), 1, atol=1e-3):
        raise DataError(
            f"{spec}: labels of shape {values.shape} are shares of classes (smoothed or mixed); give whole class "
            "numbers from 0, or one-hot rows"
        )
    row = int(fractions.reshape(len(values), -1).any(1).argmax())
    shown = values[row] if values.ndim == 1 else f"{values[row].tolist()}"[:60]
    raise DataError(f"{spec}: labels are {values.dtype} and sample {row} has {shown}; give whole class numbers from 0")


def _from_one_hot(values: np.ndarray, spec: str) -> np.ndarray:
    others = ~np.isin(values, (0, 1)).all(1)
    if others.any():
        row = int(others.argmax())
        raise DataError(
            f"{spec}: labels have shape {values.shape} and are not one-hot (sample {row} has {values[row].tolist()[:8]}); "
            "give one class number per sample"
        )
    counts = values.astype(np.int64).sum(1)
    if (counts != 1).any():
        row = int((counts != 1).argmax())
        raise DataError(
            f"{spec}: labels of shape {values.shape} give sample {row} {counts[row]} classes, and lsa audits networks that "
            "give each sample one; leave such samples out, or audit one class against the rest"
        )
    return values.argmax(1)
