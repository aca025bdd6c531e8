"""Classifier: a network with its normalisation, from [0, 1] images to (N, K) float32 logits."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from lsa_cli.errors import CheckpointError, ForwardError, UsageError
from lsa_cli.failures import forward_of
from lsa_cli.models.outputs import find_logits
from lsa_cli.models.wrappers import eager
from lsa_cli.registry import parse_number

PRESETS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
OUTPUTS = ("logits", "probabilities")
CHANNELS_FIRST, CHANNELS_LAST, FLAT = "NCHW", "NHWC", "flat"  # layouts of the images that a body takes
AUTO = "auto"  # a normalisation that is found on the data


READ_BY = ("layout", "alone", "which", "in_pairs", "with_graph")  # what a trial forward pass finds; see `Classifier`
Normalization = tuple[Sequence[float], Sequence[float]] | None
Scale = tuple[float, float]


def parse_input_range(text: str) -> Scale:
    """ "0,255" or "-1,1": the values of a black and a white pixel for the network."""
    parts = text.split(",")
    if len(parts) != 2:
        raise UsageError(f"--input-range '{text}' must be LOW,HIGH, such as 0,255 or -1,1")
    low, high = (parse_number(part.strip(), "--input-range") for part in parts)
    if low >= high:
        raise UsageError(f"--input-range '{text}': the first number must be the smaller one")
    return low, high


def parse_normalize(text: str, scale: Scale = (0.0, 1.0)) -> Normalization:
    """A preset's name, "none", or MEAN/STD as "0.5/0.25" or "0.49,0.48,0.45/0.25,0.24,0.26", in units of `scale`."""
    if text == "none":
        return None
    if text in PRESETS:
        if scale != (0.0, 1.0):
            raise UsageError(
                f"--normalize {text} is for images in [0, 1]; with --input-range, give MEAN/STD in that range"
            )
        return PRESETS[text]
    mean_text, slash, std_text = text.partition("/")
    if not slash:
        raise UsageError(
            f"--normalize '{text}': give {', '.join(PRESETS)}, none, auto, or MEAN/STD such as 0.5,0.5,0.5/0.25,0.25,0.25"
        )
    mean = tuple(parse_number(part, "--normalize") for part in mean_text.split(","))
    std = tuple(parse_number(part, "--normalize") for part in std_text.split(","))
    if len(mean) != len(std) or min(std) <= 0:
        raise UsageError(
            f"--normalize '{text}': give as many means as standard deviations, and only positive standard deviations"
        )
    return mean, std


def rescaled(normalization: Normalization, scale: Scale) -> Normalization:
    """Normalisation for images in [0, 1] that equals scaling them to `scale` and normalising there."""
    if scale == (0.0, 1.0):
        return normalization
    low, high = scale
    mean, std = normalization if normalization is not None else ((0.0,), (1.0,))
    return [(m - low) / (high - low) for m in mean], [s / (high - low) for s in std]


class Normalize(nn.Module):
    """(x - mean) / std per channel, on (N, C, ...) inputs."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] % len(self.mean):
            raise CheckpointError(
                f"the normalisation has {len(self.mean)} channels and the images have {x.shape[1]}; "
                "give one mean and std for each channel with --normalize"
            )
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x - self.mean.reshape(shape)) / self.std.reshape(shape)


def normalization_of(classifier: "Classifier") -> Normalization:
    """Mean and std of a classifier's normalisation; None where it has none."""
    normalize = classifier.normalize
    return (normalize.mean.tolist(), normalize.std.tolist()) if isinstance(normalize, Normalize) else None


def with_normalization(classifier: "Classifier", normalization: Normalization) -> "Classifier":
    """The same network with another normalisation. The body is shared."""
    other = Classifier(classifier.body, normalization, classifier.class_names, classifier.output, classifier.home)
    for name in READ_BY:
        setattr(other, name, getattr(classifier, name))
    device = next((tensor.device for tensor in [*classifier.parameters(), *classifier.buffers()]), None)
    other.normalize.to(device or "cpu")
    return other


