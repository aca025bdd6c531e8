"""What every registered attack and noise keeps to, whoever wrote it."""

import contextlib
import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lsa_cli.attacks import ATTACKS, NOISES, Attack, Threat, make_threat, normal_like
from lsa_cli.attacks.threat import NORMS, per_sample
from lsa_cli.auditing.outcome import settings_of
from lsa_cli.errors import UsageError


@dataclass(frozen=True)
class SignNoise(Attack):
    """A random corner of the budget: what a user's plugin looks like."""

    threat: Threat

    def perturb(self, model, x, y):
        return self.threat.project(x + per_sample(self.threat.eps, x) * normal_like(x).sign(), x)


def table():
    """Every registered attack, and one registered as a user would; the registry is left as it was."""
    ATTACKS.register("plugin")(SignNoise)
    try:
        # The rounds of the ranked cascade are in the table; tests/attacks/test_ranked.py tests the whole, which takes long.
        return {name: ATTACKS.get(name) for name in ATTACKS.names() if name != "ranked-cascade"}
    finally:
        del ATTACKS._entries["plugin"]


TABLE = table()
EPS = {"linf": 0.1, "l2": 0.8, "l1": 4.0}
# What an attack keeps to does not depend on how long it runs: cheap settings for those that run long.
SHORT = {
    "fab": {"steps": 6, "restarts": 2},
    "fab-t": {"steps": 6, "targets": 2},
    "cw": {"steps": 20, "searches": 4, "lr": 0.1, "initial_weight": 0.1},
    "fmn": {"steps": 15},
    "apgd-ce": {"steps": 8},
    "apgd-dlr": {"steps": 8},
    "apgd-t": {"steps": 6, "targets": 2},
    "odi-pgd": {"steps": 4, "spread": 3, "restarts": 3, "at_once": 2},
    "square": {"queries": 40},
    "square-pgd": {"queries": 40, "steps": 4},
    "autoattack": {"steps": 4, "targets": 2, "queries": 20},
    "t-pgd-grid": {"steps": 3, "temperatures": "1 1/50 5"},
}
WITHOUT_CHANCE = {"FGSM", "FAB", "FABT", "DeepFool", "CW", "FMN"}  # FAB starts at random from its second restart on
PAIRS = [(name, norm) for name in TABLE for norm in TABLE[name].norms]


def make(name, norm, eps=None, bounds=(0.0, 1.0)):
    return TABLE[name](threat=make_threat(norm, EPS[norm] if eps is None else eps, bounds), **SHORT.get(name, {}))


def attacks(kinds=("budget", "minimal")):
    return [pytest.param(make(name, norm), id=f"{name}-{norm}") for name, norm in PAIRS if TABLE[name].kind in kinds]


def noises():
    return [pytest.param(NOISES.get(name)(bounds=(0.0, 1.0)), id=name) for name in NOISES.names()]


def network(channels=1, size=(8, 8), classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(6 * size[0] * size[1], classes),
    ).eval()


def images(count=6, channels=1, size=(8, 8)):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, *size, generator=generator), torch.arange(count) % 4


@pytest.mark.parametrize("attack", attacks(["budget"]))
def test_budget_and_range_are_kept(attack):
    x, y = images()
    x_adv = attack(network(), x, y)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert attack.threat.contains(x_adv, x).all()
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize("noise", noises())
def test_noise_keeps_the_range_and_changes_something(noise):
    x, y = images(count=6, size=(32, 32))
    moved = noise(network(size=(32, 32)), x, y)
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert not torch.equal(moved, x)


def test_the_plugin_is_in_the_table_and_no_longer_registered():
    assert "plugin" in TABLE
    assert "plugin" not in ATTACKS


@pytest.mark.parametrize("attack", attacks(["minimal"]))
def test_the_smallest_change_found_breaks_and_keeps_the_range(attack):
    x, y = images()
    model = network()
    x_adv = attack(model, x, y)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    found = model(x_adv).argmax(1) != y
    assert found.any()
    assert torch.equal(x_adv[~found], x[~found])  # nothing found: the input stands
    wrong = model(x).argmax(1) != y
    assert torch.equal(x_adv[wrong], x[wrong])  # wrong as it is: no change is the smallest


@pytest.mark.parametrize("attack", attacks())
def test_dropping_what_broke_changes_no_verdict(attack):
    """Goal "break" saves steps; which samples break, and within which budget, stays the same."""
    x, y = images(count=12)
    model = network()
    worst, found_worst = attack.run(model, x, y)
    first, found_first = attack.run(model, x, y, goal="break")

    def broken(x_adv):
        return (model(x_adv).argmax(1) != y) & attack.threat.contains(x_adv, x)

    assert torch.equal(broken(worst), broken(first))
    if found_worst.any():  # it keeps a record of its looks
        assert torch.equal(found_first > 0, broken(first))
        assert torch.equal(found_first, found_worst)


class Counted(nn.Module):
    """A curved network that counts the samples it is asked about."""

    def __init__(self):
        super().__init__()
        self.body, self.queries = network(size=(16, 16)), 0

    def forward(self, x):
        self.queries += len(x)
        return self.body((6 * x).sin()) * torch.tensor([1.0, 5.0, 0.3, 2.0])  # the likeliest rival is not the nearest


def outcome(attack, x, y):
    """What it finds, and how many samples it looks at for that."""
    counted = Counted()
    return attack(counted, x, y), counted.queries


