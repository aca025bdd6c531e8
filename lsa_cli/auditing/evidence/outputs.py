"""Outputs of the network that guide attacks past its logits, each fitted on the probe once; see `guided`."""

import torch
from torch import nn

from lsa_cli.attacks.base import Model
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.evidence.guided import NoRows, OtherHead, Tap, TowardsFeatures
from lsa_cli.auditing.evidence.probe import Probe

_RIDGE = 0.01  # of the mean squared length of the features


def features_of(probe: Probe, module: nn.Module) -> tuple[Model, torch.Tensor] | None:
    """images (N, ...) -> (N, D), the inputs of `module`, the last layer with weights; and those for the probe.

    None where the module is not part of a pass, or does not get one tensor for all samples.
    """
    tap = Tap.of(probe.model, module, inputs=True)
    known = read(probe, tap, probe.x)
    return None if known is None else (lambda x: tap(probe.model, x)[0], known)


def read(probe: Probe, tap: Tap, x: torch.Tensor) -> torch.Tensor | None:
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
    bare = read(probe, tap, probe.x)
    if bare is None or bare.shape != probe.clean.shape:
        return None
    one, other = (rows - rows.mean(1, keepdim=True) for rows in (bare.double(), probe.clean.double()))
    same = nn.functional.cosine_similarity(one, other).min() > 1 - 1e-6
    return None if same else OtherHead(probe.threat, tap=tap)


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


def features_of_others(probe: Probe, module: nn.Module) -> TowardsFeatures | None:
    """An attack towards what `module` gets for samples of other classes. None as for `fresh_head`."""
    tap = Tap.of(probe.model, module, inputs=True)
    known = read(probe, tap, probe.x)
    if known is None or not bool((probe.y != probe.y[0]).any()):
        return None
    return TowardsFeatures(probe.threat, tap=tap, known=known, classes=probe.y)
