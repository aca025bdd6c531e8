"""Checks of the network by itself: does it answer the same when asked again, and do its gradients lead uphill?"""

import dataclasses
import math
from statistics import NormalDist

import torch
from torch import nn

from lsa_cli.attacks.base import Model, undisturbed
from lsa_cli.attacks.losses import cross_entropy, margin
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.evidence.judge import ALPHA, Checked, doubt, exceeds
from lsa_cli.auditing.evidence.probe import FEW_ULP, Probe
from lsa_cli.errors import ForwardError

# Shares that honest networks may show, for `exceeds`; our choices, with what they stand on.
ALLOWED_FLAT = 0.01  # a sample without a gradient counts as robust: each costs its share of the number
ALLOWED_DISAGREEING = 0.05  # kinks of ReLUs, levels of a rounding; honest networks trained on digits show 0

LEAST_COSINE = 0.7  # of the gradient in random directions; honest networks were seen at 0.77 (max-pooling) and above
_WAYS, _FEW_PAIRS, _ABOVE_ROUNDING = 2, 20, 4
_Z_ALPHA = NormalDist().inv_cdf(1 - ALPHA)
_CHANCE = 1e-4  # of the range of a sample's logits: two passes over one batch should not differ at all
_APART = 0.01  # the same for other batches: kernels of float32 differ by 1e-5, of bfloat16 by 5e-3
_ALONE = 8  # samples that are looked at one by one


def train_mode_layers(model: Model) -> Checked:
    """Modules that stay in training mode when the network is put in evaluation mode, or normalise by their batch."""
    if not isinstance(model, nn.Module):
        return Checked("train-mode layers", 0, {})
    with undisturbed(model):
        named = [(name or type(model).__name__, module) for name, module in model.named_modules()]
        training = [name for name, module in named if module.training]
        batch = [
            name
            for name, module in named
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and not isinstance(module, nn.modules.instancenorm._InstanceNorm)
            and module.running_mean is None
        ]
    names = list(dict.fromkeys([*training, *batch]))
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    finding = doubt(
        "train-mode",
        f"{len(names)} layers work as in training: {shown} (training mode after eval(), or BatchNorm without running "
        "statistics), so outputs hang on chance or on the batch",
        "put them in evaluation mode, and give BatchNorm its running statistics (track_running_stats=True)",
    )
    saw = {"in training mode": len(training), "without running statistics": len(batch)}
    return Checked("train-mode layers", len(named), saw, (finding,) if names else ())


