"""The layer-wise regularizer of AT-LR (arXiv 2202.02626, Algorithm 3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lsa_cli.layers import tap
from lsa_cli.measures import Measure
from lsa_cli.models.classifier import Classifier

Representations = dict[str, torch.Tensor]


@contextmanager
def record(model: Classifier, names: Sequence[str]) -> Iterator[Representations]:
    """A context that records the outputs of the named layers while the network runs, with their graph.

    It records copies, because an in-place activation overwrites the output before it.
    """
    seen: Representations = {}

    def keep(name: str, output: torch.Tensor) -> None:
        seen[name] = output.clone()

    with tap(model.body, names, keep):
        yield seen


@dataclass(frozen=True)
class LayerRegularizer:
    """The sum over layers l of gamma_l * CM_l(x, x_adv), per sample.

    The gradient flows through both branches, unless detach_clean makes the clean one a constant. (The paper does not say; the
    default is our choice.) x_adv is a constant: the attack maximises the loss without the regularizer.
    """

    layers: tuple[str, ...]
    gammas: tuple[float, ...]
    measure: Measure
    detach_clean: bool = False

    def __call__(self, clean: Representations, perturbed: Representations) -> tuple[torch.Tensor, Representations]:
        """Recorded outputs {layer: (N, ...)} -> (N,) penalty, and each layer's measure (N,), detached."""
        total: torch.Tensor | float = 0.0
        measures: Representations = {}
        for name, gamma in zip(self.layers, self.gammas, strict=True):
            value = self._compare(clean[name].detach() if self.detach_clean else clean[name], perturbed[name])
            measures[name] = value.detach()
            total = total + gamma * value
        assert isinstance(total, torch.Tensor)
        return total, measures

    def _compare(self, clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N,)
        # A sample whose outputs are all zero has no measure, and its NaN would make every gradient NaN. It counts as zero
        # (our choice).
        active = clean.flatten(1).any(1) & perturbed.flatten(1).any(1)
        value = torch.zeros(len(clean), device=clean.device)  # float32, also under autocast
        return value.index_put((active,), self.measure(clean[active].float(), perturbed[active].float()))
