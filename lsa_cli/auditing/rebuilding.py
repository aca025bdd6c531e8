"""A network put together again from the weights of a file that names none, chosen on labelled images of the audit's data."""

import math
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from lsa_cli.attacks.threat import Bounds
from lsa_cli.auditing.classes import match_classes
from lsa_cli.auditing.evidence.usage import best_order
from lsa_cli.auditing.normalizing import Found, reading, short
from lsa_cli.auditing.rebuilt import (
    ARCHITECTURE,
    ASKED,
    NO_NUMBERS,
    OWN_FROM,
    SHOWN,
    STATED,
    Doubt,
    Rebuilt,
    is_right,
    least_right,
    normalizations_of,
    refuse_doubt,
    spec_given,
    too_few,
    training_images,
)
from lsa_cli.auditing.suggesting import command_again, write_command, written_to
from lsa_cli.auditing.transformers import rebuild_transformer
from lsa_cli.data import LabelledData, check_inputs
from lsa_cli.errors import UsageError
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.models.classifier import Classifier, Normalization
from lsa_cli.models.contest import Outcome
from lsa_cli.models.fitting import load_strictly, refuse_infinite
from lsa_cli.models.loading import Loaded, Say, UnknownNetworkError
from lsa_cli.models.normalizations import cost_of
from lsa_cli.models.parametrizations import read
from lsa_cli.models.rebuilding.blocks import structures_of
from lsa_cli.models.rebuilding.chain import build, source_of, with_weights
from lsa_cli.models.rebuilding.described import described
from lsa_cli.models.rebuilding.geometry import CHANNELS_LAST, FLATTEN, geometries, places_of
from lsa_cli.models.rebuilding.grouping import Structure
from lsa_cli.models.rebuilding.search import Search, size_of, sums_of
from lsa_cli.models.rebuilding.sizes import SIZE, fits_resized
from lsa_cli.models.rebuilding.stated import with_stated_accuracy
from lsa_cli.models.rebuilding.transformers import transformer_of
from lsa_cli.models.rebuilding.variants import ACTIVATIONS, ORDERS, USUAL, Variant, order_text, parts_of
from lsa_cli.models.rounding import is_rectified
from lsa_cli.models.training_inputs import remembered
from lsa_cli.settings import AuditSettings

_EVERY = 10.0  # seconds between two lines on a long search
# Geometries, paddings and images that show what BatchNorm remembers.
_GEOMETRIES, _PADDINGS, _REMEMBERED_BY = 20, 2, 200
_LIKELY, _IN_ORDER = 5, 1000  # networks, and images, that tell in which order the classes are


def with_own_network(why: UnknownNetworkError, target: str | Path, asked: AuditSettings | None) -> UnknownNetworkError:
    """The refusal with the command for a network that the user writes. asked: as for `with_commands`."""
    if asked is None:
        return why
    words = command_again(target, asked, "--arch", "net.py:build")
    return UnknownNetworkError(f"{why}; with a function build in net.py that returns the network", [words])


def channels_of(checkpoint: Checkpoint) -> int | None:
    """The channels of the images that a chain or a transformer takes; None where a linear layer is the first."""
    transformer = transformer_of(checkpoint.weights.tensors)
    if transformer is not None:
        return transformer[1].channels
    structures = structures_of(checkpoint.weights.tensors)[1]
    first = structures[0].elements[0] if structures else None
    return first.inner if first is not None and not first.is_linear else None


