"""run_audit(): take blocks of samples, add up their results, report the sum."""

import contextlib
import dataclasses
import datetime
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from lsa_cli import distributed
from lsa_cli.attacks import Attack
from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.ranked import by_rank, everywhere, lots
from lsa_cli.auditing.assembly import Extras, make_report, not_run
from lsa_cli.auditing.attacking import find_copy
from lsa_cli.auditing.block import attack_only, audit_block
from lsa_cli.auditing.contradiction import refuse_contradictions
from lsa_cli.auditing.copies import copy_in_words
from lsa_cli.auditing.cost import Known, cascade_work, evidence_work, numerics, rounds_work, total_work
from lsa_cli.auditing.draw_by_margin import best_margin, draw, strata_by_margin
from lsa_cli.auditing.evidence.decision import FEW_SAMPLES, Checked, evidence_of, lowered
from lsa_cli.auditing.evidence.examine import probe_passes, probe_size
from lsa_cli.auditing.evidence.preflight import refuse_useless_logits
from lsa_cli.auditing.execution import Execution, Progress, blocks, sample_order
from lsa_cli.auditing.journal import Journal
from lsa_cli.auditing.limits import OutOfTime, out_of_memory
from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.probing import (
    can_be_normalized,
    clean_checks,
    examine,
    measure_metrics,
    remember,
    show_examples,
    try_normalizations,
)
from lsa_cli.auditing.proving import chosen_proof
from lsa_cli.auditing.results import BlockResult
from lsa_cli.failures import is_out_of_memory
from lsa_cli.models.precision import channels_last
from lsa_cli.report.gate import check
from lsa_cli.report.schema import AuditReport, Warning


class StoppingRule(Protocol):
    """Decides after each block whether the samples so far are enough.

    on_all_right: labels of attacks of the cascade that meet every sample that is right, not the survivors alone.
    """

    on_all_right: frozenset[str]

    def is_met(self, total: BlockResult) -> bool: ...

    def complete(self, report: AuditReport, total: BlockResult) -> None:
        """Add to the report what was decided."""


def run_audit(
    plan: AuditPlan,
    *,
    progress: Progress | None = None,
    on_update: Callable[[AuditReport], None] | None = None,
    journal: Journal | None = None,
    rule: StoppingRule | None = None,
) -> AuditReport:
    """Take the samples in random order, block by block, and report the sum of what was measured.

    on_update: gets a readable report in the first block after every attack, and later whenever there is twice as much.
    journal: every block is kept there as soon as it is measured, and read from there when the audit is resumed. rule:
    stops the audit early. Each of several ranks measures a share of every block, and all return the same report.

    When the run is interrupted or fails, on_update gets what was measured, marked so, before the exception goes on.
    Memory that runs out becomes a RunError that says what to do.
    """
    run = Execution(plan, progress or (lambda what, done, total: None), journal)
    state = _Audit(run, on_update, rule)
    network = plan.network.classifier
    with numerics(plan.threads), undisturbed(network), contextlib.ExitStack() as layout, state.reported_when_it_ends():
        run.progress("clean accuracy", 0, run.total)
        if rule is None:
            run.batch.fit(lambda: remember(run))
        run.copy = run.batch.fit(lambda: find_copy(run))
        if run.copy.model is not None and plan.network.device.type == "cpu":
            layout.enter_context(channels_last(network))
        state.extras.attacked = copy_in_words(plan, run.copy)
        state.choose_proof()
        state.take_blocks()
        if plan.settings.full_on is not None:
            state.take_part_through_cascade()
        if plan.rounds:
            state.take_rounds()
        if rule is None:
            state.probe()
        report = state.update("complete")
    distributed.barrier()  # whoever started the ranks ends the others when one exits with an error, as for a breached gate
    return report


