"""Recognise the format of a model file by its first bytes, never by its suffix."""

import os
import stat
from pathlib import Path

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.reading import LARGEST_HEADER, json_of, small_file
from lsa_cli.models.formats.zip import entries_of
from lsa_cli.models.pickles.symbols import shown

_LEGACY_TORCH = bytes.fromhex("8a0a6cfc9c46f9")  # the magic number of torch.save, after the first bytes of the pickle
_LARGEST_FILE = 64 * 2**30
_OF_WEIGHTS = ("weight", "bias")  # the last part of a name in an archive of arrays that holds weights
# Files that are given by mistake: first bytes, what the file is, what to do instead.
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


def sniff(path: Path) -> str:
    """The name of the format, one of `FORMATS`.

    Raises CheckpointError for everything else. The message says what the file is and what to do.
    """
    try:
        return _sniff(path, path.stat())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"there is no file {path}; check the path (you are in {Path.cwd()})") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a null character, or half a surrogate pair
        raise CheckpointError(f"{shown(str(path))} is not a valid file name") from error


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
        return "safetensors"  # first, because its length field can equal any of the marks below
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
        return "onnx"
    if head[:1] == b"\x0a" and b"\x12" in head[:64]:
        raise CheckpointError(f"{path} looks like a TensorFlow graph (protobuf); lsa reads PyTorch checkpoints")
    raise CheckpointError(
        f"{path} is in no format that lsa reads (it starts with {head[:8]!r}); "
        "give a state_dict saved with torch.save, or a safetensors file"
    )


def _looks_like_onnx(head: bytes) -> bool:
    """Whether it is a protobuf that starts with ir_version (field 1, a small number), then a producer (field 2) or a graph."""
    return len(head) > 4 and head[0] == 0x08 and head[1] < 0x40 and head[2] in (0x12, 0x1A, 0x3A, 0x42)


def _sniff_json(path: Path, size: int) -> str:
    if size <= LARGEST_HEADER:
        content = json_of(small_file(path), str(path), "JSON")
        if isinstance(content.get("weight_map"), dict):
            return "weights-index"
    raise CheckpointError(
        f"{path} is a JSON file, not a checkpoint; give the weights, or the folder with config.json and weights"
    )


FOLDER_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
)  # fmt: skip


def _sniff_folder(path: Path) -> str:
    if any((path / name).exists() for name in FOLDER_WEIGHTS):
        return "folder"
    if (path / "saved_model.pb").exists():
        raise CheckpointError(f"{path} is a TensorFlow SavedModel; lsa reads PyTorch checkpoints")
    if (path / ".metadata").exists():
        raise CheckpointError(
            f"{path} is a distributed checkpoint, whose index is a pickle that could run code; turn it into one file "
            "with python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        )
    raise CheckpointError(f"{path} is a directory without {', '.join(FOLDER_WEIGHTS[:3])}; give the checkpoint file")


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
        if any(name.removesuffix(".npy").rpartition(".")[2] in _OF_WEIGHTS for name in entries):
            return "npz"
        raise CheckpointError(f"{path} is an .npz of numpy arrays, not a checkpoint; data goes to --data npz:FILE")
    if "model.weights.h5" in entries:
        raise CheckpointError(f"{path} is a Keras model; lsa reads PyTorch checkpoints")
    raise CheckpointError(f"{path} is a zip file, but no PyTorch checkpoint: it holds no data.pkl")
