"""CLAT: the criticality of layers, which of them train, and the choice anew."""

import pytest
import torch

from lsa_cli.errors import UsageError
from lsa_cli.hardening.clat import criticality
from lsa_cli.models.classifier import Classifier
from tests.hardening.conftest import make_job, make_method, recipe, run, same, small_network


def factors(*each):
    """A chain of linear layers that multiply three numbers by these factors."""
    layers = [torch.nn.Linear(3, 3, bias=False) for _ in each]
    for layer, factor in zip(layers, each, strict=True):
        with torch.no_grad():
            layer.weight.copy_(factor * torch.eye(3))
    return Classifier(torch.nn.Sequential(*layers))


def test_the_criticality_of_a_layer_that_multiplies_is_the_square_of_its_factor():
    x = torch.rand(4, 3)
    found = criticality(factors(2.0, 0.5, 3.0, 1.0), ("0", "1", "2"), x, x + 0.1)
    assert found == pytest.approx({"0": 4.0, "1": 0.25, "2": 9.0}, rel=1e-4)


def changed(before, after):
    return {name.rpartition(".")[0] for name in after if not torch.equal(before[name], after[name])}


def test_only_the_critical_layer_moves_and_statistics_of_frozen_layers_stay(tmp_path):
    """The network has the layers 0 (convolution) and 5 (linear), BatchNorm and an output layer."""
    method, model = make_method("clat", layers=()), small_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = run(make_job(tmp_path, method, model)).last
    assert method.critical in (("0",), ("5",))
    assert changed(before, after) == {f"body.{method.critical[0]}"}


def test_it_trains_the_layer_with_the_largest_criticality(tmp_path):
    """The convolution's weights times 30, behind which BatchNorm divides again: its output moves more than its input."""
    for layer, factor in (("0", 30.0), ("5", 100.0)):
        method, model = make_method("clat", layers=()), small_network()
        with torch.no_grad():
            model.body[int(layer)].weight.mul_(factor)
        run(make_job(tmp_path, method, model, recipe=recipe(epochs=1)))
        assert method.critical == (layer,)


def test_layers_are_chosen_again_after_every_k_epochs(tmp_path):
    """All of the two layers train with share=1; the choice is due in the first batch of epochs 1, 3 and 5."""
    method = make_method("clat", {"every": "2", "share": "1"}, layers=())
    chosen, train = [], method._train
    method._train = lambda names: (chosen.append(tuple(names)), train(names))
    run(make_job(tmp_path, method, recipe=recipe(epochs=5)))
    assert len(chosen) == 3
    assert all(set(names) == {"0", "5"} for names in chosen)


def test_frozen_parameters_are_never_candidates(tmp_path):
    model = small_network()
    method = make_method("clat", {"share": "1"}, layers=())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    job = make_job(tmp_path, method, model, trainable=frozenset({"body.5.weight", "body.7.weight"}))
    assert changed(before, run(job).last) == {"body.5"}
    with pytest.raises(UsageError, match="there is none to train; use --method at"):
        run(make_job(tmp_path, make_method("clat", layers=()), small_network(), trainable=frozenset({"body.7.weight"})))


@pytest.mark.parametrize("options", [{"share": "0"}, {"share": "2"}, {"every": "0"}, {"gamma": "0"}])
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises(UsageError, match=f"clat: {next(iter(options))}="):
        make_method("clat", options, layers=())


def test_without_its_regularizer_it_would_train_other_weights(tmp_path):
    """gamma changes the result: the regularizer is part of the loss."""
    weak, strong = (
        run(make_job(tmp_path, make_method("clat", {"gamma": gamma, "share": "1"}, layers=()), small_network())).last
        for gamma in ("0.001", "100")
    )
    assert not same(weak, strong)
