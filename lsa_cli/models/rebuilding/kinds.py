"""The kinds of networks that can be put together again from their weights."""

from collections.abc import Mapping

from lsa_cli.models.parametrizations import Stored
from lsa_cli.models.rebuilding.blocks import structures_of
from lsa_cli.models.rebuilding.transformers import transformer_of


def can_be_rebuilt(stored: Mapping[str, Stored]) -> bool:
    """Whether weights are those of a chain, of residual blocks, or of a transformer."""
    return transformer_of(stored) is not None or bool(structures_of(stored)[1])
