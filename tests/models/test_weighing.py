"""Which network of a contest is taken, and which one leaves a doubt."""

import pytest
import torch

from lsa_cli.models.contest import Entrant, Outcome, Standing
from lsa_cli.models.rebuilding.variants import Variant
from lsa_cli.models.rebuilding.weighing import Weighing, standard_errors

N = 1000


def standing(place, first, errors, better=0.0):
    """A standing of the variant `place` on N images of two classes: `errors` of them are wrong, from the image `first` on.

    better: by how many standard errors its loss is less than that of one that is always right.
    """
    wrong = torch.zeros(N, dtype=torch.bool)
    wrong[first : first + errors] = True
    logits = torch.zeros(N, 2)
    logits[torch.arange(N), wrong.long()] = 3.0
    loss = wrong.float()
    if better:
        spread = torch.tensor([1.0, -1.0]).repeat(N // 2)
        loss = spread - better * float(spread.std()) / N**0.5
    return Standing(Entrant(str(place), 0.0, lambda x: x), logits, loss, ~wrong)


def nothing(one):
    return None


def nil(one):
    return 0.0


def weighed(activations, outcome, unrest=nil, normalizations=("", "")):
    variants = [
        Variant(None, None, name, "max", (), "", norm) for name, norm in zip(activations, normalizations, strict=True)
    ]
    return Weighing(lambda one: variants[int(one.entrant.name)], nothing, nil, unrest).weighed(outcome)


@pytest.mark.parametrize(
    ("activations", "errors", "rivals"),
    [
        (("SiLU", "ReLU"), (40, 55), 1),  # a more usual activation with 1.5 points more errors
        (("SiLU", "ReLU"), (40, 70), 0),
        (("ELU", "LeakyReLU(0.1)"), (100, 108), 1),  # 8% more errors
        (("ELU", "LeakyReLU(0.1)"), (100, 160), 0),
        (("ReLU", "LeakyReLU(0.1)"), (100, 108), 0),  # ReLU is usual
        (("ReLU", "ReLU"), (100, 108), 0),  # the same activation: the contest decides
    ],
)
def test_a_beaten_network_with_another_activation_that_is_nearly_as_good_is_a_rival(activations, errors, rivals):
    best, other = standing(0, 0, errors[0]), standing(1, 500, errors[1])
    found = weighed(activations, Outcome(best, [], [], [other], True))
    assert (found.best, len(found.rivals)) == (best, rivals)


def test_standard_errors_are_those_of_a_paired_test():
    assert standard_errors(standing(0, 0, 0, better=2.0), standing(1, 0, 0)) == pytest.approx(2.0)
    assert standard_errors(standing(0, 0, 0), standing(1, 0, 0, better=2.0)) == pytest.approx(-2.0)
    assert standard_errors(standing(0, 0, 0), standing(1, 0, 0)) == 0.0


def test_odds_weigh_the_difference_of_losses_in_standard_errors_and_the_cost():
    gain = torch.tensor([1.0, 3.0]).repeat(50)  # mean 2, standard error sqrt(1 / 99)
    one, other = (
        Standing(Entrant("", cost, None), torch.zeros(100, 2), loss, torch.ones(100, dtype=torch.bool))
        for cost, loss in ((0.5, torch.zeros(100)), (2.0, gain))
    )
    log_odds = Weighing(None, nothing, nil, nil).log_odds
    error = (1 / 99 + (0.01 * 2) ** 2) ** 0.5  # of the difference, and 1% of the larger loss
    assert log_odds(one, other) == pytest.approx((2 / error) ** 2 / 2 + 4 * 1.5)
    assert log_odds(one, other) == -log_odds(other, one)


@pytest.mark.parametrize(
    ("errors", "loss", "noise", "taken"),
    [
        (4, 0.11, 0.01, True),  # nearly the same answers
        (4, 0.0995, 0.01, True),  # better by 0.5%: a wrong activation can be
        (4, 0.09, 0.01, False),
        (4, 0.09, 0.5, True),  # better by 10%, which is within noise
        (40, 0.11, 0.01, True),  # other answers
        (40, 0.102, 0.01, False),
    ],
)
def test_relu_is_taken_where_another_activation_is_not_likely_enough(errors, loss, noise, taken):
    spread = noise * torch.tensor([1.0, -1.0]).repeat(N // 2)
    best, other = (
        Standing(Entrant(str(place), 0.0, None), one.logits, mean, one.right)
        for place, one, mean in (
            (0, standing(0, 0, errors // 2), torch.full((N,), 0.1)),
            (1, standing(1, 500, errors // 2), loss + spread),
        )
    )
    for outcome in (Outcome(best, [], [other], [], True), Outcome(other, [], [], [best], True)):
        found = weighed(("ReLU", "GELU"), outcome)
        assert (found.best is best and not found.rivals) == taken


def _with_answers(one, first, errors):
    wrong = standing(0, first, errors)
    return Standing(one.entrant, wrong.logits, one.loss, wrong.right)


@pytest.mark.parametrize(("loss", "rivals"), [(0.08, 1), (0.03, 0)])
def test_a_far_more_usual_network_is_a_rival_unless_it_is_far_worse(loss, rivals):
    spread = 0.01 * torch.tensor([1.0, -1.0]).repeat(N // 2)
    odd = Standing(Entrant("0", 3.0, None), standing(0, 0, 40).logits, loss + spread, standing(0, 0, 40).right)
    usual = Standing(Entrant("1", 0.0, None), standing(1, 500, 40).logits, torch.full((N,), 0.1), odd.right)
    found = weighed(("ReLU", "ReLU"), Outcome(odd, [], [], [usual], True), normalizations=("none", "mnist"))
    assert (found.best is odd, len(found.rivals)) == (True, rivals)


def test_training_images_count_as_those_of_the_contest():
    one, other = standing(0, 0, 0, 2.0), standing(1, 0, 0)
    losses = {"0": one.loss, "1": other.loss}
    alone = Weighing(None, nothing, nil, nil).log_odds(one, other)
    both = Weighing(None, lambda standing: losses[standing.entrant.name], nil, nil).log_odds(one, other)
    assert both == pytest.approx(2 * alone)
    assert alone > 0


def test_running_statistics_that_fit_twice_as_well_count_two_nats():
    one, other = standing(0, 0, 0), standing(1, 0, 0)
    misfits = {"0": 0.01, "1": 0.04}
    found = Weighing(None, nothing, lambda standing: misfits[standing.entrant.name], nil)
    assert found.log_odds(one, other) == pytest.approx(4.0)
    misfits["0"] = misfits["1"] = 0.0
    assert found.log_odds(one, other) == 0.0


def test_between_normalisations_the_one_at_a_minimum_is_taken():
    one, other = _with_answers(standing(0, 0, 0), 0, 10), _with_answers(standing(1, 0, 0), 500, 10)
    outcome = Outcome(other, [], [one], [], True)
    two = {"activations": ("ReLU", "ReLU"), "normalizations": ("none", "mnist")}
    undecided = weighed(outcome=outcome, **two)
    assert len(undecided.rivals) == 1
    decided = weighed(outcome=outcome, unrest=lambda one: {"0": 1.0, "1": 20.0}[one.entrant.name], **two)
    assert decided.best is one
    assert not decided.rivals


@pytest.mark.parametrize(("unrest", "rivals"), [(1.0, 1), (5.9, 1), (6.1, 0)])
def test_a_beaten_network_that_is_far_from_a_minimum_is_no_rival(unrest, rivals):
    best, other = standing(0, 0, 100), standing(1, 500, 108)
    outcome = Outcome(best, [], [], [other], True)
    found = weighed(("ELU", "LeakyReLU(0.1)"), outcome, lambda one: {"0": 2.0, "1": unrest}[one.entrant.name])
    assert len(found.rivals) == rivals


@pytest.mark.parametrize(("unrest", "rivals"), [(4.0, 1), (40.0, 0)])
def test_the_best_of_a_contest_that_another_network_leads_stays_a_rival_until_the_odds_are_against_it(unrest, rivals):
    one, other = _with_answers(standing(0, 0, 0), 0, 10), _with_answers(standing(1, 0, 0), 500, 10)
    found = weighed(
        ("tanh", "tanh"),
        Outcome(other, [], [one], [], True),
        unrest=lambda one: {"0": 2.0, "1": unrest}[one.entrant.name],
        normalizations=("0.5/0.5 --input-range 0,255", "none"),
    )
    assert found.best is one
    assert len(found.rivals) == rivals
