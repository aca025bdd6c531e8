"""Which format these bytes are, and what is in them: symbols and tensors that are read when they are asked for.

The first bytes decide, never the suffix. Nothing that a file holds is imported or called (see `pickles`), and only
headers are read until a tensor is wanted; what torch.load can read is then compared with what torch reads (see
`agreement`). This module needs no torch until then.
"""

import functools
import json
import math
import os
import stat
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.errors import CheckpointError
from lsa_cli.files import temporary_beside
from lsa_cli.models.pickles.machine import LARGEST_PICKLE, read_symbols
from lsa_cli.models.pickles.symbols import (
    ITEM_SIZES,
    MOST_DIMENSIONS,
    Call,
    CutShort,
    Members,
    Refused,
    StorageSpec,
    Symbols,
    TensorSpec,
    parts_of,
    read_differently,
    refuse_oversized,
    shown,
)
from lsa_cli.models.zips import LARGEST_HEADER, MOST_ENTRIES, Zip, chunks_of, entries_of, read_exactly

if TYPE_CHECKING:
    import torch

_LEGACY_TORCH = bytes.fromhex("8a0a6cfc9c46f9")  # a number, after what the protocol of the pickle starts with
_LARGEST_FILE = 64 * 2**30
_MOST_BRACKETS = 10 * MOST_ENTRIES
_MOST_FILES = 200
# Tensors may share stored numbers, but not so that a small file becomes a large network.
_MOST_TIMES_SHARED = 32
_ALWAYS_ALLOWED = 64 * 2**20

