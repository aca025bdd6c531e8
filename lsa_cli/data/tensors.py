"""Images and labels that torch.save has written: a pair of tensors, or tensors by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsa_cli.data.arrays import named_arrays
from lsa_cli.data.base import DATA_SOURCES, LabelledData, SourceRequest, Traits, check_file, with_traits
from lsa_cli.errors import DataError, summary_of


@DATA_SOURCES.register("torch")
@with_traits(Traits(suffixes=(".pt", ".pth")))
def open_tensors(request: SourceRequest) -> LabelledData:
    """torch:FILE.pt[?x=NAME&y=NAME]: a pair (images, labels), or a dict with names as in npz:FILE, from torch.save; no code runs."""
    request.allow("torch", "x", "y")
    spec = f"torch:{request.location}"
    check_file(Path(request.location), spec)
    try:
        found = torch.load(request.location, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader can raise anything for a damaged file
        raise DataError(
            f"{spec} is damaged, or holds more than tensors, which could run code; save images and labels alone: "
            "torch.save((x, y), 'data.pt')"
        ) from error
    arrays = {name: _array(item, name, spec) for name, item in _by_name(found, spec).items()}
    return named_arrays(arrays, list(arrays), request, spec)


_LONGEST = 150  # of what is quoted in an error


def _by_name(found: Any, spec: str) -> dict[str, Any]:
    if isinstance(found, (tuple, list)) and len(found) == 2:
        return {"x": found[0], "y": found[1]}
    if isinstance(found, Mapping):
        return {str(name): item for name, item in found.items() if isinstance(item, (torch.Tensor, np.ndarray, list))}
    what = f"a {type(found).__name__}" + (f" of {len(found)}" if isinstance(found, (tuple, list)) else "")
    raise DataError(f"{spec} holds {what}; save images and labels: torch.save((x, y), 'data.pt')")


def _array(item: Any, name: str, spec: str) -> np.ndarray:
    try:
        tensor = torch.as_tensor(item).detach()
        return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{spec}: {name} is no array of numbers: {summary_of(error)[:_LONGEST]}") from error
