"""The proof of an audit: what is proven within which threat model, or why --full leaves it out."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lsa_cli.attacks import Threat
from lsa_cli.attacks.base import undisturbed
from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.auditing.network import Network
from lsa_cli.errors import summary_of
from lsa_cli.layers import plain_name
from lsa_cli.proofs import NotProvable, Prover, module_that_runs
from lsa_cli.wording import eps_as_text

NORMS = ("linf", "l2")
WAY_OUT = "leave out --prove: the attacks of an audit need no proof"
SHARE = 0.2  # of the time of the rest of the audit, which a proof may take that nobody asked for (our choice)
# Numbers in the outputs of all activations of a network, for such a proof (our choice): it takes 12 s to try a sample of a
# ResNet-20, which has 188,416, and 45 MB of memory, AT_ONCE times as much for a batch. Networks of 24,420 take 0.2 to 0.9 s.
MOST_NUMBERS = 200_000


@dataclass(frozen=True)
class PlannedProof:
    """prover: None where the proof is left out, for the reason `left_out`. threat: that of the verdict. passes: the cost of a
    sample, in forward and gradient passes; 0 before it is measured. is_asked: --prove asks for it."""

    prover: Prover | None
    threat: Threat
    is_asked: bool
    left_out: str = ""
    passes: float = 0.0

    @property
    def within(self) -> str:
        """The threat model in words."""
        return f"{self.threat.norm} {eps_as_text(self.threat.eps)}"

    def without(self, reason: str) -> "PlannedProof":
        return dataclasses.replace(self, prover=None, left_out=reason)


def plan_proof(
    network: Network, threat: Threat, attacks: Sequence[NamedAttack], is_stochastic: bool, example: torch.Tensor
) -> PlannedProof | None:
    """The proof that --prove or --full asks for, or None. attacks: of the verdict. example (N, ...): inputs.

    Raises NotProvable where --prove asks for a proof that is not possible; --full leaves it out.
    """
    settings = network.settings
    if not (settings.prove or (settings.prove is None and settings.preset == "full" and not settings.gate_only)):
        return None
    is_asked = bool(settings.prove)
    try:
        covering = _covering(threat, attacks)
        if is_stochastic:
            raise NotProvable("the network is stochastic, and a proof is about one output for each input")
        if not is_asked:
            _refuse_large(network)
        with undisturbed(network.classifier):
            return PlannedProof(Prover.of(network.classifier, example), covering, is_asked)
    except Exception as error:  # whatever a module of the user raises when it is read
        if is_asked and isinstance(error, NotProvable):
            raise NotProvable(f"{error}{_place(error, network, example)}; {WAY_OUT}") from error
        if is_asked:
            raise
        why = str(error) if isinstance(error, NotProvable) else f"the network cannot be read ({summary_of(error)})"
        return PlannedProof(None, threat, is_asked, why)


def _place(error: NotProvable, network: Network, example: torch.Tensor) -> str:
    """The layer that computes what has no bound, for messages; empty where that is not known."""
    body, classifier = network.classifier.body, network.classifier
    try:
        with undisturbed(classifier):
            name = module_that_runs(error.operation, body, lambda: classifier(example))
    except Exception:  # of code of the user that is watched
        name = None
    if not name:
        return ""
    shown, module = plain_name(body, name), body.get_submodule(name)
    return f"; it is first computed in {shown} ({type(module).__name__})"


def _covering(threat: Threat, attacks: Sequence[NamedAttack]) -> Threat:
    """The threat model that contains those of all attacks: the one with the largest radius."""
    several: list[Threat] = [threat, *(getattr(named.attack, "threat", threat) for named in attacks)]
    norms = sorted({one.norm for one in several})
    if len(norms) > 1:
        raise NotProvable(f"the attacks are in {' and '.join(norms)}, and a proof is in one norm")
    if threat.norm not in NORMS:
        raise NotProvable(f"nothing is proven in {threat.norm}, only in {' and '.join(NORMS)}")
    return max(several, key=lambda one: one.eps)


def _refuse_large(network: Network) -> None:
    numbers = sum(torch.Size(layer.shape).numel() for layer in network.layers if layer.is_activation)
    if numbers > MOST_NUMBERS:
        raise NotProvable(
            f"the activations of the network have {numbers:,} outputs, more than the {MOST_NUMBERS:,} up to which it is tried"
        )