# What people pass by mistake, by its first bytes, and what to do instead.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89PNG", "a PNG image", "give the model file instead"),
    (b"\xff\xd8\xff", "a JPEG image", "give the model file instead"),
    (b"GIF8", "a GIF image", "give the model file instead"),
    (b"%PDF", "a PDF document", "give the model file instead"),
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` to fetch the real file"),
    (b"\x89HDF", "an HDF5 file (Keras?)", "lsa reads PyTorch checkpoints: convert the weights to a state_dict first"),
    (b"GGUF", "a GGUF file", "lsa audits image classifiers from PyTorch: give their state_dict"),
    (b"\x93NUMPY", "a numpy array", "give the checkpoint; data goes to --data"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"BZh", "a bzip2 archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7-zip archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x7fELF", "a compiled program", "give the checkpoint that it was built from"),
    (b"#!", "a script", "give the model file that it writes"),
)


@dataclass(frozen=True)
class Contents:
    """A model file opened: root as symbols, and `load` for the tensors in it, each in memory of its own.

    globals: every name that a real unpickling would import. metadata: what stands beside the weights as plain
    values (safetensors metadata, a folder's config.json). files: what it is made of. stored: of a file that
    torch.load may be able to read, the bytes of a part in order. compare: raises CheckpointError where torch.load
    reads that file as anything else, and returns why torch refuses it, if it does; `load` compares first, `peek` reads
    a tensor without asking torch, for a look at a file.
    """

    format: str
    root: Any
    load: Callable[[TensorSpec], "torch.Tensor"]
    globals: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    stored: Callable[[str], Iterator[bytes]] | None = None
    compare: Callable[[], str | None] = lambda: None
    peek: Callable[[TensorSpec], "torch.Tensor"] | None = None


def sniff(path: Path) -> str:
    """The format: torch-zip, torch-legacy, torchscript, torch-export, pickle, safetensors, weights-index or folder.

    Raises CheckpointError, naming what the file is and the way out, for everything else.
    """
    try:
        return _sniff(path, path.stat())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"there is no file {path}; check the path (you are in {Path.cwd()})") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # what has no meaning to the system: a null character, half a surrogate pair
        raise CheckpointError(f"{shown(str(path))} is no name that a file can have") from error


def _sniff(path: Path, status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return _sniff_folder(path)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is a device or a pipe; give a file, which can be read twice")
    size = status.st_size
    with path.open("rb") as file:
        head = file.read(1024)
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); the download or the save did not finish")
    if size > _LARGEST_FILE:
        raise CheckpointError(f"{path} has {size:,} bytes; lsa reads files of up to {_LARGEST_FILE:,} bytes")
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head[:1] == b"\x80" and _LEGACY_TORCH in head[2:20]:
        return "torch-legacy"
    if head[5:9] == b"\0\0\0{":
        return "safetensors"  # before the marks below: the length it starts with can look like any of them
    for magic, what, advice in _FOREIGN:
        if head.startswith(magic):
            raise CheckpointError(f"{path} is {what}, not a checkpoint; {advice}")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive, not a checkpoint; unpack it first")
    if head[4:8] == b"TFL3":
        raise CheckpointError(f"{path} is a TensorFlow Lite model; lsa reads PyTorch checkpoints")
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return "pickle"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        raise CheckpointError(f"{path} is an HTML or XML page, not a checkpoint; the download link gave a web page")
    if text[:1] == b"{":
        return _sniff_json(path, size)
    if _looks_like_onnx(head):
        raise CheckpointError(
            f"{path} is an ONNX model, which lsa does not read; from the PyTorch model it was exported from, save "
            "model.state_dict() or torch.export.save"
        )
    if head[:1] == b"\x0a" and b"\x12" in head[:64]:
        raise CheckpointError(f"{path} looks like a TensorFlow graph (protobuf); lsa reads PyTorch checkpoints")
    raise CheckpointError(
        f"{path} is in no format that lsa reads (it starts with {head[:8]!r}); "
        "give a state_dict saved with torch.save, or a safetensors file"
    )


def _looks_like_onnx(head: bytes) -> bool:
    """A protobuf that starts with ir_version (field 1, a small number) and then a producer (field 2) or a graph."""
    return len(head) > 4 and head[0] == 0x08 and head[1] < 0x40 and head[2] in (0x12, 0x1A, 0x3A)


def _sniff_json(path: Path, size: int) -> str:
    if size <= LARGEST_HEADER:
        content = _json(_small(path), str(path), "JSON")
        if isinstance(content.get("weight_map"), dict):
            return "weights-index"
    raise CheckpointError(
        f"{path} is a JSON file, not a checkpoint; give the weights, or the folder with config.json and weights"
    )


_FOLDER_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
)  # fmt: skip


def _sniff_folder(path: Path) -> str:
    if any((path / name).exists() for name in _FOLDER_WEIGHTS):
        return "folder"
    if (path / "saved_model.pb").exists():
        raise CheckpointError(f"{path} is a TensorFlow SavedModel; lsa reads PyTorch checkpoints")
    if (path / ".metadata").exists():
        raise CheckpointError(
            f"{path} is a distributed checkpoint, whose index is a pickle that could run code; turn it into one file "
            "with python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        )
    raise CheckpointError(f"{path} is a directory without {', '.join(_FOLDER_WEIGHTS[:3])}; give the checkpoint file")


def _sniff_zip(path: Path) -> str:
    entries = entries_of(path)
    leaves = {entry.filename.split("/", 1)[-1] for entry in entries.values()}
    if "constants.pkl" in leaves or any(leaf.startswith("code/") for leaf in leaves):
        return "torchscript"
    if "archive_format" in leaves or "serialized_exported_program.json" in leaves:
        return "torch-export"
    if ".data/extern_modules" in leaves:
        raise CheckpointError(f"{path} is a torch.package, which is code; save model.state_dict() instead")
    if "data.pkl" in leaves:
        return "torch-zip"
    if entries and all(name.endswith(".npy") for name in entries):
        raise CheckpointError(f"{path} is an .npz of numpy arrays, not a checkpoint; data goes to --data npz:FILE")
    if "model.weights.h5" in entries:
        raise CheckpointError(f"{path} is a Keras model; lsa reads PyTorch checkpoints")
    raise CheckpointError(f"{path} is a zip file, but no PyTorch checkpoint: it holds no data.pkl")


def open_contents(path: Path) -> Contents:
    """Open a model file or folder of a format that `sniff` knows. Raises CheckpointError."""
    kind = sniff(path)
    with _told(path):
        contents = _OPENERS[kind](path, kind)
        _refuse_amplified(contents, path)

    @functools.cache
    def compare() -> str | None:
        with _told(path):
            if contents.stored is None:
                return contents.compare()
            from lsa_cli.models.agreement import refuse_disagreement

            return refuse_disagreement(path, contents.root, kind == "torch-zip", contents.stored)

    def peek(spec: TensorSpec) -> "torch.Tensor":
        with _told(path):
            return contents.load(spec)

    def load(spec: TensorSpec) -> "torch.Tensor":
        compare()
        return peek(spec)

    return replace(contents, load=load, compare=compare, peek=peek)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system says of a file, as a CheckpointError."""
    try:
        yield
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested deeper than any checkpoint; damaged or hostile") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} needs more memory than there is") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _refuse_amplified(contents: Contents, path: Path) -> None:
    """Raises for tensors that need much more memory than the file has bytes, because they share stored numbers."""
    size = sum(file.stat().st_size for file in contents.files)
    needed = sum(max(spec.nbytes, spec.covered[1] - spec.covered[0]) for spec in _specs(contents.root))
    if needed > _MOST_TIMES_SHARED * size + _ALWAYS_ALLOWED:
        raise CheckpointError(
            f"{path} has {size:,} bytes, and its tensors would need {needed:,}: refused as a decompression bomb"
        )


def _specs(root: Any) -> list[TensorSpec]:
    """Every tensor that a tree of symbols refers to, each once."""
    found: list[TensorSpec] = []
    stack, seen = [root], set()
    while stack:
        item = stack.pop()
        if isinstance(item, (TensorSpec, dict, list, tuple, Call, Members)) and id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, TensorSpec):
                found.append(item)
            else:
                stack += parts_of(item)
    return found


# ---- zip: torch.save, TorchScript, torch.export --------------------------------------------------------


def _open_torch_zip(path: Path, kind: str) -> Contents:
    archive = Zip(path)
    if archive.has("byteorder") and archive.read("byteorder", 64) != b"little":
        raise CheckpointError(f"{path} {_BIG_ENDIAN}")
    symbols = read_symbols(archive.read("data.pkl", LARGEST_PICKLE), str(path))
    for key, numel in symbols.sizes.items():
        _refuse_other_size(path, key, archive.size_of(f"data/{key}"), numel * ITEM_SIZES[symbols.storages[key]])

    def load(spec: TensorSpec) -> "torch.Tensor":
        return _as_tensor(spec, partial(archive.part, f"data/{spec.storage.key}"))

    stored = (lambda key: archive.chunks(f"data/{key}")) if kind == "torch-zip" else None
    return Contents(kind, symbols.root, load, symbols.globals, files=(path,), stored=stored)


def _refuse_other_size(path: Path, key: str, found: int, expected: int) -> None:
    if found < expected:
        raise CheckpointError(f"{path} {_TOO_LARGE}")
    if found > expected:
        told = read_differently(f"the numbers {shown(key)} have {found:,} bytes, and its pickle says {expected:,}")
        raise CheckpointError(f"{path}: {told}")


_BIG_ENDIAN = "was saved on a big-endian machine, whose numbers lsa does not read; save it again"
_TOO_LARGE = "is a damaged checkpoint: a tensor is larger than its stored numbers"


def _open_export(path: Path, kind: str) -> Contents:
    archive = Zip(path)
    configs = [name for name in archive.under("data/weights/") if name.endswith("_weights_config.json")]
    if not configs:
        raise CheckpointError(f"{path} is an exported program whose weights cannot be read; save its state_dict")
    described = _json(archive.read(configs[0], LARGEST_HEADER), str(path), "list of weights").get("config")
    root: dict[str, TensorSpec] = {}
    for name, entry in described.items() if isinstance(described, dict) else ():
        try:
            if entry["use_pickle"]:
                raise CheckpointError(
                    f"{path} holds {shown(name)} as a pickle, which could run code; save its state_dict"
                )
            meta = entry["tensor_meta"]
            dtype = _EXPORT_DTYPES[meta["dtype"]]
            file = f"data/weights/{entry['path_name']}"
            stored = archive.size_of(file) // ITEM_SIZES[dtype]
            storage = StorageSpec(file, dtype, stored)
            shape, stride = (_shape([part["as_int"] for part in meta[key]]) for key in ("sizes", "strides"))
            root[name] = TensorSpec(storage, dtype, shape, stride, _whole(meta["storage_offset"]["as_int"]))
            refuse_oversized(root[name], stored)
        except Refused as error:
            raise CheckpointError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is a damaged exported program: {shown(name)} is not described well"
            ) from error

    def load(spec: TensorSpec) -> "torch.Tensor":
        return _as_tensor(spec, partial(archive.part, spec.storage.key))

    return Contents(kind, root, load, files=(path,))


# torch.export numbers the types of elements (torch/_export/serde/schema.py, ScalarType).
_EXPORT_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip


# ---- legacy: torch.save before 1.6 ---------------------------------------------------------------------


def _open_legacy(path: Path, kind: str) -> Contents:
    """Five pickles (mark, version, system, content, keys), then for each key its number of elements and the elements."""
    size = path.stat().st_size
    with path.open("rb") as file:
        position, parts = 0, []
        for _ in range(5):
            symbols = _pickle_at(file, position, path)
            parts.append(symbols)
            position += symbols.end
        system, content, keys = parts[2].root, parts[3], parts[4].root
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise CheckpointError(f"{path} {_BIG_ENDIAN}")
        places: dict[str, tuple[int, int]] = {}
        for key in keys if isinstance(keys, list) else ():
            if not isinstance(key, str) or key not in content.storages or key in places:
                raise CheckpointError(f"{path} is damaged: it stores numbers twice, or such that nothing refers to")
            item_size = ITEM_SIZES[content.storages[key]]
            file.seek(position)
            header = file.read(8)
            count = struct.unpack("<q", header)[0] if len(header) == 8 else -1
            if not 0 <= count <= (size - position - 8) // item_size:
                raise CheckpointError(f"{path} is cut short or damaged; copy or download it again")
            places[key] = (position + 8, count * item_size)
            position += 8 + count * item_size
    for key, numel in content.sizes.items():
        _refuse_other_size(path, key, places.get(key, (0, 0))[1], numel * ITEM_SIZES[content.storages[key]])

    def stored(key: str) -> Iterator[bytes]:
        with path.open("rb") as file:
            yield from chunks_of(file, *places[key])

    def load(spec: TensorSpec) -> "torch.Tensor":
        def part(start: int, count: int) -> bytearray:
            with path.open("rb") as file:
                return read_exactly(file, places[spec.storage.key][0] + start, count)

        return _as_tensor(spec, part)

    return Contents(kind, content.root, load, content.globals, files=(path,), stored=stored)


def _pickle_at(file: BufferedReader, position: int, path: Path) -> Symbols:
    """The pickle that starts at `position`, read in growing windows because its length stands nowhere."""
    window = 2**20
    while True:
        file.seek(position)
        data = file.read(window)
        try:
            return read_symbols(data, str(path))
        except CutShort:
            if len(data) < window or window >= LARGEST_PICKLE:
                raise
            window *= 8


# ---- safetensors, sharded weights, folders -------------------------------------------------------------

_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "C64": "complex64",
}  # fmt: skip


def _open_safetensors(path: Path, kind: str) -> Contents:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > LARGEST_HEADER:
            raise CheckpointError(
                f"{path} has a safetensors header of {length:,} bytes, more than any checkpoint's; damaged or hostile"
            )
        if length > size - 8:
            raise CheckpointError(f"{path} is a damaged safetensors file (cut short); copy or download it again")
        header = _json(file.read(length), str(path), "safetensors header")
    begin = 8 + length
    metadata = header.pop("__metadata__", {})
    root: dict[str, TensorSpec] = {}
    ranges: list[tuple[int, int]] = []
    for name, entry in header.items():
        try:
            dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
            shape = _shape(entry["shape"])
            start, end = map(_whole, entry["data_offsets"])
            numel = math.prod(shape)
            root[name] = TensorSpec(StorageSpec(name, dtype, numel), dtype, shape, _contiguous(shape), 0)
            refuse_oversized(root[name], numel)
        except (KeyError, TypeError, ValueError, Refused) as error:
            raise CheckpointError(
                f"{path} is a damaged safetensors file: {shown(name)} is not described well"
            ) from error
        if numel * ITEM_SIZES[dtype] != end - start:
            raise CheckpointError(
                f"{path} is a damaged safetensors file: {shown(name)} is not as large as its shape says"
            )
        ranges.append((start, end))
    places = dict(zip(root, ranges, strict=True))
    if [0, *(end for _, end in sorted(ranges))] != [*(start for start, _ in sorted(ranges)), size - begin]:
        raise CheckpointError(
            f"{path} is a damaged safetensors file: its tensors overlap, leave gaps or do not end where it ends; "
            "copy or download it again"
        )

    def load(spec: TensorSpec) -> "torch.Tensor":
        def part(start: int, count: int) -> bytearray:
            with path.open("rb") as file:
                return read_exactly(file, begin + places[spec.storage.key][0] + start, count)

        return _as_tensor(spec, part)

    described = _self_description(metadata, path)
    content = {**described, "state_dict": root} if described is not None else root
    return Contents(kind, content, load, metadata=metadata if isinstance(metadata, dict) else {}, files=(path,))


def _self_description(metadata: Any, path: Path) -> dict[str, Any] | None:
    text = metadata.get("lsa_checkpoint") if isinstance(metadata, dict) else None
    return None if text is None else _json(text, str(path), "lsa_checkpoint metadata")


def _open_index(path: Path, kind: str) -> Contents:
    """Weights in several files, with a JSON index of which tensor is where."""
    index = _json(_small(path), str(path), "index")
    names = index["weight_map"]
    parts: dict[str, Contents] = {}
    root: dict[str, TensorSpec] = {}
    owners: dict[int, Contents] = {}
    for name, file in names.items():
        if not isinstance(file, str) or Path(file).name != file or not file.isprintable():
            raise CheckpointError(f"{path} names a file that is not in its folder ({shown(file)}); refused")
        if file not in parts:
            if len(parts) >= _MOST_FILES:
                raise CheckpointError(f"{path} names more than {_MOST_FILES} files; refused")
            parts[file] = _open_inside(path.parent, file, _WEIGHTS)
        tensors = parts[file].root
        spec = tensors.get(name) if isinstance(tensors, dict) else None
        if not isinstance(spec, TensorSpec):
            raise CheckpointError(f"{path}: {shown(file)} does not hold {shown(name)}; download the files again")
        root[name] = spec
        owners[id(spec)] = parts[file]
    metadata = index.get("metadata")
    return Contents(
        kind, root, lambda spec: owners[id(spec)].load(spec), tuple(g for part in parts.values() for g in part.globals),
        metadata if isinstance(metadata, dict) else {}, (path, *(f for part in parts.values() for f in part.files)),
        compare=lambda: next(filter(None, [part.compare() for part in parts.values()]), None),
    )  # fmt: skip


def _open_folder(path: Path, kind: str) -> Contents:
    """config.json beside weights, as Hugging Face and timm save them."""
    weights = next(name for name in _FOLDER_WEIGHTS if (path / name).exists())
    inner = _open_inside(path, weights, (*_WEIGHTS, "weights-index"))
    metadata: dict[str, Any] = {}
    for name in ("config.json", "preprocessor_config.json"):
        if (path / name).exists():
            _stay_inside(path / name, path)
            metadata[name] = _json(_small(path / name), str(path / name), "JSON")
    return replace(inner, format=kind, metadata=metadata, stored=None)


_WEIGHTS = ("torch-zip", "torch-legacy", "safetensors")


def _open_inside(folder: Path, name: str, expected: tuple[str, ...]) -> Contents:
    _stay_inside(folder / name, folder)
    kind = sniff(folder / name)
    if kind not in expected:
        raise CheckpointError(f"{folder / name} should hold weights and is of format {kind}; refused")
    return open_contents(folder / name)


def _small(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST_HEADER + 1)
    if len(content) > LARGEST_HEADER:
        raise CheckpointError(f"{path} has more than {LARGEST_HEADER:,} bytes, more than any configuration; refused")
    return content


def _stay_inside(file: Path, folder: Path) -> None:
    """A link may lead elsewhere in the folder, or to the store of Hugging Face's cache, and nowhere else."""
    allowed = (folder.resolve(), folder.absolute().parent.parent.resolve() / "blobs")
    try:
        leaves = file.is_symlink() and not any(file.resolve().is_relative_to(root) for root in allowed)
    except (RuntimeError, ValueError) as error:  # a link to itself; a name that no file can have
        raise CheckpointError(f"{shown(str(file))} cannot be followed; refused") from error
    if leaves:
        raise CheckpointError(f"{file} is a link that leaves its folder; refused")


def _json(data: bytes | str, where: str, what: str) -> dict[str, Any]:
    if isinstance(data, bytes) and data.count(b"[") + data.count(b"{") > _MOST_BRACKETS:
        raise CheckpointError(f"{where}: its {what} has more parts than any checkpoint's; refused")
    try:
        text = data.decode() if isinstance(data, bytes) else data
        content = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=partial(_once, where, what))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # AttributeError: where no text stands
        raise CheckpointError(
            f"{where}: its {what} is damaged ({str(error)[:80]}); copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: its {what} is {type(content).__name__}, not a mapping; damaged")
    return content


def _once(where: str, what: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping whose keys stand once: of one that stands twice some readers take the first, and others the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise CheckpointError(f"{where}: {read_differently(f'its {what} has the key {shown(twice)} twice')}")
    return found


# ---- numbers -------------------------------------------------------------------------------------------


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError(value)
    return value


def _shape(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MOST_DIMENSIONS:
        raise ValueError(type(values).__name__)
    return tuple(map(_whole, values))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _as_tensor(spec: TensorSpec, part: Callable[[int, int], bytearray]) -> "torch.Tensor":
    """The stored bytes that a tensor covers, read by `part` (start, count), seen as the tensor."""
    import torch

    dtype = getattr(torch, spec.dtype)
    if spec.numel == 0:
        return torch.empty(spec.shape, dtype=dtype)
    start, end = spec.covered
    flat = torch.frombuffer(part(start, end - start), dtype=dtype)
    return flat.as_strided(spec.shape, spec.stride)


def _open_pickle(path: Path, kind: str) -> Contents:
    """A bare pickle: looked at, never read. Its tensors, if any, are pickles within."""
    with path.open("rb") as file:
        symbols = _pickle_at(file, 0, path)

    def load(spec: TensorSpec) -> "torch.Tensor":
        raise CheckpointError(f"{path} is a bare pickle without tensors of its own")

    return Contents(kind, symbols.root, load, symbols.globals, files=(path,))


_OPENERS: dict[str, Callable[[Path, str], Contents]] = {
    "torch-zip": _open_torch_zip,
    "torchscript": _open_torch_zip,
    "torch-export": _open_export,
    "torch-legacy": _open_legacy,
    "pickle": _open_pickle,
    "safetensors": _open_safetensors,
    "weights-index": _open_index,
    "folder": _open_folder,
}


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """torch.save through a temporary name, so that a reader sees the old file or the whole new one."""
    import torch

    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise CheckpointError(f"{path} is no regular file; give a file name to write the checkpoint to")
    temporary = temporary_beside(target)
    try:
        torch.save(content, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
