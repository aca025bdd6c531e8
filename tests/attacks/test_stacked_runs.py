"""Several runs of a sample in one pass: what they find, which rows are dropped, and the random numbers of each run."""

import dataclasses

import pytest
import torch
from torch import nn

from lsa_cli.attacks import make_threat
from lsa_cli.attacks.apgd import APGD, TargetedAPGD
from lsa_cli.attacks.fab import FABT
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.randomness import kept_aside, per_sample, repeat, uniform_like
from lsa_cli.attacks.search import Nearest, Search, searching

EPS = {"linf": 0.1, "l2": 0.8, "l1": 4.0}
ATTACKS = {
    "apgd-ce": lambda threat: APGD(threat, 8, restarts=3),
    "apgd-t": lambda threat: TargetedAPGD(threat, 8, targets=3, restarts=2),
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 5))
    return body.double().requires_grad_(False)


@pytest.fixture(scope="module")
def samples(network):
    x = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    return x, network(x).argmax(1)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ATTACKS)
def test_runs_in_one_pass_find_what_they_find_one_after_the_other(network, samples, name, norm):
    x, y = samples
    attack = ATTACKS[name](make_threat(norm, EPS[norm]))
    one_by_one = attack(network, x, y)
    for at_once in (2, 9):
        together = dataclasses.replace(attack, at_once=at_once)(network, x, y)
        torch.testing.assert_close(margin(network(together), y), margin(network(one_by_one), y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", EPS)
def test_fab_t_without_random_starts_finds_the_same_distances_in_one_pass(network, samples, norm):
    x, y = samples
    threat = make_threat(norm, EPS[norm])
    one_by_one, together = (FABT(threat, 5, targets=3, at_once=at_once)(network, x, y) for at_once in (1, 3))
    torch.testing.assert_close(threat.distance(together, x), threat.distance(one_by_one, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_row_of_a_broken_sample_is_asked_again(network, samples, name):
    x, y = samples
    broken = torch.zeros(len(x), dtype=torch.bool)
    threat = make_threat("linf", 0.03)

    def watching(inputs):
        row = (inputs[:, None] - x).flatten(2).abs().sum(2).argmin(1)
        assert not broken[row].any()
        logits = network(inputs)
        broken[row[(margin(logits.detach(), y[row]) > 0) & threat.contains(inputs.detach(), x[row])]] = True
        return logits

    attack = dataclasses.replace(ATTACKS[name](threat), at_once=9)
    _, found_at = attack.run(watching, x, y, goal="break")
    assert 0 < int(broken.sum()) < len(x)
    assert torch.equal(found_at > 0, broken)


@pytest.mark.parametrize("kind", [Search, Nearest])
def test_the_best_of_the_runs_of_a_sample_is_kept(kind):
    """Two samples with three runs each. Distances are 1, 2, 3 and 3, 2, 1; the margins rise with the number of the row."""
    x, y = torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)
    with searching("worst"):
        search = kind(x, y, make_threat("linf", 5.0, bounds=None))
    with search.aside():
        search.stack(3)
        assert search.rows.tolist() == [0, 0, 0, 1, 1, 1]
        inputs = torch.tensor([1.0, 2.0, 3.0, 3.0, 2.0, 1.0])[:, None]
        search.offer(inputs, torch.stack([torch.zeros(6), torch.arange(1.0, 7.0)], 1))
        assert search.queries == 3
    assert search.rows.tolist() == [0, 1]
    assert search.value.tolist() == ([3.0, 6.0] if kind is Search else [1.0, 6.0])
    assert search.x_adv.flatten().tolist() == ([3.0, 1.0] if kind is Search else [1.0, 1.0])
    assert search.broken.all()


def test_each_run_draws_numbers_of_its_own_and_the_first_those_of_the_sample():
    x = torch.zeros(4, 50)
    with per_sample(0, torch.arange(4), "a"):
        alone = uniform_like(x)
    with per_sample(0, torch.arange(4), "a"), kept_aside():
        repeat(3)
        together = uniform_like(x.repeat_interleave(3, 0)).reshape(4, 3, 50)
    assert torch.equal(together[:, 0], alone)
    assert len(together.flatten(0, 1).unique(dim=0)) == 12
