"""Auto-PGD, momentum and the mean over passes of a stochastic network, against what their papers write down."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.attacks import apgd as module
from lsa_cli.attacks.base import expected_gradient, expected_logits, input_gradient
from lsa_cli.attacks.losses import cross_entropy, dlr, margin
from lsa_cli.auditing.network import open_network
from lsa_cli.errors import UsageError
from lsa_cli.settings import settings_from

NAMES = ["apgd-ce", "apgd-dlr", "apgd-t"]
EPS = {"linf": 0.1, "l2": 1.0, "l1": 8.0}


@pytest.fixture(scope="module")
def task(samples):
    network = open_network(samples / "mnist_cnn.pt", settings_from({}), {})
    rows = np.arange(60)
    return network.classifier.eval(), network.data.read(rows), torch.from_numpy(network.labels[rows])


def small(classes=4):
    """A network that bends, with its decision boundaries about the middle of the box."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, classes, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(5)
        model[0].bias.copy_(-0.5 * model[0].weight.sum(1))
    return model


def points(count=10, classes=4):
    return torch.rand(count, 12, generator=torch.Generator().manual_seed(1)), torch.arange(count) % classes


def margins(model, x, y):
    with torch.no_grad():
        return margin(model(x), y)


# ---- the schedule ----------------------------------------------------------------------------------------


def test_checkpoints_of_100_steps_are_the_papers():
    """p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99."""
    assert module.checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 1000])
def test_checkpoints_round_up_and_rise(steps):
    p = [0.0, 0.22]
    while p[-1] + max(p[-1] - p[-2] - 0.03, 0.06) <= 1 + 1e-9:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    wanted = sorted({int(np.ceil(round(each * steps, 6))) for each in p})
    assert module.checkpoints(steps) == wanted


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 100])
def test_l1_spends_its_steps_on_shrinking_balls(steps):
    stages = module.stages("l1", steps)
    assert [factor for factor, _ in stages] == [3, 2, 1]
    assert sum(count for _, count in stages) == steps
    assert stages[-1][1] >= 1
    assert module.stages("linf", steps) == module.stages("l2", steps) == [(1, steps)]
    assert module.stages("l1", 100) == [(3, 30), (2, 30), (1, 40)]


UNTARGETED = torch.zeros(1, dtype=torch.long)


def run_with(values, halved=False, highest=-torch.inf):
    """A linf run of one sample that saw these losses, at points that carry their number; then the state."""
    run = module._Dense(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([0.1]), UNTARGETED)
    for k, value in enumerate(values):
        run.x_adv = torch.full((1, 3), float(k))
        run.observe(torch.full((1, 3), float(k)), torch.tensor([value]))
    run.halved, run.highest = torch.tensor([halved]), torch.tensor([highest])
    return run


@pytest.mark.parametrize(
    ("values", "halved", "highest", "halves"),
    [
        ([0.0, 1.0, 2.0, 3.0, 4.0], False, 0.0, False),  # every step rose
        ([0.0, 1.0, 2.0, 3.0, 2.5], False, 0.0, False),  # 3 of 4 is not less than rho
        ([0.0, 1.0, 2.0, 1.5, 1.2], False, 0.0, True),  # condition 1: 2 of 4
        ([0.0, -3.0, -2.0, -1.0, -0.5], False, 0.0, True),  # condition 2: 3 of 4 rose, and none above f_max
        ([0.0, -3.0, -2.0, -1.0, -0.5], True, 0.0, False),  # condition 2 waits where eta was just halved
    ],
)
def test_eta_is_halved_and_the_run_restarts_where_a_condition_holds(values, halved, highest, halves):
    run = run_with(values, halved, highest)
    run.check(torch.zeros(1, 3), since=4)
    assert run.length.item() == pytest.approx(0.1 if halves else 0.2)
    at = int(np.argmax(values)) if halves else 4
    assert run.x_adv.tolist() == [[at] * 3]
    assert run.gradient.tolist() == [[at] * 3]
    assert bool(run.halved) == halves
    assert run.rises.item() == 0


@pytest.mark.parametrize(("norm", "periods"), [("linf", [22, 19, 16, 13, 10, 7, 6, 6]), ("l1", [1] * (29 + 29 + 39))])
def test_a_run_is_checked_at_its_checkpoints(monkeypatch, norm, periods):
    """l1: every 4% of the steps in a ball, which is each of 30 or 40."""
    seen = []
    kind = module._Sparse if norm == "l1" else module._Dense
    check = kind.check
    monkeypatch.setattr(kind, "check", lambda run, x, since: (seen.append(since), check(run, x, since)))
    x, y = points()
    ATTACKS.get("apgd-ce")(threat=make_threat(norm, EPS[norm]))(small(), x, y)
    assert seen == periods


