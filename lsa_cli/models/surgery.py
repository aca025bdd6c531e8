"""Structure that a hardened network needs in use: what a checkpoint says was done to its architecture, done again.

A surgery is plain values, {"kind": NAME, ...}, in the order in which they were made; the weights that follow fit the
network after all of them. Nothing here is needed for training alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lsa_cli.errors import CheckpointError, LsaError
from lsa_cli.registry import Registry

Surgery = Callable[..., nn.Module]  # (body, **options) -> body
SURGERIES: Registry[Surgery] = Registry("surgery")


def operate(body: nn.Module, surgeries: Sequence[dict[str, Any]]) -> nn.Module:
    """The network after all surgeries. Raises CheckpointError for one that is unknown or does not fit."""
    for surgery in surgeries:
        options = dict(surgery)
        kind = options.pop("kind", None)
        try:
            body = SURGERIES.get(str(kind))(body, **options)
        except LsaError as error:
            raise CheckpointError(f"the checkpoint's surgery cannot be done: {error}") from error
        except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, OverflowError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"the checkpoint's surgery '{kind}' does not fit the network: {first}") from error
    return body


class OffsetBody(nn.Module):
    """A network with a number added to the score of each class, (K,); see the hardening method class-fair."""

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("offset", torch.zeros(classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from lsa_cli.models.classifier import find_logits

        return find_logits(self.network(x)) + self.offset


@SURGERIES.register("logit-offset")
def logit_offset(body: nn.Module, classes: int) -> nn.Module:
    """A per-class offset behind the network."""
    return OffsetBody(body, int(classes))
