"""The optimized copy of a Classifier, on which attacks start. Every reported number comes from the network itself.

The structure of the network and the device decide what is optimized, never a timing, so that the same command gives the
same report. Our choice (`python -m benchmarks.attacks` times it): BatchNorm is folded into the convolution before it,
tensors have their channels last, and the copy computes in bfloat16 where the processor multiplies in it.

During an audit on a CPU, a network that has a copy has its own channels last, too (`channels_last`).

A network in training has no copy, because its weights change. Its own tensors have their channels last, for attacks and
updates alike (`python -m benchmarks.epoch`).
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lsa_cli.attacks.base import input_gradient, undisturbed
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.errors import ForwardError, UsageError
from lsa_cli.models.classifier import Classifier

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_SAME = 1e-4  # of the largest logit; rounding changes the logits of a folded deep network by a tenth of that


@dataclass(frozen=True)
class Copy:
    """model: the copy, or None. described: what it is, or why there is none, in words for the report."""

    model: nn.Module | None
    described: str


class FastClassifier(nn.Module):
    """A Classifier in another layout and precision: (N, C, ...) float32 images -> (N, K) float32 logits.

    The images and their gradients stay float32; only what the network computes in between has the other precision.
    """

    def __init__(self, classifier: Classifier, precision: torch.dtype) -> None:
        super().__init__()
        self.classifier, self.precision = classifier, precision

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            logits: torch.Tensor = self.classifier(x)
        return logits.float()


def make_copy(classifier: Classifier, x: torch.Tensor, y: torch.Tensor) -> Copy:
    """The copy of a classifier, tried on x (N, ...) with labels y (N,), forward and backward. The classifier is unchanged.

    There is no copy where it would not be faster, does not run or, in float32, does not compute the classifier's logits.
    In bfloat16 logits and gradients differ; attacks take care that they lose nothing (`Search.network_at`).
    """
    precision = copy_precision(x.device)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in classifier.modules())
    if convolutions == 0:
        return Copy(None, "it has no convolution modules")
    with undisturbed(classifier):
        with torch.no_grad():
            wanted = classifier(x)
        largest = float(wanted.abs().max())
        try:
            body = deepcopy(classifier)
            body.eval().requires_grad_(False)
            folded = fold_norms(body, x)
            body.to(memory_format=torch.channels_last)
            with torch.no_grad():
                exact = FastClassifier(body, torch.float32)(x)
            made = FastClassifier(body, precision).eval()
            input_gradient(made, x, y, cross_entropy)
            round_weights(made, x)
        except torch.OutOfMemoryError:  # which network is attacked must not depend on the free memory
            raise
        except (
            Exception
        ) as error:  # a module that cannot be copied, a view that needs another layout, a use of a folded norm
            return Copy(None, f"a faster copy does not run ({type(error).__name__})")
        if not (math.isfinite(largest) and torch.allclose(exact, wanted, rtol=0, atol=_SAME * largest)):
            return Copy(None, "a faster copy does not compute the same")
    parts = [f"{folded} BatchNorm folded"] if folded else []
    described = ", ".join(["a copy in " + str(precision).removeprefix("torch."), "channels last", *parts])
    return Copy(made, described)


def round_weights(fast: FastClassifier, x: torch.Tensor) -> bool:
    """Keep the weights of convolutions and linear layers in the precision to which every pass rounds them, in place.

    They stay as they are where that would change the logits of x (N, ...), as for weights that the network also reads
    elsewhere, and where it does not run. Returns whether they are kept so.
    """
    layers = [module for module in fast.modules() if type(module) in (nn.Conv2d, nn.Linear)]
    before = [(tensor, tensor.data) for layer in layers for tensor in layer.parameters(recurse=False)]
    with torch.no_grad():
        wanted = fast(x)
        for tensor, values in before:
            tensor.data = values.to(fast.precision)
        try:
            if torch.equal(fast(x), wanted):
                return True
        except ForwardError:  # such as a part of the network that switches autocast off
            pass
    for tensor, values in before:
        tensor.data = values
    return False


def copy_precision(device: torch.device) -> torch.dtype:
    """The precision of a copy: bfloat16 where the device multiplies in it, else float32.

    LSA_COPY_PRECISION=bfloat16 or float32 in the environment decides instead; bfloat16 runs on any processor, slowly on
    some. Raises UsageError for another value.
    """
    asked = os.environ.get("LSA_COPY_PRECISION", "")
    if asked:
        if asked not in PRECISIONS:
            raise UsageError(f"LSA_COPY_PRECISION must be {' or '.join(PRECISIONS)}, not {asked!r}; unset it otherwise")
        return PRECISIONS[asked]
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it; without them bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fold_norms(network: nn.Module, x: torch.Tensor) -> int:
    """Fold each BatchNorm2d into the convolution whose output it takes, in place; returns their number.

    A pair is folded if both have no hooks and run once on x, and the norm gets the convolution's output unchanged. Other
    readers of that output are not seen, so the caller must compare logits.
    """
    made: dict[int, tuple[nn.Conv2d, int]] = {}  # by the id of the output; the number says how often it was written to
    alive: list[torch.Tensor] = []  # an id is unique only while its tensor exists
    runs: dict[nn.Module, int] = {}
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def watch(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        runs[module] = runs.get(module, 0) + 1
        if type(module) is nn.Conv2d:
            made[id(output)] = module, output._version
            alive.append(output)
        elif type(module) is nn.BatchNorm2d and module.track_running_stats:
            conv, version = made.get(id(inputs[0]), (None, 0))
            if conv is not None and inputs[0]._version == version:
                pairs[module] = conv

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    watched = [m for m in network.modules() if type(m) in kinds and not (m._forward_hooks or m._forward_pre_hooks)]
    hooks = [module.register_forward_hook(watch) for module in watched]
    try:
        network(x[:2])
    finally:
        for hook in hooks:
            hook.remove()
    certain = {norm: conv for norm, conv in pairs.items() if runs[norm] == runs[conv] == 1}
    if len(set(certain.values())) < len(certain):
        return 0
    replaced: dict[nn.Module, nn.Module] = {}
    for norm, conv in certain.items():
        replaced[conv], replaced[norm] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    return len(certain)


@contextmanager
def channels_last(network: nn.Module) -> Iterator[None]:
    """A context in which the weights of convolutions have their channels last, and so the tensors between the layers.

    The numbers are the same, and passes take less time. Afterwards each weight is the same tensor as before. The caller knows
    that the network runs so, as that which `make_copy` tries does.
    """
    layers = [module for module in network.modules() if type(module) is nn.Conv2d]
    weights = [weight for layer in layers for name, weight in layer._parameters.items() if name == "weight"]
    before = [(weight, weight.data) for weight in weights if weight is not None and not weight.is_inference()]
    try:
        for weight, values in before:
            weight.data = values.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for weight, values in before:
            weight.data = values


# ---- in training ---------------------------------------------------------------------------------------


def runs_channels_last(classifier: Classifier, shape: tuple[int, ...]) -> bool:
    """Whether a network has convolutions, and trains with the channels of its tensors last, which some views refuse.

    A copy is tried with two samples of zeros in both modes, forward and backward. The network is unchanged.
    """
    if not any(isinstance(module, nn.Conv2d) for module in classifier.modules()):
        return False
    device = next(classifier.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), _buffers_kept(classifier):
        try:
            tried = deepcopy(classifier).to(memory_format=torch.channels_last)
            for training in (False, True):
                leaf = torch.zeros(2, *shape, device=device, requires_grad=True)
                torch.autograd.grad(tried.train(training)(leaf).sum(), leaf)
        except torch.OutOfMemoryError:  # the layout must not depend on the free memory
            raise
        except Exception:  # whatever a module of the user raises
            return False
    return True


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """A context after which buffers are as before: a copy that holds a bound method of the original runs the original."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in before:
                buffer.copy_(values)
