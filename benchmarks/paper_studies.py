"""The models of arXiv 2202.02626, their data, and a choice for everything that the paper leaves open."""

import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.published import GRIDS, OBJECTIVES, PUBLISHED, parse_row
from benchmarks.training import RECIPE
from lsa_cli.attacks import make_threat
from lsa_cli.attacks.threat import Bounds
from lsa_cli.data import LabelledData, stratified_subset
from lsa_cli.hardening.recipes import Recipe
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.classifier import PRESETS, Normalization

ROOT = Path(__file__).parent.parent
SEED = 313  # of every split of data; networks are seeded by number, from 0


@dataclass(frozen=True)
class Study:
    """One model of the paper. data: (images or None for all) -> training and test data.

    eps: of the training attack, by base. gamma: by row, else the "default". scan_eps: at which layers are compared.
    seeds: networks a row, where the command does not say. judged: how many test samples FGSM, PGD-50 and AutoAttack see (None: all, 0: none); AutoAttack judges the network of
    the first seed only.
    """

    model: str
    network: Callable[[], nn.Module]
    normalization: Normalization
    data: Callable[[int | None], tuple[LabelledData, LabelledData]]
    bounds: Bounds
    rows: tuple[str, ...]
    recipe: Recipe
    eps: dict[str, float]
    gamma: dict[str, float]
    scan_eps: float
    judged: dict[str, int | None]
    images: int | None = None
    seeds: int = 5
    steps: int = 10
    batch: int = 100  # samples judged at once, times the eps of the grid
    validation: tuple[float, int] = (0.2, 1000)
    search_lr: tuple[float, ...] = ()
    search_eps: tuple[float, ...] = ()
    search_gamma: tuple[float, ...] = ()

    @property
    def grid(self):
        return GRIDS[self.model]

    def threat(self, eps):
        """eps: one for all, or one for each sample (N,)."""
        return replace(make_threat("linf", 0.0, self.bounds), eps=eps)


def moons(images):
    return tuple(_npz(ROOT / "sample_models" / "moons.npz", split) for split in ("train", "test"))


def _npz(path, split):
    with np.load(path) as archive:
        x, y = torch.from_numpy(archive[f"x_{split}"]), archive[f"y_{split}"].astype(np.int64)
    return LabelledData(f"moons, {split}", y, lambda rows: x[torch.from_numpy(np.asarray(rows))])


def _of_images(name, x, y, limit=None):
    """uint8 images (N, C, H, W) as labelled data, or a stratified part of them."""
    if limit is not None and limit > len(y):
        sys.exit(f"--images {limit}: {name} has {len(y)}")
    rows = np.arange(len(y)) if limit is None else stratified_subset(y, limit, SEED)
    x, y = x[torch.from_numpy(rows)], y[rows]
    return LabelledData(name, y, lambda rows: x[torch.from_numpy(np.asarray(rows))].float() / 255)


def _data_root():
    if "LSA_DATA_ROOT" not in os.environ:
        sys.exit("LSA_DATA_ROOT is not set: no images; point it at a folder that holds them as torchvision does")
    return Path(os.environ["LSA_DATA_ROOT"])


def mnist(images):
    from torchvision.datasets import MNIST

    try:
        parts = [MNIST(_data_root(), train=train) for train in (True, False)]
    except RuntimeError:
        sys.exit(f"{_data_root()} holds no MNIST; torchvision.datasets.MNIST(root, download=True) fetches it")
    (x, y), (x_test, y_test) = ((part.data[:, None], part.targets.numpy().astype(np.int64)) for part in parts)
    return _of_images("mnist, train", x, y, images), _of_images("mnist, test", x_test, y_test)


def cifar10(images):
    """Its five training batches; where no more images are asked for than the first one holds, that one is enough."""
    names = [f"data_batch_{number}" for number in range(1, 6)][: 1 if images is not None and images <= 10_000 else 5]
    x, y = cifar_batches(names)
    return _of_images("cifar10, train", x, y, images), _of_images("cifar10, test", *cifar_batches(["test_batch"]))


def cifar_batches(names):
    folder = _data_root() / "cifar-10-batches-py"
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        sys.exit(f"{folder} lacks {', '.join(missing)}; torchvision.datasets.CIFAR10(root, download=True) fetches them")
    parts = []
    for name in names:
        with (folder / name).open("rb") as file:
            parts.append(pickle.load(file, encoding="latin1"))
    x = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(x), np.concatenate([part["labels"] for part in parts]).astype(np.int64)


def vgg19():
    """Model C for 32 x 32 images: torchvision's convolutions with BatchNorm and one linear layer, so 16 activations."""
    from torchvision.models.vgg import cfgs, make_layers

    return nn.Sequential(make_layers(cfgs["E"], batch_norm=True), nn.Flatten(), nn.Linear(512, 10))


