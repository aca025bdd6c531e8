"""ANP: adversarial noise in hidden layers, from the backward passes of the training (arXiv 1909.09034).

The paper's text could not be read; registers and the official schedule are those of the authors' code.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.attacks.threat import per_sample
from lsa_cli.errors import UsageError
from lsa_cli.hardening.methods import HARDENINGS, Batch, Hardening, Step, Task
from lsa_cli.hardening.objectives import Objective, make_objective
from lsa_cli.hardening.sites import layers_of
from lsa_cli.layers import Layer, select_layers, tap
from lsa_cli.models.classifier import Classifier
from lsa_cli.registry import unknown

INPUT = "input"  # the name of site 0
_SHALLOW = 4  # layers besides the input; the abstract says that shallow layers matter most, the number is our choice
_TINY = 1e-12
_ATTENTION = nn.MultiheadAttention

Registers = dict[str, torch.Tensor]


class Phase(NamedTuple):
    """A phase of the training. noise: the paper's epsilon; decay: its alpha; updates: its k."""

    noise: float
    decay: float
    updates: int


_CLEAN = Phase(0.0, 0.0, 1)
# (share of the training at which the phase ends, phase). official: of 120 epochs, 40 clean, 20, 20, 20, and 20 clean.
SCHEDULES: dict[str, tuple[tuple[float, Phase], ...]] = {
    "ours": ((1 / 3, _CLEAN), (1.0, Phase(1.0, 1.0, 3))),
    "official": (
        (1 / 3, _CLEAN), (1 / 2, Phase(0.3, 0.7, 3)), (2 / 3, Phase(1.0, 1.0, 3)), (5 / 6, Phase(0.3, 0.7, 3)),
        (1.0, _CLEAN),
    ),
}  # fmt: skip


def phase(schedule: str, progress: float) -> Phase:
    """The phase at a progress of the training in [0, 1)."""
    return next((phase for end, phase in SCHEDULES[schedule] if progress < end), SCHEDULES[schedule][-1][1])


@HARDENINGS.register("anp")
@dataclass
class NoisePropagation(Hardening):
    """Adversarial noise propagation: each batch is used several times, and each backward pass gives the noise of the next
    one, at the input and after layers with weights, before normalisation.

    In training, the output z of a site becomes z + (noise / k) r; in use the network has no noise. As in the official code,
    the noise has no bound and is not projected, so that images leave [0, 1].

    sites: shallow (the input and the first 4 layers), all, mvl (the layers with weights that feed the most vulnerable ones),
    or names and globs joined by +, such as input+conv*. schedule: ours (a clean third, then noise 1, decay 1, k 3) or
    official; both are scaled to the number of epochs. base: noise is propagated from the examples of this base objective,
    which are made once a batch; none: from the images. A clean pass of the base has no noise (our choice).
    """

    task: Task
    sites: str = "shallow"
    schedule: str = "ours"
    base: str | None = None
    parts: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    objective: Objective | None = field(default=None, init=False)
    names: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(unknown("schedule of anp", self.schedule, SCHEDULES))
        if self.base is not None:
            self.objective = make_objective(self.task, self.base)
            if self.base in ("free", "apart"):
                raise UsageError(
                    f"anp does not work with base {self.base}, which needs the same gradients; use base=pgd"
                )
        if self.sites != "mvl" and "mvl" in self.sites.split("+"):
            raise UsageError("anp: sites=mvl cannot be combined with other sites; name the layers instead")
        if self.task.awp > 0:
            raise UsageError("--awp works with at and at-lr, not with anp; leave it out, or use --method at")

    @property
    def begins(self) -> float:
        return SCHEDULES[self.schedule][0][0]  # the first phase is clean

    def prepare(self, model: Classifier) -> None:
        found = layers_of(model, torch.zeros(2, *self.task.input_shape, device=next(model.parameters()).device))
        self.names = chosen_sites(found, self.sites, self.task.layers)

    def steps(self, model: Classifier, batch: Batch) -> Iterator[Step]:
        noise, decay, updates = phase(self.schedule, batch.progress)
        x = batch.x if self.objective is None else self.objective.examples(model, batch)
        registers: Registers = {}
        for left in reversed(range(updates)):
            clean_logits = model(batch.x) if self.objective is not None and self.objective.needs_clean else None
            logits, leaves = with_noise(model, x, self.names, registers, noise / updates)
            losses = self._losses(logits, clean_logits, batch.y)
            self.parts = {"J": losses.detach()}
            yield losses.mean(), ("weights",)
            for name, leaf in leaves.items() if left else ():  # no pass follows the last one
                assert leaf.grad is not None
                registers[name] = pushed(registers.get(name), leaf.grad, decay)

    def _losses(
        self, logits: torch.Tensor, clean_logits: torch.Tensor | None, y: torch.Tensor
    ) -> torch.Tensor:  # (N, K), (N, K), (N,) -> (N,)
        if self.objective is not None:
            return self.objective.losses(logits, clean_logits, y)
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.task.label_smoothing)


