"""Fleet: the audits of many models side by side, best first, and which of them is ahead beyond noise.

Models with the same protocol and samples form a group. In a group every pair is tested sample by sample: exact McNemar test on
the samples that one model gets right under every attack and the other one does not. All pairs of a group share a false
alarm rate of 5% (Holm's method, Scandinavian Journal of Statistics 6, 1979), so that it also holds for the best model,
which is chosen by the same numbers.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field

from lsa_cli.errors import UsageError
from lsa_cli.report import by_sample
from lsa_cli.report.compare import refuse_other_protocol
from lsa_cli.report.facts import data_in_words
from lsa_cli.report.measurement import worst_class
from lsa_cli.report.ranking import weakest_class
from lsa_cli.report.row import Rate, Row
from lsa_cli.report.schema import SCHEMA_VERSION, AuditReport, EvidenceVerdict, GateResult
from lsa_cli.stats import mcnemar

_CHANCE = 0.05
_mcnemar = lru_cache(maxsize=1 << 16)(mcnemar)


class Against(Row):
    """A model against the best one of its group, on the same samples."""

    model: str = Field(description="the best one")
    points: float = Field(description="difference of the robust accuracies, in shares")
    won: int = Field(description="samples that only this model gets right under every attack")
    lost: int = Field(description="samples that only the best one does")
    p: float = Field(description="exact McNemar test, before the pairs of the group share the 5%")
    beyond_noise: bool


class FleetRow(Row):
    """A model. Numbers are null where the audit failed or did not run."""

    model: str
    checkpoint: str
    state: Literal["audited", "failed", "not run"]
    reason: str = Field(default="", description="why it failed")
    report: str | None = Field(default=None, description="path of the report in the folder")
    sha256: str | None = None
    created: str | None = None
    seconds: float | None = None
    audit: str | None = Field(default=None, description="with --triage: quick or full")
    protocol: str = Field(default="", description="threat model and samples, as text")
    clean: Rate | None = None
    robust: Rate | None = None
    proven: Rate | None = None
    worst_class: str | None = None
    worst: Rate | None = Field(default=None, description="robust accuracy of the worst class; low is of all classes")
    evidence: EvidenceVerdict | None = None
    gates: list[GateResult] = []
    group: int | None = Field(default=None, description="models of one group have the same protocol and samples")
    ahead_of: int | None = Field(default=None, description="models of the group that it is ahead of beyond noise")
    behind: int | None = Field(default=None, description="models of the group that are ahead of it beyond noise")
    best: Against | None = Field(default=None, description="null for the best model, and where no test was made")

    @property
    def is_breached(self) -> bool:
        return any(not gate.passed and gate.severity == "error" for gate in self.gates)


class Fleet(Row):
    """The audits of several models: the rows of each group together, the best model first; failures last."""

    schema_version: str = SCHEMA_VERSION
    tool: str
    rows: list[FleetRow]

    @property
    def breached(self) -> list[FleetRow]:
        return [row for row in self.rows if row.is_breached]

    @property
    def failed(self) -> list[FleetRow]:
        return [row for row in self.rows if row.state == "failed"]


def make_fleet(
    tool: str,
    reports: Mapping[str, AuditReport],
    paths: Mapping[str, str],
    others: Sequence[FleetRow] = (),
    kinds: Mapping[str, str] | None = None,
) -> Fleet:
    """reports: complete ones, by model; paths: of their files, by model. others: rows of models without a report.

    kinds: quick or full, by model, after a triage.
    """
    rows: list[FleetRow] = []
    groups = sorted(comparable(reports), key=lambda models: (kinds or {}).get(models[0]) == "quick")
    for number, models in enumerate(groups):
        found = [_row(name, reports[name], paths[name], number) for name in models]
        for row in found:
            row.audit = (kinds or {}).get(row.model)
        found.sort(key=_best_first)
        _test(found, reports)
        rows += found
    return Fleet(tool=tool, rows=[*rows, *sorted(others, key=lambda row: (row.state, row.model))])


def comparable(reports: Mapping[str, AuditReport]) -> list[list[str]]:
    """The models by protocol and samples, the largest group first."""
    groups: list[list[str]] = []
    for name, report in reports.items():
        fitting = (group for group in groups if _is_comparable(reports[group[0]], report))
        group = next(fitting, None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return sorted(groups, key=len, reverse=True)


def _is_comparable(one: AuditReport, other: AuditReport) -> bool:
    try:
        refuse_other_protocol(one, other)
    except UsageError:
        return False
    return True


def _row(name: str, report: AuditReport, path: str, group: int) -> FleetRow:
    verdict, weakest = report.verdict, weakest_class(report)
    return FleetRow(
        model=name, checkpoint=report.subject.checkpoint, state="audited", report=path, sha256=report.subject.sha256,
        created=report.created, seconds=report.seconds, protocol=protocol_in_words(report), clean=verdict.clean,
        robust=verdict.robust, proven=verdict.proven, worst_class=None if weakest is None else weakest.name,
        worst=worst_class(report), evidence=None if report.evidence is None else report.evidence.verdict,
        gates=report.gates, group=group,
    )  # fmt: skip


def protocol_in_words(report: AuditReport) -> str:
    """ "linf 8/255, 1000 samples of cifar10"."""
    threat = report.protocol.threat
    return f"{threat.norm} {threat.text}, {data_in_words(report.data)}"


def _best_first(row: FleetRow) -> tuple[bool, float, float, str]:
    """An invalid number means nothing, so it is no best one."""
    robust, clean = (-1.0 if one is None or one.value is None else one.value for one in (row.robust, row.clean))
    return row.evidence == "invalid", -robust, -clean, row.model


def _test(rows: list[FleetRow], reports: Mapping[str, AuditReport]) -> None:
    """Fill in ahead_of, behind and best of the rows whose reports have single samples and no invalid evidence."""
    tested = [row for row in rows if row.evidence != "invalid" and reports[row.model].samples is not None]
    if not tested:
        return
    right = np.array([by_sample.robust(s) for row in tested if (s := reports[row.model].samples) is not None], float)
    won = np.rint(right @ (1 - right).T).astype(int)  # won[i, j]: samples that model i gets right and model j does not
    beyond = _beyond_noise(won)
    for place, row in enumerate(tested):
        row.ahead_of = int((beyond[place] & (won[place] > won[:, place])).sum())
        row.behind = int((beyond[place] & (won[place] < won[:, place])).sum())
        if place:
            gained, lost = int(won[place, 0]), int(won[0, place])
            row.best = Against(
                model=tested[0].model, points=(gained - lost) / right.shape[1], won=gained, lost=lost,
                p=_mcnemar(gained, lost), beyond_noise=bool(beyond[place, 0]),
            )  # fmt: skip


def _beyond_noise(won: np.ndarray) -> np.ndarray:  # (M, M) -> (M, M) bool
    """Which pairs differ, by Holm's method over all pairs."""
    first, second = np.triu_indices(len(won), 1)
    p = np.array([_mcnemar(int(won[i, j]), int(won[j, i])) for i, j in zip(first, second, strict=True)])
    order = np.argsort(p, kind="stable")
    passes = p[order] <= _CHANCE / (len(p) - np.arange(len(p)))
    count = len(p) if passes.all() else int(passes.argmin())
    beyond = np.zeros(won.shape, bool)
    chosen = order[:count]
    beyond[first[chosen], second[chosen]] = beyond[second[chosen], first[chosen]] = True
    return beyond
