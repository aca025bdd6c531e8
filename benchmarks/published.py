"""Tables 2, 3 and 4 of arXiv 2202.02626 as published: accuracy in percent under FGSM, by eps, and the R&G score."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

OBJECTIVES = {"FGSM": "fgsm", "PGD": "pgd", "TRADE": "trades", "FAST": "fast", "APGD": "apgd"}

# Model: the eps of its columns.
GRIDS = {
    "A": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    "B": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    "C": (0.0, 0.01, 0.03, 0.1, 0.2),
    "D": (0.0, 0.01, 0.03, 0.1, 0.2),
}

# Model and row: accuracies in the order of the grid, then R&G.
PUBLISHED = {
    ("A", "Normal"): (97.07, 93.63, 82.5, 76.83, 63.79, 52.35, 466.17),
    ("A", "AT-FGSM"): (95.86, 91.98, 87.88, 81.33, 70.54, 58.69, 486.28),
    ("A", "AT-PGD"): (86.5, 83.89, 80.87, 76.61, 72.57, 60.02, 460.46),
    ("A", "AT-TRADE"): (96.17, 93.06, 85.78, 74.2, 68.62, 59.68, 477.51),
    ("A", "AT-FAST"): (94.32, 89.72, 84.91, 78.35, 70.18, 61.65, 479.13),
    ("A", "AT-FGSM-LR-L0"): (92.81, 90.25, 85.36, 80.74, 68.21, 58.74, 476.11),
    ("A", "AT-FGSM-LR-L1"): (91.87, 89.77, 86.95, 81.51, 69.15, 59.59, 478.84),
    ("A", "AT-FGSM-LR-L2"): (93.98, 93.01, 89.12, 84.01, 75.15, 63.25, 498.52),
    ("A", "AT-PGD-LR-L0"): (87.02, 84.02, 80.64, 76.22, 71.12, 65.87, 464.89),
    ("A", "AT-PGD-LR-L1"): (86.2, 82.94, 79.23, 75.16, 70.5, 65.04, 459.07),
    ("A", "AT-PGD-LR-L2"): (88.78, 86.93, 81.25, 77.01, 72.81, 66.58, 473.36),
    ("A", "AT-FAST-LR-L0"): (86.86, 83.85, 80.33, 76.34, 71.34, 65.79, 464.51),
    ("A", "AT-FAST-LR-L1"): (87.91, 85.43, 82.44, 77.38, 70.01, 62.25, 465.42),
    ("A", "AT-FAST-LR-L2"): (92.91, 90.31, 86.26, 81.53, 75.09, 67.65, 493.75),
    ("A", "AT-TRADE-LR-L0"): (86.84, 82.38, 80.55, 76.37, 71.58, 64.07, 461.79),
    ("A", "AT-TRADE-LR-L1"): (87.25, 84.22, 81.25, 76.98, 71.14, 63.25, 464.09),
    ("A", "AT-TRADE-LR-L2"): (96.67, 93.2, 86.56, 81.25, 79.5, 68.65, 505.83),
    ("B", "Normal"): (98.82, 82.1, 47.2, 17.87, 6.96, 4.25, 257.2),
    ("B", "AT-APGD"): (99.36, 98.54, 97.67, 96.97, 71.72, 33.73, 497.99),
    ("B", "AT-APGD-LR-L0"): (98.97, 98.11, 97.36, 97.17, 94.6, 55.52, 541.73),
    ("C", "Normal"): (90.53, 48.91, 43.91, 31.5, 22.29, 237.14),
    ("C", "AT-APGD"): (83.68, 74.69, 72.21, 50.04, 41.45, 322.07),
    ("C", "AT-APGD-LR-L1"): (83.55, 75.32, 73.35, 52.36, 46.01, 330.59),
    ("D", "Normal"): (90.01, 40.01, 36.35, 22.3, 16.2, 204.87),
    ("D", "AT-APGD"): (82.60, 50.12, 47.11, 41.46, 40.01, 261.3),
    ("D", "AT-APGD-LR-L1"): (81.81, 53.21, 48.17, 43.01, 42.65, 268.85),
}

# The most vulnerable layer that the paper finds in each normally trained model, by place from 0.
MVL = {"A": 2, "B": 0, "C": 1, "D": 1}

# Mean relative error by layer of the normally trained models, read off the paper's plots, so to about 0.03; it states no eps.
READ_OFF = {
    ("A", "fgsm"): (0.65, 0.75, 0.90),
    ("A", "pgd"): (0.71, 0.80, 0.99),
    ("B", "fgsm"): (0.75, 0.70, 0.62, 0.55),
    ("B", "pgd"): (0.94, 0.92, 0.81, 0.61),
    ("C", "fgsm"): (0.86, 0.95, 0.82, 0.84, 0.85, 0.88, 0.89, 0.80, 0.85, 0.88, 0.87, 0.78, 0.85, 0.70, 0.70, 0.75),
    ("C", "pgd"): (0.92, 1.09, 0.90, 0.90, 0.91, 0.93, 0.94, 0.84, 0.89, 0.92, 0.93, 0.80, 0.90, 0.90, 0.80, 0.90),
}


@dataclass(frozen=True)
class Row:
    """A row of a table. base: what it trains on, None for Normal; layer: the place, from 0, of the activation that is
    held, None where none is."""

    name: str
    base: str | None
    layer: int | None

    @property
    def method(self):
        return "at" if self.layer is None else "at-lr"

    @property
    def plain(self):
        """The row without the regularizer."""
        return self.name.partition("-LR-")[0]


def parse_row(name):
    """ "Normal", "AT-PGD" or "AT-PGD-LR-L2" -> Row. Raises ValueError for anything else."""
    if name == "Normal":
        return Row(name, None, None)
    found = re.fullmatch(rf"AT-({'|'.join(OBJECTIVES)})(?:-LR-L(\d+))?", name)
    if found is None:
        raise ValueError(
            f"'{name}' is no row: Normal, AT-BASE or AT-BASE-LR-Li, with BASE one of {', '.join(OBJECTIVES)}"
        )
    base, layer = found.groups()
    return Row(name, OBJECTIVES[base], None if layer is None else int(layer))


def robustness_and_generalisation(accuracies: Sequence[float]) -> float:
    """The R&G score: the sum of the accuracies over the columns, clean included. The paper only names it; the sum is
    what every published row adds up to."""
    return sum(accuracies)
