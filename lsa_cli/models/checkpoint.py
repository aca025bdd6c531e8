"""Checkpoint: the content of a model file, read without running any of its code; and writing of self-describing files."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from lsa_cli.errors import CheckpointError, UsageError, is_plain
from lsa_cli.files import is_irregular, temporary_beside
from lsa_cli.models.claims import claim
from lsa_cli.models.formats import Contents, open_contents
from lsa_cli.models.pickles.modules import is_module, tensors_of
from lsa_cli.models.pickles.symbols import Call, TensorSpec
from lsa_cli.registry import SHIPPED, unknown

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT_VERSION = 1
# Where training scripts put the weights, the one to use first.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module", "state")
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa)|averaged|(Ema|EMA|SWA)")
_NOT_WEIGHTS = ("optim", "sched", "scaler", "callback", "loops", "hparam", "hyper_param", "args", "config", "rng")
_DEEPEST = 5


class Description(pydantic.BaseModel):
    """The description in a self-describing checkpoint, beside its weights: plain values only.

    A file is not trusted, so it may name networks and data sets that ship, and files beside it; it may not
    name Python code: architecture is "" where the network is the user's own code, which --arch names.
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
class Weights:
    """One set of weights in a file: the keys that lead to it, its tensors, and the module that it was pickled in, if any."""

    keys: tuple[str, ...]
    tensors: dict[str, TensorSpec]
    module: Call | None = None

    @property
    def place(self) -> str:
        return ".".join(self.keys)

    @property
    def is_averaged(self) -> bool:
        return _AVERAGED.search(self.place) is not None

    @property
    def parameters(self) -> int:
        """Number of parameters, by their names. A tensor under several names counts once."""
        return sum(spec.numel for spec in {spec for name, spec in self.tensors.items() if is_parameter(name, spec)})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: spec.shape for name, spec in self.tensors.items()}


# What no optimizer trains: BatchNorm's buffers and AveragedModel's counter. Names do not show other buffers.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "n_averaged")


def is_parameter(name: str, spec: TensorSpec) -> bool:
    return "float" in spec.dtype and name.rpartition(".")[2] not in _BUFFERS


@dataclass(frozen=True)
class Checkpoint:
    """The content of a model file: its weights, its description, and notes on choices that were made.

    compare: as in `Contents`. claimed_accuracy: as `claim` returns it. transformers_class: the class of a Hugging Face
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


def read_checkpoint(path: str | Path, weights: str | None = None) -> Checkpoint:
    """Read the headers of a model file or folder. Tensors are read later.

    weights: which of several sets, by its place in the file ("model_ema", "0"), or by the start of the names of its
    weights ("student"). Raises CheckpointError when the file holds no weights that can be read safely, UsageError for an
    unknown set.
    """
    path = Path(path)
    contents = open_contents(path)
    found = find_weights(contents.root)
    notes: list[str] = []
    chosen = choose(path, contents, found, weights, notes)
    description = describe(path, contents)
    return Checkpoint(
        path, contents.format, sha256_of(contents.files), sum(file.stat().st_size for file in contents.files),
        chosen, contents.load, contents.compare, contents.globals, description, claim(contents.root, contents.peek), tuple(notes), _transformers_class(contents),
    )  # fmt: skip


def describe(path: Path, contents: Contents) -> Description | None:
    """The description in the file: that of lsa, or config.json of a timm or Hugging Face folder; None where there is none."""
    root = contents.root
    if isinstance(root, dict) and "lsa_checkpoint" in root:
        described = {key: value for key, value in root.items() if key != "state_dict"}
        try:
            return Description.model_validate(described)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CheckpointError(f"{path}: its own description is not valid: {where} {first['msg']}") from error
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
    try:
        return Description(
            architecture=f"timm:{config['architecture']}",
            arch_args=arguments,
            mean=pretrained.get("mean"),
            std=pretrained.get("std"),
            input_shape=pretrained.get("input_size") or [],
            class_names=names if isinstance(names, list) else None,
        )
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path}/config.json: {first['loc'][0]} {first['msg']}") from error


def _transformers_class(contents: Contents) -> str | None:
    config = contents.metadata.get("config.json")
    classes = config.get("architectures") if isinstance(config, dict) and "architecture" not in config else None
    return str(classes[0])[:100] if isinstance(classes, list) and classes else None


def find_weights(root: Any) -> list[Weights]:
    """All sets of weights in a file, in order. Tensors of an optimizer are not weights."""
    return list(_find(root, (), set()))


def _find(value: Any, place: tuple[str, ...], seen: set[int]) -> Iterator[Weights]:
    if len(place) > _DEEPEST or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Call):
        tensors = tensors_of(value)
        if tensors or is_module(value):
            yield Weights(place, tensors, value)
            return
        value = dict(value.items) if value.items and all(_is_pair(item) for item in value.items) else None
    if not isinstance(value, (dict, list, tuple)):
        return
    entries = list(value.items() if isinstance(value, dict) else enumerate(value))
    tensors = {str(key): item for key, item in entries if isinstance(item, TensorSpec)}
    if len(tensors) < sum(isinstance(item, TensorSpec) for _, item in entries):
        raise CheckpointError(
            f"two weights in '{'.'.join(place)}' have the same name, once as a number and once as text; refused"
        )
    if isinstance(value, dict) and tensors and len(tensors) >= 0.9 * len(entries):
        yield Weights(place, tensors)
        return
    for key, item in entries[:10_000]:
        name = str(key)
        if not any(word in name.lower() for word in _NOT_WEIGHTS):
            yield from _find(item, (*place, name), seen)


def _is_pair(item: Any) -> bool:
    """Whether an item of an object is an entry of a dictionary: a user's class can extend dict."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


