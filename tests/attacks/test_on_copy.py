"""Attacks that begin on a faster copy: only the network itself decides, and what it has seen break is kept."""

import dataclasses

import pytest
import torch
from torch import nn

from lsa_cli.attacks import make_threat
from lsa_cli.attacks.losses import margin
from tests.attacks.test_property_table import EPS, PAIRS, make

BEGINNING = [pair for pair in PAIRS if make(*pair).begins_on_copy]
SOME_BREAK = {"linf": 0.3, "l2": 1.6, "l1": 6.0}  # radii at which some of the samples below break, and not all
OTHERS = [pair for pair in PAIRS if not make(*pair).begins_on_copy]


class Watched(nn.Module):
    """A network of four classes that notes which samples it has seen break within the budget, told by the nearest one."""

    threat = None

    def __init__(self, x):
        super().__init__()
        torch.manual_seed(0)
        self.x, self.y = x, torch.arange(len(x)) % 4
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 12), nn.ReLU(), nn.Linear(12, 4))
        with torch.no_grad():
            self.body[3].bias += 0.3 * torch.randn(4)
            self.y = self.body(x).argmax(1)
        self.seen = torch.zeros(len(x), dtype=torch.bool)

    def forward(self, x):
        logits = self.body(x)
        with torch.no_grad():
            row = (x[:, None] - self.x).flatten(2).abs().sum(2).argmin(1)
            broken = margin(logits, self.y[row]) > 0
            if self.threat is not None:
                self.seen[row[broken & self.threat.contains(x, self.x[row])]] = True
        return logits


class Wrong(nn.Module):
    """A copy that calls everything wrong."""

    def __init__(self, network):
        super().__init__()
        self.body = network.body

    def forward(self, x):
        return -self.body(x)


class Near(Wrong):
    """A copy whose answers are a little off."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x).float() + 0.02


class Never(nn.Module):
    def forward(self, x):
        raise AssertionError("the copy is looked at")


def images():
    return torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("goal", ["worst", "break"])
@pytest.mark.parametrize("copied", [Wrong, Near])
@pytest.mark.parametrize(("name", "norm"), BEGINNING)
def test_only_the_network_decides_and_what_it_saw_break_is_kept(name, norm, copied, goal):
    x = images()
    network = Watched(x)
    attack = make(name, norm, eps=SOME_BREAK[norm])
    network.threat = attack.threat
    x_adv, found_at = attack.run(network, x, network.y, goal=goal, copy=copied(network))
    seen = network.seen.clone()
    assert attack.threat.contains(x_adv, x).all()
    broken = margin(network(x_adv), network.y) > 0
    assert torch.equal(found_at > 0, broken)
    assert torch.equal(seen, broken)
    assert broken.sum() < len(x)
    if copied is Near:
        assert broken.any()


@pytest.mark.parametrize(("name", "norm"), OTHERS)
def test_other_attacks_never_look_at_a_copy(name, norm):
    x = images()
    network = Watched(x)
    attack = make(name, norm)
    alone, beside = (attack(network, x, network.y, copy=copy) for copy in (None, Never()))
    assert torch.equal(alone, beside)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("goal", ["worst", "break"])
def test_pgd_beside_an_exact_copy_is_pgd(norm, goal):
    x = images()
    network = Watched(x)
    attack = dataclasses.replace(make("pgd", norm, eps=SOME_BREAK[norm]), restarts=2)
    alone, beside = (attack.run(network, x, network.y, goal=goal, copy=copy) for copy in (None, network))
    assert torch.equal(alone[0], beside[0])
    assert torch.equal(alone[1], beside[1])


def test_a_run_is_given_up_by_the_networks_answers_alone():
    """A copy that finds every sample hopeless gives none up: the network asks from its own first look on."""
    x = images()
    network = Watched(x)
    attack = make("apgd-t", "linf", eps=SOME_BREAK["linf"])
    long = dataclasses.replace(attack, steps=60)

    class Hopeless(Wrong):
        def forward(self, x):
            return 51 * self.body(x)

    alone = margin(network(long(network, x, network.y, goal="break")), network.y) > 0
    beside = margin(network(long(network, x, network.y, goal="break", copy=Hopeless(network))), network.y) > 0
    assert torch.equal(alone, beside)


def test_what_is_asked_for_in_parts_turns_in_every_restart():
    x = images()
    network = Watched(x)
    shown = []

    class Counted(Near):
        def forward(self, x):
            shown.append(len(x))
            return super().forward(x)

    attack = dataclasses.replace(make("pgd", "linf"), steps=20, restarts=3)
    attack(network, x, network.y, copy=Counted(network))
    assert len(shown) == 3 * 17
    assert make_threat("linf", 0.1) == attack.threat
