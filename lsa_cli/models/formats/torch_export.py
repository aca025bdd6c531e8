"""Programs of torch.export (.pt2): the weights, which a list in JSON describes."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.base import Contents, Format, register
from lsa_cli.models.formats.reading import LARGEST_HEADER, as_tensor, json_of
from lsa_cli.models.formats.zip import Zip
from lsa_cli.models.pickles.symbols import (
    ITEM_SIZES,
    Refused,
    StorageSpec,
    TensorSpec,
    refuse_impossible,
    shown,
    size_of,
)

if TYPE_CHECKING:
    import torch

# torch.export numbers the types of elements (torch/_export/serde/schema.py, ScalarType).
_EXPORT_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip


def _open_export(path: Path) -> Contents:
    archive = Zip(path)
    configs = [name for name in archive.under("data/weights/") if name.endswith("_weights_config.json")]
    if not configs:
        raise CheckpointError(f"{path} is an exported program whose weights cannot be read; save its state_dict")
    described = json_of(archive.read(configs[0], LARGEST_HEADER), str(path), "list of weights").get("config")
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
            shape, stride = (tuple(size_of(part["as_int"]) for part in meta[key]) for key in ("sizes", "strides"))
            offset = size_of(meta["storage_offset"]["as_int"])
            root[name] = TensorSpec(StorageSpec(file, dtype, stored), dtype, shape, stride, offset)
            refuse_impossible(root[name], stored)
        except Refused as error:
            raise CheckpointError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is a damaged exported program: {shown(name)} has no valid description"
            ) from error

    def load(spec: TensorSpec) -> "torch.Tensor":
        return as_tensor(spec, partial(archive.part, spec.storage.key))

    return Contents("torch-export", root, load, files=(path,))


register(Format("torch-export", "torch.export program", _open_export, is_program=True))