def as_logits(scores: torch.Tensor, count: int, returns: str = "logits") -> torch.Tensor:
    """Scores of `count` samples, (N, K), (N, 1) or (N,), -> (N, K) logits, K >= 2; see `Classifier`."""
    if scores.ndim == 1 and len(scores) == count:
        scores = scores[:, None]
    if scores.ndim > 2 and all(size == 1 for size in scores.shape[2:]):
        scores = scores.flatten(1)
    if scores.ndim != 2 or len(scores) != count:
        raise CheckpointError(
            f"the network returns a tensor of shape {tuple(scores.shape)} for {count} images; "
            f"a classifier returns ({count}, number of classes)"
        )
    binary = scores.shape[1] == 1
    if returns == "probabilities":
        scores = scores.float()
        tiny = torch.finfo(torch.float32).tiny
        if binary:
            scores = torch.log(scores.clamp_min(tiny)) - torch.log((1 - scores).clamp_min(tiny))
        else:
            scores = torch.log(scores.clamp_min(tiny))
    if binary:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    return scores


def predicted_class(logits: torch.Tensor) -> torch.Tensor:  # (N, K) -> (N,)
    """The class with the largest logit; -1 where a logit is NaN, or several are the largest and infinite."""
    largest = logits.amax(1, keepdim=True)
    several = largest.isinf() & ((logits == largest).sum(1, keepdim=True) > 1)
    return torch.where((logits.isnan() | several).any(1), -1, logits.argmax(1))


class Classifier(nn.Module):
    """Normalisation, network (`body`) and conversion to logits. No other class knows mean and std.

    A body with one output is a binary head: its score z becomes the two logits (0, z), whose cross-entropy is
    the usual binary cross-entropy. output="probabilities": the body ends in softmax or sigmoid, and the logarithm
    is taken, because a loss that takes probabilities for logits hides gradients.

    A trial forward pass finds what a body needs. layout: of the images. alone: one image at a time. which: the place of the logits in its output
    (`find_logits`). in_pairs: it fails on one image, so that a single image is given twice. with_graph: its forward pass
    fails without gradients (hooks on tensors), so that they are always on. home: the context in which its imports are
    found (`imports.Home`).
    """

    def __init__(
        self,
        body: nn.Module,
        normalization: Normalization = None,
        class_names: Sequence[str] | None = None,
        output: str = "logits",
        home: AbstractContextManager[object] | None = None,
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise UsageError(f"--returns '{output}': give {' or '.join(OUTPUTS)}")
        self.normalize = nn.Identity() if normalization is None else Normalize(*normalization)
        self.body = body
        self.class_names = tuple(class_names) if class_names is not None else None
        self.output = output
        self.layout = CHANNELS_FIRST
        self.alone = self.in_pairs = self.with_graph = False
        self.which: str | None = None
        self.home = home or nullcontext()

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, ...) in the user's range -> the input of the body, which can change it in place."""
        x = x.clone() if isinstance(self.normalize, nn.Identity) else self.normalize(x)
        if self.layout == CHANNELS_LAST:
            return x.movedim(1, -1)
        return x.flatten(1) if self.layout == FLAT else x

    @property
    def normalize_channels(self) -> int | None:
        """The number of channels of the normalisation; None without one."""
        return len(self.normalize.mean) if isinstance(self.normalize, Normalize) else None

    def ask(self, x: torch.Tensor) -> Any:
        """The output of the body for images (N, C, ...). Raises ForwardError where it fails."""
        if self.with_graph and not (x.requires_grad and torch.is_grad_enabled()):
            with torch.enable_grad():
                return self._run(x.detach().requires_grad_(True))
        return self._run(x)

    def _run(self, x: torch.Tensor) -> Any:
        with forward_of(self.body), eager():
            try:
                return self._answers(x)
            except ImportError:  # the body imports a module of the user in its forward pass
                with self.home:
                    return self._answers(x)

    def _answers(self, x: torch.Tensor) -> Any:
        if not self.alone:
            return self.body(self.prepare(x))
        answers = [self.body(one) for one in self.prepare(x).split(1)]
        if not all(isinstance(answer, torch.Tensor) for answer in answers):
            raise ForwardError("the network, given one image at a time, returns other things than one tensor")
        return torch.cat([one.reshape(1, -1) if one.ndim < 2 else one for one in answers])

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """The class scores for images (N, C, ...), in the shape in which the body returns them."""
        return find_logits(self.ask(x), self.which)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (N, C, ...) -> (N, K)
        count = len(x)
        if self.in_pairs and count == 1:
            x = torch.cat([x, x])
        logits = self.as_logits(self.ask(x), len(x))[:count]
        return logits if torch.is_grad_enabled() else logits.detach()

    def as_logits(self, output: Any, count: int) -> torch.Tensor:
        """What the body returned for `count` samples -> (N, K) float32 logits, K >= 2."""
        return as_logits(find_logits(output, self.which).float(), count, self.output)
