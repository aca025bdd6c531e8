"""run_audit: attack, observe, add up, report. And audit(), the same for Python users."""

import dataclasses
import datetime
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from lsa_cli import distributed
from lsa_cli._version import __version__
from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.search import Goal
from lsa_cli.attacks.threat import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, Threat
from lsa_cli.auditing import evidence, examples, metrics
from lsa_cli.auditing.audit_warnings import attack_warnings, layer_warnings
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis, compare_attacks, rate
from lsa_cli.auditing.cost import LOOK, numerics, total_work
from lsa_cli.auditing.draws import DRAWS, draw, mean_rate, random_network, spread, verdict_over_draws
from lsa_cli.auditing.journal import Arrays, Journal
from lsa_cli.auditing.limits import Clock, OutOfTime, Room, out_of_memory
from lsa_cli.auditing.observation import Observation, observe
from lsa_cli.auditing.outcome import outcome_of, settings_of, verdict_of
from lsa_cli.auditing.plan import AuditPlan, Named, is_quick
from lsa_cli.auditing.provenance import claimed_accuracy, data_of, protocol_of, subject_of
from lsa_cli.auditing.radius import check_radius
from lsa_cli.auditing.record import Record
from lsa_cli.data import batches, check_inputs, prefetch
from lsa_cli.errors import DataError, RunError, UsageError
from lsa_cli.failures import is_out_of_memory
from lsa_cli.models.classifier import normalization_of, predicted_class, with_normalization
from lsa_cli.models.precision import Copy, make_copy
from lsa_cli.report.gate import check
from lsa_cli.report.ranking import strongest
from lsa_cli.report.schema import AuditReport, Curve, CurvePoint, Estimate, Evidence, Example, Metric, Stage, Warning
from lsa_cli.stats import two_phase

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # inputs (N, ...), labels (N,), places in the data set (N,)
_TRIED = 8  # samples that a faster copy is tried on
Measure = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Arrays]
Progress = Callable[[str, float, float], None]  # what is running, work done, work in all


def run_audit(
    plan: AuditPlan,
    *,
    progress: Progress | None = None,
    on_update: Callable[[AuditReport], None] | None = None,
    journal: Journal | None = None,
) -> AuditReport:
    """Run the plan. on_update gets a readable report after the clean pass and after every attack.

    journal: where every batch is kept as soon as it is measured, and found again. Of several ranks each measures
    part of the batches, and all end with the same report; the first one's journal counts.

    When the run is interrupted or breaks, on_update gets what was measured, marked so, before the exception
    goes on. Memory that runs out becomes a RunError with the mend.
    """
    run = Run(plan, progress or (lambda what, done, total: None), on_update or (lambda report: None), journal)
    with numerics(plan), told_when_it_ends(run.update, lambda: run.room.size):
        return run.everything()


@contextmanager
def told_when_it_ends(update: Callable[[str], object], at_once: Callable[[], int]) -> Iterator[None]:
    """Within: update("interrupted") or update("failed") before an exception goes on. at_once: samples on the device."""
    try:
        yield
    except KeyboardInterrupt:
        update("interrupted")
        raise
    except Exception as error:
        update("failed")
        if is_out_of_memory(error):
            raise out_of_memory(at_once()) from error
        raise


