"""What the networks of the zoo share: an entry of the table, the sample networks, and their data."""

import copy
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lsa_cli.models.architectures import build_architecture

ROOT = Path(__file__).parent.parent.parent
SAMPLES = ROOT / "sample_models"
Model = Callable[[torch.Tensor], torch.Tensor]


class Defence(nn.Module):
    """A network around another one. `bare` is what an attack written for it differentiates: by default the other network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def bare(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def surrogates(self) -> Sequence[Model]:
        return [self.bare]


# ---- how the class that a network predicts is read: (network, images) -> (N,) classes -------------------------


def at_once(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(x).argmax(1)


def fresh(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """By a copy that has not answered anything yet."""
    return at_once(copy.deepcopy(network), x)


def alone(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One image in each pass, as in use."""
    return torch.cat([at_once(network, image) for image in x.split(1)])


def mostly(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The class that most of nine random passes predict."""
    return torch.stack([at_once(network, x) for _ in range(9)]).mode(0).values


@dataclass(frozen=True)
class Entry:
    """A network of the zoo: `build` makes it, in evaluation mode, for images of the data set `data` in [0, 1].

    decide: see above. saved: how it is audited: "" in memory, "script" as TorchScript, "trace" as a trace, "pt2" as an
    exported program.
    """

    name: str
    build: Callable[[], nn.Module]
    eps: float
    norm: str = "linf"
    data: str = "mnist"
    decide: Callable[[nn.Module, torch.Tensor], torch.Tensor] = at_once
    saved: str = ""

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()

    def samples(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = DATA[self.data]()
        return x[:n], y[:n]


# ---- data ------------------------------------------------------------------------------------------------


def _npz(name: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(SAMPLES / name) as archive:
        x, y = archive[f"x_{split}"], archive[f"y_{split}"]
    images = torch.from_numpy(x)[:, None].float() / 255 if x.dtype == np.uint8 else torch.from_numpy(x)
    return images, torch.from_numpy(y.astype(np.int64))


@cache
def mnist(split: str = "test") -> tuple[torch.Tensor, torch.Tensor]:
    return _npz("mnist.npz", split)


@cache
def moons() -> tuple[torch.Tensor, torch.Tensor]:
    return _npz("moons.npz", "test")


def data_root() -> Path | None:
    """The folder of data sets and checkpoints that are not in this repository."""
    folder = os.environ.get("LSA_DATA_ROOT")
    return Path(folder) if folder else None


@cache
def fashion() -> tuple[torch.Tensor, torch.Tensor]:
    from torchvision.datasets import FashionMNIST

    data = FashionMNIST(data_root(), train=False)
    return data.data[:, None] / 255, data.targets


@cache
def cifar() -> tuple[torch.Tensor, torch.Tensor]:
    root = data_root()
    assert root is not None
    with (root / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        batch = pickle.load(file, encoding="latin1")
    return torch.from_numpy(batch["data"].reshape(-1, 3, 32, 32)) / 255, torch.tensor(batch["labels"])


DATA = {"mnist": mnist, "moons": moons, "fashion": fashion, "cifar": cifar}


# ---- sample networks ---------------------------------------------------------------------------------------


class Normalized(nn.Module):
    """A network of images in [0, 1] that normalises them first."""

    def __init__(self, body: nn.Module, mean: Sequence[float] = (0.1307,), std: Sequence[float] = (0.3081,)) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body((x - self.mean) / self.std)


def _sample(name: str) -> nn.Module:
    body = build_architecture("lsa:mnist-cnn", {})
    body.load_state_dict(torch.load(SAMPLES / f"{name}.pt", weights_only=True)["state_dict"])
    return Normalized(body).eval()


def weak() -> nn.Module:
    """The normally trained sample network."""
    return _sample("mnist_cnn")


def robust() -> nn.Module:
    """The adversarially trained sample network."""
    return _sample("mnist_cnn_at")
