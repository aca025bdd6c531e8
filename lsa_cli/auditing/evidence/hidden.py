"""Networks inside of the network that answer none of the samples, and that an attack breaks where the whole is robust."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn

from lsa_cli.attacks.base import Model, undisturbed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.evidence.decision import Checked, doubt, exceeds
from lsa_cli.auditing.evidence.guided import Tap
from lsa_cli.auditing.evidence.network import OTHER_BATCH, relative_difference
from lsa_cli.auditing.evidence.outputs import shapes_of_outputs
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.rehydration import Program

STEPS = 10
SAMPLES = 32  # that tell whether a part answers
ALLOWED_USED = 0.05  # of the points: a part that answers fewer is hidden
ALLOWED_BROKEN = 0.25  # of the survivors: a head that only training needed is nearly as robust as the rest
_TRIED = 3  # parts
_CHANGE = -1.5  # all weights of a part times this: its outputs are others then


def hidden_network(survivors: Probe, probe: Probe) -> Checked:
    """Does a part that answers hardly any input, but classifies most samples correctly by itself, break under an attack?

    A part is a module that returns one number for each class. To see whether it answers, it gets other weights: where it does,
    the logits of the network change at the samples, or at random points within the budget. So it is found by whatever condition
    it answers.
    """
    few = probe.first(SAMPLES)
    parts = [(_broken(survivors, part), name, part) for name, part in islice(_unused(few), _TRIED)]
    if not parts:
        return Checked("hidden networks", len(few), {"found": 0})
    broken, name, part = max(parts, key=lambda one: one[0])
    right = int((few.logits(few.x, part).argmax(1) == few.y).sum())
    finding = doubt(
        "hidden-network",
        f"the network holds another one ({name}), which classifies {right} of {len(few)} samples correctly but answers hardly any "
        f"input, and a short attack breaks it for {broken} of {len(survivors)} samples that the whole network withstands: where it "
        "answers, the network is not robust",
        "find out for which inputs it answers, or remove it; audit it by itself",
    )
    saw = {"found": len(parts), "broken": broken}
    found = exceeds(broken, len(survivors), ALLOWED_BROKEN)
    return Checked("hidden networks", len(survivors), saw, finding if found else None)


def _broken(survivors: Probe, part: Model) -> int:
    """How many of these samples an attack on the part alone breaks for it."""

    def perturb(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return PGD(survivors.threat, STEPS)(part, x, y, index=index, seed=survivors.seed, goal="break")

    with undisturbed(survivors.model):
        x_adv = survivors.by_batch(perturb, survivors.x, survivors.y, survivors.index)
        return int((margin(survivors.logits(x_adv, part), survivors.y) > 0).sum())


def _unused(probe: Probe) -> Iterator[tuple[str, Model]]:
    """The parts, by name, that classify half of the probe correctly (our choice) and answer hardly any input.

    Of parts within each other it is the outermost one.
    """
    if not isinstance(probe.model, nn.Module):
        return
    with per_sample(probe.seed, probe.index, "hidden networks"):
        points = torch.cat([probe.x, probe.threat.sample(probe.x)])
    before, found = probe.logits(points), list[str]()
    for name, module, part in _parts(probe):
        if not any(name.startswith(f"{outer}.") for outer in found) and _classifies(probe, part):
            with _other_weights(module):
                differs = relative_difference(before, probe.logits(points)) > OTHER_BATCH
            if float(differs.float().mean()) < ALLOWED_USED:
                found.append(name)
                yield name, part


def _parts(probe: Probe) -> Iterator[tuple[str, nn.Module, Model]]:
    """The parts of the network, also of one that is a compiled program: name, module, and images -> logits.

    A part that runs in a pass gets what it gets there. One that does not gets images, normalised as for the network.
    """
    modules = [(name, one) for name, one in _modules(probe.model) if next(one.parameters(), None) is not None]
    shapes = shapes_of_outputs(probe, [one for _, one in modules if not isinstance(one, torch.jit.ScriptModule)])
    for name, module in modules:
        if shapes.get(module) == probe.clean[:2].shape:
            yield name, module, _before(Tap.of(probe.model, module, inputs=False), probe.model)
        elif module not in shapes and next(module.children(), None) is not None:
            yield name, module, _behind(probe.model, module)


def _before(tap: Tap, model: Model) -> Model:
    return lambda x: tap(model, x)[0]


def _behind(model: Model, module: nn.Module) -> Model:
    return nn.Sequential(model.normalize, module) if isinstance(model, Classifier) else module


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Its modules by name, also those of a compiled program."""
    for name, part in model.named_modules():
        if name:
            yield name, part
        if isinstance(part, Program) and isinstance(part.program, nn.Module):
            yield from _modules(part.program)


def _classifies(probe: Probe, part: Model) -> bool:
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
