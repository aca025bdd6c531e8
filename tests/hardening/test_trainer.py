"""The loop: resume to the bit, what is trained and what is not, averages, schedules, the choice of the best epoch."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lsa_cli.errors import RunError, UsageError
from lsa_cli.hardening import trainer as trainer_module
from lsa_cli.hardening.augmentation import crop_flip, shift
from lsa_cli.hardening.methods import HARDENINGS
from lsa_cli.hardening.objectives import OBJECTIVES
from lsa_cli.hardening.recipes import trainable_names
from lsa_cli.hardening.schedules import learning_rate, warmed_up
from lsa_cli.hardening.validation import split_validation
from lsa_cli.hardening.watchdog import EpochResult, trouble
from lsa_cli.hardening.weights import Average, adversarial_weights
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.surgery import operate
from tests.hardening.conftest import make_job, make_method, recipe, run, same, small_network, stripes


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("at-lr", {"base": base}) for base in OBJECTIVES.names()),
        *((name, {"margin": "0.2"} if name == "rift" else {}) for name in HARDENINGS.names()),
    ],
)
def test_an_interrupted_training_ends_as_an_uninterrupted_one(name, options, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_SAVE_EVERY", 0.0)

    def job(seed=0, **changes):
        layers = ("2", "6") if HARDENINGS.get(name).regularizes else ()
        method, model = make_method(name, options, layers=layers), small_network(seed)
        method.prepare(model)
        average = "none" if method.averages else "ema"
        return make_job(tmp_path, method, model, recipe=recipe(average=average), **changes)

    whole = run(job())
    # In the middle of the second epoch: six updates an epoch, the state of the eighth is on disk.
    with pytest.raises(KeyboardInterrupt):
        run(job(), stop_after=9)
    resumed = run(job(seed=1, resume=True))
    assert same(whole.last, resumed.last)
    assert same(whole.best, resumed.best)
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert {**one.plain(), "seconds": 0} == {**other.plain(), "seconds": 0}


def test_another_run_is_not_resumed(tmp_path):
    run(make_job(tmp_path))
    with pytest.raises(UsageError, match="what was 'a test' and is 'another'"):
        run(make_job(tmp_path, resume=True, identity={"what": "another"}))


def test_a_damaged_state_is_told(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"no state")
    with pytest.raises(UsageError, match="cannot be read"):
        run(make_job(tmp_path, resume=True))


def test_it_learns(tmp_path):
    trained = run(make_job(tmp_path, recipe=recipe(epochs=6)))
    assert trained.history[-1].robust > 0.9
    assert trained.history[0].robust < trained.history[-1].robust or trained.history[0].robust > 0.9


def test_two_runs_are_one(tmp_path):
    assert same(run(make_job(tmp_path)).last, run(make_job(tmp_path)).last)


def test_only_what_may_move_moves(tmp_path):
    model = small_network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = run(make_job(tmp_path, model=model, trainable=trainable_names(model, ["0", "1"], None)))
    moved = {name for name in before if not torch.equal(before[name], trained.last[name])}
    # A frozen BatchNorm keeps its statistics, too.
    assert moved == {"body.5.weight", "body.5.bias", "body.7.weight", "body.7.bias"}


def test_names_of_what_is_trained():
    model = small_network()
    assert trainable_names(model, [], ["5"]) == {"body.5.weight", "body.5.bias"}
    assert "body.0.weight" not in trainable_names(model, ["*.weight"], None)
    with pytest.raises(UsageError, match="'head' matches no parameter"):
        trainable_names(model, ["head"], None)
    with pytest.raises(UsageError, match="no parameter is left"):
        trainable_names(model, ["*"], None)


@pytest.mark.parametrize("base", OBJECTIVES.names())
def test_bfloat16_trains_nearly_the_same(base, tmp_path):
    def first_parts(amp):
        model = small_network()
        model.body[3].p = 0.0
        method = make_method("at-lr", {"base": base, **({"replays": "1"} if base == "free" else {})})
        return run(make_job(tmp_path, method, model, recipe=recipe(epochs=1, lr=1e-4, amp=amp))).history[0].parts

    assert first_parts(amp=True) == pytest.approx(first_parts(amp=False), rel=0.2)  # trades climbs from noise


def test_parameters_of_a_wrapped_network_keep_their_names():
    model, surgery = small_network(), {"kind": "self-gradient", "sites": {"6": [8]}}
    model.body = operate(model.body, [surgery])
    inside = {name.replace("body.", "body.network.") for name in trainable_names(small_network(), ["0"], None)}
    assert trainable_names(model, ["0"], None) == inside | {"body.maps.0.weight"}
    assert trainable_names(model, ["?.*"], None) == {"body.maps.0.weight"}
    assert trainable_names(model, [], ["5"]) == {"body.network.5.weight", "body.network.5.bias"}


def test_nothing_of_training_stays_behind(tmp_path):
    model = small_network()
    run(make_job(tmp_path, model=model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_rate_follows_its_schedule(optimizer, tmp_path):
    trained = run(make_job(tmp_path, recipe=recipe(optimizer=optimizer, schedule="cosine", epochs=3)))
    rates = [result.learning_rate for result in trained.history]
    # 6 updates an epoch; the last of each epoch is at (6k - 0.5) / 18
    expected = [0.01 * 0.5 * (1 + math.cos(math.pi * (6 * k - 0.5) / 18)) for k in (1, 2, 3)]
    assert rates == pytest.approx(expected)


def test_schedules():
    assert learning_rate("cosine", 0.0) == 1
    assert learning_rate("cosine", 1.0) == pytest.approx(0)
    assert learning_rate("one-cycle", 0.3) == pytest.approx(1)
    assert learning_rate("one-cycle", 0.0) == pytest.approx(0.04)
    assert learning_rate("one-cycle", 1.0) == pytest.approx(0)
    assert learning_rate("constant", 0.7) == 1
    assert [warmed_up(p, 0.5) for p in (0.0, 0.25, 0.5, 1.0)] == [0, 0.5, 1, 1]
    assert warmed_up(0.0, 0.0) == 1
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        learning_rate("cosin", 0.0)


def test_swa_is_the_mean_of_the_second_half():
    model = torch.nn.Linear(1, 1, bias=False)
    average = Average("swa", model)
    for value, progress in ((9.0, 0.1), (1.0, 0.5), (2.0, 0.7), (6.0, 0.9)):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(model, progress)
    assert average.values["weight"].item() == pytest.approx(3.0)


def test_ema_starts_short_and_becomes_long():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = Average("ema", model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average.update(model, 0.0)
    assert average.values["weight"].item() == pytest.approx(1 - 2 / 11)
    for _ in range(20):
        average.update(model, 0.0)
    assert average.values["weight"].item() == pytest.approx(1.0, abs=1e-4)


def test_adversarial_weights_rise_by_their_share_and_come_back():
    model, x = torch.nn.Linear(3, 2), torch.rand(4, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = model(x).square().mean()
    with adversarial_weights(model, loss, 0.1):
        moved = (model.weight - before["weight"]).norm().item()
        assert moved == pytest.approx(0.1 * before["weight"].norm().item(), rel=1e-4)
        assert torch.equal(model.bias, before["bias"])
        assert model(x).square().mean() > loss
    assert torch.allclose(model.weight, before["weight"], atol=1e-6)


def test_awp_trains_another_network(tmp_path):
    plain = run(make_job(tmp_path, make_method(awp=0.0)))
    perturbed = run(make_job(tmp_path, make_method(awp=0.05)))
    assert not same(plain.last, perturbed.last)
    assert all(tensor.isfinite().all() for tensor in perturbed.last.values())


def test_the_best_epoch_is_the_most_robust_one_at_full_strength(tmp_path):
    trained = run(make_job(tmp_path, recipe=recipe(epochs=4, warmup=0.5)))
    eligible = [result for result in trained.history if result.strength == 1]
    assert [result.epoch for result in eligible] == [2, 3, 4]
    assert trained.best_epoch == max(eligible, key=lambda result: result.robust).epoch


def result(epoch, clean=0.9, fgsm=0.6, robust=0.5, loss=1.0):
    return EpochResult(epoch, loss, {}, clean, fgsm, robust, 1.0, 0.1, 1.0)


def test_the_watchdog_knows_catastrophic_overfitting_from_a_bad_epoch():
    assert trouble([result(1), result(2, fgsm=0.8, robust=0.1)], 0.1).startswith("catastrophic overfitting")
    assert trouble([result(1), result(2, fgsm=0.3, robust=0.2)], 0.1) is None
    assert trouble([result(1), result(2, fgsm=0.8, robust=0.4)], 0.1) is None


def test_the_watchdog_knows_a_network_that_does_not_learn():
    stuck = [result(epoch, clean=0.11, fgsm=0.1, robust=0.1) for epoch in (1, 2, 3)]
    assert "not learning" in trouble(stuck, 0.1)
    assert trouble(stuck[:2], 0.1) is None


def test_the_watchdog_judges_two_classes_and_one_large_class_too():
    assert trouble([result(1, robust=0.8), result(2, fgsm=0.9, robust=0.3)], 0.5).startswith("catastrophic overfitting")
    learns = [result(epoch, clean=0.97, robust=0.9) for epoch in (1, 2, 3)]
    assert trouble(learns, 0.9) is None
    assert "not learning" in trouble([dataclasses.replace(one, clean=0.91) for one in learns], 0.9)


def test_the_watchdog_knows_a_loss_that_is_not_finite():
    assert "not finite" in trouble([result(1), result(2, loss=math.nan)], 0.1)


def test_a_first_epoch_without_a_finite_loss_is_an_error_with_the_mend(tmp_path):
    model = small_network()
    with torch.no_grad():
        model.body[7].bias.fill_(math.nan)
    with pytest.raises(RunError, match=r"not finite at step 1.*smaller --lr"):
        run(make_job(tmp_path, model=model))


def test_the_held_out_part_is_stratified_and_held_out():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    train, validation = split_validation(labels, 0.2, 1000, 0)
    assert np.bincount(labels[validation]).tolist() == [10, 6, 4]
    assert sorted([*train, *validation]) == list(range(100))
    assert len(split_validation(labels, 0.5, 10, 0)[1]) == 10
    with pytest.raises(UsageError, match="both need at least one"):
        split_validation(labels, 0.0, 1000, 0)


@pytest.mark.parametrize("augmentation", [shift, crop_flip])
def test_augmentation_belongs_to_the_sample(augmentation):
    x, index = stripes(20).read(np.arange(20)), torch.arange(20)
    whole = augmentation(x, index, 7)
    assert torch.equal(whole[5:9], augmentation(x[5:9], index[5:9], 7))
    assert not torch.equal(whole, augmentation(x, index, 8))
    assert whole.shape == x.shape


@pytest.mark.parametrize(("augmentation", "places"), [(shift, 25), (crop_flip, 81)])
def test_augmentation_moves_a_point_as_far_as_it_says_and_changes_nothing_else(augmentation, places):
    marked = torch.zeros(400, 1, 9, 9)
    marked[:, :, 4, 4] = 1.0
    moved = augmentation(marked, torch.arange(400), 0)
    assert (moved.flatten(1).sum(1) == 1).all()
    assert len(moved.flatten(2).argmax(2).unique()) == places


def test_a_shift_repeats_the_edge_and_mirrors_nothing():
    x = torch.arange(9.0).expand(200, 1, 9, 9)  # each column has its own value, rising to the right
    moved = shift(x, torch.arange(200), 0)
    assert (moved.diff(dim=3) >= 0).all()
    assert sorted({float(row[0, 0, 0]) for row in moved}) == [0, 1, 2]
    assert sorted({float(row[0, 0, -1]) for row in moved}) == [6, 7, 8]


def two_convolutions():
    """The weight of the second one lies in another order with its channels last; of the first, with one channel, it cannot."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(96, 3),
    )  # fmt: skip
    return Classifier(body)


def test_channels_lie_last_in_a_training_and_first_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_SAVE_EVERY", 0.0)

    def job(**changes):
        method = make_method(layers=("2", "4"))
        return make_job(tmp_path, method, two_convolutions(), recipe=recipe(average="ema", clip=1.0), **changes)

    whole, first = run(job()), job()
    with pytest.raises(KeyboardInterrupt):
        run(first, stop_after=9)
    assert not first.model.body[3].weight.is_contiguous()
    second = job(resume=True)
    resumed = run(second)
    assert same(whole.last, resumed.last)
    assert same(whole.best, resumed.best)
    for weights in (resumed.best, resumed.last, second.model.state_dict()):
        assert all(tensor.is_contiguous() for tensor in weights.values())


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_a_network_that_cannot_be_copied_has_an_average_too(tmp_path):
    model = small_network()
    torch.nn.utils.weight_norm(model.body[5])  # its weight is computed, which refuses a copy after a pass
    trained = run(make_job(tmp_path, make_method(layers=("2",)), model, recipe=recipe(average="ema")))
    last = trained.last["body.5.weight_g"]
    assert not torch.equal(last, model.state_dict()["body.5.weight_g"])  # the average is not what trains
    assert trained.best_epoch > 0
