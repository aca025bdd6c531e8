"""Self-gradient networks in training."""

import pytest
import torch

from lsa_cli.hardening import trainer as trainer_module
from lsa_cli.models.surgery import operate
from tests.hardening.conftest import make_job, make_method, run, same, small_network


def job(folder, options=None, seed=0, **changes):
    method, model = make_method("self-gradient", options), small_network(seed)
    method.prepare(model)
    return make_job(folder, method, model, **changes)


@pytest.mark.parametrize("options", [{}, {"base": "mart", "sites": "6"}], ids=["pgd", "mart"])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(options, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_SAVE_EVERY", 0.0)
    whole = run(job(tmp_path, options))
    with pytest.raises(KeyboardInterrupt):
        run(job(tmp_path, options), stop_after=9)
    resumed = run(job(tmp_path, options, seed=1, resume=True))
    assert same(whole.last, resumed.last)
    assert same(whole.best, resumed.best)


def test_the_record_says_when_the_network_returns_probabilities():
    """And of logits nothing, so that the file is what it always was."""
    for output, says in (("logits", {}), ("probabilities", {"returns": "probabilities"})):
        method, model = make_method("self-gradient", {"sites": "6"}), small_network()
        model.output = output
        method.prepare(model)
        assert method.surgeries == [{"kind": "self-gradient", "sites": {"6": [8]}, **says}]
        assert model.body.returns == output


def test_the_maps_move_and_nothing_stays_behind(tmp_path):
    training = job(tmp_path)
    trained = run(training)
    assert all(tensor.any() for name, tensor in trained.last.items() if ".maps." in name)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in training.model.modules())
    # What the file would say of the surgery makes a network that the weights fit.
    rebuilt = operate(small_network().body, training.method.surgeries)
    rebuilt.load_state_dict({name.removeprefix("body."): tensor for name, tensor in trained.last.items()})
    x = torch.rand(4, 1, 8, 8)
    training.model.load_state_dict(trained.last)
    assert torch.equal(rebuilt.eval()(x), training.model.eval()(x))
