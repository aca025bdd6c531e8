"""Proofs of robustness: `Prover` bounds the margins of a network from below over a whole threat model.

One file for each step: reading (the operations of torch), aten (what each means), builder and graph (affine maps, sums and
ReLU), operations (their rules), crown (bounds), prover.
"""

from lsa_cli.proofs.graph import NotProvable
from lsa_cli.proofs.prover import Prover

__all__ = ["NotProvable", "Prover"]
