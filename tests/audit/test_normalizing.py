"""The normalisation that a network was trained with, found on labelled images."""

import json

import pytest
import torch
from torch import nn

from lsa_cli.auditing.network import open_network
from lsa_cli.errors import UsageError
from lsa_cli.models.classifier import Normalize, normalization_of, parse_normalize
from lsa_cli.models.normalizations import normalizations_to_try
from lsa_cli.settings import settings_from
from tests.fitting import fitted


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)


def trained(digits, tmp_path, normalization, **beside):
    torch.manual_seed(0)
    x, y = digits
    shift = nn.Identity() if normalization is None else Normalize(*normalization)
    body = fitted(network(), shift(x), y, 100)
    path = tmp_path / "net.pt"
    torch.save({**body.state_dict(), **beside}, path)
    return path


def opened(path, data, **settings):
    lines = []
    settings = settings_from({"arch": f"{__file__}:network", **settings})
    return open_network(path, settings, {}, data, lines.append), lines


@pytest.mark.parametrize("text", ["none", "0.5/0.5"])
def test_the_trained_one_is_taken_and_told(digits, tmp_path, text):
    truth = parse_normalize(text)
    x, y = digits
    path = trained(digits, tmp_path, truth)
    network, lines = opened(path, (x, y))
    assert normalization_of(network.classifier) == (None if truth is None else ([0.5], [0.5]))
    assert any(line.startswith(f"normalisation {text}: clean 100.0% of ") and "(next: " in line for line in lines)
    assert set(lines) <= set(network.notes)
    assert not network.warnings


def test_the_user_is_obeyed(digits, tmp_path):
    x, y = digits
    network, lines = opened(trained(digits, tmp_path, None), (x, y), normalize="0.5/0.5")
    assert normalization_of(network.classifier) == ([0.5], [0.5])
    assert not lines


def test_auto_leaves_no_input_range_to_give(digits, tmp_path):
    with pytest.raises(UsageError, match="leave out --input-range"):
        opened(trained(digits, tmp_path, None), digits, normalize="auto", input_range="0,255")


def test_too_few_images_do_not_decide(digits, tmp_path):
    x, y = digits
    with pytest.raises(UsageError, match=r"30 images do not decide .*% of 30, .*such as --normalize"):
        opened(trained(digits, tmp_path, parse_normalize("0.5/0.5")), (x[900:930] * 0.3, y[900:930]))


def test_a_network_that_guesses_gets_images_as_they_are_and_a_warning(digits, tmp_path):
    x, y = digits
    torch.save(network().state_dict(), tmp_path / "net.pt")
    found, lines = opened(tmp_path / "net.pt", (x[:300], y[:300].roll(1)))
    assert normalization_of(found.classifier) is None
    assert [warning.code for warning in found.warnings] == ["normalization-assumed"]
    assert "better than guessing" in found.warnings[0].message
    assert not lines


def test_mean_and_std_in_the_file_are_taken_unless_another_one_is_better(digits, tmp_path):
    x, y = digits
    names = ("normalizer.new_mean", "normalizer.new_std")
    truth = parse_normalize("0.45/0.4")
    stated = dict(zip(names, (torch.full((1, 1, 1), v) for v in (0.45, 0.4)), strict=True))
    path = trained(digits, tmp_path, truth)
    weights = torch.load(path)
    torch.save({**{f"model.{name}": item for name, item in weights.items()}, **stated}, path)
    found, _ = opened(path, (x, y))
    mean, std = normalization_of(found.classifier)
    assert (mean, std) == (pytest.approx([0.45]), pytest.approx([0.4]))
    wrong = dict(zip(names, (torch.full((1, 1, 1), v) for v in (-3.0, 0.1)), strict=True))
    torch.save({**{f"model.{name}": item for name, item in weights.items()}, **wrong}, path)
    with pytest.raises(UsageError, match=r"the file states the normalisation -3/0\.1, and another one is better"):
        opened(path, (x, y))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_configuration_beside_the_file_is_taken_unless_another_one_is_better(digits, tmp_path, name):
    x, y = digits
    path = trained(digits, tmp_path, parse_normalize("0.45/0.4"))
    (tmp_path / name).write_text(json.dumps({"image_mean": [0.45], "image_std": [0.4]}))
    found, lines = opened(path, (x, y))
    assert normalization_of(found.classifier) == (pytest.approx([0.45]), pytest.approx([0.4]))
    assert any(f"stated in {name}" in line for line in lines)
    (tmp_path / name).write_text(json.dumps({"mean": -3, "std": 0.1}))
    with pytest.raises(UsageError, match=rf"{name} states the normalisation -3/0\.1, and another one is better"):
        opened(path, (x, y))
    (tmp_path / name).write_text('{"mean": "none", "std": [0, 1, 2]}')  # no numbers: as if it were not there
    assert not any("stated" in line for line in opened(path, (x, y))[1])


def test_grey_images_in_three_channels_have_the_normalisations_of_grey_ones():
    torch.manual_seed(0)
    colour = torch.rand(50, 3, 4, 4)
    grey = normalizations_to_try(colour[:, :1].expand(-1, 3, -1, -1), None)
    assert {"--normalize mnist", "--normalize imagenet", "--normalize 0.5/0.5"} <= set(grey)
    assert "--normalize cifar10" not in grey
    assert "--normalize mnist" not in normalizations_to_try(colour, None)
