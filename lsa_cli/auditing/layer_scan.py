"""LayerScan: Layer Sustainability Analysis (arXiv 2202.02626, Algorithm 1) from per-sample measures.

The scan keeps one number per sample and layer, and no representation. The bootstrap and the lists by class need no more.
Rows are sorted by sample, so the result does not depend on batches and ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsa_cli.errors import UsageError
from lsa_cli.wording import plural

RESAMPLES = 1000
_ROUNDING = 1e-12  # of the centre from which sums count


@dataclass(frozen=True)
class MvlRule:
    """When a layer is most vulnerable: mean - mu > eta * sigma, or simply the top_k largest means.

    sigma "samples": over samples x layers, as the paper's formula; "layers": over the layers' means.
    The paper tunes eta by hand and does not publish it; the defaults are our choice.
    """

    eta: float = 0.5
    sigma: str = "samples"
    top_k: int | None = None


def refuse_more(top_k: int, count: int, where: str) -> None:
    """Raises UsageError where --top-k asks for more layers than are ranked."""
    if top_k > count:
        raise UsageError(f"--top-k {top_k}: {where} ranks {plural(count, 'layer')}; give at most that")


@dataclass(frozen=True)
class Vulnerable:
    """Most vulnerable layers (positions, worst first), the statistics behind them, and whether any passed."""

    positions: tuple[int, ...]
    mu: float
    sigma: float
    passed: bool


@dataclass(frozen=True)
class LayerScan:
    """names (L); values (R, L): the comparison measure, NaN where undefined; yardstick (R, L); input_error (R,)."""

    names: tuple[str, ...]
    values: np.ndarray
    yardstick: np.ndarray
    input_error: np.ndarray

    @staticmethod
    def from_rows(
        names: Sequence[str],
        values: np.ndarray,
        yardstick: np.ndarray,
        input_error: np.ndarray,
        index: np.ndarray,
    ) -> "LayerScan":
        """Rows in any order -> a scan; index (R,) sorts them, so that sums add up in one order only."""
        order = np.argsort(index, kind="stable")
        return LayerScan(tuple(names), values[order], yardstick[order], input_error[order])

    def select(self, rows: np.ndarray) -> "LayerScan":
        return LayerScan(self.names, self.values[rows], self.yardstick[rows], self.input_error[rows])

    def less(self, floor: np.ndarray) -> "LayerScan":
        """With the measure of each layer lowered by floor (L,)."""
        return LayerScan(self.names, self.values - floor, self.yardstick, self.input_error)

    def means(self) -> np.ndarray:  # (L,)
        return _mean(self.values)

    def deviations(self) -> np.ndarray:  # (L,)
        return np.sqrt(_mean((self.values - self.means()) ** 2))

    def undefined(self) -> np.ndarray:  # (L,) how many samples have no measure
        return np.isnan(self.values).sum(0)

    def most_vulnerable(self, rule: MvlRule) -> Vulnerable:
        """Algorithm 1; with no layer above the threshold, the one with the largest mean. A layer whose mean is zero, which does
        not move, is not vulnerable (both our choice)."""
        sums = self._terms().sum(1)
        inside, mu, sigma, passed = _rule(sums[:, None, :], rule, self._centre())
        means = np.where(inside[0], self.means(), -np.inf)
        order = np.argsort(-means, kind="stable")
        positions = tuple(int(p) for p in order[: inside[0].sum()])
        return Vulnerable(positions, float(mu[0] + self._centre()), float(sigma[0]), bool(passed[0]))

    def _centre(self) -> float:
        """The mean over samples and layers, from which the rule's sums count: a variance is lost in squares that are large."""
        return float(np.nanmean(self.values)) if not np.isnan(self.values).all() else 0.0

    def _terms(self) -> np.ndarray:  # (3, R, L)
        """Of each value whether it is known, and where it is its distance from the centre and the square of that."""
        from_centre = np.nan_to_num(self.values - self._centre())
        return np.stack([~np.isnan(self.values), from_centre, from_centre**2]).astype(float)

    def bootstrap(self, rule: MvlRule, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """95% percentile bounds of each layer's mean, and its share of resamples in the MVL: (L,) each.

        Samples are drawn with replacement, all layers of a sample together.
        """
        generator = np.random.default_rng([seed, 7])
        rows, count = self.values.shape
        terms = np.concatenate(list(self._terms()), axis=1)
        means, inside = [], []
        chunk = max(1, 2_000_000 // max(rows, 1))
        for start in range(0, RESAMPLES, chunk):
            size = min(chunk, RESAMPLES - start)
            picks = generator.integers(0, rows, (size, rows))
            weights = np.stack([np.bincount(pick, minlength=rows) for pick in picks]).astype(float)
            sums = (weights @ terms).reshape(size, 3, count).transpose(1, 0, 2)
            means.append(_divide(sums[1], sums[0]) + self._centre())
            inside.append(_rule(sums, rule, self._centre())[0])
        resampled = np.concatenate(means)
        measured = ~np.isnan(resampled).all(0)
        bounds = np.full((2, count), np.nan)
        bounds[:, measured] = np.nanpercentile(resampled[:, measured], [2.5, 97.5], axis=0)
        return bounds[0], bounds[1], np.concatenate(inside).mean(0)

    def amplification(self) -> np.ndarray:  # (L,)
        """Mean measure under the attack over that under random noise of the same size; NaN without noise."""
        return _divide(self.means(), _mean(self.yardstick))

    def gains(self) -> np.ndarray:  # (L,)
        """Each layer's mean over the previous layer's; the first over the input's own relative error."""
        before = np.concatenate([_mean(self.input_error[:, None]), self.means()[:-1]])
        return _divide(self.means(), before)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full_like(a, np.nan, dtype=float), where=(b != 0) & np.isfinite(b))


def _mean(values: np.ndarray) -> np.ndarray:  # (R, L) -> (L,), NaN left out
    known = ~np.isnan(values)
    return _divide(np.nansum(values, 0), known.sum(0).astype(float))


def _rule(sums: np.ndarray, rule: MvlRule, centre: float) -> tuple[Any, Any, Any, Any]:
    """sums (3, B, L) = count, total, total of squares, from the centre, for B resamples -> inside (B, L), mu, sigma, passed (B,).

    mu counts from the same centre.
    """
    means = _divide(sums[1], sums[0])  # (B, L)
    count, total, squares = sums.sum(2)  # (B,) each
    mu = _divide(total, count)
    if rule.sigma == "layers":
        sigma = np.array([np.std(row[~np.isnan(row)]) if (~np.isnan(row)).any() else np.nan for row in means])
        mu = np.array([np.mean(row[~np.isnan(row)]) if (~np.isnan(row)).any() else np.nan for row in means])
    else:
        sigma = np.sqrt(np.maximum(_divide(squares, count) - mu**2, 0))
    comparable = np.where(means + centre > _ROUNDING * abs(centre), means, -np.inf)
    if rule.top_k is not None:
        place = np.argsort(np.argsort(-comparable, axis=1, kind="stable"), axis=1, kind="stable")
        inside = (place < rule.top_k) & np.isfinite(comparable)
        return inside, mu, sigma, inside.any(1)
    inside = comparable - mu[:, None] > rule.eta * sigma[:, None]
    passed = inside.any(1)
    alone = np.flatnonzero(~passed & np.isfinite(comparable).any(1))
    inside[alone, comparable[alone].argmax(1)] = True
    return inside, mu, sigma, passed
