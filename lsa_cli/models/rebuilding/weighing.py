"""Which network of a contest is taken, and which other ones stay its rivals. All limits are our choice.

They were set on small networks whose training was known: the network of the training is beaten by one with another activation
more often than noise tells, because a short training does not end at a minimum.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from lsa_cli.models.contest import ALIKE, NOISE, Outcome, Standing
from lsa_cli.models.rebuilding.variants import ACTIVATIONS, USUAL, Variant

_PRIOR = 4.0  # nats for each unit of cost
_HEAT = 15.0  # nats for each factor of ten between a temperature and 1
_WARM = 0.1  # a power of ten between them that is no evidence
_UNUSUAL = 3.0  # nats for each unit of cost of an activation
_ODDS = NOISE**2 / 2  # nats that end a rivalry
_NEARLY, _MORE, _MANY = 0.02, 1.1, 1000  # share of the images; times; images from which they are compared
_ENOUGH = 200  # images on which networks give nearly the same answers
_SAME = 0.998  # of the images; LeakyReLU(0.01) and ReLU with so many equal answers do not differ in effect
# Standard errors by which the loss with another activation may be better than that with ReLU, which is then still taken: where
# nearly all answers are the same, and where they are not. Negative: ReLU must be better by so much.
_SMOOTH = (2.5, 0.0)
_SLOPES = ("LeakyReLU(0.1)", "LeakyReLU(0.2)")
_BETTER = {"LeakyReLU(0.01)": (1.5, -1.5), **dict.fromkeys(_SLOPES, (-2.0, 0.0))}
# A LeakyReLU that is nearly as often right stays a rival unless the loss with ReLU is better by so many standard deviations of
# the difference for one image, or, with so many equal answers, by so many standard errors.
_FAR, _NEARLY_ALIKE, _FAR_ALIKE = 0.1, 0.975, 3.0
_RARE, _BETTER_RARE = 2.0, (5.0, 3.0)  # cost of an activation that hardly any network has

Heat = Callable[[Standing], float]  # the power of ten of the temperature on training images; 0.0 where there are none


class Weighing:
    """Rules for the entrants of a contest. variant_of: the variant of each."""

    def __init__(self, variant_of: Callable[[Standing], Variant], heat: Heat) -> None:
        self.variant_of, self.heat = variant_of, heat

    def weighed(self, outcome: Outcome) -> Outcome:
        """The outcome with the network that is taken and its rivals.

        ReLU is taken where no other network is likely enough beside it. Otherwise the rules are symmetric: odds of
        exp(NOISE^2 / 2) end a rivalry, how usual an activation is does not count, and a beaten network with another activation
        that is nearly as good is a rival.
        """
        standing = [outcome.best, *outcome.alike, *outcome.rivals]
        usual = [one for one in standing if self.variant_of(one).activation == USUAL]
        if not usual:
            return self._symmetric(outcome)
        leader = max(usual, key=lambda one: self.log_odds(one, usual[0]))
        # The contest has beaten the others; a short training can do that to the true activation alone.
        beaten = [one for one in outcome.others if leader in outcome.rivals or self._is_twin(one, leader)]
        against = [one for one in [*standing, *beaten] if self._speaks_against(one, leader)]
        if against:
            found = self._symmetric(outcome)
            return found if found.best is not leader else _with_rivals(found, against)
        alike = [one for one in standing if one is not leader and one.agreement(leader) >= ALIKE]
        out = [one for one in standing if one is not leader and one not in alike]
        return replace(outcome, best=leader, alike=alike, rivals=[], others=[*out, *outcome.others])

    def _speaks_against(self, one: Standing, leader: Standing) -> bool:
        """Whether a network is likely enough beside one with ReLU."""
        n, agreement = min(len(one.right), len(leader.right)), one.agreement(leader)
        if one is leader:
            return False
        name, is_alike = self._activation(one), agreement >= ALIKE and n >= _ENOUGH
        if is_alike and name == USUAL:
            return False
        if not is_alike and not self._is_twin(one, leader):
            return self.log_odds(leader, one) + _UNUSUAL * self._cost_of_activation(one) < _ODDS
        if name == "LeakyReLU(0.01)" and agreement >= _SAME and n >= _ENOUGH:
            return False
        limits = _BETTER_RARE if ACTIVATIONS[name][2] >= _RARE else _BETTER.get(name, _SMOOTH)
        better = -standard_errors(leader, one)
        if is_alike:
            return better > limits[0]
        is_far = better < -_FAR * math.sqrt(n) or (agreement >= _NEARLY_ALIKE and better < -_FAR_ALIKE)
        is_near = name in _SLOPES and self._is_near(one, leader) and not is_far
        return better > limits[1] or is_near

    def _symmetric(self, outcome: Outcome) -> Outcome:
        """Of networks that differ in the activation alone and give nearly the same answers, the most usual one is taken."""
        leader = max([outcome.best, *outcome.alike], key=lambda one: self.log_odds(one, outcome.best))
        every = [outcome.best, *outcome.alike, *outcome.rivals, *outcome.others]
        alike = [one for one in every if one.agreement(leader) >= ALIKE and len(one.right) >= _ENOUGH]
        twins = [one for one in alike if self._is_twin(one, leader)]
        best = min([leader, *twins], key=self._cost_of_activation)
        out = [one for one in outcome.rivals if self.log_odds(best, one) >= _ODDS and not self._is_near(one, best)]
        near = [one for one in outcome.others if self._is_near(one, best)]
        # A more usual activation that did not win above, and is taken here for its answers alone, leaves a doubt.
        doubted = [leader] if best is not leader and best.agreement(leader) < _SAME else []
        rivals = [*doubted, *(one for one in [*outcome.rivals, *near] if one not in out and one not in alike)]
        others = [one for one in [*outcome.rivals, *outcome.others] if one not in rivals and one not in alike]
        alike = [one for one in alike if one is not best and one not in [*outcome.others, *doubted]]
        return replace(outcome, best=best, alike=alike, rivals=rivals, others=others)

    def log_odds(self, one: Standing, other: Standing) -> float:
        """Of a network against another, in nats, without the prior of their activations: z^2 / 2 for z standard errors of the
        difference of their losses, _PRIOR for each unit of cost, and how far temperatures are from 1."""
        z = standard_errors(one, other)
        heats = [max(0.0, abs(self.heat(each)) - _WARM) for each in (one, other)]
        prior = _PRIOR * (other.entrant.cost - one.entrant.cost)
        return math.copysign(z * z / 2, z) + prior + _HEAT * (heats[1] - heats[0])

    def _is_twin(self, one: Standing, leader: Standing) -> bool:
        """Whether only the activation differs."""
        of_leader = self.variant_of(leader)
        return replace(self.variant_of(one), activation=of_leader.activation) == of_leader

    def _is_near(self, one: Standing, best: Standing) -> bool:
        """Whether a network with another activation is nearly as often right: one with a more usual activation may have
        _NEARLY more errors, any other one errors that are _MORE times as many."""
        n = min(len(one.right), len(best.right))
        if n < _MANY or self._activation(one) == self._activation(best):
            return False
        errors, least = (1 - float(standing.right[:n].float().mean()) for standing in (one, best))
        more_usual = self._cost_of_activation(one) < self._cost_of_activation(best)
        return errors <= max(_MORE * least, least + _NEARLY if more_usual else 0.0)

    def _activation(self, one: Standing) -> str:
        return self.variant_of(one).activation

    def _cost_of_activation(self, one: Standing) -> float:
        return ACTIVATIONS[self._activation(one)][2]


def _with_rivals(outcome: Outcome, rivals: list[Standing]) -> Outcome:
    alike, others = ([one for one in several if one not in rivals] for several in (outcome.alike, outcome.others))
    more = [one for one in outcome.rivals if one not in rivals]
    return replace(outcome, alike=alike, rivals=[*rivals, *more], others=others)


def standard_errors(one: Standing, other: Standing) -> float:
    """By how many standard errors the loss of `one` is less than that of `other`, on the images that both have seen."""
    n = min(len(one.loss), len(other.loss))
    gain = (other.loss[:n] - one.loss[:n]).double()
    error = float(gain.std()) / math.sqrt(n) if n > 1 else 0.0
    return float(gain.mean()) / error if error > 0 else 0.0
