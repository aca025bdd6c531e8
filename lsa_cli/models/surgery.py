"""Surgery: changes of an architecture that a hardened network needs after training. Its checkpoint lists them.

A surgery is plain values: {"kind": NAME, ...}. They are applied in the order of the list; then the weights fit.
"""

import functools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.attacks.randomness import belongs_to, many_normal_like
from lsa_cli.errors import CheckpointError, LsaError, summary_of
from lsa_cli.layers import Wrapper, plain_name, tap
from lsa_cli.models.classifier import OUTPUTS, as_logits
from lsa_cli.models.outputs import find_logits
from lsa_cli.registry import Registry

Surgery = Callable[..., nn.Module]  # (body, **options) -> body
SURGERIES: Registry[Surgery] = Registry("surgery")


def operate(body: nn.Module, surgeries: Sequence[dict[str, Any]]) -> nn.Module:
    """The network after all surgeries. Raises CheckpointError for one that is unknown or does not fit."""
    for surgery in surgeries:
        options = dict(surgery)
        kind = options.pop("kind", None)
        try:
            body = SURGERIES.get(str(kind))(body, **options)
        except LsaError as error:
            raise CheckpointError(f"the checkpoint's surgery cannot be applied: {error}") from error
        except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"the checkpoint's surgery '{kind}' does not fit the network: {summary_of(error)}"
            ) from error
    return body


@SURGERIES.register("logit-offset")
def logit_offset(body: nn.Module, outputs: int, which: str | None = None) -> nn.Module:
    """The network with a number added to each of its `outputs` scores: the buffer `logit_offset`, (outputs,).

    outputs: K; 1 for a network with a single score z, which stands for the logits (0, z). which: the place of the scores
    among several outputs (`outputs.find_logits`); the other outputs are dropped. A hook adds the numbers, so that layers
    keep their names. See the hardening method class-fair.
    """
    if hasattr(body, "logit_offset"):
        raise CheckpointError("the network has a logit offset already")
    body.register_buffer("logit_offset", torch.zeros(int(outputs)))
    body.register_forward_hook(functools.partial(_add_offset, which=which))
    return body


def _add_offset(body: nn.Module, args: Any, output: Any, which: str | None) -> torch.Tensor:
    scores, offset = find_logits(output, which), body.logit_offset
    width = scores.shape[1] if scores.ndim > 1 else 1
    if width != len(offset):
        raise CheckpointError(
            f"the checkpoint has a logit offset for {len(offset)} logits; the network returns {width}"
        )
    return scores + offset.reshape(-1, *[1] * (scores.ndim - 2))


# ---- surgery at layers inside a network ----------------------------------------------------------------

Sites = dict[str, tuple[int, ...]]  # names of layers as in `lsa layers` -> the shape of one sample there
_MOST_NUMBERS = 10**8  # VGG-19 at 224 x 224 with noise at every activation has 13 million


def _checked(network: nn.Module, sites: Mapping[str, Sequence[int]]) -> Sites:
    """The sites under today's names of layers. Raises CheckpointError for layers that the network does not have."""
    if not sites:
        raise CheckpointError("it names no layers")
    modules = {path: plain_name(network, path) for path, _ in network.named_modules()}
    # Older files name layers of a wrapped network by their path.
    today = {**modules, **{plain: plain for plain in modules.values()}}
    found: Sites = {}
    for name, sizes in sites.items():
        path, shape = name.partition("#")[0].partition(":")[0], tuple(int(size) for size in sizes)
        if path not in today:
            raise CheckpointError(f"the network has no layer {name}")
        if not shape or min(shape) < 1:
            raise CheckpointError(f"layer {name} cannot have the shape {shape}")
        found[today[path] + name.removeprefix(path)] = shape
    return found


def _refuse_enormous(numbers: int) -> None:
    if numbers > _MOST_NUMBERS:
        raise CheckpointError(
            f"it would add {numbers:,} numbers to the network, more than the {_MOST_NUMBERS:,} allowed"
        )


def _refuse_unused(places: Iterable[str], used: Container[str], what: str) -> None:
    for name in places:
        if name not in used:
            raise CheckpointError(f"the network {what} {name}, and does not use that layer")


class NoiseBody(Wrapper):
    """A network with learnt Gaussian noise at the inputs of some layers; see the method learn2perturb.

    In training and afterwards the input a of a layer becomes a + scale * n, with n from N(0, I). scales: one for each
    layer, of the shape of a sample there, (C, H, W) or (D,). on: False switches the noise off. keyed: inside an attack or
    an audit each sample draws from its own stream of random numbers, which is slower; training sets it to False. shared:
    all samples of a batch get the same n, as in the official code. Without it (our choice) each sample has its own n, so
    that its logits do not depend on the batch.
    """

    def __init__(self, network: nn.Module, sites: Sites, shared: bool, initial: float = 0.25) -> None:
        super().__init__()
        self.network = network
        self.places = {name: number for number, name in enumerate(sites)}
        self.scales = nn.ParameterList(torch.full(shape, initial) for shape in sites.values())
        self.shared, self.on, self.keyed = shared, True, True

    def forward(self, x: torch.Tensor) -> Any:
        if not self.on:
            return self.network(x)
        used: set[str] = set()

        def perturb(name: str, given: torch.Tensor) -> torch.Tensor:
            scale = self.scales[self.places[name]]
            if given.shape[1:] != scale.shape:
                raise CheckpointError(
                    f"the noise at {name} has shape {tuple(scale.shape)} and the network has {tuple(given.shape[1:])} "
                    "there; give images of the size that it was trained with (--input-size)"
                )
            used.add(name)
            return (given + scale * self._normal(given)).to(given.dtype)

        with tap(self.network, self.places, perturb, inputs=True):
            output = self.network(x)
        _refuse_unused(self.places, used, "has noise at")
        return output

    def _normal(self, given: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, ...) or (1, ...), float32
        if self.shared:
            return torch.randn(1, *given.shape[1:], device=given.device)
        if self.keyed and belongs_to(given):
            return many_normal_like(given)
        return torch.randn(given.shape, device=given.device)


