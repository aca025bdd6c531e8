"""Networks inside of the network that answer none of the samples, and that an attack breaks where the whole is robust."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.evidence.decision import Checked, doubt, exceeds
from lsa_cli.auditing.evidence.network import OTHER_BATCH, relative_difference
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.models.rehydration import Program

STEPS = 10
SAMPLES = 32  # that tell whether a part answers
ALLOWED_USED = 0.05  # of the points: a part that answers fewer is hidden
ALLOWED_BROKEN = (
    0.25  # of the survivors: a head that training needed and that is not used now is nearly as robust as the rest
)
_CHANGE = -1.5  # all weights of a part times this: its outputs are others then


def hidden_network(survivors: Probe, probe: Probe) -> Checked:
    """Does a part that answers hardly any input, but classifies most samples correctly by itself, break under an attack?

    A part is a module that takes images. Whether it answers is seen by other weights in it: they change the logits of the network
    at the samples, or at random points within the budget. On no condition, then, depends whether it is found.
    """
    few = probe.first(SAMPLES)
    name, part = next(_unused(few), ("", None))
    if part is None:
        return Checked("hidden networks", len(few), {"found": 0})
    with undisturbed(probe.model):
        right = int((few.logits(few.x, part).argmax(1) == few.y).sum())
        x_adv = survivors.by_batch(
            lambda x, y, index: PGD(survivors.threat, STEPS)(part, x, y, index=index, seed=survivors.seed, goal="break"),
            survivors.x, survivors.y, survivors.index,
        )  # fmt: skip
        broken = int((margin(survivors.logits(x_adv, part), survivors.y) > 0).sum())
    finding = doubt(
        "hidden-network",
        f"the network holds another one ({name}), which classifies {right} of {len(few)} samples correctly but answers hardly any "
        f"input, and a short attack breaks it for {broken} of {len(survivors)} samples that the whole network withstands: where it "
        "answers, the network is not robust",
        "find out for which inputs it answers, or remove it; audit it by itself",
    )
    saw = {"found": 1, "broken": broken}
    found = exceeds(broken, len(survivors), ALLOWED_BROKEN)
    return Checked("hidden networks", len(survivors), saw, finding if found else None)


def _unused(probe: Probe) -> Iterator[tuple[str, nn.Module]]:
    """The parts, by name, that classify half of the probe correctly (our choice) and answer hardly any input."""
    if not isinstance(probe.model, nn.Module):
        return
    with per_sample(probe.seed, probe.index, "hidden networks"):
        points = torch.cat([probe.x, probe.threat.sample(probe.x)])
    before = probe.logits(points)
    for name, part in _parts(probe.model):
        if next(part.children(), None) is not None and _classifies(probe, part):
            with _other_weights(part):
                differs = relative_difference(before, probe.logits(points)) > OTHER_BATCH
            if float(differs.float().mean()) < ALLOWED_USED:
                yield name, part


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the network, also of one that is a compiled program, by name."""
    for name, part in model.named_modules():
        if name:
            yield name, part
        if isinstance(part, Program) and isinstance(part.program, nn.Module):
            yield from _parts(part.program)


def _classifies(probe: Probe, part: nn.Module) -> bool:
    """Whether the part takes images and returns logits that are right for half of the probe."""
    try:
        with torch.no_grad(), undisturbed(probe.model):
            first = part(probe.x[:2])
        if not isinstance(first, torch.Tensor) or first.shape != probe.clean[:2].shape:
            return False
        right = probe.logits(probe.x, part).argmax(1) == probe.y
    except Exception:  # a module that takes something else than images can raise anything
        return False
    return 2 * int(right.sum()) >= len(probe)


@contextmanager
def _other_weights(part: nn.Module) -> Iterator[None]:
    """A context in which the part has other weights; afterwards it has its own, bit by bit."""
    kept = [(weight, weight.detach().clone()) for weight in part.parameters() if weight.is_floating_point()]
    with torch.no_grad():
        try:
            for weight, _ in kept:
                weight.mul_(_CHANGE)
            yield
        finally:
            for weight, own in kept:
                weight.copy_(own)
