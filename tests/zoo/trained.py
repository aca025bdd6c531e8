"""Small networks that are trained here, on 3,000 training images, each in some seconds."""

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from lsa_cli.attacks import ATTACKS, make_threat
from tests.foreign_networks import small_cnn
from tests.zoo.base import Normalized, Pair, foreign, mnist
from tests.zoo.inside import WinnersTakeAll

IMAGES, BATCH = 3000, 50


def fitted(
    body: nn.Module, epochs: int = 4, eps: float = 0.0, loss=F.cross_entropy, norm: str = "linf", lr: float = 3e-3
) -> nn.Module:
    """After Adam, in evaluation mode; with eps, on the examples of PGD."""
    x, y = (part[:IMAGES] for part in mnist("train"))
    optimizer = torch.optim.Adam(body.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs=epochs, steps_per_epoch=IMAGES // BATCH)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(IMAGES, generator=generator).split(BATCH):
            inputs = x[rows]
            if eps:
                inputs = ATTACKS.get("pgd")(threat=make_threat(norm, eps), steps=4)(body.eval(), inputs, y[rows])
            optimizer.zero_grad()
            loss(body.train()(inputs), y[rows]).backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    return body.eval()


def once(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The network is trained at its first use; each use gets a copy."""
    kept = cache(make)

    def build(*arguments, **named):
        torch.manual_seed(0)
        return copy.deepcopy(kept(*arguments, **named))

    return build


def conv(
    activation: Callable[[], nn.Module], norm: Callable[[int], nn.Module] = lambda width: nn.Identity()
) -> nn.Module:
    """Two convolutions of stride 2 and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 5, 2, 2), norm(12), activation(), nn.Conv2d(12, 24, 5, 2, 2), norm(24), activation(),
        nn.Flatten(), nn.Linear(24 * 49, 64), activation(), nn.Linear(64, 10),
    )  # fmt: skip


class Sine(nn.Module):
    """sin(w x). A large w is usual for networks of sines (arXiv 2006.09661)."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.w * x)


@once
def sines(w: float) -> nn.Module:
    return fitted(conv(lambda: Sine(w)))


@once
def activated(name: str, eps: float = 0.0) -> nn.Module:
    return fitted(conv(getattr(nn, name)), epochs=8 if name == "Sigmoid" else 4, eps=eps)


def _unchanged(body: nn.Module) -> nn.Module:
    """With the parts of a sample network, for images that need no normalisation."""
    return Normalized(body, (0.0,), (1.0,)).eval()


SMALL = Pair(
    lambda: _unchanged(activated("ReLU")),
    lambda: _unchanged(foreign(small_cnn, "fast_adversarial/fgsm.pth")),
    lambda: _unchanged(activated("ELU")),
)


@once
def normalised(name: str) -> nn.Module:
    norms = {
        "group": lambda width: nn.GroupNorm(4, width),
        "batch": nn.BatchNorm2d,
        "instance": lambda width: nn.InstanceNorm2d(width, affine=True),
    }
    return fitted(conv(nn.ReLU, norms[name]))


@once
def of_its_batch() -> nn.Module:
    """BatchNorm with the statistics of the batch, as test-time adaptation has it."""
    return fitted(conv(nn.ReLU, lambda width: nn.BatchNorm2d(width, track_running_stats=False)))


@once
def pooled(pool: str) -> nn.Module:
    layer = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}[pool]
    return fitted(
        nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), layer(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), layer(2),
            nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(432, 10),
        )
    )  # fmt: skip


@once
def winners(share: float) -> nn.Module:
    return fitted(conv(lambda: WinnersTakeAll(share)), epochs=6)


class Transformer(nn.Module):
    """A vision transformer: patches of 7 x 7, two layers of four heads."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 7, 7)
        self.place = nn.Parameter(0.1 * torch.randn(1, 16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(x).flatten(2).transpose(1, 2) + self.place).mean(1))


@once
def transformer() -> nn.Module:
    return fitted(Transformer(), epochs=8)


class Rows(nn.Module):
    """An LSTM that reads the image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(28, 48, batch_first=True), nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x[:, 0])[0][:, -1])


@once
def recurrent() -> nn.Module:
    return fitted(Rows(), epochs=6, lr=1e-2)


class Rounded(nn.Module):
    """Activations in 255 steps up to 6, and a gradient straight through: quantisation-aware training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clamp(0, 6)
        return x + ((x * 42.5).round() / 42.5 - x).detach()


