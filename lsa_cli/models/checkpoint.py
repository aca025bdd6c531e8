"""Checkpoint: what a model file says, and the Classifier it builds. Loading runs nothing of the file's own."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import nn

from lsa_cli.errors import CheckpointError, UsageError, is_plain
from lsa_cli.models import formats
from lsa_cli.models.architectures import build_architecture, runs_user_code
from lsa_cli.models.classifier import Classifier

FORMAT_VERSION = 1
# Where training scripts put the weights, the one to use first. Averaged (ema) weights are never taken unasked.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")


class Description(pydantic.BaseModel):
    """What a self-describing checkpoint says of itself, beside its weights: plain values only.

    A file is not trusted, so it may name networks and data sets that ship, and files beside it; it may not
    name Python code.
    """

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    lsa_checkpoint: int = FORMAT_VERSION
    architecture: str
    arch_args: dict[str, Any] = {}
    mean: list[float] | None = None
    std: list[float] | None = None
    input_shape: list[int] = []
    input_range: tuple[float, float] | None = (0.0, 1.0)
    class_names: list[str] | None = None
    output: str = "logits"
    data: str | None = None
    data_name: str | None = None
    norm: str | None = None
    eps: float | None = None
    clean_accuracy: float | None = None
    history: list[dict[str, Any]] = []

    @pydantic.model_validator(mode="after")
    def _trusts_no_code(self) -> "Description":
        if self.lsa_checkpoint != FORMAT_VERSION:
            raise ValueError(f"is of version {self.lsa_checkpoint}; this lsa reads version {FORMAT_VERSION}")
        if runs_user_code(self.architecture):
            raise ValueError(f"names Python code as its architecture ({self.architecture}); give it with --arch")
        if (self.mean is None) != (self.std is None):
            raise ValueError("has a mean without a std, or the reverse")
        if self.input_range is not None and self.input_range[0] >= self.input_range[1]:
            raise ValueError(f"has an input range from {self.input_range[0]:g} to {self.input_range[1]:g}")
        if not is_plain([self.arch_args, self.history]):
            raise ValueError("holds values in arch_args or history that are not plain finite numbers and text")
        return self


@dataclass(frozen=True)
class Checkpoint:
    """A model file, read: weights, what the file says of itself, and what had to be done to read it."""

    path: Path
    format: str
    sha256: str
    size: int
    state_dict: dict[str, torch.Tensor]
    description: Description | None = None
    notes: tuple[str, ...] = field(default=())


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a model file; every tensor lands on the CPU, half precision becomes float32 (noted).

    Raises CheckpointError, saying what the file is instead, when it holds no weights that can be read safely.
    """
    path = Path(path)
    kind = formats.sniff(path)
    content = formats.read(path, kind)
    description = None
    if isinstance(content, Mapping) and "lsa_checkpoint" in content:
        described = {key: value for key, value in content.items() if key != "state_dict"}
        try:
            description = Description.model_validate(described)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CheckpointError(f"{path}: its own description is not valid: {where} {first['msg']}") from error
    notes: list[str] = []
    state_dict = _find_state_dict(path, content, notes)
    halves = {
        str(t.dtype).removeprefix("torch.") for t in state_dict.values() if t.dtype in (torch.half, torch.bfloat16)
    }
    if halves:
        state_dict = {
            name: tensor.float() if tensor.dtype in (torch.half, torch.bfloat16) else tensor
            for name, tensor in state_dict.items()
        }
        notes.append(f"weights stored as {', '.join(sorted(halves))} were widened to float32")
    return Checkpoint(path, kind, _sha256(path), path.stat().st_size, state_dict, description, tuple(notes))


