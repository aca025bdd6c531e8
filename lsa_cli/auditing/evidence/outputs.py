"""Outputs of the network that guide attacks past its logits, each fitted on the probe once; see `guided`."""

from collections.abc import Sequence

import torch
from torch import nn

from lsa_cli.attacks.base import Model
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.evidence.guided import Goals, JointTap, LayerTap, NoRows, OtherHead, Tap, TowardsFeatures
from lsa_cli.auditing.evidence.probe import Probe

_RIDGE = 0.01  # of the mean squared length of the features
INNER = 2  # networks inside of the network that are attacked together (our choice)
HIDDEN = 2  # layers beside the last one, to whose features attacks move (our choice)
_NUMBERS = 2**24  # in the known features of a layer: 64 MB


def features_of(probe: Probe, module: nn.Module) -> tuple[Model, torch.Tensor] | None:
    """images (N, ...) -> (N, D), the inputs of `module`, the last layer with weights; and those for the probe.

    None where the module is not part of a pass, or does not get one tensor for all samples.
    """
    tap = Tap.of(probe.model, module, inputs=True)
    known = read(probe, tap, probe.x)
    return None if known is None else (lambda x: tap(probe.model, x)[0], known)


def read(probe: Probe, tap: Tap | LayerTap, x: torch.Tensor) -> torch.Tensor | None:
    """What a tap gives for images x (M, ...); None where it fails in a pass without gradients or in one with them."""

    def values(x: torch.Tensor) -> torch.Tensor:
        return tap(probe.model, x)[0]

    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            values(x[:2].clone().requires_grad_())
        return probe.logits(x, values)
    except NoRows:
        return None


def bare_logits(probe: Probe, module: nn.Module) -> OtherHead | None:
    """An attack on the network without what follows `module`, its last layer with weights.

    None where the output of `module` is not one number for each class, or is just the logits, shifted and scaled.
    """
    tap = Tap.of(probe.model, module, inputs=False)
    return None if _other_logits(probe, tap) is None else OtherHead(probe.threat, tap=tap)


def _other_logits(probe: Probe, tap: Tap) -> torch.Tensor | None:  # (N, K)
    """What a tap gives for the probe; None where it is not one number for each class, or is just the logits."""
    bare = read(probe, tap, probe.x)
    if bare is None or bare.shape != probe.clean.shape:
        return None
    one, other = (rows - rows.mean(1, keepdim=True) for rows in (bare.double(), probe.clean.double()))
    return None if nn.functional.cosine_similarity(one, other).min() > 1 - 1e-6 else bare


def inner_networks(probe: Probe, last: nn.Module | None) -> OtherHead | None:
    """An attack on the networks inside of the network: on the sum of the log-probabilities of their last layers.

    Such a layer is not `last`, returns one number for each class, and these are right for half of the probe (our choice). The
    first INNER ones are attacked. None where there is none.
    """
    if not isinstance(probe.model, nn.Module):
        return None
    taps: list[Tap] = []
    layers = [one for one in probe.model.modules() if next(one.parameters(recurse=False), None) is not None]
    for module, shape in shapes_of_outputs(probe, layers).items():
        if module is not last and len(taps) < INNER and shape == probe.clean[:2].shape:
            tap = Tap.of(probe.model, module, inputs=False)
            logits = _other_logits(probe, tap)
            if logits is not None and 2 * int((logits.argmax(1) == probe.y).sum()) >= len(probe):
                taps.append(tap)
    return OtherHead(probe.threat, tap=JointTap(tuple(taps))) if taps else None


def shapes_of_outputs(probe: Probe, modules: Sequence[nn.Module]) -> dict[nn.Module, tuple[int, ...]]:
    """Of those of the modules that run in a pass over two samples, in their order."""
    sizes: dict[nn.Module, tuple[int, ...]] = {}
    handles = [one.register_forward_hook(lambda one, _, out: sizes.update({one: _shape(out)})) for one in modules]
    try:
        probe.logits(probe.x[:2])
    finally:
        for handle in handles:
            handle.remove()
    return {one: sizes[one] for one in modules if one in sizes}


def _shape(output: object) -> tuple[int, ...]:
    return tuple(output.shape) if isinstance(output, torch.Tensor) else ()


def fresh_head(probe: Probe, module: nn.Module) -> OtherHead | None:
    """An attack on a new last layer: ridge regression of the classes on the inputs of `module`.

    It is fitted on the probe, and on a random point within the budget of each sample. It leaves out everything between the
    features and the logits. module: the last layer with weights. None where it is not part of a pass, or does not get one
    tensor for all samples.
    """
    tap = Tap.of(probe.model, module, inputs=True)
    with per_sample(probe.seed, probe.index, "fresh head"):
        near = probe.threat.sample(probe.x)
    known = read(probe, tap, torch.cat([probe.x, near]))
    if known is None:
        return None
    mean = known.mean(0)
    centred = known - mean
    wanted = nn.functional.one_hot(probe.y, probe.clean.shape[1]).float().repeat(2, 1) - 1 / probe.clean.shape[1]
    kernel = centred @ centred.T
    kernel += (_RIDGE * kernel.diagonal().mean() + 1e-12) * torch.eye(len(known), device=known.device)
    weight = centred.T @ torch.linalg.solve(kernel, wanted)
    return OtherHead(probe.threat, tap=tap, mean=mean, weight=weight)


def features_of_others(probe: Probe, module: nn.Module | None, layers: Sequence[str] = ()) -> TowardsFeatures | None:
    """An attack towards features of samples of other classes: of what `module` gets, and of what `layers` return.

    module: the last layer with weights. layers: the most vulnerable ones of the scan, worst first; the first two whose outputs
    are not those features again. A layer is left out that is not part of a pass or does not return one row for each sample,
    and where the probe has a single class. None where all are left out.
    """
    goals = []
    if module is not None:
        goals.append(_goals(probe, Tap.of(probe.model, module, inputs=True), "the input of the last layer"))
    known, hidden = [one.known for one in goals if one is not None], 0
    for name in layers:
        found = _goals(probe, LayerTap(name), name) if hidden < HIDDEN else None
        if found is not None and not any(_are_same(found.known, other) for other in known):
            goals.append(found)
            hidden += 1
    kept = tuple(one for one in goals if one is not None)
    return TowardsFeatures(probe.threat, goals=kept) if kept else None


def _goals(probe: Probe, tap: Tap | LayerTap, called: str) -> Goals | None:
    one = read(probe, tap, probe.x[:1])
    if one is None:
        return None
    few = probe.first(max(1, _NUMBERS // one.numel()))
    known = read(probe, tap, few.x)
    return Goals(tap, called, known, few.y) if known is not None and bool((few.y != few.y[0]).any()) else None


def _are_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
