"""Networks that were trained on images resized to 32 x 32 pixels."""

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli.models.rebuilding.blocks import read_structures
from lsa_cli.models.rebuilding.search import Search
from lsa_cli.models.rebuilding.sizes import fits_resized
from tests.fitting import fitted


def lenet(padding):
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(200, 10),
    )  # fmt: skip


@pytest.mark.parametrize(("padding", "size"), [pytest.param(2, 28, marks=pytest.mark.slow), (0, 32)])
def test_weights_that_fit_two_sizes_are_doubted_at_the_one_they_were_not_trained_at(padding, size):
    torch.manual_seed(0)
    images = np.load("sample_models/mnist.npz")
    x = torch.from_numpy(images["x_test"][:1000]).float().reshape(-1, 1, 28, 28) / 255
    y = torch.from_numpy(images["y_test"][:1000].astype(np.int64))
    seen = nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    network = fitted(lenet(padding), seen, y, 80)
    tensors = network.state_dict()
    structures = read_structures({name: tuple(tensor.shape) for name, tensor in tensors.items()}, 1)
    none, wide = {"--normalize none": None}, {"--normalize none --input-range 0,255": ((0.0,), (1 / 255,))}
    search = Search(
        structures, tensors, lambda start, stop: (x[start:stop], y[start:stop]), len(x), none if size == 28 else wide, lambda option: 0.0
    )  # fmt: skip
    outcome = search.best()
    search.normalizations = none | wide  # at the other size another one than that of the best network may be right
    found = fits_resized(search, outcome)
    assert (found is not None) == (size == 32)
    if found is not None:
        assert found.accuracy > outcome.best.accuracy
