"""The usual normalisations of images, and those that are tried where nobody says which one a network was trained with."""

from collections.abc import Iterable

import numpy as np
import torch

from lsa_cli.models.classifier import PRESETS, Normalization, parse_input_range, parse_normalize, rescaled

_COARSE = ("none", "0.5/0.5")
_RANGES = ("0,1", "0,255", "-1,1")
# Normalisations that training scripts use for CIFAR-10 and CIFAR-100 beside the presets. The standard deviation of the
# first one is the mean over the images of the deviation within each image (kuangliu/pytorch-cifar).
_COPIED = ("0.4914,0.4822,0.4465/0.2023,0.1994,0.201", "0.5071,0.4867,0.4408/0.2675,0.2565,0.2761")
# Normalisations of mean and std that differ by less, in standard deviations, are one: means of two samples of a data set
# differ as much (our choice).
_SAME_MEAN, _SAME_STD = 0.05, 0.05
_SCALE = 1.5  # times, for `has_same_scale`
_UNUSUAL, _RARER = 1.0, 0.5  # cost


def usual_normalizations(channels: int) -> dict[str, Normalization]:
    """Normalisations of images in [0, 1], by the options that select them; each once, under its shortest name.

    None, every preset for so many channels, and 0.5/0.5, each for inputs in [0, 1], [0, 255] and [-1, 1].
    """
    names = ["none", *(name for name, (mean, _) in PRESETS.items() if len(mean) == channels), "0.5/0.5"]
    found: dict[str, Normalization] = {}
    for range_text in _RANGES:
        scale = parse_input_range(range_text)
        for name in names:
            numbers = "/".join(",".join(map(str, part)) for part in PRESETS[name]) if name in PRESETS else name
            option, also = (name, "") if scale == (0.0, 1.0) else (numbers, f" --input-range {range_text}")
            normalization = rescaled(parse_normalize(option, scale), scale)
            if not any(is_same(normalization, known, channels) for known in found.values()):
                found[f"--normalize {option}{also}"] = normalization
    return found


def is_same(one: Normalization, other: Normalization, channels: int) -> bool:
    """Whether two normalisations of images with so many channels are equal, to the third digit."""
    (mean, std), (other_mean, other_std) = _numbers(one, channels), _numbers(other, channels)
    return bool(
        np.allclose(mean, other_mean, rtol=1e-3, atol=1e-6) and np.allclose(std, other_std, rtol=1e-3, atol=1e-6)
    )


def has_same_scale(one: Normalization, other: Normalization) -> bool:
    """Whether two normalisations have about the same scale (our choice). With another one, the same change of an image moves the
    logits farther, so that networks that answer alike on images differ under attack."""
    scales = [1.0 if each is None else float(np.mean(each[1])) for each in (one, other)]
    return max(scales) <= _SCALE * min(scales)


def normalizations_to_try(images: torch.Tensor, said: str | None) -> dict[str, Normalization]:
    """Usual normalisations and the images' own mean and std, by the options that select them.

    images (n, C, H, W) in [0, 1]. said: what the file holds, as MEAN/STD. The images' own mean and std is left out where a
    preset for inputs in [0, 1] is as near as two samples of a data set are. Grey images in three channels have the presets of
    grey ones, and that of ImageNet, with which many networks are trained first.
    """
    channels = images.shape[1]
    is_grey = channels == 3 and bool((images == images[:, :1]).all())
    found = dict(usual_normalizations(1 if is_grey else channels))
    if is_grey:
        found["--normalize imagenet"] = PRESETS["imagenet"]
    elif channels == 3:
        found.update({f"--normalize {text}": parse_normalize(text) for text in _COPIED})
    own = own_normalization(images)
    if own is not None and not any(_is_near(own, known, channels) for known in found.values()):
        found[f"--normalize {_text(own)}"] = own
    if said is not None:
        normalization = parse_normalize(said)
        found = {name: value for name, value in found.items() if not is_same(value, normalization, channels)}
        found = {f"--normalize {said}": normalization, **found}
    return found


def coarse(options: Iterable[str]) -> list[str]:
    """Three normalisations, to one of which every other one is similar; the first one where all are for another range."""
    names = list(options)
    found = [name for name in names if name.removeprefix("--normalize ") in _COARSE]
    others = [name for name in names if name not in found and "--input-range" not in name]
    return [*found, *others[:1]] or names[:1]


def cost_of(option: str, data_name: str) -> float:
    """How unusual a normalisation is: 1, 0.5 or 0 (our choice).

    Unusual are a preset for another data set than the one of this name, and mean and std in another range than [0, 1]. For
    Fashion-MNIST that of MNIST is usual, because training scripts keep it. Images in [0, 255] cost 0.5, because most
    training scripts scale them.
    """
    key = data_name.lower().replace("-", "").replace("_", "")
    own = {"mnist": ("mnist",), "fashionmnist": ("mnist", "fashion-mnist")}.get(key)
    preset = option.removeprefix("--normalize ")
    is_of_others = own is not None and preset in PRESETS and preset not in own
    is_scaled_twice = "--input-range" in option and not preset.startswith("none")
    if is_of_others or is_scaled_twice:
        return _UNUSUAL
    return _RARER if "--input-range" in option else 0.0


def own_normalization(images: torch.Tensor) -> Normalization:
    """Mean and std of each channel of images (n, C, H, W), to four digits; None where a channel is constant."""
    mean, std = images.double().mean((0, 2, 3)), images.double().std((0, 2, 3))
    if not bool((std > 1e-3).all()):
        return None
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def _text(normalization: Normalization) -> str:
    assert normalization is not None
    return "/".join(",".join(f"{number:g}" for number in part) for part in normalization)


def _numbers(normalization: Normalization, channels: int) -> tuple[np.ndarray, np.ndarray]:
    mean, std = normalization if normalization is not None else ((0.0,), (1.0,))
    one, other = (np.broadcast_to(np.asarray(part, dtype=float), channels) for part in (mean, std))
    return one, other


def _is_near(own: Normalization, other: Normalization, channels: int) -> bool:
    (mean, std), (other_mean, other_std) = _numbers(own, channels), _numbers(other, channels)
    return bool(
        (np.abs(mean - other_mean) < _SAME_MEAN * std).all() and (np.abs(other_std / std - 1) < _SAME_STD).all()
    )