def test_steps_are_those_of_equations_1_and_2_by_hand():
    threat = make_threat("linf", 0.5, bounds=None)
    x = torch.tensor([[0.0, 0.0]])
    run = module._Dense(x, x, torch.tensor([0.1]), UNTARGETED)  # eta = 0.2
    run.observe(torch.tensor([[3.0, -1.0]]), torch.tensor([0.0]))
    run.move(x, threat, 0)
    torch.testing.assert_close(run.x_adv, torch.tensor([[0.2, -0.2]]))
    run.observe(torch.tensor([[1.0, 1.0]]), torch.tensor([1.0]))
    run.move(x, threat, 1)  # z = (0.4, 0.0); x + 0.75 (z - x) + 0.25 (x - before)
    torch.testing.assert_close(run.x_adv, torch.tensor([[0.2 + 0.15 + 0.05, -0.2 + 0.15 - 0.05]]))


def test_l1_steps_move_fewer_inputs_and_shrink_as_in_the_paper():
    x = torch.zeros(1, 6)
    run = module._Sparse(torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]), x, torch.tensor([4.0]), UNTARGETED)
    run.observe(torch.tensor([[0.1, -5.0, 0.0, 4.0, -0.2, 0.3]]), torch.tensor([0.0]))
    run.move(x, make_threat("l1", 100.0, bounds=None), 0)  # 3 / 1.5 = 2 inputs, half of eta = 4 each
    assert run.x_adv.tolist() == [[1.0, -1.0, 1.0, 2.0, 0.0, 0.0]]
    run.check(x, since=1)  # the best point moves 3 inputs as before: a shorter step
    assert run.length.item() == pytest.approx(4 / 1.5)
    run.x_adv = torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    run.observe(torch.ones(1, 6), torch.tensor([1.0]))
    run.x_adv = torch.full((1, 6), 9.0)
    run.check(x, since=1)  # sparser: the first step size again, from the best point
    assert run.length.item() == 4.0
    assert run.x_adv.tolist() == [[0.0, 2.0, 0.0, 0.0, 0.0, 0.0]]
    for _ in range(9):
        run.check(x, since=1)
    assert run.length.item() == pytest.approx(0.4)


@pytest.mark.parametrize(("moves", "next_moves"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 3), (9, 6), (10, 7)])
def test_an_l1_step_moves_fewer_inputs_than_the_best_point(moves, next_moves):
    x, start = torch.zeros(1, 20), torch.zeros(1, 20)
    start[0, :moves] = 1.0
    run = module._Sparse(start, x, torch.tensor([4.0]), UNTARGETED)
    run.observe(torch.arange(1.0, 21.0)[None], torch.tensor([0.0]))
    run.move(x, make_threat("l1", 100.0, bounds=None), 0)
    assert int((run.x_adv != start).sum()) == next_moves


# ---- the attacks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr"])
def test_more_steps_share_the_first_look_and_end_no_weaker_than_it(task, name, norm):
    model, x, y = task
    seen = []

    def watched(inputs):
        seen.append(inputs.detach().clone())
        return model(inputs)

    x_adv = ATTACKS.get(name)(threat=make_threat(norm, EPS[norm]), steps=10)(watched, x, y)
    assert len(seen) == 11
    every = torch.stack([margins(model, each, y) for each in seen])
    torch.testing.assert_close(margins(model, x_adv, y), every.amax(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", EPS)
def test_looks_cost_what_passes_says(norm):
    model = small()
    x, y = points()
    for name, looks in (("apgd-ce", 2 * 11), ("apgd-dlr", 2 * 11), ("apgd-t", 1 + 3 * 2 * 11)):
        count = []
        attack = ATTACKS.get(name)(threat=make_threat(norm, EPS[norm]), steps=10, restarts=2)
        attack(lambda inputs, count=count: (count.append(1), model(inputs))[1], x, y)
        assert len(count) == looks
    assert attack.passes == pytest.approx(9 * 2 * 10.4 + 0.4)


def test_l1_looks_in_larger_balls_are_never_offered(task):
    model, x, y = task
    threat = make_threat("l1", EPS["l1"])
    far = []

    def watched(inputs):
        far.append(bool((~threat.contains(inputs.detach(), x)).any()))
        return model(inputs)

    x_adv, found = ATTACKS.get("apgd-ce")(threat=threat, steps=10).run(watched, x, y)
    assert far == [True] * 6 + [False] * 5
    assert threat.contains(x_adv, x).all()
    assert int(found.max()) <= 5


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.15), ("l2", 2.0), ("l1", 8.0)])
def test_apgd_is_not_weaker_than_pgd_at_equal_steps(task, norm, eps):
    """The losses differ in what they are good at: cross-entropy, which PGD climbs too, is held to PGD itself."""
    model, x, y = (part[:30] if isinstance(part, torch.Tensor) else part for part in task)
    whole = {}
    for name, options in (("pgd", {}), ("apgd-ce", {}), ("apgd-dlr", {}), ("apgd-t", {"targets": 2})):
        attack = ATTACKS.get(name)(threat=make_threat(norm, eps), steps=20, **options)
        whole[name] = int((margins(model, attack(model, x, y, goal="break"), y) <= 0).sum())
    assert 5 < whole["pgd"] < 25
    assert whole["apgd-ce"] <= whole["pgd"]
    assert max(whole["apgd-dlr"], whole["apgd-t"]) <= whole["pgd"] + 2


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_classes(name, classes):
    model = small(classes)
    x, _ = points()
    y = model(x).argmax(1)
    x_adv = ATTACKS.get(name)(threat=make_threat("linf", 0.3), steps=20)(model, x, y)
    assert (margins(model, x_adv, y) > 0).sum() > 7


