"""AuditPlan: every setting resolved, and the network built and tried once, before anything is attacked."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli.attacks import Threat, make_threat
from lsa_cli.attacks.search import Goal
from lsa_cli.auditing.cores import choose_threads
from lsa_cli.auditing.layer_scan import MvlRule, refuse_more
from lsa_cli.auditing.limits import BatchSize
from lsa_cli.auditing.named_attacks import NamedAttack, make_attacks, make_noises, refuse_no_cascade, without_square
from lsa_cli.auditing.named_files import named_files
from lsa_cli.auditing.names import refuse_unknown_names
from lsa_cli.auditing.network import Built, Network, Say, build_network, check_backward, on_data, refuse_without_layers
from lsa_cli.auditing.presets import chosen_attacks, with_preset
from lsa_cli.auditing.proof import PlannedProof, plan_proof
from lsa_cli.auditing.radius import ASSUMED_LINF, refuse_attacks_of_others, refuse_radius, usual_radius
from lsa_cli.auditing.selection import choose_samples, open_baseline
from lsa_cli.auditing.unused import refuse_unused
from lsa_cli.errors import UsageError
from lsa_cli.imports import load_python_file
from lsa_cli.layers import Layer, default_selector, select_layers
from lsa_cli.measures import MEASURES, Measure
from lsa_cli.registry import parse_number
from lsa_cli.report.limits import Limit, check_targets, parse_metric
from lsa_cli.report.schema import AuditReport, Warning
from lsa_cli.settings import AuditSettings

FEW_STEPS = 5  # an audit whose attacks all take fewer steps is a quick look (our choice)
_ASKED_TWICE = 32  # samples on which two passes of the network are compared
_LARGEST_BATCH = 256
_BATCH_NUMBERS = 2_500_000  # input numbers in a batch: 16 colour images of 224 x 224


@dataclass(frozen=True)
class AuditPlan:
    """All that `run_audit` needs.

    settings: those of the network, with the attacks of a preset. index: the chosen samples, ascending. threat: for
    attacks without one of their own; eps_origin: who set its radius. is_stochastic: two passes over an input differ.
    attacks: run on all samples, for verdict and layer scan. cascade: for the verdict alone, each on samples that are
    still robust. layers: in the order they run. files: see `named_files`. proof, baseline: None where none is asked for.
    """

    network: Network
    settings: AuditSettings
    index: np.ndarray
    threat: Threat
    eps_origin: str
    is_stochastic: bool
    attacks: tuple[NamedAttack, ...]
    cascade: tuple[NamedAttack, ...]
    noises: tuple[NamedAttack, ...]
    eps_grid: tuple[float, ...]
    metrics: tuple[str, ...]
    layers: tuple[Layer, ...]
    selectors: tuple[str, ...]
    measure_name: str
    measure: Measure
    whole_batch: bool
    rule: MvlRule
    batch_size: int
    batch_size_is_fixed: bool
    threads: int
    seed: int
    warnings: tuple[Warning, ...]
    files: dict[str, str]
    proof: PlannedProof | None = None
    baseline: AuditReport | None = None

    @property
    def budget_attacks(self) -> tuple[NamedAttack, ...]:
        """The attacks of the verdict, in the order they run."""
        return (*self.attacks, *self.cascade)

    @property
    def rounds(self) -> tuple[NamedAttack, ...]:
        """The rounds of the ranked cascade, where they run by rank: not those of --full-on and --gate-only."""
        return () if self.settings.full_on is not None else tuple(n for n in self.cascade if n.round is not None)

    @property
    def cascade_goal(self) -> Goal:
        """The goal of the attacks of the cascade."""
        return "patient" if self.settings.patient else "break"

    @property
    def fast(self) -> bool:
        """Whether attacks may begin on an optimized copy of the network."""
        return self.settings.fast is not False

    @property
    def limits(self) -> dict[str, Limit]:
        return self.settings.gate or {}

    @property
    def is_quick(self) -> bool:
        """Whether the audit is a quick look: --quick, or every attack takes fewer than five steps."""
        steps = [
            getattr(named.attack, "steps", 1 if named.name == "fgsm" else None) for named in self.budget_attacks
        ]  # fmt: skip
        few = all(number is not None and number < FEW_STEPS for number in steps)
        return self.settings.preset == "quick" or few

    def threat_of(self, named: NamedAttack) -> Threat:
        """The attack's own threat model, or that of the audit."""
        threat: Threat = getattr(named.attack, "threat", self.threat)
        return threat