class Run:
    """The state of one audit while it runs."""

    def __init__(
        self, plan: AuditPlan, progress: Progress, on_update: Callable[[AuditReport], None], journal: Journal | None
    ) -> None:
        self.plan, self.progress, self.on_update, self.journal = plan, progress, on_update, journal
        self.clock = Clock(plan.budget)
        self.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.done, self.total = 0.0, total_work(plan)
        self.y = plan.labels[plan.index]
        self.clean: np.ndarray | None = None
        self.wrong = self.fooled = np.zeros(
            (0, DRAWS), dtype=bool
        )  # in each draw of a random network; clean, by any attack
        self.gradient_warnings: list[Warning] = []
        self.logits_check: list[evidence.Checked] = []
        self.clean_checks: list[evidence.Checked] = []
        self.report: AuditReport | None = None
        self.scanned: list[tuple[Named, ClassDiagnosis]] = []
        self.cascaded: list[tuple[Named, ClassDiagnosis]] = []
        self.measured: list[evidence.Measured] = []
        self.nearest: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.margins: dict[str, np.ndarray] = {}
        self.estimate: Estimate | None = None
        self.record = Record.of(len(self.y))
        self.whole = self.drawn = np.zeros(len(self.y), dtype=bool)  # before the cascade: left whole, to meet it
        self.names = [layer.name for layer in plan.layers]
        self.copy = Copy(None, "no attack has begun")
        self.room = Room(plan.batch_size, not (plan.batch_size_is_fixed or plan.whole_batch))

    def everything(self) -> AuditReport:
        plan = self.plan
        self.clean = self.clean_pass()
        self.clean_checks = self.check_clean()
        self.copy = self.room.fit(self.find_copy)
        self.report = self.first_report()
        self.update("running")
        for named in plan.attacks:
            self.within_budget(named.label, partial(self.one_attack, named))
        missing = "evidence"
        if plan.budget is not None and plan.cascade:  # which may take all the time there is
            missing = "evidence on the cascade" if self.find("evidence", self.examine) else missing
        self.whole = self.survivors()
        self.drawn = self.draw()
        for position, named in enumerate(plan.cascade):
            self.within_budget(named.label, partial(self.one_stage, named, position))
        self.find("evidence", self.examine, missing)
        for named in plan.noises:
            self.within_budget(named.label, partial(self.one_attack, named))
        for named in plan.attacks if plan.eps_grid else ():
            self.within_budget(f"{named.label} curve", partial(self.add_curve, named))
        if plan.metrics:
            self.find("metrics", self.measure_metrics, "metrics")
        if self.scanned:
            self.find("examples", self.show, "examples")
        self.report.status = "complete"
        self.report.gates = check(self.report, plan.limits)
        self.update("complete")
        return self.report

    def within_budget(self, what: str, work: Callable[[], None]) -> None:
        """Do it and hand out the report, unless the time for the audit is over: then the report names it."""
        assert self.report is not None
        if not self.clock.allows(work):
            self.report.not_run.append(what)
        self.update("running")

    def find(self, part: str, work: Callable[[], Any], missing: str | None = None) -> bool:
        """What `work` gives becomes this part of the report, if there is time for all of it; else the report names it."""
        assert self.report is not None
        found: list[Any] = []
        if self.clock.allows(lambda: found.append(self.room.fit(work))):
            setattr(self.report, part, found[0])
        elif missing is not None:
            self.report.not_run.append(missing)
        return bool(found)

    def update(self, status: str) -> None:
        """Hand out the report as far as it goes."""
        if self.report is not None and self.clean is not None:
            met = [*self.scanned, *self.cascaded]
            self.report.status = status  # type: ignore[assignment]
            self.report.seconds = round(self.clock.seconds, 3)
            verdict = verdict_of(self.plan, self.clean, met, self.estimate)
            self.report.verdict = (
                verdict_over_draws(verdict, self.wrong, self.fooled) if self.plan.is_random else verdict
            )
            self.report.pairs = compare_attacks([(n.label, d) for n, d in self.scanned], len(self.plan.class_names))
            self.report.samples = self.record.rows(self.plan.index, self.y, self.clean) if met else None
            if status in ("interrupted", "failed"):
                self.report.gates = check(self.report, self.plan.limits)
            self.on_update(self.report)

    def step(self, what: str, work: float) -> None:
        self.done += work
        self.progress(what, self.done, self.total)

    # ---- measuring -------------------------------------------------------------------------------------

    def inputs(self, index: np.ndarray, size: int) -> Generator[Batch, None, None]:
        """Inputs, labels and indices of some samples, batch by batch, on the device; the next are read meanwhile."""
        plan = self.plan
        try:
            for rows, read in prefetch(plan.data, index, size):
                x = check_inputs(read, rows, plan.bounds, plan.data.spec)
                y = torch.from_numpy(plan.labels[rows])
                yield x.to(plan.device), y.to(plan.device), torch.from_numpy(rows).to(plan.device)
        except DataError as error:
            if self.report is None:
                raise
            raise RunError(f"{error}; it could be read when the audit began") from error

    def parts(self, index: np.ndarray) -> list[np.ndarray]:
        """`index` in batches. For several ranks they are smaller, so that each rank has as many of the same size;
        results do not depend on it, unless they are of whole batches."""
        size, ranks = self.plan.batch_size, distributed.world()
        if ranks > 1 and not self.plan.whole_batch:
            rounds = math.ceil(len(index) / (size * ranks))
            size = math.ceil(len(index) / (rounds * ranks))
        return list(batches(index, size))

    def gather(self, stage: str, label: str, index: np.ndarray, passes: float, measure: Measure) -> Arrays:
        """What `measure` gives for each batch of the samples `index`, joined; journaled batches are not measured again.

        Each rank measures its share of the batches. passes: forward + gradient passes a sample costs. Raises
        OutOfTime, on all ranks, when one runs out of time between two batches.
        """
        parts, journal = self.parts(index), self.journal
        known = distributed.first(lambda: [journal.get(stage, n) if journal else None for n in range(len(parts))])
        missing = [number for number, arrays in enumerate(known) if arrays is None]
        self.step(label, passes * (len(index) - sum(len(parts[number]) for number in missing)))
        if missing:
            mine = distributed.agreed(partial(self.measure_share, stage, label, passes, parts, missing, measure))
            everyone = distributed.gather_objects((mine, len(mine) < len(distributed.share(missing))))
            if any(late for _, late in everyone):
                raise OutOfTime
            for found, _ in everyone:
                for number, arrays in found.items():
                    known[number] = arrays
        whole = [arrays for arrays in known if arrays is not None]
        return {name: np.concatenate([arrays[name] for arrays in whole]) for name in whole[0]}

    def measure_share(
        self, stage: str, label: str, passes: float, parts: list[np.ndarray], missing: list[int], measure: Measure
    ) -> dict[int, Arrays]:
        """This rank's share of the missing parts by number, as far as the time goes; each at once in the journal."""
        numbers = distributed.share(missing)
        found: dict[int, Arrays] = {}
        if not numbers:
            return found
        mine = np.concatenate([parts[number] for number in numbers])
        others_too = sum(len(parts[number]) for number in missing) / len(mine)  # they come as far meanwhile
        with closing(self.inputs(mine, len(parts[numbers[0]]))) as inputs:
            for number, batch in zip(numbers, inputs, strict=True):
                try:
                    found[number] = self.in_parts(measure, batch)
                except OutOfTime:
                    break
                except Exception as error:
                    if is_out_of_memory(error):
                        raise out_of_memory(min(len(batch[0]), self.room.size)) from error
                    raise
                if self.journal is not None:
                    self.journal.put(stage, number, found[number])
                self.step(label, passes * len(parts[number]) * others_too)
                if self.clock.is_late():
                    break
        return found

    def in_parts(self, measure: Measure, batch: Batch) -> Arrays:
        """The batch at once or, where the device runs out of memory and the size was ours to choose, in halves."""
        count = len(batch[0])
        if count <= self.room.size:
            try:
                return measure(*batch)
            except Exception as error:
                self.room.halve_or_raise(error, count)
        parts = zip(*(tensor.split(self.room.size) for tensor in batch), strict=True)
        done = [self.in_parts(measure, (x, y, index)) for x, y, index in parts]
        return {name: np.concatenate([arrays[name] for arrays in done]) for name in done[0]}

    def predict(self, x: torch.Tensor, index: torch.Tensor, number: int = 0) -> torch.Tensor:  # (N, ...) -> (N, K)
        """number: of the draw, where the network is random."""
        with torch.no_grad(), undisturbed(self.plan.classifier), draw(self.plan.seed, index, number):
            return self.plan.classifier(x)

    def wrong_by_draw(self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> Arrays:
        """Of a random network (N, R) bool, for each draw whether it is wrong; of another nothing."""
        if not self.plan.is_random:
            return {}
        wrong = [predicted_class(self.predict(x, index, number)) != y for number in range(DRAWS)]
        return {"wrong": torch.stack(wrong, 1).cpu().numpy()}

    def clean_pass(self) -> np.ndarray:
        plan = self.plan
        self.progress("clean accuracy", 0, self.total)
        attacked = bool(plan.attacks or plan.cascade)

        def measure(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> Arrays:
            arrays = {"logits": self.predict(x, index).cpu().numpy(), **self.wrong_by_draw(x, y, index)}
            if attacked:
                arrays["blind"] = evidence.without_gradient(plan.classifier, x, y).numpy()
            return arrays

        clock, self.clock = self.clock, Clock(None)  # without it there is no report at all
        found = self.gather("clean", "clean accuracy", plan.index, evidence.FORWARD + attacked, measure)
        self.clock = clock
        if self.plan.is_random:
            self.wrong, self.fooled = found["wrong"], np.zeros_like(found["wrong"])
        logits, raw = found["logits"], plan.classifier.output == "probabilities"
        source = str(plan.checkpoint.path) if plan.checkpoint else plan.architecture
        self.logits_check = [evidence.refuse_useless_logits(logits, raw, source)]
        self.gradient_warnings = evidence.zero_gradients(int(found["blind"].sum()) if attacked else 0, len(logits))
        return logits.argmax(1)

    def check_clean(self) -> list[evidence.Checked]:
        """What clean accuracy says of how the network is used. Other normalisations are tried as far as the time goes."""
        plan = self.plan
        assert self.clean is not None
        accuracy = verdict_of(plan, self.clean, []).clean
        checks = [
            check_radius(plan),
            evidence.claim(accuracy, claimed_accuracy(plan.checkpoint)),
            evidence.class_order(self.y, self.clean, plan.class_names),
            evidence.lost_classes(self.y, self.clean, plan.class_names),
            evidence.near_chance(accuracy, len(plan.class_names)),
        ]
        if len(plan.input_shape) == 3 and plan.bounds == (0.0, 1.0):
            self.clock.allows(lambda: checks.insert(2, self.room.fit(self.try_normalizations)))
        return checks

    def try_normalizations(self) -> evidence.Checked:
        plan, channels = self.plan, self.plan.input_shape[0]
        used = normalization_of(plan.classifier)
        usual = evidence.usual_normalizations(channels)
        others = {name: value for name, value in usual.items() if not evidence.is_same(value, used, channels)}
        rows = evidence.rows_to_try(self.clean == self.y, plan.seed)

        def right_under(name: str, chosen: np.ndarray) -> np.ndarray:
            places = rows[chosen]
            order = np.argsort(places)
            model, right = with_normalization(plan.classifier, others[name]), np.zeros(len(places), dtype=bool)
            found = []
            for x, y, index in self.inputs(plan.index[places[order]], self.room.size):
                if self.clock.is_late():
                    raise OutOfTime
                with torch.no_grad(), undisturbed(model), draw(plan.seed, index, 0):
                    found.append((predicted_class(model(x)) == y).cpu().numpy())
            right[order] = np.concatenate(found) if found else right[order]
            return right

        said = next(
            (name for name, value in usual.items() if evidence.is_same(value, used, channels)), "that of the audit"
        )
        return evidence.normalization((self.clean == self.y)[rows], list(others), right_under, said)

    # ---- attacks ---------------------------------------------------------------------------------------

    def one_attack(self, named: Named) -> None:
        """Perturb all samples to the attack's end, look inside, verify; then one outcome for the report."""
        plan, report = self.plan, self.report
        assert report is not None
        assert self.clean is not None
        started = time.monotonic()
        threat = getattr(named.attack, "threat", plan.threat)
        kind = named.attack.kind

        def measure(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> Arrays:
            x_adv, look, finite, verified, margins = self.perturb(named, x, y, index, "worst")
            seen = observe(
                plan.classifier, self.names, plan.measure, threat, x, x_adv, index,
                seed=plan.seed, with_yardstick=kind != "noise", with_floor=self.plan.is_random, whole_batch=plan.whole_batch,
            )  # fmt: skip
            return {
                **vars(seen), "verified": verified, "margin": margins, "look": look, "finite": finite,
                **self.wrong_by_draw(x_adv, y, index),
            }  # fmt: skip

        stage = f"attack-{[*plan.attacks, *plan.noises].index(named)}-{named.label}"
        found = self.gather(stage, named.label, plan.index, named.attack.passes + LOOK, measure)
        seen = Observation(**{name: found[name] for name in Observation.__dataclass_fields__})
        verified, broken_numbers = found["verified"], int((~found["finite"]).sum())
        mismatches = int((verified != seen.predicted).sum())
        counted = np.ones(len(verified), dtype=bool) if kind == "noise" else seen.within
        diagnosis = ClassDiagnosis(self.y, self.clean, verified, counted)
        self.record.hold(named.label, diagnosis.robust)
        if kind != "noise":
            self.scanned.append((named, diagnosis))
            self.margins[named.label] = found["margin"]
            everyone = np.arange(len(self.y))
            self.keep(named, diagnosis, everyone, found["look"], found["margin"], seen.distance)
        if kind == "minimal":
            self.nearest[named.label] = (verified != self.y, seen.distance)
        outcome = outcome_of(plan, named, seen, diagnosis, mismatches=mismatches, seconds=time.monotonic() - started)
        if self.plan.is_random:
            fooled = found["wrong"] & counted[:, None]
            outcome.draws, outcome.robust = spread(self.wrong | fooled), mean_rate(self.wrong | fooled)
            if kind != "noise":
                self.fooled |= fooled
        report.outcomes.append(outcome)
        report.warnings += attack_warnings(
            named, 0 if self.plan.is_random else mismatches, counted, found["finite"], verified
        )
        report.warnings += layer_warnings(outcome)
        outcome.discarded += broken_numbers

    def one_stage(self, named: Named, position: int) -> None:
        """An attack of the cascade, on what all before it left whole, re-packed into full batches; no layers."""
        plan, report = self.plan, self.report
        assert report is not None
        assert self.clean is not None
        started = time.monotonic()
        threat: Threat = getattr(named.attack, "threat", plan.threat)
        rows = np.flatnonzero(self.targets(named))

        def measure(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> Arrays:
            x_adv, look, finite, verified, margins = self.perturb(named, x, y, index, "break")
            within, distance = threat.contains(x_adv, x), threat.distance(x_adv, x)
            return {
                "verified": verified, "margin": margins, "look": look, "within": within.cpu().numpy(),
                "distance": distance.double().cpu().numpy(), "finite": finite, **self.wrong_by_draw(x_adv, y, index),
            }  # fmt: skip

        adversarial, counted = self.clean.copy(), np.zeros(len(self.y), dtype=bool)
        if len(rows):
            stage = f"cascade-{position}-{named.label}"
            found = self.gather(stage, named.label, plan.index[rows], named.attack.passes, measure)
            adversarial[rows], counted[rows] = found["verified"], found["within"]
            if self.plan.is_random:
                self.fooled[rows] |= found["wrong"] & found["within"][:, None]
        diagnosis = ClassDiagnosis(self.y, self.clean, adversarial, counted)
        self.cascaded.append((named, diagnosis))
        if len(rows):
            self.keep(named, diagnosis, rows, found["look"], found["margin"], found["distance"])
            report.warnings += attack_warnings(named, 0, found["within"], found["finite"], found["verified"])
        broke = int(diagnosis.broken.sum())
        report.cascade.append(
            Stage(
                attack=named.label, spec=named.spec, settings=settings_of(named.attack), tried=len(rows), broke=broke,
                robust=rate(self.survivors()), seconds=round(time.monotonic() - started, 3),
            )
        )  # fmt: skip
        if len(self.cascaded) == len(plan.cascade):  # a part of the cascade says nothing of the whole
            self.estimate = self.two_phase()

    def targets(self, named: Named) -> np.ndarray:  # (N,) bool
        """The samples that a stage of the cascade is run on."""
        return self.survivors() & self.drawn

    def survivors(self) -> np.ndarray:  # (N,) bool
        """Right clean, and whole so far."""
        assert self.clean is not None
        return (self.clean == self.y) & (self.record.broken_by < 0)

    def draw(self) -> np.ndarray:  # (N,) bool
        """Of the samples that the scan left whole those that meet the cascade: all, or a random part of the size asked."""
        whole = self.whole
        if self.plan.full_on is None or self.plan.full_on >= whole.sum():
            return whole
        generator = np.random.default_rng([self.plan.seed, 11])
        drawn = np.zeros(len(whole), dtype=bool)
        drawn[generator.choice(np.flatnonzero(whole), self.plan.full_on, replace=False)] = True
        return drawn

    def two_phase(self) -> Estimate | None:
        """What the whole cascade would leave of all survivors of the scan, from the part that it met."""
        checked, broken = int(self.drawn.sum()), int((self.drawn & ~self.survivors()).sum())
        if self.plan.full_on is None or checked == 0:
            return None
        whole = int(self.whole.sum())
        value, low, high = two_phase(len(self.y), whole, checked, broken)
        return Estimate(value=value, low=low, high=high, survivors=whole, checked=checked, broken=broken)

    def keep(
        self, named: Named, diagnosis: ClassDiagnosis, rows: np.ndarray, look: np.ndarray, margins: np.ndarray, distance: np.ndarray
    ) -> None:  # fmt: skip
        """Note per sample what the attack did, and for the evidence what it was."""
        reached = np.where(diagnosis.counted[rows], margins, np.nan)  # what lies beyond the budget is not reached
        self.record.note(named.label, diagnosis.broken[rows], rows, look, reached, distance)
        ran, found_at = np.zeros(len(self.y), dtype=bool), np.zeros(len(self.y), dtype=np.int64)
        ran[rows], found_at[rows] = True, look
        # Of a random network a sample that broke in one pass and holds in the next is chance, no loss of the attack.
        threat = getattr(named.attack, "threat", self.plan.threat)
        self.measured.append(
            evidence.Measured(
                label=named.label, role=named.attack.role, budget=f"{threat.norm} {threat.eps:g}",
                y=self.y, clean=diagnosis.clean, adversarial=diagnosis.adversarial, counted=diagnosis.counted,
                found_at=found_at if found_at.any() and not self.plan.is_random else None, ran=ran,
            )
        )  # fmt: skip

    def find_copy(self) -> Copy:
        """What attacks begin on, tried on a few samples spread over all."""
        plan = self.plan
        if plan.is_random:  # a copy is told by its answers, which here say nothing
            return Copy(None, "it answers by chance")
        if not plan.fast:
            return Copy(None, "--no-fast")
        if not any(named.attack.begins_on_copy for named in (*plan.attacks, *plan.cascade)):
            return Copy(None, "no attack here begins on a faster copy")
        rows = np.unique(np.linspace(0, len(plan.index) - 1, min(_TRIED, self.room.size)).astype(int))
        x, y, _ = (torch.cat(parts) for parts in zip(*self.inputs(plan.index[rows], plan.batch_size), strict=True))
        return make_copy(plan.classifier, x, y)

    def attacked(self) -> str:
        """What the attacks run on, in words."""
        if self.copy.model is None:
            return f"the network itself: {self.copy.described}"
        met = [*self.plan.attacks, *self.plan.cascade]
        beginning = dict.fromkeys(named.label for named in met if named.attack.begins_on_copy)
        return f"{self.copy.described}, in the first part of {', '.join(beginning)}; the network itself in all else"

    def perturb(
        self, named: Named, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, goal: Goal
    ) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The attack's result, the looks at which samples broke, where it is finite (elsewhere the input stands), and the
        verdict on it: classes and margins."""
        plan, copy = self.plan, self.copy.model
        with self.clock.stops(plan.classifier), self.clock.stops(copy) if copy is not None else nullcontext():
            x_adv, look = named.attack.run(plan.classifier, x, y, index=index, seed=plan.seed, goal=goal, copy=copy)
        if x_adv.shape != x.shape:
            raise UsageError(f"the attack {named.label} returned shape {tuple(x_adv.shape)} for {tuple(x.shape)}")
        finite = torch.isfinite(x_adv.flatten(1)).all(1)
        x_adv = torch.where(finite.reshape(-1, *[1] * (x.ndim - 1)), x_adv, x)
        return x_adv, look.cpu().numpy(), finite.cpu().numpy(), *self.verify(x_adv, y, index)

    def verify(self, x_adv: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Classes and margins in float32, in batches of another size than the attack used: the verdict."""
        size = max(1, len(x_adv) // 2 + 1)
        logits = torch.cat([self.predict(*part) for part in zip(x_adv.split(size), index.split(size), strict=True)])
        return predicted_class(logits).cpu().numpy(), margin(logits, y).double().cpu().numpy()

    # ---- curves and evidence ---------------------------------------------------------------------------

    def add_curve(self, named: Named) -> None:
        """Robust accuracy at each radius of the grid; of an attack of kind "minimal" one run gives all of them."""
        plan = self.plan
        assert self.report is not None
        points = []
        for eps in plan.eps_grid:
            if named.label in self.nearest:
                wrong, distance = self.nearest[named.label]
                reached = distance <= eps * (1 + RELATIVE_TOLERANCE) + ABSOLUTE_TOLERANCE
                robust = (self.clean == self.y) & ~(wrong & reached)
            else:
                robust = self.robust_at(named, eps)
            points.append(CurvePoint(eps=eps, robust=rate(robust)))
        score = sum(100 * (point.robust.value or 0.0) for point in points)
        self.report.curves.append(Curve(attack=named.label, points=points, score=score))

    def robust_at(self, named: Named, eps: float) -> np.ndarray:  # (N,) bool
        """Under the attack with another radius; step sizes grow with it."""
        plan = self.plan
        assert self.clean is not None
        base = getattr(named.attack, "threat", plan.threat)
        threat = dataclasses.replace(base, eps=eps)
        changes: dict[str, Any] = {"threat": threat} if hasattr(named.attack, "threat") else {}
        step_size = getattr(named.attack, "step_size", None)
        if step_size is not None:
            changes["step_size"] = step_size * eps / base.eps if base.eps and eps else step_size
        at_eps = dataclasses.replace(named, attack=dataclasses.replace(named.attack, **changes))

        def measure(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> Arrays:
            x_adv, _, _, verified, _ = self.perturb(at_eps, x, y, index, "break")
            return {"fooled": (verified != y.cpu().numpy()) & threat.contains(x_adv, x).cpu().numpy()}

        robust = self.clean == self.y
        rows = np.flatnonzero(robust)
        if len(rows):
            passes = named.attack.passes + evidence.FORWARD
            stage, label = f"curve-{eps!r}-{named.label}", f"{named.label} curve"
            robust[rows] = ~self.gather(stage, label, plan.index[rows], passes, measure)["fooled"]
        return robust

    def measure_metrics(self) -> list[Metric]:
        """The metrics asked for, on a few samples under the attack of the scan that left the fewest robust."""
        plan = self.plan
        assert self.report is not None
        if not self.scanned:
            self.report.not_run.append("metrics")
            return []
        named = min(self.scanned, key=lambda pair: pair[1].robust.sum())[0]
        rows = np.sort(np.random.default_rng([plan.seed, 17]).permutation(len(self.y))[: metrics.SAMPLES])
        x, y, index = (torch.cat(parts) for parts in zip(*self.inputs(plan.index[rows], plan.batch_size), strict=True))
        in_batches = zip(*(tensor.split(self.room.size) for tensor in (x, y, index)), strict=True)
        x_adv = torch.cat([self.perturb(named, x, y, index, "worst")[0] for x, y, index in in_batches])
        given = metrics.Given(plan.classifier, plan.bounds, plan.seed, self.room.size)
        rows_found: list[Metric] = []
        for name in plan.metrics:
            with draw(plan.seed, index, 0):
                found = metrics.METRICS.get(name)(given, x, x_adv, y)
            rows_found += [row.model_copy(update={"attack": row.attack or named.label}) for row in found]
        return rows_found

    def examine(self) -> Evidence | None:
        """Checks that say whether to believe the verdict: on a few samples, and on what was measured anyway."""
        plan = self.plan
        assert self.report is not None
        if not self.measured:
            return self.evidence_so_far()
        rows = np.sort(
            np.random.default_rng([plan.seed, 13]).permutation(len(self.y))[: evidence.probe_size(len(self.y))]
        )
        x, y, index = (torch.cat(parts) for parts in zip(*self.inputs(plan.index[rows], plan.batch_size), strict=True))
        probe = evidence.Probe(plan.classifier, x, y, index, plan.threat, plan.seed, self.room.size)
        broken = torch.from_numpy(self.record.broken_by[rows] >= 0)
        history = self.report.subject.history
        with self.clock.stops(plan.classifier):
            last = plan.last_layer.module if plan.last_layer is not None else None
            examined = evidence.examine(probe, broken=broken, survivors=self.left_whole(), last=last)
        trained_on = evidence.trained_on_the_same(history, plan.data.spec, plan.data.split)
        checked = [*self.clean_checks, *self.logits_check, trained_on, *examined, *evidence.compare(self.measured)]
        self.step("evidence", evidence.probe_passes(len(rows)))
        return evidence.evidence_of(checked, is_quick(plan))

    def left_whole(self) -> evidence.Survivors:
        """The samples that no attack broke, in random order."""
        plan, left = self.plan, np.flatnonzero(self.survivors())
        order = np.random.default_rng([plan.seed, 23]).permutation(left)

        def take(start: int, stop: int) -> evidence.Probe:
            rows = np.sort(order[start:stop])
            batches = self.inputs(plan.index[rows], plan.batch_size)
            x, y, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
            return evidence.Probe(plan.classifier, x, y, index, plan.threat, plan.seed, self.room.size)

        return evidence.Survivors(len(left), len(self.y), take)

    def evidence_so_far(self) -> Evidence | None:
        """What clean accuracy says against the numbers: known before any attack, and where there is none."""
        made = evidence.evidence_of(self.clean_checks)
        return made if made.findings else None

    def show(self) -> list[Example]:
        """Pictures of a few samples that the strongest attack broke. It meets them again: as randomness belongs to the
        sample, it finds the same."""
        plan, report = self.plan, self.report
        assert report is not None
        top = strongest(report)
        if top is None or plan.bounds != (0.0, 1.0):
            return []
        named, diagnosis = next((n, d) for n, d in self.scanned if n.label == top.name)
        rows = np.sort(examples.surest_mistakes(diagnosis.broken, self.margins[top.name], self.y))
        threat: Threat = getattr(named.attack, "threat", plan.threat)
        shown: list[Example] = []
        for x, y, index in self.inputs(plan.index[rows], self.room.size) if len(rows) else ():
            if not examples.are_pictures(x):
                return []
            x_adv, _, _, predicted, margins = self.perturb(named, x, y, index, "worst")
            distance = threat.distance(x_adv, x).tolist()
            for i, found in enumerate(predicted):
                if found >= 0 and found != int(y[i]):
                    shown.append(
                        examples.example(
                            x[i].cpu().numpy(), x_adv[i].cpu().numpy(), index=int(index[i]), attack=named.label,
                            label=plan.class_names[int(y[i])], predicted=plan.class_names[found],
                            margin=float(margins[i]), distance=distance[i],
                        )
                    )  # fmt: skip
        return shown

    def first_report(self) -> AuditReport:
        plan = self.plan
        assert self.clean is not None
        verdict, met = verdict_of(plan, self.clean, []), [*plan.attacks, *plan.cascade]
        warnings = [
            *plan.warnings,
            *self.gradient_warnings,
            *([random_network(any(getattr(n.attack, "eot", 1) > 1 for n in met))] if self.plan.is_random else []),
        ]
        return AuditReport(
            tool=f"lsa {__version__}",
            status="running",
            created=self.created,
            seconds=0.0,
            subject=subject_of(plan),
            data=data_of(plan),
            protocol=protocol_of(plan).model_copy(update={"attacked": self.attacked()}),
            verdict=verdict,
            outcomes=[],
            warnings=warnings,
            evidence=self.evidence_so_far(),
        )
