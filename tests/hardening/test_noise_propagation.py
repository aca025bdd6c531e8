"""ANP: registers and schedules against their formulas, sites, and that nothing of it stays in the network."""

import math

import pytest
import torch

from lsa_cli.errors import LayerError, UsageError
from lsa_cli.hardening import trainer as trainer_module
from lsa_cli.hardening.noise_propagation import NoisePropagation, Phase, phase, pushed, with_noise
from lsa_cli.models.classifier import Classifier
from tests.hardening.conftest import make_job, make_method, recipe, run, same, small_network


def prepared(options=None, model=None, **changes):
    method, model = make_method("anp", options, **{"layers": (), **changes}), model or small_network()
    method.prepare(model)
    return method, model


def updates(method, model, batch, rate=0.0):
    """What the loop does: backward between two yields, and a step of plain gradient descent."""
    for loss, groups in method.steps(model, batch):
        assert groups == ("weights",)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= rate * parameter.grad
        yield loss.item()


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_registers_stay_within_the_sum_of_powers(decay):
    torch.manual_seed(0)
    register = None
    for t in range(1, 6):
        register = pushed(register, 1e-9 * torch.randn(4, 3, 5, 5), decay)
        assert (register.flatten(1).norm(dim=1) <= sum(decay**i for i in range(t)) + 1e-5).all()
    same = pushed(pushed(None, torch.ones(1, 4), decay), torch.ones(1, 4), decay)
    assert same.norm().item() == pytest.approx(1 + decay, rel=1e-6)  # pushes of one direction reach the bound


def test_a_sample_without_gradient_gets_no_push():
    register = pushed(None, torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 1.0)
    assert torch.allclose(register, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


def test_noise_follows_the_gradient_at_its_site(batch):
    """Linear network, cross-entropy: after one pass the noise at a site is (eps / k) g / ||g|| of the site's g."""
    torch.manual_seed(1)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.Linear(5, 3))
    model = Classifier(body)
    registers = {}
    logits, leaves = with_noise(model, batch.x, ("input", "1"), registers, 0.5)
    torch.nn.functional.cross_entropy(logits, batch.y).backward()
    at_logits = (logits.softmax(1) - torch.eye(3)[batch.y]).detach()
    expected = {"1": at_logits @ body[2].weight, "input": at_logits @ body[2].weight @ body[1].weight}
    for name, leaf in leaves.items():
        registers[name] = pushed(None, leaf.grad, 1.0)
        unit = expected[name] / expected[name].norm(dim=1, keepdim=True)
        assert torch.allclose(registers[name].flatten(1), unit, atol=1e-5)
    noisy, _ = with_noise(model, batch.x, ("input", "1"), registers, 0.5)
    by_hand = body[2](body[1](batch.x.flatten(1) + 0.5 * registers["input"].flatten(1)) + 0.5 * registers["1"])
    assert torch.allclose(noisy, by_hand, atol=1e-5)


def test_each_pass_on_a_batch_meets_more_noise_and_a_higher_loss(batch):
    method, model = prepared({"sites": "all"})
    losses = list(updates(method, model.eval(), batch))
    assert len(losses) == 3
    assert losses[0] < losses[1] < losses[2]


def test_the_clean_phase_is_plain_training(batch):
    import dataclasses

    method, model = prepared()
    start = dataclasses.replace(batch, progress=0.1)
    (loss,) = updates(method, model.eval(), start)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(model(batch.x), batch.y).item(), rel=1e-6)


def test_schedules_are_shares_of_the_training():
    clean, soft, hard = Phase(0, 0, 1), Phase(0.3, 0.7, 3), Phase(1, 1, 3)
    official = [phase("official", epoch / 120) for epoch in (0, 39, 40, 59, 60, 79, 80, 99, 100, 119)]
    assert official == [clean, clean, soft, soft, hard, hard, soft, soft, clean, clean]
    assert [phase("ours", p) for p in (0.0, 0.33, 0.34, 1.0)] == [clean, clean, hard, hard]