def make_plan(
    target: str | Path | nn.Module,
    settings: AuditSettings,
    origin: dict[str, str],
    data: Any = None,
    say: Say = lambda message: None,
    built: Built | None = None,
) -> AuditPlan:
    """Resolve every setting. Raises an LsaError for settings that are invalid or contradict each other.

    say: gets what `build_network` tells, and whether this machine is busy. built: the network of the target, where it is
    built already.
    """
    for plugin in settings.plugin or []:
        load_python_file(plugin, "--plugin")
    settings, origin, preset_warnings = with_preset(settings, origin)
    refuse_unknown_names(settings)
    network = on_data(built or build_network(target, settings, say), settings, origin, data, say)
    settings, seed = network.settings, network.settings.seed or 0
    index, selection_warnings = choose_samples(network, seed, baseline := open_baseline(settings))
    threat, eps_origin, threat_warnings = _threat(network)
    if settings.preset is not None:
        settings = settings.replace(attack=chosen_attacks(settings.preset, threat.norm))
    given = settings.batch_size if isinstance(settings.batch_size, int) else None
    batch_size = given or usual_batch_size(network)
    is_stochastic = _is_stochastic(network, index[:batch_size], threat)
    attacks, cascade = make_attacks(settings, threat, is_stochastic)
    threat, eps_origin = _threat_of_attacks((*attacks, *cascade), threat, eps_origin, origin)
    if any(named.attack.uses_gradient for named in (*attacks, *cascade)):
        check_backward(network)
    selectors, layers, layer_notes = chosen_layers(network, settings)
    threads, busy = choose_threads(settings.threads)
    if busy:
        say(busy)
    measure_name = settings.measure or "relative-error"
    plan = AuditPlan(
        network, settings, index, threat, eps_origin, is_stochastic, attacks, cascade,
        noises=make_noises(settings, network),
        eps_grid=tuple(sorted(set(settings.eps_grid or ()))),
        metrics=tuple(dict.fromkeys(settings.metrics or ())),
        layers=layers,
        selectors=selectors,
        measure_name=measure_name,
        measure=MEASURES.get(measure_name),
        whole_batch=settings.aggregate == "batch",
        rule=mvl_rule(settings),
        batch_size=batch_size,
        batch_size_is_fixed=given is not None,
        threads=threads,
        seed=seed, files=named_files(network, data),
        warnings=(
            *network.warnings, *threat_warnings, *selection_warnings, *layer_notes, *preset_warnings, *without_square(cascade),
        ),
        proof=plan_proof(network, threat, (*attacks, *cascade), is_stochastic, network.inputs(index[:2])),
        baseline=baseline,
    )  # fmt: skip
    _refuse_contradictions(plan)
    refuse_radius(plan)
    refuse_attacks_of_others(plan)
    return dataclasses.replace(plan, warnings=(*plan.warnings, *refuse_unused(plan)))


