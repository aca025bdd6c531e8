"""Networks that hide their weakness from attacks, or answer attacks otherwise than users."""

import torch

from tests.zoo import heads
from tests.zoo.base import Entry, weak
from tests.zoo.heads import Head


def head(function):
    return lambda: Head(weak(), function)


TABLE = [
    Entry("decoy next to the winner", lambda: heads.DecoyNext(weak()), 0.15),
    Entry("decoys for all classes", lambda: heads.DecoyAll(weak()), 0.15),
    Entry("eleventh output", lambda: heads.Eleventh(weak()), 0.15),
    Entry("losers inverted", head(heads.inverted_losers), 0.2),
    Entry("stairs", head(heads.stairs), 0.2),
    Entry("one-hot logits", head(heads.one_hot), 0.2),
    Entry("margin reversed", head(heads.reversed_margin), 0.2),
    Entry("logits times 1e6", head(lambda z: 1e6 * z), 0.2),
    Entry("logits times 1e-6", head(lambda z: 1e-6 * z), 0.2),
    Entry("saturated sigmoid", head(lambda z: torch.sigmoid(10 * z)), 0.2),
]
