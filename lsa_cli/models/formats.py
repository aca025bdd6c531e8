"""Which format these bytes are, and a reader for it that runs nothing of what is inside.

The first bytes decide, never the suffix. Whatever is read comes through `torch.load(weights_only=True)`, said
explicitly because an environment variable can turn the default off, or through safetensors.
"""

import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from lsa_cli.errors import CheckpointError

_LEGACY_TORCH = bytes.fromhex("80028a0a6cfc9c46f9")

# What people pass by mistake, by its first bytes, and what to do instead.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89PNG", "a PNG image", "give the model file instead"),
    (b"\xff\xd8\xff", "a JPEG image", "give the model file instead"),
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` to fetch the real file"),
    (b"\x89HDF", "an HDF5 file (Keras?)", "lsa reads PyTorch checkpoints: convert it first"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"%PDF", "a PDF document", "give the model file instead"),
)


def sniff(path: Path) -> str:
    """The format of a file: torch-zip, torch-legacy, torchscript, torch-export or safetensors.

    Raises CheckpointError, naming what the file is and the way out, for everything else.
    """
    try:
        path.stat()
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise CheckpointError(f"there is no file {path}; check the path (you are in {Path.cwd()})") from error
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; give the checkpoint file inside it")
    if not path.is_file():
        raise CheckpointError(f"{path} is a device or a pipe; give a file, which can be read twice")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); the download or the save did not finish")
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head.startswith(_LEGACY_TORCH):
        return "torch-legacy"
    if len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8:
        return "safetensors"  # before the marks below: the length it starts with can look like any of them
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is an HTML or XML page, not a checkpoint; the download link gave a web page")
    for magic, what, advice in _FOREIGN:
        if head.startswith(magic):
            raise CheckpointError(f"{path} is {what}, not a checkpoint; {advice}")
    if head[:1] == b"\x80":
        raise CheckpointError(
            f"{path} is a bare pickle, which could run any code when read; save a state_dict with torch.save instead"
        )
    raise CheckpointError(
        f"{path} is in no format that lsa reads (it starts with {head[:8]!r}); "
        "give a state_dict saved with torch.save, or a safetensors file"
    )


def _sniff_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            stored = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is a damaged zip file ({error}); it was probably cut short, copy or download it again"
        ) from error
    if stored > 1.1 * path.stat().st_size + 4096:
        raise CheckpointError(
            f"{path} would unpack to {stored:,} bytes from {path.stat().st_size:,}: checkpoints are not compressed, "
            "so it is refused as a decompression bomb"
        )
    leaves = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in leaves or any(leaf.startswith("code/") for leaf in leaves):
        return "torchscript"
    if "archive_format" in leaves:
        return "torch-export"
    if "data.pkl" in leaves:
        return "torch-zip"
    raise CheckpointError(f"{path} is a zip file, but no PyTorch checkpoint: it holds no data.pkl")


def read(path: Path, kind: str) -> Any:
    """The content of a file of a format that `sniff` named; tensors on the CPU, nothing of it run."""
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind in ("torchscript", "torch-export"):
        raise CheckpointError(
            f"{path} holds a compiled program ({kind}), which would run code; save its state_dict with torch.save and "
            "name the architecture with --arch"
        )
    # A memory map is not available for the old format, and the environment must not decide about trust.
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "torch-zip")
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values ({_first_global(error)}), and reading that could run "
            "code; save model.state_dict() instead"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{path} claims more memory than there is; it is damaged or hostile") from error
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is a damaged checkpoint ({first[:200]}); copy or download it again") from error


def _first_global(error: Exception) -> str:
    """The name that the restricted unpickler stopped at, from its message."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found.group(1) if found else "an object it does not know"


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Nothing in the interface iterates lazily, so the keys come first.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a damaged safetensors file ({error}); copy or download it again") from error
    described = metadata.get("lsa_checkpoint")
    if described is None:
        return tensors
    try:
        return {**json.loads(described), "state_dict": tensors}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its lsa_checkpoint metadata is not readable JSON ({error})") from error


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """torch.save through a temporary name, so that a reader sees the old file or the whole new one."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise CheckpointError(f"{path} is no regular file; give a file name to write the checkpoint to")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
