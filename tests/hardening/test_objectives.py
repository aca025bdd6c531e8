"""The losses of each base against their formulas, and what its examples keep."""

import dataclasses

import pytest
import torch

from lsa_cli.attacks import make_threat
from lsa_cli.errors import UsageError
from lsa_cli.hardening.objectives import OBJECTIVES
from tests.hardening.conftest import make_method, make_task, small_network


def base(name, **options):
    return OBJECTIVES.get(name)(task=make_task(), **options)


@pytest.mark.parametrize("name", OBJECTIVES.names())
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_examples_keep_budget_range_and_network(name, mode, batch):
    model = small_network().train()
    before = {key: value.clone() for key, value in model.state_dict().items() if "num_batches" not in key}
    made = OBJECTIVES.get(name)(task=make_task(attack_mode=mode))
    x_adv = made.examples(model, batch)
    budget = made.task.threat
    if name == "n-fgsm":  # its examples are up to three times as far away
        budget = dataclasses.replace(budget, eps=3 * budget.eps)
    assert budget.contains(x_adv, batch.x).all()
    assert model.training
    assert all(torch.equal(before[key], model.state_dict()[key]) for key in before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", [name for name in OBJECTIVES.names() if name != "free"])
def test_examples_are_worse_than_the_inputs(name, batch):
    model = small_network().eval()
    x_adv = base(name).examples(model, batch)
    cross_entropy = torch.nn.functional.cross_entropy
    assert cross_entropy(model(x_adv), batch.y) > cross_entropy(model(batch.x), batch.y)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_the_warm_up_starts_from_the_clean_inputs(name, batch):
    model = small_network()
    start = dataclasses.replace(batch, strength=0.0)
    assert torch.allclose(base(name).examples(model, start), batch.x, atol=1e-6)


def test_a_step_of_n_fgsm_is_eps_long_from_noise_of_twice_the_budget(batch):
    x = torch.full_like(batch.x, 0.5)
    eps = 0.1
    task = make_task(threat=make_threat("linf", eps))
    model = small_network().eval()
    moved = OBJECTIVES.get("n-fgsm")(task=task).examples(model, dataclasses.replace(batch, x=x)) - x
    # Uniform in [-2 eps, 2 eps], then eps up or down: each distance from 0 to 3 eps occurs, a half of them beyond eps.
    assert 2.8 * eps < moved.abs().max() <= 3 * eps + 1e-6
    assert (moved.abs() > eps).double().mean() == pytest.approx(0.5, abs=0.1)


def test_trades_is_cross_entropy_plus_beta_times_the_divergence():
    clean, adversarial = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    p, q = clean.softmax(1)[0], adversarial.softmax(1)[0]
    expected = -p[0].log() + 4 * (p * (p / q).log()).sum()
    found = base("trades", beta=4.0).losses(adversarial, clean, torch.tensor([0]))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mart_is_boosted_cross_entropy_plus_the_divergence_where_the_network_is_unsure():
    clean, adversarial = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    p, q = clean.softmax(1)[0], adversarial.softmax(1)[0]
    boosted = -q[0].log() - (1 - q[1]).log()
    expected = boosted + 5 * (p * (p / q).log()).sum() * (1 - p[0])
    found = base("mart").losses(adversarial, clean, torch.tensor([0]))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_inner_problem_of_trades_raises_the_divergence(batch):
    model = small_network().eval()
    x_adv = base("trades").examples(model, batch)
    noise = batch.x + 0.1 * torch.rand_like(batch.x).sub(0.5).sign()

    def divergence(x):
        return torch.nn.functional.kl_div(
            model(x).log_softmax(1), model(batch.x).log_softmax(1), reduction="batchmean", log_target=True
        )

    assert divergence(x_adv) > divergence(noise.clamp(0, 1))


def test_free_moves_its_perturbation_by_the_gradient_of_the_update(batch):
    made, model = base("free"), small_network()
    x_adv = made.examples(model, batch)
    assert torch.equal(x_adv.detach(), batch.x)
    torch.nn.functional.cross_entropy(model(x_adv), batch.y).backward()
    made.learn(x_adv, batch)
    moved = made.examples(model, batch) - batch.x
    assert torch.allclose(moved[x_adv.grad > 0], torch.tensor(0.1), atol=1e-6)
    assert torch.allclose(moved[x_adv.grad < 0], torch.tensor(-0.1), atol=1e-6)


def test_free_updates_as_often_as_it_replays(batch):
    method, model = make_method("at", {"base": "free", "replays": "3"}, layers=()), small_network()
    count = 0
    for loss, _ in method.steps(model, batch):
        loss.backward()
        count += 1
    assert count == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": "pdg"}, "did you mean 'pgd'"),
        ({"base": "pgd", "beta": "3"}, "unknown option 'beta'"),
        ({"base": "free", "replays": "0"}, "replays must be at least 1, not 0"),
        ({"base": "trades", "beta": "-1"}, "base trades: beta must be 0 or more, not -1"),
        ({"base": "mart", "beta": "-1e-3"}, "base mart: beta must be 0 or more, not -0.001"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        make_method("at", options, layers=())


def test_holding_layers_needs_layers():
    with pytest.raises(UsageError, match="none is named"):
        make_method("at-lr", layers=())
