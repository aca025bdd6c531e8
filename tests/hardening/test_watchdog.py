"""What the watchdog makes stronger before it stops a training."""

import dataclasses

import pytest
import torch

from lsa_cli.hardening import watchdog
from lsa_cli.hardening.watchdog import collapse, is_weak, seconds_of_epoch, trouble
from tests.hardening.conftest import batch, make_job, make_method, recipe, run, same, small_network  # noqa: F401
from tests.hardening.test_trainer import result


def test_a_gap_between_one_step_and_several_is_weak_at_full_eps_only():
    before = result(1, fgsm=0.6, robust=0.5)
    assert is_weak([before, result(2, fgsm=0.6, robust=0.44)], 0.1)
    assert not is_weak([before, result(2, fgsm=0.6, robust=0.46)], 0.1)
    assert not is_weak([before, result(2, fgsm=0.15, robust=0.0)], 0.1)  # hardly better than guessing
    assert not is_weak([before, dataclasses.replace(result(2, robust=0.1), strength=0.5)], 0.1)


def test_a_gap_that_closes_is_not_weak():
    rising = [result(epoch, fgsm=0.9, robust=robust) for epoch, robust in ((1, 0.2), (2, 0.4), (3, 0.5))]
    assert not any(is_weak(rising[:count], 0.1) for count in (1, 2, 3))
    assert is_weak([*rising, result(4, fgsm=0.9, robust=0.45)], 0.1)


def test_a_short_training_has_failed_where_it_went_from_better_than_chance_to_chance():
    ruined = result(2, clean=0.11)
    assert "was 90.0% before training and is at chance (11.0%)" in collapse(ruined, 0.9, 0.1)
    assert collapse(ruined, 0.12, 0.1) is None  # it was hardly better before
    assert collapse(result(2, clean=0.5), 0.9, 0.1) is None  # worse, and better than guessing


def test_the_time_left_is_of_epochs_as_long_as_those_to_come():
    epochs = [dataclasses.replace(result(n + 1), seconds=s) for n, s in enumerate((1.0, 2.0, 5.0, 7.0))]
    assert seconds_of_epoch(epochs[:2]) == 1.5
    epochs[1] = dataclasses.replace(epochs[1], raised="gamma")
    assert seconds_of_epoch(epochs[:2]) == 2.0
    assert seconds_of_epoch(epochs) == 6.0


def test_a_training_that_was_strengthened_is_not_stopped_for_overfitting():
    overfitted = result(2, fgsm=0.8, robust=0.1)
    assert trouble([result(1), overfitted], 0.1).startswith("catastrophic overfitting")
    assert trouble([result(1), dataclasses.replace(overfitted, raised="gamma")], 0.1) is None


@pytest.mark.parametrize(
    ("name", "base", "says"),
    [
        (
            "at-lr",
            "fgsm",
            ["gamma to 2 times its value", "gamma to 4 times its value", "gamma to 8 times its value", None],
        ),
        ("at", "pgd", [f"the steps of the training attack to {steps}" for steps in (4, 8, 16)] + [None]),
        (
            "at",
            "fast",
            ["the steps of the training attack to 2, with base pgd"]
            + [f"the steps of the training attack to {steps}" for steps in (4, 8)]
            + [None],
        ),
        ("at", "free", [None]),
    ],
)
def test_gamma_or_the_steps_are_raised_three_times(name, base, says):
    method = make_method(name, {"base": base}, layers=("2",) if name == "at-lr" else ())
    assert [method.strengthen() for _ in says] == says


def test_the_penalty_doubles(batch):  # noqa: F811
    model, method = small_network().eval(), make_method("at-lr", layers=("2",))
    x_adv = (batch.x + 0.05).clamp(0, 1)
    first = method.losses(model, batch, x_adv)
    penalty = first - method.parts["J"]
    method.strengthen()
    assert torch.allclose(method.losses(model, batch, x_adv) - first, penalty, atol=1e-6)


@pytest.mark.parametrize(("name", "base"), [("at", "pgd"), ("at", "n-fgsm"), ("at-lr", "pgd")])
def test_a_resumed_training_is_as_strong_as_it_was(name, base, tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "_GAP", 2.0)  # an epoch that is not more robust than all before is weak

    def job(seed=0, **changes):
        method = make_method(name, {"base": base}, layers=("2",) if name == "at-lr" else ())
        return make_job(tmp_path, method, small_network(seed), recipe=recipe(epochs=9, warmup=0.0), **changes)

    whole = run(job())
    raised = [epoch.raised for epoch in whole.history]
    assert raised[-1] is None  # nothing comes after the last epoch
    assert any(raised)
    with pytest.raises(KeyboardInterrupt):
        run(job(), stop_after=45)
    resumed = run(job(seed=1, resume=True))
    assert same(whole.last, resumed.last)
    assert [epoch.raised for epoch in resumed.history] == raised
    monkeypatch.setattr(watchdog, "_GAP", 0.0)
    assert not same(whole.last, run(job()).last)
