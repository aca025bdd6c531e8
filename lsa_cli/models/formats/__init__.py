"""Model files: recognising the format, and reading it as symbols and tensors.

Nothing in a file is imported or called (see `pickles`). Opening a file reads only its headers; a tensor is read when
it is loaded. A file that torch.load can read is then compared with what torch reads (see `agreement`). These modules
import torch only to load a tensor.
"""

# Each format registers itself when it is imported.
from lsa_cli.models.formats import legacy, npz, onnx, safetensors, shards, torch_export, torch_zip  # noqa: F401
from lsa_cli.models.formats.base import FORMATS, Contents, open_contents
from lsa_cli.models.formats.sniff import sniff

__all__ = ["FORMATS", "Contents", "open_contents", "sniff"]
