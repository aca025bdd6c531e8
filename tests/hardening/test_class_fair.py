"""Class-fair training: each rule against its formula, the weight average, the choice of epochs, the logit offset."""

import dataclasses

import numpy as np
import pytest
import torch

from lsa_cli.attacks import make_threat
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis
from lsa_cli.errors import UsageError
from lsa_cli.hardening import trainer as trainer_module
from lsa_cli.hardening.class_fair import cfa_factors, dafa_weights, is_fairer, raised, wat_weights
from lsa_cli.hardening.objectives import OBJECTIVES
from lsa_cli.hardening.validation import validation_of
from lsa_cli.models.classifier import Classifier
from tests.hardening.conftest import make_job, make_method, recipe, run, same, small_network


def fair(name="class-fair", layers=(), changes=None, **options):
    return make_method(name, {key: str(value) for key, value in options.items()}, layers=layers, **(changes or {}))


def diagnosed(*shares, n=10):
    """A diagnosis in which class c is robust for shares[c] of n samples."""
    y = np.repeat(np.arange(len(shares)), n)
    held = np.concatenate([np.arange(n) < round(share * n) for share in shares])
    return ClassDiagnosis(y, y, np.where(held, y, (y + 1) % len(shares)), np.ones(len(y), dtype=bool))


def told(method, batch, logits):
    """As if one batch of an epoch had these logits under attack; then the epoch ends."""
    method.strength = 1.0
    method.seen = logits
    method.parts = {"J": torch.nn.functional.cross_entropy(logits, batch.y, reduction="none")}
    method._count(batch.y)
    method.end_epoch(small_network(), diagnosed(1, 1, 1))


# ---- rules ---------------------------------------------------------------------------------------------


def test_dafa_moves_weight_from_the_strong_to_the_weak_class_that_is_near():
    mass = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]])
    # 0 is weaker than 1 and 2, and 1 than 2: W_0 = 1 + .3 * .8 + .2 * .9, and what 0 gains the others pay.
    expected = torch.tensor([1 + 0.24 + 0.18, 1 - 0.24 + 0.1 * 0.9, 1 - 0.18 - 0.09])
    assert torch.allclose(dafa_weights(mass), expected)


def test_dafa_weights_sum_to_the_number_of_classes():
    torch.manual_seed(0)
    weights = dafa_weights(torch.randn(7, 7).softmax(1))
    assert weights.sum().item() == pytest.approx(7, rel=1e-5)
    assert (weights >= 0).all()
    assert torch.equal(dafa_weights(torch.eye(4)), torch.ones(4))


def test_wat_weights_are_exponential_and_one_on_average():
    cost = torch.tensor([1.0, 2.0, 6.0])
    p = torch.tensor([np.exp(0.1 * c) for c in (3.0, 1.0, 2.0, 6.0)])
    p = p / p.sum()
    assert torch.allclose(wat_weights(cost).double(), 3 * p[1:] + p[0])
    assert wat_weights(cost).mean().item() == pytest.approx(1, rel=1e-6)
    assert torch.allclose(wat_weights(torch.full((5,), 3.0)), torch.ones(5))


def test_cfa_gives_each_class_its_radius(batch):
    method = fair(rule="cfa")
    assert method.objective.threat(batch).eps == pytest.approx(0.1)  # until an epoch has been seen
    logits = torch.nn.functional.one_hot(torch.where(batch.y == 2, 0, batch.y), 3).float()  # class 2 is never right
    told(method, batch, logits)
    assert torch.allclose(method.objective.eps_of_class, torch.tensor([1.5, 1.5, 0.5]))
    eps = method.objective.threat(batch).eps
    assert torch.allclose(eps, 0.1 * torch.tensor([1.5, 1.5, 0.5])[batch.y])
    x_adv = method.objective.examples(small_network().eval(), batch)
    moved = (x_adv - batch.x).flatten(1).abs().amax(1)
    assert (moved <= eps + 1e-6).all()
    assert torch.allclose(moved, eps, atol=1e-6)


