"""run_harden: audit, flag layers, train, write the checkpoint, audit again. And harden(), the same for Python users."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsa_cli import __version__, distributed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.auditing.cost import numerics
from lsa_cli.auditing.layer_scan import LayerScan, MvlRule
from lsa_cli.auditing.observation import Observation, observe
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.run import run_audit
from lsa_cli.config import read_config
from lsa_cli.data import batches, check_inputs, fingerprint, runs_user_code
from lsa_cli.errors import LsaError, RankLost, RunError, UsageError
from lsa_cli.hardening.base import Hardening
from lsa_cli.hardening.files import Files, inputs_of, refuse_outputs
from lsa_cli.hardening.plan import HardenPlan, described, make_harden_plan, plan_after
from lsa_cli.hardening.state import refuse_another_start, refuse_without_state
from lsa_cli.hardening.trainer import Job, Progress, Say, Trained, normalizes_by_rank, train, validation_of
from lsa_cli.hardening.watchdog import EpochResult
from lsa_cli.hardening.weights import weights_of
from lsa_cli.models.architectures import runs_user_code as arch_runs_user_code
from lsa_cli.models.checkpoint import Description, write_checkpoint
from lsa_cli.models.classifier import Normalize
from lsa_cli.report.compare import Comparison, compare
from lsa_cli.report.protocol import Protocol
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.storage import write_text
from lsa_cli.settings import HardenSettings, merge, settings_from
from lsa_cli.settings.declare import keys_of
from lsa_cli.wording import eps_as_text, plural

_SCANNED = 500  # held-out samples that the scan for vulnerable layers looks at


@dataclass(frozen=True)
class Hardened:
    """What came of it. layers: that were held, worst first. best_epoch: 0 is the network before
    training. stopped: the watchdog's words, if it ended the training.

    compared: before with after; where the two reports do not allow that, None, and incomparable says why.
    """

    out: Path
    before: AuditReport
    after: AuditReport
    compared: Comparison | None
    incomparable: str | None
    layers: tuple[str, ...]
    history: list[EpochResult]
    best_epoch: int
    stopped: str | None


def harden(
    checkpoint: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    **options: Any,
) -> Hardened:
    """Harden a checkpoint file and write the result to `out`; the CLI is a layer over this.

    options: the fields of `HardenSettings` (method, base, layers, epochs, ...) and of `AuditSettings`.

    Raises an LsaError that says what is wrong.
    """
    # Of the two meanings that layers, top_k, steps, step_size and batch_size have, training's is meant here.
    own = {name: options.pop(name) for name in list(options) if name in keys_of(HardenSettings)}
    parts = [("option", settings_from({**options, "harden": own}))]
    if config is not None:
        parts.append((str(config), read_config(Path(config))))
    settings, origin = merge(*parts)
    refuse_outputs(Path(out), inputs_of(checkpoint, config, settings))
    plan = make_harden_plan(checkpoint, settings, origin)
    return run_harden(plan, Path(out), resume=resume, progress=progress)


def run_harden(
    plan: HardenPlan,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Say = lambda message: None,
) -> Hardened:
    """Everything from the audit before to the audit after. say: a line for each thing that is done.

    Raises RunError for what breaks on the way; the last good state is on disk then, and `resume` goes on from it, as
    ranks do that torchrun has started again. Of several ranks the first one writes; all read what it has written.
    """
    files, show = Files(out), progress or (lambda what, done, total: None)
    restarted = distributed.restarted()
    resume = distributed.first(lambda: _resumes(plan, files, resume, restarted, say))
    with numerics(plan.audit), _unmarked_where_it_cannot_go_on(files):
        before = _audit_before(plan.audit, files.before, resume, show, say)
        layers = plan.layers
        if plan.needs_layers and not layers:
            layers = layers_to_hold(plan, say)
        method = plan.make_method(layers)
        trained = _trained(plan, method, layers, files, resume, show, say)
        try:
            _write(plan, method, layers, trained, files)
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
            after = run_audit(distributed.agreed(lambda: plan_after(plan, out)), progress=show)
        except LsaError as error:
            if trained.stopped is None:
                raise
            raise RunError(
                f"stopped early: {trained.stopped}; {out} holds {epoch_in_words(trained.best_epoch)}, and cannot be "
                f"audited: {error}"
            ) from error
        compared, incomparable = _compared(before, after)
        if distributed.rank() == 0:
            write_text(str(files.after), after.to_json())
            if compared is None:
                files.compare.unlink(missing_ok=True)  # of another run
            else:
                write_text(str(files.compare), compared.to_json())
            files.started.unlink(missing_ok=True)
            files.state.unlink(missing_ok=True)
    return Hardened(
        out, before, after, compared, incomparable, layers, trained.history, trained.best_epoch, trained.stopped
    )


@contextmanager
def _unmarked_where_it_cannot_go_on(files: Files) -> Iterator[None]:
    """An error that the same command would meet again leaves no mark of a run that --resume could go on with."""
    try:
        yield
    except RankLost:
        raise
    except LsaError:
        if distributed.rank() == 0 and not files.state.exists():
            files.started.unlink(missing_ok=True)
        raise


def epoch_in_words(epoch: int) -> str:
    return f"epoch {epoch}" if epoch else "the network before training"


def _compared(before: AuditReport, after: AuditReport) -> tuple[Comparison | None, str | None]:
    """The comparison, or why there is none: hours of training are not lost for that."""
    try:
        return compare(before, after), None
    except UsageError as error:
        return None, str(error)


def _resumes(plan: HardenPlan, files: Files, asked: bool, restarted: bool, say: Say) -> bool:
    """Whether there is a state to go on from. If not, `files.started` says from now on what has begun, so that a kill
    before the first state can be told from an older result."""
    if (asked or restarted) and files.state.exists():
        return True
    identity = _identity(plan, plan.layers)
    if asked:
        if files.started.exists():
            refuse_another_start(files.started, identity)
        elif files.out.exists():
            refuse_without_state(files.state)
        say(f"no state at {files.state} yet: starting from the beginning")
    write_text(files.started, json.dumps(identity))
    files.state.unlink(missing_ok=True)  # of another run, which is not to be taken for this one
    return False


def _audit_before(plan: AuditPlan, path: Path, resume: bool, progress: Progress, say: Say) -> AuditReport:
    """The report of the network as it was; a resumed run finds it on disk."""
    saved = distributed.first(lambda: _saved(plan, path) if resume and path.exists() else None)
    if saved is not None:
        return saved
    say(f"audit before: {', '.join(named.label for named in plan.attacks)} on {plural(len(plan.index), 'sample')}")
    report = run_audit(plan, progress=progress)
    if distributed.rank() == 0:
        write_text(str(path), report.to_json())
    return report


def _saved(plan: AuditPlan, path: Path) -> AuditReport | None:
    """The report on disk, if this plan would give the same."""
    from lsa_cli.auditing.provenance import data_of, protocol_of, subject_of
    from lsa_cli.report.storage import read_report

    def plain(protocol: Protocol) -> dict[str, Any]:
        free: Any = {"settings_from": True, "attacked": True, "threads": True, "settings": {"threads"}}
        return protocol.model_dump(mode="json", exclude=free)

    saved = read_report(str(path))
    same = (
        saved.status == "complete"
        and saved.subject.sha256 == subject_of(plan).sha256
        and saved.data.fingerprint == data_of(plan).fingerprint
        and plain(saved.protocol) == plain(protocol_of(plan))
    )
    return saved if same else None


def layers_to_hold(plan: HardenPlan, say: Say) -> tuple[str, ...]:
    """By the rule asked for: the layers that a scan flags, or the first or last hidden layer.

    The source paper holds the most vulnerable layers. The first hidden one by default is our choice: of the rules that
    `python -m benchmarks.layer_choice` compares, none picked layers that gained more under AutoAttack.
    """
    flagged = flagged_layers(plan)
    say(f"most vulnerable, by a scan of held-out training samples: {', '.join(flagged)}")
    if plan.hold == "mvl":
        return flagged
    held = plan.held_by_place
    place = "last hidden layer" if plan.hold == "last" else "first hidden layer behind weights that train"
    say(f"held: {held}, the {place}; to hold the most vulnerable ones say --hold mvl")
    return (held,)


def flagged_layers(plan: HardenPlan) -> tuple[str, ...]:
    """The most vulnerable layers under PGD at full eps, on held-out training samples and not on test samples."""
    network, audit = plan.network, plan.audit
    names = [layer.name for layer in audit.layers]
    attack, rows = PGD(threat=plan.threat), plan.validation[:_SCANNED]

    def look(index: np.ndarray) -> Observation:
        x = check_inputs(network.data.read(index), index, network.bounds, network.data.spec).to(network.device)
        y, places = (
            torch.from_numpy(network.labels[index]).to(network.device),
            torch.from_numpy(index).to(network.device),
        )
        x_adv = attack(network.classifier, x, y, index=places, seed=audit.seed)
        return observe(
            network.classifier, names, audit.measure, plan.threat, x, x_adv, places, seed=audit.seed,
            with_yardstick=False,
        )  # fmt: skip

    seen = distributed.dealt(list(batches(rows, audit.batch_size)), look)
    columns = {
        n: np.concatenate([getattr(one, n) for one in seen]) for n in ("layers", "yardstick", "input_error", "index")
    }
    scan = LayerScan.from_rows(names, columns["layers"], columns["yardstick"], columns["input_error"], columns["index"])
    rule = audit.rule if plan.top_k is None else MvlRule(top_k=plan.top_k)
    return tuple(names[position] for position in scan.most_vulnerable(rule).positions)


def _identity(plan: HardenPlan, layers: tuple[str, ...]) -> dict[str, Any]:
    """Everything that decides the trained weights."""
    checkpoint, network = plan.network.checkpoint, plan.network
    return {
        **described(plan), "layers": list(layers), "checkpoint sha256": checkpoint.sha256 if checkpoint else None,
        "architecture": network.arch, "samples": fingerprint(network.data, plan.train), "torch": str(torch.__version__),
        "ranks": distributed.world(),
    }  # fmt: skip


def _trained(
    plan: HardenPlan,
    method: Hardening,
    layers: tuple[str, ...],
    files: Files,
    resume: bool,
    progress: Progress,
    say: Say,
) -> Trained:
    network = plan.network
    torch.manual_seed(plan.audit.seed)  # for surgery that adds parameters
    # Surgery renames parameters: what is frozen is held by itself, and what surgery adds moves.
    moving = plan.trainable(layers)
    frozen = {id(parameter) for name, parameter in network.classifier.named_parameters() if name not in moving}
    method.prepare(network.classifier)
    if distributed.world() > 1 and network.device.type == "cuda":
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(network.classifier)
    if normalizes_by_rank(network.classifier):
        say(
            "BatchNorm normalises by each rank's part of a batch, since SyncBatchNorm needs CUDA; running statistics are "
            "averaged over ranks after every epoch, and the result differs from that of one process"
        )
    trainable = frozenset(name for name, p in network.classifier.named_parameters() if id(p) not in frozen)
    job = Job(
        network.classifier, method, network.data, network.labels, plan.train, plan.validation, plan.threat, plan.recipe,
        trainable, network.device, plan.audit.seed, files.state, _identity(plan, layers), resume,
    )  # fmt: skip
    say(
        f"training: {plan.method}, {plural(plan.recipe.epochs, 'epoch')} of {plural(len(plan.train), 'sample')}, "
        f"{len(plan.validation)} held out, {plan.threat.norm} eps {eps_as_text(float(plan.threat.eps))}"
    )
    board = _tensorboard(files)

    def on_epoch(result: EpochResult, left: float) -> None:
        _log(files.log, [result], fresh=result.epoch == 1)
        for name, value in {
            "loss": result.loss,
            **result.parts,
            "clean": result.clean,
            "robust": result.robust,
        }.items():
            board(name, value, result.epoch)
        parts = ", ".join(f"{name} {value:.3f}" for name, value in result.parts.items())
        say(
            f"epoch {result.epoch}/{plan.recipe.epochs}: loss {result.loss:.3f} ({parts}), held out: clean "
            f"{result.clean:.1%}, FGSM {result.fgsm:.1%}, PGD {result.robust:.1%}; {result.seconds:.0f} s, "
            f"about {left:.0f} s left"
        )

    # A kill may have come between an epoch's state and its line.
    trained = train(job, progress, on_epoch, lambda history: _log(files.log, history, fresh=True))
    network.classifier.load_state_dict(trained.best)
    method.finish(network.classifier.eval(), validation_of(job))
    return replace(trained, best=weights_of(network.classifier))


def _log(path: Path, results: list[EpochResult], fresh: bool) -> None:
    try:
        with path.open("w" if fresh else "a", encoding="utf-8") as file:
            file.writelines(json.dumps(result.plain(), allow_nan=False) + "\n" for result in results)
    except OSError as error:
        raise RunError(f"the log {path} cannot be written: {error.strerror or error}") from error


def _tensorboard(files: Files) -> Callable[[str, float, int], None]:
    """Scalars for TensorBoard, where it is installed."""
    if distributed.rank() != 0:
        return lambda name, value, epoch: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return lambda name, value, epoch: None
    writer = SummaryWriter(str(files.beside("tensorboard")))

    def write(name: str, value: float, epoch: int) -> None:
        writer.add_scalar(name, value, epoch)
        writer.flush()

    return write


# ---- the checkpoint ------------------------------------------------------------------------------------


def _write(plan: HardenPlan, method: Hardening, layers: tuple[str, ...], trained: Trained, files: Files) -> None:
    """The best epoch by robust accuracy on held-out samples under the name asked for, and the last one beside it."""
    if distributed.rank() != 0:
        return
    body = plan.network.classifier.body
    for path, weights, epoch in (
        (files.out, trained.best, trained.best_epoch),
        (files.last, trained.last, len(trained.history)),
    ):
        plan.network.classifier.load_state_dict(weights)
        write_checkpoint(path, body, _description(plan, layers, trained, epoch, files.out, method.surgeries))


def _description(
    plan: HardenPlan, layers: tuple[str, ...], trained: Trained, epoch: int, out: Path, surgeries: list[dict[str, Any]]
) -> Description:
    network, normalize = plan.network, plan.network.classifier.normalize
    known = network.description
    parent = network.checkpoint
    entry = {
        **described(plan), "layers": list(layers), "epoch": epoch, "epochs_done": len(trained.history),
        "stopped": trained.stopped, "parent": parent.path.name if parent else None,
        "parent_sha256": parent.sha256 if parent else None, "lsa": __version__, "torch": str(torch.__version__),
        "ranks": distributed.world(), "batch_norm_by_rank": normalizes_by_rank(network.classifier),
        "held_out": trained.history[epoch - 1].plain() if epoch else None,
    }  # fmt: skip
    has_mean = isinstance(normalize, Normalize)
    foreign = arch_runs_user_code(network.arch)
    return Description(
        architecture="" if foreign else network.arch,
        arch_args={} if foreign else network.arch_args,
        mean=normalize.mean.tolist() if has_mean else None,
        std=normalize.std.tolist() if has_mean else None,
        input_shape=list(network.input_shape),
        input_range=network.bounds,
        class_names=list(network.class_names),
        output=network.classifier.output,
        output_index=None if any(s["kind"] == "logit-offset" for s in surgeries) else network.classifier.which,
        data=_data_beside(plan, out),
        data_name=(known.data_name if known else None) or network.data.name or None,
        norm=plan.threat.norm,
        eps=float(plan.threat.eps),
        surgery=[*(known.surgery if known else []), *surgeries],
        history=[*(known.history if known else []), entry],
    )


def _data_beside(plan: HardenPlan, out: Path) -> str | None:
    """The data that the audit used, as seen from the new file's folder; None where it is the user's own code."""
    spec, network = plan.network.settings.data, plan.network
    if spec is None or runs_user_code(spec):
        return None
    base = (
        Path(network.checkpoint.path).parent
        if network.origin.get("data") == "the checkpoint" and network.checkpoint
        else Path()
    )
    source, _, rest = spec.partition(":")
    location, mark, query = rest.partition("?")

    def moved(path: str) -> str:
        return os.path.relpath(base / path, Path(os.path.realpath(out)).parent) if (base / path).exists() else path

    options = [f"root={moved(part[5:])}" if part.startswith("root=") else part for part in query.split("&") if part]
    if source != "torchvision":
        location = moved(location)
    return f"{source}:{location}{mark}{'&'.join(options)}"
