"""How far a network is from a minimum of its training loss: a score test on labelled images.

Training ends near a minimum, where the mean gradient of the loss is about zero. The same weights in another forward pass, as
with another activation or normalisation, are at no minimum. This is the score test of Rao (1948), here with a variance for
each parameter alone; that it is applied to units is our choice.
"""

import torch
from torch import nn

from lsa_cli.models.classifier import as_logits

# Unrest of a network that was trained: at most 16 was seen of the true one.
AT_REST = 30.0
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
_WEIGHTED = (nn.Linear, nn.Conv2d)
_BATCH = 32
_CONSTANT = 1e-20  # variance of a derivative that is always 0


def unrest(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """x (n, ...), y (n,) -> the mean over parameters of n * mean^2 / variance of the derivatives of the cross-entropy.

    The parameters are bias and scale of each unit: of a norm, and of a layer that has no norm behind it. About 1 at a
    minimum for images of the training distribution; 0.0 where no derivative varies.
    """
    found: list[list[torch.Tensor]] = []
    for part, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
        found.append(_derivatives(network, part, labels))
    each = torch.cat([torch.cat(several) for several in zip(*found, strict=True)], dim=1).double()
    mean = each.mean(0)
    variance = (each - mean).square().sum(0) / max(1, len(each) - 1)  # torch.var_mean takes many times longer
    varies = variance > _CONSTANT
    return float((len(each) * mean[varies] ** 2 / variance[varies]).mean()) if bool(varies.any()) else 0.0


def _derivatives(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """For each place with units (n, 2 * units): the derivatives of each image's loss by bias and scale."""
    outputs: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if isinstance(module, _NORMS):  # scale and bias of the layer before it are those of the norm
            for other in [other for other, made in outputs.items() if made is inputs[0]]:
                del outputs[other]
        if not output.requires_grad:
            output = output.detach().requires_grad_(True)
        output.retain_grad()
        outputs[module] = output
        return output

    hooks = [
        module.register_forward_hook(keep) for module in network.modules() if isinstance(module, (*_WEIGHTED, *_NORMS))
    ]
    try:
        with torch.enable_grad():
            scores = as_logits(network(x), len(x))
            nn.functional.cross_entropy(scores, y, reduction="sum").backward()
    finally:
        for hook in hooks:
            hook.remove()
    places = []
    for output in outputs.values():
        if output.grad is not None:
            slope, value = (
                part.flatten(2) if part.ndim > 2 else part[..., None] for part in (output.grad, output.detach())
            )
            places.append(torch.cat([slope.sum(2), (slope * value).sum(2)], 1))
    return places
