"""Proofs of robustness: `Prover` bounds the margins of a network from below over a whole threat model.

One file for each step: reading (the operations of torch), aten (what each means), builder and graph (affine maps, sums, ReLU
and max pooling), operations, coefficients and relaxations (their rules), crown (bounds), slopes, prover.
"""

from lsa_cli.proofs.graph import NotProvable
from lsa_cli.proofs.prover import AT_ONCE, Prover
from lsa_cli.proofs.reading import module_that_runs

__all__ = ["AT_ONCE", "NotProvable", "Prover", "module_that_runs"]
