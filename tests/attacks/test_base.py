"""What `Attack.__call__` does around every `perturb`."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lsa_cli.attacks import ATTACKS, NOISES, Attack, make_threat, normal_like, uniform_like
from lsa_cli.attacks.base import input_gradient, undisturbed
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.errors import NumericalError, UsageError

EPS = {"linf": 0.1, "l2": 0.8, "l1": 4.0}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4)).eval()


@pytest.fixture
def batch():
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 4


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "t-pgd"])
def test_subset_order_and_batch_size_change_nothing_on_a_linear_stack(model, batch, name, norm):
    """1e-6: matrix products round the last bit by batch size (1.2e-7 seen); there is no kernel choice to cover."""
    x, y = batch
    index = torch.arange(100, 112)
    attack = ATTACKS.get(name)(threat=make_threat(norm, EPS[norm]))
    whole = attack(model, x, y, index=index, seed=9)
    for rows in (torch.tensor([7]), torch.tensor([11, 2, 5]), torch.arange(11, -1, -1)):
        part = attack(model, x[rows], y[rows], index=index[rows], seed=9)
        torch.testing.assert_close(part, whole[rows], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NOISES.names())
def test_noise_is_the_same_to_the_bit_in_any_batch(model, batch, name):
    x, y = batch
    noise = NOISES.get(name)(bounds=(0.0, 1.0))
    index = torch.arange(40, 52)
    whole = noise(model, x, y, index=index)
    rows = torch.tensor([3, 11, 0])
    assert torch.equal(noise(model, x[rows], y[rows], index=index[rows]), whole[rows])


@pytest.mark.parametrize("name", ["fgsm", "pgd", "t-pgd"])
def test_a_networks_own_hooks_stay_and_still_fire(model, batch, name):
    x, y = batch
    fired = []
    handle = model[1].register_forward_hook(lambda *_: fired.append(1))
    before = dict(model[1]._forward_hooks)
    ATTACKS.get(name)(threat=make_threat("linf", 0.1))(model, x, y)
    assert fired
    assert dict(model[1]._forward_hooks) == before
    handle.remove()


def test_gradients_that_were_there_are_left_as_they_were(model, batch):
    x, y = batch
    nn.functional.cross_entropy(model(x), y).backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    ATTACKS.get("pgd")(threat=make_threat("linf", 0.1))(model, x, y)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))


def test_attacks_run_where_gradients_are_switched_off_and_return_plain_tensors(model, batch):
    x, y = batch
    attack = ATTACKS.get("pgd")(threat=make_threat("linf", 0.1))
    with torch.no_grad():
        inside = attack(model, x.clone().requires_grad_(True), y)
        assert not torch.is_grad_enabled()
    assert not inside.requires_grad
    assert torch.equal(inside, attack(model, x, y))


def test_the_input_is_neither_changed_nor_returned_itself(model, batch):
    x, y = batch
    kept = x.clone()
    for eps in (0.0, 0.1):
        moved = ATTACKS.get("pgd")(threat=make_threat("linf", eps))(model, x, y)
        moved.add_(1)
        assert torch.equal(x, kept)


def test_any_callable_can_be_attacked(model, batch):
    x, y = batch
    attack = ATTACKS.get("pgd")(threat=make_threat("linf", 0.1))
    assert torch.equal(attack(lambda inputs: model(inputs), x, y), attack(model, x, y))


def test_a_network_without_an_input_gradient_is_refused(batch):
    x, y = batch
    with pytest.raises(NumericalError, match="no input gradient"):
        input_gradient(lambda inputs: inputs.detach().flatten(1)[:, :4], x, y, cross_entropy)
    scale = torch.ones(4, requires_grad=True)  # a gradient, of something else
    with pytest.raises(NumericalError, match="no input gradient"):
        input_gradient(lambda inputs: inputs.detach().flatten(1)[:, :4] * scale, x, y, cross_entropy)


def test_the_mode_of_every_module_comes_back_after_an_error(model):
    model.train()
    model[3].eval()
    within = []

    def fail():
        within.extend(module.training for module in model.modules())
        within.extend(parameter.requires_grad for parameter in model.parameters())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), undisturbed(model):
        fail()
    assert not any(within)
    assert [m.training for m in model] == [True, True, True, False, True]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_nan_gradient_never_leaves_a_pgd_start_worse_than_the_clean_input(batch):
    """Half of the inputs hit a square root of zero, whose gradient is infinite and its chain NaN."""
    x, y = batch
    x = torch.where(torch.arange(12)[:, None, None, None] % 2 == 0, 0.0, x)

    def network(inputs):
        return torch.sqrt(inputs.flatten(1)[:, :4] * 0) * 0 + inputs.flatten(1)[:, :4]

    moved = ATTACKS.get("pgd")(threat=make_threat("linf", 0.1))(network, x, y)
    assert torch.isfinite(moved).all()
    assert make_threat("linf", 0.1).contains(moved, x).all()


def test_the_strongest_iterate_is_returned_not_the_last(model, batch):
    """With steps as long as the whole budget the last iterate overshoots; the result must not."""
    x, y = batch
    best = ATTACKS.get("pgd")(threat=make_threat("linf", 0.1), steps=8, step_size=0.2, random_start=False)
    with torch.no_grad():
        logits = model(best(model, x, y))
        strength = (logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]).tolist()
        for steps in range(1, 9):
            cut = ATTACKS.get("pgd")(threat=make_threat("linf", 0.1), steps=steps, step_size=0.2, random_start=False)
            other = model(cut(model, x, y))
            weaker = other.scatter(1, y[:, None], -torch.inf).amax(1) - other.gather(1, y[:, None])[:, 0]
            assert all(s >= w - 1e-6 for s, w in zip(strength, weaker.tolist(), strict=True))


def test_a_restart_is_a_further_chance_for_each_sample(model, batch):
    x, y = batch

    def margins(restarts):
        attack = ATTACKS.get("pgd")(threat=make_threat("linf", 0.05), steps=2, restarts=restarts)
        logits = model(attack(model, x, y)).detach()
        return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]

    assert (margins(4) >= margins(1) - 1e-6).all()
    assert (margins(4) > margins(1) + 1e-6).any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pgd", {"steps": 0}),
        ("pgd", {"restarts": 0}),
        ("pgd", {"step_size": 0.0}),
        ("pgd", {"loss": "no-such"}),
        ("t-pgd", {"temperature": 0.0}),
        ("t-pgd", {"loss": "margin"}),
    ],
)
def test_hyperparameters_that_cannot_be_meant_are_refused(name, options):
    with pytest.raises(UsageError):
        ATTACKS.get(name)(threat=make_threat("linf", 0.1), **options)


@pytest.mark.parametrize("name", ["salt", "pepper"])
def test_salt_and_pepper_need_a_range(name):
    with pytest.raises(UsageError, match="these inputs have none"):
        NOISES.get(name)(bounds=None)


def test_salt_and_pepper_set_their_share_of_inputs_to_the_ends():
    x = torch.full((4, 1, 100, 100), 0.5)
    for name, end in (("salt", 1.0), ("pepper", 0.0)):
        moved = NOISES.get(name)(bounds=(0.0, 1.0), density=0.05)(lambda z: z, x, torch.zeros(4, dtype=torch.long))
        changed = moved != x
        assert (moved[changed] == end).all()
        assert abs(float(changed.double().mean()) - 0.05) < 5 * (0.05 * 0.95 / 40_000) ** 0.5


def test_gaussian_and_speckle_have_their_standard_deviation():
    x = torch.full((4, 1, 100, 100), 2.0)
    y = torch.zeros(4, dtype=torch.long)
    gaussian = NOISES.get("gaussian")(bounds=None, std=0.3)(lambda z: z, x, y) - x
    speckle = NOISES.get("speckle")(bounds=None, std=0.3)(lambda z: z, x, y) - x
    assert float(gaussian.std()) == pytest.approx(0.3, rel=0.03)
    assert float(speckle.std()) == pytest.approx(0.6, rel=0.03)  # in proportion to the input


@dataclass(frozen=True)
class GlobalDraws(Attack):
    def perturb(self, model, x, y):
        return x + torch.rand_like(x)


def test_the_global_generator_is_seeded_for_each_call_and_put_back(batch):
    x, y = batch
    state = torch.get_rng_state()
    first, again = GlobalDraws()(None, x, y, seed=2), GlobalDraws()(None, x, y, seed=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, GlobalDraws()(None, x, y, seed=3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("draw", [uniform_like, normal_like])
def test_numbers_of_a_sample_cannot_be_drawn_outside_an_attack(draw):
    with pytest.raises(RuntimeError, match=r"inside Attack\.perturb only"):
        draw(torch.zeros(2, 3))
