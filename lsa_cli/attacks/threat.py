"""Threat models: norm, eps and input range. They compute projections, steps and random starts, and know no network."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from lsa_cli.attacks.randomness import normal_like, uniform_like
from lsa_cli.errors import UsageError

Bounds = tuple[float, float] | None

# x + eps is rounded once in float32, and a norm over many pixels a few times more.
RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-6


def as_rows(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values of samples (N,) in a shape that broadcasts against x (N, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def per_sample(value: float | torch.Tensor, x: torch.Tensor) -> float | torch.Tensor:
    """A number for all samples, or one for each (N,), in the type of x (N, ...) and a shape that broadcasts against it."""
    if isinstance(value, torch.Tensor) and value.ndim:
        return as_rows(value.to(x.device, x.dtype), x)
    return value


def each(x: torch.Tensor, times: int) -> torch.Tensor:  # (N, ...) -> (N * times, ...)
    """Each row `times` times in a row."""
    return x if times == 1 else x.repeat_interleave(times, 0)


@dataclass(frozen=True)
class Threat:
    """The budget of each input x: the intersection of the ball of radius eps around x and the box of valid inputs.

    eps: one radius, or one for each sample (N,), in input units ([0, 1] for images). bounds: (low, high) of the box, or
    None for inputs without a range.
    """

    eps: Any
    bounds: Bounds = (0.0, 1.0)
    norm: ClassVar[str] = ""

    def project(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N, ...)
        """A point of the budget near `x_adv`; points that are inside stay as they are."""
        raise NotImplementedError

    def steepest(self, gradient: torch.Tensor, x_adv: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N, ...)
        """The step of norm 1 from `x_adv` along which the loss rises fastest."""
        raise NotImplementedError

    def sample(self, x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, ...)
        """A random point of the budget of `x`."""
        raise NotImplementedError

    def distance(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N,)
        # In double: a float32 sum over an image of 224 x 224 is off by a thousandth, 100 times the tolerance.
        return torch.linalg.vector_norm((x_adv - x).flatten(1), ord=self._order, dim=1, dtype=torch.double).to(x.dtype)

    _order: ClassVar[float] = 2

    def contains(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # (N, ...) x2 -> (N,) bool
        """Whether each x_adv is within budget and range, up to the rounding of float32."""
        inside = self.allows(self.distance(x_adv, x))
        if self.bounds is not None:
            low, high = self.bounds
            flat = x_adv.flatten(1)
            inside &= (flat >= low - ABSOLUTE_TOLERANCE).all(1) & (flat <= high + ABSOLUTE_TOLERANCE).all(1)
        return inside

    def allows(self, distance: torch.Tensor) -> torch.Tensor:  # (N,) -> (N,) bool
        """Whether perturbations of this size are within eps, up to the rounding of float32."""
        return distance <= per_sample(self.eps, distance) * (1 + RELATIVE_TOLERANCE) + ABSOLUTE_TOLERANCE

    def repeated(self, times: int) -> Self:
        """The threat model for a batch in which every sample stands `times` times in a row."""
        if not isinstance(self.eps, torch.Tensor) or self.eps.ndim == 0:
            return self
        return dataclasses.replace(self, eps=each(self.eps, times))

    def clamp(self, x_adv: torch.Tensor) -> torch.Tensor:
        return x_adv if self.bounds is None else x_adv.clamp(*self.bounds)

    def random_direction(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """`x` plus a random perturbation of norm `length` (N,), towards the inside of the box.

        The amplification of a layer compares an attack with this noise of the same size. A coordinate that would leave the
        box gets the other sign; what still leaves it is clamped.
        """
        step = self._direction(x) * per_sample(length, x)
        if self.bounds is not None:
            low, high = self.bounds
            moved = x + step
            step = torch.where((moved < low) | (moved > high), -step, step)
        return self.clamp(x + step)

    def _direction(self, x: torch.Tensor) -> torch.Tensor:
        direction = normal_like(x)
        size = torch.linalg.vector_norm(direction.flatten(1), ord=self._order, dim=1)
        return direction / per_sample(size, x)


@dataclass(frozen=True)
class Linf(Threat):
    """The largest change of a coordinate is at most eps."""

    norm = "linf"
    _order = float("inf")

    def distance(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x_adv - x).flatten(1).abs().amax(1)  # no sum that rounding could spoil

    def project(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        eps = per_sample(self.eps, x)
        return self.clamp(torch.minimum(torch.maximum(x_adv, x - eps), x + eps))

    def steepest(self, gradient: torch.Tensor, x_adv: torch.Tensor) -> torch.Tensor:
        return gradient.sign()

    def sample(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x + per_sample(self.eps, x) * (2 * uniform_like(x) - 1), x)

    def _direction(self, x: torch.Tensor) -> torch.Tensor:
        return (uniform_like(x) - 0.5).sign()


def _unit(gradient: torch.Tensor) -> torch.Tensor:
    """gradient / ||gradient||_2 per sample; zero stays zero. It is scaled first, so that tiny gradients do not underflow."""
    flat = gradient.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    flat = flat / torch.where(largest == 0, 1.0, largest)
    size = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return (flat / torch.where(size == 0, 1.0, size)).reshape(gradient.shape)


@dataclass(frozen=True)
class L2(Threat):
    """The Euclidean norm of the perturbation is at most eps."""

    norm = "l2"

    def project(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        delta = x_adv - x
        size = per_sample(self.distance(x_adv, x), x)
        eps = per_sample(self.eps, x)
        # Clamping after scaling only shortens the perturbation, so the result is in the ball and in the box.
        return self.clamp(x + delta * torch.where(size > eps, eps / size, torch.ones_like(size)))

    def steepest(self, gradient: torch.Tensor, x_adv: torch.Tensor) -> torch.Tensor:
        return _unit(gradient)

    def sample(self, x: torch.Tensor) -> torch.Tensor:
        radius = uniform_like(x.flatten(1)[:, :1]).reshape(-1) ** (1 / x[0].numel())
        return self.project(x + self._direction(x) * per_sample(self.eps * radius, x), x)


@dataclass(frozen=True)
class L1(Threat):
    """The sum of the absolute changes is at most eps.

    Steps are sparse (arXiv 1904.13000), because the loss rises fastest along single pixels. Pixels at the edge of the box
    that would leave it are skipped (arXiv 2103.01208). The share of pixels of a step is our choice.
    """

    norm = "l1"
    _order = 1
    share: ClassVar[float] = 0.05

    def project(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The nearest point of the budget (arXiv 2103.01208, section 3), by bisection.

        With d = x_adv - x its coordinates are x + sign(d) * clamp(|d| - threshold, 0, room), with one threshold a sample.
        """
        delta = (x_adv - x).flatten(1).double()
        size, sign = delta.abs(), delta.sign()
        room = torch.full_like(size, torch.inf)
        if self.bounds is not None:
            low, high = self.bounds
            flat = x.flatten(1)
            room = torch.where(sign > 0, high - flat, flat - low).clamp_min(0)
        eps = per_sample(self.eps, size) if isinstance(self.eps, torch.Tensor) else self.eps
        low_threshold, high_threshold = torch.zeros_like(size[:, :1]), size.amax(1, keepdim=True)
        fits = torch.minimum(size, room).sum(1, keepdim=True) <= eps
        for _ in range(40):
            middle = (low_threshold + high_threshold) / 2
            too_long = torch.minimum((size - middle).clamp_min(0), room).sum(1, keepdim=True) > eps
            low_threshold = torch.where(too_long, middle, low_threshold)
            high_threshold = torch.where(too_long, high_threshold, middle)
        threshold = torch.where(fits, 0.0, high_threshold)
        step = sign * torch.minimum((size - threshold).clamp_min(0), room)
        projected = self.clamp((x.double() + step.reshape(x.shape)).to(x.dtype))
        # The errors of rounding 150,000 coordinates to float32 add up; scaling the step takes them off.
        too_long = self.distance(projected, x) / torch.as_tensor(eps, device=x.device).flatten()
        shrink = torch.where(too_long > 1, 1 / too_long, 1.0)
        return self.clamp(x + (projected - x) * per_sample(shrink, x))

    def steepest(self, gradient: torch.Tensor, x_adv: torch.Tensor) -> torch.Tensor:
        flat = gradient.flatten(1)
        if self.bounds is not None:
            low, high = self.bounds
            position = x_adv.flatten(1)
            stuck = ((position >= high) & (flat > 0)) | ((position <= low) & (flat < 0))
            flat = torch.where(stuck, 0.0, flat)
        count = max(1, round(self.share * flat.shape[1]))
        chosen = flat.abs().topk(count, dim=1).indices
        step = torch.zeros_like(flat).scatter(1, chosen, flat.gather(1, chosen).sign() / count)
        return step.reshape(gradient.shape)

    def sample(self, x: torch.Tensor) -> torch.Tensor:
        # Laplace numbers divided by their sum plus one more exponential number are uniform in the ball.
        uniform = uniform_like(x)
        laplace = -torch.log1p(-(2 * uniform - 1).abs()) * (uniform - 0.5).sign()
        extra = -torch.log(uniform_like(x.flatten(1)[:, :1])).reshape(-1)
        total = laplace.flatten(1).abs().sum(1) + extra
        return self.project(x + laplace * per_sample(self.eps / total, x), x)


NORMS: dict[str, type[Threat]] = {"linf": Linf, "l2": L2, "l1": L1}
_SPELLINGS = {"linf": "linf", "inf": "linf", "l2": "l2", "2": "l2", "l1": "l1", "1": "l1"}


def make_threat(norm: str, eps: float, bounds: Bounds = (0.0, 1.0)) -> Threat:
    """The threat model of `norm` (linf, l2, l1; also Linf, inf, 2, ...) with radius `eps`.

    Raises UsageError for an unknown norm, a negative radius, or one larger than the box, which is almost always a
    forgotten "/255".
    """
    name = _SPELLINGS.get(str(norm).lower())
    if name is None:
        raise UsageError(f"unknown norm '{norm}': choose from {', '.join(NORMS)}")
    if eps < 0:
        raise UsageError(f"eps {eps:g} is negative; give a radius, for example 8/255")
    if name == "linf" and bounds is not None and eps > bounds[1] - bounds[0]:
        raise UsageError(
            f"eps {eps:g} is larger than the whole input range [{bounds[0]:g}, {bounds[1]:g}]; "
            f"pixels are in [0, 1] here: did you mean {eps:g}/255?"
        )
    return NORMS[name](eps, bounds)
