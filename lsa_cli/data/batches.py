"""The samples of an audit: choosing them, reading them in batches ahead of the network, and checking them."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from lsa_cli.data.base import LabelledData
from lsa_cli.errors import DataError

RANGE_TOLERANCE = 1e-4
_ROUNDING = 0.01  # of the range: inputs beyond it by less are not normalised ones
_AHEAD = 2  # batches read while the network works on one


def stratified_subset(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """`limit` indices, ascending. Each class keeps its share; the seed decides which of its samples are taken.

    Places left by rounding go to the classes with the largest remainders; of equal ones to the smaller class number.
    """
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * limit / len(labels)
    take = np.floor(exact).astype(int)
    order = np.lexsort((classes, -(exact - take)))
    take[order[: limit - take.sum()]] += 1
    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def batches(index: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(index), size):
        yield index[start : start + size]


def prefetch(data: LabelledData, index: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """(indices, inputs) of each batch in order; up to two more are read in the background.

    One thread reads, so two calls of `data.read` never overlap. Its errors are raised here, at their batch. Closing or
    dropping the generator ends the thread after its current read.
    """
    waiting: deque[tuple[np.ndarray, Future[torch.Tensor]]] = deque()
    reader, waits = ThreadPoolExecutor(1, "lsa-read"), True
    try:
        for rows in batches(index, size):
            waiting.append((rows, reader.submit(data.read, rows)))
            if len(waiting) > _AHEAD:
                rows, read = waiting.popleft()
                yield rows, read.result()
        while waiting:
            rows, read = waiting.popleft()
            yield rows, read.result()
    except KeyboardInterrupt:
        waits = False  # the read may hang
        raise
    finally:
        reader.shutdown(waits, cancel_futures=True)


def check_inputs(x: torch.Tensor, rows: np.ndarray, bounds: tuple[float, float] | None, spec: str) -> torch.Tensor:
    """x (N, ...) with every number finite and within bounds; numbers that exceed them by rounding are clamped.

    Raises DataError with the first wrong sample and advice.
    """
    finite = torch.isfinite(x.flatten(1)).all(1)
    if not finite.all():
        row = int(rows[int((~finite).nonzero()[0])])
        raise DataError(f"{spec}: sample {row} holds NaN or infinity; remove or repair it")
    if bounds is None:
        return x
    low, high = bounds
    smallest, largest = float(x.min()), float(x.max())
    if smallest < low - RANGE_TOLERANCE or largest > high + RANGE_TOLERANCE:
        beyond = max(low - smallest, largest - high)
        advice = (
            "divide by 255, or store uint8"
            if smallest >= 0 and largest > 2
            else "clip them, if that is rounding"
            if beyond < _ROUNDING * (high - low)
            else "undo the normalisation in the data and name it with --normalize: it belongs inside the model"
        )
        raise DataError(
            f"{spec}: inputs run from {smallest:.7g} to {largest:.7g}, outside [{low:g}, {high:g}]; {advice}"
        )
    return x.clamp(low, high)


def digests(x: torch.Tensor) -> np.ndarray:  # (N, ...) -> (N,) uint64
    """A number for each sample, equal for equal samples, and for others only by a chance of 2^-64."""
    found = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in x.contiguous().numpy()]
    return np.frombuffer(b"".join(found), dtype="<u8")


def fingerprint(data: LabelledData, index: np.ndarray) -> str:
    """A hash of the source, split, indices and labels of the samples; not of the pixels."""
    digest = hashlib.sha256(f"{data.spec.rpartition('/')[2]}|{data.split}".encode())
    digest.update(np.asarray(index, dtype="<i8").tobytes())
    digest.update(np.asarray(data.labels[index], dtype="<i8").tobytes())
    return digest.hexdigest()
