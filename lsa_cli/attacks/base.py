"""Attack: hyperparameters as a frozen value, called with (model, x, y).

To write one, subclass `Attack`, implement `perturb(model, x, y) -> x_adv` and register the class. Draw random numbers
with `uniform_like` and `normal_like`: they depend on the sample and not on its batch. (The global generator is seeded
for each call too, but the batch size changes its numbers.)
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, final

import torch
from torch import nn

from lsa_cli.attacks import randomness
from lsa_cli.attacks.losses import Loss
from lsa_cli.attacks.search import Goal, Model, searching
from lsa_cli.attacks.threat import Threat
from lsa_cli.errors import NumericalError, UsageError
from lsa_cli.failures import backward_of_network
from lsa_cli.registry import Registry

Role = Literal["one-step", "gradient", "search", "other"]


@dataclass(frozen=True)
class Attack:
    """An algorithm that perturbs inputs.

    kind: "budget" searches within the threat model; "minimal" searches for the smallest perturbation that changes the
    class, which counts where it is within the threat model; "noise" does not query the network. uses_gradient: whether it
    needs the input gradient. needs_range: whether inputs must have a known range; an audit of other inputs
    leaves such a noise out, unless it is asked for by name. norms: the norms that the attack is defined for.
    role: how the evidence compares it: as an attack of one step, as one that follows gradients, or as one that searches
    without them; "other" is not compared.
    on_copy: the share of the steps of each run that query an optimized copy of the network, if there is one, through
    `Search.network_at`. All other steps query the network itself.
    """

    on_copy: ClassVar[float] = 0.0
    kind: ClassVar[str] = "budget"
    role: ClassVar[Role] = "other"
    uses_gradient: ClassVar[bool] = True
    needs_range: ClassVar[bool] = False
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    def __post_init__(self) -> None:
        threat: Threat | None = getattr(self, "threat", None)
        if threat is not None and threat.norm not in self.norms:
            name = type(self).__name__
            raise UsageError(f"{name} is defined for {' and '.join(self.norms)}, not for {threat.norm}")

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(N, ...) inputs, (N,) labels -> (N, ...) perturbed inputs."""
        raise NotImplementedError

    @property
    def passes(self) -> float:
        """Passes (forward and input gradient) for one sample: an estimate, for progress and time."""
        return 1.0

    @property
    def stream(self) -> str:
        """The name of its random numbers: attacks of another name draw other numbers."""
        return type(self).__name__

    @property
    def inputs_each(self) -> int:
        """The most inputs per sample in one pass without gradients, by which an audit cuts batches that fit in memory.

        An input of a pass with gradients counts as three. With at most three, batches keep their size.
        """
        return 1

    @property
    def settings(self) -> dict[str, Any]:
        """The hyperparameters as a run uses them, without the threat model and the range of inputs.

        A default of None is replaced by its value, and what a run does not use is left out.
        """
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("threat", "bounds")
        }

    @property
    def begins_on_copy(self) -> bool:
        """Whether the attack queries an optimized copy of the network, if there is one."""
        return self.on_copy > 0

    @final
    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        index: torch.Tensor | None = None,
        seed: int = 0,
        goal: Goal = "worst",
        copy: Model | None = None,
    ) -> torch.Tensor:
        """Perturb x (N, ...) with labels y (N,). The result is detached; the model and the gradients of its parameters stay.

        index: (N,) the place of each sample in its data set, which with `seed` fixes its random numbers; default 0 .. N-1.
        goal: see `Search`. copy: an optimized copy of the network, for the share `on_copy` of the steps.
        """
        return self.run(model, x, y, index=index, seed=seed, goal=goal, copy=copy)[0]

    @final
    def run(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        index: torch.Tensor | None = None,
        seed: int = 0,
        goal: Goal = "worst",
        copy: Model | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `__call__`. Also returns (N,) int32: the query that found the first adversarial example of each sample, from 1.

        It is 0 where there is none, and for attacks without a `Search`.
        """
        threat: Threat | None = getattr(self, "threat", None)
        if len(x) == 0 or (threat is not None and not torch.as_tensor(threat.eps).any()):
            return x.detach().clone(), torch.zeros(len(x), dtype=torch.int32, device=x.device)
        index = torch.arange(len(x), device=x.device) if index is None else index.to(x.device)
        devices = [x.device] if x.device.type == "cuda" else []
        with (
            undisturbed(model),
            undisturbed(copy),
            torch.random.fork_rng(devices=devices),
            randomness.per_sample(seed, index, self.stream),
            torch.enable_grad(),
            searching(goal, model, copy, self.on_copy) as request,
        ):
            torch.manual_seed(seed * 1_000_003 + int(index[0]))
            x_adv = self.perturb(model, x.detach(), y).detach()
        found_at = [search.found_at for search in request.searches if len(search.found_at) == len(x)]
        return x_adv, found_at[0] if found_at else torch.zeros(len(x), dtype=torch.int32, device=x.device)


def at_least_one(attack: str, **values: int) -> None:
    """Raise UsageError for a hyperparameter below 1."""
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{attack}: {name} must be at least 1, not {value}")


ATTACKS: Registry[type[Attack]] = Registry("attack")
NOISES: Registry[type[Attack]] = Registry("noise")
CORRUPTIONS: Registry[type[Attack]] = Registry("corruption")


@contextmanager
def undisturbed(model: Model | None) -> Iterator[None]:
    """A context in which the model is in evaluation mode and its parameters are frozen; afterwards all is as before."""
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def annealed(first: float, last: float, done: float) -> float:
    """From `first`, with the share `done` = 0 of the steps, to `last`, with 1, along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def input_gradient(model: Model, x: torch.Tensor, y: torch.Tensor, loss: Loss) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the loss at x (N, ...), and the logits (N, K), by one forward and one backward pass.

    Raises NumericalError where the network detaches its output from the input.
    """
    gradient, logits, _ = expected_gradient(model, x, y, loss)
    return gradient, logits


def expected_gradient(
    model: Model, x: torch.Tensor, y: torch.Tensor, loss: Loss, draws: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `input_gradient`, and the loss (N,). Each is the mean over `draws` passes, for stochastic networks."""

    def draw() -> tuple[torch.Tensor, ...]:
        leaf = x.detach().requires_grad_(True)
        logits = model(leaf)
        value = loss(logits, y)
        return slope(value.sum(), leaf), logits.detach(), value.detach()

    gradient, logits, value = _mean(draw, draws)
    return gradient, logits, value


def slope(value: torch.Tensor, x: torch.Tensor, retain_graph: bool = False) -> torch.Tensor:
    """The gradient (N, ...) at x of a sum over samples. Raises NumericalError where the sum is detached from x."""
    gradient = None
    if value.requires_grad:  # still None where only other tensors of the network require it
        with backward_of_network():
            (gradient,) = torch.autograd.grad(value, x, retain_graph=retain_graph, allow_unused=True)
    if gradient is None:
        raise NumericalError(
            "the network has no input gradient: its forward pass detaches the input (no_grad, numpy, argmax?), "
            "so gradient attacks cannot run; make it differentiable, or attack without gradients (--attack square)"
        )
    return gradient


@torch.no_grad()
def expected_logits(model: Model, x: torch.Tensor, draws: int = 1) -> torch.Tensor:
    """(N, K) logits: the mean over `draws` passes, for stochastic networks."""
    return _mean(lambda: (model(x),), draws)[0]


def _mean(draw: Callable[[], tuple[torch.Tensor, ...]], draws: int) -> tuple[torch.Tensor, ...]:
    """Expectation over transformation (EoT, arXiv 1707.07397): the mean of each tensor over the draws."""
    sums = draw()
    for _ in range(draws - 1):
        sums = tuple(total + new for total, new in zip(sums, draw(), strict=True))
    return sums if draws == 1 else tuple(total / draws for total in sums)