def _relative(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:  # (N, K) x2 -> (N,)
    """How far apart two answers are, as a share of the range of the logits; rounding of large logits is taken off."""
    difference = (first - second).abs().amax(1)
    rounding_error = FEW_ULP * torch.finfo(torch.float32).eps * first.abs().amax(1)
    spread = (first.amax(1) - first.amin(1)).clamp_min(torch.finfo(torch.float32).tiny)
    apart = (difference - rounding_error).clamp_min(0) / spread
    return torch.where(first.isnan().any(1) & second.isnan().any(1), 0.0, apart.nan_to_num(torch.inf))


def _largest(apart: torch.Tensor) -> str:
    known = torch.where(apart.isfinite(), apart, 0.0)
    return f"by up to {float(known.max()):.1%} of the range of the logits"


def random_forward(probe: Probe) -> Checked:
    """The same batches twice. Further apart than 1e-4 of the range of the logits is a difference (AutoAttack's
    own check has 1e-4 of their length).

    One sample that differs is enough: this is no share with an error bar, as a network without chance in it cannot
    differ at all.
    """
    second = probe.look(probe.x)
    apart = _relative(probe.clean, second)
    differ = int((apart > _CHANCE).sum())
    changed = int((probe.clean.argmax(1) != second.argmax(1)).sum())
    finding = doubt(
        "random-forward",
        f"two passes over the same {len(probe)} inputs differ for {differ} of them, {_largest(apart)}, and {changed} "
        "predicted classes change: attacks that climb single passes chase noise, and the number is a mean over throws of "
        "the dice",
        "attack the mean over more passes (--attack pgd:eot=50), and audit the network with the chance taken out too "
        "(dropout, sampling; --noise-off for learnt noise)",
    )
    saw = {"differ": differ, "classes that change": changed, "largest difference": float(apart.max())}
    return Checked("random forward", len(probe), saw, (finding,) if differ else ())


def batch_dependence(probe: Probe) -> Checked:
    """The same samples with other neighbours, in batches half as large, and some of them alone.

    The tolerance, 1% of the range of the logits, is far above what float32 kernels differ by, and twice what bfloat16
    ones do; statistics of a batch move logits by a tenth and more. One sample is enough, as above. A network that
    cannot take one sample alone has not answered for it.
    """
    order = torch.randperm(len(probe), generator=torch.Generator().manual_seed(probe.seed)).to(probe.x.device)
    half = dataclasses.replace(probe, batch_size=max(1, min(probe.batch_size, len(probe)) // 2))
    shuffled = torch.empty_like(probe.clean)
    shuffled[order] = half.look(probe.x[order])
    alone = True
    try:
        single = dataclasses.replace(probe, batch_size=1).look(probe.x[:_ALONE])
    except (ForwardError, ValueError, RuntimeError):  # BatchNorm over a batch of one
        alone, single = False, torch.full_like(probe.clean[:_ALONE], torch.nan)
    apart = _relative(probe.clean, shuffled)
    apart[: len(single)] = torch.maximum(apart[: len(single)], _relative(probe.clean[:_ALONE], single))
    differ = int((apart > _APART).sum())
    changed = int((probe.clean.argmax(1) != shuffled.argmax(1)).sum())
    finding = doubt(
        "batch-dependent",
        f"the output for {differ} of {len(probe)} inputs changes with what else is in the batch ({_largest(apart)}"
        f"{'' if alone else '; single samples it cannot take at all'}), and {changed} predicted classes change: the "
        "number holds for one batch size",
        "put BatchNorm in evaluation mode with running statistics; take out whatever mixes samples",
    )
    saw = {"differ": differ, "classes that change": changed, "largest difference": float(apart.max())}
    return Checked("batch dependence", len(probe), saw, (finding,) if differ else ())


# ---- its gradients -------------------------------------------------------------------------------------


def gradients(probe: Probe) -> Checked:
    """Samples whose gradient leads nowhere: it is zero or not finite, or a step along it moves the loss by rounding.

    A step of eps and one of eps / 8 are tried, and 16 units in the last place of the largest logit are rounding: what
    cannot be told apart in float32 cannot be climbed. Every such sample looks robust, robust or not; more than 1% of
    them is a finding.
    """
    zero = ~(probe.gradient != 0).flatten(1).any(1)
    direction = probe.threat.steepest(probe.gradient, probe.x).nan_to_num(0)
    before = cross_entropy(probe.clean, probe.y)
    flat = torch.ones_like(zero)
    for length in (probe.threat.eps, probe.threat.eps / 8):
        moved = probe.loss(probe.threat.clamp(probe.x + length * direction))
        flat &= (moved - before).abs() <= probe.resolution
    flat |= zero
    finding = doubt(
        "vanishing-gradient",
        f"for {int(flat.sum())} of {len(probe)} samples the input gradient leads nowhere (it is zero or NaN for "
        f"{int(zero.sum())}; along the others the loss does not move): gradient attacks find nothing there, robust "
        "or not",
        "attack the network without the step that flattens it (rounding, hard threshold, saturated softmax, "
        "probabilities clipped before a logarithm), or with a smooth stand-in for it",
    )
    saw = {"zero": int(zero.sum()), "flat": int(flat.sum())}
    found = exceeds(int(flat.sum()), len(probe), ALLOWED_FLAT)
    return Checked("input gradients", len(probe), saw, (finding,) if found else ())


def slopes(probe: Probe) -> Checked:
    """Does the loss change as the gradient says? Between two points 2h apart on the steepest line through the sample.

    h is eps, eps / 10 and eps / 100, and the change may be a third to three times what the gradient says: wide, as
    networks bend. A sample disagrees when no h agrees; where the change foretold is rounding, h tells nothing. So a
    straight-through gradient that is right on the scale of the budget passes, and one of another function does not.
    """
    direction = probe.threat.steepest(probe.gradient, probe.x).nan_to_num(0)
    decided = torch.zeros(len(probe), dtype=torch.bool, device=probe.x.device)
    agrees, ratios = decided.clone(), torch.full((len(probe),), torch.nan, device=probe.x.device)
    for part in (1, 10, 100):
        step = probe.threat.eps / part * direction
        ahead, behind = probe.threat.clamp(probe.x + step), probe.threat.clamp(probe.x - step)
        foretold = (probe.gradient.double() * (ahead - behind).double()).flatten(1).sum(1)
        ratio = ((probe.loss(ahead) - probe.loss(behind)).double() / foretold).float()
        tells = foretold > 4 * probe.resolution
        decided |= tells
        agrees |= tells & (ratio > 1 / 3) & (ratio < 3)
        ratios = torch.where(tells & ratios.isnan(), ratio, ratios)
    n, differ = int(decided.sum()), int((decided & ~agrees).sum())
    finding = doubt(
        "wrong-gradient",
        f"for {differ} of {n} samples the loss does not change as the input gradient says, on no scale: the gradient "
        "is of another function, and attacks climb that one",
        "look for detach(), custom backward functions and layers that are stepped; attack the network through a "
        "stand-in with the right gradient",
    )
    saw = {"disagree": differ, "median ratio": float(ratios.nanmedian())}
    return Checked("gradient against loss", n, saw, (finding,) if exceeds(differ, n, ALLOWED_DISAGREEING) else ())


def directions(probe: Probe) -> Checked:
    """Does the margin change as its gradient says along random directions? The cosine between the two over all samples.

    The points are random ones within the budget, off the kinks and the ends of the range that black pixels lie on. Along random directions errors of
    the gradient do not cancel: where its sign is wrong on a share s of its squared length the cosine is 1 - 2 s, however
    it is scaled. Directions are eps, eps / 8 and eps / 64 long, two of each, and the largest cosine counts. A
    finding where it is below 0.7 beyond noise (Fisher's z at ALPHA).
    """
    with per_sample(probe.seed, probe.index, "directions"):
        found = [_cosine(probe, min(probe.threat.eps / part, probe.full_range / 4)) for part in (1, 8, 64)]
    cosine, pairs = max(found)
    finding = doubt(
        "misaligned-gradient",
        f"along random directions the margin does not change as its gradient says: the cosine is {cosine:.2f} over "
        f"{pairs} steps, where 1 is right: part of the gradient is wrong, and attacks climb in a wrong direction",
        "look for custom backward functions, detach() and straight-through layers; attack the network through a stand-in "
        "with the right gradient, or without gradients (square)",
    )
    bound = (
        math.tanh(math.atanh(min(cosine, 1 - 1e-9)) + _Z_ALPHA / math.sqrt(pairs - 3)) if pairs > _FEW_PAIRS else 1.0
    )
    saw = {"cosine": cosine, "steps": pairs}
    return Checked("gradient in random directions", len(probe), saw, (finding,) if bound < LEAST_COSINE else ())


def _cosine(probe: Probe, length: float) -> tuple[float, int]:
    """Between changes of the margin that the gradient foretells and those that happen, and of how many pairs.

    Each is over the length of its sample's gradient, and only where that is well above rounding.
    """
    x = probe.threat.sample(probe.x)
    if probe.threat.bounds is not None:  # at an end of the range there is one way only, which is no random one
        low, high = probe.threat.bounds
        x = x.clamp(low + length, high - length)
    gradient = probe.slope(x, margin)
    size = gradient.flatten(1).double().norm(dim=1)
    foretold, happened = [], []
    for _ in range(_WAYS):
        ahead = probe.threat.random_direction(x, torch.full_like(probe.resolution, length))
        behind = 2 * x - ahead
        step = (ahead - behind).flatten(1).double()
        change = (probe.margin(ahead) - probe.margin(behind)).double()
        tells = (size * step.norm(dim=1) > _ABOVE_ROUNDING * probe.resolution) & change.isfinite()
        foretold.append(((gradient.flatten(1).double() * step).sum(1) / size)[tells])
        happened.append((change / size)[tells])
    a, b = torch.cat(foretold), torch.cat(happened)
    norms = float(a.norm() * b.norm())
    return (float(a @ b) / norms if norms > 0 else 0.0), len(a) if norms > 0 else 0
