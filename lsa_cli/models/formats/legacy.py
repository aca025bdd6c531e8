"""Files that begin with a pickle: torch.save before torch 1.6, and a bare pickle."""

import struct
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.base import Contents, Format, register
from lsa_cli.models.formats.reading import BIG_ENDIAN, as_tensor, chunks_of, read_exactly, refuse_other_size
from lsa_cli.models.pickles.machine import LARGEST_PICKLE, read_symbols
from lsa_cli.models.pickles.symbols import ITEM_SIZES, CutShort, Symbols, TensorSpec

if TYPE_CHECKING:
    import torch


def _open_legacy(path: Path) -> Contents:
    """Five pickles (magic number, version, system, content, keys), then for each key a count and so many elements."""
    size = path.stat().st_size
    with path.open("rb") as file:
        position, parts = 0, []
        for _ in range(5):
            symbols = _pickle_at(file, position, path)
            parts.append(symbols)
            position += symbols.end
        system, content, keys = parts[2].root, parts[3], parts[4].root
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise CheckpointError(f"{path} {BIG_ENDIAN}")
        places: dict[str, tuple[int, int]] = {}
        for key in keys if isinstance(keys, list) else ():
            if not isinstance(key, str) or key not in content.storages or key in places:
                raise CheckpointError(f"{path} is damaged: it stores numbers twice, or numbers that nothing uses")
            item_size = ITEM_SIZES[content.storages[key]]
            file.seek(position)
            header = file.read(8)
            count = struct.unpack("<q", header)[0] if len(header) == 8 else -1
            if not 0 <= count <= (size - position - 8) // item_size:
                raise CheckpointError(f"{path} is cut short or damaged; copy or download it again")
            places[key] = (position + 8, count * item_size)
            position += 8 + count * item_size
    for key, numel in content.sizes.items():
        refuse_other_size(path, key, places.get(key, (0, 0))[1], numel * ITEM_SIZES[content.storages[key]])

    def load(spec: TensorSpec) -> "torch.Tensor":
        begin = places[spec.storage.key][0]
        return as_tensor(spec, lambda start, count: read_exactly(path, begin + start, count))

    def stored(key: str) -> Iterator[bytes]:
        return chunks_of(path, *places[key])

    return Contents("torch-legacy", content.root, load, content.globals, files=(path,), stored=stored)


def _open_pickle(path: Path) -> Contents:
    """A bare pickle, read as symbols. Its tensors, if any, are pickles inside it, which are not read."""
    with path.open("rb") as file:
        symbols = _pickle_at(file, 0, path)

    def load(spec: TensorSpec) -> "torch.Tensor":
        raise CheckpointError(f"{path} is a bare pickle without tensors of its own")

    return Contents("pickle", symbols.root, load, symbols.globals, files=(path,))


def _pickle_at(file: BufferedReader, position: int, path: Path) -> Symbols:
    """The pickle that starts at `position`. Its length is not stored, so it is read in growing windows."""
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


register(
    Format("torch-legacy", "PyTorch file (torch.save, the format before 1.6)", _open_legacy, holds_weights=True),
    Format("pickle", "bare pickle", _open_pickle),
)