def test_every_wrong_class_of_few_is_a_target_and_the_likeliest_of_many():
    x, y = points()
    for classes, targets, runs in ((2, 9, 1), (5, 9, 4), (5, 2, 2)):
        model, count = small(classes), []
        attack = ATTACKS.get("apgd-t")(threat=make_threat("linf", 0.1), steps=1, targets=targets)
        attack(lambda inputs, model=model, count=count: (count.append(1), model(inputs))[1], x, y % classes)
        assert len(count) == 1 + 2 * runs


def test_targets_reach_a_class_that_the_nearest_one_hides():
    """A gully towards the runner-up that ends short of it; the third class is a slope that leads there."""

    def network(inputs):
        a, b = inputs[:, 0], inputs[:, 1]
        return torch.stack([torch.ones_like(a), 0.9 - 0.5 * (a - 0.1).abs(), 2 * b, 0 * a], 1)

    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    threat = make_threat("linf", 0.6, bounds=None)
    moved = ATTACKS.get("apgd-t")(threat=threat, steps=20)(network, x, y)
    assert network(moved).argmax(1).item() == 2


@pytest.mark.parametrize("name", NAMES)
def test_nan_logits_and_gradients_leave_finite_points(name):
    def network(inputs):
        root = torch.sqrt(inputs.flatten(1)[:, :4].clamp_min(0) * (inputs[:, :1] > 0.5))
        return torch.where(inputs[:, :1] > 0.9, torch.nan, root)

    x, y = points()
    threat = make_threat("linf", 0.2)
    moved = ATTACKS.get(name)(threat=threat, steps=10)(network, x, y)
    assert torch.isfinite(moved).all()
    assert threat.contains(moved, x).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {option: 0}) for name in NAMES for option in ("steps", "restarts", "eot")],
        ("apgd-t", {"targets": 0}),
        ("pgd", {"momentum": -0.1}),
        ("pgd", {"eot": 0}),
    ],
)
def test_options_that_cannot_be_meant_are_refused(name, options):
    with pytest.raises(UsageError):
        ATTACKS.get(name)(threat=make_threat("linf", 0.1), **options)


# ---- momentum --------------------------------------------------------------------------------------------


def test_momentum_pgd_is_two_steps_by_hand():
    model = small().double()
    x, y = points()
    x = x.double()
    threat = make_threat("linf", 0.1, bounds=None)
    for decay in (0.5, 1.0, 3.0):
        at, total = x, torch.zeros_like(x)
        for _ in range(2):
            gradient, _ = input_gradient(model, at, y, cross_entropy)
            total = decay * total + gradient / gradient.abs().sum(1, keepdim=True)
            at = (at + 0.05 * total.sign()).clamp(x - 0.1, x + 0.1)
        last = []
        attack = ATTACKS.get("pgd")(threat=threat, steps=2, step_size=0.05, random_start=False, momentum=decay)
        attack(lambda inputs, last=last: (last.append(inputs.detach()), model(inputs))[1], x, y)
        torch.testing.assert_close(last[-1], at)
    signs = [input_gradient(model, point, y, cross_entropy)[0].sign() for point in last[:2]]
    assert (signs[0] != signs[1]).any()  # so that the decay of 3 decided something


