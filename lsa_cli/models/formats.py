"""Which format these bytes are, and what is in them: symbols and tensors that are read when they are asked for.

The first bytes decide, never the suffix. Nothing that a file holds is imported, called or unpickled (see
`pickles`), and only headers are read until a tensor is wanted. This module needs no torch until then.
"""

import json
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsa_cli.errors import CheckpointError
from lsa_cli.models.pickles import (
    ITEM_SIZES,
    LARGEST_PICKLE,
    MOST_DIMENSIONS,
    Call,
    CutShort,
    Members,
    Refused,
    StorageSpec,
    Symbols,
    TensorSpec,
    parts_of,
    read_symbols,
    refuse_oversized,
    shown,
)

if TYPE_CHECKING:
    import torch

_LEGACY_TORCH = bytes.fromhex("8a0a6cfc9c46f9")  # a number, after what the protocol of the pickle starts with
_LARGEST_FILE = 64 * 2**30
_LARGEST_HEADER = 16 * 2**20
_MOST_ENTRIES = 100_000
_MOST_BRACKETS = 10 * _MOST_ENTRIES
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
    values (safetensors metadata, a folder's config.json). files: what it is made of.
    """

    format: str
    root: Any
    load: Callable[[TensorSpec], "torch.Tensor"]
    globals: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


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
    if size <= _LARGEST_HEADER:
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
    entries = _entries(path)
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

    def load(spec: TensorSpec) -> "torch.Tensor":
        with _told(path):
            return contents.load(spec)

    return replace(contents, load=load)


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


def _entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries of a zip file by name, after everything has been refused that no checkpoint has."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(_Bounded(file)) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError, struct.error) as error:
        raise CheckpointError(
            f"{path} is a damaged zip file ({error}); it was probably cut short, copy or download it again"
        ) from error
    size = path.stat().st_size
    stored = sum(entry.file_size for entry in listed if entry.compress_type == zipfile.ZIP_STORED)
    packed = sum(entry.file_size for entry in listed) - stored  # the code of TorchScript, which nothing here unpacks
    if stored > 1.1 * size or packed > _LARGEST_HEADER:
        raise CheckpointError(
            f"{path} would unpack to {stored + packed:,} bytes from {size:,}: weights are not compressed, "
            "so it is refused as a decompression bomb"
        )
    if len(listed) > _MOST_ENTRIES:
        raise CheckpointError(f"{path} holds {len(listed):,} entries, more than any checkpoint; refused")
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in listed:
        parts = entry.filename.split("/")
        if entry.filename.startswith("/") or "\\" in entry.filename or ".." in parts:
            raise CheckpointError(f"{path} holds an entry that points outside of it ({shown(entry.filename)}); refused")
        if entry.filename in entries:
            raise CheckpointError(f"{path} holds two entries called {shown(entry.filename)}; refused")
        entries[entry.filename] = entry
    return entries


class _Bounded:
    """A file of which zipfile reads the list of entries: it would take any length that the file claims for it."""

    def __init__(self, file: BufferedReader) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        content = self._file.read(count if 0 <= count <= _LARGEST_HEADER else _LARGEST_HEADER + 1)
        if len(content) > _LARGEST_HEADER:
            raise ValueError("its list of entries is longer than any checkpoint's")
        return content


class _Zip:
    """Entries of one zip file, read as raw bytes: checkpoints store them without compression."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self.entries = _entries(path)
        self.checked: set[str] = set()
        first = next(iter(self.entries))
        self.root = first.split("/", 1)[0] + "/" if "/" in first else ""

    def has(self, name: str) -> bool:
        return self.root + name in self.entries

    def under(self, folder: str) -> list[str]:
        start = self.root + folder
        return [name.removeprefix(self.root) for name in self.entries if name.startswith(start)]

    def size_of(self, name: str) -> int:
        return self._entry(name).file_size

    def read(self, name: str, at_most: int) -> bytes:
        """The whole of a small entry."""
        size = self.size_of(name)
        if size > at_most:
            raise CheckpointError(f"{self.path}: {shown(name)} has {size:,} bytes, more than any checkpoint's")
        return bytes(self.part(name, 0, size))

    def part(self, name: str, start: int, count: int) -> bytearray:
        """Some bytes of an entry, after the checksum of the whole has been compared once."""
        entry = self._entry(name)
        with self.path.open("rb") as file:
            begin = self._begin(file, entry)
            if name not in self.checked and entry.CRC:  # torch.save can be told to leave it 0
                if _checksum(file, begin, entry.file_size) != entry.CRC:
                    raise CheckpointError(
                        f"{self.path} is damaged: the checksum of {shown(name)} is wrong; copy or download it again"
                    )
                self.checked.add(name)
            return _read_exactly(file, begin + start, count)

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = self.entries.get(self.root + name)
        if entry is None:
            raise CheckpointError(
                f"{self.path} is a damaged checkpoint: it refers to {shown(name)}, which it does not hold"
            )
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(
                f"{self.path} holds {shown(name)} compressed or encrypted, as no checkpoint does; refused"
            )
        return entry

    def _begin(self, file: BufferedReader, entry: zipfile.ZipInfo) -> int:
        if 0 <= entry.header_offset <= self.size - 30:
            file.seek(entry.header_offset)
            header = file.read(30)
            begin = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
            if header[:4] == b"PK\x03\x04" and begin + entry.file_size <= self.size:
                return begin
        raise CheckpointError(f"{self.path} is a damaged zip file; copy or download it again")


def _checksum(file: BufferedReader, start: int, count: int) -> int:
    file.seek(start)
    found = 0
    while count > 0:
        chunk = file.read(min(count, 2**20))
        if not chunk:
            break
        found = zlib.crc32(chunk, found)
        count -= len(chunk)
    return found


def _read_exactly(file: BufferedReader, start: int, count: int) -> bytearray:
    content = bytearray(count)
    file.seek(start)
    if file.readinto(content) != count:
        raise CheckpointError(f"{file.name} is cut short; copy or download it again")
    return content


def _open_torch_zip(path: Path, kind: str) -> Contents:
    archive = _Zip(path)
    if archive.has("byteorder") and archive.read("byteorder", 64) != b"little":
        raise CheckpointError(f"{path} {_BIG_ENDIAN}")
    symbols = read_symbols(archive.read("data.pkl", LARGEST_PICKLE), str(path))
    for spec in _specs(symbols.root):
        if spec.covered[1] > archive.size_of(f"data/{spec.storage.key}"):
            raise CheckpointError(f"{path} {_TOO_LARGE}")

    def load(spec: TensorSpec) -> "torch.Tensor":
        return _as_tensor(spec, partial(archive.part, f"data/{spec.storage.key}"))

    return Contents(kind, symbols.root, load, symbols.globals, files=(path,))


_BIG_ENDIAN = "was saved on a big-endian machine, whose numbers lsa does not read; save it again"
_TOO_LARGE = "is a damaged checkpoint: a tensor is larger than its stored numbers"


def _open_export(path: Path, kind: str) -> Contents:
    archive = _Zip(path)
    configs = [name for name in archive.under("data/weights/") if name.endswith("_weights_config.json")]
    if not configs:
        raise CheckpointError(f"{path} is an exported program whose weights cannot be read; save its state_dict")
    described = _json(archive.read(configs[0], _LARGEST_HEADER), str(path), "list of weights").get("config")
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
            if not isinstance(key, str) or key not in content.storages:
                raise CheckpointError(f"{path} is damaged: it stores numbers that nothing in it refers to")
            item_size = ITEM_SIZES[content.storages[key]]
            file.seek(position)
            header = file.read(8)
            count = struct.unpack("<q", header)[0] if len(header) == 8 else -1
            if not 0 <= count <= (size - position - 8) // item_size:
                raise CheckpointError(f"{path} is cut short or damaged; copy or download it again")
            places[key] = (position + 8, count * item_size)
            position += 8 + count * item_size
    for spec in _specs(content.root):
        if spec.covered[1] > places.get(spec.storage.key, (0, 0))[1]:
            raise CheckpointError(f"{path} {_TOO_LARGE}")

    def load(spec: TensorSpec) -> "torch.Tensor":
        def part(start: int, count: int) -> bytearray:
            with path.open("rb") as file:
                return _read_exactly(file, places[spec.storage.key][0] + start, count)

        return _as_tensor(spec, part)

    return Contents(kind, content.root, load, content.globals, files=(path,))


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
        if length > _LARGEST_HEADER:
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
                return _read_exactly(file, begin + places[spec.storage.key][0] + start, count)

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
    return Contents(kind, inner.root, inner.load, inner.globals, metadata, inner.files)


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
        content = file.read(_LARGEST_HEADER + 1)
    if len(content) > _LARGEST_HEADER:
        raise CheckpointError(f"{path} has more than {_LARGEST_HEADER:,} bytes, more than any configuration; refused")
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
        content = json.loads(data)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: its {what} is damaged ({str(error)[:80]}); copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: its {what} is {type(content).__name__}, not a mapping; damaged")
    return content


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
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