@SURGERIES.register("noise")
def noise(body: nn.Module, sites: Mapping[str, Sequence[int]], shared: bool = False) -> nn.Module:
    """The network with learnt noise at the inputs of the layers `sites`."""
    checked = _checked(body, sites)
    _refuse_enormous(sum(math.prod(shape) for shape in checked.values()))
    return NoiseBody(body, checked, bool(shared))


class SelfGradientBody(Wrapper):
    """A network that runs twice: the second pass feeds the gradient of the first back into hidden layers.

    Our reading of arXiv 2011.09364, whose abstract only says that the architecture taps its own gradient flow. Pass 1
    gives h_l and s = CE(f(x), argmax f(x)), the loss of the network's own prediction; u_l is ds/dh_l, scaled to length 1
    for each sample. Pass 2 replaces h_l by h_l + A_l u_l. A_l: a 1 x 1 convolution for (C, H, W), otherwise a linear map
    of the last dimension; it is zero at first, so that nothing changes before training. returns: whether f returns logits
    or probabilities; which: the place of the logits among its outputs; both as in `Classifier`.

    Where gradients are enabled u_l keeps its graph, so attacks and training differentiate through both passes (second
    order). In training mode both passes update BatchNorm's statistics, and each draws its own dropout.
    """

    def __init__(self, network: nn.Module, sites: Sites, returns: str = "logits", which: str | None = None) -> None:
        super().__init__()
        if returns not in OUTPUTS:
            raise CheckpointError(f"a network returns {' or '.join(OUTPUTS)}, not {returns}")
        self.network, self.returns, self.which = network, returns, which
        self.places = {name: number for number, name in enumerate(sites)}
        self.maps = nn.ModuleList(
            nn.Conv2d(shape[0], shape[0], 1, bias=False) if len(shape) == 3 else nn.Linear(shape[-1], shape[-1], bias=False)
            for shape in sites.values()
        )  # fmt: skip
        for part in self.maps:
            nn.init.zeros_(part.weight)

    def forward(self, x: torch.Tensor) -> Any:
        fed = self._gradients(x)

        def feed(name: str, output: torch.Tensor) -> torch.Tensor:
            return output + self.maps[self.places[name]](fed[name].to(output.dtype))

        with tap(self.network, self.places, feed):
            return self.network(x)

    def _gradients(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """u_l of pass 1 by layer, (N, ...) each; with its graph where the caller has gradients enabled."""
        keeps_graph = torch.is_grad_enabled()
        hidden: dict[str, torch.Tensor] = {}

        def show(name: str, output: torch.Tensor) -> torch.Tensor:
            # Without trainable weights and inputs there is no graph: then it starts here.
            hidden[name] = output if output.requires_grad else output.detach().requires_grad_(True)
            return hidden[name].clone()  # the next layer may work in place

        with torch.enable_grad(), tap(self.network, self.places, show):
            logits = as_logits(find_logits(self.network(x), self.which), len(x), self.returns)
            loss = F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")
        _refuse_unused(self.places, hidden, "feeds gradients into")
        found = torch.autograd.grad(loss, list(hidden.values()), create_graph=keeps_graph, materialize_grads=True)
        return {name: _of_length_one(gradient) for name, gradient in zip(hidden, found, strict=True)}


def _of_length_one(gradient: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, ...)
    """Each sample divided by its length. A sample of zeros stays zero.

    The length has no derivative at 0, so that a second derivative would be NaN. Where it is 0, also because the squares
    of small numbers vanish, it is a constant.
    """
    by_row = (-1, *[1] * (gradient.ndim - 1))
    flat = gradient.detach().flatten(1)
    silent, short = ~flat.any(1).reshape(by_row), (flat.norm(dim=1) == 0).reshape(by_row)
    size = torch.where(short, 1, gradient).flatten(1).norm(dim=1).reshape(by_row)
    return torch.where(silent, 0, gradient / (torch.where(short, 0, size) + 1e-12))


@SURGERIES.register("self-gradient")
def self_gradient(
    body: nn.Module, sites: Mapping[str, Sequence[int]], returns: str = "logits", which: str | None = None
) -> nn.Module:
    """The network with its own gradient fed back into the layers `sites`."""
    checked = _checked(body, sites)
    _refuse_enormous(sum((shape[0] if len(shape) == 3 else shape[-1]) ** 2 for shape in checked.values()))
    return SelfGradientBody(body, checked, returns, which)