@pytest.mark.parametrize("base", ["pgd", "trades", "mart"])
def test_a_step_that_was_given_is_the_same_share_of_each_class_eps(base, batch):
    """And so no sample's example hangs on the classes that are in its batch."""
    method, model = fair(rule="dafa", base=base, changes={"step_size": 0.02}), small_network().eval()
    assert method.objective.attack(method.objective.threat(batch)).step_size == pytest.approx(0.02)
    method.objective.eps_of_class = torch.tensor([1.5, 1.0, 0.5])
    steps = method.objective.attack(method.objective.threat(batch)).step_size
    assert torch.allclose(steps, 0.02 * torch.tensor([1.5, 1.0, 0.5]).double()[batch.y])
    rows = batch.y == 2
    alone = dataclasses.replace(batch, x=batch.x[rows], y=batch.y[rows], index=batch.index[rows])
    assert torch.equal(method.objective.examples(model, alone), method.objective.examples(model, batch)[rows])


def test_cfa_gives_each_class_its_beta_and_keeps_the_size_of_the_loss(batch):
    method = fair(rule="cfa", base="trades", beta=6)
    logits, clean = torch.randn(12, 3), torch.randn(12, 3)
    start = method.objective.losses(logits, clean, batch.y)
    p, q = clean.softmax(1), logits.softmax(1)
    cross, divergence = -p.log()[torch.arange(12), batch.y], (p * (p / q).log()).sum(1)
    assert torch.allclose(start, (cross + 6 * divergence) / 7, rtol=1e-4)
    told(method, batch, torch.nn.functional.one_hot(batch.y, 3).float())  # all right: t = 1
    assert torch.allclose(method.objective.eps_of_class, torch.tensor(1.3))  # 0.3 is lambda_1 of TRADES
    assert torch.allclose(method.objective.losses(logits, clean, batch.y), (cross + 9 * divergence) / 10, rtol=1e-4)
    assert torch.allclose(cfa_factors(torch.tensor([0.2]), 0.5), torch.tensor([0.7]))


def test_dafa_weighs_the_cross_entropy_and_the_radius_once(batch):
    torch.manual_seed(0)
    method, logits = fair(rule="dafa"), torch.randn(12, 3)
    told(method, batch, logits)
    mass = torch.stack([logits.softmax(1)[batch.y == label].mean(0) for label in range(3)])
    weights = method.objective.weight_of_class
    assert torch.allclose(weights, dafa_weights(mass), atol=1e-6)
    plain = torch.nn.functional.cross_entropy(logits, batch.y, reduction="none")
    assert torch.allclose(method.objective.losses(logits, None, batch.y), plain * weights[batch.y])
    told(method, batch, torch.randn(12, 3))
    assert torch.equal(method.objective.weight_of_class, weights)


class ThreePixels(torch.nn.Module):
    """The first three pixels are the logits."""

    def forward(self, x):
        return x.flatten(1)[:, :3]


def test_trix_attacks_strong_classes_towards_classes_drawn_evenly_and_weak_ones_as_before(batch):
    """Towards a class, its logit rises by eps and the others fall; away from y, the logit of y falls by eps."""
    method, n = fair(rule="trix", changes={"steps": 4}), 600
    mass = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]])
    told(method, dataclasses.replace(batch, y=torch.arange(3)), mass.clamp_min(1e-30).log())
    assert method.is_strong.tolist() == [False, True, True]
    assert torch.allclose(method.objective.weight_of_class, dafa_weights(mass))
    method.objective.eps_of_class = None
    x, y = torch.full((n, *batch.x.shape[1:]), 0.5), torch.arange(n) % 3
    whole = dataclasses.replace(batch, x=x, y=y, index=torch.arange(n))
    model = Classifier(ThreePixels()).eval()
    moved = method.examples(model, whole).flatten(1)[:, :3] - 0.5
    assert torch.allclose(moved[y > 0].abs(), torch.tensor(0.1))
    assert torch.allclose(moved[y == 0, 0], torch.tensor(-0.1))
    up = moved > 0
    assert (up[y > 0].sum(1) == 1).all()
    for label in (1, 2):
        drawn = up[y == label].sum(0)
        assert drawn[label] == 0
        assert drawn.sum() == n // 3
        assert abs(int(drawn[0]) - n // 6) < 3 * (n // 3 / 4) ** 0.5  # three standard deviations
    assert torch.equal(method.examples(model, whole)[y == 0], method.objective.examples(model, whole)[y == 0])


def test_wat_weighs_the_whole_loss_by_what_classes_cost_so_far(batch):
    torch.manual_seed(0)
    method, model, logits = fair(rule="wat"), small_network().eval(), torch.randn(12, 3)
    plain = method.losses(model, batch, batch.x)
    told(method, batch, logits)
    told(method, batch, logits)
    losses = torch.nn.functional.cross_entropy(logits, batch.y, reduction="none")
    cost = 2 * torch.stack([losses[batch.y == label].mean() for label in range(3)])
    assert torch.allclose(method.losses(model, batch, batch.x), plain * wat_weights(cost)[batch.y], rtol=1e-5)


def test_a_class_that_was_not_seen_counts_as_an_average_one(batch):
    part = dataclasses.replace(batch, x=batch.x[:2], y=torch.tensor([0, 1]))
    method = fair(rule="cfa")
    told(method, part, torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]))
    assert torch.allclose(method.objective.eps_of_class, torch.tensor([1.5, 0.5, 1.0]))


