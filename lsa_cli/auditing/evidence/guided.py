"""PGD along another output of the network than its logits: a new last layer, features, or the mean over noisy inputs.

The gradient is that of the other output; the logits, which the same pass gives, judge each iterate.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lsa_cli.attacks import Attack, Threat
from lsa_cli.attacks.base import Model, annealed, expected_logits, slope
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.attacks.randomness import normal_like
from lsa_cli.attacks.search import Search
from lsa_cli.attacks.threat import per_sample
from lsa_cli.errors import NumericalError
from lsa_cli.layers import tap
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.precision import FastClassifier

# (network, iterates (M, ...), what the loss needs of each sample (M, ...)) -> losses (M,), logits (M, K)
Loss = Callable[[Model, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class NoRows(Exception):
    """A module does not run in a pass, or a layer several times, or not on one row for each sample."""


@dataclass(frozen=True)
class Tap:
    """What a module of the network gets (inputs), or returns. name: its place in the network, by which the copy has it too."""

    module: nn.Module
    inputs: bool
    name: str | None

    @classmethod
    def of(cls, model: Model, module: nn.Module, inputs: bool) -> "Tap":
        named = model.named_modules() if isinstance(model, nn.Module) else ()
        return cls(module, inputs, next((name for name, other in named if other is module), None))

    def __call__(self, model: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (N, ...) -> (N, D) and the logits (N, K), in one pass of the network or its copy. Raises NoRows.

        Of a module that runs several times it is the mean, as a network may ask a part of it for views of its input.
        """
        with self.listening(model) as seen:
            logits = model(x)
        return self.values(seen, x), logits

    @contextlib.contextmanager
    def listening(self, model: Model) -> Iterator[list[Any]]:
        """Within, what the module gets or returns in a pass of `model` is added to the list."""
        seen: list[Any] = []
        module = self.module
        if isinstance(model, FastClassifier) and self.name is not None:
            module = model.classifier.get_submodule(self.name)
        handle = module.register_forward_hook(lambda _, given, output: seen.append(given[0] if self.inputs else output))
        try:
            yield seen
        finally:
            handle.remove()

    @staticmethod
    def values(seen: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
        """The mean (N, D) of what was seen in a pass over images x (N, ...). Raises NoRows."""
        if not seen or any(not isinstance(one, torch.Tensor) or one.shape[:1] != x.shape[:1] for one in seen):
            raise NoRows
        if any(one.shape != seen[0].shape for one in seen):
            raise NoRows
        return torch.stack([one.float().reshape(len(one), -1) for one in seen]).mean(0)


@dataclass(frozen=True)
class JointTap:
    """The sum of the log-probabilities that several modules return in a pass, each one number for each class."""

    taps: tuple[Tap, ...]

    def __call__(self, model: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Tap`."""
        with contextlib.ExitStack() as stack:
            seen = [stack.enter_context(tap.listening(model)) for tap in self.taps]
            logits = model(x)
        return torch.stack([Tap.values(one, x).log_softmax(1) for one in seen]).sum(0), logits


@dataclass(frozen=True)
class LayerTap:
    """What a layer returns. name: as in `layers.tap`, which tells calls apart."""

    name: str

    def __call__(self, model: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Tap`."""
        network: Any = model.classifier if isinstance(model, FastClassifier) else model
        network = network.body if isinstance(network, Classifier) else network
        seen: list[torch.Tensor] = []
        with tap(network, [self.name], lambda _, output: seen.append(output.float().reshape(len(output), -1))):
            logits = model(x)
        if len(seen) != 1 or len(seen[0]) != len(x):
            raise NoRows
        return seen[0], logits


def follow(
    model: Model, search: Search, steps: int, gradient_of: Callable[[Model, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    lengths: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """Steps from the samples themselves along a gradient, projected into the budget.

    gradient_of: (network, iterates (M, ...)) -> what is followed (M, ...), and the logits (M, K). lengths: of the first and the
    last step, in eps; None is 2.5 / steps for each.
    """
    first, last = lengths or (2.5 / steps, 2.5 / steps)
    x_adv = search.x
    for step in range(steps):
        gradient, logits = gradient_of(search.network_at(model, step / steps), x_adv)
        search.offer(x_adv, logits)
        direction = search.threat.steepest(gradient, x_adv).nan_to_num(0)
        length = per_sample(annealed(first, last, step / steps) * search.threat.eps, x_adv)
        x_adv = search.threat.project(x_adv + length * direction, search.x)
        (x_adv,) = search.still(x_adv)
        if search.is_over:
            return
    search.offer(x_adv, expected_logits(search.network_at(model, 1), x_adv))


@dataclass(frozen=True)
class Guided(Attack):
    """PGD from the sample itself along the gradient of `loss`. The result is the strongest iterate for the logits.

    It ends where a pass does not give the other output, or not with a gradient.
    """

    threat: Threat
    steps: int = 10
    role = "other"
    on_copy: ClassVar[float] = 0.75

    @property
    def passes(self) -> float:
        return self.steps + 0.4

    @property
    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def aims(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What the loss needs of each sample, (N, ...): its label, unless a subclass says otherwise."""
        return y

    def loss(self, network: Model, x: torch.Tensor, aims: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the iterates x (M, ...): (M,), and the logits (M, K)."""
        raise NotImplementedError

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        search = Search(x, y, self.threat)
        # Where the other output is not part of a pass, or has no gradient, the attack ends.
        with contextlib.suppress(NoRows, NumericalError):
            self._run(model, search)
        return search.x_adv

    def _run(self, model: Model, search: Search) -> None:
        increase(model, search, self.steps, self.loss, self.aims(model, search.x, search.y))


def increase(
    model: Model, search: Search, steps: int, loss: Loss, aims: torch.Tensor, lengths: tuple[float, float] | None = None
) -> None:
    """`follow` the gradient of a loss. aims (N, ...): what it needs of each sample of the whole batch."""

    def gradient(network: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.detach().requires_grad_(True)
        value, logits = loss(network, leaf, aims[search.rows])
        return slope(value.sum(), leaf), logits.detach()

    follow(model, search, steps, gradient, lengths)


@dataclass(frozen=True)
class LabelAlone(Guided):
    """On the logit of the label alone, which falls. Decoys among the other logits do not mislead it."""

    def loss(self, network: Model, x: torch.Tensor, aims: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = network(x)
        return -logits.gather(1, aims[:, None]).squeeze(1), logits.detach()


@dataclass(frozen=True)
class OnLogarithms(Guided):
    """On the log-odds of the logarithms of the outputs, where these are never negative, such as likelihoods.

    The slope of exp(-d^2) is nearly zero far away, and that of its logarithm is not. An output that float32 rounds to zero has
    no logarithm and no slope.
    """

    def loss(self, network: Model, x: torch.Tensor, aims: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = network(x)
        smallest = torch.finfo(outputs.dtype).tiny
        return cross_entropy(outputs.clamp_min(smallest).log(), aims), outputs.detach()


@dataclass(frozen=True, eq=False)
class OtherHead(Guided):
    """On the cross-entropy of another output: what `tap` gives, or (it - mean) @ weight."""

    tap: Tap | JointTap | None = None
    mean: torch.Tensor | None = None  # (D,)
    weight: torch.Tensor | None = None  # (D, K)

    def outputs(self, network: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The other output (N, K), and the logits (N, K)."""
        assert self.tap is not None
        values, logits = self.tap(network, x)
        return values if self.weight is None else (values - self.mean) @ self.weight, logits

    def loss(self, network: Model, x: torch.Tensor, aims: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, logits = self.outputs(network, x)
        return cross_entropy(outputs, aims), logits


@dataclass(frozen=True)
class Smoothed(Guided):
    """On the cross-entropy of the mean logits over `draws` noisy copies of the input, and of the input itself.

    The noise is normal and about half as long as the budget allows. It smooths kinks and jumps.
    """

    steps: int = 5
    draws: int = 4

    @property
    def passes(self) -> float:
        return self.steps * (self.draws + 0.4) + 0.4

    @property
    def inputs_each(self) -> int:
        return 3 * self.draws

    @property
    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "draws": self.draws}

    def loss(self, network: Model, x: torch.Tensor, aims: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = x[:1].numel()
        length = {"linf": 1, "l2": math.sqrt(size), "l1": 0.8 * size}[self.threat.norm]
        sigma = self.threat.eps / 2 / length
        noisy = [network(x + sigma * normal_like(x.detach())) for _ in range(self.draws)]
        with torch.no_grad():
            logits = network(x)
        return cross_entropy(torch.stack(noisy).mean(0), aims), logits


@dataclass(frozen=True, eq=False)
class Goals:
    """The features of some samples, to which attacks move those of others.

    tap: gives the features; called: the layer, for messages. known (M, D): those of samples of the classes `classes` (M,).
    """

    tap: Tap | LayerTap
    called: str
    known: torch.Tensor
    classes: torch.Tensor

    def nearest(self, features: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # (N, D), (N,) -> (N, D)
        """The nearest known features of a class other than y."""
        distance = torch.cdist(features, self.known)
        return self.known[distance.masked_fill(self.classes[None] == y[:, None], torch.inf).argmin(1)]

    def loss(self, network: Model, x: torch.Tensor, aims: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Minus the squared distance (M,) of the features of x (M, ...) to aims (M, D), and the logits (M, K)."""
        values, logits = self.tap(network, x)
        return -(values - aims).square().sum(1), logits


@dataclass(frozen=True, eq=False)
class TowardsFeatures(Guided):
    """Towards the features of a sample of another class: the squared distance to the nearest one falls.

    goals: one for each layer. The first one gets `steps`, and the others share as many. A sample that is broken is not
    moved any more.
    """

    goals: tuple[Goals, ...] = ()

    @property
    def passes(self) -> float:
        return sum(steps + 0.8 for _, steps in self._parts())

    @property
    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "layers": ", ".join(goals.called for goals in self.goals)}

    def _parts(self) -> list[tuple[Goals, int]]:
        others = self.goals[1:]
        return [(goals, self.steps) for goals in self.goals[:1]] + [(g, self.steps // len(others)) for g in others]

    def _run(self, model: Model, search: Search) -> None:
        for goals, steps in self._parts():
            search.still()
            if search.is_over:
                return
            with search.aside(), contextlib.suppress(NoRows, NumericalError):
                self._move(model, search, goals, steps)

    def _move(self, model: Model, search: Search, goals: Goals, steps: int) -> None:
        with torch.no_grad():
            near = goals.nearest(goals.tap(model, search.x)[0], search.y)
        aims = near.new_zeros(len(search.x_adv), near.shape[1]).index_copy(0, search.rows, near)
        increase(model, search, steps, goals.loss, aims)
