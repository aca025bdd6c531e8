"""Weights in several files with an index, and folders with weights and a configuration."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.base import FORMATS, Contents, Format, open_contents, register
from lsa_cli.models.formats.reading import json_of, small_file
from lsa_cli.models.formats.sniff import FOLDER_WEIGHTS, sniff
from lsa_cli.models.pickles.symbols import TensorSpec, shown

_MOST_FILES = 200


def _open_index(path: Path) -> Contents:
    """Weights in several files, with a JSON index that says which file holds which tensor."""
    index = json_of(small_file(path), str(path), "index")
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
            parts[file] = _open_inside(path.parent, file)
        tensors = parts[file].root
        spec = tensors.get(name) if isinstance(tensors, dict) else None
        if not isinstance(spec, TensorSpec):
            raise CheckpointError(f"{path}: {shown(file)} does not hold {shown(name)}; download the files again")
        root[name] = spec
        owners[id(spec)] = parts[file]
    metadata = index.get("metadata")
    return Contents(
        "weights-index",
        root,
        load=lambda spec: owners[id(spec)].load(spec),
        globals=tuple(name for part in parts.values() for name in part.globals),
        metadata=metadata if isinstance(metadata, dict) else {},
        files=(path, *(file for part in parts.values() for file in part.files)),
        compare=lambda: next(filter(None, [part.compare() for part in parts.values()]), None),
    )


def _open_folder(path: Path) -> Contents:
    """config.json beside weights, as Hugging Face and timm save them."""
    weights = next(name for name in FOLDER_WEIGHTS if (path / name).exists())
    inner = _open_inside(path, weights, index=True)
    metadata: dict[str, Any] = {}
    for name in ("config.json", "preprocessor_config.json"):
        if (path / name).exists():
            _stay_inside(path / name, path)
            metadata[name] = json_of(small_file(path / name), str(path / name), "JSON")
    return replace(inner, format="folder", metadata=metadata, stored=None)


def _open_inside(folder: Path, name: str, index: bool = False) -> Contents:
    _stay_inside(folder / name, folder)
    kind = sniff(folder / name)
    if not FORMATS[kind].holds_weights and not (index and kind == "weights-index"):
        raise CheckpointError(
            f"{folder / name} is of format {kind}, which cannot hold the weights of a folder; refused"
        )
    return open_contents(folder / name)


def _stay_inside(file: Path, folder: Path) -> None:
    """Raise CheckpointError for a link that leaves the folder. Links into the cache of Hugging Face are allowed."""
    allowed = (folder.resolve(), folder.absolute().parent.parent.resolve() / "blobs")
    try:
        leaves = file.is_symlink() and not any(file.resolve().is_relative_to(root) for root in allowed)
    except (RuntimeError, ValueError) as error:  # a link to itself; a name that no file can have
        raise CheckpointError(f"{shown(str(file))} cannot be followed; refused") from error
    if leaves:
        raise CheckpointError(f"{file} is a link that leaves its folder; refused")


register(
    Format("weights-index", "index of weights in several files", _open_index),
    Format("folder", "folder with weights and configuration", _open_folder),
)
