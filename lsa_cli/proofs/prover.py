"""Proofs that no input within eps changes the class of a sample."""

from dataclasses import dataclass

import torch

from lsa_cli.attacks.threat import Threat
from lsa_cli.proofs.crown import Bounds, Region
from lsa_cli.proofs.graph import Graph
from lsa_cli.proofs.reading import Model, read
from lsa_cli.proofs.slopes import optimised

STEPS = 20  # of the optimisation of slopes
NEAR = 0.25  # the largest part of the gap between a margin and its bound that optimised slopes close; our choice


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
        if optimise and bool((least <= 0).any()) and bool((least + NEAR * (margins - least) > 0).all()):
            least = optimised(bounds, last, rows, least, optimise)
        return float(least.amin())
