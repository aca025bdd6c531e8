"""APART: one-step adversarial training with learnt strengths of the perturbations (arXiv 2010.08034).

The state and the four steps are those of the authors' code; the rates are ours, in units that fit any data.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.threat import per_sample
from lsa_cli.errors import UsageError
from lsa_cli.failures import backward_of_network
from lsa_cli.hardening.methods import Batch
from lsa_cli.hardening.noise_propagation import INPUT, injected, with_noise
from lsa_cli.hardening.objectives import OBJECTIVES, Objective, as_attacked
from lsa_cli.hardening.sites import layers_of
from lsa_cli.layers import Layer
from lsa_cli.models.classifier import Classifier

_RATE = 0.05  # of the strengths, per update
_WEAKEST = 0.01  # least alpha_omega, which is a divisor
_BLOCK_UNIT = 0.05  # share of an activation's mean size that strength 1 adds to it


@dataclass(frozen=True)
class _Made:
    """What `learn` needs of the examples of a batch. maps: (N, ...) in [-1, 1]. signs: of the first gradient at the input and
    at each block. free: where the projection did not change the step. inside: where the step is within the input range."""

    maps: torch.Tensor
    signs: dict[str, torch.Tensor]
    free: torch.Tensor
    inside: torch.Tensor


@OBJECTIVES.register("apart")
@dataclass
class ApartObjective(Objective):
    """One step from a start that is kept for each image, and a perturbation inside of each block; linf.

    Each image has a map omega and starts at alpha_omega * omega. A step of alpha * sign(g) follows, clipped to eps. In the
    training pass, alpha_b * sign(g_b) is added after the first activation of each block, or after every hidden activation of
    a network without blocks. The strengths follow the gradient of the loss of that pass upwards, and
    omega <- clip(omega + alpha / alpha_omega * sign(g), -1, 1).

    Our choices:
    - alpha and alpha_omega are in units of eps and begin at 1; alpha_b in 0.05 of the activation's mean size, from 0.
    - The gradient of a strength is divided by the sum of |g| that it could have reached, which gives a number in [-1, 1],
      and its decay is 1 in these units. (The code's rate of 5e-8 and decay of 400 fit one data set.)
    - Maps begin at 0 (there: noise of 0.001, which one update replaces) and do not move when an image is cropped.
    - Each rank keeps maps of its own.
    """

    uses: ClassVar[tuple[str, ...]] = ("train_eps", "attack_mode")
    alpha: float = field(default=1.0, init=False)
    alpha_omega: float = field(default=1.0, init=False)
    alpha_blocks: dict[str, float] = field(default_factory=dict, init=False)
    maps: torch.Tensor | None = field(default=None, init=False)  # (places in the data set, ...), half precision
    _made: _Made | None = field(default=None, init=False)
    _leaves: dict[str, torch.Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.task.threat.norm != "linf":
            raise UsageError(f"base apart is defined for linf, not for {self.task.threat.norm}; use base pgd")

    def examples(self, model: Classifier, batch: Batch) -> torch.Tensor:
        if not self.alpha_blocks:
            self.alpha_blocks = dict.fromkeys(block_sites(layers_of(model, batch.x[:2])), 0.0)
        threat = self.threat(batch)
        maps, eps = self._maps_of(batch), per_sample(threat.eps, batch.x)
        start = threat.project(batch.x + self.alpha_omega * eps * maps, batch.x)
        signs = self._signs(model, start, batch.y)
        moved = start + self.alpha * eps * signs[INPUT]
        x_adv = threat.project(moved, batch.x)
        self._made = _Made(maps, signs, (x_adv - moved).abs() < 1e-6, (threat.clamp(moved) - moved).abs() < 1e-6)
        return x_adv.detach().requires_grad_(True)

    def _signs(self, model: Classifier, start: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """Signs of the gradient of the loss of a first pass, at the input and at each block."""
        with as_attacked(model, self.task.attack_mode) as attacked, undisturbed(attacked), torch.enable_grad():
            logits, leaves = with_noise(model, start, (INPUT, *self.alpha_blocks), {}, 0.0)
            with backward_of_network():
                gradients = torch.autograd.grad(self.cross_entropy(logits, y).sum(), list(leaves.values()))
        return {name: gradient.sign() for name, gradient in zip(leaves, gradients, strict=True)}

    @contextmanager
    def inside(self, model: Classifier) -> Iterator[None]:
        made = self._made
        assert made is not None

        def push(name: str, output: torch.Tensor) -> torch.Tensor:
            return self.alpha_blocks[name] * _BLOCK_UNIT * output.detach().abs().mean() * made.signs[name]

        with injected(model, tuple(self.alpha_blocks), push) as self._leaves:
            yield

    @torch.no_grad()
    def learn(self, x_adv: torch.Tensor, batch: Batch) -> None:
        made = self._made
        assert made is not None
        assert x_adv.grad is not None
        assert self.maps is not None
        gradient = x_adv.grad.float().nan_to_num(0)
        felt, reachable = gradient * made.free, (gradient * made.inside).abs().sum()
        ratio = self.alpha / self.alpha_omega
        self.alpha = max(climbed(self.alpha, felt * made.signs[INPUT], reachable), 0.0)
        self.alpha_omega = max(climbed(self.alpha_omega, felt * made.maps, reachable), _WEAKEST)
        for name, leaf in self._leaves.items():
            assert leaf.grad is not None
            push = leaf.grad.float().nan_to_num(0)
            self.alpha_blocks[name] = climbed(self.alpha_blocks[name], push * made.signs[name], push.abs().sum())
        self.maps[batch.index] = (made.maps + ratio * gradient.sign()).clamp(-1, 1).to(self.maps.dtype)

    def _maps_of(self, batch: Batch) -> torch.Tensor:  # (N, ...)
        """The maps of a batch; new images begin at 0."""
        needed = int(batch.index.max()) + 1
        if self.maps is None:
            self.maps = batch.x.new_zeros(needed, *batch.x.shape[1:], dtype=torch.float16)
        elif len(self.maps) < needed:
            longer = self.maps.new_zeros(needed, *self.maps.shape[1:])  # autocast has no `cat` of float16
            longer[: len(self.maps)] = self.maps
            self.maps = longer
        return self.maps[batch.index].to(batch.x.dtype)

    def state(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha, "alpha_omega": self.alpha_omega, "alpha_blocks": self.alpha_blocks, "maps": self.maps,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def climbed(strength: float, gained: torch.Tensor, reachable: torch.Tensor) -> float:
    """A strength after one update, towards its share in [-1, 1] of the slope of the loss that it could reach."""
    share = float(gained.sum() / reachable) if reachable > 0 else 0.0
    return strength + _RATE * (share - strength)


def block_sites(layers: Sequence[Layer]) -> list[str]:
    """The first activation within each block; in a network without blocks, every hidden activation."""
    activations = [layer.name for layer in layers if layer.is_activation and not layer.is_output]
    within = {
        block.name: [name for name in activations if name.startswith((f"{block.name}.", f"{block.name}:"))]
        for block in layers
        if block.is_block
    }
    return [names[0] for names in within.values() if names] or activations
