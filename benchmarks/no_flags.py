"""Checkpoints of other people, audited from the file and the data alone: found, asked about, refused, or wrong.

    LSA_DATA_ROOT=... python -m benchmarks.no_flags [--only WORD ...] > benchmarks/results/no_flags.md

The shared checkpoints, and networks of other kinds that are trained here for some seconds on 6,000 images of MNIST. The truth
is the number of test images that the network itself, with its own normalisation, classifies correctly: in the first rows as
measured with the published code. "near" is an accuracy that differs by at most 0.2 points, "wrong" by more. Seconds are process
time until the network is known, with one thread.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.datasets import MNIST

from lsa_cli.auditing.network import Network, open_network
from lsa_cli.errors import LsaError
from lsa_cli.models.classifier import Normalize, predicted_class
from lsa_cli.settings import settings_from
from tests.concatenating_networks import fires, grown
from tests.test_foreign_checkpoints import CASES

HEAD = "| file | outcome | clean | truth | seconds | what it said |\n" + "|---" * 6 + "|"
NEAR = 0.002
MNIST_NORM, HALF = ((0.1307,), (0.3081,)), ((0.5,), (0.5,))


class Named(nn.Module):
    """conv1, conv2, fc1, fc2 with functional activations and pools, as in many courses."""

    def __init__(self, activation, pool, padding=0, kernel=5):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, kernel, padding=padding), nn.Conv2d(10, 20, kernel, padding=padding)
        side = ((28 - kernel + 1 + 2 * padding) // 2 - kernel + 1 + 2 * padding) // 2
        self.fc1, self.fc2 = nn.Linear(20 * side * side, 50), nn.Linear(50, 10)
        self.activation, self.pool = activation, pool

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = self.pool(self.activation(conv(x)), 2)
        return self.fc2(self.activation(self.fc1(x.flatten(1))))


class Split(nn.Module):
    """features and classifier."""

    def __init__(self, features, classifier):
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def block(inner, outer):
    return [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(), nn.MaxPool2d(2)]


def large_pool(inner, outer):
    return [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]


F = nn.functional
# name -> network, normalisation of its training
KINDS = {
    "conv1 conv2 fc1 fc2, ReLU, mnist": (lambda: Named(F.relu, F.max_pool2d), MNIST_NORM),
    "the same, none": (lambda: Named(F.relu, F.max_pool2d), None),
    "the same, tanh, average pools, 0.5/0.5": (lambda: Named(torch.tanh, F.avg_pool2d), HALF),
    "the same, ELU, padding 1": (lambda: Named(F.elu, F.max_pool2d, 1, 3), MNIST_NORM),
    "MLP 784-128-64-10, ReLU, 0.5/0.5": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
        HALF,
    ),
    "MLP with BatchNorm and Dropout": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)
        ),
        MNIST_NORM,
    ),
    "features and classifier with BatchNorm": (
        lambda: Split(nn.Sequential(*block(1, 8), *block(8, 16)), nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))),
        None,
    ),
    "strides of 2, GELU": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(1568, 10)
        ),
        None,
    ),
    "global average, LeakyReLU(0.1)": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1),
            nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(32, 10),
        ),
        MNIST_NORM,
    ),
    "three pools of 3 with a stride of 2": (
        lambda: nn.Sequential(*large_pool(1, 8), *large_pool(8, 16), *large_pool(16, 24), nn.Flatten(), nn.Linear(384, 10)),
        MNIST_NORM,
    ),
    "dense layers": (grown, MNIST_NORM),
    "fire modules": (fires, MNIST_NORM),
    "softmax regression": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), MNIST_NORM),
}  # fmt: skip


def images(root: Path, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    found = MNIST(root, train=train)
    return found.data[:, None].float() / 255, found.targets


def trained(name: str, root: Path, path: Path) -> int:
    """Train a network of KINDS, save its weights, and count the test images that it classifies correctly."""
    make, normalization = KINDS[name]
    torch.manual_seed(0)
    body = make()
    network = nn.Sequential(nn.Identity() if normalization is None else Normalize(*normalization), body)
    x, y = (tensor[:6000] for tensor in images(root, train=True))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(4):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    network.eval()
    torch.save(body.state_dict(), path)
    x, y = images(root, train=False)
    with torch.no_grad():
        return sum(int((network(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))


def count_right(network: Network) -> int:
    """Test images that the network classifies correctly."""
    network.classifier.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(network.data), 500):
            rows = range(start, min(start + 500, len(network.data)))
            x = network.data.read(np.array(rows))
            right += int(
                (predicted_class(network.classifier(x)) == torch.from_numpy(network.labels[start : rows.stop])).sum()
            )
    return right


def row(name: str, path: Path, data: str, truth: int) -> str:
    said: list[str] = []
    started = time.process_time()
    try:
        network = open_network(path, settings_from({"data": data}), {}, say=said.append)
    except LsaError as error:
        spent, text = time.process_time() - started, str(error)
        asked = "do not decide" in text or "several networks are as good" in text
        return f"| {name} | {'asked' if asked else 'refused'} | | {truth / 100:.2f} | {spent:.0f} | {text[-300:]} |"
    spent, right = time.process_time() - started, count_right(network)
    off = abs(right - truth) / len(network.data)
    outcome = "found" if right == truth else "near" if off <= NEAR else "wrong"
    return f"| {name} | {outcome} | {right / 100:.2f} | {truth / 100:.2f} | {spent:.0f} | {'; '.join(said)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose name contains one of these words")
    words = parser.parse_args().only
    root = Path(os.environ["LSA_DATA_ROOT"])
    torch.set_num_threads(1)
    sys.stdout.write(f"{HEAD}\n")
    for file, network, _, data, truth, more in CASES:
        if network is not None and not more and any(word in file for word in words):
            sys.stdout.write(row(file, root / "checkpoints" / file, data.format(root=root), truth) + "\n")
            sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        for name in KINDS:
            if any(word in name for word in words):
                path = Path(folder) / "net.pt"
                truth = trained(name, root, path)
                sys.stdout.write(row(name, path, f"torchvision:MNIST?root={root}", truth) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
