"""Cascades: who sees what, who is named, and that they are never weaker than one of theirs; AutoAttack and its versions."""

import dataclasses
import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lsa_cli.attacks import ATTACKS, Attack, Threat, make_threat, uniform_like
from lsa_cli.attacks.ensemble import AutoAttack, TemperatureGrid, cascade
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.randomness import drawn_for
from lsa_cli.attacks.search import Search
from lsa_cli.attacks.threat import NORMS, Linf
from lsa_cli.errors import UsageError


@dataclass(frozen=True)
class Push(Attack):
    """Moves one input up by `by`, without a record of its looks; notes how many samples it was shown."""

    threat: Threat
    at: int
    by: float
    shown: list = dataclasses.field(default_factory=list)

    def perturb(self, model, x, y):
        self.shown.append(len(x))
        moved = x.clone()
        moved[:, self.at] += self.by
        return moved


@dataclass(frozen=True)
class SlowPush(Push):
    """The same, in the third of three looks."""

    def perturb(self, model, x, y):
        search = Search(x, y, self.threat)
        for moved in (x, x, super().perturb(model, x, y)):
            search.offer(moved, model(moved))
        return search.x_adv


def logits(x):
    return x


WIDE = Linf(0.5, None)
# The gap of each sample to class 1 and to class 2.
X = torch.tensor([[1.0, 0.8, 0.0], [1.0, 0.0, 0.8], [1.0, 0.8, 0.9], [1.0, 0.0, 0.0], [1.0, 0.0, 0.7]])
Y = torch.zeros(5, dtype=torch.long)


def test_the_first_that_breaks_a_sample_is_named_and_the_next_sees_the_rest():
    first, second = Push(WIDE, 1, 0.4), SlowPush(WIDE, 2, 0.4)
    found = cascade([first, second], logits, X, Y)
    assert found.broken_by.tolist() == [0, 1, 0, -1, 1]
    assert found.found_at.tolist() == [1, 3, 1, 0, 3]
    assert (first.shown, second.shown) == ([5], [3])
    assert torch.equal(found.margin > 0, found.broken_by >= 0)
    torch.testing.assert_close(found.margin, margin(found.x_adv, Y))
    assert found.x_adv[0].tolist() == pytest.approx([1.0, 1.2, 0.0])


def test_nobody_is_started_once_all_are_broken():
    second = Push(WIDE, 2, 0.4)
    found = cascade([Push(WIDE, 1, 0.4), second], logits, X[:1], Y[:1])
    assert found.broken_by.tolist() == [0]
    assert second.shown == []


def test_for_the_worst_case_everyone_sees_everything_and_the_strongest_counts():
    first, second = Push(WIDE, 1, 0.4), SlowPush(WIDE, 2, 0.4)
    found = cascade([first, second], logits, X, Y, goal="worst")
    assert found.broken_by.tolist() == [0, 1, 0, -1, 1]
    assert (first.shown, second.shown) == ([5], [5])
    assert found.margin.tolist() == pytest.approx([0.2, 0.2, 0.3, -0.6, 0.1])
    assert found.x_adv[2].tolist() == pytest.approx([1.0, 0.8, 1.3])


def test_what_lies_beyond_the_budget_counts_only_where_its_projection_breaks():
    far = Push(WIDE, 1, 3.0)
    found = cascade([far], logits, X, Y)
    assert found.broken_by.tolist() == [0, -1, 0, -1, -1]
    assert WIDE.contains(found.x_adv, X).all()


def test_a_radius_for_each_sample_goes_with_its_sample():
    threat = Linf(torch.tensor([0.0, 0.5, 0.5, 0.0, 0.1]), None)
    found = cascade([Push(threat, 1, 0.4), Push(threat, 2, 0.4)], logits, X, Y)
    assert found.broken_by.tolist() == [-1, 1, 0, -1, -1]
    assert threat.contains(found.x_adv, X).all()


