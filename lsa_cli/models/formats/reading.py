"""Helpers of several formats: bytes, JSON, tensors from stored bytes."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.errors import CheckpointError
from lsa_cli.models.pickles.symbols import TensorSpec, ambiguous, shown

if TYPE_CHECKING:
    import torch

LARGEST_HEADER = 16 * 2**20
MOST_ENTRIES = 100_000
_MOST_BRACKETS = 10 * MOST_ENTRIES
_CHUNK = 2**20
BIG_ENDIAN = "was saved on a big-endian machine, whose numbers lsa does not read; save it again"


def chunks_of(path: Path, start: int, count: int) -> Iterator[bytes]:
    """`count` bytes from `start` on, in order."""
    with path.open("rb") as file:
        file.seek(start)
        while count > 0:
            chunk = file.read(min(count, _CHUNK))
            if not chunk:
                raise CheckpointError(f"{path} is cut short; copy or download it again")
            yield chunk
            count -= len(chunk)


def read_exactly(path: Path, start: int, count: int) -> bytearray:
    content = bytearray(count)
    with path.open("rb") as file:
        file.seek(start)
        if file.readinto(content) != count:
            raise CheckpointError(f"{path} is cut short; copy or download it again")
    return content


def refuse_other_size(path: Path, key: str, found: int, expected: int) -> None:
    """Raise CheckpointError where the part `key` of the file has not the bytes that its pickle says."""
    if found < expected:
        raise CheckpointError(f"{path} is a damaged checkpoint: a tensor is larger than its stored numbers")
    if found > expected:
        raise ambiguous(path, f"the numbers {shown(key)} have {found:,} bytes, and its pickle says {expected:,}")


def small_file(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST_HEADER + 1)
    if len(content) > LARGEST_HEADER:
        raise CheckpointError(f"{path} has more than {LARGEST_HEADER:,} bytes, more than any configuration; refused")
    return content


def json_of(data: bytes | str, where: str, what: str) -> dict[str, Any]:
    """The mapping in a JSON text. where, what: for messages, the file and the part of it that the text is."""
    if isinstance(data, bytes) and data.count(b"[") + data.count(b"{") > _MOST_BRACKETS:
        raise CheckpointError(f"{where}: its {what} has more parts than any checkpoint's; refused")
    try:
        text = data.decode() if isinstance(data, bytes) else data
        content = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=partial(_without_repeats, where, what))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # AttributeError: not a text
        raise CheckpointError(
            f"{where}: its {what} is damaged ({str(error)[:80]}); copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: its {what} is {type(content).__name__}, not a mapping; damaged")
    return content


def _without_repeats(where: str, what: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping in which every key occurs once. Of a repeated key some readers take the first value, others the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ambiguous(where, f"its {what} has the key {shown(twice)} twice")
    return found


def as_tensor(spec: TensorSpec, part: Callable[[int, int], bytearray]) -> "torch.Tensor":
    """The tensor over the stored bytes that it covers, which `part(start, count)` reads."""
    import torch

    dtype = getattr(torch, spec.dtype)
    if spec.numel == 0:
        return torch.empty(spec.shape, dtype=dtype)
    start, end = spec.covered
    flat = torch.frombuffer(part(start, end - start), dtype=dtype)
    return flat.as_strided(spec.shape, spec.stride)
