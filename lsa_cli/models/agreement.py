"""Compare how torch.load and the machine of `pickles` read a file: lsa must audit what torch loads.

The machine has read the file before and refused what is hostile. torch reads it with weights_only=True, which runs
nothing of the file. Then every key, value, shape and byte of the two results is compared.
"""

import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lsa_cli.errors import CheckpointError, summary_of
from lsa_cli.models.pickles.composed import QUANTISED_TYPES, SPARSE_PARTS, QuantisedSpec, SparseSpec
from lsa_cli.models.pickles.symbols import (
    ITEM_SIZES,
    Call,
    Global,
    Members,
    StorageSpec,
    TensorSpec,
    ambiguous,
    shown,
)

# Calls that hold no weights: symbols for the machine, values for torch.
_OPAQUE = {"torch.device", "torch.serialization._get_layout", "builtins.complex", "__builtin__.complex"}
_LONGEST_PLACE = 8
Place = tuple[Any, Any] | None  # the key of a value, after the place of what holds it


class _Differs(Exception):
    def __init__(self, place: Place, what: str) -> None:
        self.place, self.what = place, what


def refuse_disagreement(
    path: Path, root: Any, mapped: bool, stored: Callable[[str], Iterator[bytes]]
) -> str | None:  # fmt: skip
    """Raise CheckpointError where torch.load reads `path` as anything else than `root`.

    mapped: whether torch can map a file of this format into memory. stored: yields the bytes of one part in order.
    Returns why torch refuses the file, if it does, for example because of a network that was pickled whole or a number
    of numpy beside the weights.
    """
    result, refusal = _load(path, mapped)
    if refusal is None:
        try:
            _compare(root, result, stored)
        except _Differs as error:
            raise ambiguous(path, f"{_text(error.place)}: torch.load finds {error.what}") from error
    return refusal


def _load(path: Path, mapped: bool) -> tuple[Any, str | None]:
    """The result of torch.load, or its reason to refuse the file. Raises CheckpointError where it cannot read it."""
    try:
        with _nothing_allowed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(str(path), map_location="cpu", mmap=mapped, weights_only=True), None
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        lines = str(error).split("WeightsUnpickler error: ")[-1].strip().splitlines() or [""]
        return None, f"{type(error).__name__}: {lines[0][:150]}"
    except Exception as error:  # torch's reader can raise anything for a damaged file
        if mapped:  # some file systems cannot map files
            return _load(path, False)
        raise CheckpointError(
            f"{path}: torch.load cannot read this file ({shown(summary_of(error))}); it is damaged, copy or save it again"
        ) from error


