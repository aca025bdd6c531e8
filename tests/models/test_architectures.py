"""Networks by name, and weights alone matched to them."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lsa_cli.errors import CheckpointError, UsageError
from lsa_cli.models.architectures import build_architecture, parse_arguments, runs_user_code
from lsa_cli.models.checkpoint import load_classifier, read_checkpoint


def load(path, arch, **arguments):
    return load_classifier(
        read_checkpoint(path), arch=arch, arch_args=arguments, normalization=None, class_names=None, output="logits"
    )


def small(name):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=5)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "resnet18"])
@pytest.mark.parametrize("form", ["torch", "safetensors", "wrapped"])
def test_the_number_of_classes_is_read_from_the_weights_in_every_format(tmp_path, name, form):
    """safetensors keeps the names in another order, so the last tensor of the file is not the last layer."""
    network, path = small(name), tmp_path / "weights"
    if form == "safetensors":
        save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, path)
    else:
        prefix = "module." if form == "wrapped" else ""
        torch.save({prefix + key: tensor for key, tensor in network.state_dict().items()}, path)
    classifier, notes = load(path, f"torchvision:{name}")
    assert any("num_classes=5" in note for note in notes)
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in classifier.body.state_dict().items())


def test_weights_of_another_network_do_not_fit_and_are_counted(tmp_path):
    torch.save(small("squeezenet1_1").state_dict(), tmp_path / "weights")
    with pytest.raises(CheckpointError, match=r"do not fit: \d+ missing .*unexpected"):
        load(tmp_path / "weights", "torchvision:resnet18")


def test_weights_alone_need_an_architecture(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights")
    with pytest.raises(UsageError, match="name the network with --arch"):
        load(tmp_path / "weights", None)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("lsa:mnist-cn", "did you mean 'mnist-cnn'"),
        ("torchvision:resnet81", "did you mean 'resnet"),
        ("lsa_cli.nothing:build", "cannot import"),
        ("math:pi", "not a function"),
        ("math:floor", "failed when called with no arguments"),
        ("os:getcwd", "returned str, not a torch.nn.Module"),
    ],
)
def test_names_that_build_no_network(spec, says):
    with pytest.raises(UsageError, match=says):
        build_architecture(spec, {})


@pytest.mark.parametrize(
    ("spec", "code"),
    [("lsa:mnist-cnn", False), ("torchvision:vgg11", False), ("a.b:c", True), ("evil.py:f", True), ("x", True)],
)
def test_only_networks_that_ship_run_no_user_code(spec, code):
    assert runs_user_code(spec) == code


def test_arguments_are_plain_values_and_never_expressions():
    assert parse_arguments(["a=1", "b='x'", "c=word", "d=true", "e=[1, 2]", "f=none", "g=__import__('os')"]) == {
        "a": 1, "b": "x", "c": "word", "d": True, "e": [1, 2], "f": None, "g": "__import__('os')",
    }  # fmt: skip
    with pytest.raises(UsageError, match="name=value"):
        parse_arguments(["depth"])
