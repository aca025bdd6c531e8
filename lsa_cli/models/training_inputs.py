"""What BatchNorm remembers of the inputs of a training: mean and variance of its own inputs, which a normalisation changes."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.models.classifier import Classifier, Normalization, with_normalization

_SHIFTS = (0, 2, 4)  # pixels that images are moved by in training, with a black border
_FITS = 0.003  # of the divergence below: so much comes from the last batches alone (our choice)
_APART = 3.0  # times the divergence of the best: another normalisation does not fit (our choice)
_NUMBERS = 1_300_000  # input numbers that are tried
_MOST = 400  # images


class _Reached(Exception):
    pass


def remembered(classifier: Classifier, tried: Mapping[str, Normalization], images: torch.Tensor) -> str | None:
    """The one of the normalisations whose inputs the first BatchNorm remembers; None where that is not certain.

    images (n, C, H, W) in [0, 1]. Each normalisation is tried on the images as they are and moved by some pixels. The
    measure is the mean over channels of the Kullback-Leibler divergence between two normal distributions, of the running
    mean and variance and of those of the images. The best one must fit, and the next one must be far (our choice): under
    other augmentations and adversarial training none fits.
    """
    norm = next((module for module in classifier.body.modules() if _remembers(module)), None)
    if norm is None or images.ndim != 4:
        return None
    images = images[: min(_MOST, max(1, _NUMBERS // images[0].numel()))]
    inputs = [moved(images, shift) for shift in _SHIFTS]
    found = sorted(
        (min(_divergence(with_normalization(classifier, one), norm, x) for x in inputs), option)
        for option, one in tried.items()
    )
    (best, option), others = found[0], found[1:]
    return option if best < _FITS and all(other > _APART * best for other, _ in others) else None


def _remembers(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def moved(images: torch.Tensor, shift: int) -> torch.Tensor:
    """Each image moved by up to so many pixels in each direction, with a black border, as RandomCrop with padding does."""
    if not shift:
        return images
    generator = torch.Generator().manual_seed(0)
    height, width = images.shape[2:]
    wide = F.pad(images, [shift] * 4)
    corners = torch.randint(0, 2 * shift + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack(
        [one[:, top : top + height, left : left + width] for one, (top, left) in zip(wide, corners, strict=True)]
    )


def _divergence(classifier: Classifier, norm: nn.Module, images: torch.Tensor) -> float:
    """Infinity where the network fails before `norm` is reached, or is not finite."""
    reached: list[torch.Tensor] = []

    def stop(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        reached.append(inputs[0].detach().double())
        raise _Reached

    handle = norm.register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            classifier.body(classifier.prepare(images))
    except Exception:  # of the user's code; `_Reached` is the usual end
        pass
    finally:
        handle.remove()
    if not reached:
        return float("inf")
    mean = reached[0].mean((0, 2, 3))
    off = reached[0] - mean[:, None, None]
    variance = off.square().sum((0, 2, 3)) / (off[:, 0].numel() - 1)  # torch.var takes many times longer
    old_mean, old_variance = norm.running_mean.double(), norm.running_var.double()
    ratio = old_variance / variance
    divergence = 0.5 * ((old_mean - mean) ** 2 / variance + ratio - 1 - ratio.log())
    return float(divergence.mean().nan_to_num(float("inf"), float("inf")))
