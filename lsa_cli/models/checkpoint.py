"""Checkpoint: the content of a model file, read without running any of its code; and writing of self-describing files."""

import hashlib
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from lsa_cli.errors import CheckpointError, is_plain
from lsa_cli.files import is_irregular, sha256_of_file, temporary_beside
from lsa_cli.models.claims import claim
from lsa_cli.models.formats import Contents, open_contents
from lsa_cli.models.pickles.symbols import TensorSpec
from lsa_cli.models.weights import Weights, choose, find_weights
from lsa_cli.registry import SHIPPED

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT_VERSION = 1


class Description(pydantic.BaseModel):
    """The description in a self-describing checkpoint, beside its weights: plain values only.

    A file is not trusted. It can name networks and data sets of lsa, torchvision and timm, and files beside it, but no
    Python code: architecture is "" where the network is the user's own code, which --arch names.
    """

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    lsa_checkpoint: int = FORMAT_VERSION
    architecture: str
    arch_args: dict[str, Any] = {}
    mean: list[float] | None = None
    std: list[float] | None = None
    input_shape: list[int] = []
    input_range: tuple[float, float] | None = (0.0, 1.0)
    class_names: Annotated[list[str], pydantic.Field(fail_fast=True)] | None = None
    output: str = "logits"
    output_index: str | None = None
    data: str | None = None
    data_name: str | None = None
    norm: str | None = None
    eps: float | None = None
    clean_accuracy: float | None = None
    surgery: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []

    @pydantic.model_validator(mode="after")
    def _trusts_no_code(self) -> "Description":
        if self.lsa_checkpoint != FORMAT_VERSION:
            raise ValueError(f"is of version {self.lsa_checkpoint}; this lsa reads version {FORMAT_VERSION}")
        if self.architecture and self.architecture.partition(":")[0] not in SHIPPED:
            raise ValueError(f"names Python code as its architecture ({self.architecture}); give it with --arch")
        if (self.mean is None) != (self.std is None):
            raise ValueError("has a mean without a std, or the reverse")
        if self.input_range is not None and self.input_range[0] >= self.input_range[1]:
            raise ValueError(f"has an input range from {self.input_range[0]:g} to {self.input_range[1]:g}")
        if not is_plain([self.arch_args, self.surgery, self.history]):
            raise ValueError("holds values in arch_args, surgery or history that are not plain finite numbers and text")
        return self


@dataclass(frozen=True)
class Checkpoint:
    """The content of a model file: its weights, its description, and notes on choices that were made.

    chosen: the name of the set of weights that the user chose, with --weights; None without a choice.
    compare, graph: as in `Contents`. claimed_accuracy: as `claim` returns it. transformers_class: the class of a Hugging Face
    transformers folder, whose weights fit no other library's networks.
    """

    path: Path
    format: str
    sha256: str
    size: int
    weights: Weights
    load: Callable[[TensorSpec], "torch.Tensor"]
    compare: Callable[[], str | None]
    globals: tuple[str, ...] = ()
    description: Description | None = None
    claimed_accuracy: tuple[float, str] | None = None
    notes: tuple[str, ...] = ()
    transformers_class: str | None = None
    graph: Any = None
    chosen: str | None = None


def read_checkpoint(path: str | Path, weights: str | None = None) -> Checkpoint:
    """Read the headers of a model file or folder. Tensors are read later.

    weights: which of several sets, by its place in the file ("model_ema", "0"), or by the start of the names of its
    weights ("student"). Raises CheckpointError when the file holds no weights that can be read safely, UsageError for an
    unknown set.
    """
    path = Path(path)
    contents = open_contents(path)
    notes: list[str] = []
    return Checkpoint(
        path=path,
        format=contents.format,
        weights=choose(path, contents, find_weights(contents.root), weights, notes),
        description=describe(path, contents),
        sha256=sha256_of(contents.files),
        size=sum(file.stat().st_size for file in contents.files),
        load=contents.load,
        compare=contents.compare,
        globals=contents.globals,
        claimed_accuracy=claim(contents.root, contents.peek),
        notes=tuple(notes),
        transformers_class=_transformers_class(contents),
        graph=contents.graph,
        chosen=weights,
    )


def describe(path: Path, contents: Contents) -> Description | None:
    """The description in the file: that of lsa, or config.json of a timm or Hugging Face folder; None where there is none."""
    root = contents.root
    if isinstance(root, dict) and "lsa_checkpoint" in root:
        described = {key: value for key, value in root.items() if key not in ("state_dict", "network")}
        return _validated(path, described)
    config = contents.metadata.get("config.json")
    if isinstance(config, dict) and isinstance(config.get("architecture"), str):
        return _from_timm(path, config)
    return None


def _from_timm(path: Path, config: dict[str, Any]) -> Description:
    pretrained = config.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    arguments = config.get("model_args")
    arguments = dict(arguments) if isinstance(arguments, dict) else {}
    if isinstance(config.get("num_classes"), int):
        arguments.setdefault("num_classes", config["num_classes"])
    names = config.get("label_names") or pretrained.get("label_names")
    described = {
        "architecture": f"timm:{config['architecture']}",
        "arch_args": arguments,
        "mean": pretrained.get("mean"),
        "std": pretrained.get("std"),
        "input_shape": pretrained.get("input_size") or [],
        "class_names": names if isinstance(names, list) else None,
    }
    return _validated(path / "config.json", described)


def _validated(path: Path, described: dict[str, Any]) -> Description:
    try:
        return Description.model_validate(described)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: its description of the network is not valid: {where} {first['msg']}") from error


def _transformers_class(contents: Contents) -> str | None:
    config = contents.metadata.get("config.json")
    classes = config.get("architectures") if isinstance(config, dict) and "architecture" not in config else None
    return str(classes[0])[:100] if isinstance(classes, list) and classes else None


def sha256_of(files: tuple[Path, ...]) -> str:
    """The SHA-256 of one file; for several files, the SHA-256 of their digests in order."""
    digests = [sha256_of_file(path) for path in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def write_checkpoint(path: str | Path, body: "nn.Module", description: Description, *, whole: bool = False) -> None:
    """Write a self-describing checkpoint of tensors and plain values, which weights_only=True can read.

    whole: the network is pickled instead of its weights, for one that was read from a pickle and that nothing else can build.
    """
    if whole:
        content: Any = {"network": deepcopy(body).cpu()}
    else:
        content = {"state_dict": {name: tensor.detach().cpu().clone() for name, tensor in body.state_dict().items()}}
    write_atomically(Path(path), {**description.model_dump(), **content})


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """torch.save to a temporary file and rename it, so that a reader finds the old file or the complete new one."""
    import torch

    target = Path(os.path.realpath(path))
    if is_irregular(target):
        raise CheckpointError(f"{path} is not a regular file; give a file name to write the checkpoint to")
    temporary = temporary_beside(target)
    try:
        torch.save(content, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
