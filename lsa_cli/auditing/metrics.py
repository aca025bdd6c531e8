"""Metrics that an audit measures on request (`--metrics`), on a few clean samples and their adversarial examples."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.randomness import drawn_for, in_parts, per_sample
from lsa_cli.attacks.threat import Bounds
from lsa_cli.failures import backward_of_network
from lsa_cli.models.classifier import Classifier
from lsa_cli.registry import Registry
from lsa_cli.report.row import finite
from lsa_cli.report.schema import Metric

SAMPLES = 128  # of the audit's, drawn at random: a metric costs far more than a pass
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Given:
    """What a metric is measured with. batch_size: at most so many inputs go through the network at once."""

    classifier: Classifier
    bounds: Bounds
    seed: int
    batch_size: int


# (given, x (N, ...), x_adv (N, ...), y (N,)) -> rows for the report. Labels are right for the clean x as they come. Called
# with draws for the N samples: a stochastic network gives each of them the same ones in any batch size where passes go `in_parts`.
MetricFunction = Callable[[Given, torch.Tensor, torch.Tensor, torch.Tensor], list[Metric]]
METRICS: Registry[MetricFunction] = Registry("metric")


@METRICS.register("intensity")
def robustified_intensity(given: Given, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor) -> list[Metric]:
    """Largest parameter gradient of one sample under attack over the largest one without (arXiv 2012.13573).

    The paper divides the maximum of an adversarially trained network by that of another, trained without attacks; one
    checkpoint has one set of weights, so both maxima are taken at the same weights here (our choice). Quantiles of the
    norms stand beside the maximum, which depends on one sample.
    """
    clean = gradient_norms(given.classifier, x, y)
    perturbed = gradient_norms(given.classifier, x_adv, y)

    def over(above: float, below: float) -> float | None:
        return float(above / below) if below > 0 and np.isfinite(above / below) else None

    at = {f"{share:g}": over(np.quantile(perturbed, share), np.quantile(clean, share)) for share in QUANTILES}
    return [
        Metric(
            name="intensity", n=len(x), value=over(perturbed.max(), clean.max()), unit="ratio",
            quantiles={"mean": over(perturbed.mean(), clean.mean()), **at},
            meaning="robustified intensity: the largest per-sample gradient of the loss in the weights under attack, over "
            "the largest on clean inputs; the larger, the more the bounds on privacy and generalisation of adversarial "
            "training loosen. Quantiles are ratios of quantiles of the two sets of norms",
        )
    ]  # fmt: skip


def gradient_norms(classifier: Classifier, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:  # (N, ...), (N,) -> (N,)
    """||d CE(f(x_i), y_i) / d theta||_2 over all parameters, in evaluation mode.

    Sample by sample: batched gradients would hold N copies of the network, and cannot look through one that takes
    gradients itself.
    """
    norms = np.empty(len(x))
    with undisturbed(classifier), torch.enable_grad():
        parameters = [parameter.requires_grad_(True) for parameter in classifier.parameters()]
        for row in range(len(x)):
            # In float64: float32 rounds the loss of a sure prediction to 0.
            loss = F.cross_entropy(classifier(x[row : row + 1]).double(), y[row : row + 1])
            with backward_of_network():
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            norms[row] = sum(float(part.double().square().sum()) for part in found if part is not None) ** 0.5
    return norms


# ---- arXiv 1909.09034: its two measurements; definitions as in its authors' code ------------------------

_NOISE = 0.08  # sd of the Gaussian noise, in shares of the input range: the middle of that code's 0.04 to 0.12
_DIRECTIONS = 100  # our choice, for time: 1000 there
_IMAGES = 50  # likewise: 100 there
_PASS = 100  # inputs of one pass
_MAGNITUDES = range(2, 128, 2)  # of 255 parts of the input range
_TINY = 1e-12


@METRICS.register("eni")
def noise_insensitivity(given: Given, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor) -> list[Metric]:
    """Empirical noise insensitivity: how far the loss moves for each unit that the input moves (arXiv 1909.09034)."""
    low, high = _box(given)
    generator = torch.Generator().manual_seed(given.seed)
    noise = _NOISE * (high - low) * torch.randn(x.shape, generator=generator).to(x)
    noisy = x + noise if given.bounds is None else (x + noise).clamp(low, high)
    rows = []
    for attack, moved in (("", x_adv), (f"gaussian noise, sd {_NOISE:g} of the range", noisy)):
        value, each = insensitivity(given.classifier, x, moved, y, given.batch_size)
        shares = {f"{share:g}": finite(np.quantile(each, share)) for share in QUANTILES} if len(each) else {}
        rows.append(
            Metric(
                name="eni", n=len(x), value=finite(value), unit="loss per unit", attack=attack,
                quantiles={"mean": finite(each.mean()) if len(each) else None, **shares},
                meaning="empirical noise insensitivity: change of the mean cross-entropy over the mean largest change of a "
                "coordinate; the smaller, the less sensitive the network is. Mean and quantiles are of the same ratio for each "
                "sample that was moved",
            )
        )  # fmt: skip
    return rows


def insensitivity(
    classifier: Classifier, x: torch.Tensor, moved: torch.Tensor, y: torch.Tensor, at_once: int = _PASS
) -> tuple[float, np.ndarray]:
    """|CE(x) - CE(x')| / mean ||x - x'||_inf, with means first; and the ratio (M,) of each sample that moved."""
    with undisturbed(classifier), torch.no_grad():
        change = (_losses(classifier, moved, y, at_once) - _losses(classifier, x, y, at_once)).double().cpu().numpy()
    size = (moved - x).flatten(1).abs().amax(1).double().cpu().numpy()
    return abs(change.mean()) / max(size.mean(), _TINY), np.abs(change[size > 0]) / size[size > 0]


def _losses(classifier: Classifier, x: torch.Tensor, y: torch.Tensor, at_once: int) -> torch.Tensor:  # -> (N,)
    """The cross-entropy of each sample, in float64: float32 rounds that of a sure prediction to 0."""
    return in_parts(
        lambda part: F.cross_entropy(classifier(x[part]).double(), y[part], reduction="none"), len(x), at_once
    )


@METRICS.register("boundary")
def boundary_distance(given: Given, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor) -> list[Metric]:
    """Worst-case boundary distance along random orthonormal directions, blind to the network (arXiv 1909.09034)."""
    with undisturbed(given.classifier), torch.no_grad():
        right = in_parts(lambda part: given.classifier(x[part]).argmax(1), len(x), given.batch_size) == y
        x, y, index = x[right][:_IMAGES], y[right][:_IMAGES], drawn_for()[1][right][:_IMAGES]
        directions = orthonormal(x[0].numel(), _DIRECTIONS, given.seed).to(x) if len(x) else x
        found = worst_case_distances(
            given.classifier, x, y, directions, given.bounds, given.batch_size, seed=given.seed, index=index
        )
    low, high = _box(given)
    largest = _MAGNITUDES[-1] / 255 * (high - low)
    return [
        Metric(
            name="boundary", n=len(x), value=finite(found.mean()) if len(x) else None, unit="input units, root mean square",
            quantiles={f"{share:g}": finite(np.quantile(found, share)) for share in (0.1, 0.5, 0.9)} if len(x) else {},
            attack="no attack",
            meaning=f"how far an image that is classified correctly moves along {len(directions)} random orthonormal directions "
            f"before the first of them changes its class, in steps of {2 / 255 * (high - low):.4f}; {int((found > largest).sum())} of {len(x)} images "
            "keep their class up to the last step and count as one step further. Larger is better; with fewer directions the "
            "distance is larger",
        )
    ]  # fmt: skip


def orthonormal(size: int, count: int, seed: int) -> torch.Tensor:  # -> (M, size), M = min(count, size)
    """Random orthogonal directions of root mean square 1: the Q of a Gaussian matrix, scaled by sqrt(size)."""
    gaussian = torch.randn(size, min(count, size), generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(gaussian).Q.T * size**0.5


def worst_case_distances(
    classifier: Classifier,
    x: torch.Tensor,
    y: torch.Tensor,
    directions: torch.Tensor,
    bounds: tuple[float, float] | None,
    batch_size: int,
    *,
    seed: int,
    index: torch.Tensor,
) -> np.ndarray:  # (N, ...), (N,), (M, size), (N,) -> (N,)
    """The first magnitude at which a direction changes the class, the smallest over directions.

    Magnitudes rise for all directions at once, and an image is done with the first one that changes it: the same
    minimum as over whole lines, for a fraction of the passes. None up to the end: one step beyond it (there: 255).
    A stochastic network draws for each image of the data set (its place, index), magnitude and direction anew.
    """  # fmt: skip
    low, high = bounds if bounds is not None else (0.0, 1.0)
    unit = (high - low) / 255
    found = np.full(len(x), (_MAGNITUDES[-1] + 2) * unit)
    left = np.arange(len(x))
    each = torch.arange(len(directions), device=index.device) << 40

    def labels_of(moved: torch.Tensor) -> torch.Tensor:  # (M, ...) -> (M,)
        return in_parts(lambda part: classifier(moved[part]).argmax(1), len(moved), batch_size)

    for magnitude in _MAGNITUDES:
        done = []
        for row in left:
            moved = x[row] + magnitude * unit * directions.reshape(-1, *x.shape[1:])
            moved = moved if bounds is None else moved.clamp(low, high)
            with per_sample(seed, index[row] + each, f"magnitude {magnitude}"):
                labels = labels_of(moved)
            if (labels != y[row]).any():
                found[row] = magnitude * unit
                done.append(row)
        left = np.setdiff1d(left, done)
    return found


def _box(given: Given) -> tuple[float, float]:
    """The input range; for inputs without one, a range of 1."""
    return given.bounds if given.bounds is not None else (0.0, 1.0)
