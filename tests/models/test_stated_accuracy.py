"""A stated accuracy that only one of several networks has."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lsa_cli.auditing.network import open_network
from lsa_cli.errors import UsageError
from lsa_cli.models.rebuilding.stated import fitting, nats_of
from lsa_cli.settings import settings_from
from tests.fitting import fitted


@pytest.mark.parametrize(
    ("share", "n", "right", "fit", "near"),
    [
        (0.8421, 10_000, [8421, 8424, 8434], [0], [0]),
        (0.8421, 10_000, [8424, 8421, 8421], [1, 2], [1, 2]),  # two have it
        (0.8421, 10_000, [8421, 8423], [0], [0, 1]),  # another machine may turn one into the other
        (0.843, 10_000, [8430, 8434], [0], [0, 1]),  # 84.3% can be a rounded 84.34%
        (float(torch.tensor(84.21)) / 100, 10_000, [8421, 8424], [0], [0]),  # float32
        (0.9838, 2038, [2005, 2008], [0], [0]),  # 2005 of 2038 are 98.38%
        (0.97366667, 10_000, [9736, 9737], [], [0, 1]),  # no share of 10,000 images
        (0.8421, 60_000, [50_529, 50_526], [1], [0, 1]),  # 84.21% stand for seven numbers of 60,000 images
    ],
)
def test_the_networks_that_have_the_stated_accuracy(share, n, right, fit, near):
    assert fitting(share, n, right) == (fit, near)


def test_what_a_stated_accuracy_is_worth():
    """Two samples of 10,000 images differ by 50 right answers in one standard deviation where half of all are right, times
    the square root of 2; the density at its centre is 1 / (sqrt(2 pi) sigma)."""
    assert nats_of(0.5001, 10_000) == pytest.approx(math.log(math.sqrt(2 * math.pi) * math.sqrt(2) * 50), abs=1e-3)
    assert nats_of(0.9501, 10_000) > nats_of(0.9901, 10_000) > nats_of(0.99, 10_000) > 0
    assert nats_of(1.0, 10_000) == 0.0


def test_the_stated_accuracy_ends_a_doubt_and_another_one_does_not(tmp_path):
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    network = fitted(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ELU(), nn.Linear(16, 10)), x, y, 60)
    right = int((network(x).argmax(1) == y).sum())
    for count in (right - 7, None, right):
        stated = {} if count is None else {"best_acc": 100 * count / len(y)}
        torch.save({"state_dict": network.state_dict(), **stated}, tmp_path / "net.pt")
        lines = []
        if count != right:
            with pytest.raises(UsageError, match="several networks are as good"):
                open_network(tmp_path / "net.pt", settings_from({}), {}, (x, y), lines.append)
            continue
        opened = open_network(tmp_path / "net.pt", settings_from({}), {}, (x, y), lines.append)
        assert torch.allclose(opened.classifier(x).log_softmax(1), network(x).log_softmax(1), atol=1e-4)
        assert f"the file states {100 * right / len(y):.7g}% (best_acc), which only this one of 2 networks" in lines[0]
