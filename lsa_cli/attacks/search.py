"""Search: what an attack has found so far for each sample of its batch, and the samples that it still attacks."""

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
_QUERIES_BETWEEN_SYNCS = 8  # on CUDA, where asking whether any sample broke stops the device


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
    """A context in which searches have this goal. Yields the request, which lists them.

    copy: an optimized copy of the network, which runs may query for this share of their steps.
    """
    request = _Request(goal, network, copy, share)
    token = _request.set(request)
    try:
        yield request
    finally:
        _request.reset(token)


class Search:
    """For budget attacks: the strongest input found for each sample, and the query that found the first adversarial one.

    The strongest input has the largest margin loss. An adversarial example that was found is never lost, and a NaN is
    never the strongest. Inputs that are offered must be within the budget.

    Goal "worst", for the layer scan: every sample is attacked to the end. Goal "break", for the verdict: `still` drops
    a sample once an adversarial example of it is found, so the batch shrinks and its steps are saved. Both goals break
    the same samples, except in runs that an attack gives up as hopeless, as its docstring says.

    Where there is an optimized copy of the network, an attack may query it in the first part of a run (`network_at`).
    The copy only steers the run: the network itself has evaluated everything that is kept here.

    For the whole batch: x_adv (N, ...) the strongest inputs, value (N,) their margins, found_at (N,) int32 the query
    that found the first adversarial example, from 1; 0 where there is none.
    For the samples still attacked: x (M, ...), y (M,), threat with the eps of each, rows (M,) their positions.
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
        self.queries = 0
        self.copy = request.copy if request is not None else None
        self._network = request.network if request is not None else None
        self._share = request.share if request is not None else 0.0
        self.is_on_copy = False

    def network_at(self, model: Model, done: float) -> Model:
        """The network to query after the share `done` of the steps of a run, until the next call.

        That is the copy in the first part of the run, if there is one, and then `model`, the network itself. When they
        change, the network itself evaluates the strongest input that the copy found for each sample.
        """
        if self.copy is not None and done < self._share:
            if not self.is_on_copy:
                self.is_on_copy = True
                self._best_on_copy, self._best_on_copy_value = (
                    self.x,
                    torch.full((len(self.x),), -torch.inf, device=self.x.device),
                )
            return self.copy
        if self.is_on_copy:
            self.is_on_copy = False
            self._confirm(self._best_on_copy_value > -torch.inf, self._best_on_copy)
        return model

    def offer(self, x_adv: torch.Tensor, logits: torch.Tensor) -> None:
        """Record inputs (M, ...) of the samples still attacked, with their logits (M, K)."""
        self.queries += 1
        if self.is_on_copy:
            self._keep_on_copy(x_adv, margin(logits, self.y).float())
        else:
            self._keep(self.rows, x_adv, margin(logits, self.y).float())

    def _keep(self, rows: torch.Tensor, x_adv: torch.Tensor, value: torch.Tensor) -> None:
        """Record inputs of the samples `rows`, with their margins on the network itself."""
        better = value > self.value[rows]
        took = rows[better]
        self.value[took] = value[better]
        self.x_adv[took] = x_adv[better]
        self._note(rows[value > 0])

    def _keep_on_copy(self, x_adv: torch.Tensor, value: torch.Tensor) -> None:
        """Record inputs (M, ...), with their margins on the copy.

        The network itself evaluates the strongest one later, and at once those that the copy misclassifies, as long as the
        sample is still robust.
        """
        better = value > self._best_on_copy_value
        self._best_on_copy_value = torch.where(better, value, self._best_on_copy_value)
        self._best_on_copy = torch.where(better.reshape(-1, *[1] * (x_adv.ndim - 1)), x_adv, self._best_on_copy)
        self._confirm((value > 0) & (self.found_at[self.rows] == 0), x_adv)

    def _confirm(self, which: torch.Tensor, x_adv: torch.Tensor) -> None:
        """Evaluate some, (M,) bool, of these inputs (M, ...) on the network itself, and record them."""
        assert self._network is not None
        at = which.nonzero().flatten()
        if len(at):
            with torch.no_grad():
                logits = self._network(x_adv[at])
            self._keep(self.rows[at], x_adv[at], margin(logits, self.y[at]).float())

    def _note(self, rows: torch.Tensor) -> None:
        """Mark these samples as broken."""
        self.found_at[rows[self.found_at[rows] == 0]] = self.queries

    @property
    def broken(self) -> torch.Tensor:  # (N,) bool
        return self.found_at > 0

    @property
    def is_over(self) -> bool:
        """Whether no sample is left to attack."""
        return len(self.rows) == 0

    def still(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors (M, ...) of an attack's state, reduced to the samples that are still attacked.

        With goal "worst" they are returned unchanged. x, y, threat, rows and the random numbers are reduced too.
        """
        if self.goal == "worst" or (self.x.is_cuda and self.queries % _QUERIES_BETWEEN_SYNCS):
            return tensors
        return self.drop(self.found_at[self.rows] > 0, *tensors)

    def drop(self, done: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `still`, without the samples `done` (M,) bool that the attack itself has finished, with any goal."""
        if not bool(done.any()):
            return tensors
        keep = ~done
        eps = self.threat.eps
        if isinstance(eps, torch.Tensor) and eps.ndim:
            self.threat = dataclasses.replace(self.threat, eps=eps[keep.to(eps.device)])
        self.x, self.y, self.rows = self.x[keep], self.y[keep], self.rows[keep]
        if self.is_on_copy:
            self._best_on_copy, self._best_on_copy_value = self._best_on_copy[keep], self._best_on_copy_value[keep]
        randomness.keep(keep)
        return tuple(tensor[keep] for tensor in tensors)

    def milestones(self, hopeless: tuple[tuple[float, float], ...], total: int, least: int) -> dict[int, float]:
        """The steps after which a run of `total` steps may give samples up, each with its limit.

        hopeless: (share of the steps, limit). Only with goal "break" and in linf: in l2, runs recover from far away. Never
        in runs of fewer than `least` steps, where a slow start says little.
        """
        if self.goal == "worst" or self.threat.norm != "linf" or total < least:
            return {}
        return {math.ceil(share * total): limit for share, limit in hopeless}

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A context after which samples dropped in it are attacked again, except those that `still` drops."""
        x, y, threat, rows = self.x, self.y, self.threat, self.rows
        with randomness.kept_aside():
            yield
        self.x, self.y, self.threat, self.rows, self.is_on_copy = x, y, threat, rows, False
        self.still()


class Nearest(Search):
    """For minimal-norm attacks: the nearest adversarial example found for each sample.

    Inputs that are offered may be outside of the budget; the attack keeps them in the input range. distance (N,): of the
    nearest adversarial example, infinite where there is none, and then x_adv is the input itself. With goal "break" a
    sample is dropped once an adversarial example within the budget is found.

    Near the decision boundary rounding, which depends on the batch size, may change the class. An adversarial example
    that is so near only counts while the sample has no other.

    Every query goes to the network itself: the boundary of a copy in bfloat16 is elsewhere, and runs that begin along it
    find less (see FAB).
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, threat: Threat) -> None:
        super().__init__(x, y, threat)
        self.distance = torch.full((len(x),), torch.inf, device=x.device)
        self._share = 0.0

    def still(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As Search. A sample that is misclassified without a change is dropped after the first query, with any goal."""
        if self.goal == "worst" and self.queries == 1:
            return self.drop(self.distance[self.rows] == 0, *tensors)
        return super().still(*tensors)

    def offer(self, x_adv: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """As Search. Returns the distance (M,) of each input, infinite where it is not adversarial."""
        self.queries += 1
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