class _WideBlock(nn.Module):
    """Pre-activation residual block (arXiv 1605.07146)."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inner), nn.ReLU()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(outer), nn.ReLU()
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride, bias=False) if inner != outer else None

    def forward(self, x):
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(depth=28, width=2):
    """Model D: WRN-28-2 (the paper names no size). 25 activations; L1 is the one within the first block."""
    widths = (16, 16 * width, 32 * width, 64 * width)
    blocks = []
    for number in range(3):
        for place in range((depth - 4) // 6):
            inner, stride = (widths[number], 1 + (number > 0)) if place == 0 else (widths[number + 1], 1)
            blocks.append(_WideBlock(inner, widths[number + 1], stride))
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(widths[3]), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[3], 10),
    )  # fmt: skip


def _with_layers(bases, layers):
    return tuple(f"AT-{base}" for base in bases) + tuple(f"AT-{base}-LR-L{i}" for base in bases for i in layers)


# What --search found for moon stands below and in RESULTS.md; for the others nobody has searched yet.
CIFAR = Study(
    model="C", network=vgg19, normalization=PRESETS["cifar10"], data=cifar10, bounds=(0.0, 1.0),
    rows=("Normal", *_with_layers(("PGD", "TRADE", "APGD"), (1, 15))),
    recipe=replace(RECIPE, epochs=30, lr=0.05, optimizer="sgd", weight_decay=5e-4, warmup=0.1, augment="crop-flip"),
    eps=dict.fromkeys(OBJECTIVES.values(), 8 / 255), gamma={"default": 0.5}, scan_eps=0.03,
    judged={"fgsm": None, "pgd": 1000, "cascade": 500},
    search_lr=(0.05,), search_eps=(8 / 255,), search_gamma=(0.1, 0.5, 2.0),
)  # fmt: skip
STUDIES = {
    "moon": (
        Study(
            model="A", network=lambda: build_architecture("lsa:moon-mlp", {}), normalization=None, data=moons,
            bounds=None, rows=tuple(name for model, name in PUBLISHED if model == "A"),
            recipe=replace(RECIPE, lr=5e-3), eps={"fgsm": 0.2, "pgd": 0.3, "trades": 0.3, "fast": 0.3},
            gamma={
                "AT-FGSM-LR-L0": 2.0, "AT-FGSM-LR-L1": 0.5, "AT-FGSM-LR-L2": 0.02,
                "AT-PGD-LR-L0": 2.0, "AT-PGD-LR-L1": 0.5, "AT-PGD-LR-L2": 0.1,
                "AT-FAST-LR-L0": 0.5, "AT-FAST-LR-L1": 0.5, "AT-FAST-LR-L2": 0.02,
                "AT-TRADE-LR-L0": 0.5, "AT-TRADE-LR-L1": 0.1, "AT-TRADE-LR-L2": 0.1,
            }, scan_eps=0.3,
            judged={"fgsm": None, "pgd": None, "cascade": None},
            steps=7, batch=400,
            search_lr=(1e-3, 5e-3), search_eps=(0.1, 0.2, 0.3), search_gamma=(0.02, 0.1, 0.5, 2.0),
        ),
    ),
    "mnist": (
        Study(
            model="B", network=lambda: build_architecture("lsa:mnist-cnn", {}), normalization=PRESETS["mnist"],
            data=mnist, bounds=(0.0, 1.0), rows=("Normal", *_with_layers(("APGD", "PGD", "TRADE"), range(4))),
            # Five seeds of a row take more than an hour of one thread even so; all images and more epochs: --images, --epochs.
            recipe=replace(RECIPE, epochs=5, lr=2e-3, warmup=0.3, batch_size=64), images=10_000, steps=7, seeds=1,
            eps=dict.fromkeys(OBJECTIVES.values(), 0.3), gamma={"default": 0.5}, scan_eps=0.3,
            judged={"fgsm": None, "pgd": 1000, "cascade": 100},
            search_lr=(2e-3,), search_eps=(0.3,), search_gamma=(0.1, 0.5, 2.0),
        ),
    ),
    "cifar10": (CIFAR, replace(CIFAR, model="D", network=wide_resnet, rows=("Normal", *_with_layers(("PGD", "TRADE", "APGD"), (1, 24))))),
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """What one training is given beside the study: eps of its attack and the weight of the layer that is held."""

    row: str
    seed: int
    eps: float
    gamma: float | None


def trial_of(study, name, seed):
    """The row with the eps and the gamma that the search settled on."""
    row = parse_row(name)
    gamma = None if row.layer is None else study.gamma.get(name) or study.gamma["default"]
    return Trial(name, seed, 0.0 if row.base is None else study.eps[row.base], gamma)
