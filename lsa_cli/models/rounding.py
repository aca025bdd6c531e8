"""The activations of a quantised network, rounded in the float network that has its weights."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from lsa_cli.models.checkpoint import Checkpoint

_LAST = 255  # of the whole numbers that activations have in torch's quantised networks
_LAST_DYNAMIC = 127  # where the range is measured on each batch


class Rounding(NamedTuple):
    """How the outputs of a module are rounded. of_input: it is a module of its own, as in front of the network."""

    scale: float
    zero_point: int
    of_input: bool = False

    @property
    def is_dynamic(self) -> bool:
        """Whether torch measures the range of the inputs on each batch; it then stores these numbers."""
        return (self.scale, self.zero_point, self.of_input) == (1.0, 0, False)


def roundings_of(checkpoint: Checkpoint) -> dict[str, Rounding]:
    """The roundings that a file holds. A module that only rounds stores them as lists of one number, others as numbers."""
    found = {}
    for name, (scale, zero_point) in checkpoint.weights.roundings.items():
        step, zero = (float(checkpoint.load(one).float()) for one in (scale, zero_point))
        if math.isfinite(step) and step > 0 and zero in range(_LAST + 1):  # others belong to no activation of torch
            found[name] = Rounding(step, int(zero), of_input=bool(scale.shape))
    return found


def is_rectified(checkpoint: Checkpoint) -> bool:
    """Whether all hidden activations of a quantised network have no negative values: torch puts ReLU into the layer before
    it, and no other activation. The range of the values is that of a calibration, and begins at the zero point."""
    several = [one for one in roundings_of(checkpoint).values() if not one.of_input]
    return len(several) > 2 and not any(one.is_dynamic or one.zero_point for one in several[:-1])


@contextmanager
def rounded(body: nn.Module, roundings: Mapping[str, Rounding]) -> Iterator[int]:
    """A context in which the activations are rounded; its value is the number of roundings that were placed.

    roundings: by the names of their modules. A rounding of the input has no module here, and is placed in front of the network
    if there is one alone. Sums of quantised networks have no module either, and stay as they are.
    """
    handles, modules = [], dict(body.named_modules())
    inputs = [one for one in roundings.values() if one.of_input]
    if len(inputs) == 1:
        handles.append(body.register_forward_pre_hook(lambda module, x: (_round(x[0], inputs[0]), *x[1:])))
    for name, rounding in roundings.items():
        module = next((found for own, found in modules.items() if own and f".{name}".endswith(f".{own}")), None)
        if module is None or rounding.of_input:
            continue
        if rounding.is_dynamic:
            handles.append(module.register_forward_pre_hook(lambda module, x: (_round(x[0], _measured(x[0])), *x[1:])))
        else:
            handles.append(
                module.register_forward_hook(lambda module, x, out, rounding=rounding: _round(out, rounding))
            )
    try:
        yield len(handles)
    finally:
        for handle in handles:
            handle.remove()


def _round(x: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, rounding.scale, rounding.zero_point, 0, _LAST)


def _measured(x: torch.Tensor) -> Rounding:
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (high - low) / _LAST_DYNAMIC or 1.0
    return Rounding(scale, round(-low / scale))
