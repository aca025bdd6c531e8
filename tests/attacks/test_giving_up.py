"""Runs that are given up where only the verdict counts: far samples are cheap, near ones lose nothing."""

import pytest
import torch
from torch import nn

from lsa_cli.attacks import make_threat
from lsa_cli.attacks.apgd import APGDDLR, TargetedAPGD
from lsa_cli.attacks.fab import FABT
from lsa_cli.attacks.odi import ODI
from lsa_cli.attacks.search import Search, searching
from lsa_cli.attacks.square import Square
from lsa_cli.attacks.square_pgd import SquarePGD

EPS = 0.1
RULE = ((0.3, 1.5), (0.5, 1.2))


class Counted(nn.Module):
    """A linear network of five classes that counts the rows it is shown."""

    def __init__(self):
        super().__init__()
        self.linear, self.rows = nn.Linear(40, 5, bias=False), 0
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(5, 40, generator=torch.Generator().manual_seed(3)))

    def forward(self, x):
        self.rows += len(x)
        return self.linear(x.flatten(1))


def at_distance(model, times):
    """An input whose nearest boundary is `times` EPS away in linf, in the direction of its likeliest rival."""
    weight = model.linear.weight.detach()
    x = torch.full((40,), 0.5)
    for _ in range(200):  # towards the point where class 0 leads every other by that much
        apart = weight[0] - weight[1:]
        missing = times * EPS * apart.abs().sum(1) - apart @ (x - 0.5)
        worst = missing.argmax()
        x = x + apart[worst] * missing[worst] / apart[worst].square().sum()
    return x.reshape(1, 1, 5, 8)


ATTACKS = {
    "apgd-t": lambda threat: TargetedAPGD(threat, steps=60, targets=2),
    "fab-t": lambda threat: FABT(threat, steps=60, targets=2),
    "odi-pgd": lambda threat: ODI(threat, steps=60, spread=2, restarts=2, at_once=2),
    "square": lambda threat: Square(threat, queries=1000),
    "square, eight at once": lambda threat: Square(threat, queries=1000, at_once=8),
    "square-pgd": lambda threat: SquarePGD(threat, queries=1000),
}


def test_a_run_asks_after_its_share_of_the_steps_and_a_short_one_never():
    def asked(total, goal="break", norm="linf"):
        with searching(goal):
            return Search(torch.zeros(1, 2), torch.zeros(1), make_threat(norm, EPS)).milestones(RULE, total, 50)

    assert asked(100) == {30: 1.5, 50: 1.2}
    assert asked(55) == {17: 1.5, 28: 1.2}
    assert asked(49) == asked(100, "worst") == asked(100, norm="l2") == asked(100, norm="l1") == {}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_far_costs_less_and_what_is_near_still_breaks(attack):
    model = Counted()
    threat = make_threat("linf", EPS, bounds=None)
    x = torch.cat([at_distance(model, times) for times in (6.0, 0.7, 8.0)])
    y = torch.zeros(3, dtype=torch.long)
    made = ATTACKS[attack](threat)

    def rows(goal, x, y):
        model.rows = 0
        found_at = made.run(model, x, y, index=torch.arange(len(x)), goal=goal)[1]
        return model.rows, found_at > 0

    far = x[::2], y[::2]
    assert rows("break", *far)[0] < 0.75 * rows("worst", *far)[0]
    assert rows("break", x, y)[1].tolist() == rows("worst", x, y)[1].tolist() == [False, True, False]


@pytest.mark.parametrize("attack", ATTACKS)
def test_who_else_is_in_the_batch_changes_nothing(attack):
    model = Counted()
    made = ATTACKS[attack](make_threat("linf", EPS, bounds=None))
    x = torch.cat([at_distance(model, times) for times in (1.3, 6.0, 0.8, 2.0)])
    y, index = torch.zeros(4, dtype=torch.long), torch.arange(4)
    together, found = made.run(model, x, y, index=index, goal="break")
    for row in range(4):
        own = slice(row, row + 1)
        alone, found_alone = made.run(model, x[own], y[own], index=index[own], goal="break")
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
        assert found_alone[0] == found[row]


def test_a_loss_with_a_scale_gives_no_run_up():
    """With three classes the targeted DLR is a plain difference, and APGD on the untargeted one has one run."""
    model = Counted()
    model.linear.weight.data = 100 * model.linear.weight.data[:3]
    x, y = at_distance(model, 6.0), torch.zeros(1, dtype=torch.long)
    for attack in (TargetedAPGD(make_threat("linf", EPS), 60, targets=1), APGDDLR(make_threat("linf", EPS), 60)):
        looks = []
        for goal in ("worst", "break"):
            model.rows = 0
            attack.run(model, x, y, goal=goal)
            looks.append(model.rows)
        assert looks[0] == looks[1]


@pytest.mark.parametrize("copied", [False, True])
def test_odi_gives_a_run_up_by_the_networks_answers_alone(copied):
    """The copy's margins say that no run is hopeless. The network is asked, and says that all are."""
    model = Counted()
    x, y = at_distance(model, 6.0), torch.zeros(1, dtype=torch.long)
    attack = ODI(make_threat("linf", EPS, bounds=None), steps=60, spread=2, restarts=2, at_once=2)

    class Near(nn.Module):
        shown = 0

        def forward(self, x):
            self.shown += len(x)
            logits = model.linear(x.flatten(1))
            lead = logits[:, :1] - logits[:, 1:].amax(1, keepdim=True)
            return logits - torch.cat([lead + 1e-3, torch.zeros(len(x), 4)], 1).detach()

    near = Near()
    attack.run(model, x, y, goal="break", copy=near if copied else None)
    assert (near.shown if copied else model.rows) < 2 * 30
