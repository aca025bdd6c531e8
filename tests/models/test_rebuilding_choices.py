"""What a reconstruction finds beside the usual chain, and the choices that the user states."""

import itertools
import shlex

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli.auditing.network import open_network
from lsa_cli.errors import UsageError
from lsa_cli.models.rebuilding.geometry import geometries, near
from lsa_cli.models.rebuilding.layers import read_chain
from lsa_cli.settings import settings_from
from tests.fitting import fitted


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)


class ChannelsLast(nn.Module):
    """Flattened as TensorFlow does."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 12, 3, padding=1), nn.Linear(12 * 16, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.fc(x.permute(0, 2, 3, 1).flatten(1))


def keras():
    """BatchNorm behind the activations."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(12), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(), nn.BatchNorm2d(16), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def saved(network, path):
    torch.save(network.state_dict(), path)
    return path


def logits_of(path, data, **settings):
    opened = open_network(path, settings_from(settings), {}, data)
    with torch.no_grad():
        return opened.classifier.eval()(data[0])


@pytest.mark.parametrize("make", [ChannelsLast, keras])
def test_other_orders_of_layers_and_of_channels_are_found(make, digits, tmp_path):
    torch.manual_seed(0)
    network = fitted(make(), *digits, 100)
    path = saved(network, tmp_path / "net.pt")
    found = logits_of(path, digits, arch="lsa:reconstructed", arch_args={"activation": "ReLU"}, normalize="none")
    assert torch.allclose(found, network(digits[0]), atol=1e-4)


def test_another_order_of_the_classes_is_named_with_the_command_and_not_taken(digits, tmp_path):
    torch.manual_seed(0)
    (x, y), outputs = digits, torch.tensor([3, 0, 1, 2, 9, 8, 7, 4, 6, 5])
    network = fitted(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), x, outputs[y], 100)
    path = saved(network, tmp_path / "net.pt")
    np.savez(tmp_path / "digits.npz", x_test=x.numpy(), y_test=y.numpy())
    data = f"npz:{tmp_path}/digits.npz"
    with pytest.raises(UsageError, match="only if its classes are in another order") as refusal:
        open_network(path, settings_from({"data": data}), {})
    words = shlex.split(refusal.value.commands[0])
    assert words == ["lsa", "audit", str(path), "--data", data, "--match-classes", "3,0,1,2,9,8,7,4,6,5"]
    opened = open_network(path, settings_from({"data": data, "match_classes": words[-1]}), {})
    with torch.no_grad():
        answers = opened.classifier(x).argmax(1)
    assert torch.equal(torch.from_numpy(opened.labels), outputs[y])
    assert torch.equal(answers, network(x).argmax(1))


def test_the_activation_that_is_stated_is_the_one_of_the_network(digits, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))
    path = saved(fitted(network, *digits, 60), tmp_path / "net.pt")
    found = logits_of(path, digits, arch="lsa:reconstructed", arch_args={"activation": "GELU"}, normalize="none")
    assert torch.allclose(found, network(digits[0]), atol=1e-4)


@pytest.mark.parametrize("arguments", [{}, {"activation": "gelu"}, {"activation": "GELU", "depth": 3}])
def test_what_cannot_be_stated_of_a_reconstruction_is_refused(arguments, digits, tmp_path):
    path = saved(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"needs --arch-args activation=NAME, with one of ReLU, "):
        open_network(path, settings_from({"arch": "lsa:reconstructed", "arch_args": arguments}), {}, digits)


def test_geometries_near_another_one_are_consistent_and_differ_at_two_convolutions_at_most():
    network = nn.Sequential(*(nn.Conv2d(a, b, 3) for a, b in itertools.pairwise((1, 8, 8, 16))), nn.Linear(16 * 49, 10))
    layers = read_chain({name: tuple(item.shape) for name, item in network.state_dict().items()}, 1)
    every = list(geometries(layers, (28, 28)))
    found = near(layers, (28, 28), every[3])
    assert found
    by_steps = {one.steps: one for one in every}
    for one in found:
        assert sum(a != b for a, b in zip(one.steps, every[3].steps, strict=True)) in (1, 2)
        assert by_steps[one.steps].sizes == one.sizes
        assert by_steps[one.steps].cost == pytest.approx(one.cost)


@pytest.mark.parametrize("images", [200, 400])
def test_normalisations_that_few_easy_images_cannot_tell_apart_are_asked_about(images, digits, tmp_path):
    """All answers are right with each of them, but with another scale an attack of the same radius does something else."""
    torch.manual_seed(0)
    x, y = (part[:images] for part in digits)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    path = saved(fitted(network, x, y, 100), tmp_path / "net.pt")
    np.savez(tmp_path / "few.npz", x_test=x.numpy(), y_test=y.numpy())
    with pytest.raises(UsageError, match="several networks are as good") as refusal:
        open_network(path, settings_from({"data": f"npz:{tmp_path}/few.npz"}), {})
    stated = [command.partition("--normalize ")[2] for command in refusal.value.commands[:-1]]
    assert {"none", "mnist"} <= set(stated)


class Mirrored(nn.Module):
    """Does between its layers what no weight shows."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = nn.functional.relu(self.conv1(x)).flip(3)
        return self.fc(nn.functional.max_pool2d(nn.functional.relu(self.conv2(x)), 4).flatten(1))


def test_a_network_far_from_a_minimum_of_its_loss_is_not_taken(digits, tmp_path):
    torch.manual_seed(0)
    x, y = digits
    path = saved(fitted(Mirrored(), x[:1000], y[:1000], 120), tmp_path / "net.pt")
    parts = {"x_train": x[:1000], "y_train": y[:1000], "x_test": x[1000:], "y_test": y[1000:]}
    np.savez(tmp_path / "digits.npz", **{name: part.numpy() for name, part in parts.items()})
    with pytest.raises(UsageError, match="the slope of its loss is too steep for the end of a training"):
        open_network(path, settings_from({"data": f"npz:{tmp_path}/digits.npz"}), {})
