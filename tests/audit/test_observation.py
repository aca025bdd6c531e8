"""One look at clean and perturbed inputs."""

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli.attacks import make_threat
from lsa_cli.attacks.losses import margin
from lsa_cli.auditing.block import audit_block
from lsa_cli.auditing.execution import Execution
from lsa_cli.auditing.layer_scan import LayerScan, MvlRule
from lsa_cli.auditing.observation import Observation, observe
from lsa_cli.auditing.plan import make_plan
from lsa_cli.measures import MEASURES
from lsa_cli.models.classifier import Classifier
from lsa_cli.settings import settings_from

THREAT = make_threat("linf", 0.1)


class Elementwise(nn.Module):
    """No matrix product, so no kernel rounds differently by batch size."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.ReLU(), nn.Tanh()

    def forward(self, x):
        return self.second(self.first(3 * x - 1)).flatten(1)[:, :4]


def look(body, layers, x, x_adv, rows, **options):
    index = torch.as_tensor(rows)
    measure = MEASURES.get("relative-error")
    return observe(Classifier(body), layers, measure, THREAT, x[rows], x_adv[rows], index, **options)


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(23, 1, 8, 8, generator=generator)
    return x, THREAT.project(x + torch.randn(x.shape, generator=generator), x)


@pytest.mark.parametrize("size", [1, 2, 7, 22])
def test_any_split_and_order_gives_the_same_scan_to_the_last_bit(pair, size):
    names = ["first", "second"]

    def scan(seen):
        return LayerScan.from_rows(names, seen.layers, seen.yardstick, seen.input_error, seen.index)

    whole = scan(look(Elementwise(), names, *pair, np.arange(23)))
    order = np.random.default_rng(size).permutation(23)
    parts = [look(Elementwise(), names, *pair, order[i : i + size]) for i in range(0, 23, size)]
    split = scan(Observation.concatenate(parts))
    for field in ("values", "yardstick", "input_error"):
        assert np.array_equal(getattr(split, field), getattr(whole, field))
    assert split.most_vulnerable(MvlRule()) == whole.most_vulnerable(MvlRule())
    for a, b in zip(split.bootstrap(MvlRule(), 3), whole.bootstrap(MvlRule(), 3), strict=True):
        assert np.array_equal(a, b)


def test_the_network_is_seen_in_evaluation_mode_and_left_as_it_was(pair):
    x, x_adv = pair
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.9)).train()
    body[4].eval()
    state = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    trained = look(body, ["3"], x, x_adv, np.arange(23))
    assert [module.training for module in body] == [True, True, True, True, False]
    assert all(torch.equal(tensor, state[name]) for name, tensor in body.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in body.modules())
    assert np.array_equal(trained.layers, look(body.eval(), ["3"], x, x_adv, np.arange(23)).layers)


def test_no_change_is_measured_as_zero_and_predicts_the_clean_class(pair):
    x, _ = pair
    body = Elementwise()
    seen = look(body, ["first", "second"], x, x, np.arange(23))
    assert not seen.layers.any()
    assert not seen.yardstick.any()  # noise as large as no change is no noise
    assert not seen.distance.any()
    assert seen.within.all()
    assert np.array_equal(seen.predicted, body(x).argmax(1).numpy())


def test_the_yardstick_is_noise_of_the_attacks_own_size(pair):
    """The input error of the noise equals the attack's own: linf noise moves every pixel by the same amount."""
    x = torch.full((4, 1, 8, 8), 0.5)
    corner = torch.where(torch.arange(64).reshape(8, 8) % 2 == 0, 0.1, -0.1)
    seen = look(nn.Sequential(nn.Identity(), nn.Flatten()), ["0"], x, x + corner, np.arange(4))
    np.testing.assert_allclose(seen.yardstick, seen.layers, rtol=1e-5)
    np.testing.assert_allclose(seen.input_error, 0.2, rtol=1e-5)


def test_the_yardstick_is_left_out_where_it_is_not_asked_for(pair):
    seen = look(Elementwise(), ["first"], *pair, np.arange(23), with_yardstick=False)
    assert np.isnan(seen.yardstick).all()
    assert np.isfinite(seen.layers).all()


