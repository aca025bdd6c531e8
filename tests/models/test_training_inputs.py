"""What BatchNorm remembers of the normalisation of its training, against networks whose statistics are made here."""

import pytest
import torch
from torch import nn

from lsa_cli.models.classifier import Classifier, parse_normalize
from lsa_cli.models.normalizations import usual_normalizations
from lsa_cli.models.training_inputs import moved, remembered

NAMES = ("--normalize cifar10", "--normalize imagenet", "--normalize 0.5/0.5", "--normalize none")


@pytest.fixture(scope="module")
def images():
    """Smooth colour images: the brightness of pixels varies within an image and between images."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1200, 3, 5, 5, generator=generator)
    return nn.functional.interpolate(coarse, (32, 32), mode="bicubic", align_corners=False).clamp(0, 1)


def network(images, option, shift=0):
    """A network whose BatchNorm has seen images with this normalisation, moved by up to `shift` pixels."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(8192, 4)
    )
    classifier = Classifier(body, parse_normalize(option.removeprefix("--normalize ")))
    body.train()
    for _ in range(2):
        for part in moved(images, shift)[torch.randperm(len(images))].split(100):
            body[:2](classifier.prepare(part))
    body.eval()
    return Classifier(body)


@pytest.mark.parametrize("shift", [0, 4])
@pytest.mark.parametrize("option", NAMES)
def test_the_normalisation_of_the_training_is_found_with_other_images(images, option, shift):
    tried = usual_normalizations(3)
    assert remembered(network(images[:800], option, shift), tried, images[800:]) == option


def test_nothing_is_said_where_no_normalisation_fits(images):
    tried = usual_normalizations(3)
    noisy = (images[:800] + 0.2 * torch.randn(800, 3, 32, 32)).clamp(0, 1)
    assert remembered(network(noisy, "--normalize cifar10"), tried, images[800:]) is None
    left_out = {name: one for name, one in tried.items() if name != "--normalize cifar10"}
    assert remembered(network(images[:800], "--normalize cifar10"), left_out, images[800:]) is None


def test_nothing_is_said_where_two_fit(images):
    classifier = network(images[:800], "--normalize cifar10")
    tried = {"one": parse_normalize("cifar10"), "other": parse_normalize("0.491,0.483,0.446/0.247,0.244,0.261")}
    assert remembered(classifier, tried, images[800:]) is None
    assert remembered(classifier, {"one": tried["one"], "far": None}, images[800:]) == "one"


def test_the_network_is_left_as_it_was(images):
    classifier = network(images[:800], "--normalize cifar10")
    before = {name: item.clone() for name, item in classifier.state_dict().items()}
    remembered(classifier, usual_normalizations(3), images[800:])
    assert all(torch.equal(item, before[name]) for name, item in classifier.state_dict().items())
    assert not classifier.body[1]._forward_pre_hooks


def test_a_network_without_batchnorm_remembers_nothing(images):
    body = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    assert remembered(Classifier(body), usual_normalizations(3), images) is None