def _find_state_dict(path: Path, content: Any, notes: list[str]) -> dict[str, torch.Tensor]:
    """The dictionary of tensors in what was read, at the top or under one of the usual names."""
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
        if tensors and len(tensors) >= 0.9 * len(content):
            return tensors
        inner = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            keys = ", ".join(str(key) for key in list(content)[:8])
            raise CheckpointError(
                f"{path}: no weights found under {', '.join(_WRAPPERS)}; the file holds {keys or 'nothing'}"
            )
        if inner != "state_dict":
            notes.append(f"weights taken from the entry '{inner}'")
        content = content[inner]
    raise CheckpointError(
        f"{path} holds {type(content).__name__}, not a dictionary of weights; save model.state_dict() with torch.save"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checkpoint(path: str | Path, body: nn.Module, description: Description) -> None:
    """Write a self-describing checkpoint: tensors and plain values, readable with weights_only=True."""
    weights = {name: tensor.detach().cpu().clone() for name, tensor in body.state_dict().items()}
    formats.write_atomically(Path(path), {**description.model_dump(), "state_dict": weights})


def load_classifier(
    checkpoint: Checkpoint,
    *,
    arch: str | None,
    arch_args: dict[str, Any],
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None,
    class_names: list[str] | None,
    output: str,
) -> tuple[Classifier, list[str]]:
    """Build the architecture, load the weights strictly, wrap both; also what had to be done (notes).

    Raises UsageError without an architecture, CheckpointError when the weights do not fit it.
    """
    if arch is None:
        raise UsageError(
            f"{checkpoint.path} holds weights only: name the network with --arch torchvision:resnet18, "
            "pkg.mod:factory or path/to/file.py:factory"
        )
    notes = list(checkpoint.notes)
    arguments = dict(arch_args)
    if arch.startswith("torchvision:") and "num_classes" not in arguments and checkpoint.state_dict:
        width = _width_of_last_layer(arch, arguments, checkpoint.state_dict)
        if width is not None:
            arguments["num_classes"] = width
            notes.append(f"num_classes={width} read from the width of the last layer")
    body = build_architecture(arch, arguments)
    load_strictly(body, checkpoint.state_dict, f"{checkpoint.path} and {arch}", notes)
    return Classifier(body.float(), normalization, class_names, output), notes


def _width_of_last_layer(arch: str, arguments: dict[str, Any], state_dict: Mapping[str, torch.Tensor]) -> int | None:
    """Rows of the architecture's last tensor in the file: found by name, since safetensors keeps no order."""
    with torch.device("meta"):
        last = next(reversed(build_architecture(arch, arguments).state_dict()), "")
    return next((len(t) for n, t in state_dict.items() if t.ndim and (n == last or n.endswith(f".{last}"))), None)


def load_strictly(body: nn.Module, state_dict: dict[str, torch.Tensor], where: str, notes: list[str]) -> None:
    """Load weights whose names and shapes must all fit, after stripping prefixes that wrappers add.

    The one thing that may be absent is BatchNorm's step counter, which evaluation does not use.
    """
    expected = body.state_dict()
    fitted, stripped = _strip_prefixes(state_dict, expected)
    if stripped:
        notes.append(f"prefix '{stripped}' removed from the names of the weights")
    counters = [name for name in expected if name.endswith("num_batches_tracked") and name not in fitted]
    if counters:
        fitted = {**fitted, **{name: expected[name] for name in counters}}
        notes.append(f"{len(counters)} BatchNorm step counters are absent; evaluation does not use them")
    missing = [name for name in expected if name not in fitted]
    unexpected = [name for name in fitted if name not in expected]
    wrong = [name for name in expected if name in fitted and fitted[name].shape != expected[name].shape]
    problems = []
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            problems.append(f"{len(names)} {what} (first: {', '.join(names[:3])})")
    if wrong:
        shown = ", ".join(f"{n} is {tuple(fitted[n].shape)}, should be {tuple(expected[n].shape)}" for n in wrong[:3])
        problems.append(f"{len(wrong)} of another shape ({shown})")
    if problems:
        raise CheckpointError(f"{where} do not fit: {'; '.join(problems)}; is this the right --arch and --arch-args?")
    infinite = [n for n, t in fitted.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if infinite:
        raise CheckpointError(
            f"{where}: {len(infinite)} tensors hold NaN or infinity (first: {infinite[0]}); the training diverged, "
            "take an earlier checkpoint"
        )
    body.load_state_dict(fitted, strict=True)


def _strip_prefixes(
    state_dict: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], str]:
    """The renaming, of up to three prefixes removed, under which most names and shapes fit."""

    def score(candidate: Mapping[str, torch.Tensor]) -> int:
        return sum(1 for n, t in candidate.items() if n in expected and expected[n].shape == t.shape)

    best, best_prefix, current, removed = state_dict, "", state_dict, ""
    for _ in range(3):
        prefix = next((p for p in _PREFIXES if current and all(name.startswith(p) for name in current)), None)
        if prefix is None:
            break
        current = {name.removeprefix(prefix): tensor for name, tensor in current.items()}
        removed += prefix
        if score(current) > score(best):
            best, best_prefix = current, removed
    return best, best_prefix
