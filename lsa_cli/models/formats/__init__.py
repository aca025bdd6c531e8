"""A model file opened: which format it is, and what is in it, as symbols and tensors that are read when they are wanted.

Nothing that a file holds is imported or called (see `pickles`), and only headers are read until a tensor is wanted. What
torch.load can read is then compared with what torch reads (see `agreement`). No module here needs torch until then.
"""

from lsa_cli.models.formats import legacy, safetensors, shards, torch_export, torch_zip  # noqa: F401  (each registers itself)
from lsa_cli.models.formats.base import FORMATS, Contents, open_contents
from lsa_cli.models.formats.sniff import sniff

__all__ = ["FORMATS", "Contents", "open_contents", "sniff"]
