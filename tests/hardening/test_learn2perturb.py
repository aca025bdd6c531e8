"""Learn2Perturb: where noise goes, the alternating updates, and what they leave behind."""

import dataclasses

import pytest
import torch

from lsa_cli.errors import LayerError, UsageError
from lsa_cli.hardening import trainer as trainer_module
from lsa_cli.hardening.learn2perturb import harmonic
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.surgery import NoiseBody
from tests.hardening.conftest import make_job, make_method, recipe, run, same, small_network


def prepared(options=None, model=None, **changes):
    method, model = make_method("learn2perturb", options, **changes), model or small_network()
    method.prepare(model)
    return method, model


def job(folder, options=None, seed=0, **changes):
    method, model = prepared(options, small_network(seed))
    return make_job(folder, method, model, **changes)


@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        ("cifar-resnet20", [(16, 32, 32)] * 4 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3),
        ("cifar-resnet18", [(64, 32, 32)] * 3 + [(128, 16, 16)] * 2 + [(256, 8, 8)] * 2 + [(512, 4, 4)] * 2),
    ],
)
def test_seats_on_resnets_are_those_of_the_official_code(network, shapes):
    model = Classifier(build_architecture(f"lsa:{network}", {}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method, model = prepared(model=model, input_shape=(3, 32, 32))
    assert [tuple(scale.shape) for scale in model.body.scales] == shapes
    assert {scale.unique().item() for scale in model.body.scales} == {0.25}
    after = {name.replace("body.network.", "body."): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [tuple(shape) for shape in method.surgeries[0]["sites"].values()] == shapes
    # After the stem's BatchNorm and on the block's sum, before the ReLU: the second of a block.
    assert list(method.surgeries[0]["sites"])[:2] in (["relu", "layer1.0.relu2"], ["relu", "layer1.0.relu#2"])


@pytest.mark.parametrize(
    ("sites", "places"), [("natural", ["2", "6"]), ("6", ["6"]), ("mvl", ["5"]), ("learnable", ["0", "5"])]
)
def test_seats_by_name(sites, places):
    method, _ = prepared({"sites": sites}, layers=("5",))
    assert list(method.surgeries[0]["sites"]) == places


def test_what_makes_no_sense_is_refused():
    with pytest.raises(LayerError, match="relu9"):
        prepared({"sites": "relu9"})
    with pytest.raises(UsageError, match="gamma"):
        make_method("learn2perturb", {"gamma": "-1"})
    with pytest.raises(UsageError, match="--awp"):
        make_method("learn2perturb", awp=0.01)
    with pytest.raises(UsageError, match="no activation was found"):
        prepared(model=Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))))


def test_the_noise_penalty_pushes_up_by_the_formula():
    assert [harmonic(epochs) for epochs in (-3, 0, 1, 2, 4)] == [1, 1, 1, 1.5, pytest.approx(25 / 12)]
    method, model = prepared({"gamma": "0.5"})
    # 350 epochs of the official code: at progress 0.05 seven epochs with noise have passed
    penalty = method.penalty(model.body, 0.05)
    (gradient,) = torch.autograd.grad(penalty, [model.body.scales[0]])
    torch.testing.assert_close(gradient, torch.full_like(gradient, -0.5 / harmonic(7) / (2 * 0.25**0.5)))


@pytest.mark.parametrize(
    ("progress", "groups"),
    [(0.01, [("weights",)]), (0.04, [("noise",), ("weights", "noise")]), (0.9, [("noise",), ("weights", "noise")])],
)
def test_updates_alternate_once_there_is_noise(batch, progress, groups):
    method, model = prepared()
    early = dataclasses.replace(batch, progress=progress)
    assert [names for _, names in method.steps(model, early)] == groups
    assert model.body.on == (progress > 0.03)
    assert (method.losses(model, early)[1] is None) == (progress < method.begins)


def test_examples_do_not_see_the_label(batch):
    method, model = prepared()
    model.eval()  # dropout aside, the two passes differ in their noise, which is the sample's own stream inside the attack
    noise = model.body
    noise.on = False
    (_, one), (_, other) = (method.losses(model, dataclasses.replace(batch, y=y)) for y in (batch.y, (batch.y + 1) % 3))
    assert torch.equal(one, other)


def test_groups_share_no_parameter():
    method, model = prepared()
    groups = method.groups(model)
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in model.parameters()}
    assert sum(len(group) for group in groups.values()) == len(list(model.parameters()))
    assert len(groups["noise"]) == 2


@pytest.mark.parametrize(
    "options",
    [{}, {"base": "trades", "shared": "true"}, {"base": "free", "replays": "2"}],
    ids=["pgd", "trades", "free"],
)
def test_an_interrupted_training_ends_as_an_uninterrupted_one(options, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_SAVE_EVERY", 0.0)
    whole = run(job(tmp_path, options))
    with pytest.raises(KeyboardInterrupt):
        run(job(tmp_path, options), stop_after=9)
    resumed = run(job(tmp_path, options, seed=1, resume=True))
    assert same(whole.last, resumed.last)
    assert same(whole.best, resumed.best)


def test_scales_are_learnt_and_stay_above_the_floor(tmp_path):
    training = job(tmp_path, recipe=recipe(lr=0.3, optimizer="sgd", schedule="constant"))
    trained = run(training)
    scales = [tensor for name, tensor in trained.last.items() if "scales" in name]
    assert any((scale != 0.25).any() for scale in scales)
    assert min(float(scale.min()) for scale in scales) >= 0.0099
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in training.model.modules())
    assert isinstance(training.model.body, NoiseBody)
    # The log's parts are means over the updates in which they are: J is a cross-entropy of three classes.
    assert 0 < trained.history[0].parts["J"] < 3
    assert trained.history[0].parts["noise"] < 0
