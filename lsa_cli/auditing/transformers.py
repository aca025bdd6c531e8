"""Which transformer of the same weights was trained: heads, pool and activation, chosen on labelled images."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli.attacks.threat import Bounds
from lsa_cli.auditing.classes import match_classes
from lsa_cli.auditing.normalizing import Found, reading, short
from lsa_cli.auditing.rebuilt import (
    ARCHITECTURE,
    ASKED,
    NO_NUMBERS,
    OWN_FROM,
    SHOWN,
    STATED,
    Doubt,
    Look,
    Rebuilt,
    normalizations_of,
    refuse_doubt,
    spec_given,
    too_few,
    training_images,
)
from lsa_cli.auditing.suggesting import command_again
from lsa_cli.commands import options_of
from lsa_cli.data import LabelledData
from lsa_cli.errors import UsageError
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.models.classifier import Normalization, Normalize, as_logits
from lsa_cli.models.contest import ALIKE, NOISE, SIZES, Entrant, Outcome, Read, Standing, hold, losses, tempered
from lsa_cli.models.fitting import load_strictly, refuse_infinite
from lsa_cli.models.loading import Loaded, Say, UnknownNetworkError
from lsa_cli.models.normalizations import coarse, cost_of, has_same_scale
from lsa_cli.models.parametrizations import Stored, read
from lsa_cli.models.rebuilding.described import described
from lsa_cli.models.rebuilding.stationarity import unrest
from lsa_cli.models.rebuilding.transformers import Choice, Transformer, choices_of, parts_of, with_activations
from lsa_cli.models.rebuilding.weighing import ODDS, PRIOR, gains, log_odds_of
from lsa_cli.settings import AuditSettings

_FEW, _TOP, _ENTRANTS = 64, 3, 30  # images of the first step; choices and networks that go on
_NATS = 1.5  # of log-probability for each unit of cost
_SLOPES = 1000  # images whose gradients are computed
_FAR = 3.0  # times the odds that end a rivalry
# Of the loss, by which a wrong number of heads must be worse. 8 heads were trained, and 16 were better by 4%, also on the images
# of the training; elsewhere wrong ones were worse by 11% and more, and by 30% and more on the images of the training.
_APART, _APART_ALONE = 0.07, 0.12  # with images of the training, and without

_WORK, _LEAST_IMAGES = 5e9, 200  # multiplications for the images that one network is asked; images in any case
_BATCH = 100

Reading = tuple[Choice, str]  # with the option of the normalisation


class TransformerSearch:
    """Readings of a transformer, asked on the same images. costs: of the options of normalisations. trained: images and labels
    of the training, where they are known. stated: fields of the choice that are known."""

    def __init__(
        self, shape: Transformer, tensors: Mapping[str, torch.Tensor], read: Read, available: int,
        normalizations: Mapping[str, Normalization], costs: Callable[[str], float],
        trained: tuple[torch.Tensor, torch.Tensor] | None, stated: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.shape, self.read, self.available, self.costs, self.stated = shape, read, available, costs, stated
        self.tensors = {name: value.float() for name, value in tensors.items()}
        self.normalizations = normalizations
        self.shifts = {
            name: nn.Identity() if value is None else Normalize(*value) for name, value in normalizations.items()
        }
        self.most = max(_LEAST_IMAGES, int(_WORK / self._work()))
        self.trained = None if trained is None else (trained[0][: self.most], trained[1][: self.most])
        self.readings: list[Reading] = []
        self._in_training: dict[str, torch.Tensor] = {}
        self._unrests: dict[str, float] = {}

    def best(self) -> Outcome | None:
        """The outcome of a contest of the likeliest readings; None where all of them answer NaN or infinity."""
        choices = {
            replace(one, **self.stated): cost
            for one, cost in choices_of(self.shape)
            if replace(one, **{**self.stated, "activation": one.activation}) == one
        }
        names = list(self.shifts)
        first = self._ranked({(choice, name): cost for choice, cost in choices.items() for name in coarse(names)})
        if not first:
            return None
        likely = list(dict.fromkeys(choice for choice, _ in first))[:_TOP]
        every = {(likely[0], name): choices[likely[0]] for name in names}
        normalizations = [name for _, name in self._ranked(every)[:_TOP]]
        entrants = {
            (one, name): cost for choice in likely for name in normalizations
            for one, cost in with_activations(self.shape, choice, choices[choice])
            if one.activation == self.stated.get("activation", one.activation)
        }  # fmt: skip
        kept = {
            reading: entrants.get(reading, every.get(reading, 0.0)) for reading in self._ranked(entrants)[:_ENTRANTS]
        }
        kept |= {reading: cost for reading, cost in every.items() if reading not in kept}
        self.readings = list(kept)
        contest = [
            Entrant(str(number), cost + self.costs(reading[1]), self._asking(reading))
            for number, (reading, cost) in enumerate(kept.items())
        ]
        outcome = hold(contest, self.read, self.available, [size for size in SIZES if size <= self.most])
        return self._weighed(outcome)

    def _weighed(self, outcome: Outcome) -> Outcome:
        """The outcome with the likeliest network, and all others as rivals that are likely enough beside it, and differ from
        it in more than a normalisation that hardly changes an answer."""
        standing = [outcome.best, *outcome.alike, *outcome.rivals]
        leader = max(standing, key=lambda one: self._log_odds(one, outcome.best))
        rivals, alike, others = list[Standing](), list[Standing](), list[Standing]()
        for one in [*standing, *outcome.others]:
            if one is leader:
                continue
            seen = one if len(one.loss) >= outcome.n or self._is_far(leader, one) else self._again(one, outcome.n)
            (choice, name), (other, other_name) = self.reading_of(leader), self.reading_of(one)
            is_scaled = not has_same_scale(self.normalizations[name], self.normalizations[other_name])
            if choice == other and seen.agreement(leader) >= ALIKE and not is_scaled:
                alike.append(seen)
            elif self._is_far(leader, seen) or (self._may_end(leader, seen) and self._log_odds(leader, seen) >= ODDS):
                others.append(seen)
            else:
                rivals.append(seen)
        return replace(outcome, best=leader, alike=alike, rivals=rivals, others=others)

    def _is_far(self, leader: Standing, one: Standing) -> bool:
        """Whether a network is so much worse that nothing else can speak for it."""
        usual = PRIOR * (one.entrant.cost - leader.entrant.cost)
        nats = log_odds_of([(leader.loss, one.loss)], 0.0, 0.0) + min(0.0, usual)
        return nats >= _FAR * ODDS and self._may_end(leader, one)

    def _may_end(self, leader: Standing, one: Standing) -> bool:
        """Whether the loss of a network with other heads, or norms or patches in another order, is so much larger that it is no
        rival: a short training leaves weights that are a little better with other heads."""
        mine, other = self.reading_of(leader)[0], self.reading_of(one)[0]
        is_equal = replace(mine, activation=other.activation, pool=other.pool) == other
        if is_equal or self.trained is None:
            return is_equal or gains(leader, one, _APART_ALONE, NOISE)
        pair = self._losses_in_training(leader), self._losses_in_training(one)
        is_apart = float(pair[0].mean()) < (1 - _APART_ALONE) * float(pair[1].mean())
        return (
            is_apart
            and gains(leader, one, _APART, 0.0)
            and log_odds_of([(leader.loss, one.loss), pair], 0.0, 0.0) >= ODDS
        )

    def _again(self, one: Standing, images: int) -> Standing:
        x, y = self.read(0, images)
        with torch.no_grad():
            logits = one.entrant.ask(x)
        return Standing(one.entrant, logits, losses(logits, y), logits.argmax(1) == y)

    def _log_odds(self, one: Standing, other: Standing) -> float:
        """As that of `weighing`: of a network against another, in nats."""
        pairs = [(one.loss, other.loss)]
        if self.trained is not None:
            pairs.append((self._losses_in_training(one), self._losses_in_training(other)))
        nats = log_odds_of(pairs, self._unrest(one), self._unrest(other))
        return nats + PRIOR * (other.entrant.cost - one.entrant.cost)

    def _losses_in_training(self, one: Standing) -> torch.Tensor:
        assert self.trained is not None
        if one.entrant.name not in self._in_training:
            with torch.no_grad():
                self._in_training[one.entrant.name] = losses(one.entrant.ask(self.trained[0]), self.trained[1])
        return self._in_training[one.entrant.name]

    def _unrest(self, one: Standing) -> float:
        if one.entrant.name not in self._unrests:
            choice, option = self.reading_of(one)
            x, y = self.trained if self.trained is not None else self.read(0, min(self.available, self.most))
            images = min(len(x), _SLOPES, self.most)
            shifted = self.shifts[option](x[:images])
            self._unrests[one.entrant.name] = unrest(self._body(choice).requires_grad_(True), shifted, y[:images])
        return self._unrests[one.entrant.name]

    def reading_of(self, one: Standing) -> Reading:
        return self.readings[int(one.entrant.name)]

    def _work(self) -> float:
        """Multiplications for an image, without those of the attention weights."""
        places = (self.shape.size // self.shape.patch) ** 2 + 1
        return places * sum(item.numel() for item in self.tensors.values() if item.ndim == 2)

    def _ranked(self, readings: Mapping[Reading, float]) -> list[Reading]:
        """The readings by the probability that they give to the labels of few images."""
        x, y = self.read(0, min(_FEW, self.available))
        scores = {}
        for one, cost in readings.items():
            with torch.no_grad():
                logits = self._asking(one)(x)
            if bool(logits.isfinite().all()):
                loss = float(tempered(logits, y)[0].mean())
                scores[one] = loss + _NATS * (cost + self.costs(one[1])) / len(y)
        return sorted(scores, key=lambda one: scores[one])

    def _body(self, choice: Choice) -> nn.Module:
        with torch.device("meta"):
            body = parts_of(self.shape, choice).build()
        body.load_state_dict(self.tensors, assign=True)
        return body.eval().requires_grad_(False)

    def _asking(self, reading: Reading) -> Callable[[torch.Tensor], torch.Tensor]:
        choice, option = reading

        def ask(x: torch.Tensor) -> torch.Tensor:
            body = self._body(choice)
            return as_logits(torch.cat([body(self.shifts[option](part)) for part in x.split(_BATCH)]), len(x))

        return ask


def stated_of(settings: AuditSettings, shape: Transformer) -> dict[str, Any]:
    """The fields of the choice that the user states with --arch lsa:reconstructed; none without it."""
    if settings.arch != ASKED:
        return {}
    stated, known = settings.arch_args or {}, _values(shape)
    for name, value in stated.items():
        if not any(type(value) is type(one) and value == one for one in known.get(name, ())):
            several = (f"{one}={'|'.join(map(str, values))}" for one, values in known.items())
            raise UsageError(
                f"--arch {ASKED}: this transformer has no {name}={value}; --arch-args takes {', '.join(several)}"
            )
    if not stated:
        raise UsageError(f"--arch {ASKED} needs --arch-args, with at least one of {', '.join(known)}")
    return stated


def _values(shape: Transformer) -> dict[str, list[Any]]:
    """The values that each field of a choice can have for these weights."""
    choices = [choice for choice, _ in choices_of(shape)]
    choices += [one for one, _ in with_activations(shape, choices[0], 0.0)]
    return {field.name: list(dict.fromkeys(getattr(one, field.name) for one in choices)) for field in fields(Choice)}


def _words(reading: Reading, shape: Transformer) -> list[str]:
    """The options that state a reading."""
    choice, option = reading
    open_fields = [name for name, values in _values(shape).items() if len(values) > 1]
    stated = options_of("arch_args", {name: getattr(choice, name) for name in open_fields})
    return ["--arch", ASKED, *stated, *([] if option == STATED else option.split())]


def text_of(reading: Reading) -> str:
    return f"{reading[0]}, normalisation {short(reading[1])}"


def rebuild_transformer(
    checkpoint: Checkpoint, stored: Mapping[str, Stored], shape: Transformer, data: LabelledData, look: Look,
    settings: AuditSettings, bounds: Bounds, why: UnknownNetworkError, say: Say, asked: AuditSettings | None, doubtful: bool,
) -> Rebuilt:  # fmt: skip
    """As `rebuild`, of a transformer."""
    order = np.random.default_rng(0).permutation(len(data))
    images = look(np.sort(order[:OWN_FROM]))
    if images.ndim != 4 or images.shape[1:] != (shape.channels, shape.size, shape.size):
        size = f"{shape.channels} x {shape.size} x {shape.size}"
        words = ""
        if asked is not None and images.ndim == 4 and images.shape[1] == shape.channels:
            words = f": {command_again(checkpoint.path, asked, '--input-size', str(shape.size))}"
        raise UnknownNetworkError(
            f"{why}; it is a vision transformer for images of {size}: add --input-size {shape.size}, or give other data{words}"
        )
    classes = max(2, shape.head.outer)
    labels, _ = match_classes(data, None, classes, settings.match_classes, [])
    tensors = {name: read(item, checkpoint.load) for name, item in stored.items()}
    refuse_infinite(tensors, str(checkpoint.path))
    tried = normalizations_of(settings, checkpoint, images)
    search = TransformerSearch(
        shape,
        tensors,
        reading(order, labels, look),
        len(order),
        tried,
        lambda option: cost_of(option, data.name or data.called),
        training_images(data, spec_given(data, settings), images, bounds),
        stated_of(settings, shape),
    )
    outcome = search.best()
    if outcome is None:
        raise UnknownNetworkError(f"{why}; {NO_NUMBERS}")
    choice, option = search.reading_of(outcome.best)
    right = f"{100 * outcome.best.accuracy:.1f}% of {outcome.n}"
    text = text_of((choice, option))
    doubt = too_few(checkpoint, outcome, classes, len(search.readings))
    if doubt is None and outcome.rivals:
        several = ", or ".join(text_of(search.reading_of(one)) for one in outcome.rivals[:SHOWN])
        standing = [_words(search.reading_of(one), shape) for one in (outcome.best, *outcome.rivals[:SHOWN])]
        doubt = Doubt(
            f"several transformers are as good, right on {right} images: {text}; or, in its place, {several}",
            "take the one of the training",
            () if asked is None else tuple(command_again(checkpoint.path, asked, *words) for words in standing),
        )
    refuse_doubt(checkpoint, doubt, asked, why, say, doubtful)
    sentence = f"transformer reconstructed from the weights: {text}, clean {right}"
    if outcome.next is not None:
        sentence += f" (next: {100 * outcome.next.accuracy:.1f}%, {text_of(search.reading_of(outcome.next))})"
    say(sentence)
    parts = parts_of(shape, choice)
    body, notes = parts.build(), [*checkpoint.notes, sentence]
    load_strictly(body, checkpoint, f"{checkpoint.path} and the reconstructed network", notes)
    found = Found(tried[option], f"normalisation {short(option)}: found with the network", True)
    loaded = Loaded(body.float(), ARCHITECTURE, settings.arch_args or {}, notes, described=described(parts))
    return Rebuilt(loaded, found, "" if option == STATED else option, parts.source(sentence), doubt)
