"""Search: what an attack has found so far for each sample of its batch, and the samples it still works on."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import torch

from lsa_cli.attacks import randomness
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.threat import Threat

Goal = Literal["worst", "break"]
Model = Callable[[torch.Tensor], torch.Tensor]
_ROUNDING = 1e-5  # of the largest logit; float32 differs by a tenth of it between batch sizes
_LOOKS_BETWEEN_SYNCS = 8  # on CUDA, where asking whether any sample broke stops the device


@dataclass
class _Request:
    goal: Goal
    network: Model | None = None
    copy: Model | None = None
    share: float = 0.0
    searches: list["Search"] = field(default_factory=list)


_request: ContextVar[_Request | None] = ContextVar("lsa_search", default=None)


@contextmanager
def searching(
    goal: Goal, network: Model | None = None, copy: Model | None = None, share: float = 0.0
) -> Iterator[_Request]:
    """Within: searches have this goal, and are noted.

    copy: a faster network that gives about the same answers; runs may look at it for this share of their steps.
    """
    request = _Request(goal, network, copy, share)
    token = _request.set(request)
    try:
        yield request
    finally:
        _request.reset(token)


class Search:
    """For attacks within a budget: the strongest input seen for each sample, and when the first adversarial was.

    Strongest is nearest to, or farthest beyond, the decision boundary (the largest margin loss). An adversarial
    that was seen is never lost, and a NaN never wins. What is offered must be within the budget.

    Goal "worst", for the layer scan: every sample is worked on to the end. Goal "break", for the verdict: `still`
    drops a sample once an adversarial of it was seen, so the batch shrinks and its steps are saved. Whether a
    sample breaks is the same with both, but for runs that an attack gives up as hopeless; its docstring tells.

    Where there is a faster copy of the network, an attack may look at it for the first part of a run (`looks_at`). What
    the copy answers only steers the run: everything that is kept here was shown to the network itself.

    Of the whole batch: x_adv (N, ...) the strongest inputs, value (N,) their margins, found_at (N,) int32 the look
    at which the first adversarial was seen, from 1; 0 where none was.
    Of the samples still worked on: x (M, ...), y (M,), threat with eps for each of them, rows (M,) their positions.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, threat: Threat) -> None:
        request = _request.get()
        self.goal: Goal = request.goal if request is not None else "worst"
        if request is not None:
            request.searches.append(self)
        self.x, self.y, self.threat = x, y, threat
        self.rows = torch.arange(len(x), device=x.device)
        self.x_adv = x.clone()
        self.value = torch.full((len(x),), -torch.inf, device=x.device)
        self.found_at = torch.zeros(len(x), dtype=torch.int32, device=x.device)
        self.looks = 0
        self.copy = request.copy if request is not None else None
        self._network = request.network if request is not None else None
        self._share = request.share if request is not None else 0.0
        self.is_on_copy = False

    def looks_at(self, model: Model, done: float) -> Model:
        """What a run is to look at when the share `done` of its steps is over, from now until the next call: the copy
        in the first part, if there is one, and then `model`, the network itself.

        At the turn the strongest input that the copy saw of each sample since the last turn is shown to the network.
        """
        if self.copy is not None and done < self._share:
            if not self.is_on_copy:
                self.is_on_copy = True
                self._held, self._held_value = self.x, torch.full((len(self.x),), -torch.inf, device=self.x.device)
            return self.copy
        if self.is_on_copy:
            self.is_on_copy = False
            self._confirm(self._held_value > -torch.inf, self._held)
        return model

    def offer(self, x_adv: torch.Tensor, logits: torch.Tensor) -> None:
        """Inputs (M, ...) for the samples still worked on, and their logits (M, K)."""
        self.looks += 1
        if self.is_on_copy:
            self._hold(x_adv, margin(logits, self.y).float())
        else:
            self._keep(self.rows, x_adv, margin(logits, self.y).float())

    def _keep(self, rows: torch.Tensor, x_adv: torch.Tensor, value: torch.Tensor) -> None:
        """Inputs for the samples `rows`, and their margins on the network itself."""
        better = value > self.value[rows]
        took = rows[better]
        self.value[took] = value[better]
        self.x_adv[took] = x_adv[better]
        self._note(rows[value > 0])

    def _hold(self, x_adv: torch.Tensor, value: torch.Tensor) -> None:
        """Inputs (M, ...), and their margins on the copy. The strongest waits for the turn; what breaks the copy is shown
        to the network itself at once, as long as the sample is whole."""
        better = value > self._held_value
        self._held_value = torch.where(better, value, self._held_value)
        self._held = torch.where(better.reshape(-1, *[1] * (x_adv.ndim - 1)), x_adv, self._held)
        self._confirm((value > 0) & (self.found_at[self.rows] == 0), x_adv)

    def _confirm(self, which: torch.Tensor, x_adv: torch.Tensor) -> None:
        """Show some, (M,) bool, of these inputs (M, ...) to the network itself."""
        assert self._network is not None
        at = which.nonzero().flatten()
        if len(at):
            with torch.no_grad():
                logits = self._network(x_adv[at])
            self._keep(self.rows[at], x_adv[at], margin(logits, self.y[at]).float())

    def _note(self, rows: torch.Tensor) -> None:
        """These samples were seen to break."""
        self.found_at[rows[self.found_at[rows] == 0]] = self.looks

    @property
    def broken(self) -> torch.Tensor:  # (N,) bool
        return self.found_at > 0

    @property
    def is_over(self) -> bool:
        """Whether no sample is left to work on."""
        return len(self.rows) == 0

    def still(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """An attack's own state, tensors (M, ...) each, cut down to the samples to go on with.

        With goal "worst" it comes back as it is. x, y, threat, rows and the random numbers are cut down too.
        """
        if self.goal == "worst" or (self.x.is_cuda and self.looks % _LOOKS_BETWEEN_SYNCS):
            return tensors
        return self.drop(self.found_at[self.rows] > 0, *tensors)

    def drop(self, done: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `still`, for the samples that the attack itself is done with, (M,) bool, whatever the goal."""
        if not bool(done.any()):
            return tensors
        keep = ~done
        eps = self.threat.eps
        if isinstance(eps, torch.Tensor) and eps.ndim:
            self.threat = dataclasses.replace(self.threat, eps=eps[keep.to(eps.device)])
        self.x, self.y, self.rows = self.x[keep], self.y[keep], self.rows[keep]
        if self.is_on_copy:
            self._held, self._held_value = self._held[keep], self._held_value[keep]
        randomness.keep(keep)
        return tuple(tensor[keep] for tensor in tensors)

    def milestones(self, hopeless: tuple[tuple[float, float], ...], total: int, least: int) -> dict[int, float]:
        """When a run of `total` steps asks whether to give samples up, and the limit then: (share of the steps, limit).

        Only with goal "break" and in linf: in l2 runs were seen to come back from far. Never in runs of fewer than
        `least` steps, where a slow start says little.
        """
        if self.goal == "worst" or self.threat.norm != "linf" or total < least:
            return {}
        return {math.ceil(share * total): limit for share, limit in hopeless}

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Samples dropped within are worked on again after, but for those that `still` is done with."""
        x, y, threat, rows = self.x, self.y, self.threat, self.rows
        with randomness.kept_aside():
            yield
        self.x, self.y, self.threat, self.rows, self.is_on_copy = x, y, threat, rows, False
        self.still()


class Nearest(Search):
    """For attacks that look for the smallest change: the nearest adversarial seen for each sample.

    What is offered may lie outside of the budget; the range is the attack's to keep. distance (N,): of the nearest
    adversarial, infinite where none was seen, and then x_adv is the input itself. With goal "break" a sample is
    dropped once an adversarial within the budget was seen.

    Nearest adversarials lie where rounding, which another batch size changes, may turn the verdict. One that is
    this near to the boundary only counts while the sample has no other.

    Every look is at the network itself: a copy in bfloat16 has its boundary elsewhere, and runs that begin along it find
    less (see FAB).
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, threat: Threat) -> None:
        super().__init__(x, y, threat)
        self.distance = torch.full((len(x),), torch.inf, device=x.device)
        self._share = 0.0

    def still(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As Search; what is wrong as it is has no nearer adversarial and goes after the first look with any goal."""
        if self.goal == "worst" and self.looks == 1:
            return self.drop(self.distance[self.rows] == 0, *tensors)
        return super().still(*tensors)

    def offer(self, x_adv: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """As Search; returns the distance of each, (M,), infinite where it is no adversarial."""
        self.looks += 1
        value = margin(logits, self.y).float()
        distance = self.threat.distance(x_adv, self.x).float()
        best = self.distance[self.rows]
        clear = value > _ROUNDING * logits.abs().amax(1)
        nearer = (value > 0) & (distance < best) & (clear | best.isinf())
        took = self.rows[nearer]
        self.distance[took], self.value[took] = distance[nearer], value[nearer]
        self.x_adv[took] = x_adv[nearer]
        self._note(self.rows[nearer & self.threat.allows(distance)])
        return torch.where(value > 0, distance, torch.inf)