def test_what_leaves_budget_or_range_is_marked(pair):
    x = torch.full((3, 1, 8, 8), 0.95)
    x_adv = x + torch.tensor([0.04, -0.2, 0.08])[:, None, None, None]
    seen = look(Elementwise(), ["first"], x, x_adv, np.arange(3))
    assert seen.within.tolist() == [True, False, False]
    np.testing.assert_allclose(seen.distance, [0.04, 0.2, 0.08], atol=1e-6)


def test_an_infinite_activation_is_undefined_and_nan_logits_are_no_class(pair):
    x, _ = pair

    class Overflow(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, inputs):
            shifted = (inputs - x[:3].repeat(3, 1, 1, 1)[: len(inputs)]).flatten(1).amax(1) > 0.09
            z = self.act(inputs.flatten(1).masked_fill(shifted[:, None], torch.inf))
            return (z - z.masked_fill(z == 0.5, 0)) + inputs.flatten(1)  # inf - inf

    seen = look(Overflow(), ["act"], x[:3], (x[:3] + 0.1), np.arange(3), with_yardstick=False)
    assert np.isnan(seen.layers).all()
    assert seen.predicted.tolist() == [-1, -1, -1]


class OneNumber(nn.Module):
    """Calls an activation on one number for each sample, a tensor of shape (N,)."""

    def forward(self, x):
        height = torch.tanh(x.flatten(1).mean(1))
        return torch.stack([height, 0.5 - height], 1)


@pytest.mark.parametrize("measure", MEASURES.names())
def test_a_layer_may_have_one_number_for_each_sample(measure):
    x = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    x_adv = x * 0.5
    seen = observe(
        Classifier(OneNumber()),
        [":tanh"],
        MEASURES.get(measure),
        make_threat("linf", 1.0),
        x,
        x_adv,
        torch.arange(5),
        seed=0,
    )
    before, after = (torch.tanh(images.flatten(1).mean(1))[:, None] for images in (x, x_adv))
    assert torch.allclose(torch.from_numpy(seen.layers[:, 0]).float(), MEASURES.get(measure)(before, after))


# ---- what one block costs, in passes -------------------------------------------------------------------


class Counting(nn.Module):
    """Counts the samples of its passes, with and without gradients."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.flatten, self.first, self.act, self.last = nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
        self.with_gradient = self.without = 0

    def forward(self, x):
        if torch.is_grad_enabled():
            self.with_gradient += len(x)
        else:
            self.without += len(x)
        return self.last(self.act(self.first(self.flatten(x))))


@pytest.mark.parametrize(("attacks", "yardsticks"), [(["fgsm", "pgd:steps=2"], 1), (["fgsm", "fgsm:eps=0.05"], 2)])
def test_a_block_passes_each_clean_and_each_perturbed_input_once_and_that_verifies(attacks, yardsticks):
    """Beside the passes of the attacks. FGSM takes the gradient of the clean pass. In the first block, attacks are verified at once."""
    body = Counting()
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = body(x).argmax(1)
    settings = settings_from({"attack": attacks, "eps": 0.1, "noise": "none", "threads": 1})
    plan = make_plan(body, settings, {}, (x, y))
    run = Execution(plan, lambda what, done, total: None, None)
    found = {}
    for is_first in (True, False):
        body.with_gradient = body.without = 0
        found[is_first], _ = audit_block(run, plan.index, is_first=is_first)
        steps = 2 if "pgd:steps=2" in attacks else 0
        assert body.with_gradient == 40 * (1 + steps)
        last_iterate = 1 if steps else 0
        assert body.without == 40 * (last_iterate + 1 + 2 + yardsticks + 2 * is_first)
    alone = margin(plan.network.classifier(plan.attacks[0].attack(plan.network.classifier, x, y)), y).detach()
    np.testing.assert_allclose(found[False].attacks[plan.attacks[0].label].margin, alone, atol=1e-5)
    for label, rows in found[False].attacks.items():
        at_once = found[True].attacks[label]
        assert np.array_equal(rows.predicted, at_once.predicted)
        np.testing.assert_allclose(rows.margin, at_once.margin, atol=1e-5)
        assert np.array_equal(rows.predicted != y.numpy(), rows.margin > 0)
    assert 0 < found[False].survivors(list(found[False].attacks)).sum() < 40
