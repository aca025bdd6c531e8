"""Checks of the network by itself: are its outputs repeatable, and do its gradients increase the loss?"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import nn

from lsa_cli.attacks.base import Model, undisturbed
from lsa_cli.attacks.losses import cross_entropy, margin
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.evidence.decision import ALPHA, Checked, doubt, exceeds
from lsa_cli.auditing.evidence.float64 import Changes, exact_cosine
from lsa_cli.auditing.evidence.float64 import cosine as cosine_of
from lsa_cli.auditing.evidence.probe import FEW_ULP, Probe
from lsa_cli.auditing.evidence.straight_through import has_jumps_or_ripples
from lsa_cli.errors import LsaError
from lsa_cli.models.classifier import Classifier
from lsa_cli.stats import correlation_bound
from lsa_cli.wording import first_of

# Shares that honest networks may show, for `exceeds`; our choices, with their reasons.
ALLOWED_FLAT = 0.01  # a sample without a gradient counts as robust, so each one raises the number
ALLOWED_DISAGREEING = 0.05  # kinks of ReLUs, levels of a rounding; honest networks trained on digits show 0

_RUGGED = 0.1  # of the predicted change; the median of honest networks is 0.64 and more along steps of eps / 10
_MOSTLY = 0.5  # share of the samples that may have a smaller change
LEAST_COSINE = 0.7  # of the gradient in random directions; honest networks reach 0.77 (max-pooling) and more
_LEAST_EXACT = 0.95  # the same where the margin is linear; honest networks reach 0.99
_CLEAR = 0.9  # a cosine after which no longer steps are tried
_DIRECTIONS, _FEW_STEPS, _ABOVE_ROUNDING = 2, 20, 4
_SIDE, BLOCKS, IN_BLOCKS = 4, 16, 32  # blocks of inputs in a row of an image, in all; samples for them
_MATTERS = 0.25
JUMPS = "mean change relative to the prediction"  # of the margin, where it may jump
_RIGHT, _AVERAGED = (0.7, 2.0), 12  # of that ratio; directions for it
_DIFFERENT = 1e-4  # of the range of a sample's logits: two passes over one batch should not differ at all
OTHER_BATCH = 0.01  # the same for another batch: float32 kernels differ by 1e-5, bfloat16 kernels by 5e-3
_ALONE = 8  # samples that also run one by one


def train_mode_layers(model: Model) -> Checked:
    """Does a module stay in training mode after eval(), or use the statistics of the batch?"""
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
    finding = doubt(
        "train-mode",
        f"{len(names)} layers are in training mode after eval(), or are BatchNorm without running statistics "
        f"({first_of(names, 5)}), so outputs are random or depend on the batch",
        "put them in evaluation mode, and give BatchNorm running statistics (track_running_stats=True)",
    )
    saw = {"in training mode": len(training), "without running statistics": len(batch)}
    return Checked("train-mode layers", len(named), saw, finding if names else None)


def random_forward(probe: Probe) -> Checked:
    """Do two passes over the same batches differ, by more than 1e-4 of the range of the logits?

    (AutoAttack's own check has 1e-4 of their length.) One sample is enough for a finding: outputs of a network without
    randomness cannot differ.
    """
    second = probe.logits(probe.x)
    apart = relative_difference(probe.clean, second)
    differ = int((apart > _DIFFERENT).sum())
    changed = int((probe.clean.argmax(1) != second.argmax(1)).sum())
    finding = doubt(
        "random-forward",
        f"two passes over the same {len(probe)} inputs give different outputs for {differ} of them, {largest(apart)}, and "
        f"{changed} predicted classes change: the gradient of a single pass is noisy, and the robust accuracy is a mean "
        "over random outputs",
        "average the gradient over more passes (--attack pgd:eot=50), and also audit the network without its randomness "
        "(dropout, sampling; --noise-off for learnt noise)",
    )
    saw = {"differ": differ, "classes that change": changed, "largest difference": float(apart.max())}
    return Checked("random forward", len(probe), saw, finding if differ else None)


def batch_dependence(probe: Probe) -> Checked:
    """Do outputs change in another order, in batches half as large, or, for some samples, alone?

    Alone are also inputs within the budget of these samples, one step along the gradient from them and random ones, as a network
    may know images that no attack has changed.
    The tolerance, 1% of the range of the logits, is far above the difference between float32 kernels and twice that
    between bfloat16 kernels; statistics of a batch change logits by a tenth and more. One sample is enough for a finding.
    A network that cannot run on a single sample has one too.
    """
    order = torch.randperm(len(probe), generator=torch.Generator().manual_seed(probe.seed)).to(probe.x.device)
    half = dataclasses.replace(probe, batch_size=max(1, min(probe.batch_size, len(probe)) // 2))
    shuffled = torch.empty_like(probe.clean)
    shuffled[order] = half.logits(probe.x[order])
    step = probe.threat.steepest(probe.gradient, probe.x).nan_to_num(0)
    with per_sample(probe.seed, probe.index, "batch dependence"):
        points = [probe.x, probe.threat.clamp(probe.x + probe.threat.eps * step), probe.threat.sample(probe.x)]
    batched = torch.stack([probe.clean[:_ALONE], *(probe.logits(x)[:_ALONE] for x in points[1:])])
    single = _alone(probe, torch.cat([x[:_ALONE] for x in points]), batched.flatten(0, 1))
    not_alone = "" if single is not None else "; the network cannot run on a single sample"
    alone = torch.full_like(batched, torch.nan) if single is None else single.reshape(batched.shape)
    apart, count = relative_difference(probe.clean, shuffled), batched.shape[1]
    for one, other in zip(batched, alone, strict=True):
        apart[:count] = torch.maximum(apart[:count], relative_difference(one, other))
    differ = int((apart > OTHER_BATCH).sum())
    changed = int((probe.clean.argmax(1) != shuffled.argmax(1)).sum())
    finding = doubt(
        "batch-dependent",
        f"the outputs for {differ} of {len(probe)} inputs depend on the other inputs in the batch ({largest(apart)}{not_alone}), "
        f"and {changed} predicted classes change: the robust accuracy holds for one batch size only",
        "put BatchNorm in evaluation mode with running statistics, and remove operations that mix samples",
    )
    saw = {"differ": differ, "classes that change": changed, "largest difference": float(apart.max())}
    return Checked("batch dependence", len(probe), saw, finding if differ else None)


def _alone(probe: Probe, x: torch.Tensor, batched: torch.Tensor) -> torch.Tensor | None:
    """The outputs for inputs x (M, ...) one by one, also of a network that is given single samples twice; None where it fails.

    Of such a network, which fails on a single sample or answers it in another way, a failure is no matter: its outputs are
    then those in a batch, batched (M, K).
    """
    alone, model = dataclasses.replace(probe, batch_size=1), probe.model
    in_pairs = isinstance(model, Classifier) and model.in_pairs
    try:
        if isinstance(model, Classifier):
            model.in_pairs = False
        return alone.logits(x)
    except (LsaError, ValueError, RuntimeError):  # BatchNorm over a batch of one
        return batched if in_pairs else None
    finally:
        if isinstance(model, Classifier):
            model.in_pairs = in_pairs


def relative_difference(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:  # (N, K) x2 -> (N,)
    """The difference of two outputs as a share of the range of the logits, less the rounding error of large logits."""
    difference = (first - second).abs().amax(1)
    rounding_error = FEW_ULP * torch.finfo(torch.float32).eps * first.abs().amax(1)
    spread = (first.amax(1) - first.amin(1)).clamp_min(torch.finfo(torch.float32).tiny)
    apart = (difference - rounding_error).clamp_min(0) / spread
    same = (first == second).all(1) | (first.isnan().any(1) & second.isnan().any(1))  # also infinite
    return torch.where(same, 0.0, apart.nan_to_num(torch.inf))


def largest(apart: torch.Tensor) -> str:
    known = torch.where(apart.isfinite(), apart, 0.0)
    return f"by up to {float(known.max()):.1%} of the range of the logits"


# ---- its gradients -------------------------------------------------------------------------------------


def gradients(probe: Probe) -> Checked:
    """Is the gradient zero or not finite, or does a step along it change the loss by no more than rounding?

    Steps of eps and eps / 8 are tried; 16 units in the last place of the largest logit count as rounding. Such a sample
    looks robust, robust or not; more than 1% of them is a finding.
    """
    zero = ~(probe.gradient != 0).flatten(1).any(1)
    direction = probe.threat.steepest(probe.gradient, probe.x).nan_to_num(0)
    before = cross_entropy(probe.clean, probe.y)
    flat = torch.ones_like(zero)
    for length in (probe.threat.eps, probe.threat.eps / 8):
        after = probe.loss(probe.threat.clamp(probe.x + length * direction))
        flat &= (after - before).abs() <= probe.resolution
    flat |= zero
    finding = doubt(
        "vanishing-gradient",
        f"for {int(flat.sum())} of {len(probe)} samples the input gradient does not increase the loss (it is zero or NaN for "
        f"{int(zero.sum())}; for the others a step along it changes nothing): gradient attacks fail on these samples, robust or not",
        "attack the network without the operation that flattens it (rounding, a hard threshold, a saturated softmax, "
        "probabilities clipped before a logarithm), or with a smooth replacement for it",
    )
    saw = {"zero": int(zero.sum()), "flat": int(flat.sum())}
    found = exceeds(int(flat.sum()), len(probe), ALLOWED_FLAT)
    return Checked("input gradients", len(probe), saw, finding if found else None)


def slopes(probe: Probe) -> Checked:
    """Does the loss change as the gradient predicts, between the points h ahead and h behind in the steepest direction?

    h is eps, eps / 10 and eps / 100. An h is not counted if the predicted change is within rounding. A sample disagrees if no h
    has a change of a third to three times the prediction: a wide range, as networks are not linear. So a straight-through
    gradient that is right on the scale of eps passes, and the gradient of another function does not. A sample is rugged if
    neither eps nor eps / 10 has a change of at least a tenth of the prediction (our choice): its gradient may be right, and
    leads nowhere.
    """
    direction = probe.threat.steepest(probe.gradient, probe.x).nan_to_num(0)
    ratios = []  # of the change to the prediction; NaN where that is within rounding
    for part in (1, 10, 100):
        step = probe.threat.eps / part * direction
        ahead, behind = probe.threat.clamp(probe.x + step), probe.threat.clamp(probe.x - step)
        predicted = (probe.gradient.double() * (ahead - behind).double()).flatten(1).sum(1)
        ratio = (probe.loss(ahead) - probe.loss(behind)).double() / predicted
        ratios.append(torch.where(predicted > 4 * probe.resolution, ratio, torch.nan))
    each = torch.stack(ratios)  # (3, N)
    decided = ~each.isnan().all(0)
    n, differ = int(decided.sum()), int((decided & ~((each > 1 / 3) & (each < 3)).any(0)).sum())
    long = each[:2]
    followed, rugged = int((~long.isnan()).all(0).sum()), int((long < _RUGGED).all(0).sum())
    finding = None
    if exceeds(differ, n, ALLOWED_DISAGREEING):
        finding = doubt(
            "wrong-gradient",
            f"for {differ} of {n} samples the loss does not change as the input gradient predicts, at any step size: the "
            "gradient is that of another function, and attacks follow it in a wrong direction",
            "look for detach(), custom backward functions and step functions; attack the network through a replacement with "
            "the right gradient",
        )
    elif exceeds(rugged, followed, _MOSTLY):
        finding = doubt(
            "rugged-loss",
            f"for {rugged} of {followed} samples the loss changes by less than a tenth of what the input gradient predicts, "
            "along steps of eps and of eps / 10: the gradient holds along far shorter steps only, and attacks follow ripples",
            "attack the network without the function that oscillates, the mean over noisy inputs, or without gradients "
            "(square with thousands of queries)",
        )
    first = torch.where(each[0].isnan(), each[1], each[0])
    median = float(torch.where(first.isnan(), each[2], first).nanmedian())
    saw = {"disagree": differ, "rugged": rugged, "median ratio": median}
    return Checked("gradient against loss", n, saw, finding)


def directions(probe: Probe) -> Checked:
    """Does the margin change as its gradient predicts in random directions? The cosine between the two over all samples.

    The points are random ones within the budget, away from kinks and from the ends of the range, where black pixels are.
    In random directions errors of the gradient do not cancel: where its sign is wrong on a share s of its squared length
    the cosine is 1 - 2 s, at any scale. Two directions each of length eps / 64, eps / 8 and eps are taken, until a cosine
    is 0.9, and the largest cosine counts. A cosine below 0.7 beyond noise (Fisher's z at ALPHA) is a finding. So is, where no
    cosine is 0.9, one below 0.95 for steps along which the margin is linear, in float64. So is one below 0.7 of one of 16
    blocks of inputs, each of which is moved alone (at ALPHA / 16, some samples, one direction of the length that was best).

    A gradient that is right along short steps, or for which no steps are short enough to tell, may miss changes at jumps, such as
    those of hard gates and rounded activations. That is no finding where the change that it predicts is there on average, between
    0.7 and 2 times (our choice): attacks then follow what there is of a slope, and those that pass jumps search for the rest. It
    stays one for a block of inputs where the gradient is right along short steps and no attack can pass the jumps, see
    `has_jumps_or_ripples`: a mask on pixels hides there.
    """
    cosine, steps, best = -1.0, 0, 0.0
    with per_sample(probe.seed, probe.index, "directions"):
        for part in (64, 8, 1):
            length = min(probe.threat.eps / part, probe.full_range / 4)
            if cosine < _CLEAR:
                slopes = _Slopes.at(probe, length)
                now = cosine_of([slopes.steps() for _ in range(_DIRECTIONS)])
                cosine, steps, best = max((cosine, steps, best), (*now, length))
    where, block, found = "", None, steps > _FEW_STEPS and correlation_bound(cosine, steps, ALPHA) < LEAST_COSINE
    saw = {"cosine": cosine, "steps": steps}
    few = probe.first(IN_BLOCKS)
    if steps > _FEW_STEPS and not found:
        with per_sample(probe.seed, few.index, "blocks"):
            least, worst, count = _least_block(_Slopes.at(few, best))
        saw["least cosine of a block"] = least
        if worst is not None and count > _FEW_STEPS and correlation_bound(least, count, ALPHA / BLOCKS) < LEAST_COSINE:
            found, block, cosine, steps, where = True, worst, least, count, f" of {_place(worst)} alone"
    if cosine < _CLEAR:
        exact, count = exact_cosine(probe)
        saw["cosine in float64"] = exact if count else math.nan
        is_known = count > _FEW_STEPS
        if not found and is_known and correlation_bound(exact, count, ALPHA) < _LEAST_EXACT:
            found, cosine, steps, where = True, exact, count, " and steps too short for a curve or a kink"
        elif found and (not is_known or (exact >= _LEAST_EXACT and _passes_jumps(probe, block))):
            with per_sample(probe.seed, probe.index, "jumps"):
                saw[JUMPS] = ratio = _ratio(_Slopes.at(probe, best), block)
            found = not _RIGHT[0] <= ratio <= _RIGHT[1]
    finding = doubt(
        "misaligned-gradient",
        f"in random directions{where} the margin does not change as its gradient predicts: the cosine is {cosine:.2f} over "
        f"{steps} steps, and 1 is right: part of the gradient is wrong, and attacks follow it in a wrong direction",
        "look for custom backward functions, detach() and straight-through layers; attack the network through a replacement "
        "with the right gradient, or without gradients (square)",
    )
    return Checked("gradient in random directions", len(probe), saw, finding if found else None)


def _passes_jumps(probe: Probe, block: torch.Tensor | None) -> bool:
    """Whether attacks search behind jumps: those of single inputs need one that has a slope for them."""
    return block is None or has_jumps_or_ripples(probe.model, probe.x[:1])


@dataclass(frozen=True)
class _Slopes:
    """The gradient of the margin at random points x (N, ...) within the budget, from which steps of a length are made."""

    probe: Probe
    length: float
    x: torch.Tensor
    gradient: torch.Tensor

    @classmethod
    def at(cls, probe: Probe, length: float) -> "_Slopes":
        x = probe.threat.sample(probe.x)
        if (
            probe.threat.bounds is not None
        ):  # at an end of the range only one direction is possible, which is not random
            low, high = probe.threat.bounds
            x = x.clamp(low + length, high - length)
        return cls(probe, length, x, probe.slope(x, margin))

    def steps(self, block: torch.Tensor | None = None) -> Changes:
        """One random step for each sample, of some inputs (...) bool alone; those whose change is within rounding are left out.

        Changes are divided by the length of the sample's gradient.
        """
        probe, x = self.probe, self.x
        moved = probe.threat.random_direction(x, torch.full_like(probe.resolution, self.length)) - x
        gradient = self.gradient.flatten(1).double()
        size = gradient.norm(dim=1)
        if block is not None:
            moved, gradient = torch.where(block, moved, 0), torch.where(block.flatten(), gradient, 0)
        step = 2 * moved.flatten(1).double()
        change = (probe.margin(x + moved) - probe.margin(x - moved)).double()
        counts = (gradient.norm(dim=1) * step.norm(dim=1) > _ABOVE_ROUNDING * probe.resolution) & change.isfinite()
        return ((gradient * step).sum(1) / size)[counts], (change / size)[counts]


def _ratio(slopes: _Slopes, block: torch.Tensor | None) -> float:
    """How much of the predicted change there is: the line through 0 with the least absolute errors, which few samples with hardly
    any gradient do not turn. block: as for `steps`."""
    predicted, change = (torch.cat(side) for side in zip(*(slopes.steps(block) for _ in range(_AVERAGED)), strict=True))
    ratios, order = (change / predicted).nan_to_num(0).sort()
    weights = predicted.abs()[order].cumsum(0)
    return float(ratios[(weights < weights[-1] / 2).sum()])


def _least_block(slopes: _Slopes) -> tuple[float, torch.Tensor | None, int]:
    """The smallest cosine of a block, the block (...) bool, and its number of steps.

    Blocks with less than a quarter of their share of the squared gradient matter little to an attack, and are left out.
    """
    numbers = _numbered(slopes.x[0])
    squares = (slopes.gradient.double() ** 2).sum(0) / (slopes.gradient.double() ** 2).sum().clamp_min(1e-300)
    least, worst, count = 1.0, None, 0
    for number in numbers.unique().tolist():
        block = numbers == number
        if float(squares[block].sum()) * BLOCKS >= _MATTERS:
            cosine, steps = cosine_of([slopes.steps(block)])
            if steps > _FEW_STEPS and cosine < least:
                least, worst, count = cosine, block, steps
    return least, worst, count


def _numbered(x: torch.Tensor) -> torch.Tensor:  # (...) -> (...) int
    """The block of each input: 4 x 4 patches of an image (C, H, W), 16 parts in a row of other inputs."""
    if x.ndim == 3 and min(x.shape[1:]) >= _SIDE:
        rows, columns = (torch.arange(size, device=x.device) * _SIDE // size for size in x.shape[1:])
        return (_SIDE * rows[:, None] + columns).expand(x.shape)
    return (torch.arange(x.numel(), device=x.device) * BLOCKS // x.numel()).reshape(x.shape)


def _place(block: torch.Tensor) -> str:  # (...) bool
    if block.ndim == 3:
        rows, columns = (block.any(0).any(dim).nonzero().flatten().tolist() for dim in (1, 0))
        return f"rows {rows[0]} to {rows[-1]} and columns {columns[0]} to {columns[-1]}"
    places = block.flatten().nonzero().flatten().tolist()
    return f"inputs {places[0]} to {places[-1]}"