@pytest.mark.parametrize(
    ("sites", "layers", "names"),
    [
        ("shallow", (), ("input", "0", "5")),
        ("all", (), ("input", "0", "5")),  # the last layer is the output
        ("mvl", ("2",), ("0",)),  # the activation's own convolution
        ("mvl", ("6", "2"), ("0", "5")),
        ("input", (), ("input",)),
        ("input+5", (), ("input", "5")),
        ("[05]", (), ("0", "5")),
    ],
)
def test_sites(sites, layers, names):
    method, _ = prepared({"sites": sites}, layers=layers)
    assert method.names == names


def test_deep_networks_are_shallow_in_their_first_four_layers():
    layers = [layer for _ in range(7) for layer in (torch.nn.Linear(6, 6), torch.nn.ReLU())]
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6), *layers)
    assert prepared(model=Classifier(body))[0].names == ("input", "1", "2", "4", "6")


def test_attention_is_passed_over():
    class Transformer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.rows(x.squeeze(1))
            return self.head(self.attention(x, x, x)[0].mean(1))

    assert prepared({"sites": "all"}, Classifier(Transformer()))[0].names == ("input", "rows")


def test_a_base_makes_the_examples_and_the_loss(batch):
    method, model = prepared({"base": "trades", "sites": "input"})
    losses = list(updates(method, model.eval(), batch))
    at = make_method("at", {"base": "trades"}, layers=())
    expected = at.losses(model, batch, at.objective.examples(model, batch)).mean().item()
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[1] > losses[0]


@pytest.mark.parametrize(
    ("options", "changes", "says"),
    [
        ({"schedule": "theirs"}, {}, "unknown schedule of anp 'theirs'"),
        ({"base": "pdg"}, {}, "did you mean 'pgd'"),
        ({"base": "free"}, {}, "use base=pgd"),
        ({"k": "3"}, {}, "unknown option 'k'"),
        ({"sites": "input+mvl"}, {}, "sites=mvl cannot be combined"),
        ({}, {"awp": 0.01}, "not with anp; leave it out"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, changes, says):
    with pytest.raises(UsageError, match=says):
        make_method("anp", options, layers=(), **changes)


def test_a_site_that_is_not_there_is_told():
    with pytest.raises(LayerError, match="conv9"):
        prepared({"sites": "conv9"})


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_SAVE_EVERY", 0.0)
    options, plan = {"base": "pgd"}, recipe(epochs=3)
    whole = run(make_job(tmp_path, *prepared(options), recipe=plan))
    with pytest.raises(KeyboardInterrupt):  # in the second epoch: six updates an epoch
        run(make_job(tmp_path, *prepared(options), recipe=plan), stop_after=9)
    resumed = run(make_job(tmp_path, *prepared(options, small_network(seed=1)), resume=True, recipe=plan))
    assert same(whole.last, resumed.last)


@pytest.mark.parametrize(
    ("schedule", "epochs", "first"),
    [("ours", 1, 1), ("ours", 2, 1), ("ours", 3, 2), ("official", 4, 2), ("ours", 6, 3)],
)
def test_an_epoch_without_noise_is_not_handed_out(schedule, epochs, first, tmp_path, monkeypatch):
    monkeypatch.setattr(NoisePropagation, "score", lambda self, diagnosis: 0.0)  # of equal epochs the first is taken
    method, model = prepared({"schedule": schedule})
    assert run(make_job(tmp_path, method, model, recipe=recipe(epochs=epochs, warmup=0.0))).best_epoch == first


def test_an_epoch_leaves_nothing_behind_and_moves_the_weights(tmp_path):
    method, model = prepared({"sites": "all", "base": "pgd"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = run(make_job(tmp_path, method, model, recipe=recipe(epochs=3)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert trained.last.keys() == before.keys()
    assert not torch.equal(before["body.0.weight"], trained.last["body.0.weight"])
    assert all(math.isfinite(result.loss) for result in trained.history)
