"""The fast twin: a copy of a Classifier that attacks run on. Verdicts, layers and evidence are the original's.

Which twin a network gets follows from its structure and the device, never from a timing: the same command has to give
the same report. What is done is our choice (`python -m benchmarks.attacks` times it): BatchNorm folded into the convolution
before it, tensors with the channels last and, where the processor computes in it, bfloat16.

A network in training has no twin: its weights move, and a copy could miss what else does. It gets the layout itself, so
that attacks and updates both have it (`python -m benchmarks.epoch`).
"""

import copy
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lsa_cli.attacks.base import undisturbed
from lsa_cli.errors import UsageError
from lsa_cli.models.classifier import Classifier

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_SAME = 1e-4  # of the largest logit: what folding a deep network changes by rounding is a tenth of it


@dataclass(frozen=True)
class Twin:
    """What attacks run on, and in words what it is: for the report.

    model: the twin, or the original itself where `is_original`.
    """

    model: nn.Module
    described: str
    is_original: bool


class FastClassifier(nn.Module):
    """A Classifier in another layout and precision: (N, C, ...) float32 images -> (N, K) float32 logits.

    The images, and so their gradients, stay float32: only what the network computes in between is shorter.
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


def original(classifier: Classifier, why: str) -> Twin:
    return Twin(classifier, f"the network itself: {why}", True)


def make_twin(classifier: Classifier, x: torch.Tensor) -> Twin:
    """The twin of a classifier, tried on x (N, ...); the original where none pays or none agrees with it.

    The original is left as it was. In float32 the twin's logits must agree with the original's; bfloat16 is not held
    to that, so whoever uses it has to look at the strength of the attacks (auditing.run does).
    """
    precision = copy_precision(x.device)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in classifier.modules())
    if convolutions == 0:
        return original(classifier, "it has no convolutions")
    with torch.no_grad(), undisturbed(classifier):
        wanted = classifier(x)
        largest = float(wanted.abs().max())
        try:
            body = copy.deepcopy(classifier)
            body.eval().requires_grad_(False)
            folded = fold_norms(body, x)
            body.to(memory_format=torch.channels_last)
            exact = FastClassifier(body, torch.float32)(x)
        except torch.OutOfMemoryError:  # what is attacked must not depend on the memory that is free
            raise
        except Exception as error:  # what cannot be copied, a view of what lies in another order, a look at the weights of a norm that is gone
            return original(classifier, f"a faster copy does not run ({type(error).__name__})")
        if not (math.isfinite(largest) and torch.allclose(exact, wanted, rtol=0, atol=_SAME * largest)):
            return original(classifier, "a faster copy does not compute the same")
    parts = [f"{folded} BatchNorm folded"] if folded else []
    described = ", ".join(["a copy in " + str(precision).removeprefix("torch."), "channels last", *parts])
    return Twin(FastClassifier(body, precision).eval(), described, False)


def copy_precision(device: torch.device) -> torch.dtype:
    """What a copy computes in: bfloat16 where the device multiplies in it, else float32.

    LSA_COPY_PRECISION=bfloat16 or float32 in the environment decides instead: bfloat16 runs, slowly, on any processor.
    Raises UsageError for another value.
    """
    asked = os.environ.get("LSA_COPY_PRECISION", "")
    if asked:
        if asked not in PRECISIONS:
            raise UsageError(
                f"LSA_COPY_PRECISION should be {' or '.join(PRECISIONS)}, not {asked!r}; unset it otherwise"
            )
        return PRECISIONS[asked]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def fold_norms(network: nn.Module, x: torch.Tensor) -> int:
    """Fold each BatchNorm2d into the convolution whose output it takes, in place; how many were.

    Only pairs that ran once each on x, the very tensor of the one reaching the other. Who else reads that tensor is not
    seen, so the caller compares outputs.
    """
    made: dict[int, nn.Conv2d] = {}
    alive: list[torch.Tensor] = []  # an id is good while its tensor lives
    runs: dict[nn.Module, int] = {}
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        runs[module] = runs.get(module, 0) + 1
        if type(module) is nn.Conv2d:
            made[id(output)] = module
            alive.append(output)
        elif type(module) is nn.BatchNorm2d and id(inputs[0]) in made and module.track_running_stats:
            pairs[module] = made[id(inputs[0])]

    watched = [module for module in network.modules() if type(module) in (nn.Conv2d, nn.BatchNorm2d)]
    hooks = [module.register_forward_hook(look) for module in watched]
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


# ---- in training ---------------------------------------------------------------------------------------


def runs_channels_last(classifier: Classifier, shape: tuple[int, ...]) -> bool:
    """Whether a network has convolutions and trains with the channels of its tensors last: some views refuse that order.

    Tried on a copy, with two samples of zeros, in both modes, forward and backward; the network is left as it was.
    """
    if not any(isinstance(module, nn.Conv2d) for module in classifier.modules()):
        return False
    device = next(classifier.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), _buffers_kept(classifier):
        try:
            tried = copy.deepcopy(classifier).to(memory_format=torch.channels_last)
            for training in (False, True):
                leaf = torch.zeros(2, *shape, device=device, requires_grad=True)
                torch.autograd.grad(tried.train(training)(leaf).sum(), leaf)
        except torch.OutOfMemoryError:  # the layout must not depend on the memory that is free
            raise
        except Exception:  # whatever a module of the user's raises
            return False
    return True


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """A copy of a module that keeps a function of the original runs parts of the original."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in before:
                buffer.copy_(values)
