"""Does the network give one input one output, whatever it was asked before and however it is asked?

A network with memory answers an attack, which asks many similar inputs, in another way than a first input. A network that
detects gradients shows attacks another function than the one that is verified. Memory outside of the network (globals of its
code, files), which copies share, is seen where outputs change between the beginning and the end of an audit, or once the
neighbours of an input were asked. `another_process` compares outputs with those of a process without such globals.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from lsa_cli.attacks.base import Model, undisturbed
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.evidence.decision import Checked, doubt, exceeds
from lsa_cli.auditing.evidence.network import OTHER_BATCH, largest, relative_difference
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.errors import ForwardError
from lsa_cli.failures import is_out_of_memory
from lsa_cli.models.wrappers import copy_network, unasked_copy

SAMPLES = 16  # for which the network is asked in other modes, and after other inputs (our choice)
NEIGHBOURS = 8  # of an input that the network is asked before it
PASSES = 6 + 0.35 * (NEIGHBOURS + 30)  # of both checks, for a sample
ALLOWED_CHANGED = 0.05  # classes that change in training mode
_STAYS = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
)  # whose training mode honest networks differ in


@dataclass(frozen=True)
class Beginning:
    """A network as it was before an audit.

    copy: with the same weights and its own buffers and attributes; None where the network cannot be copied. x (M, ...),
    logits (M, K): inputs that it was asked at the beginning, and its outputs; None for none.
    """

    copy: nn.Module | None
    x: torch.Tensor | None = None
    logits: torch.Tensor | None = None

    @classmethod
    def of(cls, model: Model, unasked: nn.Module | None = None) -> "Beginning":
        """unasked: the body of a Classifier as it was before its first pass; None for the one that it has now."""
        made = unasked_copy(model) if isinstance(model, nn.Module) else None
        if made is not None and unasked is not None:
            made.body = unasked
        return cls(made)

    def fresh(self, model: Model) -> Model:
        """A copy that was asked nothing since the beginning, or the model itself where there is none."""
        return copy_network(self.copy, share_weights=True) if self.copy is not None else model

    def asked(self, probe: Probe) -> "Beginning":
        """With the outputs at the boundary of the budget of the probe's samples.

        The gradient that leads there is that of a copy, so that the network is asked for no sample before.
        """
        try:
            x = moved(dataclasses.replace(probe, model=self.fresh(probe.model)))
        except Exception as error:
            if self.copy is None or is_out_of_memory(error):
                raise
            return Beginning(None)  # the copy does not run
        return dataclasses.replace(self, x=x, logits=ask(probe.model, x, probe.batch_size))


def moved(probe: Probe) -> torch.Tensor:  # (N, ...)
    """One step of length eps along the gradient from each sample."""
    step = probe.threat.steepest(probe.gradient, probe.x).nan_to_num(0)
    return probe.threat.project(probe.x + probe.threat.eps * step, probe.x)


def ask(model: Model, x: torch.Tensor, size: int) -> torch.Tensor:  # (M, ...) -> (M, K)
    """The outputs, without gradients, for at most `size` inputs in a pass."""
    with torch.no_grad(), undisturbed(model):
        return torch.cat([model(part) for part in x.split(size)])


# ---- memory --------------------------------------------------------------------------------------------


def history(probe: Probe, beginning: Beginning) -> Checked:
    """Do outputs depend on what the network was asked before?

    Its outputs at the boundary of the budget of audited samples, and of mirrored samples after some of their neighbours,
    are compared with those of a copy that was asked nothing else; those of half of the mirrored samples also with its own before
    the neighbours, and outputs from the beginning of the audit with those now. The tolerance is 1% of the range of the logits.
    One input is enough for a finding.
    """
    few = probe.first(SAMPLES)
    then, now, size = [], [], probe.batch_size
    if beginning.x is not None and beginning.logits is not None:
        then.append(beginning.logits)
        now.append(ask(probe.model, beginning.x, size))
    mirrored = few.x.flip(-1)
    half = mirrored[::2]
    then.append(ask(probe.model, half, size))
    with per_sample(probe.seed, few.index, "history"):
        for _ in range(NEIGHBOURS):
            ask(probe.model, probe.threat.sample(mirrored), size)
    now.append(ask(probe.model, half, size))
    if beginning.copy is not None:
        near = moved(dataclasses.replace(few, model=beginning.fresh(probe.model)))
        labels = ask(beginning.fresh(probe.model), mirrored, size).argmax(1)
        beyond = moved(dataclasses.replace(few, model=beginning.fresh(probe.model), x=mirrored, y=labels))
        for x in (near, mirrored, beyond):
            now.append(ask(probe.model, x, size))
        then += [ask(beginning.fresh(probe.model), x, size) for x in (near, mirrored, beyond)]
    first, second = torch.cat(then), torch.cat(now)
    apart = relative_difference(first, second)
    differ, changed = int((apart > OTHER_BATCH).sum()), int((first.argmax(1) != second.argmax(1)).sum())
    finding = doubt(
        "history-dependent",
        f"for {differ} of {len(first)} inputs the outputs are not those of the same network before it was asked other inputs "
        f"({largest(apart)}), and {changed} predicted classes change: it remembers or counts what it is asked, so that attacks, "
        "which ask many similar inputs, find less than there is",
        "audit the network without its memory, or with its memory cleared before each pass",
    )
    saw = {"differ": differ, "classes that change": changed, "largest difference": float(apart.max())}
    return Checked("history", len(first), saw, finding if differ else None)


# ---- the mode of a pass --------------------------------------------------------------------------------


@contextlib.contextmanager
def _with_gradients(model: Model, x: torch.Tensor) -> Iterator[torch.Tensor]:
    with torch.enable_grad():
        yield x.clone().requires_grad_(True)


@contextlib.contextmanager
def _only_enabled(model: Model, x: torch.Tensor) -> Iterator[torch.Tensor]:
    with torch.enable_grad():
        yield x


@contextlib.contextmanager
def _trainable_weights(model: Model, x: torch.Tensor) -> Iterator[torch.Tensor]:
    for parameter in model.parameters() if isinstance(model, nn.Module) else ():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.no_grad():
        yield x


@contextlib.contextmanager
def _inference(model: Model, x: torch.Tensor) -> Iterator[torch.Tensor]:
    with torch.inference_mode():
        yield x


_MODES: dict[str, Callable[[Model, torch.Tensor], contextlib.AbstractContextManager[torch.Tensor]]] = {
    "with a gradient of the input": _with_gradients,
    "with gradients enabled": _only_enabled,
    "with weights that require gradients": _trainable_weights,
    "in inference mode": _inference,
}

_TRAINING = "in training mode"


def modes(probe: Probe, beginning: Beginning) -> Checked:
    """Do outputs differ between passes with and without gradients, in inference mode, or by the training flag alone?

    Asked are samples and inputs at the boundary of their budget, each mode on a fresh copy; without a copy, only the first two.
    The tolerance is 1% of the range of the logits, as kernels may differ, and one input is enough. With the training flag,
    BatchNorm and dropout stay in evaluation mode, and only classes that change count, more than 5% beyond noise (our
    choice); a network whose outputs are then random or depend on the batch is not judged.
    """
    few = probe.first(SAMPLES)
    points = torch.cat([few.x, moved(few)])
    plain = ask(beginning.fresh(probe.model), points, probe.batch_size)
    names = list(_MODES)[: None if beginning.copy is not None else 2]
    apart = {
        name: relative_difference(plain, found) for name in names for found in _found(probe, beginning, name, points)
    }
    differ = {name: int((far > OTHER_BATCH).sum()) for name, far in apart.items()}
    if beginning.copy is not None:
        differ[_TRAINING] = _changed_in_training(few, beginning)
    worst = max(differ, key=lambda name: differ[name], default="")
    asked = len(points) if worst in apart else len(few)
    by_range = f", {largest(apart[worst])}," if worst in apart else ""
    finding = doubt(
        "mode-dependent",
        f"for {differ.get(worst, 0)} of {asked} inputs a pass {worst} gives another output{by_range} than a pass without "
        "gradients in evaluation mode: the network detects how it is asked, so that attacks search another function than "
        "the one that is in use",
        "look for torch.is_grad_enabled(), requires_grad and self.training in its code, and audit it without them",
    )
    saw = {name: float(count) for name, count in differ.items()}
    return Checked("mode of the pass", len(points), saw, finding if any(differ.values()) else None)


def _found(probe: Probe, beginning: Beginning, name: str, points: torch.Tensor) -> list[torch.Tensor]:
    """The outputs in this mode; none where the network fails in it."""
    model = beginning.fresh(probe.model)
    try:
        parts = []
        for part in points.split(probe.batch_size):
            with undisturbed(model), _MODES[name](model, part) as x:
                parts.append(model(x).detach())
        return [torch.cat(parts).clone()]
    except (ForwardError, ValueError, RuntimeError):
        return []


def _changed_in_training(probe: Probe, beginning: Beginning) -> int:
    """How many classes change with the training flag; 0 where that is what noise or statistics of the batch explain.

    The inputs are at the boundary of the budget, along the gradient in training mode.
    """
    model = beginning.fresh(probe.model)

    def trained(x: torch.Tensor) -> torch.Tensor:
        for module in model.modules() if isinstance(model, nn.Module) else ():
            module.training = not isinstance(module, _STAYS)
        return model(x)

    with undisturbed(model):
        try:
            seen = dataclasses.replace(probe, model=trained)
            points = moved(seen)
            once = seen.logits(points)
            halves = dataclasses.replace(seen, batch_size=max(1, len(points) // 2)).logits(points)
        except Exception:  # outputs of training are not those of a classifier
            return 0
        random = max(relative_difference(once, other).max() for other in (seen.logits(points), halves)) > OTHER_BATCH
    plain = ask(beginning.fresh(probe.model), points, probe.batch_size)
    if random or once.shape != plain.shape:
        return 0
    changed = int((once.argmax(1) != plain.argmax(1)).sum())
    return changed if exceeds(changed, len(points), ALLOWED_CHANGED) else 0
