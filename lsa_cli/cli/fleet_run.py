"""The run of a fleet on this machine: one round of audits, or a quick round and the full audits that it calls for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lsa_cli.cli.console import note
from lsa_cli.errors import LsaError
from lsa_cli.settings import AuditSettings
from lsa_cli.settings.declare import settings_of

if TYPE_CHECKING:
    from lsa_cli.fleet.folder import Audit
    from lsa_cli.report.fleet import Fleet, FleetRow
    from lsa_cli.report.schema import AuditReport

# Settings of a full audit that a quick one has too, though they stand in the panels of attacks and data.
_OF_QUICK = ("norm", "eps", "data", "split", "input_size", "match_classes")


@dataclass
class FleetRun:
    """places: audits at once. since: as in `Audit.failure`. shares: other workers may audit the same checkpoints."""

    audits: "Sequence[Audit]"
    device: str | None
    places: int
    since: int
    shares: bool
    fail_fast: bool
    quiet: bool

    def full(self) -> "tuple[Fleet, dict[str, AuditReport]]":
        """Audit all; the table, and the complete reports by model."""
        self._work(self.audits)
        reports, others = self._settled(self.audits)
        return self._table(reports, others, {}), reports

    def triage(self) -> "tuple[Fleet, dict[str, AuditReport]]":
        """Quick audits of all, and full ones of those that `needs_full` names, until it names none."""
        from lsa_cli.report.triage import needs_full

        short = {audit.name: quick_of(audit) for audit in self.audits}
        self._work(list(short.values()))
        quick, others = self._settled(list(short.values()))
        tried: list[Audit] = []
        while True:
            full, failed = self._settled(tried)
            tried_names = {audit.name for audit in tried}
            chosen = [name for name in needs_full(quick, full) if name not in tried_names]
            if not chosen or (self.fail_fast and (failed or others)):
                break
            if not self.quiet:
                note(f"triage: {len(chosen)} of {len(quick)} models need a full audit")
            now = [audit for audit in self.audits if audit.name in chosen]
            self._work(now)
            tried += now
        stopped = {row.model for row in failed}
        kinds = {name: "full" if name in full else "quick" for name in quick if name not in stopped}
        reports = {name: full.get(name, quick[name]) for name in kinds}
        return self._table(reports, [*others, *failed], kinds), reports

    def _work(self, audits: "Sequence[Audit]") -> None:
        """Audit, until each is settled."""
        import lsa_cli.auditing.run  # noqa: F401  once, and not in every process that is forked
        from lsa_cli.cli.fleet_audit import audit_alone
        from lsa_cli.fleet.claims import Claims
        from lsa_cli.fleet.workers import Worker
        from lsa_cli.wording import plural

        others = sum(audit.is_of_other_settings() for audit in audits)
        if others:
            are, its = ("are", "their new audits are") if others > 1 else ("is", "its new audit is")
            note(
                f"{plural(others, 'report')} in {audits[0].folder} {are} of other settings, code or data, and replaced when {its} complete"
            )
        Worker(
            audits, audit_alone, self._tell(len(audits)), places=self.places, devices=_devices(self.device),
            claims=Claims() if self.shares else None, since=self.since, fail_fast=self.fail_fast,
        ).run()  # fmt: skip

    def _tell(self, count: int) -> "Callable[[Audit], None]":
        settled = 0

        def tell(audit: "Audit") -> None:
            nonlocal settled
            settled += 1
            if not self.quiet:
                note(f"{settled} of {count}: {_in_words(audit, self.since)}")

        return tell

    def _settled(self, audits: "Sequence[Audit]") -> "tuple[dict[str, AuditReport], list[FleetRow]]":
        """The complete reports, judged by the limits of now, by model, and rows of the audits without one."""
        from lsa_cli.report.fleet import FleetRow

        reports: dict[str, AuditReport] = {}
        others = []
        for audit in audits:
            report, reason = _judged(audit, self.since)
            if report is not None:
                reports[audit.name] = report
                continue
            state = "not run" if reason is None else "failed"
            others.append(FleetRow(model=audit.name, checkpoint=audit.checkpoint, state=state, reason=reason or ""))
        return reports, others

    def _table(self, reports: "dict[str, AuditReport]", others: "list[FleetRow]", kinds: dict[str, str]) -> "Fleet":
        from lsa_cli._version import __version__
        from lsa_cli.fleet.folder import REPORT
        from lsa_cli.report.fleet import make_fleet

        short = {audit.name: quick_of(audit) for audit in self.audits if kinds.get(audit.name) == "quick"}
        paths = {
            audit.name: short.get(audit.name, audit).file(REPORT).relative_to(audit.folder).as_posix()
            for audit in self.audits
        }
        return make_fleet(f"lsa {__version__}", reports, paths, others, kinds)


def quick_of(audit: "Audit") -> "Audit":
    """The same audit with --quick, on no more samples. Limits are decided from its report, not by it: they may name attacks
    that it lacks."""
    from lsa_cli.auditing.presets import QUICK_LIMIT

    plain = {
        one.name: None
        for one in settings_of(AuditSettings)
        if one.panel in ("Attack", "Data") and one.name not in _OF_QUICK
    }
    limit = audit.settings.limit
    few = limit if isinstance(limit, int) and limit < QUICK_LIMIT else None
    settings = audit.settings.replace(**{**plain, "preset": "quick", "gate": None, "limit": few})
    origin = {name: where for name, where in audit.origin.items() if plain.get(name, "") is not None}
    return replace(audit, settings=settings, origin=origin, kind="quick", limits=audit.limits)


def _devices(asked: str | None) -> int:
    """The number of CUDA devices to divide among the processes; 0 where they use none, or the one that is asked for."""
    import torch

    return torch.cuda.device_count() if asked in (None, "auto", "cuda") else 0


def _judged(audit: "Audit", since: int) -> "tuple[AuditReport | None, str | None]":
    """The complete report, judged by the limits of now, or why there is none. since: as in `Audit.failure`."""
    report = audit.report()
    if report is None:
        return None, audit.failure(since)
    try:
        return audit.judged(report), None
    except LsaError as error:
        return None, str(error)


def _in_words(audit: "Audit", since: int) -> str:
    from lsa_cli.report.terminal import one_line

    report, reason = _judged(audit, since)
    return f"{audit.name} failed: {reason}" if report is None else one_line(report)
