"""The state of a training on disk. It is written completely or not at all, and only the same run may read it."""

import io
import json
from pathlib import Path
from typing import Any

import torch

from lsa_cli import distributed
from lsa_cli.auditing.journal import refuse_changes
from lsa_cli.errors import RunError, UsageError
from lsa_cli.models.checkpoint import write_atomically


def write_state(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write tensors and plain values. Raises RunError where the file cannot be written."""
    try:
        write_atomically(path, {**state, "identity": json.dumps(identity)})
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        raise RunError(f"the training state {path} cannot be written: {error}") from error


def refuse_another_start(path: Path, identity: dict[str, Any]) -> None:
    """Raise UsageError with the changes where `path` is the mark of another run."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--resume: {path} cannot be read ({error}); leave --resume out") from error
    refuse_changes(before, json.loads(json.dumps(identity)))


def refuse_without_state(path: Path) -> None:
    """Raise UsageError where there is nothing to resume."""
    if not path.is_file():
        raise UsageError(
            f"--resume: there is no interrupted training at {path}; leave --resume out, which starts over and replaces the result"
        )


def identity_in(path: Path) -> dict[str, Any]:
    """The identity of the training whose state this is. Raises UsageError where the file cannot be read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        identity: dict[str, Any] = json.loads(state["identity"])
    except Exception as error:
        raise _unreadable(path, error) from error
    return identity


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"--resume: {path} cannot be read ({type(error).__name__}); leave --resume out")


def read_state(path: Path, identity: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The state of the first rank, on every rank.

    Raises UsageError where there is none, or where it belongs to another run; the message names the changes.
    """
    distributed.first(lambda: refuse_without_state(path))
    try:
        content = distributed.first(path.read_bytes)
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        before = json.loads(state["identity"])
    except Exception as error:
        raise _unreadable(path, error) from error
    refuse_changes(before, json.loads(json.dumps(identity)))
    return state