@once
def quantised() -> nn.Module:
    return fitted(conv(Rounded))


class Maxout(nn.Module):
    """The larger one of each two channels, the first with the one after half of all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(*x.chunk(2, 1))


@once
def maxout(eps: float = 0.0) -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(1, 24, 5, 2, 2), Maxout(), nn.Conv2d(12, 48, 5, 2, 2), Maxout(),
        nn.Flatten(), nn.Linear(24 * 49, 128), Maxout(), nn.Linear(64, 10),
    )  # fmt: skip
    return fitted(body, eps=eps)


@once
def separable() -> nn.Module:
    """Convolutions by channel and of single pixels. Noise breaks nearly as many samples as attacks."""
    return fitted(
        nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish(), nn.Conv2d(16, 16, 5, 1, 2, groups=16),
            nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.PReLU(32), nn.Conv2d(32, 32, 3, 2, 1, groups=32),
            nn.Conv2d(32, 32, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(288, 10),
        )
    )  # fmt: skip


@once
def on_squares() -> nn.Module:
    """Trained for outputs of 1 for the class and 0 for the others: the logits stay within a range of 1."""
    return fitted(conv(nn.ReLU), loss=lambda z, y: F.mse_loss(z, F.one_hot(y, 10).float()))


@once
def regularised(kind: str) -> nn.Module:
    if kind == "dropout":
        body = conv(nn.ReLU)
        return fitted(nn.Sequential(*body[:9], nn.Dropout(0.3), body[9]))
    if kind == "label smoothing":
        return fitted(conv(nn.ReLU), loss=lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2))
    return fitted(conv(nn.ReLU), loss=lambda z, y: F.cross_entropy(z / 20, y))  # a high temperature: large logits


@once
def perceptron(eps: float = 0.0) -> nn.Module:
    body = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return fitted(body, epochs=6, eps=eps)


@once
def linear() -> nn.Module:
    return fitted(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))


class GatedUnits(nn.Module):
    """Linear units, each of which counts where another linear unit is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.gates, self.out = nn.Linear(784, 128), nn.Linear(784, 128), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor, soft: float = 0.0) -> torch.Tensor:
        """soft: how steep the slope is that the gates show, in the size of what they compare with 0; 0 for none."""
        units, scores = self.units(x.flatten(1)), self.gates(x.flatten(1))
        gates = (scores > 0).float()
        if soft:
            slope = torch.sigmoid(soft * scores / scores.detach().square().mean(1, keepdim=True).sqrt())
            gates = gates + slope - slope.detach()
        return self.out(units * gates)


@once
def gated_units() -> nn.Module:
    return fitted(GatedUnits())


@once
def against_l2() -> nn.Module:
    return fitted(conv(nn.ReLU), epochs=6, eps=1.0, norm="l2")


@once
def with_dummies() -> nn.Module:
    """Twenty outputs, of which 10 to 19 stand for the same ten classes: adversarial examples are to win a dummy (arXiv 2603.29182).

    Trained on PGD examples with the dummy of their class as label, and on clean ones with the class.
    """
    body = nn.Sequential(*conv(nn.ReLU)[:-1], nn.Linear(64, 20))
    x, y = (part[:IMAGES] for part in mnist("train"))
    optimizer = torch.optim.Adam(body.parameters(), 3e-3)
    attack = ATTACKS.get("pgd")(threat=make_threat("linf", 0.1), steps=3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for rows in torch.randperm(IMAGES, generator=generator).split(BATCH):
            x_adv = attack(lambda images: body(images)[:, :10], x[rows], y[rows])
            optimizer.zero_grad()
            loss = F.cross_entropy(body(x[rows]), y[rows]) + F.cross_entropy(body(x_adv), y[rows] + 10)
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    return body.eval()


class Denoiser(nn.Module):
    """Two convolutions; `step` rounds the image."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 1, 5, padding=2), nn.Sigmoid()
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(x)
        return (x / self.step).round() * self.step if self.step and not self.training else x


@once
def purifier(step: float = 0.0) -> nn.Module:
    """Trained to restore noisy images."""
    body = Denoiser(step)
    x = mnist("train")[0][:IMAGES]
    optimizer = torch.optim.Adam(body.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for rows in torch.randperm(IMAGES, generator=generator).split(BATCH):
            noisy = x[rows] + 0.3 * torch.randn(x[rows].shape, generator=generator)
            optimizer.zero_grad()
            F.mse_loss(body.train()(noisy), x[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return body.eval()