def rebuild(
    checkpoint: Checkpoint, data: LabelledData, settings: AuditSettings, bounds: Bounds, why: UnknownNetworkError, say: Say,
    *, asked: AuditSettings | None, doubtful: bool = False, wait: Say = lambda message: None,
) -> Rebuilt:  # fmt: skip
    """The network that the weights and the labels tell. why: the refusal of the file without a reconstruction.

    Raises UnknownNetworkError, with what was found, where no variant of a chain is better than all others beyond noise. doubtful:
    then it is said, and the best one is returned. asked: as for `with_commands`. wait: gets a line where the search is long.
    """

    def look(rows: np.ndarray) -> torch.Tensor:
        return check_inputs(data.read(rows), rows, bounds, data.spec)

    transformer = transformer_of(checkpoint.weights.tensors)
    if transformer is not None:
        return rebuild_transformer(checkpoint, *transformer, data, look, settings, bounds, why, say, asked, doubtful)
    spec = spec_given(data, settings)
    stored, _ = structures_of(checkpoint.weights.tensors)
    order = np.random.default_rng(0).permutation(len(data))
    images = look(np.sort(order[:OWN_FROM]))
    refusal = with_own_network(why, checkpoint.path, asked)
    structures = _structures_for(checkpoint, images, refusal, asked)
    outputs = structures[0].elements[-1].outer
    labels, _ = match_classes(data, None, max(2, outputs), settings.match_classes, [])
    tensors = {name: read(item, checkpoint.load) for name, item in stored.items()}
    refuse_infinite(tensors, str(checkpoint.path))
    tried, trained = normalizations_of(settings, checkpoint, images), training_images(data, spec, images, bounds)
    tried = _remembered(structures[0], tensors, tried, images)

    def searched(order_of_classes: np.ndarray | None = None, flatten: str = FLATTEN) -> tuple[Search, Outcome | None]:
        ordered = labels if order_of_classes is None else order_of_classes[labels]
        training = trained
        if trained is not None and order_of_classes is not None:
            training = (trained[0], torch.from_numpy(order_of_classes)[trained[1]])
        made = Search(
            structures, tensors, reading(order, ordered, look), len(order), tried,
            lambda option: cost_of(option, data.name or data.called), training,
            activation_of(settings) or (USUAL if is_rectified(checkpoint) else None), flatten,
            _waiting(wait),
        )  # fmt: skip
        return made, made.best()

    search, outcome, in_order = _found(searched, places_of(structures[0].elements), max(2, outputs), refusal)
    outcome, stated = with_stated_accuracy(search, outcome, None if in_order else checkpoint.claimed_accuracy)
    doubt = _doubt(checkpoint, search, outcome, outputs, asked, in_order)
    if doubt is None and settings.input_size is None and images.ndim == 4:
        doubt = _doubt_of_size(checkpoint, search, outcome, asked)
    refuse_doubt(checkpoint, doubt, asked, why, say, doubtful)
    variant = search.variant_of(outcome.best)
    parts, sentence = parts_of(variant), _sentence(search, outcome, stated)
    say(sentence)
    rectified = "only ReLU was tried: by the zero points of the file, no hidden activation is negative"
    notes = [*checkpoint.notes, sentence, *([rectified] if is_rectified(checkpoint) else [])]
    body = build(parts)
    load_strictly(body, checkpoint, f"{checkpoint.path} and the reconstructed network", notes)
    loaded = Loaded(body.float(), ARCHITECTURE, settings.arch_args or {}, notes, described=described(parts))
    normalisation = f"normalisation {short(variant.normalization)}: found with the network"
    found = Found(tried[variant.normalization], normalisation, True)
    option = f"{'' if variant.normalization == STATED else variant.normalization} {in_order}".strip()
    return Rebuilt(loaded, found, option, source_of(parts, sentence), doubt)


def _structures_for(
    checkpoint: Checkpoint, images: torch.Tensor, refusal: UnknownNetworkError, asked: AuditSettings | None
) -> list[Structure]:
    """Every reading of the weights as a chain that takes these images, or vectors. Raises the refusal where there is none."""
    structures = structures_of(checkpoint.weights.tensors, images.shape[1])[1] if images.ndim in (2, 4) else []
    if images.ndim == 2:
        numbers = images.shape[1]
        structures = [one for one in structures if one.elements[0].is_linear and one.elements[0].inner == numbers]
        structures = structures or structures_of(checkpoint.weights.tensors)[1]
        structures = [one for one in structures if one.elements[0].is_linear]
    if not structures:
        raise refusal
    first = structures[0].elements[0]
    if first.is_linear and first.inner != images[0].numel():
        raise UnknownNetworkError(f"{refusal}; {_other_images(checkpoint, first.inner, images, asked)}")
    return structures


