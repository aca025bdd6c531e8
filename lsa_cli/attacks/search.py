"""Search: the result of an attack so far for each sample of its batch, and the samples that it still attacks."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import torch

from lsa_cli.attacks import randomness
from lsa_cli.attacks.losses import decision_margin
from lsa_cli.attacks.threat import Threat, as_rows, each

Goal = Literal["worst", "break", "patient"]
Model = Callable[[torch.Tensor], torch.Tensor]
_ROUNDING = 1e-5  # of the largest logit; batch sizes change float32 results by a tenth of that
_QUERIES_BETWEEN_SYNCS = 8  # on CUDA, where the host must wait for the device to learn which samples are broken


@dataclass
class Request:
    """How an attack runs: see `searching`. searches: those that it has made."""

    goal: Goal
    network: Model | None = None
    copy: Model | None = None
    share: float = 0.0
    searches: list["Search"] = field(default_factory=list)


_request: ContextVar[Request | None] = ContextVar("lsa_search", default=None)


@contextmanager
def searching(
    goal: Goal, network: Model | None = None, copy: Model | None = None, share: float = 0.0
) -> Iterator[Request]:
    """A context in which searches have this goal.

    copy: an optimized copy of the network, which runs may query for this share of their steps.
    """
    request = Request(goal, network, copy, share)
    token = _request.set(request)
    try:
        yield request
    finally:
        _request.reset(token)


class Search:
    """For budget attacks: the strongest input found for each sample, and the query that found its first adversarial example.

    The strongest input has the largest margin loss. An adversarial example is never lost. An input for which the network
    returns NaN is one: its margin counts as infinite. Inputs that are offered must be within the budget.

    Goal "worst", for the layer scan: every sample is attacked to the end. Goal "break", for the verdict: `still` drops a
    sample once it is broken, that is, an adversarial example is found, so that later batches are smaller. Both goals break
    the same samples, except in runs that an attack gives up as hopeless, as its docstring says. Goal "patient" is "break"
    without giving up.

    An attack may query an optimized copy of the network in the first part of a run (`network_at`). The copy only steers the
    run: the network itself evaluates everything that is kept here.

    For the whole batch: x_adv (N, ...) the strongest inputs, value (N,) their margins, found_at (N,) int32 the query
    that found the first adversarial example, from 1; 0 where there is none.
    For the samples still attacked: x (M, ...), y (M,), threat with the eps of each, rows (M,) their positions. After `stack`
    a sample has several rows there, one for each of its runs.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, threat: Threat) -> None:
        request = _request.get() or Request("worst")
        request.searches.append(self)
        self.goal, self.copy, self._network, self._share = request.goal, request.copy, request.network, request.share
        self.x, self.y, self.threat = x, y, threat
        self.rows = torch.arange(len(x), device=x.device)
        self.x_adv = x.clone()
        self.value = torch.full((len(x),), -torch.inf, device=x.device)
        self.found_at = torch.zeros(len(x), dtype=torch.int32, device=x.device)
        self.runs, self.queries, self._queries_at_sync = 1, 0, 0
        self.is_on_copy = False

    def network_at(self, model: Model, done: float) -> Model:
        """The network to query after the share `done` of the steps of a run, until the next call.

        In the first part of the run that is the copy, if there is one, and then `model`, the network itself. At the change,
        the network itself evaluates the strongest input that the copy found for each sample.
        """
        if self.copy is not None and done < self._share:
            if not self.is_on_copy:
                self.is_on_copy = True
                self._best_on_copy = self.x
                self._best_on_copy_value = torch.full((len(self.x),), -torch.inf, device=self.x.device)
            return self.copy
        if self.is_on_copy:
            self.is_on_copy = False
            self._confirm(self._best_on_copy_value > -torch.inf, self._best_on_copy)
        return model

    def offer(self, x_adv: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Record inputs (M, ...) of the samples still attacked, with their logits (M, K). Returns their margins (M,).

        It counts one query for each run of a sample.
        """
        return self._record(x_adv, decision_margin(logits, self.y, x_adv))

    def offer_best(self, x_adv: torch.Tensor, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `offer`, with `count` inputs in a row (M * count, ...) and their logits for each sample: that with the largest margin.

        Each of them is a query. Returns the inputs that it offers (M, ...), and their margins (M,).
        """
        value = decision_margin(logits, each(self.y, count), x_adv)
        if count > 1:
            first = torch.arange(0, len(x_adv), count, device=x_adv.device)
            best = first + torch.where(value.isnan(), -torch.inf, value).reshape(-1, count).argmax(1)
            x_adv, value = x_adv[best], value[best]
            self.queries += (count - 1) * self.runs
        return x_adv, self._record(x_adv, value)

    def _record(self, x_adv: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Count a query, and record its inputs (M, ...) with their margins (M,), which it returns."""
        self.queries += self.runs
        if self.is_on_copy:
            self._keep_on_copy(x_adv, value.float())
        else:
            self._keep(self.rows, x_adv, value.float())
        return value

    def on_network(self, x_adv: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The margins (M,) of inputs that were offered on the network itself. value (M,): those that `offer` returned."""
        return self._confirm(torch.ones_like(value, dtype=torch.bool), x_adv) if self.is_on_copy else value

    def _keep(self, rows: torch.Tensor, x_adv: torch.Tensor, value: torch.Tensor) -> None:
        """Record inputs of the samples `rows`, with their margins on the network itself."""
        better = (value > self.value[rows]).nonzero().flatten()
        if len(better):
            better = self._one_of_each(better, rows, value)
            took = rows[better]
            self.value[took] = value[better]
            self.x_adv[took] = x_adv[better]
        self._mark_broken(rows[value > 0])

    def _keep_on_copy(self, x_adv: torch.Tensor, value: torch.Tensor) -> None:
        """Record inputs (M, ...), with their margins on the copy.

        The network itself evaluates the strongest one later. It evaluates at once those that the copy misclassifies, as long
        as the sample is still robust.
        """
        better = value > self._best_on_copy_value
        self._best_on_copy_value = torch.where(better, value, self._best_on_copy_value)
        self._best_on_copy = torch.where(as_rows(better, x_adv), x_adv, self._best_on_copy)
        self._confirm((value > 0) & (self.found_at[self.rows] == 0), x_adv)

    def _confirm(self, which: torch.Tensor, x_adv: torch.Tensor) -> torch.Tensor:
        """Evaluate K of these inputs (M, ...), `which` (M,) bool, on the network itself, and record them.

        Returns their margins (K,).
        """
        assert self._network is not None
        at = which.nonzero().flatten()
        if not len(at):
            return x_adv.new_empty(0)
        with torch.no_grad():
            value = decision_margin(self._network(x_adv[at]), self.y[at], x_adv[at]).float()
        self._keep(self.rows[at], x_adv[at], value)
        return value

    def _one_of_each(self, at: torch.Tensor, rows: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Of the positions `at` in rows (M,), the one of each sample with the largest value (M,); of equal ones the first."""
        if self.runs == 1:
            return at
        at = at[value[at].argsort(descending=True, stable=True)]
        at = at[rows[at].argsort(stable=True)]
        is_first = torch.ones_like(at, dtype=torch.bool)
        is_first[1:] = rows[at[1:]] != rows[at[:-1]]
        return at[is_first]

    def _mark_broken(self, rows: torch.Tensor) -> None:
        if len(rows):
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
        if self.goal == "worst" or (self.x.is_cuda and self.queries - self._queries_at_sync < _QUERIES_BETWEEN_SYNCS):
            return tensors
        self._queries_at_sync = self.queries
        return self.drop(self.found_at[self.rows] > 0, *tensors)

    def drop(self, done: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `still`, with any goal, for the samples `done` (M,) bool with which the attack has finished."""
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

        hopeless: (share of the steps, limit). There are none with goals other than "break"; none in other norms than linf,
        because runs in l2 recover from far away; and none in runs of fewer than `least` steps, where a slow start means little.
        """
        if self.goal != "break" or self.threat.norm != "linf" or total < least:
            return {}
        return {math.ceil(share * total): limit for share, limit in hopeless}

    def stack(self, runs: int) -> None:
        """Give each sample `runs` rows in a row, one for each run, until the end of `aside`. `still` drops them together.

        Each run draws random numbers of its own. Starts that are drawn before are the same as those of runs one after the other.
        """
        self.runs, self.threat = runs, self.threat.repeated(runs)
        self.x, self.y, self.rows = each(self.x, runs), each(self.y, runs), each(self.rows, runs)
        randomness.repeat(runs)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A context after which the samples that were dropped in it are attacked again, except those that `still` drops.

        Each of them then has one row again.
        """
        x, y, threat, rows = self.x, self.y, self.threat, self.rows
        with randomness.kept_aside():
            yield
        self.x, self.y, self.threat, self.rows, self.runs, self.is_on_copy = x, y, threat, rows, 1, False
        self.still()


class Nearest(Search):
    """For minimal-norm attacks: the nearest adversarial example found for each sample.

    Inputs that are offered may be outside of the budget; the attack keeps them in the input range. distance (N,): of the
    nearest adversarial example; infinite where there is none, and then x_adv is the input itself. With goal "break" a
    sample is dropped once an adversarial example within the budget is found.

    So near the decision boundary that rounding, which depends on the batch size, may change the class, an adversarial
    example only counts while the sample has no other.

    Every query goes to the network itself: a copy in bfloat16 has another decision boundary, and runs that begin along it
    find less.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, threat: Threat) -> None:
        super().__init__(x, y, threat)
        self.distance = torch.full((len(x),), torch.inf, device=x.device)
        self._share = 0.0

    def still(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As Search. With any goal, the first query drops the samples that are misclassified without a perturbation."""
        if self.goal == "worst" and self.queries == 1:
            return self.drop(self.distance[self.rows] == 0, *tensors)
        return super().still(*tensors)

    def offer(self, x_adv: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """As Search. Returns the distance (M,) of each input, infinite where it is not adversarial."""
        self.queries += self.runs
        value = decision_margin(logits, self.y, x_adv).float()
        distance = torch.where(value > 0, self.threat.distance(x_adv, self.x).float(), torch.inf)
        clear = value > _ROUNDING * logits.abs().amax(1)
        self._keep_nearest(clear & (distance < self.distance[self.rows]), x_adv, value, distance)
        self._keep_nearest(~clear & distance.isfinite() & self.distance[self.rows].isinf(), x_adv, value, distance)
        return distance

    def _keep_nearest(
        self, which: torch.Tensor, x_adv: torch.Tensor, value: torch.Tensor, distance: torch.Tensor
    ) -> None:
        """Record, of the inputs `which` (M,) bool, the nearest one of each sample."""
        at = which.nonzero().flatten()
        if len(at):
            self._mark_broken(self.rows[at[self.threat.allows(distance)[at]]])
            at = self._one_of_each(at, self.rows, -distance)
            took = self.rows[at]
            self.distance[took], self.value[took], self.x_adv[took] = distance[at], value[at], x_adv[at]
