"""Learn2Perturb (arXiv 2003.01090): noise inside the network whose scales are learnt together with its weights."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.errors import UsageError
from lsa_cli.hardening.methods import HARDENINGS, Batch, Hardening, Step, Task
from lsa_cli.hardening.objectives import Objective, make_objective
from lsa_cli.hardening.sites import chosen, hidden_layers, sites_of
from lsa_cli.layers import Layer
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.surgery import NoiseBody

# The official code trains 350 epochs, with noise from epoch 10 and adversarial examples from epoch 20.
_EPOCHS, _NOISE_FROM, _ATTACK_FROM = 350, 0.03, 0.06
_FLOOR = 0.01  # the smallest scale; the slope of its square root is infinite at 0


@HARDENINGS.register("learn2perturb")
@dataclass
class Learn2Perturb(Hardening):
    """Adds noise with learnt scales (sigma) to hidden layers, in training and in use, and trains on clean and adversarial examples.

    base: fgsm, pgd, apgd, fast, n-fgsm, free, trades or mart. sites: natural, mvl (the most vulnerable layers), or a selector,
    layer name or glob: noise is added to the input of these layers. gamma: of the noise regulariser. shared: one noise
    for a whole batch, as in the official code. beta: of trades and mart. replays: of free.

    Each batch gives two updates. The first updates the scales alone, on -(gamma / tau) * sum of sqrt(sigma) with tau = 1 +
    1/2 + ... + 1/e (e: epochs with noise so far): it raises them, less and less. The second updates weights and scales, on
    1/2 CE(clean) + 1/2 the base's loss on examples against the network's own prediction, so that the label does not leak.
    Scales start at 0.25 and stay above 0.01.

    As in the official code: noise sites on ResNets (after the stem's BatchNorm, and on each block's sum, before the ReLU), the
    two updates, the lower bound of the scales. Our choices:
    - Other sites: the input of the last activation of each block, and of every activation outside of blocks.
    - Delays and e are those of the official 350 epochs, scaled to the length of the training (noise after 3 percent,
      examples after 6).
    - tau is 1 in the first epoch with noise, where the official code divides by zero.
    - The scales have the optimizer and the weight decay of the weights; noise is per sample; bases other than pgd.
    """

    task: Task
    base: str = "pgd"
    sites: str = "natural"
    gamma: float = 1e-4
    shared: bool = False
    beta: float | None = None
    replays: int | None = None
    parts: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    objective: Objective = field(init=False)
    surgeries: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise UsageError(f"learn2perturb: gamma must be 0 or more, not {self.gamma:g}")
        if self.task.awp > 0:
            raise UsageError("--awp works with at and at-lr, not with learn2perturb; leave it out")
        self.objective = make_objective(self.task, self.base, beta=self.beta, replays=self.replays)

    @property
    def begins(self) -> float:
        return _ATTACK_FROM

    def prepare(self, model: Classifier) -> None:
        layers = hidden_layers(model, self.task)
        names = natural_sites(layers) if self.sites == "natural" else chosen(layers, self.task, self.sites)
        sites = sites_of(model, self.task, names, inputs=True)
        device = next(model.parameters()).device
        model.body = NoiseBody(model.body, sites, self.shared).to(device)
        self.surgeries = [
            {"kind": "noise", "sites": {name: list(shape) for name, shape in sites.items()}, "shared": self.shared}
        ]

    def groups(self, model: Classifier) -> dict[str, list[nn.Parameter]]:
        scales = list(_noise(model).scales)
        own = {id(scale) for scale in scales}
        return {"weights": [p for p in model.parameters() if id(p) not in own], "noise": scales}

    def steps(self, model: Classifier, batch: Batch) -> Iterator[Step]:
        noise = _noise(model)
        noise.on, noise.keyed = batch.progress >= _NOISE_FROM, False
        for _ in range(self.objective.updates):
            if noise.on:
                penalty = self.penalty(noise, batch.progress)
                self.parts = {"noise": penalty.detach().expand(len(batch.x))}
                yield penalty, ("noise",)
            losses, x_adv = self.losses(model, batch)
            self.parts = {"J": losses.detach()}
            yield losses.mean(), ("weights", "noise") if noise.on else ("weights",)
            if x_adv is not None:
                self.objective.learn(x_adv, batch)
            with torch.no_grad():
                for scale in noise.scales:
                    scale.clamp_(min=_FLOOR)

    def penalty(self, noise: NoiseBody, progress: float) -> torch.Tensor:
        """-(gamma / tau) * sum over all sites and elements of sqrt(sigma); eq. 7 as in the official code."""
        tau = harmonic(int(_EPOCHS * (progress - _NOISE_FROM)))
        total = sum((scale.float().sqrt().sum() for scale in noise.scales), torch.zeros(()).to(noise.scales[0]))
        return -self.gamma / tau * total

    def losses(self, model: Classifier, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The losses (N,), and the adversarial examples; None before training uses them."""
        smoothing = self.task.label_smoothing
        if batch.progress < _ATTACK_FROM:
            return F.cross_entropy(model(batch.x), batch.y, reduction="none", label_smoothing=smoothing), None
        clean_logits = model(batch.x)
        own = replace(batch, y=clean_logits.detach().argmax(1))
        x_adv = self.objective.examples(model, own)
        clean = F.cross_entropy(clean_logits, batch.y, reduction="none", label_smoothing=smoothing)
        return (clean + self.objective.losses(model(x_adv), clean_logits, batch.y)) / 2, x_adv

    def finish(self, model: Classifier, validation: Iterable[Batch]) -> None:
        noise = _noise(model)
        noise.on = noise.keyed = True

    def state(self) -> dict[str, Any]:
        return self.objective.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.objective.restore(state)


def _noise(model: Classifier) -> NoiseBody:
    assert isinstance(model.body, NoiseBody)
    return model.body


def harmonic(epochs: int) -> float:
    """1 + 1/2 + ... + 1/epochs; 1 for no epoch."""
    return sum(1 / i for i in range(1, max(1, epochs) + 1))


def natural_sites(layers: list[Layer]) -> list[str]:
    """Activations whose inputs get noise: the last of each block, and all outside of blocks."""
    blocks = [layer.name for layer in layers if layer.is_block]
    last: dict[str, str] = {}
    for layer in layers:
        if layer.is_activation:
            block = next((block for block in blocks if layer.name.startswith((f"{block}.", f"{block}:"))), None)
            last[block or layer.name] = layer.name
    if not last:
        raise UsageError(
            "learn2perturb: no activation was found in the network to add noise before; name noise sites with sites="
        )
    return list(last.values())