def test_an_input_without_a_class_is_adversarial():
    def nan_at_first(x):
        return torch.where((x[:, 1:2] > 0.35) & (x[:, 1:2] < 0.5), torch.nan, x)

    found = cascade([Push(WIDE, 1, 0.4)], nan_at_first, X, Y)
    assert found.broken_by.tolist() == [0] * 5
    assert nan_at_first(found.x_adv).isnan().any(1).tolist() == [False, True, False, True, True]
    lost = cascade([Push(WIDE, 1, torch.nan)], lambda x: x, X, Y)  # what the attack lost is no adversarial example
    assert lost.broken_by.tolist() == [-1] * 5


def network(classes=4, size=6):
    """Predicts every class now and then."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * (size - 2) ** 2, classes)).eval()
    with torch.no_grad():
        model[3].bias -= model(torch.rand(64, 1, size, size)).mean(0)
    return model


def images(count, size=6):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def members(threat):
    return [
        ATTACKS.get("fgsm")(threat),
        ATTACKS.get("pgd")(threat, steps=3),
        ATTACKS.get("square")(threat, queries=30),
        ATTACKS.get("fab-t")(threat, steps=3),
        ATTACKS.get("apgd-t")(threat, steps=4),
    ]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.12)])
def test_a_cascade_breaks_what_any_member_breaks_alone(norm, eps):
    model, x, index = network(), images(80), torch.arange(300, 380)
    y = model(x).argmax(1)
    threat = make_threat(norm, eps)
    alone = []
    for attack in members(threat):
        moved = attack(model, x, y, index=index, seed=5)
        alone.append((model(moved).argmax(1) != y) & threat.contains(moved, x))
    anyone = torch.stack(alone).any(0)
    assert anyone.any()
    assert not anyone.all()
    assert any((anyone & ~one).any() for one in alone)
    for goal in ("break", "worst"):
        found = cascade(members(threat), model, x, y, index=index, seed=5, goal=goal)
        assert torch.equal(found.broken_by >= 0, anyone)
        first = torch.stack(alone).int().argmax(0)
        assert torch.equal(found.broken_by[anyone].long(), first[anyone])
        assert torch.equal(model(found.x_adv).argmax(1) != y, anyone)


def test_members_draw_for_the_samples_of_the_ensemble():
    model, x = network(), images(10)
    y = model(x).argmax(1)
    index = torch.arange(10) + 50
    grid = TemperatureGrid(make_threat("linf", 0.05), steps=3, temperatures="1 1/10")
    alone = [member(model, x, y, index=index, seed=3) for member in grid.members]
    together = grid(model, x, y, index=index, seed=3)
    strength = torch.stack([margin(model(moved), y) for moved in alone])
    expected = torch.stack(alone)[strength.argmax(0), torch.arange(10)]
    torch.testing.assert_close(together, expected)
    assert not torch.equal(together, grid(model, x, y, index=index + 1, seed=3))


def test_random_numbers_go_on_after_a_member_as_if_it_had_not_been():
    @dataclass(frozen=True)
    class Nesting(Attack):
        threat: Threat
        nested: bool

        def perturb(self, model, x, y):
            if self.nested:
                cascade([ATTACKS.get("pgd")(self.threat, steps=2)], model, x, y, index=drawn_for()[1])
            return self.threat.project(x + uniform_like(x), x)

    model, x = network(), images(4)
    y = model(x).argmax(1)
    threat = make_threat("linf", 0.05)
    assert torch.equal(Nesting(threat, True)(model, x, y), Nesting(threat, False)(model, x, y))
    with pytest.raises(RuntimeError, match="inside Attack"):
        drawn_for()


@pytest.mark.parametrize(
    ("version", "classes"),
    [("standard", 1), *((version, classes) for version in ("standard", "plus", "rand") for classes in (2, 3, 5))],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_on_few_classes(norm, version, classes):
    """There are fewer wrong classes than targets, and no third or fourth logit to measure by."""
    model, x = network(classes), images(6)
    y = model(x).argmax(1)
    attack = AutoAttack(make_threat(norm, {"linf": 0.2, "l2": 1.0}[norm]), version, steps=2, queries=10)
    moved, found_at = attack.run(model, x, y, goal="break")
    assert attack.threat.contains(moved, x).all()
    broken = model(moved).argmax(1) != y
    assert torch.equal(broken, found_at > 0)
    assert bool(broken.any()) == (classes > 1)


def test_the_published_settings():
    threat = make_threat("linf", 0.1)
    kinds = {
        version: [(type(m).__name__, m.restarts, getattr(m, "eot", None)) for m in AutoAttack(threat, version).members]
        for version in ("standard", "plus", "rand")
    }
    assert kinds["standard"] == [("APGD", 1, 1), ("TargetedAPGD", 1, 1), ("FABT", 1, None), ("Square", 1, None)]
    assert kinds["plus"] == [
        ("APGD", 5, 1), ("APGDDLR", 5, 1), ("FAB", 5, None), ("Square", 1, None), ("TargetedAPGD", 1, 1), ("FABT", 1, None),
    ]  # fmt: skip
    assert kinds["rand"] == [("APGD", 1, 20), ("APGDDLR", 1, 20)]
    apgd, apgd_t, fab_t, square = AutoAttack(threat).members
    assert apgd.steps == apgd_t.steps == fab_t.steps == 100
    assert apgd_t.targets == fab_t.targets == 9
    assert (square.queries, square.p_init) == (5000, 0.8)
    assert {member.threat for member in AutoAttack(threat).members} == {threat}
    assert AutoAttack(threat).passes == sum(member.passes for member in (apgd, apgd_t, fab_t, square))


@pytest.mark.parametrize("norm", NORMS)
def test_the_temperature_grid_runs_each_temperature_with_its_settings(norm):
    grid = TemperatureGrid(make_threat(norm, 0.3), steps=7, step_size=0.1, restarts=2)
    assert [member.temperature for member in grid.members] == [1, 0.5, 0.2, 0.1, 0.02, 2, 5]
    assert {(m.steps, m.step_size, m.restarts, m.threat) for m in grid.members} == {(7, 0.1, 2, grid.threat)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("autoattack", {"version": "fast"}),
        ("autoattack", {"steps": 0}),
        ("autoattack", {"queries": 0}),
        ("autoattack", {"targets": 0}),
        ("t-pgd-grid", {"temperatures": ""}),
        ("t-pgd-grid", {"temperatures": "1 warm"}),
        ("t-pgd-grid", {"temperatures": "1 0"}),
        ("t-pgd-grid", {"steps": 0}),
    ],
)
def test_hyperparameters_that_cannot_be_meant_are_refused(name, options):
    with pytest.raises(UsageError):
        ATTACKS.get(name)(threat=make_threat("linf", 0.1), **options)


@pytest.mark.slow
def test_no_more_is_left_whole_than_by_the_official_autoattack(data_root):
    """On a network whose gradients are masked a little, so that each of the four members has something to find."""
    from benchmarks.autoattack import load

    record = json.loads((data_root.parent / "oracle" / "fgsm.json").read_text())
    model, x, y = load("fgsm", data_root, record, 100)
    official = torch.tensor(record["robust_correct"][:100]).bool()
    rows = (model(x).argmax(1) == y).nonzero().flatten()
    threat = make_threat(record["norm"], record["eps"])
    found = cascade(AutoAttack(threat).members, model, x[rows], y[rows], index=rows)
    whole = rows[found.broken_by < 0]
    assert len(whole) <= int(official.sum())
    assert int((~official[whole]).sum()) <= 1
    assert threat.contains(found.x_adv, x[rows]).all()


@pytest.mark.parametrize("name", ["mnist_mlp", "cifar_resnet8"])
def test_the_trained_networks_of_the_benchmarks_are_those_that_the_official_autoattack_attacked(name, data_root):
    from benchmarks.autoattack import recorded

    record, model, x, y = recorded(name, data_root, data_root.parent / "oracle", 0)
    assert (model(x).argmax(1) == y).int().tolist() == record["clean_correct"]