def choose(path: Path, contents: Contents, found: list[Weights], wanted: str | None, notes: list[str]) -> Weights:
    """The set of weights called `wanted`, else the one in the usual place. The reason is added to `notes`.

    Raises CheckpointError when there is none, UsageError when several could be meant.
    """
    places = [weights.place or "(top)" for weights in found]
    if wanted is not None:
        exact = [weights for weights in found if wanted in (weights.place, *weights.keys[-1:])]
        exact = exact or [part for weights in found if (part := _under(weights, wanted)).tensors]
        if len(exact) != 1:
            raise UsageError(f"--weights: {unknown('set of weights in ' + str(path), wanted, places)}")
        notes.append(f"weights taken from '{wanted}', as asked")
        return exact[0]
    if not found:
        raise CheckpointError(_no_weights(path, contents))
    plain = [weights for weights in found if not weights.is_averaged]
    chosen = _by_wrapper(plain or found)
    if chosen is None:
        raise UsageError(f"{path} holds several sets of weights; choose one with --weights: {', '.join(places)}")
    if chosen.place and chosen.place != "state_dict":
        notes.append(f"weights taken from the entry '{chosen.place}'")
    averaged = [weights.place for weights in found if weights.is_averaged and weights is not chosen]
    if averaged:
        notes.append(f"averaged weights stand beside them: --weights {averaged[0]}")
    return chosen


def _under(weights: Weights, start: str) -> Weights:
    """The weights whose names start with `start` and a dot, under the rest of their names."""
    names = {name: spec for name, spec in weights.tensors.items() if name.startswith(f"{start}.")}
    return Weights((*weights.keys, start), {name.removeprefix(f"{start}."): spec for name, spec in names.items()})


def _by_wrapper(candidates: list[Weights]) -> Weights | None:
    """The only set, the one at the top, or the first under one of the usual names."""
    if len(candidates) == 1:
        return candidates[0]
    for wrapper in ("", *_WRAPPERS):
        named = [weights for weights in candidates if (weights.keys or ("",))[0] == wrapper]
        if len(named) == 1:
            return named[0]
    return None


def _no_weights(path: Path, contents: Contents) -> str:
    root = contents.root
    if contents.format == "pickle":
        names = ", ".join(contents.globals[:5]) or "nothing"
        return (
            f"{path} is a bare pickle, which could run any code when read (it would import {names}); save "
            "model.state_dict() with torch.save instead"
        )
    if contents.format == "torchscript":
        return f"{path} is a frozen program: its weights are constants of the code; save the model before freezing"
    if isinstance(root, dict):
        keys = ", ".join(str(key) for key in list(root)[:8])
        return f"{path}: no weights found under {', '.join(_WRAPPERS)}; the file holds {keys or 'nothing'}"
    what = root.class_name if isinstance(root, Call) else type(root).__name__
    return f"{path} holds {what}, not a dictionary of weights; save model.state_dict() with torch.save"


def sha256_of(files: tuple[Path, ...]) -> str:
    """The SHA-256 of one file; for several files, the SHA-256 of their digests in order."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def write_checkpoint(path: str | Path, body: "nn.Module", description: Description) -> None:
    """Write a self-describing checkpoint of tensors and plain values, which weights_only=True can read."""
    weights = {name: tensor.detach().cpu().clone() for name, tensor in body.state_dict().items()}
    write_atomically(Path(path), {**description.model_dump(), "state_dict": weights})


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