def _other_images(checkpoint: Checkpoint, numbers: int, images: torch.Tensor, asked: AuditSettings | None) -> str:
    """Why a linear layer for so many numbers does not take these images, and the command where larger ones would fit."""
    if images.ndim == 2:
        return f"its first layer takes {numbers} numbers, and an input has {images.shape[1]}"
    channels, height, width = images.shape[1:]
    side = math.isqrt(numbers // channels)
    text = f"its first layer takes {numbers} numbers, and an image has {images[0].numel()} ({channels} x {height} x {width})"
    if side * side * channels != numbers or asked is None:
        return text
    words = command_again(checkpoint.path, asked, "--input-size", str(side))
    return f"{text}; if it was trained on images of {side} x {side} pixels: {words}"


def _waiting(wait: Say) -> Callable[[int, float], None]:
    """Says how far a search is, every _EVERY seconds."""
    last = time.monotonic()

    def tell(asked: int, best: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            wait(
                f"putting the network together: {asked} variants were compared, the best is right on {100 * best:.0f}%"
            )

    return tell


def _found(
    searched: Callable[..., tuple[Search, Outcome | None]], places: int | None, classes: int, why: UnknownNetworkError
) -> tuple[Search, Outcome, str]:
    """The search whose best network can be that of the training, else the first one, and the option for its order of classes.

    searched: makes a search and asks for its best network. places: pixels of the map that is flattened. Raises why where
    nothing is consistent, with the reason where no network answers with finite numbers.
    """
    search, outcome = searched()
    if outcome is None:
        raise UnknownNetworkError(f"{why}; {NO_NUMBERS}") if search.made else why
    if not is_right(outcome, classes) and (places or 1) > 1:
        search, outcome = _better(classes, (search, outcome), searched(flatten=CHANNELS_LAST))
    if is_right(outcome, classes):
        return search, outcome, ""
    share, outputs_of = _order_of_classes(search, classes)
    if share >= least_right(classes):
        search, outcome = _better(classes, (search, outcome), searched(outputs_of))
    option = f"--match-classes {','.join(map(str, outputs_of))}" if is_right(outcome, classes) else ""
    return search, outcome, option


def _remembered(
    structure: Structure, tensors: Mapping[str, torch.Tensor], tried: dict[str, Normalization], images: torch.Tensor
) -> dict[str, Normalization]:
    """The one normalisation whose images the first BatchNorm remembers; else all that are tried.

    Tried are the usual paddings of the convolution before it, without an activation between the two.
    """
    several = islice(geometries(structure.elements, size_of(images)), _GEOMETRIES)
    paddings = {one.steps[0].padding: one for one in reversed(list(several)) if one.steps and one.steps[0].stride == 1}
    if len(tried) == 1 or not any(name.endswith("running_mean") for name in tensors):
        return tried
    for geometry in islice(paddings.values(), _PADDINGS):
        variant = Variant(structure, geometry, USUAL, "max", next(iter(ORDERS)), sums_of(structure)[0], "")
        network = with_weights(parts_of(variant), tensors, {})
        option = remembered(Classifier(network), tried, images[:_REMEMBERED_BY])
        if option is not None:
            return {option: tried[option]}
    return tried


def activation_of(settings: AuditSettings) -> str | None:
    """The activation that the user states with --arch lsa:reconstructed; None where all are to be tried."""
    if settings.arch != ASKED:
        return None
    arguments = settings.arch_args or {}
    name = arguments.get("activation")
    if set(arguments) != {"activation"} or name not in ACTIVATIONS:
        raise UsageError(f"--arch {ASKED} needs --arch-args activation=NAME, with one of {', '.join(ACTIVATIONS)}")
    return str(name)


def _doubt(
    checkpoint: Checkpoint, search: Search, outcome: Outcome, outputs: int, asked: AuditSettings | None, in_order: str
) -> Doubt | None:
    """Why the best network may not be the one that was trained; None without doubt. in_order: as `_found` returns it."""
    if in_order:
        return _doubt_of_order(checkpoint, outcome, in_order, asked)
    best = outcome.best
    right = f"right on {100 * best.accuracy:.1f}% of {outcome.n} images"
    seldom = too_few(checkpoint, outcome, max(2, outputs), len(search.asked))
    if seldom is not None:
        return seldom
    if not search.fits(best):
        return Doubt(
            f"the best network is {right}, but BatchNorm remembers other inputs of its layers than these images give there"
        )
    if not search.is_at_rest(best):
        return Doubt(f"the best network is {right}, but the slope of its loss is too steep for the end of a training")
    if outcome.rivals:
        variant = search.variant_of(best)
        several = [_difference(variant, search.variant_of(one)) for one in outcome.rivals[:SHOWN]]
        text = f"{variant}, normalisation {short(variant.normalization)}"
        return Doubt(
            f"several networks are as good, {right}: {text}; or, in its place, {', or '.join(dict.fromkeys(several))}",
            *_commands(checkpoint, [variant, *map(search.variant_of, outcome.rivals[:SHOWN])], asked),
        )
    return None


def _commands(
    checkpoint: Checkpoint, several: list[Variant], asked: AuditSettings | None
) -> tuple[str, tuple[str, ...]]:
    """What comes next, and the commands of the user with each of these networks, the first of which is the best one, by
    activation and normalisation; where another one has both in common with the best one, the command that writes the best one
    and runs that of the user with it."""
    pairs = [(one.activation, one.normalization) for one in several]
    telling = list(dict.fromkeys(pairs))
    if asked is None:
        return "", ()
    if pairs.count(pairs[0]) > 1:
        stated = "" if pairs[0][1] == STATED else pairs[0][1]
        net = written_to()
        audit = command_again(checkpoint.path, asked, "--arch", f"{net}:build", *stated.split())
        both = f"{write_command(checkpoint.path, asked)} && {audit}"
        return f"if the first one is not that of the training, correct {net} after the first of the two commands", (
            both,
        )
    differ = [len({pair[place] for pair in telling}) > 1 for place in (0, 1)]
    commands = []
    for activation, option in telling:
        choice = ["--arch", ASKED, "--arch-args", f"activation={activation}"] if differ[0] else []
        words = [*choice, *(option.split() if differ[1] and option != STATED else [])]
        commands.append(command_again(checkpoint.path, asked, *words))
    return "take the one of the training", tuple(commands)


def _order_of_classes(search: Search, classes: int) -> tuple[float, np.ndarray]:  # -> share, (classes,)
    """The output for each class with which one of the networks that were asked is right most often, and how often that is."""

    def best_of(y: np.ndarray, logits: torch.Tensor) -> tuple[float, np.ndarray]:
        predicted = logits.argmax(1).numpy()
        outputs = best_order(y, predicted, classes)
        return float((outputs[y] == predicted).mean()), outputs

    few = sorted(search.few.values(), key=lambda one: -best_of(search.y[: len(one.right)].numpy(), one.logits)[0])
    x, y = search.read(0, min(_IN_ORDER, search.available))
    with torch.no_grad():
        found = [best_of(y.numpy(), one.entrant.ask(x)) for one in few[:_LIKELY]]
    return max(found, key=lambda pair: pair[0])


def _better(classes: int, one: tuple[Search, Outcome], other: tuple[Search, Outcome | None]) -> tuple[Search, Outcome]:
    """The other search with its outcome where that can be the network of the training, else the first one."""
    search, outcome = other
    return (search, outcome) if outcome is not None and is_right(outcome, classes) else one


def _doubt_of_order(checkpoint: Checkpoint, outcome: Outcome, option: str, asked: AuditSettings | None) -> Doubt:
    """The doubt that the classes of the data are in another order than the outputs."""
    right = f"{100 * outcome.best.accuracy:.1f}% of {outcome.n} images"
    sentence = f"the best network is right on {right} only if its classes are in another order ({option})"
    commands = () if asked is None else (command_again(checkpoint.path, asked, *option.split()),)
    return Doubt(sentence, "give that order if it is the one of the training", commands)


def _doubt_of_size(
    checkpoint: Checkpoint, search: Search, outcome: Outcome, asked: AuditSettings | None
) -> Doubt | None:
    """The doubt that the network was trained on larger images; None without doubt."""
    other = fits_resized(search, outcome)
    if other is None:
        return None
    height, width = search.x.shape[2:]
    sizes = (str(SIZE), "native")
    likely = sizes if other.accuracy > outcome.best.accuracy else sizes[::-1]
    commands = [] if asked is None else [command_again(checkpoint.path, asked, "--input-size", one) for one in likely]
    return Doubt(
        f"images of {SIZE} x {SIZE} pixels fit too, right on {100 * other.accuracy:.1f}% of {len(other.right)} (at "
        f"{height} x {width}: {100 * outcome.best.accuracy:.1f}%)",
        f"give the size of the training, --input-size {' or --input-size '.join(likely)}",
        tuple(commands),
    )


def _sentence(search: Search, outcome: Outcome, stated: str) -> str:
    """stated: what the accuracy that the file states has decided."""
    variant, other = search.variant_of(outcome.best), outcome.next
    text = f"network reconstructed from the weights: {variant}, normalisation {short(variant.normalization)}, clean "
    text += f"{100 * outcome.best.accuracy:.1f}% of {outcome.n}"
    text += f" (next: {100 * other.accuracy:.1f}%, {_difference(variant, search.variant_of(other))})" if other else ""
    alike = [_difference(variant, search.variant_of(one)) for one in outcome.alike[:SHOWN]]
    text += f"; nearly the same answers with {', '.join(alike)}" if alike else ""
    return text + (f"; {stated}" if stated else "")


def _difference(one: Variant, other: Variant) -> str:
    """What is different in the other network."""
    parts = [other.activation] if other.activation != one.activation else []
    if other.sums != one.sums:
        parts.append(other.sums)
    if other.structure != one.structure:
        parts.append("other blocks")
    elif other.geometry != one.geometry:
        parts.append("other strides, paddings or pools")
    if other.pooling != one.pooling:
        parts.append(f"{other.pooling} pools")
    if other.order != one.order:
        parts.append(order_text(other.order))
    if other.exception != one.exception:
        parts.append(other.exception or "the same activation everywhere")
    if other.normalization != one.normalization:
        parts.append(f"normalisation {short(other.normalization)}")
    return " and ".join(parts) or "another network"