def test_momentum_zero_is_plain_pgd_and_t_pgd_has_it_too(task):
    model, x, y = task
    threat = make_threat("l2", 1.0)
    plain = ATTACKS.get("pgd")(threat=threat)(model, x[:8], y[:8])
    assert torch.equal(plain, ATTACKS.get("pgd")(threat=threat, momentum=0.0)(model, x[:8], y[:8]))
    for name in ("pgd", "t-pgd"):
        moved = ATTACKS.get(name)(threat=threat, momentum=0.9)(model, x[:8], y[:8])
        assert not torch.equal(moved, plain)
        assert threat.contains(moved, x[:8]).all()


def test_momentum_survives_vanishing_and_nan_gradients():
    x, y = torch.tensor([[0.5, 0.5], [0.0, 0.5]]), torch.tensor([0, 0])

    def network(inputs):
        return torch.stack([0 * inputs[:, 0], 1e-30 * inputs[:, 1] + 0 * inputs[:, 0].sqrt()], 1)

    moved = ATTACKS.get("pgd")(threat=make_threat("linf", 0.1), momentum=1.0)(network, x, y)
    assert torch.isfinite(moved).all()


# ---- stochastic networks----------------------------------------------------------------------------------


class Jittered(nn.Module):
    """A network that adds noise from torch's global generator to its input."""

    def __init__(self, body, strength):
        super().__init__()
        self.body, self.strength = body, strength

    def forward(self, x):
        return self.body(x + self.strength * torch.randn_like(x))


@pytest.mark.parametrize("loss", [cross_entropy, dlr])
def test_the_expected_gradient_is_the_mean_of_single_ones(loss):
    model = Jittered(small(), 0.5)
    x, y = points()
    torch.manual_seed(3)
    single = [expected_gradient(model, x, y, loss) for _ in range(7)]
    torch.manual_seed(3)
    together = expected_gradient(model, x, y, loss, draws=7)
    for got, parts in zip(together, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(parts).mean(0))
    assert not torch.equal(single[0][0], single[1][0])
    torch.manual_seed(3)
    torch.testing.assert_close(expected_logits(model, x, 7), together[1])


@pytest.mark.parametrize("name", ["pgd", "t-pgd", *NAMES])
def test_eot_draws_so_many_passes_and_repeats_with_the_seed(name):
    count = []
    model = Jittered(small(), 0.3)
    model.register_forward_hook(lambda *_: count.append(1))
    x, y = points()
    attack = ATTACKS.get(name)(threat=make_threat("linf", 0.2), steps=3, eot=5)
    state = torch.get_rng_state()
    first, again, other = attack(model, x, y, seed=1), attack(model, x, y, seed=1), attack(model, x, y, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(count) == 3 * 5 * ((1 + 3 * 4) if name == "apgd-t" else 4)


def test_eot_climbs_where_single_passes_mislead():
    """The mean network leans towards class 1; in a single pass that hardly shows under the noise."""
    generator = torch.Generator().manual_seed(4)
    x = torch.full((64, 12), 0.5)
    y = torch.zeros(64, dtype=torch.long)

    class Noisy(nn.Module):
        def forward(self, inputs):
            slope = 0.2 + torch.randn(12, generator=generator)
            return torch.stack([torch.zeros(len(inputs)), (inputs - 0.5) @ slope], 1)

    def lean(eot):
        attack = ATTACKS.get("apgd-ce")(threat=make_threat("linf", 0.1), steps=10, eot=eot)
        return float((attack(Noisy(), x, y) - x).mean())

    assert lean(50) > lean(1) + 0.02


# ---- the official implementation, recorded ------------------------------------------------------------------


@pytest.mark.slow
def test_apgd_ce_leaves_no_more_whole_than_the_official_one(data_root):
    from torchvision.datasets import MNIST

    from tests.foreign_networks import small_cnn

    record = json.loads((data_root.parent / "oracle" / "fgsm.json").read_text())
    model = small_cnn()
    model.load_state_dict(torch.load(data_root / record["checkpoint"], weights_only=True, map_location="cpu"))
    test_set = MNIST(data_root, train=False)
    x, y = test_set.data[: record["n"], None].float() / 255, test_set.targets[: record["n"]]
    clean = (margins(model, x, y) <= 0).nonzero().flatten()
    assert len(clean) == sum(record["clean_correct"])
    attack = ATTACKS.get("apgd-ce")(threat=make_threat(record["norm"], record["eps"]))
    moved = attack(model, x[clean], y[clean], index=clean, goal="break")
    whole = 100 * int((margins(model, moved, y[clean]) <= 0).sum()) / record["n"]
    (official,) = re.findall(r"after APGD-CE: ([0-9.]+)%", " ".join(record["log"]))
    assert whole <= float(official)
