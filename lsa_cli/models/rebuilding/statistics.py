"""The running statistics of BatchNorm as evidence: they are those of the training images, in the network that was trained."""

from collections.abc import Callable

import torch
from torch import nn

_LARGEST = 20.0  # nats


def running_misfit(network: nn.Module, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """What `run` returns, and how far the statistics that BatchNorms see during it are from their running ones.

    run: a forward pass of the network. The distance is the Kullback-Leibler divergence of two normal distributions, in nats,
    the median over the channels of a layer, because channels that are nearly always 0 differ by chance, and the mean over
    layers; 0.0 without BatchNorm.
    """
    found: list[float] = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(_divergence(inputs[0], module.running_mean, module.running_var))

    hooks = [
        module.register_forward_pre_hook(look)
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    try:
        with torch.no_grad():
            logits = run()
    finally:
        for hook in hooks:
            hook.remove()
    return logits, sum(found) / len(found) if found else 0.0


def _divergence(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> float:
    """x (n, C, ...), mean (C,), var (C,) -> KL(N(mean of x, variance of x) || N(mean, var))."""
    axes = [0, *range(2, x.ndim)]
    own_mean = x.float().mean(axes)
    # In two passes: torch.var_mean takes many times longer for images.
    own_var = (x.float() - own_mean.reshape(-1, *[1] * (x.ndim - 2))).square().mean(axes)
    tiny = 1e-5
    ratio = (own_var + tiny) / (var + tiny)
    each = 0.5 * (ratio - 1 - ratio.log() + (own_mean - mean) ** 2 / (var + tiny))
    return float(each.nan_to_num(_LARGEST, _LARGEST).clamp(0, _LARGEST).median())
