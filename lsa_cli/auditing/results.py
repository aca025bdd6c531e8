"""What an audit has measured: arrays with one row per sample. Results add up, and the report is derived from the sum."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsa_cli.auditing.class_diagnosis import ClassDiagnosis
from lsa_cli.auditing.evidence.preflight import LogitsSummary
from lsa_cli.auditing.observation import Observation

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class AttackRows:
    """What one attack or noise did to N samples; two of them add up.

    ran (N,) bool: the attack was run on the sample; a cascade skips those that are broken. Where it was not run, the
    other arrays hold the clean class, False, 0 or NaN. predicted (N,) int: class of the perturbed input, -1 for NaN.
    within (N,) bool: the perturbation obeys the threat model. finite (N,) bool: the attack returned a finite input.
    found_at (N,) int: forward pass in which the sample first broke, 0 for none. margin, distance (N,) float: best
    wrong logit minus the true one; size of the perturbation. wrong (N, R) bool: of a stochastic network, wrong in each of
    R evaluations (otherwise R = 0). seen: the forward pass through the scanned layers, None where there was none.
    """

    ran: np.ndarray
    predicted: np.ndarray
    within: np.ndarray
    finite: np.ndarray
    found_at: np.ndarray
    margin: np.ndarray
    distance: np.ndarray
    wrong: np.ndarray
    seconds: float
    seen: Observation | None = None

    def __add__(self, other: "AttackRows") -> "AttackRows":
        return _added(self, other)

    def take(self, rows: np.ndarray) -> "AttackRows":
        """These rows, in this order."""
        return _taken(self, rows, len(self.ran))

    def replaced(self, rows: np.ndarray, new: "AttackRows") -> "AttackRows":
        """With what the attack did to the samples `rows` (M,), which is `new`. The time adds up."""
        changed = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                changed[field.name] = value.copy()
                changed[field.name][rows] = getattr(new, field.name)
        return dataclasses.replace(self, **changed, seconds=self.seconds + new.seconds)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ProofRows:
    """proven (N,) bool: classified correctly, and proven to be so for every input within the budget. seconds: the proof took."""

    proven: np.ndarray
    seconds: float


@dataclass(frozen=True)
class BlockResult:
    """All that an audit measures of N samples; the results of two blocks add up to that of both.

    index, label, clean (N,) int: place in the data set, true class, class predicted for the input as it is. content (N,)
    uint64: a digest of the input. wrong (N, R): as in `AttackRows`, without an attack. no_gradient (N,) bool: the attacks'
    loss has no gradient there. attacks: by label. curves: for each attack (N, E) bool, right clean and broken at each radius
    of the grid. proof: None where nothing is proven.
    """

    index: np.ndarray
    label: np.ndarray
    clean: np.ndarray
    content: np.ndarray
    wrong: np.ndarray
    no_gradient: np.ndarray
    logits: LogitsSummary
    attacks: Mapping[str, AttackRows] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    proof: ProofRows | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __add__(self, other: "BlockResult") -> "BlockResult":
        return _added(self, other)

    def with_attack(self, label: str, rows: AttackRows) -> "BlockResult":
        return dataclasses.replace(self, attacks={**self.attacks, label: rows})

    def with_attack_on(self, label: str, rows: np.ndarray, found: AttackRows) -> "BlockResult":
        """With what an attack did to the samples `rows` (M,) alone, besides those that it ran on before."""
        return self.with_attack(label, self.attacks.get(label, self.unattacked()).replaced(rows, found))

    def unattacked(self) -> AttackRows:
        """The rows of an attack that ran on no sample."""
        nothing, count = np.zeros(len(self), dtype=bool), len(self)
        unknown = np.full(count, np.nan)
        return AttackRows(
            ran=nothing, predicted=self.clean, within=nothing, finite=~nothing,
            found_at=np.zeros(count, dtype=np.int32), margin=unknown, distance=unknown,
            wrong=np.zeros_like(self.wrong), seconds=0.0,
        )  # fmt: skip

    def rows(self, places: np.ndarray) -> "BlockResult":
        """The samples at these places of the data set, without attacks. The samples here are in order."""
        return _taken(self.only([], []), np.searchsorted(self.index, places), len(self))

    def with_curve(self, label: str, broken: np.ndarray) -> "BlockResult":
        return dataclasses.replace(self, curves={**self.curves, label: broken})

    def in_order(self) -> "BlockResult":
        """Ordered by place in the data set, so that the order of blocks changes no sum. Rows of whole batches stay."""
        return _taken(self, np.argsort(self.index), len(self))

    @property
    def right(self) -> np.ndarray:  # (N,) bool
        return self.clean == self.label

    def diagnosis(self, label: str, is_noise: bool = False) -> ClassDiagnosis:
        """By class, under one attack. Noise has no budget to obey."""
        rows = self.attacks[label]
        counted = np.ones(len(self), dtype=bool) if is_noise else rows.within
        return ClassDiagnosis(self.label, self.clean, rows.predicted, counted)

    def survivors(self, labels: Sequence[str]) -> np.ndarray:  # (N,) bool
        """Classified correctly as they are and under each of these attacks, as far as it was run."""
        left = self.right
        for label in labels:
            left = left & self.diagnosis(label).robust
        return left

    @property
    def proven(self) -> np.ndarray:  # (N,) bool
        return np.zeros(len(self), dtype=bool) if self.proof is None else self.proof.proven

    def to_attack(self, labels: Sequence[str]) -> np.ndarray:  # (N,) bool
        """Those of `survivors` that are not proven: what a cascade attacks."""
        return self.survivors(labels) & ~self.proven

    def with_cascade(self, part: "BlockResult") -> "BlockResult":
        """With the attacks of a cascade that ran on the samples of `part` alone. The samples here are in order."""
        places, result = np.searchsorted(self.index, part.index), self
        for label, rows in part.attacks.items():
            met = np.flatnonzero(rows.ran)
            result = result.with_attack_on(label, places[met], rows.take(met))
        return result

    def only(self, attacks: Sequence[str], curves: Sequence[str]) -> "BlockResult":
        """Without the other attacks and curves."""
        return dataclasses.replace(
            self, attacks={label: self.attacks[label] for label in attacks}, curves={label: self.curves[label] for label in curves}
        )  # fmt: skip

    def to_arrays(self) -> Arrays:
        """Plain arrays by name, for a file; `from_arrays` reads them."""
        arrays = _flat(self, "")
        arrays["attacks"], arrays["curves"] = (np.array(list(kind), dtype=str) for kind in (self.attacks, self.curves))
        for number, rows in enumerate(self.attacks.values()):
            arrays |= _flat(rows, f"attacks.{number}")
        for number, broken in enumerate(self.curves.values()):
            arrays[f"curves.{number}"] = broken
        return arrays

    @staticmethod
    def from_arrays(arrays: Arrays) -> "BlockResult":
        labels = {kind: arrays[kind].tolist() for kind in ("attacks", "curves")}
        attacks = {label: _attack_rows(arrays, f"attacks.{number}") for number, label in enumerate(labels["attacks"])}
        curves = {label: arrays[f"curves.{number}"] for number, label in enumerate(labels["curves"])}
        plain = {name: arrays[name] for name in ("index", "label", "clean", "content", "wrong", "no_gradient")}
        summary = {field.name: arrays[f"logits.{field.name}"] for field in dataclasses.fields(LogitsSummary)}
        for name in ("n", "not_finite", "sums_to_one"):
            summary[name] = summary[name].item()
        proof = ProofRows(arrays["proof.proven"], float(arrays["proof.seconds"])) if "proof.proven" in arrays else None
        return BlockResult(**plain, logits=LogitsSummary(**summary), attacks=attacks, curves=curves, proof=proof)  # type: ignore[arg-type]


def common(results: Sequence[BlockResult]) -> BlockResult:
    """The sum of results, with the attacks and curves that all of them have."""
    attacks = [label for label in results[0].attacks if all(label in result.attacks for result in results)]
    curves = [label for label in results[0].curves if all(label in result.curves for result in results)]
    total, *others = [result.only(attacks, curves) for result in results]
    for other in others:
        total = total + other
    return total


def _added(one: Any, other: Any) -> Any:
    """The sum of two values of one type: arrays are joined, and numbers and summaries add up."""
    if isinstance(one, np.ndarray):
        return np.concatenate([one, other])
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        return {name: _added(value, other[name]) for name, value in one.items()}
    if isinstance(one, (AttackRows, BlockResult, ProofRows)):
        names = [field.name for field in dataclasses.fields(one)]
        return type(one)(**{name: _added(getattr(one, name), getattr(other, name)) for name in names})
    return None if one is None or other is None else one + other  # the sum has only what both have


def _taken(value: Any, rows: np.ndarray, count: int) -> Any:
    """These rows of every array that has one for each of `count` samples."""
    if isinstance(value, np.ndarray):
        return value[rows] if len(value) == count else value
    if isinstance(value, Mapping):
        return {name: _taken(item, rows, count) for name, item in value.items()}
    if isinstance(value, (AttackRows, BlockResult, Observation, ProofRows)):
        names = [field.name for field in dataclasses.fields(value)]
        return type(value)(**{name: _taken(getattr(value, name), rows, count) for name in names})
    return value


def _flat(value: Any, prefix: str) -> Arrays:
    arrays: Arrays = {}
    for field in dataclasses.fields(value):
        item, name = getattr(value, field.name), f"{prefix}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(item):
            arrays |= _flat(item, name)
        elif item is not None and not isinstance(item, Mapping):
            arrays[name] = np.asarray(item)
    return arrays


def _attack_rows(arrays: Arrays, prefix: str) -> AttackRows:
    plain = {f.name: arrays[f"{prefix}.{f.name}"] for f in dataclasses.fields(AttackRows) if f.name != "seen"}
    seen = None
    if f"{prefix}.seen.index" in arrays:
        seen = Observation(**{f.name: arrays[f"{prefix}.seen.{f.name}"] for f in dataclasses.fields(Observation)})
    return AttackRows(**{**plain, "seconds": float(plain["seconds"]), "seen": seen})  # type: ignore[arg-type]
