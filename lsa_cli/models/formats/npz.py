"""Archives of numpy (.npz) that hold weights: an entry is an array, whose header is a Python literal."""

import io
import math
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.base import Contents, Format, register
from lsa_cli.models.formats.reading import as_tensor
from lsa_cli.models.formats.zip import Zip
from lsa_cli.models.pickles.arrays import DTYPES, tensor
from lsa_cli.models.pickles.symbols import ITEM_SIZES, Refused, StorageSpec, TensorSpec, shown

if TYPE_CHECKING:
    import torch

_LONGEST_HEADER = 2**14


def _open_npz(path: Path) -> Contents:
    from numpy.lib import format as npy

    archive = Zip(path)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.entries.values()):
        raise CheckpointError(f"{path} is a compressed .npz; write it with numpy.savez instead of savez_compressed")
    root: dict[str, TensorSpec] = {}
    begins: dict[str, int] = {}
    for file in archive.under(""):
        name = file.removesuffix(".npy")
        head = bytes(archive.part(file, 0, min(archive.size_of(file), _LONGEST_HEADER)))
        try:
            stream = io.BytesIO(head)
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, by_column, kind = read(stream, max_header_size=_LONGEST_HEADER)
            if kind.byteorder == ">" or kind.str[1:] not in DTYPES:
                raise CheckpointError(f"{path}: {shown(name)} is an array of {kind}, which lsa does not read")
            dtype, begins[file] = DTYPES[kind.str[1:]], stream.tell()
            if archive.size_of(file) - stream.tell() != math.prod(shape) * ITEM_SIZES[dtype]:
                raise CheckpointError(f"{path} is damaged: {shown(name)} is cut short; copy or download it again")
            root[name] = tensor(StorageSpec(file, dtype, math.prod(shape)), shape, by_column)
        except (ValueError, Refused) as error:
            raise CheckpointError(f"{path}: {shown(name)} is a damaged array ({shown(str(error))})") from error

    def load(spec: TensorSpec) -> "torch.Tensor":
        return as_tensor(spec, partial(_part, archive, spec.storage.key, begins[spec.storage.key]))

    return Contents("npz", root, load, files=(path,))


def _part(archive: Zip, file: str, begin: int, start: int, count: int) -> bytearray:
    return archive.part(file, begin + start, count)


register(Format("npz", "archive of numpy arrays (.npz)", _open_npz))
