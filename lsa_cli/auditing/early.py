"""decide_early(): an audit that takes samples in random order and stops as soon as every limit is decided.

What is decided is what a full audit by the same attacks would find on the same samples. All limits together are
decided wrongly with a chance of alpha at most: each has its share of alpha (Bonferroni), and its own confidence sequence.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lsa_cli import distributed
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis, rate
from lsa_cli.auditing.cost import numerics
from lsa_cli.auditing.limits import Clock, OutOfTime
from lsa_cli.auditing.plan import AuditPlan, Named
from lsa_cli.auditing.record import Record
from lsa_cli.auditing.run import Progress, Run, told_when_it_ends
from lsa_cli.auditing.unused import refuse_unused
from lsa_cli.errors import UsageError
from lsa_cli.report.gate import result_of
from lsa_cli.report.limits import MetricName, parse_metric
from lsa_cli.report.measurement import Measurement, extreme
from lsa_cli.report.schema import AuditReport, Early, GateResult, Warning
from lsa_cli.stats import confidence_sequence

DEFAULT_ALPHA = 0.01
_FIRST_BLOCK = 64
_GROWTH = 0.25  # a block is at most this share of what was taken before: the most that is taken too much


def decide_early(
    plan: AuditPlan,
    alpha: float = DEFAULT_ALPHA,
    *,
    progress: Progress | None = None,
    on_update: Callable[[AuditReport], None] | None = None,
) -> AuditReport:
    """Run the plan's attacks, without layers and noises, until plan.limits are decided; see `run_audit` for the rest.

    Raises UsageError for limits that are no shares of samples, where they must be decided, and where there are none.
    """
    if distributed.world() > 1:
        raise UsageError("--gate-only decides one block of samples after the other, in one process; leave --nproc out")
    refuse_undecidable(plan, alpha)
    refuse_unused(plan, gate_only=True)
    run = _EarlyRun(plan, alpha, progress or (lambda what, done, total: None), on_update or (lambda report: None))
    with numerics(plan), told_when_it_ends(run.update_if_any, lambda: plan.batch_size):
        return run.everything()


def refuse_undecidable(plan: AuditPlan, alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise UsageError(f"--alpha {alpha:g} should be a chance between 0 and 0.5, such as 0.01")
    if plan.full_on is not None:
        raise UsageError("--gate-only decides from samples that met every attack; leave out --full-on")
    if not plan.limits:
        raise UsageError(
            "--gate-only stops when every limit is decided, and there is none: give limits under `gate:` in lsa.yaml, "
            "or --fail-under robust=0.40"
        )
    others = [name for name, limit in plan.limits.items() if not _is_share(plan, name) and not limit.allow_not_run]
    if others:
        raise UsageError(
            f"--gate-only decides shares of samples (clean, robust, robust.ATTACK, class.min, class.NAME), and "
            f"{', '.join(others)} needs the full audit; leave --gate-only out, or say allow_not_run: true for it"
        )
    empty = [plan.class_names[k] for k in np.setdiff1d(np.arange(len(plan.class_names)), plan.labels[plan.index])]
    wanted = [name for name in empty if {f"class.{name}", "class.min"} & set(plan.limits)]
    if wanted:
        raise UsageError(f"--gate-only: class {wanted[0]} has no samples, so its limit cannot be decided")
    if not (plan.attacks or plan.cascade) and any(name != "clean" for name in plan.limits):
        raise UsageError("--gate-only: no attack is asked for, so no robust accuracy can be decided")


def _is_share(plan: AuditPlan, metric: str) -> bool:
    name = parse_metric(metric)
    if name.names == "class" and name.target not in plan.class_names:
        return False
    return name.is_accuracy and (name.names != "attack" or _attack(plan, name.target) is not None)


def _attack(plan: AuditPlan, name: str) -> Named | None:
    return next((named for named in plan.attacks if name in (named.label, named.spec)), None)


class _Part(Run):
    """The audit of one block of samples. An attack with a limit of its own meets more than the survivors."""

    met_by_all: frozenset[str] = frozenset()
    told: int = 0  # warnings that are not of the attacks

    def targets(self, named: Named) -> np.ndarray:  # (N,) bool
        return self.clean == self.y if named.label in self.met_by_all else self.survivors()


class _EarlyRun:
    """Blocks of samples, until their counts decide."""

    def __init__(
        self, plan: AuditPlan, alpha: float, progress: Progress, on_update: Callable[[AuditReport], None]
    ) -> None:
        self.alpha, self.progress, self.on_update = alpha, progress, on_update
        self.limits = plan.limits
        self.decidable = {name: limit for name, limit in plan.limits.items() if _is_share(plan, name)}
        attacked = any(name != "clean" for name in self.decidable)
        wanted = [parse_metric(name) for name in self.decidable]
        own = (_attack(plan, name.target) for name in wanted if name.names == "attack")
        self.met_by_all = frozenset(named.label for named in own if named is not None)
        self.clock = Clock(plan.budget)
        self.plan = dataclasses.replace(
            plan, attacks=(), cascade=(*plan.attacks, *plan.cascade) if attacked else (), noises=(), layers=(), eps_grid=(),
            limits={}, budget=None,
        )  # fmt: skip
        self.original = plan
        self.parts: list[_Part] = []

    def everything(self) -> AuditReport:
        """Take blocks until every limit is decided, or the time is over."""
        order = np.random.default_rng([self.plan.seed, 17]).permutation(len(self.plan.index))
        for rows in _blocks(order):
            self.progress("gate", sum(len(part.y) for part in self.parts), len(order))
            try:
                self.take(self.plan.index[np.sort(rows)])
            except OutOfTime:
                break
            if all(result.state != "undecided" for result in self.decide()):
                break
            if self.clock.is_late():
                break
        return self.update("complete")

    def take(self, index: np.ndarray) -> None:
        part = _Part(
            dataclasses.replace(self.plan, index=index), lambda what, done, total: None, lambda report: None, None
        )
        part.met_by_all = self.met_by_all
        if self.parts:  # one block is always taken
            part.clock = self.clock
        part.clean = part.clean_pass()
        part.copy = self.parts[0].copy if self.parts else part.room.fit(part.find_copy)
        part.report = part.first_report()
        part.told = len(part.report.warnings)
        for position, named in enumerate(part.plan.cascade):
            part.one_stage(named, position)
        self.parts.append(part)

    # ---- deciding --------------------------------------------------------------------------------------

    def decide(self) -> list[GateResult]:
        """Every limit, from the samples so far: undecided where more of them are needed."""
        y, population = np.concatenate([part.y for part in self.parts]), self.plan.labels[self.plan.index]
        right = np.concatenate([part.clean == part.y for part in self.parts])
        robust = np.concatenate([part.survivors() for part in self.parts])
        error = self.alpha / len(self.decidable)

        def share(flags: np.ndarray, size: int, error: float) -> Measurement:
            if len(flags) == 0:
                return Measurement(None, why="no such sample was taken")
            return Measurement(float(flags.mean()), *confidence_sequence(int(flags.sum()), len(flags), size, error))

        def measure(metric: MetricName) -> Measurement:
            if metric.names == "attack":
                named = _attack(self.original, metric.target)
                return share(self.under(named.label if named else metric.target), len(population), error)
            if metric.family != "class":
                return share(right if metric.family == "clean" else robust, len(population), error)
            names = list(self.plan.class_names)
            chosen = [names.index(metric.target)] if metric.names else range(len(names))
            each = error / len(chosen)
            return _lowest({names[k]: share(robust[y == k], int((population == k).sum()), each) for k in chosen})

        results = []
        for text, limit in self.limits.items():
            metric = parse_metric(text)
            if text in self.decidable:
                results.append(result_of(metric, limit, measure(metric), sequential=True))
            else:
                results.append(result_of(metric, limit, Measurement(None, why="--gate-only does not measure it")))
        return results

    def under(self, label: str) -> np.ndarray:  # (n,) bool
        """Right clean and under one attack, which every such sample met."""
        return np.concatenate([d.robust for part in self.parts for named, d in part.cascaded if named.label == label])

    # ---- telling ---------------------------------------------------------------------------------------

    def update_if_any(self, status: str) -> None:
        """Before the first block there is nothing to report."""
        if self.parts:
            self.update(status)

    def update(self, status: str) -> AuditReport:
        """One report of all blocks."""
        whole = self.joined()
        used, size = len(whole.y), len(self.plan.index)
        whole.update(status)
        report = whole.report
        assert report is not None
        seconds = self.clock.seconds
        report.seconds = round(seconds, 3)
        report.early = Early(used=used, population=size, alpha=self.alpha, full_seconds=round(seconds / used * size, 1))
        report.data.selection = f"the first {used:,} of {size:,} in random order, seed {self.plan.seed}"
        report.verdict.statement += f" It is of a --gate-only run, which stopped after {used:,} of {size:,} samples because they decided the limits."
        report.warnings.append(
            Warning(
                code="gate-only",
                message=f"{used:,} of {size:,} samples decided the limits (wrongly with a chance of {self.alpha:g} at most); "
                "rates and intervals elsewhere in this report are for orientation, since they ended the run",
            )
        )
        report.gates = self.decide()
        self.on_update(report)
        return report

    def joined(self) -> Run:
        """The blocks as if they had been one, in the order of the data set."""
        index = np.concatenate([part.plan.index for part in self.parts])
        order = np.argsort(index)

        def gather(arrays: Iterable[Any]) -> np.ndarray:
            return np.concatenate(list(arrays))[order]

        plan = dataclasses.replace(self.plan, index=index[order])
        whole = Run(plan, self.progress, lambda report: None, None)
        whole.created = self.parts[0].created
        whole.clean = gather(part.clean for part in self.parts)
        whole.gradient_warnings = _distinct(warning for part in self.parts for warning in part.gradient_warnings)
        whole.copy = self.parts[0].copy
        whole.report = whole.first_report()
        records, names = [part.record for part in self.parts], [named.label for named in plan.cascade]
        # A block that an attack had nothing left to do in does not know it: positions are by the whole list of attacks.
        places = [np.array([*(names.index(name) for name in r.attacks), -1]) for r in records]
        whole.record = Record(
            gather(place[r.broken_by] for r, place in zip(records, places, strict=True)), gather(r.look for r in records),
            gather(r.margin for r in records), gather(r.distance for r in records), names,
        )  # fmt: skip
        whole.report.warnings += _distinct(
            w for part in self.parts if part.report for w in part.report.warnings[part.told :]
        )
        for position, named in enumerate(plan.cascade):
            several = [part.cascaded[position][1] for part in self.parts]
            fields = ("y", "clean", "adversarial", "counted")
            joint = ClassDiagnosis(*(gather(getattr(d, name) for d in several) for name in fields))
            whole.cascaded.append((named, joint))
            stages = [part.report.cascade[position] for part in self.parts if part.report is not None]
            left = np.logical_and.reduce([d.robust for _, d in whole.cascaded])
            whole.report.cascade.append(
                stages[0].model_copy(
                    update={
                        "tried": sum(stage.tried for stage in stages), "broke": sum(stage.broke for stage in stages),
                        "robust": rate(left), "seconds": round(sum(stage.seconds for stage in stages), 3),
                    }
                )
            )  # fmt: skip
        return whole


def _blocks(order: np.ndarray) -> Iterator[np.ndarray]:
    taken = 0
    while taken < len(order):
        size = max(_FIRST_BLOCK, int(_GROWTH * taken))
        yield order[taken : taken + size]
        taken += size


def _lowest(rates: Mapping[str, Measurement]) -> Measurement:
    """The worst class: all reach a limit if the lowest lower end does, and one fails if the lowest upper end does."""
    unknown = [name for name, found in rates.items() if found.value is None]
    if unknown:
        return Measurement(None, why=f"no sample of class {unknown[0]} was taken")
    return extreme([dataclasses.replace(found, note=f"class {name}") for name, found in rates.items()], min)


def _distinct(warnings: Iterable[Warning]) -> list[Warning]:
    """One of each kind: the first block that saw it speaks for all."""
    return list({warning.code: warning for warning in warnings}.values())