@contextmanager
def _nothing_allowed() -> Iterator[None]:
    """A context in which torch does not trust the classes that packages have registered as safe."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def _compare(root: Any, result: Any, stored: Callable[[str], Iterator[bytes]]) -> None:
    storages: dict[StorageSpec, torch.UntypedStorage] = {}
    stack: list[tuple[Any, Any, Place]] = [(root, result, None)]
    seen: set[tuple[int, int]] = set()
    while stack:
        symbol, value, place = stack.pop()
        if isinstance(symbol, (dict, list, tuple)):
            if (id(symbol), id(value)) not in seen:
                seen.add((id(symbol), id(value)))
                stack.extend(_parts(symbol, value, place))
        elif isinstance(symbol, SparseSpec):
            _compare_sparse(symbol, value, place, storages)
        elif isinstance(symbol, QuantisedSpec):
            _compare_quantised(symbol, value, place, storages)
        elif isinstance(symbol, TensorSpec):
            _compare_tensor(symbol, value, place, storages)
        elif isinstance(symbol, Members):
            if not _same_members(symbol.items, value):
                raise _Differs(place, "another set")
        elif isinstance(symbol, (Call, Global, StorageSpec)):
            opaque = not isinstance(symbol, Call) or symbol.class_name in _OPAQUE
            if not opaque or isinstance(value, (dict, list, tuple, set, str, bytes, int, float, torch.Tensor)):
                raise _Differs(place, f"a {type(value).__name__}")
        elif not _same_plain(symbol, value):
            raise _Differs(place, f"{shown(value)}, not {shown(symbol)}")
    _compare_bytes(storages, stored)


def _parts(symbol: Any, value: Any, place: Place) -> Iterator[tuple[Any, Any, Place]]:
    """The parts of two containers in pairs."""
    kind = dict if isinstance(symbol, dict) else list if isinstance(symbol, list) else tuple
    if not isinstance(value, kind):
        raise _Differs(place, f"a {type(value).__name__}, not a {kind.__name__}")
    if len(symbol) != len(value):
        raise _Differs(place, f"{len(value):,} entries, not {len(symbol):,}")
    if isinstance(symbol, dict):
        for key, other in zip(symbol, value, strict=True):
            plain = other is None or isinstance(other, (str, float, bytes, int))
            if not (_same_plain(key, other) if plain else isinstance(key, str) and key.startswith("<")):
                raise _Differs(place, f"the key {shown(other)}, not {shown(key)}")
            yield symbol[key], value[other], (place, key)
    else:
        for number, (part, other) in enumerate(zip(symbol, value, strict=True)):
            yield part, other, (place, number)


def _same_plain(symbol: Any, value: Any) -> bool:
    if isinstance(value, bytearray):
        value = bytes(value)
    return type(symbol) is type(value) and bool(symbol == value or (symbol != symbol and value != value))


def _same_members(items: list[Any], value: Any) -> bool:
    if not isinstance(value, (set, frozenset)):
        return False
    try:
        return set(items) == value
    except TypeError:
        return False


def _compare_tensor(
    spec: TensorSpec, value: Any, place: Place, storages: dict[StorageSpec, torch.UntypedStorage], dtype: str = ""
) -> None:
    """dtype: of quantised numbers, whose whole numbers are of the type of `spec`."""
    _refuse_odd_object(value, place)
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_conj() or value.is_neg():
        raise _Differs(place, "a tensor that is not plain numbers on the CPU")
    storage = torch.Tensor.untyped_storage(value)
    found = (str(value.dtype).removeprefix("torch."), tuple(value.shape), value.stride(), value.storage_offset())
    expected = (dtype or spec.dtype, spec.shape, spec.stride, spec.offset - spec.storage.offset)
    for what, one, other in zip(("type", "shape", "strides", "place"), found, expected, strict=True):
        if one != other:
            raise _Differs(place, f"a tensor of {what} {one}, not {other}")
    known = storages.setdefault(spec.storage, storage)
    if known.data_ptr() != storage.data_ptr() or known.nbytes() != storage.nbytes():
        raise _Differs(place, "numbers that are not shared as the file says")


def _refuse_odd_object(value: Any, place: Place) -> None:
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise _Differs(place, f"a {type(value).__name__}, not a tensor")
    shadowed = [name for name in vars(value) if hasattr(torch.Tensor, name)]
    if shadowed:
        raise _Differs(place, f"a tensor with another {shown(shadowed[0])}")


def _compare_sparse(
    spec: SparseSpec, value: Any, place: Place, storages: dict[StorageSpec, torch.UntypedStorage]
) -> None:  # fmt: skip
    _refuse_odd_object(value, place)
    if value.layout is not getattr(torch, spec.layout) or tuple(value.shape) != spec.shape:
        raise _Differs(place, f"a tensor of {value.layout} and shape {tuple(value.shape)}")
    for name, part in zip(SPARSE_PARTS[spec.layout], spec.parts, strict=True):
        _compare_tensor(part, getattr(value.detach(), name)(), (place, name), storages)


def _compare_quantised(
    spec: QuantisedSpec, value: Any, place: Place, storages: dict[StorageSpec, torch.UntypedStorage]
) -> None:  # fmt: skip
    assert spec.numbers is not None
    _compare_tensor(spec.numbers, value, place, storages, QUANTISED_TYPES[spec.numbers.dtype])
    if isinstance(spec.scale, TensorSpec) and isinstance(spec.zero_point, TensorSpec):
        is_same = value.qscheme() == torch.per_channel_affine and value.q_per_channel_axis() == spec.axis
        if is_same:
            _compare_tensor(spec.scale, value.q_per_channel_scales(), (place, "scales"), storages)
            _compare_tensor(spec.zero_point, value.q_per_channel_zero_points(), (place, "zero points"), storages)
    else:
        is_same = value.qscheme() == torch.per_tensor_affine and (value.q_scale(), value.q_zero_point()) == (
            spec.scale,
            spec.zero_point,
        )
    if not is_same:
        raise _Differs(place, "numbers that are quantised in another way")


def _compare_bytes(storages: dict[StorageSpec, torch.UntypedStorage], stored: Callable[[str], Iterator[bytes]]) -> None:
    """Compare the bytes of every part of the file once with those that torch has in memory."""
    bases: dict[str, int] = {}
    for spec, storage in storages.items():
        size = ITEM_SIZES[spec.dtype]
        if storage.nbytes() != spec.numel * size:
            raise _Differs((None, spec.key), f"{storage.nbytes():,} bytes, not {spec.numel * size:,}")
        if spec.numel and bases.setdefault(spec.key, storage.data_ptr() - spec.offset * size) != (
            storage.data_ptr() - spec.offset * size
        ):
            raise _Differs((None, spec.key), "numbers that are not shared as the file says")
    if len(set(bases.values())) != len(bases):
        raise _Differs(None, "numbers that are shared, where the file does not say so")
    for key in bases:
        parts = [(spec, storage) for spec, storage in storages.items() if spec.key == key and spec.numel]
        views = [(spec.offset * ITEM_SIZES[spec.dtype], _memory(storage)) for spec, storage in parts]
        position = 0
        for chunk in stored(key):
            for start, view in views:
                first, last = max(start, position), min(start + len(view), position + len(chunk))
                if (
                    first < last
                    and view[first - start : last - start] != memoryview(chunk)[first - position : last - position]
                ):
                    raise _Differs((None, key), "other numbers")
            position += len(chunk)


def _memory(storage: torch.UntypedStorage) -> memoryview:
    return memoryview(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())


def _text(place: Place) -> str:
    keys: list[str] = []
    while place is not None and len(keys) < _LONGEST_PLACE:
        place, key = place
        keys.append(key if isinstance(key, str) and key.isidentifier() else shown(key))
    return "in " + ".".join(reversed(keys)) if keys else "at its top"
