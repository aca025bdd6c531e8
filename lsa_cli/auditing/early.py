"""decide_early(): an audit that stops as soon as every limit is decided.

The decisions are those of a full audit with the same attacks on the same samples. The probability that any of them is
wrong is at most alpha: each limit has its share of alpha (Bonferroni) and its own confidence sequence. A limit on a drop
is decided by the paired differences to a saved report.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from lsa_cli.auditing.baseline import checked_baseline
from lsa_cli.auditing.execution import Progress, sample_order
from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.results import BlockResult
from lsa_cli.auditing.run import run_audit, why_it_ended
from lsa_cli.auditing.unused import refuse_unused
from lsa_cli.errors import UsageError
from lsa_cli.report.gate import result_of
from lsa_cli.report.limits import MetricName, parse_metric
from lsa_cli.report.measurement import Measurement, extreme
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import AuditReport, Early, GateResult, Verdict, Warning
from lsa_cli.report.sequential import steps
from lsa_cli.stats import confidence_sequence, difference_sequence

DEFAULT_ALPHA = 0.01
_WITHOUT_ATTACK = ("clean", "drop.clean", "proven")
_EACH_END = 0.025  # error of each end of the intervals of the verdict


def decide_early(
    plan: AuditPlan,
    alpha: float | None = None,
    *,
    progress: Progress | None = None,
    on_update: Callable[[AuditReport], None] | None = None,
) -> AuditReport:
    """Run the attacks of the plan until its limits are decided, without layers and noises; see `run_audit` for the rest.

    alpha: None for the default. Raises UsageError where there are no limits, and for limits that are no shares of samples.
    """
    alpha = DEFAULT_ALPHA if alpha is None else alpha
    refuse_undecidable(plan, alpha)
    refuse_unused(plan, gate_only=True)
    rule = GateRule(plan, alpha)
    return run_audit(rule.reduced(), progress=progress, on_update=on_update, rule=rule)


def refuse_undecidable(plan: AuditPlan, alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise UsageError(f"--alpha {alpha:g} must be a probability between 0 and 0.5, such as 0.01")
    if plan.settings.full_on is not None:
        raise UsageError("--gate-only runs every attack on all samples that are still robust; leave out --full-on")
    if not plan.limits:
        raise UsageError(
            "--gate-only stops when every limit is decided, and there is none: give limits under `gate:` in lsa.yaml, "
            "or --fail-under robust=0.40"
        )
    others = [name for name, limit in plan.limits.items() if not _is_share(plan, name) and not limit.allow_not_run]
    if others:
        raise UsageError(
            f"--gate-only decides shares of samples (clean, robust, robust.ATTACK, proven, class.min, class.NAME, drop), and "
            f"{', '.join(others)} needs the full audit; leave --gate-only out, or set allow_not_run: true for it"
        )
    empty = [
        plan.network.class_names[k]
        for k in np.setdiff1d(np.arange(len(plan.network.class_names)), plan.network.labels[plan.index])
    ]
    wanted = [name for name in empty if {f"class.{name}", "class.min"} & set(plan.limits)]
    if wanted:
        raise UsageError(f"--gate-only: class {wanted[0]} has no samples, so its limit cannot be decided")
    if not (plan.attacks or plan.cascade) and set(plan.limits) - set(_WITHOUT_ATTACK):
        raise UsageError("--gate-only: no attack is asked for, so no robust accuracy can be decided")


def attacks_that_run(plan: AuditPlan) -> tuple[NamedAttack, ...]:
    """The attacks that --gate-only runs: none where it decides limits on clean accuracy alone."""
    return plan.budget_attacks if set(_decidable(plan)) - set(_WITHOUT_ATTACK) else ()


def _decidable(plan: AuditPlan) -> list[str]:
    return [name for name in plan.limits if _is_share(plan, name)]


def _is_share(plan: AuditPlan, metric: str) -> bool:
    name = parse_metric(metric)
    if name.names == "class" and name.target not in plan.network.class_names:
        return False
    if name.family == "drop":
        return plan.settings.baseline is not None
    if name.family == "proven":
        return plan.proof is not None
    return name.is_accuracy and (name.names != "attack" or _attack(plan, name.target) is not None)


def _attack(plan: AuditPlan, name: str) -> NamedAttack | None:
    return next((named for named in plan.attacks if name in (named.label, named.spec)), None)


class GateRule:
    """The `StoppingRule` that is met when the samples so far decide every limit."""

    def __init__(self, plan: AuditPlan, alpha: float) -> None:
        self.plan, self.alpha = plan, alpha
        self.decidable = _decidable(plan)
        wanted = [parse_metric(name) for name in self.decidable]
        own = (_attack(plan, name.target) for name in wanted if name.names == "attack")
        self.on_all_right = frozenset(named.label for named in own if named is not None)
        self.attacks = attacks_that_run(plan)
        self.baseline = None if plan.baseline is None else checked_baseline(plan.baseline, plan)

    def reduced(self) -> AuditPlan:
        """The plan with the attacks alone, in a cascade: each runs on the samples that are still robust."""
        everywhere = tuple(dataclasses.replace(named, round=None) for named in self.attacks)
        return dataclasses.replace(self.plan, attacks=(), cascade=everywhere, noises=(), layers=(), eps_grid=())

    def is_met(self, total: BlockResult) -> bool:
        return all(result.state != "undecided" for result in self.decide(total))

    def decide(self, total: BlockResult) -> list[GateResult]:
        """The state of every limit after the samples so far: undecided where more are needed."""
        labels, population = [named.label for named in self.attacks], self.plan.network.labels[self.plan.index]
        error = self.alpha / max(1, len(self.decidable))
        missing = [label for label in labels if label not in total.attacks]
        robust = total.survivors([label for label in labels if label in total.attacks])

        def share(flags: np.ndarray, size: int, error_above: float = error) -> Measurement:
            if len(flags) == 0:
                return Measurement(None, why="no such sample was taken")
            bounds = confidence_sequence(int(flags.sum()), len(flags), size, error, error_above)
            return Measurement(float(flags.mean()), *bounds)

        def measure(metric: MetricName) -> Measurement:
            if self.baseline is not None and str(metric) == "drop.clean":
                return self._drop(total, self.baseline.clean, total.right, error)
            if metric.family == "clean":
                return share(total.right, len(population))
            if metric.family == "proven":
                return share(total.proven, len(population))
            if missing:
                return Measurement(None, why=f"the time budget left out {missing[0]}")
            if self.baseline is not None and metric.family == "drop":
                return self._drop(total, self.baseline.robust, robust, error)
            if metric.names == "attack":
                named = _attack(self.plan, metric.target)
                assert named is not None
                return share(total.diagnosis(named.label).robust, len(population))
            if metric.family != "class":
                return share(robust, len(population))
            names = list(self.plan.network.class_names)
            chosen = [names.index(metric.target)] if metric.names else range(len(names))
            # Any upper bound can be the lowest; of the lower ones that of the worst class decides.
            each = error / len(chosen)
            return _lowest(
                {names[k]: share(robust[total.label == k], int((population == k).sum()), each) for k in chosen}
            )

        results = []
        for text, limit in self.plan.limits.items():
            metric = parse_metric(text)
            if text in self.decidable:
                results.append(result_of(metric, limit, measure(metric), sequential=True))
            else:
                results.append(result_of(metric, limit, Measurement(None, why="--gate-only does not measure it")))
        return results

    def _drop(self, total: BlockResult, before: np.ndarray, now: np.ndarray, error: float) -> Measurement:
        """The drop from the baseline. before: which samples of the plan are right there; now: which so far are right here."""
        assert self.baseline is not None
        places = np.searchsorted(self.plan.index, total.index)
        taken = np.argsort(
            np.argsort(sample_order(self.plan))[places]
        )  # bets need the order; a block is sorted by place
        found = steps(before[places], now)[taken]
        low, high = difference_sequence(-found, len(self.plan.index), error)
        return Measurement(float((-found).mean()), low, high, note=f"against {self.baseline.checkpoint}")

    def complete(self, report: AuditReport, total: BlockResult) -> None:
        """Add the decisions to the report, and why the run ended."""
        used, size, met = len(total), len(self.plan.index), self.is_met(total)
        full_seconds = round(report.seconds / used * size, 1)
        report.early = Early(used=used, population=size, alpha=self.alpha, full_seconds=full_seconds)
        report.data.selection = f"the first {used:,} of {size:,} in random order, seed {self.plan.seed}"
        why = "they decided the limits" if met else why_it_ended(report.status)
        report.verdict.statement += (
            f" It is of a --gate-only run, which took {used:,} of {size:,} samples because {why}."
        )
        if self.attacks:
            report.verdict.statement += " No evidence was measured, so a network that misleads attacks passes, too; an audit without --gate-only asks for it."
        self._bound(report.verdict)
        message = (
            f"{used:,} of {size:,} samples decided the limits (wrongly with a probability of at most {self.alpha:g})"
            if met
            else f"{why} after {used:,} of {size:,} samples, before every limit was decided"
        )
        message += (
            f"; limits are about these {size:,} samples. The intervals of the verdict and of its classes hold wherever "
            "the run stops; other intervals in this report are for orientation only, because the run stopped at these numbers"
        )
        report.warnings.append(Warning(code="gate-only", message=message))
        report.gates = self.decide(total)

    def _bound(self, verdict: Verdict) -> None:
        """Widen the intervals of the verdict, so that they hold at whatever number of samples the run stops.

        They are the 95% intervals of a full audit together with a 95% confidence sequence, which lies inside once all samples
        are taken (our choice). The sequences of the K classes hold together, each with 1/K of the error (Bonferroni), because
        a reader takes the worst class.
        """
        rates = (verdict.clean, verdict.proven, verdict.robust)
        _widen(rates, len(self.plan.index), _EACH_END)
        network = self.plan.network
        sizes = np.bincount(network.labels[self.plan.index], minlength=len(network.class_names))
        if verdict.classes:  # none without an attack
            for row, size in zip(verdict.classes, sizes.tolist(), strict=True):
                _widen((row.clean, row.proven, row.robust), size, _EACH_END / len(sizes))


def _widen(rates: Iterable[Rate | None], size: int, error: float) -> None:
    """Each interval becomes the hull of itself and the confidence sequence of `size` samples, of which each end errs with `error`."""
    for rate in rates:
        if rate is not None and rate.low is not None and rate.high is not None:
            low, high = confidence_sequence(rate.count, rate.n, size, error)
            rate.low, rate.high = min(rate.low, low), max(rate.high, high)


def _lowest(rates: Mapping[str, Measurement]) -> Measurement:
    """The worst class: all reach a limit if the lowest lower end does, and one fails if the lowest upper end does."""
    unknown = [name for name, found in rates.items() if found.value is None]
    if unknown:
        return Measurement(None, why=f"no sample of class {unknown[0]} was taken")
    return extreme([dataclasses.replace(found, note=f"class {name}") for name, found in rates.items()], min)