# ---- averages and choice -------------------------------------------------------------------------------


def test_weights_are_averaged_where_the_worst_class_holds(batch):
    method, model = fair(rule="none", fawa="true", delta=0.3), Classifier(torch.nn.Linear(1, 3, bias=False))
    method.strength = 1.0
    for value, worst in ((8.0, 0.2), (1.0, 0.3), (2.0, 0.9), (50.0, 0.1), (6.0, 0.5)):
        with torch.no_grad():
            model.body.weight.fill_(value)
        method.end_epoch(model, diagnosed(1.0, worst, 1.0))
    assert torch.allclose(method.averaged()["body.weight"], torch.tensor((1.0 + 2.0 + 6.0) / 3))
    for _ in range(5):  # from the seventh on it is a moving average of decay 0.85
        method.end_epoch(model, diagnosed(1.0, 0.5, 1.0))
    before = method.averaged()["body.weight"].clone()
    with torch.no_grad():
        model.body.weight.fill_(0.0)
    method.end_epoch(model, diagnosed(1.0, 0.5, 1.0))
    assert torch.allclose(method.averaged()["body.weight"], 0.85 * before)


def test_nothing_is_averaged_before_full_strength():
    method = fair(rule="cfa")
    method.strength = 0.5
    method.end_epoch(small_network(), diagnosed(1, 1, 1))
    assert method.averaged() is None


def test_epochs_are_chosen_by_mean_and_worst():
    method = fair()
    assert method.score(diagnosed(0.9, 0.9, 0.6)) == pytest.approx(0.8 + 0.6)
    assert method.score(diagnosed(0.9, 0.9, 0.6)) < method.score(diagnosed(0.7, 0.7, 0.8))


# ---- training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["cfa", "dafa", "wat", "trix"])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(rule, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_SAVE_EVERY", 0.0)
    changes = {"recipe": recipe(epochs=3, warmup=0.0)}
    options = {"rule": rule, "fawa": "true", "delta": 0.0}
    whole = run(make_job(tmp_path, fair(**options), **changes))
    with pytest.raises(KeyboardInterrupt):  # in the third epoch: six updates an epoch
        run(make_job(tmp_path, fair(**options), **changes), stop_after=15)
    resumed = run(make_job(tmp_path, fair(**options), small_network(seed=1), resume=True, **changes))
    assert same(whole.last, resumed.last)
    assert same(whole.best, resumed.best)
    plain = run(make_job(tmp_path, make_method("at", {}, layers=()), **changes))
    assert not same(whole.last, plain.last)


