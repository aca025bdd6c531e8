"""Recipe: the settings of the optimizer, their defaults for each kind of input, and the weights that train."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lsa_cli.attacks.threat import Threat, make_threat
from lsa_cli.errors import UsageError
from lsa_cli.hardening.schedules import SCHEDULES
from lsa_cli.layers import plain_name
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.precision import multiplies_bfloat16
from lsa_cli.settings import HardenSettings


@dataclass(frozen=True)
class Recipe:
    """The settings of the optimizer.

    lr: the highest learning rate. warmup: share of the training in which eps and gamma rise. clip: largest norm of a
    gradient (0: no limit). average: none, ema or swa. amp: compute in bfloat16 where autocast supports it.
    """

    epochs: int
    lr: float
    optimizer: str
    weight_decay: float
    schedule: str
    batch_size: int
    warmup: float
    clip: float
    label_smoothing: float
    average: str
    amp: bool
    augment: str
    awp: float


# All numbers are our choice; benchmarks/RESULTS.md has what those for grey images reach on the MNIST sample.
_VECTORS = Recipe(
    epochs=30, lr=1e-3, optimizer="adam", weight_decay=0.0, schedule="one-cycle", batch_size=128, warmup=0.3, clip=0.0,
    label_smoothing=0.0, average="none", amp=False, augment="none", awp=0.0,
)  # fmt: skip
_GREY_IMAGES = replace(_VECTORS, epochs=42, lr=2e-3, average="ema", augment="shift")
_COLOUR_IMAGES = replace(
    _VECTORS, epochs=10, lr=0.02, optimizer="sgd", weight_decay=5e-4, schedule="cosine", augment="crop-flip"
)

# Part of what makes the recipe for grey images more robust than earlier ones (benchmarks/RESULTS.md). Near 0.5, where any image
# can become grey, no network learns: the larger radius is at most 0.4 of the input range, unless eps is larger.
_WIDER, _WIDEST = 1.1, 0.4

# With fewer updates, networks for grey images gain from a larger learning rate (benchmarks/RESULTS.md).
_FEW_UPDATES, _FASTER = 4000, 2.0

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], Recipe], torch.optim.Optimizer]] = {
    "adam": lambda parameters, recipe: torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay),
    "adamw": lambda parameters, recipe: torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay),
    "sgd": lambda parameters, recipe: torch.optim.SGD(
        parameters, lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    ),
}


def recipe_for(
    own: HardenSettings, usual: dict[str, Any], shape: tuple[int, ...], model: nn.Module, device: torch.device
) -> tuple[Recipe, int]:
    """The recipe, and the default steps of the training attack. usual: defaults of the method, before those for this shape."""
    default, steps = (
        (_VECTORS, 10) if len(shape) != 3 else (_GREY_IMAGES, 5) if _is_grey(shape) else (_COLOUR_IMAGES, 10)
    )
    given = own.given()
    if own.schedule not in SCHEDULES:
        given.pop("schedule", None)  # it is a schedule of the method, see `method_of`
    default = replace(default, **usual, amp=trains_in_bfloat16(model, device))
    recipe = replace(default, **{name: given[name] for name in Recipe.__dataclass_fields__ if name in given})
    if recipe.augment != "none" and len(shape) != 3:
        raise UsageError(f"--augment {recipe.augment} is for images; inputs here have shape {shape}")
    return recipe, steps


def _is_grey(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape are images with one channel."""
    return len(shape) == 3 and shape[0] == 1


def trains_in_bfloat16(model: nn.Module, device: torch.device) -> bool:
    """Whether a network trains in bfloat16 where the user does not say: if it has convolutions and the device multiplies in it."""
    return multiplies_bfloat16(device) and any(isinstance(module, nn.Conv2d) for module in model.modules())


def with_rate(recipe: Recipe, own: HardenSettings, shape: tuple[int, ...], base: str | None, samples: int) -> Recipe:
    """The recipe with a larger learning rate, where it is the default for grey images with base pgd and there are few updates.

    Twice the rate for fewer than 4,000 updates; both numbers are our choice. A rate, an optimizer or a batch size that the user
    gives leaves the rate as it is.
    """
    updates = recipe.epochs * (samples // min(recipe.batch_size, samples))
    is_default = own.lr is None and own.optimizer is None and own.batch_size is None and recipe.lr == _GREY_IMAGES.lr
    if is_default and base == "pgd" and _is_grey(shape) and updates < _FEW_UPDATES:
        return replace(recipe, lr=_FASTER * recipe.lr)
    return recipe


def training_threat(own: HardenSettings, threat: Threat, shape: tuple[int, ...], base: str | None) -> Threat:
    """The threat model of the training attack: with --train-eps, or the default for inputs of this shape.

    The default is the radius of the audit, and in the recipe for grey images, under linf with base pgd, a larger one (our choice).
    Raises UsageError for a radius that the norm does not allow.
    """
    eps = float(threat.eps)
    if own.train_eps is not None:
        eps = own.train_eps
    elif threat.norm == "linf" and base == "pgd" and _is_grey(shape) and threat.bounds is not None:
        least, largest = threat.bounds
        eps = max(eps, min(_WIDER * eps, _WIDEST * (largest - least)))
    return make_threat(threat.norm, eps, threat.bounds)


def trainable_names(
    model: Classifier, freeze: Sequence[str], only: Sequence[str] | None, *, none_left: bool = False
) -> frozenset[str]:
    """Names of the parameters that train. freeze: globs over names of parameters or modules. only: names of modules.

    Raises UsageError for a glob that matches nothing, or where no parameter is left, unless none_left allows it.
    """
    names = [name for name, _ in model.named_parameters()]
    kept = set(names)
    bare = {name: plain_name(model.body, name.removeprefix("body.")) for name in names}
    for glob in freeze:
        hit = {n for n in names if fnmatch.fnmatchcase(bare[n], glob) or fnmatch.fnmatchcase(bare[n], f"{glob}.*")}
        if not hit:
            shown = ", ".join(list(bare.values())[:8])
            raise UsageError(
                f"--freeze '{glob}' matches no parameter; there are {shown}{', ...' if len(bare) > 8 else ''}"
            )
        kept -= hit
    if only is not None:
        kept &= {n for n in names if any(bare[n] == m or bare[n].startswith(f"{m}.") for m in only)}
    if not kept and not none_left:
        raise UsageError("no parameter is left to train; freeze less, or use --train-only all")
    return frozenset(kept)
