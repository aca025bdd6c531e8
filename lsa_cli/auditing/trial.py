"""The first passes of a network: what it takes, what it returns, and which layers it has."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.threat import Bounds
from lsa_cli.auditing.classes import match_classes
from lsa_cli.auditing.outputs import choose_output
from lsa_cli.data import LabelledData, check_inputs
from lsa_cli.errors import CheckpointError, ConvertibleError, DataError, ForwardError, UsageError, summary_of
from lsa_cli.layers import Layer, find_layers
from lsa_cli.models.classifier import CHANNELS_FIRST, CHANNELS_LAST, FLAT, Classifier
from lsa_cli.models.loading import Loaded
from lsa_cli.models.outputs import find_logits, named_tensors
from lsa_cli.settings import AuditSettings

_TRIED = 3  # samples
_APART = 0.01  # of the largest logit: rounding differs with the size of a batch
_SIZES = (28, 32, 64, 96, 128, 160, 224, 256, 299, 384)
# What torch says where the shape of an input does not fit a layer.
_OF_SHAPES = re.compile(
    r"shapes cannot be multiplied|to have \d+ channels|size mismatch|must match the size|is invalid for input of size|"
    r"Kernel size can't be|[Oo]utput size is too small|normalized_shape|size of tensor|doesn't match model|"
    r"Expected \d+D|non-zero size for non-batch|Given groups"
)


def try_network(
    classifier: Classifier, data: LabelledData, bounds: Bounds, device: torch.device, loaded: Loaded, settings: AuditSettings
) -> tuple[list[Layer], int, tuple[int, ...]]:  # fmt: skip
    """Run a network on up to three samples of its data, never on one alone: layers, number of classes, input shape.

    What it needs is set in the classifier: `layout`, `alone`, `with_graph`, `which`, `in_pairs`. Raises ForwardError where it
    fails by itself, DataError where the data are of another shape than it takes.
    """

    def read(rows: np.ndarray) -> torch.Tensor:
        return check_inputs(data.read(rows), rows, bounds, data.spec).to(device)

    x = read(np.arange(min(_TRIED, len(data))) if len(data) > 1 else np.zeros(2, dtype=np.int64))
    output = _first_pass(classifier, x, data, loaded)
    classifier.which = _logits_in(output, classifier, data, loaded, settings, read)
    classes = classifier.as_logits(output, len(x)).shape[1]
    with undisturbed(classifier):
        layers: list[Layer] = []
        if loaded.shows_layers and not classifier.alone:
            layers = find_layers(classifier.body, lambda: classifier.scores(x), len(x))
        with torch.no_grad():
            classifier.in_pairs = not _takes_one(classifier, x[:1], classes)
    return layers, classes, tuple(x.shape[1:])


def _ask(classifier: Classifier, x: torch.Tensor) -> Any:
    """What the body returns, without gradients unless it needs them."""
    with undisturbed(classifier), torch.no_grad():
        return classifier.ask(x)


def _first_pass(classifier: Classifier, x: torch.Tensor, data: LabelledData, loaded: Loaded) -> Any:
    """What the body returns, asked in the first of these ways that gives scores for each image: all images at once, or one
    at a time; in the usual layout, as vectors, or with channels last; without gradients or with them.

    Where none does, what it returns in the first way that runs. Raises where none runs.
    """
    first: ForwardError | None = None
    unreadable: list[tuple[str, bool, Any]] = []
    for alone in (False, True):
        for layout in _layouts(classifier.body, x):
            for with_graph in (False, True):
                classifier.layout, classifier.alone, classifier.with_graph = layout, alone, with_graph
                try:
                    output = _ask(classifier, x)
                except ForwardError as error:
                    first = error if first is None or layout == FLAT else first
                    continue
                if _is_readable(output, classifier, len(x)):
                    _say_how(classifier, x, loaded)
                    return output
                if not alone:
                    unreadable.append((layout, with_graph, output))
                break
        if not _may_be_alone(first, unreadable):
            break
    classifier.layout, classifier.alone, classifier.with_graph = CHANNELS_FIRST, False, False
    if unreadable:
        classifier.layout, classifier.with_graph, output = unreadable[0]
        return output
    assert first is not None
    raise _of_the_data(classifier, x, data, first) or first


def _layouts(body: nn.Module, x: torch.Tensor) -> list[str]:
    """The layouts to try. Vectors are for a first layer that takes them."""
    return [CHANNELS_FIRST, *([FLAT] if _takes_vectors(body, x) else []), *([CHANNELS_LAST] if x.ndim == 4 else [])]


def _is_readable(output: Any, classifier: Classifier, count: int) -> bool:
    """Whether it holds scores for each image. Of several outputs the labels choose later."""
    if not isinstance(output, torch.Tensor):
        return True
    try:
        classifier.as_logits(output, count)
    except CheckpointError:
        return False
    return True


def _may_be_alone(first: ForwardError | None, unreadable: list[tuple[str, bool, Any]]) -> bool:
    """Whether the number of images can be what a network cannot take: torch or the code of the network refuses them."""
    cause = first.__cause__ if first is not None else None
    return (
        bool(unreadable)
        or isinstance(cause, (AssertionError, ValueError))
        or (cause is not None and _is_of_shapes(cause))
    )


def _say_how(classifier: Classifier, x: torch.Tensor, loaded: Loaded) -> None:
    if classifier.layout == FLAT:
        loaded.notes.append(f"images are flattened to {x[0].numel()} numbers, as the first layer takes them")
    if classifier.layout == CHANNELS_LAST:
        loaded.notes.append(
            "images are given as (N, height, width, channels), because the network fails with channels first"
        )
    if classifier.alone:
        loaded.notes.append(
            "the network is given one image at a time, because it fails with several; so its layers are not scanned"
        )


def _takes_vectors(body: nn.Module, x: torch.Tensor) -> bool:
    first = next((module for module in body.modules() if isinstance(module, (nn.Linear, nn.Conv2d))), None)
    return x.ndim > 2 and isinstance(first, nn.Linear) and first.in_features == x[0].numel()


def _of_the_data(classifier: Classifier, x: torch.Tensor, data: LabelledData, error: ForwardError) -> DataError | None:
    """The error as one of the data: where the network takes images of another shape, or torch names the shapes."""
    cause = error.__cause__ or error
    shape = f"inputs of shape {tuple(x.shape[1:])} from {data.spec}"
    question = "is this the data set, image size (--input-size) and number of channels that it was trained for?"
    other = _shape_it_takes(classifier, x)
    if other is not None:
        taken, words = "x".join(map(str, other)), tuple[str, ...]()
        if other[0] == x.shape[1]:
            question = f"if it is the data set that it was trained for, add --input-size {other[1]}"
            words = ("--input-size", str(other[1]))
        return ConvertibleError(
            f"the network cannot take {shape}, but does take {taken}: {summary_of(cause)}; {question}", words=words
        )
    if _is_of_shapes(cause):
        return DataError(f"the network cannot take {shape}: {summary_of(cause)}; {question}")
    return None


def _is_of_shapes(cause: BaseException) -> bool:
    return isinstance(cause, (RuntimeError, ValueError, AssertionError)) and bool(_OF_SHAPES.search(str(cause)))


def _shape_it_takes(classifier: Classifier, x: torch.Tensor) -> tuple[int, ...] | None:
    if x.ndim != 4:
        return None
    first = next((module for module in classifier.body.modules() if isinstance(module, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else x.shape[1]
    height, width = x.shape[2:]
    for size in ((height, width), *((size, size) for size in _SIZES)):
        shape = (channels, *size)
        if shape != tuple(x.shape[1:]) and (classifier.normalize_channels in (None, 1, channels)):
            try:
                _ask(classifier, torch.zeros(2, *shape, device=x.device))
            except Exception:
                continue
            return shape
    return None


def _takes_one(classifier: Classifier, x: torch.Tensor, classes: int) -> bool:
    """Whether one sample (1, ...) alone is answered as it is beside itself."""
    classifier.in_pairs = True
    beside = classifier(x)
    classifier.in_pairs = False
    try:
        alone = classifier(x)
    except Exception:
        return False
    if alone.shape != (1, classes):
        return False
    largest = float(beside.abs().max())
    return not math.isfinite(largest) or bool(((alone - beside).abs() <= _APART * largest).all())


def _logits_in(
    output: Any, classifier: Classifier, data: LabelledData, loaded: Loaded, settings: AuditSettings,
    read: Callable[[np.ndarray], torch.Tensor],
) -> str | None:  # fmt: skip
    """The place of the logits in what the network returns: the one asked for, else the one that the labels tell."""
    if isinstance(output, torch.Tensor):
        if settings.output_index is not None:
            raise UsageError(f"--output-index {settings.output_index}: the network returns one tensor; leave it out")
        return None
    found = dict(named_tensors(output))
    if settings.output_index is not None:
        find_logits(output, settings.output_index)
        loaded.notes.append(f"output {settings.output_index} of the network is taken as the logits, by --output-index")
        return settings.output_index
    if len(found) < 2:
        return None

    def labels_for(classes: int) -> np.ndarray:
        return match_classes(data, classifier.class_names, classes, settings.match_classes, [])[0]

    def look(rows: np.ndarray) -> dict[str, torch.Tensor]:
        asked = rows if len(rows) > 1 else np.repeat(rows, 2)
        outputs = named_tensors(_ask(classifier, read(asked)))
        return {
            name: tensor.detach().cpu()[: len(rows)] if tensor.ndim else tensor.detach() for name, tensor in outputs
        }

    names = classifier.class_names or data.class_names
    classes = len(names) if names else int(data.labels.max()) + 1
    which, why = choose_output(data, look, labels_for, classifier.output, classes)
    loaded.notes.append(why)
    return which
