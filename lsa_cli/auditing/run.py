"""run_audit: attack, observe, add up, report. And audit(), the same for Python users."""

import dataclasses
import datetime
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli import __version__
from lsa_cli.attacks.base import undisturbed
from lsa_cli.auditing import evidence
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis, compare_attacks, rate
from lsa_cli.auditing.observation import Observation, observe
from lsa_cli.auditing.outcome import outcome_of, verdict_of
from lsa_cli.auditing.plan import AuditPlan, Named, make_plan
from lsa_cli.config import AuditSettings, merge, read_config, settings_from
from lsa_cli.data import batches, check_inputs, fingerprint, prefetch
from lsa_cli.errors import RunError, UsageError
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.models.classifier import predicted_class
from lsa_cli.report.gate import check
from lsa_cli.report.schema import (
    AuditReport,
    Curve,
    CurvePoint,
    Data,
    Protocol,
    Subject,
    ThreatModel,
    Warning,
)

Progress = Callable[[str, float, float], None]  # what is running, work done, work in all

# Work in units of one forward + input-gradient pass over one sample; a forward pass is about a third of it.
_FORWARD = 0.35
_LOOK = 4 * _FORWARD  # clean, adversarial and yardstick in one pass, and the verification


def audit(
    target: str | Path | nn.Module,
    *,
    data: Any = None,
    config: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> AuditReport:
    """Audit a checkpoint file, or a network in memory, and return the report; the CLI is a layer over this.

    target: path of a checkpoint, or a torch.nn.Module (left as it was: mode, parameters, buffers, hooks).
    data: a spec as for --data, (x, y) arrays with images in [0, 1] or uint8, or a data set of (input, label).
    config: a lsa.yaml to read. options: the fields of `AuditSettings`, which are the options of `lsa audit`:
    attack=["pgd:steps=40"], eps="8/255", limit="all", ...

    Raises an LsaError that says what is wrong; no gate raises, see report.gates.
    """
    given = settings_from(options)
    parts = [("option", given)]
    if config is not None:
        parts.append((str(config), read_config(Path(config))))
    settings, origin = merge(*parts)
    return run_audit(make_plan(target, settings, origin, data), progress=progress)


def total_work(plan: AuditPlan) -> float:
    """The audit's cost in forward + gradient passes over one sample; for progress and estimates."""
    each = _FORWARD + bool(plan.attacks) + sum(named.attack.passes + _LOOK for named in (*plan.attacks, *plan.noises))
    each += sum(len(plan.eps_grid) * (named.attack.passes + _FORWARD) for named in plan.attacks)
    return each * len(plan.index)


def run_audit(
    plan: AuditPlan,
    *,
    progress: Progress | None = None,
    on_update: Callable[[AuditReport], None] | None = None,
) -> AuditReport:
    """Run the plan. on_update gets a readable report after the clean pass and after every attack.

    When the run is interrupted or breaks, on_update gets what was measured, marked so, before the exception
    goes on. CUDA out of memory becomes a RunError with the mend.
    """
    run = _Run(plan, progress or (lambda what, done, total: None), on_update or (lambda report: None))
    with numerics(plan):
        try:
            return run.everything()
        except KeyboardInterrupt:
            run.update("interrupted")
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            run.update("failed")
            raise RunError(f"out of memory at batch size {plan.batch_size}; say a smaller --batch-size") from error
        except Exception:
            run.update("failed")
            raise


@contextmanager
def numerics(plan: AuditPlan) -> Iterator[None]:
    """Within: the plan's threads, and float32 that is float32 (no TF32), on deterministic kernels. Then as before."""
    threads = torch.get_num_threads()
    before = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
    )
    try:
        torch.set_num_threads(plan.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        yield
    finally:
        torch.set_num_threads(threads)
        (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.deterministic,
        ) = before


class _Run:
    """The state of one audit while it runs."""

    def __init__(self, plan: AuditPlan, progress: Progress, on_update: Callable[[AuditReport], None]) -> None:
        self.plan, self.progress, self.on_update = plan, progress, on_update
        self.began = time.monotonic()
        self.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.done, self.total = 0.0, total_work(plan)
        self.y = plan.labels[plan.index]
        self.clean: np.ndarray | None = None
        self.gradient_warnings: list[Warning] = []
        self.report: AuditReport | None = None
        self.budget: list[tuple[Named, ClassDiagnosis]] = []
        self.names = [layer.name for layer in plan.layers]

    def everything(self) -> AuditReport:
        plan = self.plan
        self.clean = self.clean_pass()
        self.report = self.first_report()
        self.update("running")
        for named in (*plan.attacks, *plan.noises):
            self.one_attack(named)
            self.update("running")
        for named in plan.attacks:
            if plan.eps_grid:
                self.report.curves.append(self.curve(named))
                self.update("running")
        self.report.status = "complete"
        self.report.gates = check(self.report, plan.limits)
        self.update("complete")
        return self.report

    def update(self, status: str) -> None:
        """Hand out the report as far as it goes."""
        if self.report is not None and self.clean is not None:
            self.report.status = status  # type: ignore[assignment]
            self.report.seconds = round(time.monotonic() - self.began, 3)
            self.report.verdict = verdict_of(self.plan, self.clean, self.budget)
            self.report.pairs = compare_attacks([(n.label, d) for n, d in self.budget], len(self.plan.class_names))
            if status in ("interrupted", "failed"):
                self.report.gates = check(self.report, self.plan.limits)
            self.on_update(self.report)

    def step(self, what: str, work: float) -> None:
        self.done += work
        self.progress(what, self.done, self.total)

    def inputs(self, index: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Inputs, labels and indices of some samples, batch by batch, on the device; the next are read meanwhile."""
        plan = self.plan
        for rows, read in prefetch(plan.data, index, plan.batch_size):
            x = check_inputs(read, rows, plan.bounds, plan.data.spec)
            y = torch.from_numpy(plan.labels[rows])
            yield x.to(plan.device), y.to(plan.device), torch.from_numpy(rows).to(plan.device)

    def predict(self, x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, K)
        with torch.no_grad(), undisturbed(self.plan.classifier):
            return self.plan.classifier(x)

    def clean_pass(self) -> np.ndarray:
        plan = self.plan
        self.progress("clean accuracy", 0, self.total)
        parts, blind = [], 0
        for x, y, _ in self.inputs(plan.index):
            parts.append(self.predict(x).cpu().numpy())
            if plan.attacks:
                blind += int(evidence.without_gradient(plan.classifier, x, y).sum())
            self.step("clean accuracy", (_FORWARD + bool(plan.attacks)) * len(x))
        logits = np.concatenate(parts)
        source = str(plan.checkpoint.path) if plan.checkpoint else plan.architecture
        evidence.refuse_useless_logits(logits, plan.classifier.output == "probabilities", source)
        self.gradient_warnings = evidence.zero_gradients(blind, len(logits))
        return logits.argmax(1)

    def one_attack(self, named: Named) -> None:
        """Perturb, look, verify, batch by batch; then one outcome for the report."""
        plan, report = self.plan, self.report
        assert report is not None
        assert self.clean is not None
        started = time.monotonic()
        seen_parts, verified_parts, broken_numbers = [], [], 0
        threat = getattr(named.attack, "threat", plan.threat)
        for x, y, index in self.inputs(plan.index):
            x_adv, bad = self.perturb(named, x, y, index)
            broken_numbers += bad
            seen_parts.append(
                observe(
                    plan.classifier, self.names, plan.measure, threat, x, x_adv, index,
                    seed=plan.seed, with_yardstick=named.attack.kind == "budget", whole_batch=plan.whole_batch,
                )
            )  # fmt: skip
            verified_parts.append(self.verify(x_adv))
            self.step(named.label, (named.attack.passes + _LOOK) * len(x))
        seen = Observation.concatenate(seen_parts)
        verified = np.concatenate(verified_parts)
        mismatches = int((verified != seen.predicted).sum())
        counted = seen.within if named.attack.kind == "budget" else np.ones(len(verified), dtype=bool)
        diagnosis = ClassDiagnosis(self.y, self.clean, verified, counted)
        if named.attack.kind == "budget":
            self.budget.append((named, diagnosis))
        outcome = outcome_of(plan, named, seen, diagnosis, mismatches=mismatches, seconds=time.monotonic() - started)
        report.outcomes.append(outcome)
        report.warnings += _attack_warnings(outcome.name, mismatches, outcome.discarded, broken_numbers, outcome)
        outcome.discarded += broken_numbers
        if unanswered := int((verified < 0).sum()):
            report.warnings.append(
                Warning(
                    code="output-not-finite",
                    message=f"{named.label}: the network answered NaN to {unanswered} perturbed inputs, which is no "
                    "class and so counts as wrong",
                )
            )

    def perturb(self, named: Named, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The attack's result; where it is not finite the attack has failed and the input stands."""
        x_adv = named.attack(self.plan.classifier, x, y, index=index, seed=self.plan.seed)
        if x_adv.shape != x.shape:
            raise UsageError(f"the attack {named.label} returned shape {tuple(x_adv.shape)} for {tuple(x.shape)}")
        finite = torch.isfinite(x_adv.flatten(1)).all(1)
        x_adv = torch.where(finite.reshape(-1, *[1] * (x.ndim - 1)), x_adv, x)
        return x_adv, int((~finite).sum())

    def verify(self, x_adv: torch.Tensor) -> np.ndarray:
        """Classes predicted in float32 in batches of another size than the attack used: the verdict."""
        size = max(1, len(x_adv) // 2 + 1)
        return torch.cat([predicted_class(self.predict(part)) for part in x_adv.split(size)]).cpu().numpy()

    def curve(self, named: Named) -> Curve:
        """Robust accuracy at each radius of the grid; step sizes grow with the radius."""
        plan = self.plan
        assert self.clean is not None
        points = []
        base = getattr(named.attack, "threat", plan.threat)
        for eps in plan.eps_grid:
            threat = dataclasses.replace(base, eps=eps)
            changes: dict[str, Any] = {"threat": threat} if hasattr(named.attack, "threat") else {}
            step_size = getattr(named.attack, "step_size", None)
            if step_size is not None:
                changes["step_size"] = step_size * eps / base.eps if base.eps and eps else step_size
            at_eps = dataclasses.replace(named, attack=dataclasses.replace(named.attack, **changes))
            robust = self.clean == self.y
            standing = np.flatnonzero(robust)
            parts = batches(standing, plan.batch_size)
            for rows, (x, y, index) in zip(parts, self.inputs(plan.index[standing]), strict=True):
                x_adv, _ = self.perturb(at_eps, x, y, index)
                fooled = (self.verify(x_adv) != self.y[rows]) & threat.contains(x_adv, x).cpu().numpy()
                robust[rows] &= ~fooled
                self.step(f"{named.label} curve", (named.attack.passes + _FORWARD) * len(rows))
            points.append(CurvePoint(eps=eps, robust=rate(robust)))
        score = sum(100 * (point.robust.value or 0.0) for point in points)
        return Curve(attack=named.label, points=points, score=score)

    def first_report(self) -> AuditReport:
        plan = self.plan
        assert self.clean is not None
        verdict = verdict_of(plan, self.clean, [])
        claimed = _claimed_accuracy(plan.checkpoint)
        warnings = [
            *plan.warnings,
            *evidence.clean_accuracy(verdict.clean, len(plan.class_names), claimed),
            *self.gradient_warnings,
        ]
        return AuditReport(
            tool=f"lsa {__version__}",
            status="running",
            created=self.created,
            seconds=0.0,
            subject=subject_of(plan),
            data=data_of(plan),
            protocol=protocol_of(plan),
            verdict=verdict,
            outcomes=[],
            warnings=warnings,
        )


def _attack_warnings(name: str, mismatches: int, discarded: int, not_finite: int, outcome: Any) -> list[Warning]:
    warnings = []
    if mismatches:
        warnings.append(
            Warning(
                code="verdict-mismatch",
                message=f"{name}: {mismatches} predictions changed when verified in another batch size: the network's "
                "output depends on the batch, or on chance",
            )
        )
    if not_finite:
        warnings.append(
            Warning(
                code="attack-not-finite",
                message=f"{name}: {not_finite} perturbed inputs were NaN or infinite and count as failed attacks; "
                "its robust accuracy is too high",
            )
        )
    if discarded and outcome.kind == "budget":
        warnings.append(
            Warning(
                code="out-of-budget",
                message=f"{name}: {discarded} perturbed inputs left the budget or the input range and gain nothing",
            )
        )
    blind = [row for row in outcome.layers.rows if row.undefined] if outcome.layers else []
    if blind:
        worst = max(blind, key=lambda row: row.undefined)
        warnings.append(
            Warning(
                code="measure-undefined",
                message=f"{name}: {len(blind)} layers have samples without a measure (most in {worst.name}: "
                f"{worst.undefined}); they are left out of its mean",
            )
        )
    return warnings


def _claimed_accuracy(checkpoint: Checkpoint | None) -> float | None:
    if checkpoint is None:
        return None
    if checkpoint.description is not None and checkpoint.description.clean_accuracy is not None:
        return checkpoint.description.clean_accuracy
    return checkpoint.claimed_accuracy[0] if checkpoint.claimed_accuracy is not None else None


def _parameters(plan: AuditPlan) -> int:
    """Numbers in the network's parameters; of an opaque program those in the file's."""
    own = sum(p.numel() for p in plan.classifier.body.parameters())
    return own or (plan.checkpoint.weights.parameters if plan.checkpoint is not None else 0)


def subject_of(plan: AuditPlan) -> Subject:
    checkpoint, normalize = plan.checkpoint, plan.classifier.normalize
    mean, std = getattr(normalize, "mean", None), getattr(normalize, "std", None)
    return Subject(
        checkpoint=str(checkpoint.path) if checkpoint else "a network in memory",
        sha256=checkpoint.sha256 if checkpoint else None,
        size=checkpoint.size if checkpoint else None,
        format=checkpoint.format if checkpoint else "module",
        architecture=plan.architecture,
        arch_args=plan.arch_args,
        parameters=_parameters(plan),
        mean=[round(v, 6) for v in mean.tolist()] if isinstance(mean, torch.Tensor) else None,
        std=[round(v, 6) for v in std.tolist()] if isinstance(std, torch.Tensor) else None,
        input_shape=list(plan.input_shape),
        input_range=plan.bounds,
        output=plan.classifier.output,
        class_names=list(plan.class_names),
        history=checkpoint.description.history if checkpoint and checkpoint.description else [],
        notes=list(plan.notes),
    )


def data_of(plan: AuditPlan) -> Data:
    n, available = len(plan.index), len(plan.data)
    return Data(
        source=plan.data.spec,
        split=plan.data.split,
        transform=plan.data.transform,
        n=n,
        available=available,
        selection="all" if n == available else f"stratified by class, seed {plan.seed}",
        fingerprint=fingerprint(plan.data, plan.index),
    )


def protocol_of(plan: AuditPlan) -> Protocol:
    import torchvision

    device = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else platform.machine()
    return Protocol(
        threat=ThreatModel(
            norm=plan.threat.norm, eps=float(plan.threat.eps), text=plan.eps_text, origin=plan.eps_origin
        ),
        attacks=[named.spec for named in plan.attacks],
        noises=[named.spec for named in plan.noises],
        layers=list(plan.selectors),
        measure=plan.measure_name,
        aggregate="batch" if plan.whole_batch else "sample",
        eta=plan.rule.eta,
        sigma=plan.rule.sigma,
        top_k=plan.rule.top_k,
        seed=plan.seed,
        batch_size=plan.batch_size,
        device=f"{plan.device} ({device})",
        threads=plan.threads,
        settings=plan.settings,
        settings_from=plan.origin,
        versions={
            "lsa": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
        },
    )


def estimate_seconds(plan: AuditPlan) -> float:
    """Seconds the plan would take here: one gradient pass over one batch, timed, times the work."""
    from lsa_cli.attacks.base import input_gradient
    from lsa_cli.attacks.losses import cross_entropy

    rows = plan.index[: plan.batch_size]
    x = check_inputs(plan.data.read(rows), rows, plan.bounds, plan.data.spec).to(plan.device)
    y = torch.from_numpy(plan.labels[rows]).to(plan.device)
    with numerics(plan), undisturbed(plan.classifier):
        input_gradient(plan.classifier, x[:2], y[:2], cross_entropy)  # warm up
        started = time.monotonic()
        input_gradient(plan.classifier, x, y, cross_entropy)[0].sum().item()
        return (time.monotonic() - started) / len(rows) * total_work(plan)


__all__ = ["AuditSettings", "audit", "estimate_seconds", "run_audit", "total_work"]
