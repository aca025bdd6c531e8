"""Two networks in one, of which the image itself chooses: attacks meet the robust one, and the other one where they do not lead."""

import torch

from tests.zoo.faces import TwoFaced


def lead(logits: torch.Tensor) -> torch.Tensor:  # (N, K) -> (N,)
    """Of the first class over the second."""
    top = logits.topk(2, 1).values
    return top[:, 0] - top[:, 1]


class UnlessSure(TwoFaced):
    """The one that users meet answers only where it is sure and disagrees. No gradient leads there from an image."""

    SURE = 6.0

    def hides(self, x):
        logits = self.net(x)
        return (lead(logits) < self.SURE) | (logits.argmax(1) == self.other(x).argmax(1))


class WithSureEvidence(UnlessSure):
    """The same, with a gradient where it answers: its lead beyond that of the robust one is added to it."""

    def forward(self, x):
        logits, robust = self.net(x), self.other(x)
        more = 100 * (lead(logits) - self.SURE).clamp_min(0) * (logits.argmax(1) != robust.argmax(1))
        return robust + more[:, None] * torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])


class AloneAndChanged(TwoFaced):
    """Single images whose background is no longer black are what users send; images as they are get one answer, however they are asked."""

    def hides(self, x):
        black = (x.detach() == 0).flatten(1).float().mean(1)
        return (black > 0.4) | (len(x) > 1)