# Another value of a setting, where twice the value is none that is allowed.
OTHER = {
    "steps": 1, "step_size": 0.03, "classes": 2, "targets": 1, "loss": "margin", "temperatures": "1 3", "version": "rand",
    "p_init": 0.1, "eta": 1.3, "beta": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(("name", "norm"), [pair for pair in PAIRS if pair != ("autoattack", "l1")])
def test_printed_settings_are_those_used_and_no_others(name, norm):
    """An attack that is given what another says of itself does the same; with any of it changed it does something else."""
    x, _ = images(size=(16, 16))
    y = Counted()(x).argmax(1)
    attack = make(name, norm)
    said = settings_of(attack)
    assert said.pop("norm") == norm
    assert said.pop("eps") == EPS[norm]
    assert None not in said.values()
    moved, looks = outcome(attack, x, y)
    again, as_many = outcome(TABLE[name](threat=attack.threat, **said), x, y)
    assert torch.equal(again, moved)
    assert as_many == looks
    for setting, value in said.items():
        if setting == "at_once" and name not in ("odi-pgd", "square", "square-pgd"):
            continue  # the same runs in fewer passes
        changed = not value if isinstance(value, bool) else OTHER.get(setting, 2 * value if value else 0.5)
        changed = "ce" if changed == value == "margin" else changed
        other, as_many = outcome(dataclasses.replace(attack, **{**said, setting: changed}), x, y)
        assert as_many != looks or not torch.equal(other, moved), setting


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_eps_zero_returns_the_input(name, norm):
    x, y = images()
    assert torch.equal(make(name, norm, eps=0.0)(network(), x, y), x)


@pytest.mark.parametrize("name", TABLE)
def test_a_norm_that_an_attack_is_not_defined_for_is_refused(name):
    for norm in set(EPS) - set(TABLE[name].norms):
        with pytest.raises(UsageError, match=norm):
            make(name, norm)


@pytest.mark.parametrize("attack", [*attacks(), *noises()])
def test_seed_decides_and_the_global_generator_is_left_alone(attack):
    x, y = images()
    model = network()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = attack(model, x, y, seed=3), attack(model, x, y, seed=3), attack(model, x, y, seed=4)
    assert torch.equal(first, again)
    if type(attack).__name__ not in WITHOUT_CHANCE:
        assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("attack", [*attacks(), *noises()])
def test_a_sample_gets_the_same_result_in_any_batch(attack):
    """In double, where what kernels round differently for another batch size turns no step of a search around."""
    x, y = images()
    x, model = x.double(), network().double()
    index = torch.tensor([10, 3, 77, 4, 1000, 0])
    whole = attack(model, x, y, index=index)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = attack(model, x[order], y[order], index=index[order])
    pieces = torch.cat([attack(model, x[i : i + 1], y[i : i + 1], index=index[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(shuffled, whole[order], atol=1e-7, rtol=0)
    torch.testing.assert_close(pieces, whole, atol=1e-7, rtol=0)


class _Breaks(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        self.body(x)
        raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("attack", [*attacks(), *noises()])
def test_the_model_is_as_it_was(attack, broken):
    model = network()
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    x, y = images()
    used = _Breaks(model) if broken else model
    with contextlib.suppress(RuntimeError):
        attack(used, x, y)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not x.requires_grad


@pytest.mark.parametrize("attack", [*attacks(), *noises()])
@pytest.mark.parametrize(("channels", "size"), [(3, (5, 9)), (1, (1, 1)), (3, (2, 3))])
def test_any_image_shape_and_batch_size(attack, channels, size):
    model = network(channels, size)
    for count in (0, 1, 3):
        x, y = images(count, channels, size)
        assert attack(model, x, y).shape == x.shape


@pytest.mark.parametrize("attack", attacks())
def test_vectors_without_a_range(attack):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 2))
    free = dataclasses.replace(attack, threat=make_threat(attack.threat.norm, 0.5, bounds=None))
    x = 3 * torch.randn(5, 2)
    x_adv = free(model, x, torch.tensor([0, 1, 0, 1, 0]))
    assert x_adv.isfinite().all()
    if attack.kind == "budget":
        assert free.threat.contains(x_adv, x).all()


@pytest.mark.parametrize(("name", "norm"), [pair for pair in PAIRS if TABLE[pair[0]].kind == "budget"])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_a_radius_for_each_sample(name, norm, bounds):
    x, y = images()
    eps = EPS[norm] * torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
    threat = NORMS[norm](eps, bounds)
    x_adv = dataclasses.replace(make(name, norm), threat=threat)(network(), x, y)
    assert threat.contains(x_adv, x).all()
    assert torch.equal(x_adv[0], x[0])
    if (name, norm, bounds) != ("fgsm", "l1", (0.0, 1.0)):  # one sparse step ends at the range of three pixels
        assert float(threat.distance(x_adv, x)[5]) > float(eps[2])  # the larger radius is made use of


@pytest.mark.parametrize("attack", attacks(["budget"]))
def test_a_range_other_than_zero_to_one_is_kept(attack):
    x, y = images()
    threat = make_threat(attack.threat.norm, attack.threat.eps, bounds=(-1.0, 1.0))
    x_adv = dataclasses.replace(attack, threat=threat)(network(), 2 * x - 1, y)
    assert threat.contains(x_adv, 2 * x - 1).all()
    assert float(x_adv.min()) < -0.5
    assert float(x_adv.abs().max()) <= 1
