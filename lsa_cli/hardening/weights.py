"""Averages of weights (EMA, SWA) and adversarial weight perturbation (AWP)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lsa_cli import distributed
from lsa_cli.failures import backward_of_network

_SWA_START = 0.5  # of the training; averaging from the first step on would keep the start's bad weights
_AWP_TINY = 1e-20


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters and buffers of a network."""
    return copied(model.state_dict())


def copied(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies in contiguous layout, whatever the layout in training is."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in values.items()}


@torch.no_grad()
def blend(values: dict[str, torch.Tensor], model: nn.Module, share: float) -> None:
    """Move `values` by `share` of the way to the weights and floating buffers of the model. Counters are copied."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values[name].lerp_(tensor, share)
        else:
            values[name].copy_(tensor)


def training_mode(model: nn.Module) -> None:
    """Set training mode, except in modules whose parameters are all frozen, so that their running statistics stay."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


class Average:
    """An average of weights and floating buffers: "ema" (decay 0.999, shorter in the beginning) or "swa".

    SWA (arXiv 1803.05407) weighs every step of the second half of the training alike. EMA: a fixed decay.
    """

    def __init__(self, kind: str, model: nn.Module, decay: float = 0.999) -> None:
        self.kind, self.decay, self.count = kind, decay, 0
        self.values = weights_of(model)

    def update(self, model: nn.Module, progress: float) -> None:
        """Add the weights after a step to the average."""
        if self.kind == "swa" and progress < _SWA_START:
            new = 1.0
        else:
            self.count += 1
            new = 1 / self.count if self.kind == "swa" else 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        blend(self.values, model, new)

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "values": self.values}

    def restore(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        for name, tensor in state["values"].items():
            self.values[name].copy_(tensor)


@contextmanager
def adversarial_weights(model: nn.Module, loss: torch.Tensor, size: float) -> Iterator[None]:
    """A context in which each weight tensor is moved by `size` of its norm in the direction that raises the loss most.

    Adversarial weight perturbation (AWP, arXiv 2004.05884, eq. 8 and 10, one step). Tensors of one dimension (biases, norms)
    stay. loss: a sum over samples, so that all ranks move alike. The end takes the move back, so that the step of an
    optimizer within the context changes the original weights.
    """
    moved = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    with backward_of_network():
        gradients = torch.autograd.grad(loss, moved, allow_unused=True, materialize_grads=True)
    moves = []
    for parameter, gradient in zip(moved, distributed.summed(gradients), strict=True):
        moves.append(size * parameter.detach().norm() * gradient / (gradient.norm() + _AWP_TINY))
    with torch.no_grad():
        for parameter, move in zip(moved, moves, strict=True):
            parameter += move
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, move in zip(moved, moves, strict=True):
                parameter -= move
