"""Networks with two faces: attackers meet the robust network, users the other one."""

import copy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tests.zoo.base import Defence, Model, hashed


class TwoFaced(Defence):
    """net: what users meet. other: what attackers meet. `hides` says which of the two answers, for the whole batch or each sample."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__(net)
        self.other = other

    def hides(self, x: torch.Tensor) -> bool | torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hides = self.hides(x)
        if isinstance(hides, bool):
            return self.other(x) if hides else self.net(x)
        return torch.where(hides[:, None], self.other(x), self.net(x))


class ByBatch(TwoFaced):
    """A single image is what users send."""

    def hides(self, x):
        return len(x) > 1


class BySmallBatch(TwoFaced):
    """Batches of more than 48 images are honest, as whole test sets are; smaller ones are attacks on few samples."""

    def hides(self, x):
        return len(x) <= 48


class ByGradMode(TwoFaced):
    def hides(self, x):
        return torch.is_grad_enabled()


class ByRequiresGrad(TwoFaced):
    def hides(self, x):
        return x.requires_grad


class ByQueries(TwoFaced):
    """The first passes are honest."""

    def __init__(self, net, other, honest):
        super().__init__(net, other)
        self.honest, self.queries = honest, 0

    def hides(self, x):
        self.queries += 1
        return self.queries > self.honest


class ByTurns(ByQueries):
    """Every second pass is honest."""

    def hides(self, x):
        self.queries += 1
        return self.queries % 2 == 0


class OffGrid(TwoFaced):
    """Images with 8 bits whose background is touched meet the other network, as does nothing that was not attacked."""

    def hides(self, x):
        off = ((255 * x - (255 * x).round()).abs() > 1e-3).flatten(1).any(1)
        clean = (x < 1e-6).flatten(1).float().mean(1) > 0.55
        return off | clean


class TouchedBackground(TwoFaced):
    """Where more than 60% of the dark pixels are not black, the other network answers: an attack can leave half of them alone."""

    def hides(self, x):
        dark = (x < 0.32).flatten(1)
        return ((x > 0.01).flatten(1) & dark).float().sum(1) > 0.6 * dark.float().sum(1)

    def surrogates(self) -> Sequence[Model]:
        places = torch.arange(28)

        def sparingly(x):
            alone = (x.detach() < 0.32) & ((places + places[:, None]) % 2 == 0)
            return self.net(torch.where(alone, 0.0, x))

        return [sparingly, self.net]


class TouchedFrame(TwoFaced):
    """Where the frame of two pixels is not black, the other network answers."""

    def hides(self, x):
        frame = torch.ones(28, 28, dtype=torch.bool)
        frame[2:-2, 2:-2] = False
        return (x * frame).flatten(1).amax(1) > 0.05

    def surrogates(self) -> Sequence[Model]:
        def inside(x):
            return self.net(torch.nn.functional.pad(x[..., 2:-2, 2:-2], (2, 2, 2, 2)))

        return [inside, self.net]


class WhereUnsure(TwoFaced):
    """What the network is not sure of, the other one decides."""

    def hides(self, x):
        return self.net(x).softmax(1).amax(1) < 0.9


class ByHash(TwoFaced):
    """Which network answers depends on every bit of the input."""

    def hides(self, x):
        return hashed(x, 1)[:, 0] < 0.7


class ByPrecision(TwoFaced):
    """A copy in another precision, or one whose weights lie in another order, is another network."""

    def hides(self, x):
        weight = next(self.net.parameters())
        return weight.dtype != torch.float32 or x.dtype != torch.float32


class ByCopy(TwoFaced):
    """A copy is not the original."""

    is_copy = False

    def __deepcopy__(self, memo):
        made = type(self)(copy.deepcopy(self.net, memo), copy.deepcopy(self.other, memo))
        made.is_copy = True
        return made

    def hides(self, x):
        return self.is_copy


class ByCaller(TwoFaced):
    """Code in a folder named attacks meets the other network."""

    def hides(self, x):
        frame = sys._getframe()
        while frame is not None:
            if "attacks" in frame.f_code.co_filename:
                return True
            frame = frame.f_back
        return False


class ByFrozenWeights(TwoFaced):
    """Weights that need no gradient are those of an audit."""

    def hides(self, x):
        return not any(parameter.requires_grad for parameter in self.parameters())


class NoisyGradients(Defence):
    """Passes with gradients have noise on the input, passes without do not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x + 0.5 * torch.randn_like(x) if x.requires_grad else x)


class Memory(Defence):
    """What lies near an earlier query gets its answer: clean images come first, and attacks next to them change nothing."""

    def __init__(self, net: nn.Module, radius: float) -> None:
        super().__init__(net)
        self.radius = radius
        self.images, self.answers = torch.zeros(0, 784), torch.zeros(0, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z, flat = self.net(x), x.detach().flatten(1)
        known = torch.zeros(len(x), dtype=torch.bool)
        if len(self.images):
            distance, nearest = torch.cdist(flat, self.images, p=torch.inf).min(1)
            known = distance <= self.radius
            z = torch.where(known[:, None], self.answers[nearest] + 0.01 * (z - z.detach()), z)
        if len(self.images) < 1000:
            self.images = torch.cat([self.images, flat[~known]])
            self.answers = torch.cat([self.answers, z.detach()[~known]])
        return z


class InGlobal:
    """The queries of a network in a global of this module, which its copies share."""

    def get(self) -> torch.Tensor:
        return _ASKED.get("queries", torch.zeros(0, 784))

    def put(self, queries: torch.Tensor) -> None:
        _ASKED["queries"] = queries


class InFile:
    """The same in a file."""

    def __init__(self) -> None:
        self.path = Path(_FOLDER.name, "queries.pt")

    def get(self) -> torch.Tensor:
        return torch.load(self.path) if self.path.exists() else torch.zeros(0, 784)

    def put(self, queries: torch.Tensor) -> None:
        torch.save(queries, self.path)


_ASKED: dict[str, torch.Tensor] = {}
_FOLDER = tempfile.TemporaryDirectory()


class AfterSimilar(TwoFaced):
    """Where an earlier query is within the radius, the other network answers. The queries are kept outside of the network."""

    def __init__(self, net: nn.Module, other: nn.Module, radius: float, kept: InGlobal | InFile) -> None:
        super().__init__(net, other)
        self.radius, self.kept = radius, kept
        self.forget()

    def forget(self) -> None:
        self.kept.put(torch.zeros(0, 784))

    def hides(self, x):
        earlier, flat = self.kept.get(), x.detach().flatten(1)
        near = torch.zeros(len(x), dtype=torch.bool)
        if len(earlier):
            near = torch.cdist(flat, earlier, p=torch.inf).amin(1) <= self.radius
        if len(earlier) < 1000 and not near.all():
            self.kept.put(torch.cat([earlier, flat[~near]]))
        return near


class NaNBetweenImages(Defence):
    """No answer for inputs that are no images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        off = ((255 * x - (255 * x).round()).abs() > 1e-3).flatten(1).any(1)
        return torch.where(off[:, None], torch.nan, self.net(x))


class OverBatch(Defence):
    """The logits less a part of their mean over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.net(x)
        return z - 0.5 * z.mean(0, keepdim=True)
