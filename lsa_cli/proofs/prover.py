"""Proofs that no input within eps changes the class of a sample."""

from dataclasses import dataclass
from functools import partial

import torch

from lsa_cli.attacks.threat import Threat
from lsa_cli.proofs.crown import Bounds, Region
from lsa_cli.proofs.graph import Graph
from lsa_cli.proofs.reading import Model, read
from lsa_cli.proofs.slopes import optimised

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
        CROWN's slopes do not prove; 0: none. Each sample is bounded alone: the result does not depend on the others.
        """
        eps = torch.as_tensor(threat.eps, dtype=torch.double).expand(len(x))
        with torch.no_grad():
            found = [
                self._margin(image[None], int(label), Region.of(image[None], float(radius), threat), optimise)
                for image, label, radius in zip(x, y, eps, strict=True)
            ]
        return torch.tensor(found, dtype=torch.double, device=x.device)

    def proves(self, x: torch.Tensor, y: torch.Tensor, threat: Threat) -> torch.Tensor:  # -> (N,) bool
        """Whether each sample keeps class `y` over the whole threat model. False: not proven, which does not mean broken."""
        return self.margins(x, y, threat) > 0

    def _margin(self, x: torch.Tensor, label: int, region: Region, optimise: int) -> float:
        bounds = Bounds.of(self.graph, region)
        last = len(self.graph.nodes) - 1
        (classes,) = self.graph.nodes[last].shape
        rows = -torch.eye(classes, dtype=torch.double, device=x.device)
        rows[:, label] += 1
        rows = rows[torch.arange(classes, device=x.device) != label]
        least = bounds.least(last, rows).nan_to_num(nan=-torch.inf)
        margins = self.graph.evaluate(x)[0] @ rows.T
        if optimise and _may_rise(least, margins, NEAR):
            least = optimised(bounds, last, rows, least, optimise)
            if _may_rise(least, margins, CLOSE):
                bounds = Bounds.of(self.graph, region, partial(optimised, steps=HIDDEN_STEPS))
                again = torch.fmax(least, bounds.least(last, rows))
                least = optimised(bounds, last, rows, again, optimise)
        return float(least.amin())


def _may_rise(least: torch.Tensor, margins: torch.Tensor, share: float) -> bool:
    """Whether a bound (R,) is negative, and all are positive once they rise by this share of the gap to the margin."""
    return bool((least <= 0).any()) and bool((least + share * (margins - least) > 0).all())
