"""Networks that take their images in another layout, or one at a time."""

import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.auditing.network import open_network
from lsa_cli.errors import DataError
from lsa_cli.settings import settings_from

X = torch.rand(40, 3, 6, 8)
Y = X.mean((2, 3)).argmax(1)


class Means(nn.Module):
    """Right on all images: the brightest channel."""

    def __init__(self, forward):
        super().__init__()
        self.scale, self._forward = nn.Conv2d(3, 3, 1, groups=3, bias=False), forward
        nn.init.ones_(self.scale.weight)

    def forward(self, x):
        return self._forward(self, x)


def channels_last(net, x):
    return net.scale(x.permute(0, 3, 1, 2)).mean((2, 3))


def fixed_batch(net, x):
    return net.scale(x).view(1, 3, 48).mean(2)


def squeezed(net, x):
    return net.scale(x).squeeze(0).view(3, 48).mean(1)


def unbatched_scores(net, x):
    return torch.cat(
        [net.scale(x).mean((0, 2, 3)), torch.zeros(1)]
    )  # (4,): three scores could be those of three images


@pytest.mark.parametrize(
    ("forward", "layout", "alone"),
    [
        (channels_last, "NHWC", False),
        (fixed_batch, "NCHW", True),
        (squeezed, "NCHW", True),
        (unbatched_scores, "NCHW", True),
        (lambda net, x: fixed_batch(net, x.permute(0, 3, 1, 2)), "NHWC", True),
    ],
)
def test_the_layout_and_the_number_of_images_are_found_and_named(forward, layout, alone):
    network = open_network(Means(forward), settings_from({}), {}, (X, Y))
    classifier = network.classifier.eval()
    assert (classifier.layout, classifier.alone) == (layout, alone)
    assert torch.equal(classifier(X).argmax(1), Y)
    assert any("height, width, channels" in note for note in network.notes) == (layout == "NHWC")
    assert any("one image at a time" in note for note in network.notes) == alone
    one = X[:4].clone().requires_grad_()
    (slope,) = torch.autograd.grad(classifier(one)[:, 0].sum(), one)
    assert torch.allclose(slope[:, 0], torch.full((4, 6, 8), 1 / 48))
    assert not slope[:, 1:].any()


def test_a_network_that_takes_one_image_at_a_time_is_audited():
    report = audit(Means(fixed_batch), data=(X, Y), attack="fgsm", noise="none", eps=0.01, limit=20)
    assert report.verdict.clean.value == 1.0


def test_scores_that_are_not_those_of_an_image_are_not_put_together():
    """(2, 3) for each image: as two images."""
    with pytest.raises(Exception, match=r"a classifier returns|the network cannot take"):
        open_network(Means(lambda net, x: net.scale(x).view(-1, 3, 24).mean(2)), settings_from({}), {}, (X, Y))


def test_images_of_another_size_are_still_refused():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 3))
    with pytest.raises(DataError, match="the network cannot take inputs of shape"):
        open_network(body, settings_from({}), {}, (X, Y))
