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
from safetensors.torch import load_file
from torch import nn

from lsa_cli.models.architectures import build_architecture
from sample_models.custom_model import CustomCNN

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


def hashed(x: torch.Tensor, count: int) -> torch.Tensor:
    """(N, ...) -> (N, count) numbers in [0, 1), in float64, that depend on every bit of each input and on nothing else."""
    weight = torch.randint(1, 2**20, (x[0].numel(),), generator=torch.Generator().manual_seed(7))
    key = ((x.detach().flatten(1).double() * 2**20).round().long() * weight).sum(1) % 1_000_003
    return (torch.sin(key[:, None].double() * 0.37 + 1.7 * torch.arange(count)) * 43758.5453).frac().abs()


@dataclass(frozen=True)
class Pair:
    """The networks that defences are built around: normally trained, robust to 0.3, and another normally trained one."""

    weak: Callable[[], nn.Module]
    robust: Callable[[], nn.Module]
    third: Callable[[], nn.Module]


# ---- how the class that a network predicts is read: (network, images) -> (N,) classes -------------------------


def at_once(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(x).argmax(1)


def fresh(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """By a copy that has not answered anything yet."""
    return at_once(copy.deepcopy(network), x)


def forgetting(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """After the network has forgotten all that it was asked."""
    network.forget()
    return at_once(network, x)


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


@cache
def mnist(split: str = "test") -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(SAMPLES / "mnist.npz") as archive:
        x, y = archive[f"x_{split}"], archive[f"y_{split}"]
    return torch.from_numpy(x)[:, None].float() / 255, torch.from_numpy(y.astype(np.int64))


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


DATA = {"mnist": mnist, "fashion": fashion, "cifar": cifar}


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


def custom() -> nn.Module:
    """The residual sample network."""
    body = CustomCNN()
    body.load_state_dict(torch.load(SAMPLES / "custom_cnn.pth", weights_only=True))
    return Normalized(body).eval()


def foreign(network: Callable[[], nn.Module], file: str, *normalization: Sequence[float]) -> nn.Module:
    """A checkpoint of the data root with plain weights."""
    root = data_root()
    assert root is not None
    path = root / "checkpoints" / file
    state = (
        load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    )
    state = state.get("state_dict", state)
    body = network()
    names = body.state_dict()
    found = {
        key.removeprefix("module.").removeprefix("network.").removeprefix("model."): value
        for key, value in state.items()
    }
    body.load_state_dict({key: found.get(key, value).to(value.dtype) for key, value in names.items()})
    return (Normalized(body, *normalization) if normalization else body).eval()


def of_benchmarks(network: Callable[[], nn.Module], *normalization: Sequence[float]) -> nn.Module:
    """A network of benchmarks/networks."""
    body = network()
    state = torch.load(ROOT / "benchmarks" / "networks" / f"{network.__name__}.pt", weights_only=True)
    body.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return (Normalized(body, *normalization) if normalization else body).eval()


SAMPLE = Pair(weak, robust, custom)
