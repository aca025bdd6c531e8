"""The layers that a hardening regularizes: named ones, those that an audit or a scan flags, or one by its place."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lsa_cli import distributed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.auditing.layer_scan import LayerScan, MvlRule, refuse_more
from lsa_cli.auditing.observation import Observation, observe
from lsa_cli.data import batches
from lsa_cli.errors import UsageError
from lsa_cli.hardening.method_settings import REGULARIZED, method_of, needs_layers
from lsa_cli.hardening.methods import HARDENINGS, Batch
from lsa_cli.hardening.objectives import OBJECTIVES, objective_for
from lsa_cli.layers import Layer, select_layers
from lsa_cli.models.loading import Say
from lsa_cli.registry import parse_number, unknown
from lsa_cli.report.ranking import strongest
from lsa_cli.report.schema import AuditReport
from lsa_cli.settings import HardenSettings

if TYPE_CHECKING:
    from lsa_cli.hardening.plan import HardenPlan

_SCANNED = 500  # validation samples in the scan for vulnerable layers


def named_layers(own: HardenSettings, layers: list[Layer]) -> tuple[str, ...]:
    """The layers that --layers or a saved report names; empty where a rule chooses them. Raises UsageError."""
    if own.mvl is not None and own.layers is not None:
        raise UsageError("--mvl and --layers both name the layers to regularize; give one of them")
    if own.mvl is not None:
        return _from_report(own.mvl, layers, own.top_k)
    return tuple(layer.name for layer in select_layers(layers, own.layers)) if own.layers else ()


def _from_report(path: str, layers: list[Layer], top_k: int | None) -> tuple[str, ...]:
    """The most vulnerable layers of a saved report, under its strongest budget attack with a layer scan."""
    from lsa_cli.report.storage import read_report

    outcome = strongest(read_report(path), scanned=True)
    if outcome is None or outcome.layers is None or not outcome.layers.mvl:
        raise UsageError(
            f"--mvl {path}: this report has no scan of layers that an attack moves; audit without --layers none"
        )
    found = outcome.layers.mvl
    if top_k is not None:
        means = {row.name: row.mean for row in outcome.layers.rows if row.mean is not None}
        refuse_more(top_k, len(means), path)
        found = sorted(means, key=lambda name: -means[name])[:top_k]
    missing = [name for name in found if name not in {layer.name for layer in layers}]
    if missing:
        raise UsageError(f"--mvl {path}: this network has no layer {missing[0]}; is it the report of another model?")
    return tuple(found)


def gammas(text: str, layers: Sequence[str]) -> tuple[float, ...]:
    """The weights of --gamma: "0.5" for every layer, or one for each, as "relu1=0.5,relu2=0.1". Raises UsageError."""
    weights = _parsed(text)
    if isinstance(weights, float):
        return (weights,) * len(layers)
    if set(weights) != set(layers):
        raise UsageError(f"--gamma '{text}' must give one weight of 0 or more to each of {', '.join(layers)}")
    return tuple(weights[name] for name in layers)


def check_gamma(text: str, layers: Sequence[str]) -> None:
    """Check --gamma before the regularized layers are known. Raises UsageError for a bad number or an unknown layer."""
    weights = _parsed(text)
    for name in weights if isinstance(weights, dict) else ():
        if name not in layers:
            raise UsageError(f"--gamma '{text}': {unknown('layer', name, layers)}")


def _parsed(text: str) -> float | dict[str, float]:
    if "=" not in text:
        value = parse_number(text, "--gamma")
        if value < 0:
            raise UsageError(f"--gamma {text} is negative; give a weight of 0 or more")
        return value
    parts = (part.rpartition("=") for part in text.split(","))
    weights = {name.strip(): parse_number(value, "--gamma") for name, _, value in parts}
    if min(weights.values()) < 0:
        raise UsageError(f"--gamma '{text}' must give weights of 0 or more")
    return weights


# ---- chosen by a rule ------------------------------------------------------------


def layers_to_regularize(plan: "HardenPlan", say: Say) -> tuple[str, ...]:
    """The layers that the rule --hold chooses: those that a scan flags, or the first or last hidden layer.

    The source paper (arXiv 2202.02626) regularizes the most vulnerable layers. The default, the first hidden layer, is our
    choice: no rule that `python -m benchmarks.paper_layers` compares gains more under AutoAttack. A method that chooses its
    layers itself does so on held-out samples.
    """
    if plan.kind.chooses:
        held_out = [read_batch(plan, rows) for rows in batches(plan.validation[:_SCANNED], plan.audit.batch_size)]
        network, method = plan.network, plan.make_method(())
        return distributed.first(lambda: method.choose(network.classifier, network.layers, held_out, say))
    flagged = flagged_layers(plan)
    say(f"most vulnerable layers, by a scan of held-out samples: {', '.join(flagged)}")
    if plan.hold == "mvl":
        return flagged
    layer = plan.layer_by_place
    place = "last hidden layer" if plan.hold == "last" else "first hidden layer that training changes"
    say(f"regularized layer: {layer}, the {place}; --hold mvl regularizes the most vulnerable layers")
    return (layer,)


def flagged_layers(plan: "HardenPlan") -> tuple[str, ...]:
    """The most vulnerable layers under PGD at full eps, on held-out training samples and not on test samples."""
    network, audit = plan.network, plan.audit
    names = [layer.name for layer in audit.layers]
    attack, rows = PGD(threat=audit.threat), plan.validation[:_SCANNED]

    def scan_batch(index: np.ndarray) -> Observation:
        batch = read_batch(plan, index)
        x_adv = attack(network.classifier, batch.x, batch.y, index=batch.index, seed=batch.seed)
        return observe(
            network.classifier, names, audit.measure, audit.threat, batch.x, x_adv, batch.index, seed=batch.seed,
            with_yardstick=False,
        )  # fmt: skip

    seen = Observation.concatenate(distributed.dealt(list(batches(rows, audit.batch_size)), scan_batch))
    scan = LayerScan.from_rows(names, seen.layers, seen.yardstick, seen.input_error, seen.index)
    rule = audit.rule if plan.top_k is None else MvlRule(top_k=plan.top_k)
    found = tuple(names[position] for position in scan.most_vulnerable(rule).positions)
    if not found:
        raise UsageError(
            "no layer moves under PGD on the held-out samples; name the layers to regularize with --layers"
        )
    return found


def read_batch(plan: "HardenPlan", rows: np.ndarray) -> Batch:
    """The training samples with these indices (N,)."""
    network = plan.network
    x = network.inputs(rows)
    y, places = (torch.from_numpy(part).to(network.device) for part in (network.labels[rows], rows))
    return Batch(x, y, places, plan.audit.seed, 1.0, 1.0)


# ---- taken from an audit ------------------------------------------------------------


def settings_before_audit(own: HardenSettings, scans: bool) -> tuple[HardenSettings, list[str]]:
    """The settings of a hardening that follows an audit, before the audit; and notes on settings that it replaces.

    Where no method is named it is at-lr. scans: whether the audit scans layers under an attack. Raises UsageError where its
    layers are needed and it does not.
    """
    own = own if own.method is not None else own.replace(method=REGULARIZED)
    if not _takes_layers(own):
        return own, []
    if not scans:
        raise UsageError(
            "--harden regularizes the most vulnerable layers, and this audit scans none: leave out the options that turn "
            "layers or attacks off, or name layers under `harden:` in lsa.yaml"
        )
    gone = [name for name in ("mvl", "hold", "top_k") if getattr(own, name) is not None]
    notes = [f"{name} under harden: is replaced by the layers that this audit flags" for name in gone]
    return own.replace(mvl=None, top_k=None, hold="mvl"), notes


def settings_after_audit(own: HardenSettings, report: AuditReport) -> tuple[HardenSettings, list[str]]:
    """The settings of `settings_before_audit` with the layers and the attack of the report; and notes on them.

    Raises UsageError where the audit scanned no layers, for example when its time budget was exhausted.
    """
    top, found, notes = strongest(report, scanned=True), dict[str, Any](), []
    if _takes_layers(own):
        if top is None or top.layers is None or not top.layers.mvl:
            raise UsageError(
                "--harden regularizes the most vulnerable layers, and the audit scanned none that an attack moves"
            )
        found |= {"layers": top.layers.mvl, "hold": None}
        notes.append(f"hardening {', '.join(top.layers.mvl)}, flagged under {top.name}")
    if top is not None and _takes_base(own):
        base = objective_for(top.spec)
        found["base"] = base
        notes.append(f"hardening with base {base}, for {top.name}")
        # Steps of a minimal-norm attack mean something else, so training does not use them.
        settings = top.settings if top.kind == "budget" else {}
        for name in ("steps", "step_size"):
            said = getattr(own, name)
            used = name in OBJECTIVES.get(base).uses
            found[name] = None if not used else settings.get(name) if said is None else said
            if said is not None and not used:
                notes.append(f"{name} under harden: is not used by base {base}")
    return own.replace(**found), notes


def _takes_layers(own: HardenSettings) -> bool:
    """Whether the method needs layers that it does not choose itself, and the settings name none."""
    method, options = method_of(own)
    return own.layers is None and not HARDENINGS.get(method).chooses and needs_layers(method, options, own.train_only)


def _takes_base(own: HardenSettings) -> bool:
    """Whether the method has an objective and the settings name none."""
    method, options = method_of(own)
    return "base" not in options and getattr(HARDENINGS.get(method), "base", None) is not None