class _Audit:
    """The sum of the blocks so far, and its report."""

    def __init__(
        self, run: Execution, on_update: Callable[[AuditReport], None] | None, rule: StoppingRule | None
    ) -> None:  # fmt: skip
        self.run, self.plan, self.on_update, self.rule = run, run.plan, on_update, rule
        self.extras = Extras(created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
        self.total: BlockResult | None = None
        self._reported = 0  # attacked samples in the last report

    def choose_proof(self) -> None:
        """Whether the proof of the plan runs, and what it costs."""
        proof = chosen_proof(self.run)
        if proof is not self.plan.proof:
            self.plan = self.run.plan = dataclasses.replace(self.plan, proof=proof)
            self.run.total = total_work(self.plan)

    def take_blocks(self) -> None:
        """Measure all samples, or stop where the rule is met or the time budget is exhausted."""
        plan = self.plan
        later = evidence_work(plan, Known(robust=1.0))
        if plan.settings.full_on is not None or plan.rounds:
            later += cascade_work(plan)
        at_once = () if plan.settings.full_on is not None else [n for n in plan.cascade if n not in plan.rounds]
        phase = partial(
            audit_block, self.run, cascade=at_once, on_all_right=self.rule.on_all_right if self.rule else ()
        )  # fmt: skip
        self._add_up("block", sample_order(plan), phase, lambda block: block, later)

    def take_part_through_cascade(self) -> None:
        """The second phase of a two-phase estimate: the cascade runs on a part of the samples that are still robust."""
        assert self.total is not None
        plan, scanned = self.plan, self.total.in_order()
        labels = [named.label for named in plan.attacks]
        if any(label not in scanned.attacks for label in labels) or distributed.anywhere(self.run.clock.is_late()):
            return
        strata = strata_by_margin(scanned, labels, plan.settings.full_on or 0)
        drawn = draw(strata, np.random.default_rng([plan.seed, 11]))
        if not len(drawn):
            for named in plan.cascade:
                scanned = scanned.with_attack(named.label, scanned.unattacked())
            self.total = scanned
        self._add_up(
            "cascade", scanned.index[drawn], partial(audit_block, self.run, scan=False, cascade=plan.cascade),
            scanned.with_cascade, probe_passes(probe_size(len(scanned)), len(scanned)),
        )  # fmt: skip

    def take_rounds(self) -> None:
        """The ranked cascade, once the attacks before it have run on all samples; see `attacks.ranked`."""
        assert self.total is not None
        plan, total = self.plan, self.total.in_order()
        before = [named.label for named in plan.budget_attacks if named not in plan.rounds]
        if any(label not in total.attacks for label in before) or distributed.anywhere(self.run.clock.is_late()):
            return
        margins = np.where(total.to_attack(before), np.fmin(best_margin(total, before), 0), np.nan)
        proven = int(total.proven.sum())
        lot = lots(plan.seed, torch.from_numpy(total.index))
        rounds = [named.round for named in plan.rounds if named.round is not None]
        parts = itertools.count()

        def attack(number: int, rows: np.ndarray) -> np.ndarray:
            assert self.total is not None
            named, scanned = plan.rounds[number], self.total
            self.extras.unfinished = [named.label]

            def on(index: np.ndarray, **of_first_block: Any) -> tuple[BlockResult | None, bool]:
                return attack_only(self.run, named, scanned, index)

            places, later = scanned.index[rows], rounds_work(plan, first=number + 1) + evidence_work(plan)
            if not self._add_up(f"round-{next(parts)}", places, on, scanned.with_cascade, later):
                raise OutOfTime
            robust, found = self.total.survivors([named.label]), self.total.attacks[named.label].margin
            return np.where(robust, np.fmin(found, 0), np.inf)[rows]

        self.total = total
        with contextlib.suppress(OutOfTime):
            for met in by_rank(everywhere(rounds) if plan.settings.patient else rounds, margins, lot, attack, proven):
                self.extras.met[plan.rounds[len(self.extras.met)].label] = met
            self.extras.unfinished = []
            for named in plan.rounds[len(self.extras.met) :]:  # no sample was left for them
                self.total = self.total.with_attack(named.label, self.total.unattacked())

    def _add_up(
        self, phase: str, order: np.ndarray, work: Callable[..., tuple[BlockResult | None, bool]],
        total_of: Callable[[BlockResult], BlockResult], later: float,
    ) -> bool:  # fmt: skip
        """The loop of every audit: measure one block after the other, until all are done or there is a reason to stop.

        Returns whether all are done. total_of: the total, from the sum of the blocks of this phase. later: passes that the work after this phase costs.
        """
        run, known = self.run, None
        for number, index in enumerate(blocks(self.plan, order, ends_early=self.rule is not None)):
            # The share of one rank is no random sample, so it is not reported.
            tell = (lambda part: self._take(total_of(part))) if distributed.world() == 1 else (lambda part: None)
            first = {"is_first": True, "on_part": tell} if known is None else {}
            found, in_time = run.on_ranks(phase, number, index, partial(work, **first))
            is_usable = in_time or known is None  # a part of the first block is better than no report
            if found is not None and is_usable:
                known = found if known is None else known + found
                self._take(total_of(known), always=number == 0)
            run.keep_time(later)
            if not in_time or self._is_enough():
                return False
            if distributed.anywhere(run.clock.is_late()):
                return known is not None and len(known) == len(order)
        return True

    def _is_enough(self) -> bool:
        return self.rule is not None and self.total is not None and self.rule.is_met(self.total)

    def _take(self, total: BlockResult, always: bool = True) -> None:
        """Keep the sum so far. It is reported always, or where there is twice as much as in the last report."""
        plan = self.plan
        source = str(plan.network.checkpoint.path) if plan.network.checkpoint else plan.network.arch
        refuse_useless_logits(total.logits, plan.network.classifier.output == "probabilities", source)
        self.total, self.run.has_begun = total, True
        if plan.proof is not None:
            for named in (*plan.budget_attacks, *self.extras.found):
                if named.label in total.attacks:
                    broken = total.diagnosis(named.label).broken
                    refuse_contradictions(total.index, total.proven, broken, named.label, plan.proof.within)
        size = sum(int(rows.ran.sum()) for rows in total.attacks.values())
        if self.on_update is not None and (always or size >= 2 * self._reported):
            self._reported = size
            self.update("running")

    # ---- the report --------------------------------------------------------------------------------------

    def probe(self) -> None:
        """Measure on a few samples, once all are measured and as far as the time budget allows."""
        run, plan, extras = self.run, self.plan, self.extras
        assert self.total is not None
        run.clock.reserve = 0
        total = self.total = self.total.in_order()
        if self._met:
            run.expect(evidence_work(plan, Known(robust=float(total.survivors(self._met).mean()))))
        if can_be_normalized(plan):
            extras.normalization = next(iter(run.in_time(lambda: try_normalizations(run, total))), None)
        clean = clean_checks(plan, total, extras.normalization)
        checked = self.lower(next(iter(run.in_time(lambda: examine(run, total, clean))), []))
        is_quick = plan.is_quick or len(total) < FEW_SAMPLES
        total = self.total
        robust = float(total.survivors(self._met).mean()) if self._met else 1.0
        extras.evidence = evidence_of(checked, is_quick, robust) if checked else None
        if self._is_scanned:
            if plan.metrics:
                extras.metrics = next(iter(run.in_time(lambda: measure_metrics(run, total))), None)
            extras.examples = next(iter(run.in_time(lambda: show_examples(run, total))), None)
        extras.not_run = self._lacking()

    @property
    def _is_scanned(self) -> bool:
        assert self.total is not None
        return any(named.label in self.total.attacks for named in self.plan.attacks)

    def _lacking(self) -> list[str]:
        """What of the plan is not measured, or not to its end."""
        assert self.total is not None
        plan, extras = self.plan, self.extras
        attacks, others = not_run(plan, self.total)
        lacking = [*attacks, *(label for label in extras.unfinished if label not in attacks)]
        if self.rule is not None:
            return lacking + others
        lacking += ["evidence"] if plan.budget_attacks and extras.evidence is None else []
        lacking += others
        lacking += ["metrics"] if plan.metrics and extras.metrics is None else []
        return lacking + (["examples"] if self._is_scanned and extras.examples is None else [])

    def lower(self, checked: Sequence[Checked]) -> list[Checked]:
        """Run the attacks that beat those of the audit on all samples that are still robust, as part of the verdict.

        Returns the checks; their findings say what the attacks did.
        """
        labels = distributed.gather_objects([label for check in checked for label in check.attacks])
        agreed = set.intersection(*map(set, labels))  # ranks on unlike processors may differ
        return [
            self._lowered(check, {label: check.attacks[label] for label in check.attacks if label in agreed})
            for check in checked
        ]

    def _lowered(self, check: Checked, attacks: Mapping[str, Attack]) -> Checked:
        if not attacks or self.plan.settings.full_on is not None:
            return check  # an estimate is one of the planned cascade
        assert self.total is not None
        before, in_time = self.total.survivors(self._met), True
        for label, attack in attacks.items():
            in_time &= self._run_on_all(NamedAttack(label, label, label, attack))
        if check.finding is None:
            return dataclasses.replace(check, said=f"{check.said}; they count in the result")
        after = self.total.survivors(self._met)
        said = lowered(check.finding, int(before.sum()), int(after.sum()), len(after), in_time)
        return dataclasses.replace(check, finding=said)

    def _run_on_all(self, named: NamedAttack) -> bool:
        """Run an attack on the samples that are still robust. Returns whether it did in time."""
        assert self.total is not None
        total = self.total
        places = total.index[total.to_attack(self._met)]

        def on(index: np.ndarray, **of_first_block: Any) -> tuple[BlockResult | None, bool]:
            return attack_only(self.run, named, total, index)

        self.extras.found.append(named)
        if not len(places):
            self.total = total.with_attack(named.label, total.unattacked())
            return True
        self.extras.unfinished.append(named.label)
        late = distributed.anywhere(self.run.clock.is_late())
        if late or not self._add_up(f"found-{named.label}", places, on, total.with_cascade, 0):
            return False
        self.extras.unfinished.remove(named.label)
        return True

    @property
    def _met(self) -> list[str]:
        """The attacks of the verdict that ran."""
        assert self.total is not None
        several = (*self.plan.budget_attacks, *self.extras.found)
        return [named.label for named in several if named.label in self.total.attacks]

    def update(self, status: str) -> AuditReport:
        """Report what is measured so far."""
        report = self._report(status)
        if self.on_update is not None:
            self.on_update(report)
        return report

    def _report(self, status: str) -> AuditReport:
        assert self.total is not None
        plan, total = self.plan, self.total.in_order()
        if status in ("interrupted", "failed"):
            self.extras.not_run = self._lacking()
        report = make_report(plan, total, self.extras)
        report.status, report.seconds = status, round(self.run.clock.seconds, 3)  # type: ignore[assignment]
        if self.rule is not None:
            self.rule.complete(report, total)
        elif status != "running":
            report.gates = check(report, plan.limits)
            if len(total) < len(plan.index):
                report.warnings.append(_fewer(status, len(total), len(plan.index)))
        return report

    @contextlib.contextmanager
    def reported_when_it_ends(self) -> Iterator[None]:
        """Within: before an exception goes on, what is measured is reported as interrupted or failed."""
        try:
            yield
        except KeyboardInterrupt:
            if self.total is not None:
                self.update("interrupted")
            raise
        except Exception as error:
            if self.total is not None:
                self.update("failed")
            if is_out_of_memory(error):
                raise out_of_memory(self.run.batch.size) from error
            raise


def why_it_ended(status: str) -> str:
    """Why an audit of this status has fewer samples than planned."""
    return {
        "complete": "the time budget was exhausted",
        "interrupted": "the audit was interrupted",
        "running": "the audit is still running",
    }.get(status, "the audit failed")


def _fewer(status: str, taken: int, planned: int) -> Warning:
    message = (
        f"{why_it_ended(status)} after {taken:,} of {planned:,} samples; they are a random subset, so the numbers are valid and their "
        "intervals wider"
    )
    return Warning(code="fewer-samples", message=message)
