"""Contests between readings of a network, on logits whose quality is known."""

import torch

from lsa_cli.models.contest import Entrant, hold, losses

N, K = 600, 5
LABELS = torch.arange(N) % K
PLACES = torch.arange(N, dtype=torch.float32)[:, None]


def read(start, stop):
    return PLACES[start:stop], LABELS[start:stop]


def entrant(name, signal, seed, cost=0.0, scale=1.0):
    """Logits with the label raised by `signal` in noise of its own."""
    noise = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    logits = scale * (signal * torch.nn.functional.one_hot(LABELS, K) + noise)
    return Entrant(name, cost, lambda x: logits[x[:, 0].long()])


def test_the_better_one_wins_and_the_other_is_next():
    outcome = hold([entrant("worse", 1.0, 0), entrant("better", 3.0, 1)], read, N)
    assert (outcome.best.entrant.name, outcome.next.entrant.name) == ("better", "worse")
    assert outcome.above_chance
    assert not outcome.rivals
    assert not outcome.alike


def test_of_equally_good_ones_that_differ_none_is_taken_without_rivals():
    decided = sum(not hold([entrant("a", 2.0, s), entrant("b", 2.0, s + 99)], read, N).rivals for s in range(30))
    assert decided <= 1


def test_equal_ones_count_as_one_the_least_unusual():
    outcome = hold([entrant("unusual", 2.0, 0, cost=1.0), entrant("usual", 2.0, 0)], read, N)
    assert outcome.best.entrant.name == "usual"
    assert outcome.next is None
    assert not outcome.alike


def test_the_scale_of_logits_decides_nothing():
    logits = entrant("one", 2.0, 0).ask(PLACES)
    one, other = losses(logits, LABELS), losses(7.3 * logits, LABELS)
    assert torch.allclose(one, other, atol=1e-4)
    mixed = hold([entrant("one", 2.0, 0, scale=20.0), entrant("other", 2.0, 0)], read, N)
    assert not mixed.rivals
    assert not mixed.others


def test_guessing_is_not_above_chance_and_what_is_not_finite_is_left_out():
    broken = Entrant("broken", -1.0, lambda x: torch.full((len(x), K), torch.nan))
    outcome = hold([broken, entrant("guess", 0.0, 0)], read, N)
    assert outcome.best.entrant.name == "guess"
    assert not outcome.above_chance


def test_answers_that_are_known_are_not_asked_again_and_change_nothing():
    several, asked = [entrant("one", 2.0, 0), entrant("other", 1.6, 1)], []

    def counted(one, known):
        def ask(x):
            asked.extend((one.name, int(place)) for place in x[:, 0])
            return one.ask(x)

        return Entrant(one.name, one.cost, ask, one.ask(PLACES[:known]))

    fresh = hold(several, read, N)
    outcome = hold([counted(one, known) for one, known in zip(several, (300, 7), strict=True)], read, N)
    assert torch.equal(outcome.best.logits, fresh.best.logits)
    assert torch.equal(outcome.next.logits, fresh.next.logits)
    assert len(set(asked)) == len(asked)
    assert min(place for name, place in asked if name == "one") == 300
    assert min(place for name, place in asked if name == "other") == 7


def test_one_that_answers_nearly_all_images_alike_is_no_rival():
    base = entrant("base", 2.0, 0)
    near = Entrant("near", 0.5, lambda x: base.ask(x) + 0.02 * torch.sin(7 * x))
    outcome = hold([near, base], read, N)
    assert outcome.best.entrant.name == "base"
    assert not outcome.rivals
