"""The fast twin: a copy of a Classifier that attacks run on. Verdicts, layers and evidence are the original's.

Which twin a network gets follows from its structure and the device, never from a timing: the same command has to give
the same report. What is done is our choice (`python -m benchmarks.attacks` and `benchmarks.epoch` time it): BatchNorm folded
into the convolution before it, tensors with the channels last and, in audits and where the processor computes in it, bfloat16.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from lsa_cli.attacks.base import undisturbed
from lsa_cli.layers import Wrapper
from lsa_cli.models.classifier import Classifier

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
    precision = native_precision(x.device)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in classifier.modules())
    if convolutions == 0:
        return original(classifier, "it has no convolutions")
    with torch.no_grad(), undisturbed(classifier):
        try:
            body = copy.deepcopy(classifier)
        except Exception as error:
            return original(classifier, f"it cannot be copied ({type(error).__name__})")
        body.eval().requires_grad_(False)
        folded = fold_norms(body, x)
        body.to(memory_format=torch.channels_last)
        if not _agree(FastClassifier(body, torch.float32)(x), classifier(x)):
            return original(classifier, "a faster copy does not compute the same")
    parts = [f"{len(folded)} BatchNorm folded"] if folded else []
    described = ", ".join(["a copy in " + str(precision).removeprefix("torch."), "channels last", *parts])
    return Twin(FastClassifier(body, precision).eval(), described, False)


def native_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies in it, else float32."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def _agree(logits: torch.Tensor, wanted: torch.Tensor) -> bool:  # (N, K) each
    largest = float(wanted.abs().max())
    return math.isfinite(largest) and torch.allclose(logits, wanted, rtol=0, atol=_SAME * largest)


def fold_norms(network: nn.Module, x: torch.Tensor) -> dict[str, str]:
    """Fold each BatchNorm2d into the convolution whose output it takes, in place; {norm: convolution} that were, by name.

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

    names = {module: name for name, module in network.named_modules() if type(module) in (nn.Conv2d, nn.BatchNorm2d)}
    hooks = [module.register_forward_hook(look) for module in names]
    try:
        network(x[:2])
    finally:
        for hook in hooks:
            hook.remove()
    certain = {norm: conv for norm, conv in pairs.items() if runs[norm] == runs[conv] == 1}
    if len(set(certain.values())) < len(certain):
        return {}
    replaced: dict[nn.Module, nn.Module] = {}
    for norm, conv in certain.items():
        replaced[conv], replaced[norm] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    return {names[norm]: names[conv] for norm, conv in certain.items()}


# ---- of a network whose weights move -------------------------------------------------------------------


class MovingTwin:
    """The fast twin of a Classifier in training, in evaluation mode and float32: `now` gives it the weights of the moment.

    In float32 it computes what the network does, so its attacks are as strong; a training has its own option for less.
    """

    def __init__(self, classifier: Classifier, copy_: nn.Module, folded: dict[str, str]) -> None:
        self._classifier, self._copy, self._folded = classifier, copy_, folded
        self._fast = FastClassifier(copy_, torch.float32).eval()

    @torch.no_grad()
    def now(self) -> nn.Module:
        theirs = _tensors(self._classifier)
        for norm_name, conv_name in self._folded.items():
            norm, conv = self._classifier.get_submodule(norm_name), self._classifier.get_submodule(conv_name)
            assert isinstance(norm, nn.BatchNorm2d)
            assert isinstance(conv, nn.Conv2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            theirs |= {f"{conv_name}.weight": weight, f"{conv_name}.bias": bias}
        for name, tensor in _tensors(self._copy).items():
            tensor.copy_(theirs[name])
        return self._fast


def make_moving_twin(classifier: Classifier, x: torch.Tensor) -> MovingTwin | None:
    """The twin of a network that is being trained, tried on x (N, ...); None where there is none that computes the same.

    For the trial, norms are given random statistics and what is 0 random values: in an untrained network both can hide
    that a copy differs, and a network must get the same twin whatever its weights, or a training that is resumed would
    not end as one that is not.
    """
    convolutions = any(isinstance(module, nn.Conv2d) for module in classifier.modules())
    if not convolutions or isinstance(classifier.body, Wrapper):  # what a wrapper does may change while it trains
        return None
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.no_grad(), undisturbed(classifier), torch.random.fork_rng(devices=devices):
        try:
            tried, body = copy.deepcopy(classifier), copy.deepcopy(classifier)
        except Exception:  # whatever a module of the user's raises when it is copied
            return None
        torch.manual_seed(0)
        for parameter in tried.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
        for module in tried.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        body.requires_grad_(False)
        folded = fold_norms(body, x)
        body.to(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, enabled=False):
            same = _agree(MovingTwin(tried, body, folded).now()(x), tried(x))
    return MovingTwin(classifier, body, folded) if same else None


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Its parameters and buffers by every name that they have."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(network.named_buffers(remove_duplicate=False))}
