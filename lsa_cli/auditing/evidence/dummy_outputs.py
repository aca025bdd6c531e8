"""Outputs that stand for no class of their own, and draw attacks to themselves (dummy classes, arXiv 2603.29182).

They are outputs of the network that no sample has as its label, or outputs of its last layer that the network folds into
fewer logits. Here each is folded into the class that it stands for, or left out, and the network is attacked along these
logits. The network itself decides what is broken.
"""

from dataclasses import dataclass

import torch
from torch import nn

from lsa_cli.attacks import Attack
from lsa_cli.attacks.base import Model
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.auditing.evidence.decision import Checked, beats, doubt
from lsa_cli.auditing.evidence.guided import Guided, Tap
from lsa_cli.auditing.evidence.outputs import read
from lsa_cli.auditing.evidence.probe import Probe

_AGREES = 0.99  # of the samples: outputs are folded if the largest group of them is the predicted class


@dataclass(frozen=True, eq=False)
class Folded(Guided):
    """On the cross-entropy of other logits: of each class the logsumexp of the outputs that stand for it.

    Through it each of these outputs has a gradient. members (L, K): 1 where an output stands for a class; an output that
    stands for none is left out. tap: gives the outputs; None for those of the network.
    """

    tap: Tap | None = None
    members: torch.Tensor | None = None

    def loss(self, network: Model, x: torch.Tensor, aims: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.members is not None
        outputs, logits = self.tap(network, x) if self.tap is not None else (network(x), None)
        folded = _folded(outputs, self.members)
        return cross_entropy(folded, aims), outputs if logits is None else logits


def _folded(outputs: torch.Tensor, members: torch.Tensor) -> torch.Tensor:  # (N, L), (L, K) -> (N, K)
    outputs = outputs.double().masked_fill(~members.any(1), -torch.inf)
    largest = outputs.detach().amax(1, keepdim=True)
    shares = (outputs - largest).exp() @ members.double()
    return (shares.clamp_min(1e-300).log() + largest).masked_fill(~members.any(0), -torch.inf).float()


def dummy_outputs(
    survivors: Probe, probe: Probe, labelled: torch.Tensor, last: nn.Module | None, correct: int
) -> Checked:
    """Do attacks that fold dummy outputs, or leave them out, break survivors of attacks on the network's own outputs?

    labelled (K,) bool: the outputs that are the label of some sample of the data. last: the last layer with weights. correct:
    the correct samples that the survivors stand for. The rule is that of `beats`. Without dummy outputs nothing is attacked.
    """
    attacks, count = _attacks(probe, labelled.to(probe.x.device), last)
    left = survivors
    for attack in attacks.values():
        left = left.unbroken_by(attack) if len(left) else left
    n, broken = (len(survivors), len(survivors) - len(left)) if attacks else (0, 0)
    saw = {"dummy outputs": count, "broken": broken}
    if not beats(broken, n, correct):
        return Checked("dummy outputs", n, saw)
    finding = doubt(
        "dummy-outputs-win",
        f"attacks that fold {count} outputs without a class of their own into the classes that they stand for, or leave them out, "
        f"break {broken} of {n} samples that are still robust after attacks on all outputs: these outputs draw attacks to "
        "themselves, and the robust accuracy is too high",
        "audit the network with these outputs left out",
    )
    return Checked("dummy outputs", n, saw, finding, attacks=attacks)


def _attacks(probe: Probe, labelled: torch.Tensor, last: nn.Module | None) -> tuple[dict[str, Attack], int]:
    """The attacks by label, none without dummy outputs, and the number of these."""
    classes, dummies = probe.clean.shape[1], int((~labelled).sum())
    if dummies:
        own = torch.where(labelled, torch.arange(classes, device=labelled.device), -1)
        members = _members(probe, probe.clean, own)
        kept = members & labelled[:, None]
        return {
            "dummies-folded": Folded(probe.threat, members=members),
            "dummies-left-out": Folded(probe.threat, members=kept),
        }, dummies
    tap = Tap.of(probe.model, last, inputs=False) if last is not None else None
    wide = read(probe, tap, probe.x) if tap is not None else None
    if wide is None or wide.shape[1] <= classes:
        return {}, 0
    members = _members(probe, wide, torch.full((wide.shape[1],), -1, device=wide.device))
    groups = torch.stack([wide.masked_fill(~group, -torch.inf).amax(1) for group in members.T], 1)
    if float((groups.argmax(1) == probe.clean.argmax(1)).float().mean()) < _AGREES:
        return {}, 0
    return {"dummies-folded": Folded(probe.threat, tap=tap, members=members)}, wide.shape[1] - classes


def _members(probe: Probe, outputs: torch.Tensor, own: torch.Tensor) -> torch.Tensor:  # (N, L), (L,) -> (L, K) bool
    """Which output stands for which class: its own, or where that is -1 the predicted class with which its mean is largest."""
    classes = probe.clean.shape[1]
    predicted = nn.functional.one_hot(probe.clean.argmax(1), classes).to(outputs)
    means = outputs.T @ predicted / predicted.sum(0).clamp_min(1)
    means = means.masked_fill(predicted.sum(0) == 0, -torch.inf)
    if bool((own >= 0).any()):
        means = means.masked_fill(~torch.isin(torch.arange(classes, device=own.device), own), -torch.inf)
    return nn.functional.one_hot(torch.where(own >= 0, own, means.argmax(1)), classes).bool()
