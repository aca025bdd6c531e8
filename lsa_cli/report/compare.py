"""compare(): what changed between two reports of one protocol, and whether chance could be the reason.

The false alarm rate is 5% for each table (accuracy, class, layer) as a whole: its rows share it (Bonferroni).

- If both reports have a result for each sample, an accuracy is tested sample by sample: exact McNemar test, two-sided, on the
  samples whose result changed. It has far more power than two intervals.
- Other accuracies: Newcombe's interval of a difference, from the two Wilson intervals. Layers: a normal test of the two means.
  Both assume that the two runs are independent, which is conservative for the same samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from statistics import NormalDist
from typing import Literal, get_args

from pydantic import Field

from lsa_cli.errors import UsageError
from lsa_cli.report import by_sample
from lsa_cli.report.facts import data_in_words
from lsa_cli.report.measurement import Measurement, difference
from lsa_cli.report.protocol import Data
from lsa_cli.report.row import Rate, Row
from lsa_cli.report.schema import SCHEMA_VERSION, AuditReport, EvidenceVerdict, LayerRow
from lsa_cli.report.sequential import Decision
from lsa_cli.stats import detectable_pairs, detectable_shares, mcnemar, widened
from lsa_cli.wording import plural

_CHANCE = 0.05
_NORMAL = NormalDist()
_WORSE = get_args(EvidenceVerdict)
_PLURALS = ("attacks", "classes")  # of the settings that two reports must share


class Change(Row):
    """One number before and after. beyond_noise: chance alone is unlikely to cause the change."""

    table: Literal["accuracy", "class", "layer"]
    name: str
    attack: str | None = Field(
        description="the attack; null for clean accuracy and for the worst case over all attacks"
    )
    old: float
    new: float
    n: int | None = Field(description="samples")
    won: int | None = Field(default=None, description="samples wrong before and right now; null where not paired")
    lost: int | None = Field(default=None, description="samples right before and wrong now")
    p: float | None = Field(default=None, description="of the test, before rows share the 5%; null for an interval")
    beyond_noise: bool
    detectable: float | None = Field(
        default=None,
        description="the smallest difference that the test finds with a power of 80%, by the changed samples, or by both shares; null for a layer, and where there are too few samples",
    )

    @property
    def label(self) -> str:
        return self.name if self.attack is None else f"{self.name} under {self.attack}"


class VulnerableChange(Row):
    """Layers that entered or left the most vulnerable ones under one attack."""

    attack: str
    new: list[str]
    lost: list[str]


class Side(Row):
    """One of the two reports."""

    checkpoint: str
    sha256: str | None
    created: str
    evidence: EvidenceVerdict | None
    proven: float | None = Field(default=None, description="share of all samples; null without a proof")
    draws: int | None = Field(
        default=None,
        description="of a stochastic network: evaluations in the mean of an accuracy; won, lost, p and classes are of the first evaluation; layers are above their noise floor",
    )


class Comparison(Row):
    """Two reports of one protocol, side by side; changes: every number that both hold, those beyond noise first."""

    schema_version: str = SCHEMA_VERSION
    old: Side
    new: Side
    changes: list[Change]
    vulnerable: list[VulnerableChange] = Field(description="attacks under which the most vulnerable layers changed")
    layers_only_in_old: list[str] = []
    layers_only_in_new: list[str] = []
    regressions: list[str] = Field(description="accuracies that fell beyond noise; and evidence, if its verdict fell")
    sequential: list[Decision] | None = Field(default=None, description="null unless --sequential asks for it")

    @property
    def by_chance(self) -> str | None:
        """A sentence on the evaluations behind each number of a stochastic network; None if neither network is stochastic."""
        draws = self.new.draws or self.old.draws
        said = f"accuracies of a stochastic network are means over {draws} evaluations; won, lost, p and classes are of the first evaluation; layers are above their noise floor"
        return said if draws else None

    @property
    def one_proof(self) -> str | None:
        """A sentence on the proof that only one report has; None otherwise."""
        shares = {"old": self.old.proven, "new": self.new.proven}
        proven = [
            f"only the {which} report has a proof: {share:.1%}" for which, share in shares.items() if share is not None
        ]
        return f"{proven[0]} of all samples are proven robust, which is not compared" if len(proven) == 1 else None

    @property
    def detectable(self) -> str | None:
        """A sentence on the smallest differences that the accuracies could have shown; None without an accuracy."""
        main = [change for change in self.changes if change.name in ("robust", "clean") and change.table == "accuracy"]
        if not main:
            return None
        found = {c.name: "none" if c.detectable is None else f"{100 * c.detectable:.1f} points" for c in main}
        several = ", ".join(f"{name} accuracy {found[name]}" for name in ("clean", "robust") if name in found)
        return f"the smallest differences that these {plural(main[0].n or 0, 'sample')} could have found (power 80%): {several}"


# A change whose beyond_noise is not decided yet, with the rates whose intervals decide where it has no p-value.
_Candidate = tuple[Change, tuple[Rate, Rate] | None]


def compare(old: AuditReport, new: AuditReport) -> Comparison:
    """Raises UsageError with the first difference in settings or samples: numbers would not mean the same."""
    refuse_other_protocol(old, new)
    candidates = [*_accuracies(old, new), *_classes(old, new), *_layers(old, new)]
    tables = [change.table for change, _ in candidates]
    for change, rates in candidates:
        error = _CHANCE / tables.count(change.table)
        change.beyond_noise, change.detectable = _is_beyond(change, rates, error), _detectable(change, error)
    changes = [change for change, _ in candidates]
    changes.sort(key=lambda change: not change.beyond_noise)  # stable: the order of the report within each
    before, after = _layer_names(old), _layer_names(new)
    sides = _side(old), _side(new)
    fallen = [c.label for c in changes if c.table != "layer" and c.beyond_noise and c.new < c.old]
    if None not in (sides[0].evidence, sides[1].evidence) and _rank(sides[1]) > _rank(sides[0]):
        fallen.append(f"evidence: {sides[0].evidence} -> {sides[1].evidence}")
    return Comparison(
        old=sides[0],
        new=sides[1],
        changes=changes,
        vulnerable=list(_vulnerable(old, new)),
        layers_only_in_old=[name for name in before if name not in after],
        layers_only_in_new=[name for name in after if name not in before],
        regressions=fallen,
    )


def refuse_other_protocol(old: AuditReport, new: AuditReport) -> None:
    for which, report in (("first", old), ("second", new)):
        refuse_part(report, which)
    of_chance = [report.verdict.clean_draws is not None for report in (old, new)]
    # Several passes through a deterministic network give the same as one.
    passes_count = of_chance[0] == of_chance[1]
    refuse_differences(
        {
            "norm": (old.protocol.threat.norm, new.protocol.threat.norm),
            "eps": (old.protocol.threat.eps, new.protocol.threat.eps),
            "measure": (old.protocol.measure, new.protocol.measure),
            "aggregate": (old.protocol.aggregate, new.protocol.aggregate),
            "classes": (old.subject.class_names, new.subject.class_names),
            "attacks": _differing(attack_settings(old, passes_count), attack_settings(new, passes_count)),
        }
    )
    refuse_other_samples(old.data, new.data)


def refuse_part(report: AuditReport, which: str) -> None:
    """Raises UsageError for a report that does not cover all its samples. which: its name in the message."""
    if report.status != "complete":
        raise UsageError(f"the reports cannot be compared: the {which} is not complete (status: {report.status})")
    if report.early is not None:
        raise UsageError(f"the reports cannot be compared: the {which} is of a --gate-only run; audit it in full")


def refuse_differences(sides: Mapping[str, tuple[object, object]]) -> None:
    """Raises UsageError with the first setting, by name, that differs before and after."""
    for what, (before, after) in sides.items():
        if before != after:
            verb = "differ" if what in _PLURALS else "differs"
            raise UsageError(
                f"the reports cannot be compared: {what} {verb} ({_short(before)} against {_short(after)}); "
                "audit both with the same settings"
            )


def refuse_other_samples(old: Data, new: Data) -> None:
    if old.fingerprint != new.fingerprint:
        before, after = (f"{data_in_words(data)}, fingerprint {data.fingerprint[:10]}" for data in (old, new))
        raise UsageError(
            f"the reports cannot be compared: samples differ ({before} against {after}); audit both on the same samples"
        )


def attack_settings(report: AuditReport, passes_count: bool) -> dict[str, object]:
    """The settings of attacks and noises, and of the cascade with the number of samples that it ran on; without the
    attacks that the evidence added.

    passes_count: whether the number of passes through the network makes a difference; otherwise it is left out.
    """
    settings = {outcome.name: outcome.settings for outcome in report.outcomes}
    settings |= {stage.attack: stage.settings for stage in report.cascade if not stage.by_evidence}
    if not passes_count:
        settings = {name: {**found, "eot": None} for name, found in settings.items()}
    checked = report.verdict.estimate.checked if report.verdict.estimate is not None else None
    is_patient = any(not stage.by_evidence for stage in report.cascade) and bool(
        report.protocol.settings.get("patient")
    )
    how: dict[str, object] = {} if checked is None else {"full_on": checked}
    return {**settings, **how, **({"patient": True} if is_patient else {})}


def _differing(old: Mapping[str, object], new: Mapping[str, object]) -> tuple[str, str]:
    """The entries that differ, as text: those of one side alone by their names, the others with their values."""

    def as_text(one: Mapping[str, object], other: Mapping[str, object]) -> str:
        parts = [f"{name} {one[name]}" if name in other else name for name in one if one[name] != other.get(name)]
        return ", ".join(parts) or "no other"

    return as_text(old, new), as_text(new, old)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- tests ---------------------------------------------------------------------------------------------


def _is_beyond(change: Change, rates: tuple[Rate, Rate] | None, error: float) -> bool:
    """By the p-value if there is one, else by the intervals of the rates."""
    if change.p is not None or rates is None:
        return change.p is not None and change.p <= error
    gap = difference(_widened(rates[0], error), _widened(rates[1], error))
    return gap.low is not None and gap.high is not None and not gap.low <= 0 <= gap.high


def _widened(rate: Rate, error: float) -> Measurement:
    assert rate.value is not None
    assert rate.low is not None
    assert rate.high is not None
    return Measurement(rate.value, *widened(rate.value, (rate.low, rate.high), error))


def _detectable(change: Change, error: float) -> float | None:
    if change.table == "layer" or change.n is None:
        return None
    if change.won is not None and change.lost is not None:
        return detectable_pairs(change.n, change.won + change.lost, error)
    return detectable_shares(change.old, change.new, change.n, error)


# ---- what there is to compare ----------------------------------------------------------------------------


def _accuracies(old: AuditReport, new: AuditReport) -> Iterator[_Candidate]:
    before, after = old.samples, new.samples
    clean = robust = proven = None
    if before is not None and after is not None:
        clean, robust = (
            _won_lost(by_sample.clean(before), by_sample.clean(after)),
            _won_lost(by_sample.robust(before), by_sample.robust(after)),
        )
        if before.proven is not None and after.proven is not None:
            proven = _won_lost(before.proven, after.proven)
    yield from _rate("accuracy", "clean", None, old.verdict.clean, new.verdict.clean, clean)
    yield from _rate("accuracy", "robust", None, old.verdict.robust, new.verdict.robust, robust)
    yield from _rate("accuracy", "proven", None, old.verdict.proven, new.verdict.proven, proven)
    for one, other in zip(old.outcomes, new.outcomes, strict=True):
        pair = None
        if before is not None and after is not None:
            flags = by_sample.under(before, one.name), by_sample.under(after, one.name)
            pair = None if flags[0] is None or flags[1] is None else _won_lost(flags[0], flags[1])
        yield from _rate("accuracy", "accuracy", one.name, one.robust, other.robust, pair)


def _classes(old: AuditReport, new: AuditReport) -> Iterator[_Candidate]:
    before, after = old.samples, new.samples
    for number, (one, other) in enumerate(zip(old.verdict.classes, new.verdict.classes, strict=True)):
        pair = None
        if before is not None and after is not None:
            mine = [label == number for label in before.label]
            pair = _won_lost(by_sample.robust(before), by_sample.robust(after), mine)
        yield from _rate("class", f"class {one.name}", None, one.robust, other.robust, pair)


def _rate(
    table: Literal["accuracy", "class"], name: str, attack: str | None, old: Rate | None, new: Rate | None,
    pair: tuple[int, int] | None,
) -> Iterator[_Candidate]:  # fmt: skip
    if old is not None and new is not None and old.value is not None and new.value is not None:
        won, lost = (None, None) if pair is None else pair
        change = Change(
            table=table, name=name, attack=attack, old=old.value, new=new.value, n=new.n, won=won, lost=lost,
            p=None if pair is None else mcnemar(*pair), beyond_noise=False,
        )  # fmt: skip
        yield change, (old, new)


def _won_lost(old: Sequence[bool], new: Sequence[bool], mine: Sequence[bool] | None = None) -> tuple[int, int]:
    """(wrong before and right now, right before and wrong now). Both reports have the same samples: their fingerprint is equal."""
    pairs = [(a, b) for a, b, chosen in zip(old, new, mine or [True] * len(old), strict=True) if chosen]
    return pairs.count((False, True)), pairs.count((True, False))


def _layers(old: AuditReport, new: AuditReport) -> Iterator[_Candidate]:
    for one, other in zip(old.outcomes, new.outcomes, strict=True):
        if one.layers is None or other.layers is None:
            continue
        rows = {row.name: row for row in other.layers.rows}
        for row in one.layers.rows:
            match = rows.get(row.name)
            if match is None or row.above_floor is None or match.above_floor is None:
                continue
            counts = one.layers.observations - row.undefined, other.layers.observations - match.undefined
            change = Change(
                table="layer", name=row.name, attack=one.name, old=row.above_floor, new=match.above_floor, n=counts[1],
                p=_means_differ(row, match, counts), beyond_noise=False,
            )  # fmt: skip
            yield change, None


def _means_differ(a: LayerRow, b: LayerRow, counts: tuple[int, int]) -> float:
    """Two-sided p-value of the normal test of two means above their noise floors, which count as exact."""
    assert a.above_floor is not None
    assert b.above_floor is not None
    error = sqrt(sum((row.sd or 0.0) ** 2 / max(1, count) for row, count in zip((a, b), counts, strict=True)))
    gap = abs(a.above_floor - b.above_floor)
    if error == 0:
        return 1.0 if gap == 0 else 0.0
    return 2 * _NORMAL.cdf(-gap / error)


def _vulnerable(old: AuditReport, new: AuditReport) -> Iterator[VulnerableChange]:
    for one, other in zip(old.outcomes, new.outcomes, strict=True):
        if one.layers is not None and other.layers is not None and one.kind != "noise":
            before, after = one.layers.mvl, other.layers.mvl
            entered, left = [n for n in after if n not in before], [n for n in before if n not in after]
            if entered or left:
                yield VulnerableChange(attack=one.name, new=entered, lost=left)


def _layer_names(report: AuditReport) -> list[str]:
    return list(dict.fromkeys(row.name for o in report.outcomes if o.layers for row in o.layers.rows))


def _side(report: AuditReport) -> Side:
    return Side(
        checkpoint=report.subject.checkpoint, sha256=report.subject.sha256, created=report.created,
        evidence=report.evidence.verdict if report.evidence is not None else None,
        proven=report.verdict.proven.value if report.verdict.proven is not None else None,
        draws=report.verdict.clean_draws.n if report.verdict.clean_draws is not None else None,
    )  # fmt: skip


def _rank(side: Side) -> int:
    return _WORSE.index(side.evidence or "trusted")
