"""Zip files of torch: those of torch.save, and programs of TorchScript."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.base import Contents, Format, register
from lsa_cli.models.formats.reading import BIG_ENDIAN, as_tensor, refuse_other_size
from lsa_cli.models.formats.zip import Zip
from lsa_cli.models.pickles.machine import LARGEST_PICKLE, read_symbols
from lsa_cli.models.pickles.symbols import ITEM_SIZES, TensorSpec

if TYPE_CHECKING:
    import torch


def _open_torch_zip(path: Path, kind: str) -> Contents:
    archive = Zip(path)
    if archive.has("byteorder") and archive.read("byteorder", 64) != b"little":
        raise CheckpointError(f"{path} {BIG_ENDIAN}")
    symbols = read_symbols(archive.read("data.pkl", LARGEST_PICKLE), str(path))
    for key, numel in symbols.sizes.items():
        refuse_other_size(path, key, archive.size_of(f"data/{key}"), numel * ITEM_SIZES[symbols.storages[key]])

    def load(spec: TensorSpec) -> "torch.Tensor":
        return as_tensor(spec, partial(archive.part, f"data/{spec.storage.key}"))

    stored = (lambda key: archive.chunks(f"data/{key}")) if kind == "torch-zip" else None
    return Contents(kind, symbols.root, load, symbols.globals, files=(path,), stored=stored)


register(
    Format(
        "torch-zip", "PyTorch file (torch.save, zip)", partial(_open_torch_zip, kind="torch-zip"), holds_weights=True
    ),
    Format("torchscript", "TorchScript program", partial(_open_torch_zip, kind="torchscript"), is_program=True),
)