@HARDENINGS.register("anp+at")
@dataclass
class AdversarialNoisePropagation(NoisePropagation):
    """ANP with adversarial training: `anp` from the examples of a base objective, by default PGD."""

    base: str | None = "pgd"


def pushed(register: torch.Tensor | None, gradient: torch.Tensor, decay: float) -> torch.Tensor:  # (N, ...)
    """decay * r + g / ||g||_2 per sample, from r = 0: after t updates ||r||_2 <= 1 + decay + ... + decay^(t-1).

    A zero gradient adds nothing. (The official code divides by zero.)
    """
    gradient = gradient.float()
    size = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(_TINY)
    push = gradient / per_sample(size, gradient)
    return push if register is None else decay * register + push


def with_noise(
    model: Classifier, x: torch.Tensor, names: Sequence[str], registers: Registers, factor: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(N, K) logits of a pass with factor * register added at each site, and the noises as in `injected`."""

    def noise(name: str, output: torch.Tensor) -> torch.Tensor:
        return factor * registers[name] if name in registers else torch.zeros_like(output)

    with injected(model, names, noise) as leaves:
        if INPUT in names:
            leaves[INPUT] = noise(INPUT, x).requires_grad_(True)
            x = x + leaves[INPUT]
        return model(x), leaves


@contextmanager
def injected(
    model: Classifier, names: Sequence[str], noise: Callable[[str, torch.Tensor], torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """A context in which noise(name, output) is added to the outputs of the named layers, except INPUT.

    Yields the noises, which are leaves: after a backward pass their gradients are those of the loss at the layers.
    """
    leaves: dict[str, torch.Tensor] = {}

    def inject(name: str, output: torch.Tensor) -> torch.Tensor:
        leaves[name] = noise(name, output).detach().to(output.dtype).requires_grad_(True)
        return output + leaves[name]

    with tap(model.body, [name for name in names if name != INPUT], inject):
        yield leaves


def chosen_sites(layers: Sequence[Layer], sites: str, flagged: Sequence[str]) -> tuple[str, ...]:
    """Names of the sites, `input` first. Raises LayerError for a name or a glob that matches no layer."""
    # The output of attention is a tuple, which cannot be replaced; the linear layers around it are sites.
    weighted = [x for x in layers if x.is_learnable and not x.is_output and not isinstance(x.module, _ATTENTION)]
    chosen: set[str] = set()
    for part in sites.split("+"):
        if part in ("shallow", "all"):
            chosen |= {INPUT, *(layer.name for layer in (weighted[:_SHALLOW] if part == "shallow" else weighted))}
        elif part == "mvl":
            chosen |= {feeding(layers, weighted, name) for name in flagged}
        elif part == INPUT:
            chosen.add(INPUT)
        else:
            chosen |= {layer.name for layer in select_layers(layers, [part])}
    return tuple(name for name in (INPUT, *(layer.name for layer in layers)) if name in chosen)


def feeding(layers: Sequence[Layer], weighted: Sequence[Layer], name: str) -> str:
    """The last layer with weights up to the layer `name`; the input where there is none."""
    order = [layer.name for layer in layers]
    before = [layer.name for layer in weighted if order.index(layer.name) <= order.index(name)]
    return before[-1] if before else INPUT