def usual_batch_size(network: Network) -> int:
    """The number of samples in a batch, by the size of an input."""
    return int(np.clip(_BATCH_NUMBERS // int(np.prod(network.input_shape)), 1, _LARGEST_BATCH))


def mvl_rule(settings: AuditSettings) -> MvlRule:
    """The rule of the most vulnerable layers. Its default of eta is a share of the chosen sigma."""
    sigma = settings.sigma or "samples"
    eta = settings.eta if settings.eta is not None else (0.8 if sigma == "layers" else 0.5)
    return MvlRule(eta, sigma, settings.top_k)


def _threat(network: Network) -> tuple[Threat, str, list[Warning]]:
    """The threat model of the audit, and who set its radius."""
    settings, origin, described = network.settings, network.origin, network.description
    norm = make_threat(settings.norm or "linf", 0, network.bounds).norm
    eps, eps_origin = settings.eps, origin.get("eps", "option")
    # The radius of a checkpoint belongs to the norm of the checkpoint.
    other_norm = origin.get("norm", "the checkpoint") != "the checkpoint"
    if eps_origin == "the checkpoint" and other_norm and (described is None or described.norm != norm):
        eps = None
    if eps is not None:
        return make_threat(norm, eps, network.bounds), eps_origin, []
    name = (described.data_name if described else None) or network.data.name
    usual = usual_radius(name, norm)
    if usual is not None:
        return make_threat(norm, parse_number(usual), network.bounds), f"usual for {name}", []
    called = usual_radius(network.data.called, norm)
    if called is not None:
        message = (
            f"the data are called {network.data.called}, so the radius usual for a data set of this name is used, {norm} {called}; "
            "nothing else tells which data they are; --eps sets another"
        )
        warning = Warning(code="eps-assumed", message=message)
        return make_threat(norm, parse_number(called), network.bounds), "assumed", [warning]
    if norm != "linf" or network.bounds is None:
        raise UsageError(f"no usual {norm} radius is known for this data; give one with --eps")
    message = f"no usual radius is known for this data, so linf {ASSUMED_LINF} is used; --eps sets another"
    warning = Warning(code="eps-assumed", message=message)
    return make_threat("linf", parse_number(ASSUMED_LINF), network.bounds), "assumed", [warning]


def _threat_of_attacks(
    attacks: tuple[NamedAttack, ...], threat: Threat, eps_origin: str, origin: dict[str, str]
) -> tuple[Threat, str]:
    """The threat model that the report names: that of the audit, or the largest of the attacks' own if all have their own."""
    own: list[Threat] = [named.attack.threat for named in attacks if hasattr(named.attack, "threat")]
    if not own or threat in own:
        return threat, eps_origin
    same_norm = [one for one in own if one.norm == threat.norm]
    return max(same_norm or own, key=lambda one: one.eps), origin.get("attack", "option")


def _is_stochastic(network: Network, index: np.ndarray, threat: Threat) -> bool:
    """Whether two passes over the first samples differ."""
    from lsa_cli.auditing.evidence.network import random_forward
    from lsa_cli.auditing.evidence.probe import Probe

    tried = BatchSize(min(_ASKED_TWICE, len(index)), may_halve=True)

    def two_passes() -> bool:
        rows = index[: tried.size]
        x = network.inputs(rows)
        y, places = (torch.from_numpy(array).to(network.device) for array in (network.labels[rows], rows))
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            return random_forward(Probe(network.classifier, x, y, places, threat)).finding is not None

    return tried.fit(two_passes)


def chosen_layers(
    network: Network, settings: AuditSettings
) -> tuple[tuple[str, ...], tuple[Layer, ...], list[Warning]]:
    """The selectors, the layers that they select, and a warning where the usual ones select nothing in this network."""
    notes: list[Warning] = []
    if settings.layers is not None:
        selectors = tuple(settings.layers)
    else:
        selector, why = default_selector(network.layers if network.shows_layers else None)
        selectors = (selector,)
        notes += [Warning(code="default-layers", message=why)] if why else []
    if selectors == ("none",):
        return selectors, (), notes
    refuse_without_layers(network)
    chosen = select_layers(network.layers, selectors)
    if settings.top_k is not None:
        refuse_more(settings.top_k, len(chosen), "the scan")
    return selectors, tuple(chosen), notes


def _refuse_contradictions(plan: AuditPlan) -> None:
    """Raises UsageError for settings that nothing in the plan can use, and limits on names that it does not have."""
    refuse_no_cascade(plan.settings, plan.cascade)
    if plan.eps_grid and not plan.attacks:
        raise UsageError("--eps-grid needs an attack whose curve it draws")
    if plan.metrics and not plan.attacks:
        raise UsageError("--metrics compares clean with adversarial inputs; give an attack")
    proven = plan.limits.get("proven")
    if proven is not None and not proven.allow_not_run and not plan.settings.prove:
        raise UsageError("the limit proven needs a proof: add --prove, or set allow_not_run: true for it")
    for eps in plan.eps_grid:
        make_threat(plan.threat.norm, eps, plan.network.bounds)
    labels = [named.label for named in (*plan.budget_attacks, *plan.noises)]
    drops = [
        name for name, limit in plan.limits.items() if parse_metric(name).family == "drop" and not limit.allow_not_run
    ]
    if drops and not (plan.settings.gate_only and plan.settings.baseline):
        raise UsageError(
            f"the limit {drops[0]} compares with another report, sample by sample: give --gate-only and --baseline FILE.json, "
            "or set allow_not_run: true for it"
        )
    check_targets(plan.limits, labels, plan.network.class_names, [layer.name for layer in plan.layers])
