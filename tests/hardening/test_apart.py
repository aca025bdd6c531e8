"""APART: its steps on a linear network, where they have a closed form, its state, and its sites."""

import dataclasses

import pytest
import torch

from lsa_cli.attacks import make_threat
from lsa_cli.errors import UsageError
from lsa_cli.hardening.apart import block_sites, climbed
from lsa_cli.hardening.objectives import OBJECTIVES
from lsa_cli.hardening.sites import layers_of
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.classifier import Classifier
from tests.hardening.conftest import make_method, make_task, small_network


def apart(**changes):
    return OBJECTIVES.get("apart")(task=make_task(**changes))


def one_update(base, model, batch):
    x_adv = base.examples(model, batch)
    with base.inside(model):
        logits = model(x_adv)
    base.losses(logits, None, batch.y).mean().backward()
    base.learn(x_adv, batch)
    return x_adv


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))


def test_the_first_examples_are_those_of_fgsm(batch, linear):
    base = apart()
    x_adv = base.examples(linear, batch)
    leaf = batch.x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(linear(leaf), batch.y), leaf)
    assert torch.allclose(x_adv, (batch.x + 0.1 * gradient.sign()).clamp(0, 1), atol=1e-6)
    assert x_adv.requires_grad


def test_an_image_remembers_where_its_loss_rises(batch, linear):
    base = apart()
    x_adv = one_update(base, linear, batch)
    signs = x_adv.grad.sign()
    assert torch.equal(base._maps_of(batch), signs)  # alpha / alpha_omega = 1 at first, and maps end at 1
    other = dataclasses.replace(batch, index=batch.index + 100)
    assert not base._maps_of(other).any()
    assert torch.equal(base._maps_of(batch), signs)
    base.alpha = 0.0
    again = base.examples(linear, batch)  # no step: the start alone
    assert torch.allclose(again, (batch.x + base.alpha_omega * 0.1 * signs).clamp(0, 1), atol=1e-4)


def test_strengths_shrink_where_they_are_cut_off_and_grow_where_they_reach():
    """Start and step point the same way: beyond eps together they gain nothing, within it all."""
    gradient = torch.ones(4)
    assert climbed(1.0, gradient * 0, gradient.sum()) == pytest.approx(0.95)
    assert climbed(0.4, gradient, gradient.sum()) == pytest.approx(0.4 + 0.05 * 0.6)
    assert climbed(0.4, gradient, torch.tensor(0.0)) == pytest.approx(0.38)


def test_on_a_linear_network_the_strengths_settle_where_together_they_reach_eps(batch, linear):
    base = apart()
    batch = dataclasses.replace(batch, x=batch.x * 0.2 + 0.4)  # the input range cuts nothing
    for _ in range(200):
        linear.zero_grad()
        x_adv = one_update(base, linear, batch)
    assert base.alpha + base.alpha_omega == pytest.approx(1.0, abs=0.1)
    reached = ((x_adv - batch.x).abs() - 0.1).abs() < 0.01
    assert reached.float().mean() > 0.95  # weights near 0 change the sign of their gradient now and then


def test_pushes_within_blocks_raise_the_loss_once_they_have_learnt(batch):
    base, model = apart(), small_network().eval()
    for _ in range(10):
        model.zero_grad()
        one_update(base, model, batch)
    assert set(base.alpha_blocks) == {"2", "6"}
    assert all(strength > 0 for strength in base.alpha_blocks.values())
    x_adv = base.examples(model, batch)
    with base.inside(model):
        pushed = base.losses(model(x_adv), None, batch.y).mean()
    assert pushed > base.losses(model(x_adv), None, batch.y).mean()


def test_the_state_is_all_that_there_is(batch):
    base, model = apart(), small_network().eval()
    one_update(base, model, batch)
    other = apart()
    other.restore(base.state())
    assert torch.equal(other.examples(model, batch), base.examples(model, batch))
    assert other.state().keys() == base.state().keys()


def test_each_residual_block_is_pushed_behind_its_first_activation():
    from torchvision.models import resnet18

    names = block_sites(layers_of(Classifier(resnet18(weights=None)), torch.zeros(2, 3, 32, 32)))
    assert names == [f"layer{stage}.{block}.relu" for stage in (1, 2, 3, 4) for block in (0, 1)]
    plain = block_sites(layers_of(Classifier(build_architecture("lsa:moon-mlp", {})), torch.zeros(2, 2)))
    assert plain == ["elu1", "elu2", "elu3"]


def test_other_norms_are_refused():
    with pytest.raises(UsageError, match="defined for linf"):
        make_method("at", {"base": "apart"}, layers=(), threat=make_threat("l2", 0.5))
