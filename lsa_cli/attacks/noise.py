"""Random noise, with which every attack is compared (arXiv 2202.02626).

The paper names the kinds. The density 0.01 is that of the authors' demo; the other strengths are our choice.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lsa_cli.attacks.base import NOISES, Attack, Model
from lsa_cli.attacks.randomness import normal_like, uniform_like
from lsa_cli.attacks.threat import Bounds
from lsa_cli.errors import UsageError


@dataclass(frozen=True)
class Noise(Attack):
    """Base of the noises. They do not query the network. bounds: the input range; None where there is none."""

    bounds: Bounds
    kind: ClassVar[str] = "noise"

    @property
    def passes(self) -> float:
        return 0.0

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        moved = self.moved(x)
        return moved if self.bounds is None else moved.clamp(*self.bounds)


@NOISES.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Noise):
    """Adds normal noise of standard deviation `std`."""

    std: float = 0.1

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.std * normal_like(x)


@NOISES.register("uniform")
@dataclass(frozen=True)
class Uniform(Noise):
    """Adds uniform noise in [-amplitude, amplitude]."""

    amplitude: float = 0.1

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.amplitude * (2 * uniform_like(x) - 1)


@NOISES.register("salt")
@dataclass(frozen=True)
class Salt(Noise):
    """Sets a share `density` of the inputs to the top of the range."""

    density: float = 0.01
    needs_range: ClassVar[bool] = True
    end: ClassVar[int] = 1  # of the bounds

    def __post_init__(self) -> None:
        if self.bounds is None:
            raise UsageError("salt and pepper need inputs with a known range, and these inputs have none")

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        assert self.bounds is not None
        return torch.where(uniform_like(x) < self.density, self.bounds[self.end], x)


@NOISES.register("pepper")
@dataclass(frozen=True)
class Pepper(Salt):
    """Sets a share `density` of the inputs to the bottom of the range."""

    end: ClassVar[int] = 0


@NOISES.register("speckle")
@dataclass(frozen=True)
class Speckle(Noise):
    """Adds normal noise in proportion to the input: x + x * noise of standard deviation `std`."""

    std: float = 0.1

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        return x + x * self.std * normal_like(x)
