"""Which network of a contest is taken, and which other ones stay its rivals. All limits are our choice.

They were set on small networks whose training was known: the network of the training is beaten by one with another activation
more often than noise tells, because a short training does not end at a minimum.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from lsa_cli.models.contest import ALIKE, NOISE, Alike, Outcome, Standing, gives_same_answers
from lsa_cli.models.rebuilding.variants import ACTIVATIONS, USUAL, Variant

PRIOR = 4.0  # nats for each unit of cost
_DOUBLED = 2.0  # nats where the misfit of running statistics, or the unrest, is twice as large
_FIT = 0.002  # a misfit that is none
_UNUSUAL = 3.0  # nats for each unit of cost of an activation
ODDS = NOISE**2 / 2  # nats that end a rivalry
_NEARLY, _MORE, _MANY = 0.02, 1.1, 1000  # share of the images; times; images from which they are compared
_ENOUGH = 200  # images on which networks give nearly the same answers
SAME = 0.998  # of the images; LeakyReLU(0.01) and ReLU with so many equal answers do not differ in effect
# Of the loss. A wrong activation was better than the ReLU of the training by up to 0.033, the true one by 0.2 and more.
_GAIN, _BEYOND = 0.04, 1.0  # with so many standard errors
_SMOOTH = ("ELU", "tanh", "sigmoid", "SiLU", "GELU")
_GAIN_OF = {"LeakyReLU(0.1)": 0.02, "LeakyReLU(0.2)": 0.02, **dict.fromkeys(_SMOOTH, 0.01)}
_RARE, _BEYOND_RARE = 2.0, 3.0  # cost of an activation that hardly any network has; standard errors for one
# Cost by which a network is unusual beside another one; it is then taken only if its loss is less by so much.
_ODD, _FAR_BETTER = 1.5, 0.5
_STRANGE = 3.0  # cost of a network that is taken only if it is better than all others by _CLEARLY
_WORSE = 0.03  # of the loss, by which a smooth activation with other answers must be worse than ReLU
_CLEARLY = 0.15  # of the loss, with NOISE: an activation that is beaten by so much is no rival
_CALM = 2.0  # unrest that is noise
_RESTLESS = 3.0  # times the unrest of another network: so much ends a rivalry. At most 1.7 was seen of the true one.
_SYSTEMATIC = 0.01  # of the loss: what a short training leaves between networks, however many images there are

OnTraining = Callable[[Standing], torch.Tensor | None]  # losses on training images; None where there are none
Misfit = Callable[[Standing], float]  # of the running statistics of BatchNorm, in nats; 0.0 without BatchNorm
Unrest = Callable[[Standing], float]  # how far a network is from a minimum; see `stationarity.unrest`


class Weighing:
    """Rules for the entrants of a contest. variant_of: the variant of each; misfit: how far running statistics are from it;
    unrest: how far it is from a minimum of the loss."""

    def __init__(
        self, variant_of: Callable[[Standing], Variant], on_training: OnTraining, misfit: Misfit, unrest: Unrest,
        is_alike: Alike = gives_same_answers,
    ) -> None:  # fmt: skip
        self.variant_of, self.on_training, self.misfit, self.unrest = variant_of, on_training, misfit, unrest
        self.is_alike = is_alike

    def weighed(self, outcome: Outcome) -> Outcome:
        """The outcome with the network that is taken and its rivals. A far more usual network stays a rival unless it is far
        worse: changed weights can make an unusual one better than that of the training."""
        found = self._weighed(outcome)
        least = found.best.entrant.cost - _ODD
        usual = [
            one for one in found.others if one.entrant.cost < least and not gains(found.best, one, _FAR_BETTER, NOISE)
        ]
        if found.best.entrant.cost > _STRANGE:
            usual += [one for one in found.others if one not in usual and self._is_close(one, found.best)]
        return _with_rivals(found, usual) if usual else found

    def _weighed(self, outcome: Outcome) -> Outcome:
        """Without that.

        ReLU is taken where no other network is likely enough beside it. Otherwise the rules are symmetric: odds of
        exp(NOISE^2 / 2) end a rivalry, how usual an activation is does not count, and a beaten network with another activation
        that is nearly as good is a rival.
        """
        standing = [outcome.best, *outcome.alike, *outcome.rivals]
        usual = [one for one in standing if self._activation(one) == USUAL] or [
            one for one in outcome.others
            if self._activation(one) == USUAL and self._is_twin(one, outcome.best) and not self._speaks_against(outcome.best, one)
        ]  # fmt: skip
        if not usual:
            return self._symmetric(outcome)
        leader = max(usual, key=lambda one: self.log_odds(one, usual[0]))
        # The contest has beaten the others; a short training can do that to the true activation alone.
        beaten = [one for one in outcome.others if leader in outcome.rivals or self._is_twin(one, leader)]
        against = [one for one in [*standing, *beaten] if self._speaks_against(one, leader)]
        if against:
            found = self._symmetric(outcome)
            return found if found.best is not leader else _with_rivals(found, against)
        alike = [one for one in standing if one is not leader and self.is_alike(one, leader)]
        out = [one for one in standing if one is not leader and one not in alike]
        return replace(
            outcome,
            best=leader,
            alike=alike,
            rivals=[],
            others=[*out, *(one for one in outcome.others if one is not leader)],
        )

    def _speaks_against(self, one: Standing, leader: Standing) -> bool:
        """Whether a network is likely enough beside one with ReLU."""
        if one is leader:
            return False
        n, agreement = min(len(one.right), len(leader.right)), one.agreement(leader)
        if self._is_twin(one, leader) or (self.is_alike(one, leader) and n >= _ENOUGH):
            name = self._activation(one)
            if name in _SMOOTH and agreement < ALIKE:
                return n >= _ENOUGH and not gains(leader, one, _WORSE, 0.0)
            beyond = _BEYOND_RARE if self._cost_of_activation(one) >= _RARE else _BEYOND
            return name != USUAL and gains(one, leader, _GAIN_OF.get(name, _GAIN), beyond)
        return self.log_odds(leader, one) + _UNUSUAL * self._cost_of_activation(one) < ODDS

    def _symmetric(self, outcome: Outcome) -> Outcome:
        """Of networks that differ in the activation alone and give nearly the same answers, the most usual one is taken."""
        standing = [outcome.best, *outcome.alike, *outcome.rivals]
        leader = max(standing, key=lambda one: self.log_odds(one, outcome.best))
        every = [outcome.best, *outcome.alike, *outcome.rivals, *outcome.others]
        alike = [one for one in every if self.is_alike(one, leader) and len(one.right) >= _ENOUGH]
        twins = [one for one in alike if self._is_twin(one, leader)]
        best = min([leader, *twins], key=self._cost_of_activation)
        against = [one for one in [outcome.best, *outcome.rivals] if one is not best]
        out = [one for one in against if self.log_odds(best, one) >= ODDS and not self._is_near(one, best)]
        near = [one for one in outcome.others if self._is_near(one, best)]
        # A more usual activation that did not win above, and is taken here for its answers alone, leaves a doubt.
        doubted = [leader] if best is not leader and best.agreement(leader) < SAME else []
        rivals = [*doubted, *(one for one in [*against, *near] if one not in [*out, *alike, *doubted])]
        rivals = [one for one in rivals if not self._is_rare(one, best)]
        others = [one for one in [*against, *outcome.others] if one not in rivals and one not in alike]
        alike = [one for one in alike if one is not best and one not in [*outcome.others, *doubted]]
        return replace(outcome, best=best, alike=alike, rivals=rivals, others=others)

    def log_odds(self, one: Standing, other: Standing) -> float:
        """Of a network against another, in nats, without the prior of their activations: z^2 / 2 for z standard errors of the
        difference of their losses, with a systematic one, on the images of the contest and on those of the training, PRIOR
        for each unit of cost, how well they fit the running statistics, and how far they are from a minimum."""
        trained = [self.on_training(each) for each in (one, other)]
        losses = [(one.loss, other.loss)]
        if trained[0] is not None and trained[1] is not None:
            losses.append((trained[0], trained[1]))
        prior = PRIOR * (other.entrant.cost - one.entrant.cost)
        fits = [math.log2(max(self.misfit(each), _FIT)) for each in (one, other)]
        return log_odds_of(losses, self.unrest(one), self.unrest(other)) + prior + _DOUBLED * (fits[1] - fits[0])

    def log_odds_with_prior(self, one: Standing, other: Standing) -> float:
        """`log_odds` with the prior of ReLU against other activations."""
        costs = [self._cost_of_activation(each) for each in (other, one)]
        with_usual = USUAL in (self._activation(one), self._activation(other))
        return self.log_odds(one, other) + (_UNUSUAL * (costs[0] - costs[1]) if with_usual else 0.0)

    def _is_close(self, one: Standing, best: Standing) -> bool:
        is_alike = one.agreement(best) >= ALIKE
        return len(one.right) >= _ENOUGH and not is_alike and not gains(best, one, _CLEARLY, 0.0)

    def _is_twin(self, one: Standing, leader: Standing) -> bool:
        """Whether only the activation differs."""
        of_leader = self.variant_of(leader)
        return replace(self.variant_of(one), activation=of_leader.activation) == of_leader

    def _is_near(self, one: Standing, best: Standing) -> bool:
        """Whether a network with another activation is nearly as often right: one with a more usual activation may have
        _NEARLY more errors, any other one errors that are _MORE times as many."""
        n = min(len(one.right), len(best.right))
        if n < _MANY or self._activation(one) == self._activation(best) or gains(best, one, _CLEARLY, NOISE):
            return False
        errors, least = (1 - float(standing.right[:n].float().mean()) for standing in (one, best))
        more_usual = self._cost_of_activation(one) < self._cost_of_activation(best)
        if self._is_restless(one, best):
            return False
        return errors <= max(_MORE * least, least + _NEARLY if more_usual else 0.0)

    def _is_restless(self, one: Standing, other: Standing) -> bool:
        """Whether a network is so much farther from a minimum than another one that it was not trained."""
        return self.unrest(one) > _RESTLESS * max(self.unrest(other), _CALM)

    def _is_rare(self, one: Standing, best: Standing) -> bool:
        """Whether a network has an activation that hardly any network has, where the best one has none, and a larger loss."""
        rare = self._cost_of_activation(one) >= _RARE > self._cost_of_activation(best)
        return rare and gains(best, one, 0.0, 0.0)

    def _activation(self, one: Standing) -> str:
        return self.variant_of(one).activation

    def _cost_of_activation(self, one: Standing) -> float:
        return ACTIVATIONS[self._activation(one)][2]


def log_odds_of(losses: list[tuple[torch.Tensor, torch.Tensor]], unrest: float, other_unrest: float) -> float:
    """Of a network against another, in nats, from pairs of their losses on equal images, and how far they are from a minimum."""
    calm = math.log2(max(other_unrest, _CALM)) - math.log2(max(unrest, _CALM))
    return sum(_nats(one, other) for one, other in losses) + _DOUBLED * calm


def _with_rivals(outcome: Outcome, rivals: list[Standing]) -> Outcome:
    alike, others = ([one for one in several if one not in rivals] for several in (outcome.alike, outcome.others))
    more = [one for one in outcome.rivals if one not in rivals]
    return replace(outcome, alike=alike, rivals=[*rivals, *more], others=others)


def gains(one: Standing, other: Standing, least: float = _GAIN, beyond: float = _BEYOND) -> bool:
    """Whether the loss of `one` is less than that of `other` by more than this share of it, and so many standard errors."""
    n = min(len(one.loss), len(other.loss))
    loss = float(other.loss[:n].double().mean())
    return loss - float(one.loss[:n].double().mean()) > least * loss and standard_errors(one, other) > beyond


def _nats(loss: torch.Tensor, other: torch.Tensor) -> float:
    z = _z(loss, other, _SYSTEMATIC)
    return math.copysign(z * z / 2, z)


def standard_errors(one: Standing, other: Standing) -> float:
    """By how many standard errors the loss of `one` is less than that of `other`, on the images that both have seen."""
    return _z(one.loss, other.loss, 0.0)


def _z(one: torch.Tensor, other: torch.Tensor, systematic: float) -> float:
    """systematic: an error that no number of images reduces, as a share of the larger loss."""
    n = min(len(one), len(other))
    gain = (other[:n] - one[:n]).double()
    loss = max(float(each[:n].double().mean()) for each in (one, other))
    error = math.hypot(float(gain.std()) / math.sqrt(n) if n > 1 else 0.0, systematic * loss)
    return float(gain.mean()) / error if error > 0 else 0.0
