"""run_harden: audit, choose layers, train, write the checkpoint, audit again. harden() does the same from Python."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lsa_cli import distributed
from lsa_cli.attacks.base import undisturbed
from lsa_cli.auditing.cost import numerics
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.provenance import finished_report
from lsa_cli.auditing.rebuilt import ARCHITECTURE as RECONSTRUCTED
from lsa_cli.auditing.run import run_audit
from lsa_cli.auditing.suggesting import asked_for, write_command, written_to
from lsa_cli.errors import LsaError, RankLost, RunError, UsageError
from lsa_cli.hardening.cost import epoch_cost
from lsa_cli.hardening.files import Files
from lsa_cli.hardening.job import Job
from lsa_cli.hardening.layer_selection import layers_to_regularize
from lsa_cli.hardening.log import tensorboard, write_log
from lsa_cli.hardening.methods import Hardening
from lsa_cli.hardening.plan import HardenPlan, plan_after
from lsa_cli.hardening.result import identity_of, write_checkpoints
from lsa_cli.hardening.state import identity_in, refuse_another_start, refuse_without_state
from lsa_cli.hardening.trainer import Progress, Say, Trained, normalizes_by_rank, train
from lsa_cli.hardening.validation import validation_of
from lsa_cli.hardening.watchdog import EpochResult
from lsa_cli.hardening.weights import weights_of
from lsa_cli.report.compare import Comparison, compare
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.storage import write_text
from lsa_cli.wording import compact, eps_as_text, plural


@dataclass(frozen=True)
class Hardened:
    """The result of a hardening.

    layers: the regularized layers, the most vulnerable first. epochs: as planned. best_epoch: 0 is the network before training. stopped: the
    reason for early stopping. compared: the comparison of the reports; None where there is none, and `incomparable` says why.
    """

    out: Path
    before: AuditReport
    after: AuditReport
    compared: Comparison | None
    incomparable: str | None
    layers: tuple[str, ...]
    history: list[EpochResult]
    epochs: int
    best_epoch: int
    stopped: str | None

    def write_page(self, path: str) -> None:
        """Both audits as one HTML page; nothing where they cannot be compared."""
        from lsa_cli.report.comparison_html import render

        if self.compared is not None:
            write_text(path, render(self.before, self.after, self.compared))


def run_harden(
    plan: HardenPlan,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Say = lambda message: None,
) -> Hardened:
    """Run the audit before, the training, and the audit after. say: receives a line for each step.

    Raises UsageError where another process writes the same files, and RunError where the run breaks. The last good state is then
    on disk; `resume` continues from it, and so do ranks that torchrun restarts. Of several ranks the first one writes, and all
    read what it has written.
    """
    files = Files(out)
    with ExitStack() as claimed:
        distributed.first(lambda: claimed.enter_context(files.claimed()))
        return _run(plan, files, resume, progress or (lambda what, done, total: None), say)


def _run(plan: HardenPlan, files: Files, resume: bool, show: Progress, say: Say) -> Hardened:
    """`run_harden`, once no other process can write the files."""
    out, restarted = files.out, distributed.restarted()
    keeps = resume or restarted  # the audit before, if it is finished
    resume = distributed.first(lambda: _resumes(plan, files, resume, restarted, say))
    with numerics(plan.audit.threads), _removes_mark(files):
        before = _audit_before(plan.audit, files, keeps, show, say)
        layers = plan.layers
        if layers:
            say(f"layers named: {', '.join(layers)}")
        elif plan.needs_layers:
            layers = layers_to_regularize(plan, say)
        if plan.train_only_flagged:
            say(f"only the weights of {', '.join(plan.weights_of(layers))} train")
        method = plan.make_method(layers)
        job = job_of(plan, method, layers, files, resume, say)
        plan = _within_budget(plan, job, say)
        job = replace(job, recipe=plan.recipe, identity=identity_of(plan, layers))
        trained = _trained(plan, job, files, show, say)
        try:
            write_checkpoints(plan, method, layers, trained, files)
            if distributed.rank() == 0:
                files.replace_old()
        except OSError as error:
            raise RunError(
                f"{out} cannot be written: {error.strerror or error}; the state is in {files.state}"
            ) from error
        if trained.stopped is not None:
            say(f"stopped: {trained.stopped}; {out} holds {epoch_in_words(trained.best_epoch)}")
        distributed.barrier()
        say(
            f"audit after: {', '.join(named.label for named in plan.audit.attacks)} on {plural(len(plan.audit.index), 'sample')}"
        )
        try:
            audited = distributed.agreed(lambda: plan_after(plan, out))
            distributed.agreed(lambda: refuse_another_network(plan, trained, audited, out))
            after = run_audit(audited, progress=show)
        except LsaError as error:
            if trained.stopped is None:
                raise
            raise RunError(
                f"stopped early: {trained.stopped}; {out} holds {epoch_in_words(trained.best_epoch)}, which cannot be "
                f"audited: {error}"
            ) from error
        compared, incomparable = _compared(before, after)
        if distributed.rank() == 0:
            write_text(str(files.after), after.to_json())
            if compared is not None:
                write_text(str(files.compare), compared.to_json())
            files.forget_run()
    return Hardened(
        out, before, after, compared, incomparable, layers, trained.history, plan.recipe.epochs, trained.best_epoch,
        trained.stopped,
    )  # fmt: skip


@contextmanager
def _removes_mark(files: Files) -> Iterator[None]:
    """A context that removes `files.started` after an error that the same command would raise again."""
    try:
        yield
    except RankLost:
        raise
    except LsaError:
        if distributed.rank() == 0 and not files.state.exists():
            files.forget_run()
        raise


def refuse_another_network(plan: HardenPlan, trained: Trained, after: AuditPlan, out: Path) -> None:
    """Raises RunError where a network that its weights do not name was reconstructed as another one than was trained.

    They are compared by their logits for a batch of the audit.
    """
    if plan.network.arch != RECONSTRUCTED:
        return
    plan.network.classifier.load_state_dict(trained.best)
    rows = after.index[: after.batch_size]
    x = after.network.inputs(rows)
    with torch.no_grad(), undisturbed(plan.network.classifier), undisturbed(after.network.classifier):
        ours, read = (one.classifier(x.to(one.device)) for one in (plan.network, after.network))
    if not torch.allclose(ours, read, rtol=1e-3, atol=1e-3 * float(ours.abs().max())):
        assert plan.network.checkpoint is not None
        asked = asked_for(plan.given, plan.network.description)
        raise RunError(
            f"{out} is saved, but the network reconstructed from its weights is not the one that was trained, so it is not "
            f"audited; write the network with `{write_command(plan.network.checkpoint.path, asked)}`, and harden with "
            f"--arch {written_to()}:build"
        )


def time_in_words(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{compact(seconds)} seconds"


def epoch_in_words(epoch: int) -> str:
    return f"epoch {epoch}" if epoch else "the network before training"


def _compared(before: AuditReport, after: AuditReport) -> tuple[Comparison | None, str | None]:
    """The comparison, or the reason why there is none. A missing comparison does not discard the training."""
    try:
        return compare(before, after), None
    except UsageError as error:
        return None, str(error)


def _resumes(plan: HardenPlan, files: Files, asked: bool, restarted: bool, say: Say) -> bool:
    """Whether to resume from a saved state. If not, `files.started` is written.

    Raises UsageError where the files are of another run.
    """
    if (asked or restarted) and files.state.exists():
        return True
    identity = identity_of(plan, plan.layers)
    if asked:
        if files.started.exists():
            refuse_another_start(files.started, identity)
        elif files.out.exists():
            refuse_without_state(files.state)
        say(f"no state at {files.state} yet: starting from the beginning")
    if not (asked or restarted):
        files.forget_run()  # another one
    write_text(files.started, json.dumps(identity))
    return False


def _audit_before(plan: AuditPlan, files: Files, keeps: bool, progress: Progress, say: Say) -> AuditReport:
    """The report of the network before training. keeps: it is read from disk, if it is there."""
    path = files.new_before if files.new_before.exists() else files.before
    saved = distributed.first(lambda: finished_report(plan, path) if keeps and path.exists() else None)
    if saved is not None:
        return saved
    say(f"audit before: {', '.join(named.label for named in plan.attacks)} on {plural(len(plan.index), 'sample')}")
    report = run_audit(plan, progress=progress)
    if distributed.rank() == 0:
        write_text(str(files.new_before), report.to_json())
    return report


def job_of(
    plan: HardenPlan, method: Hardening, layers: tuple[str, ...], files: Files, resume: bool, say: Say
) -> Job:  # fmt: skip
    """The training of the network, after the surgery of the method. Its identity is empty: a budget may change the epochs."""
    network = plan.network
    torch.manual_seed(plan.audit.seed)  # for surgery that adds parameters
    # Surgery renames parameters. So frozen parameters are found by their ids, and those that surgery adds train.
    moving = plan.trainable(layers)
    frozen = {id(parameter) for name, parameter in network.classifier.named_parameters() if name not in moving}
    method.prepare(network.classifier)
    if method.surgeries and network.is_pickled:
        raise UsageError(
            f"--method {plan.method} adds parts to the network, which a network pickled whole cannot have: name the "
            "network with --arch path/to/file.py:factory"
        )
    if distributed.world() > 1 and network.device.type == "cuda":
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(network.classifier)
    if normalizes_by_rank(network.classifier):
        say(
            "BatchNorm normalises by each rank's part of a batch, since SyncBatchNorm needs CUDA; running statistics are "
            "averaged over ranks after every epoch, and the result differs from that of one process"
        )
    trainable = frozenset(name for name, p in network.classifier.named_parameters() if id(p) not in frozen)
    return Job(
        network.classifier, method, network.data, network.labels, plan.train, plan.validation, plan.audit.threat,
        plan.recipe,
        trainable, network.device, plan.audit.seed, files.state, {}, resume,
    )  # fmt: skip


def _within_budget(plan: HardenPlan, job: Job, say: Say) -> HardenPlan:
    """The plan, with as many epochs as its budget allows where it has one. The cost of the training is printed.

    The number of epochs decides the default of the learning rate. A resumed training keeps the epochs with which it began.
    """
    epochs = plan.recipe.epochs
    if job.resume and job.state_file.exists():
        if plan.budget is not None:
            epochs = distributed.first(lambda: identity_in(job.state_file))["epochs"]
        return plan.with_epochs(epochs)
    cost = epoch_cost(job)
    if plan.budget is not None:
        epochs = cost.epochs_in(plan.budget)
        if cost.seconds > plan.budget:
            say(
                f"one epoch takes about {time_in_words(cost.seconds)}, which is longer than the budget; the training has one epoch"
            )
    plan = plan.with_epochs(epochs)
    say(
        f"training: {plan.method}, {plural(epochs, 'epoch')} of {plural(len(plan.train), 'sample')}, "
        f"{len(plan.validation)} held out, {plan.threat.norm} eps {eps_as_text(float(plan.threat.eps))}, learning rate "
        f"{plan.recipe.lr:g}; about {plural(round(epochs * cost.passes), 'pass', 'passes')} for each sample, "
        f"{time_in_words(epochs * cost.seconds)}"
    )
    return plan


def _trained(plan: HardenPlan, job: Job, files: Files, progress: Progress, say: Say) -> Trained:
    board = tensorboard(files)

    def on_epoch(result: EpochResult, left: float) -> None:
        write_log(files.new_log, [result], fresh=result.epoch == 1)
        values = {"loss": result.loss, **result.parts, "clean": result.clean, "robust": result.robust}
        for name, value in values.items():
            board(name, value, result.epoch)
        parts = ", ".join(f"{name} {value:.3f}" for name, value in result.parts.items())
        say(
            f"epoch {result.epoch}/{plan.recipe.epochs}: loss {result.loss:.3f} ({parts}), held out: clean "
            f"{result.clean:.1%}, FGSM {result.fgsm:.1%}, PGD {result.robust:.1%}; {result.seconds:.0f} s, "
            f"about {left:.0f} s left"
        )
        if result.raised is not None:
            say(f"accuracy under PGD is far below that under FGSM: the next epochs raise {result.raised}")

    def on_resume(history: list[EpochResult], trains: bool) -> None:
        # The process may have ended between the state of an epoch and its line in the log, so all lines are written.
        write_log(files.new_log, history, fresh=True)
        epochs = plan.recipe.epochs
        say(
            f"the training continues at epoch {len(history) + 1} of {epochs}"
            if trains
            else f"the training had ended after epoch {len(history)} of {epochs}"
        )

    trained = train(job, progress, on_epoch, on_resume)
    job.model.load_state_dict(trained.best)
    told = job.method.finish(job.model.eval(), validation_of(job))
    if told is not None:
        say(told)
    best_epoch = 0 if job.method.takes_nothing else trained.best_epoch
    return replace(trained, best=weights_of(job.model), best_epoch=best_epoch)
