"""Record: for each sample which attack broke it first, at which look, how far beyond the boundary, how far away."""

from dataclasses import dataclass, field

import numpy as np

from lsa_cli.report.schema import Samples


@dataclass
class Record:
    """Arrays (N,) in the audit's order of samples. broken_by: position in `attacks`, -1 for none; held: see `Samples`."""

    broken_by: np.ndarray
    look: np.ndarray
    margin: np.ndarray
    distance: np.ndarray
    attacks: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(count: int) -> "Record":
        unknown = np.full(count, np.nan)
        return Record(np.full(count, -1), np.zeros(count, dtype=np.int64), unknown, unknown.copy())

    def note(
        self, attack: str, broken: np.ndarray, rows: np.ndarray, look: np.ndarray, margin: np.ndarray, distance: np.ndarray
    ) -> None:  # fmt: skip
        """What an attack did to the samples `rows` (M,): the other arrays have a place for each of them."""
        self.attacks.append(attack)
        whole = self.broken_by[rows] < 0
        first = broken & whole
        self.broken_by[rows[first]] = len(self.attacks) - 1
        self.look[rows[first]], self.distance[rows[first]] = look[first], distance[first]
        self.margin[rows[first]] = margin[first]
        missed = whole & ~broken
        self.margin[rows[missed]] = np.fmax(self.margin[rows[missed]], margin[missed])

    def hold(self, attack: str, robust: np.ndarray) -> None:
        """robust (N,) bool, of an attack that met every sample: what two audits of the same samples are compared by."""
        self.held[attack] = "".join(np.where(robust, "1", "0"))

    def rows(self, index: np.ndarray, label: np.ndarray, clean: np.ndarray) -> Samples:
        def numbers(values: np.ndarray) -> list[float | None]:
            known = zip(values.tolist(), np.isfinite(values).tolist(), strict=True)
            return [float(f"{value:.6g}") if is_known else None for value, is_known in known]

        return Samples(
            index=index.tolist(),
            label=label.tolist(),
            clean=clean.tolist(),
            broken_by=[self.attacks[position] if position >= 0 else None for position in self.broken_by.tolist()],
            look=[look if look > 0 else None for look in self.look.tolist()],
            margin=numbers(self.margin),
            distance=numbers(self.distance),
            held=self.held,
        )
