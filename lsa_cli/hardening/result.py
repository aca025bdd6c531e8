"""The checkpoints of a hardening, and the history in them."""

import os
from pathlib import Path
from typing import Any

import torch

from lsa_cli import distributed
from lsa_cli._version import __version__
from lsa_cli.auditing.provenance import identity_of_files
from lsa_cli.data import fingerprint, runs_user_code, with_paths
from lsa_cli.hardening.files import Files
from lsa_cli.hardening.methods import Hardening
from lsa_cli.hardening.plan import HardenPlan
from lsa_cli.hardening.recipes import Recipe
from lsa_cli.hardening.trainer import Trained, normalizes_by_rank
from lsa_cli.models.architectures import runs_user_code as arch_runs_user_code
from lsa_cli.models.checkpoint import Description, write_checkpoint
from lsa_cli.models.classifier import Normalize
from lsa_cli.wording import eps_as_text


def described(plan: HardenPlan) -> dict[str, Any]:
    """The settings of the training as plain values, for the history in the checkpoint and for --resume."""
    recipe = plan.recipe
    return {
        "method": plan.method, "method_options": plan.options, **plan.options, "norm": plan.threat.norm,
        "eps": float(plan.audit.threat.eps), "eps_text": eps_as_text(float(plan.audit.threat.eps)),
        "train_eps": float(plan.threat.eps), "steps": plan.steps, "step_size": plan.step_size,
        "attack_mode": plan.attack_mode, **{name: getattr(recipe, name) for name in Recipe.__dataclass_fields__},
        "measure": plan.audit.measure_name, "gamma": plan.gamma if plan.kind.regularizes else None,
        "detach_clean": plan.detach_clean, "freeze": list(plan.freeze), "train_only_flagged": plan.train_only_flagged,
        "data": plan.network.data.spec, "split": plan.network.data.split, "training_samples": len(plan.train),
        "validation_samples": len(plan.validation), "seed": plan.audit.seed,
    }  # fmt: skip


def identity_of(plan: HardenPlan, layers: tuple[str, ...]) -> dict[str, Any]:
    """Everything that determines the trained weights, as plain values. A resumed run must have the same."""
    checkpoint, network = plan.network.checkpoint, plan.network
    return {
        **described(plan), "layers": list(layers), "checkpoint sha256": checkpoint.sha256 if checkpoint else None,
        "architecture": network.arch, "samples": fingerprint(network.data, plan.train), "torch": str(torch.__version__),
        "ranks": distributed.world(), **identity_of_files(plan.audit),
    }  # fmt: skip


def write_checkpoints(
    plan: HardenPlan, method: Hardening, layers: tuple[str, ...], trained: Trained, files: Files
) -> None:
    """Write the best epoch to `files.out`, and the last epoch to `files.last`.

    A network that was pickled whole is pickled whole again.
    """
    if distributed.rank() != 0:
        return
    network = plan.network
    for path, weights, epoch in (
        (files.out, trained.best, trained.best_epoch),
        (files.last, trained.last, len(trained.history)),
    ):
        network.classifier.load_state_dict(weights)
        findings = method.findings if path == files.out else {}
        description = _description(plan, layers, trained, epoch, files.out, method.surgeries, findings)
        with network.classifier.home:  # where pickle finds the classes of a network that was pickled whole
            write_checkpoint(path, network.classifier.body, description, whole=network.is_pickled)


def _description(
    plan: HardenPlan, layers: tuple[str, ...], trained: Trained, epoch: int, out: Path, surgeries: list[dict[str, Any]],
    findings: dict[str, Any],
) -> Description:  # fmt: skip
    network, normalize = plan.network, plan.network.classifier.normalize
    known = network.description
    parent = network.checkpoint
    entry = {
        **described(plan), "layers": list(layers), "epoch": epoch, "epochs_done": len(trained.history),
        "stopped": trained.stopped, "parent": parent.path.name if parent else None,
        "parent_sha256": parent.sha256 if parent else None, "lsa": __version__, "torch": str(torch.__version__),
        "ranks": distributed.world(), "batch_norm_by_rank": normalizes_by_rank(network.classifier),
        "raised": {str(one.epoch): one.raised for one in trained.history if one.raised is not None},
        "held_out": trained.history[epoch - 1].plain() if epoch else None, **findings,
    }  # fmt: skip
    has_mean = isinstance(normalize, Normalize)
    of_user = ("", dict[str, Any]()) if arch_runs_user_code(network.arch) else (network.arch, network.arch_args)
    architecture, arguments = network.described or of_user
    return Description(
        architecture=architecture,
        arch_args=arguments,
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
        eps=float(plan.audit.threat.eps),
        surgery=[*(known.surgery if known else []), *surgeries],
        history=[*(known.history if known else []), entry],
    )


def _data_beside(plan: HardenPlan, out: Path) -> str | None:
    """The data of the audits, relative to the folder of the new file; None where it is Python code of the user."""
    spec, network = plan.network.settings.data, plan.network
    if spec is None or runs_user_code(spec):
        return None
    base = Path()
    if network.checkpoint is not None and network.origin.get("data") == "the checkpoint":
        base = Path(network.checkpoint.path).parent

    def beside(path: str) -> str:
        return os.path.relpath(base / path, Path(os.path.realpath(out)).parent) if (base / path).exists() else path

    return with_paths(spec, beside)
