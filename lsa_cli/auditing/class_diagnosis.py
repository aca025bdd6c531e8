"""ClassDiagnosis: robustness by class (arXiv 2105.14240), from one verdict per sample.

The paper's own metric formulas could not be read; ours are named by what they compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lsa_cli.report.row import Rate
from lsa_cli.report.schema import AttackPair, ClassRow, ClassSummary
from lsa_cli.stats import spearman, wilson


def rate(flags: np.ndarray) -> Rate:
    """The share of True in a boolean array, with its interval."""
    count, n = int(flags.sum()), len(flags)
    interval = wilson(count, n)
    low, high = interval if interval is not None else (None, None)
    return Rate(count=count, n=n, value=count / n if n else None, low=low, high=high)


@dataclass(frozen=True)
class ClassDiagnosis:
    """y, clean, adversarial (N,) int: true class, class predicted clean, class predicted under the attack (-1: none).

    counted (N,) bool: the perturbed input obeys the budget. One that does not gains nothing.
    """

    y: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray
    counted: np.ndarray

    @property
    def right(self) -> np.ndarray:  # (N,) bool
        return self.clean == self.y

    @property
    def robust(self) -> np.ndarray:  # (N,) bool
        """Right clean, and not fooled within the budget: the one definition of robust."""
        return self.right & ~((self.adversarial != self.y) & self.counted)

    @property
    def broken(self) -> np.ndarray:  # (N,) bool
        return self.right & ~self.robust

    def by_class(self, classes: int) -> np.ndarray:  # (K,), NaN for classes without samples
        """Robust accuracy of each class."""
        return self._shares(self.robust, classes)

    def clean_by_class(self, classes: int) -> np.ndarray:  # (K,), NaN for classes without samples
        """Clean accuracy of each class."""
        return self._shares(self.right, classes)

    def _shares(self, flags: np.ndarray, classes: int) -> np.ndarray:  # (N,) bool -> (K,)
        n = np.bincount(self.y, minlength=classes).astype(float)
        held = np.bincount(self.y[flags], minlength=classes)
        return np.divide(held, n, out=np.full(classes, np.nan), where=n > 0)

    def confusion(self, classes: int) -> np.ndarray:  # (K, K)
        """Of the samples right clean: true class by predicted class under the attack, where one was predicted."""
        predicted = np.where(self.counted, self.adversarial, self.y)
        rows = self.right & (predicted >= 0)
        table = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(table, (self.y[rows], predicted[rows]), 1)
        return table

    def rows(self, names: Sequence[str]) -> list[ClassRow]:
        table = self.confusion(len(names))
        np.fill_diagonal(table, 0)
        rows = []
        for number, name in enumerate(names):
            mine = self.y == number
            moved = table[number].sum()
            rows.append(
                ClassRow(
                    name=name,
                    clean=rate(self.right[mine]),
                    robust=rate(self.robust[mine]),
                    target=names[int(table[number].argmax())] if moved else None,
                    concentration=float(table[number].max() / moved) if moved else None,
                )
            )
        return rows


def class_vector(rows: Sequence[ClassRow]) -> np.ndarray:  # (K,), NaN for classes without samples
    return np.array([np.nan if row.robust.value is None else row.robust.value for row in rows])


def summarise(rows: Sequence[ClassRow], weight_norms: np.ndarray | None) -> ClassSummary:
    """Spread over the classes that have samples; weight_norms (K,) of the last layer, if it has one row a class."""
    values = class_vector(rows)
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return ClassSummary(
            worst_class=None, worst=None, mean=None, max_discrepancy=None, variance=None, sd=None, nsd=None,
            weight_norm_correlation=None,
        )  # fmt: skip
    worst = int(np.nanargmin(values))
    mean, sd = float(known.mean()), float(known.std())
    correlation = None if weight_norms is None else spearman(weight_norms, values)
    return ClassSummary(
        worst_class=rows[worst].name,
        worst=float(values[worst]),
        mean=mean,
        max_discrepancy=float(known.max() - known.min()),
        variance=float(known.var()),
        sd=sd,
        nsd=sd / mean if mean else None,
        weight_norm_correlation=correlation,
    )


def compare_attacks(outcomes: Sequence[tuple[str, ClassDiagnosis]], classes: int) -> list[AttackPair]:
    """Every pair of attacks, the weaker first: do they agree on the order of the classes, and where does the
    stronger one gain? Weak classes are those below the median robust accuracy under the weaker attack."""
    pairs = []
    for i, (first_name, first) in enumerate(outcomes):
        for second_name, second in outcomes[i + 1 :]:
            weaker, stronger = (first_name, first), (second_name, second)
            if stronger[1].robust.sum() > weaker[1].robust.sum():
                weaker, stronger = stronger, weaker
            a, b = _class_counts(weaker[1], classes), _class_counts(stronger[1], classes)
            share_a, share_b = weaker[1].by_class(classes), stronger[1].by_class(classes)
            gain = a - b
            weak = share_a < np.nanmedian(share_a)
            pairs.append(
                AttackPair(
                    weaker=weaker[0],
                    stronger=stronger[0],
                    spearman=spearman(share_a, share_b),
                    gain=int(gain.sum()),
                    gain_on_weak_classes=float(gain[weak].sum() / gain.sum()) if gain.sum() > 0 else None,
                )
            )
    return pairs


def _class_counts(diagnosis: ClassDiagnosis, classes: int) -> np.ndarray:
    return np.bincount(diagnosis.y[diagnosis.robust], minlength=classes)
