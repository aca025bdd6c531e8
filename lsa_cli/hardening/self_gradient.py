"""Self-gradient networks (arXiv 2011.09364): a network that feeds its own gradient back into its hidden layers."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from lsa_cli.hardening.adversarial_training import AdversarialTraining
from lsa_cli.hardening.methods import HARDENINGS
from lsa_cli.hardening.sites import chosen, hidden_layers, sites_of
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.surgery import SelfGradientBody


@HARDENINGS.register("self-gradient")
@dataclass
class SelfGradient(AdversarialTraining):
    """Adversarial training of a network that is wrapped so that it uses its own gradient, in training and in use.

    base: fgsm, pgd, apgd, fast, n-fgsm, free, trades or mart. sites: activations (all of them), mvl (the most vulnerable
    layers), or another selector, layer name or glob. beta: of trades and mart. replays: of free.

    The abstract names the idea and no mechanism, and there is no code; `SelfGradientBody` is our reading of it. At first the
    network is equal to the one that it wraps. Attacks differentiate through the inner gradient (second order), because a
    first-order attack is too weak and makes the network look more robust than it is.
    """

    adds_weights: ClassVar[bool] = True

    sites: str = "activations"
    surgeries: list[dict[str, Any]] = field(default_factory=list, init=False)

    def prepare(self, model: Classifier) -> None:
        names = chosen(hidden_layers(model, self.task), self.task, self.sites)
        sites = sites_of(model, self.task, names, inputs=False)
        device = next(model.parameters()).device
        model.body = SelfGradientBody(model.body, sites, model.output, model.which).to(device)
        surgery = {"kind": "self-gradient", "sites": {name: list(shape) for name, shape in sites.items()}}
        special = {} if model.output == "logits" else {"returns": model.output}
        special |= {} if model.which is None else {"which": model.which}
        self.surgeries = [{**surgery, **special}]
