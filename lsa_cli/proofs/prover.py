"""Proofs that no input within eps changes the class of a sample."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lsa_cli.attacks.threat import Threat
from lsa_cli.proofs.crown import Bounds, Region
from lsa_cli.proofs.graph import Graph
from lsa_cli.proofs.reading import Model, read
from lsa_cli.proofs.slopes import optimised

AT_ONCE = 16  # samples
# Before CROWN bounds the hidden layers, it bounds one of STRIDE of their entries, and the others are taken to become as much
# tighter. A sample is left open where not even REACH of the gap between its margin and this estimate would prove it: optimised
# slopes close at most half of it, and the estimate is off by up to a tenth. So most samples that an attack breaks cost little.
STRIDE, REACH = 16, 0.6
STEPS = 20  # of the optimisation of slopes
# Slopes are optimised where they may close the gap between a margin and its bound: they close at most half of it, and
# those of hidden layers, at 20 times the cost, a tenth more. Both shares, and the steps of the latter, are our choice.
NEAR, CLOSE, HIDDEN_STEPS = 0.5, 0.1, 5


@dataclass(frozen=True)
class Prover:
    """Lower bounds of the margins of one network, by linear relaxation (CROWN, arXiv 1811.00866; with optimised slopes,
    alpha-CROWN, arXiv 2011.13824).

    What a positive bound guarantees: the network in float32 and eval mode gives every input within the threat model the
    class of the sample, in whatever order it computes its sums. The bounds are computed in float64; the errors of float32
    in each operation of the network, and those of the bounds themselves, are subtracted (`crown`). The threat model is
    taken wider by twice the tolerance of `Threat.contains`. No guarantee covers a network that computes with less
    precision than float32, or that is no function of its operations; both are refused where the outputs show them.
    """

    graph: Graph

    @classmethod
    def of(cls, model: Model, example: torch.Tensor) -> "Prover":
        """Read the operations of `model` once.

        model: images (N, ...) -> logits (N, K), in eval mode. example: (N, ...), images of the data set.

        Raises NotProvable for an operation without a bound, by its name, and for a network that is random, depends on
        the batch, or branches on values.
        """
        return cls(read(model, example))

    def margins(self, x: torch.Tensor, y: torch.Tensor, threat: Threat, optimise: int = STEPS) -> torch.Tensor:
        """A lower bound (N,), float64, of the margin z_y - max z_k over the inputs that the threat model allows.

        x: (N, ...). y: (N,) classes. threat: linf, l2 or l1. optimise: steps of the optimisation of slopes for samples that
        CROWN's slopes do not prove; 0: none. The result does not depend on the other samples, except for the rounding
        of float64.
        """
        eps = torch.as_tensor(threat.eps, dtype=torch.double, device=x.device).expand(len(x))
        with torch.no_grad():
            found = [
                self._margins(x[part], y[part], eps[part], threat, optimise)
                for part in torch.arange(len(x), device=x.device).split(AT_ONCE)
            ]
        return torch.cat(found)

    def proves(self, x: torch.Tensor, y: torch.Tensor, threat: Threat) -> torch.Tensor:  # -> (N,) bool
        """Whether each sample keeps class `y` over the whole threat model. False: not proven, which does not mean broken."""
        return self.margins(x, y, threat) > 0

    def _margins(
        self, x: torch.Tensor, y: torch.Tensor, eps: torch.Tensor, threat: Threat, optimise: int
    ) -> torch.Tensor:
        rows, sample = self._differences(y)
        margins = (self.graph.evaluate(x)[sample] * rows).sum(1)
        task = _Task(self.graph, Region.of(x, eps, threat), rows, sample, margins, torch.full_like(margins, -torch.inf))
        task.run(optimise)
        return task.least.reshape(len(x), -1).amin(1)

    def _differences(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For samples of classes y (B,): the coefficients of z_y - z_k for each other class k, and the sample of each row."""
        (classes,) = self.graph.nodes[-1].shape
        own = torch.nn.functional.one_hot(y, classes)
        rows = (own[:, None] - torch.eye(classes, device=y.device)).double()
        return rows[own == 0], torch.arange(len(y), device=y.device).repeat_interleave(classes - 1)


@dataclass
class _Task:
    """The margins z_y - z_k of a batch: rows (R, K) of coefficients, the sample of each (R,), the margins (R,) at the inputs
    themselves, and the bounds so far (R,)."""

    graph: Graph
    region: Region
    rows: torch.Tensor
    sample: torch.Tensor
    margins: torch.Tensor
    least: torch.Tensor

    def run(self, optimise: int) -> None:
        """The stages, each for what the one before leaves open: plain intervals, an estimate of what follows, the intervals
        of CROWN, and slopes optimised by this number of steps."""
        self._bound(torch.ones_like(self.sample, dtype=torch.bool), 0, stride=0)
        estimate = self.least.clone()
        self._bound(self._may_rise(self.least, 1.0), 0, estimate, stride=STRIDE)
        self._bound(self._may_rise(estimate, REACH), optimise)
        if optimise:
            close = self._may_rise(self.least, CLOSE)
            self._bound(close, optimise, improve=partial(optimised, steps=HIDDEN_STEPS))

    def _bound(self, chosen: torch.Tensor, optimise: int, found: torch.Tensor | None = None, **settings: Any) -> None:
        """Bound the rows `chosen` (R,) bool, with intervals of their own, and put what is larger into `found`; default: `least`."""
        if not bool(chosen.any()):
            return
        found = self.least if found is None else found
        last = len(self.graph.nodes) - 1
        some, sample = self.sample[chosen].unique(return_inverse=True)
        bounds = Bounds.of(self.graph, self.region[some], **settings)
        found[chosen] = torch.fmax(found[chosen], bounds.least(last, self.rows[chosen], sample))
        near = chosen & self._may_rise(found, NEAR)
        if optimise and bool(near.any()):
            part = near[chosen]
            found[near] = optimised(bounds, last, self.rows[near], sample[part], found[near], optimise)

    def _may_rise(self, least: torch.Tensor, share: float) -> torch.Tensor:
        """The rows (R,) bool without a positive bound, of the samples for which all are positive once each bound has risen by
        this share of the gap to the margin."""
        hopeless = least + share * (self.margins - least) <= 0
        lost = torch.zeros(int(self.sample[-1]) + 1, device=least.device).index_add_(0, self.sample, hopeless.float())
        return (self.least <= 0) & (lost[self.sample] == 0)
