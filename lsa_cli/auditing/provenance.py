"""What is audited, on which data, with which settings: the parts of a report that are known before the run."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsa_cli import distributed
from lsa_cli._version import __version__
from lsa_cli.auditing.named_files import names_code
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.data import fingerprint
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.report.protocol import Data, Protocol, Subject, ThreatModel
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.storage import read_report
from lsa_cli.settings import AuditSettings
from lsa_cli.settings.declare import settings_of
from lsa_cli.wording import eps_as_text


def _parameters(plan: AuditPlan) -> int:
    """The number of parameters; for a compiled program that of the file."""
    own = sum(p.numel() for p in plan.network.classifier.body.parameters())
    return own or (plan.network.checkpoint.weights.parameters if plan.network.checkpoint is not None else 0)


def claimed_accuracy(checkpoint: Checkpoint | None) -> tuple[float, str] | None:
    """The clean accuracy that the file states, as a share, and the name of the entry."""
    if checkpoint is None:
        return None
    if checkpoint.description is not None and checkpoint.description.clean_accuracy is not None:
        return checkpoint.description.clean_accuracy, "clean_accuracy"
    return checkpoint.claimed_accuracy


def subject_of(plan: AuditPlan) -> Subject:
    checkpoint, normalize = plan.network.checkpoint, plan.network.classifier.normalize
    mean, std = getattr(normalize, "mean", None), getattr(normalize, "std", None)
    return Subject(
        checkpoint=str(checkpoint.path) if checkpoint else "a network in memory",
        sha256=checkpoint.sha256 if checkpoint else None,
        size=checkpoint.size if checkpoint else None,
        format=checkpoint.format if checkpoint else "module",
        architecture=plan.network.arch,
        arch_args=plan.network.arch_args,
        parameters=_parameters(plan),
        mean=[round(v, 6) for v in mean.tolist()] if isinstance(mean, torch.Tensor) else None,
        std=[round(v, 6) for v in std.tolist()] if isinstance(std, torch.Tensor) else None,
        input_shape=list(plan.network.input_shape),
        input_range=plan.network.bounds,
        output=plan.network.classifier.output,
        class_names=list(plan.network.class_names),
        history=checkpoint.description.history if checkpoint and checkpoint.description else [],
        notes=list(plan.network.notes),
    )


def data_of(plan: AuditPlan) -> Data:
    n, available = len(plan.index), len(plan.network.data)
    return Data(
        source=plan.network.data.spec,
        split=plan.network.data.split,
        transform=plan.network.data.transform,
        n=n,
        available=available,
        selection="all" if n == available else _selection(plan),
        fingerprint=fingerprint(plan.network.data, plan.index),
    )


def _selection(plan: AuditPlan) -> str:
    if plan.baseline is not None and plan.settings.limit is None:
        return f"those of {plan.settings.baseline}"
    return f"stratified by class, seed {plan.seed}"


def protocol_of(plan: AuditPlan) -> Protocol:
    device = (
        torch.cuda.get_device_name(plan.network.device) if plan.network.device.type == "cuda" else platform.machine()
    )
    measured = {one.name for one in settings_of(AuditSettings) if one.scope == "measured"}
    return Protocol(
        threat=ThreatModel(
            norm=plan.threat.norm, eps=float(plan.threat.eps), text=eps_as_text(plan.threat.eps), origin=plan.eps_origin
        ),
        attacks=list(dict.fromkeys(named.spec for named in plan.budget_attacks)),
        noises=[named.spec for named in plan.noises],
        layers=list(plan.selectors),
        measure=plan.measure_name,
        aggregate="batch" if plan.whole_batch else "sample",
        eta=plan.rule.eta,
        sigma=plan.rule.sigma,
        top_k=plan.rule.top_k,
        seed=plan.seed,
        batch_size=plan.batch_size,
        device=f"{plan.network.device} ({device})",
        threads=plan.threads,
        settings=plan.settings.recorded(),
        settings_from={name: layer for name, layer in plan.network.origin.items() if name in measured},
        versions={
            "lsa": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": metadata.version("torchvision"),  # importing it takes seconds
            "numpy": np.__version__,
        },
        files=plan.files,
    )


def identity_of(plan: AuditPlan) -> dict[str, Any]:
    """Everything that decides the numbers, by name: a run can resume another one if these are equal."""
    subject, protocol = subject_of(plan), protocol_of(plan).model_dump(mode="json")
    # These decide no sample's number, or are in the protocol as they came out. threads: as many as are free when a run
    # starts or goes on; they decide no more than the last bits of a mean.
    free = ("gate", "budget", "device", "batch_size", "threads")
    settings = {f"setting {key}": value for key, value in protocol.pop("settings").items() if key not in free}
    del protocol["settings_from"], protocol["threads"], protocol["files"]
    chosen = {
        "checkpoint sha256": subject.sha256, "architecture": subject.architecture, "arch_args": subject.arch_args,
        "mean": subject.mean, "std": subject.std, "data": data_of(plan).model_dump(mode="json"),
        "scanned layers": [layer.name for layer in plan.layers], "eps grid": list(plan.eps_grid),
        "ranks": distributed.world(),
    }  # fmt: skip
    return {**chosen, **protocol, **settings, **identity_of_files(plan)}


def identity_of_files(plan: AuditPlan) -> dict[str, str]:
    """The part of an identity that the Python code and the data file make."""
    return {f"file {path}": digest for path, digest in plan.files.items()}


def changed_since(saved: AuditReport, plan: AuditPlan) -> list[str]:
    """The files of Python code and of data that are others than those of the saved report.

    A report of an earlier version does not record them: then they count as changed if the settings name code (our choice).
    """
    before = saved.protocol.files
    if before is None:
        return list(plan.files) if names_code(plan.settings) else []
    return [path for path in {**before, **plan.files} if before.get(path) != plan.files.get(path)]


def has_settings_of(saved: AuditReport, plan: AuditPlan) -> bool:
    """Whether the report is complete, and of the checkpoint and the settings of this plan."""

    def plain(protocol: Protocol) -> dict[str, Any]:
        free: Any = {"settings_from": True, "attacked": True, "threads": True, "files": True, "settings": {"threads"}}
        return protocol.model_dump(mode="json", exclude=free)

    return (
        saved.status == "complete"
        and saved.subject.sha256 == subject_of(plan).sha256
        and plain(saved.protocol) == plain(protocol_of(plan))
    )


def finished_report(plan: AuditPlan, path: Path) -> AuditReport | None:
    """The report at `path`, if it is complete and this plan would give the same one; otherwise None.

    Raises UsageError for a file that is no report.
    """
    saved = read_report(str(path))
    is_same = has_settings_of(saved, plan) and saved.data.fingerprint == data_of(plan).fingerprint
    return saved if is_same and not changed_since(saved, plan) else None
