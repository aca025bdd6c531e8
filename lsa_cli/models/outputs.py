"""The output of a network: the tensors in it by name, and the one that holds the logits."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from lsa_cli.errors import CheckpointError

NAMED_LOGITS = ("logits", "out", "output", "scores")


def named_tensors(output: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every floating tensor in the output of a network with its place: "1", "logits", "heads.0"; "" for the output itself."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield name, output
        return
    for part, item in _parts(output):
        yield from named_tensors(item, f"{name}.{part}" if name else part)


def _parts(output: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(output, Mapping):
        yield from ((str(key), value) for key, value in output.items())
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        yield from zip(output._fields, output, strict=True)
    elif isinstance(output, (tuple, list)):
        yield from ((str(number), value) for number, value in enumerate(output))
    elif dataclasses.is_dataclass(output):
        yield from ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))
    elif hasattr(output, "logits"):
        yield "logits", output.logits


def find_logits(output: Any, which: str | None = None) -> torch.Tensor:
    """The logits in the output of a network.

    which: the place of a tensor, as in `named_tensors`, or its number in that order. By default: the output itself, else
    the tensor that is named logits, else the first one of two dimensions. Raises CheckpointError where there is none.
    """
    if isinstance(output, torch.Tensor):
        return output
    found = dict(named_tensors(output))
    if which is not None:
        if which in found:
            return found[which]
        if which.isdecimal() and int(which) < len(found):
            return list(found.values())[int(which)]
        raise CheckpointError(f"--output-index {which}: the network returns {describe(found) or 'no tensors'}")
    for key in NAMED_LOGITS:
        named = [tensor for name, tensor in found.items() if key in name.split(".")]
        if named:
            return named[0]
    if found:
        return next((tensor for tensor in found.values() if tensor.ndim == 2), next(iter(found.values())))
    raise CheckpointError(
        f"the network returns {type(output).__name__}, in which lsa finds no logits; "
        "wrap it so that it returns an (N, K) tensor, a tuple or dict that holds one, or has .logits"
    )


def describe(found: Mapping[str, torch.Tensor]) -> str:
    """The outputs with the shape of one sample: "0 (2352), 1 (10)"."""
    return ", ".join(f"{name} {_shape(tensor)}" for name, tensor in found.items())


def _shape(tensor: torch.Tensor) -> str:
    if tensor.ndim > 1:
        return f"({', '.join(map(str, tensor.shape[1:]))})"
    return "(one number per sample)" if tensor.ndim else "(one number)"