@pytest.mark.parametrize("base", OBJECTIVES.names())
def test_every_base_can_be_made_fair_and_hold_layers(base, tmp_path):
    method = fair("class-fair-lr", layers=("2", "6"), base=base, rule="cfa")
    trained = run(make_job(tmp_path, method, recipe=recipe(warmup=0.0)))
    assert method.objective.eps_of_class is not None
    assert {"J", "2", "6"} <= set(trained.history[-1].parts)
    assert all(tensor.isfinite().all() for tensor in trained.last.values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rule": "cda"}, "did you mean 'cfa'"),
        ({"delta": 1.5}, "an accuracy"),
        ({"rule": "wat", "delta": 0.3}, "add fawa=true"),
        ({"rule": "trix", "base": "fast"}, "needs base pgd, trades or mart"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        fair(**options)


# ---- offset --------------------------------------------------------------------------------------------


def test_the_offset_lifts_the_class_that_a_network_neglects(tmp_path):
    """A network that hardly ever says 2: the offset takes that back, and the score rises on the held-out samples."""
    trained = run(make_job(tmp_path, make_method("at", {}, layers=()), recipe=recipe(epochs=6)))
    model = small_network()
    model.load_state_dict(trained.last)
    with torch.no_grad():
        model.body[7].bias[2] -= 6.0
    method = fair(rule="none", offset="true")
    method.prepare(model)
    held_out = list(validation_of(make_job(tmp_path)))
    before, _ = method._attacked(model, held_out)
    method.finish(model.eval(), held_out)
    after, _ = method._attacked(model, held_out)
    assert before.by_class(3).min() < 0.1
    assert method.score(after) > method.score(before) + 0.5
    assert model.body.logit_offset[2] > 1
    assert method.surgeries == [{"kind": "logit-offset", "outputs": 3}]


class Bands(torch.nn.Module):
    """The mean brightness of the upper, middle and lower third: by 0.4 right on stripes, so 0.3 breaks every sample."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        return self.scale * torch.stack([x[:, 0, 3 * band : 3 * band + 2].mean((1, 2)) for band in range(3)], 1)


def test_an_offset_that_helps_no_worst_class_is_not_taken(tmp_path):
    """Nothing is robust: to call everything 0 would make a third of all robust, and the worst class no better."""
    model, method = Classifier(Bands()), fair(rule="none", offset="true", changes={"threat": make_threat("linf", 0.3)})
    method.prepare(model)
    held_out = list(validation_of(make_job(tmp_path)))
    before, _ = method._attacked(model.eval(), held_out)
    assert (before.right.all(), before.robust.any()) == (True, False)
    with torch.no_grad():
        model.body.logit_offset[0] = 50.0
        assert method.score(method._attacked(model, held_out)[0]) > method.score(before)
        model.body.logit_offset.zero_()
    method.finish(model, held_out)
    after, _ = method._attacked(model, held_out)
    assert after.clean_by_class(3).mean() >= 0.98
    assert torch.equal(model.body.logit_offset, torch.zeros(3))


def test_a_trial_is_fairer_where_the_worst_class_rises_at_little_cost():
    start = diagnosed(0.9, 0.9, 0.3, n=100)

    def fairer(*shares, best=start, wrong=0):
        tried = diagnosed(*shares, n=100)
        clean = np.where(np.arange(300) < wrong, 2, tried.y)  # of class 0, whose first samples stay robust no longer
        return is_fairer(ClassDiagnosis(tried.y, clean, tried.adversarial, tried.counted), best, start, 3)

    assert fairer(0.9, 0.9, 0.4)
    assert not fairer(1.0, 1.0, 0.3)  # the mean alone
    assert fairer(0.85, 0.85, 0.35)  # robust, in the mean: -0.0167
    assert not fairer(0.8, 0.85, 0.35)  # -0.0333
    assert fairer(0.9, 0.9, 0.6, wrong=5)  # clean: -0.0167
    assert not fairer(0.9, 0.9, 0.6, wrong=7)
    nearer = diagnosed(0.87, 0.87, 0.33, n=100)
    assert not fairer(0.87, 0.87, 0.32, best=nearer)  # no better than what there is
    assert not fairer(0.82, 0.82, 0.38, best=nearer)  # -0.0167 from there and -0.0267 in all
    few = diagnosed(0.5, 0.5, 0.0, n=10)
    assert not is_fairer(diagnosed(0.4, 0.4, 0.1, n=10), few, few, 3)  # one sample of 30, on balance


def test_the_one_score_of_a_binary_head_moves_both_ways():
    offset = torch.zeros(1)
    raised(offset, 1, 2.0)
    assert offset.item() == 2.0
    raised(offset, 0, 3.0)
    assert offset.item() == -1.0


def test_probabilities_take_no_offset():
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3), torch.nn.Softmax(1))
    with pytest.raises(UsageError, match="returns probabilities"):
        fair(offset="true").prepare(Classifier(body, output="probabilities"))
