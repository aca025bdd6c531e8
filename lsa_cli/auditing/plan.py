"""AuditPlan: every choice made, every name resolved, the network built and tried once, before anything is attacked."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli.attacks import ATTACKS, CORRUPTIONS, NOISES, Attack, Threat, make_threat
from lsa_cli.attacks.ensemble import AutoAttack
from lsa_cli.attacks.fab import FABT
from lsa_cli.attacks.square import Square
from lsa_cli.attacks.threat import Bounds
from lsa_cli.auditing.cores import choose_threads
from lsa_cli.auditing.layer_scan import MvlRule, refuse_more
from lsa_cli.auditing.limits import BatchSize
from lsa_cli.auditing.metrics import METRICS
from lsa_cli.auditing.network import Built, Network, Say, build_network, check_backward, on_data, refuse_without_layers
from lsa_cli.auditing.radius import ASSUMED_LINF, refuse_radius, usual_radius
from lsa_cli.auditing.unused import refuse_unused
from lsa_cli.data import LabelledData, check_inputs, stratified_subset
from lsa_cli.errors import UsageError
from lsa_cli.imports import load_python_file
from lsa_cli.layers import Layer, select_layers
from lsa_cli.measures import MEASURES, Measure
from lsa_cli.models.checkpoint import Checkpoint
from lsa_cli.models.classifier import Classifier
from lsa_cli.registry import build, parse_number, parse_spec
from lsa_cli.report.limits import Limit, check_targets
from lsa_cli.report.schema import Warning
from lsa_cli.settings import AuditSettings
from lsa_cli.wording import eps_as_text

DEFAULT_LIMIT = 1000
DEFAULT_ATTACKS = ("fgsm", "pgd", "t-pgd")
QUICK_ATTACKS, QUICK_LIMIT = ("fgsm", "apgd-ce:steps=10"), 200
FEW_STEPS = 5  # attacks with fewer are a quick look (our choice)
# Networks trained for linf hide their gradient from steps of fixed size in these norms: such steps alone left up to 90%
# where the smallest change breaks most of it (benchmarks/RESULTS.md).
MINIMAL_NORM = {"l2": "fmn", "l1": "fmn"}
QUICK_STEPS = 40  # of the minimal-norm attack in --quick
EOT = 10  # passes that attacks on a random network climb the mean of
_ASKED_TWICE = 32  # samples by which such a network is told
_LARGEST_BATCH = 256
_BATCH_NUMBERS = 2_500_000  # input numbers in a batch: 16 colour images of 224 x 224


@dataclass(frozen=True)
class Named:
    """An attack or noise with the label it goes by: its name, or its whole spec if the name stands twice."""

    label: str
    name: str
    spec: str
    attack: Attack


@dataclass(frozen=True)
class AuditPlan:
    """All that `run_audit` needs.

    index: the chosen samples, ascending; layers: in the order they run. attacks: run to the end on all samples, for
    layer scan and verdict. cascade: for the verdict alone, each on what is still whole; full_on: of these survivors a
    random part of this size. is_random: the network answers by chance. budget: seconds.
    """

    checkpoint: Checkpoint | None
    classifier: Classifier
    is_random: bool
    architecture: str
    arch_args: dict[str, Any]
    data: LabelledData
    labels: np.ndarray
    index: np.ndarray
    threat: Threat
    eps_text: str
    eps_origin: str
    attacks: tuple[Named, ...]
    cascade: tuple[Named, ...]
    full_on: int | None
    noises: tuple[Named, ...]
    eps_grid: tuple[float, ...]
    metrics: tuple[str, ...]
    layers: tuple[Layer, ...]
    selectors: tuple[str, ...]
    last_layer: Layer | None
    measure_name: str
    measure: Measure
    whole_batch: bool
    rule: MvlRule
    batch_size: int
    batch_size_is_fixed: bool
    fast: bool
    budget: float | None
    device: torch.device
    threads: int
    seed: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    bounds: Bounds
    limits: dict[str, Limit]
    settings: dict[str, Any]
    origin: dict[str, str]
    notes: tuple[str, ...]
    warnings: tuple[Warning, ...]

    def threat_of(self, named: Named) -> Threat:
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
    """Resolve every setting. Raises an LsaError, before anything costs time, for what cannot be meant.

    say: told what `build_network` tells, and whether this machine is busy. built: the network of the target, if it is built
    already.
    """
    for plugin in settings.plugin or []:
        load_python_file(plugin, "--plugin")
    measure_name = settings.measure or "relative-error"
    measure = MEASURES.get(measure_name)
    settings, origin, preset_warnings = _preset(settings, origin)
    _resolve_names(settings)
    network = on_data(built or build_network(target, settings, say), settings, origin, data)
    settings, origin = network.settings, network.origin
    seed = settings.seed if settings.seed is not None else 0
    index, selection_warnings = _choose_samples(network, settings, seed)
    threat, eps_text, eps_origin = _threat(network, network.warnings)
    if settings.preset is not None:
        settings = settings.replace(attack=chosen_attacks(settings.preset, threat.norm))
    said = settings.batch_size if isinstance(settings.batch_size, int) else None
    batch = said or int(np.clip(_BATCH_NUMBERS // int(np.prod(network.input_shape)), 1, _LARGEST_BATCH))
    tried = BatchSize(min(_ASKED_TWICE, batch), may_halve=True)
    is_random = tried.fit(lambda: _answers_by_chance(network, index[: tried.size], threat))
    attacks, cascade = _attacks(settings, threat, is_random)
    if settings.full_on is not None and not cascade:
        raise UsageError("--full-on says how many survivors meet the cascade, and there is none; add --full")
    if any(named.attack.uses_gradient for named in (*attacks, *cascade)):
        check_backward(network)
    cascade_warnings = _without_square(cascade)
    noises = _label([*_noises(settings, network.bounds), *_corruptions(settings, network)])
    selectors = tuple(settings.layers or ["activations"])
    refuse_without_layers(network, selectors)
    chosen = [] if selectors == ("none",) else select_layers(network.layers, selectors)
    if settings.top_k is not None and chosen:
        refuse_more(settings.top_k, len(chosen), "the scan")
    weighted = [layer for layer in network.layers if layer.is_learnable]
    sigma = settings.sigma or "samples"
    eta = settings.eta if settings.eta is not None else (0.8 if sigma == "layers" else 0.5)
    labels = [named.label for named in (*attacks, *cascade, *noises)]
    check_targets(settings.gate or {}, labels, network.class_names, [layer.name for layer in chosen])
    grid = tuple(sorted(set(settings.eps_grid or ())))
    if grid and not attacks:
        raise UsageError("--eps-grid needs an attack to draw the curve with")
    if settings.metrics and not attacks:
        raise UsageError("--metrics compares clean with adversarial inputs, and no attack makes any; name one")
    for eps in grid:
        make_threat(threat.norm, eps, network.bounds)
    threads, busy = choose_threads(settings.threads)
    if busy:
        say(busy)
    plan = AuditPlan(
        checkpoint=network.checkpoint,
        classifier=network.classifier,
        is_random=is_random,
        architecture=network.arch,
        arch_args=network.arch_args,
        data=network.data,
        labels=network.labels,
        index=index,
        threat=threat,
        eps_text=eps_text,
        eps_origin=eps_origin,
        attacks=attacks,
        cascade=cascade,
        full_on=settings.full_on,
        noises=noises,
        eps_grid=grid,
        metrics=tuple(dict.fromkeys(settings.metrics or ())),
        layers=tuple(chosen),
        selectors=selectors,
        last_layer=weighted[-1] if weighted else None,
        measure_name=measure_name,
        measure=measure,
        whole_batch=settings.aggregate == "batch",
        rule=MvlRule(eta, sigma, settings.top_k),
        batch_size=batch,
        batch_size_is_fixed=said is not None,
        fast=settings.fast is not False,
        budget=settings.budget,
        device=network.device,
        threads=threads,
        seed=seed,
        class_names=network.class_names,
        input_shape=network.input_shape,
        bounds=network.bounds,
        limits=settings.gate or {},
        settings=settings.recorded(),
        origin=origin,
        notes=tuple(network.notes),
        warnings=(*network.warnings, *selection_warnings, *preset_warnings, *cascade_warnings),
    )
    refuse_radius(plan)
    return dataclasses.replace(plan, warnings=(*plan.warnings, *refuse_unused(plan)))


def is_quick(plan: AuditPlan) -> bool:
    """Whether the audit is a quick look: --quick, or no attack of it takes as many as five steps."""
    steps = [
        getattr(named.attack, "steps", 1 if named.name == "fgsm" else None) for named in (*plan.attacks, *plan.cascade)
    ]
    return plan.settings.get("preset") == "quick" or all(number is not None and number < FEW_STEPS for number in steps)


def _preset(
    settings: AuditSettings, origin: dict[str, str]
) -> tuple[AuditSettings, dict[str, str], list[Warning]]:  # fmt: skip
    """What --quick and --full stand for; --full-on without a choice of attacks is of --full, and --gate-only of all samples.
    Of a preset and a list of attacks the one in an option wins over a file's."""
    if settings.gate_only and settings.limit is None:
        settings = settings.replace(limit="all")
    if settings.full_on is not None and settings.preset is None and settings.attack is None:
        settings = settings.replace(preset="full")
        origin = {**origin, "preset": origin.get("full_on", "option")}
    if settings.preset is None:
        return settings, origin, []
    warnings: list[Warning] = []
    if settings.attack is not None:
        by_preset, by_attack = origin.get("preset"), origin.get("attack")
        if by_preset == by_attack:
            where, dashes = ("", "--") if by_preset in (None, "option") else (f"{by_preset}: ", "")
            preset = f"{dashes or 'preset: '}{settings.preset}"
            raise UsageError(f"{where}{preset} chooses the attacks; leave out {dashes}attack, or {preset}")
        if by_attack == "option":
            message = f"preset {settings.preset} of {by_preset} is not used: --attack chooses the attacks"
            origin = {name: where for name, where in origin.items() if name != "preset"}
            return (
                settings.replace(preset=None),
                origin,
                [Warning(code="unused-setting", message=message)],
            )
        message = f"the attacks listed in {by_attack} are not used: --{settings.preset} chooses them"
        warnings.append(Warning(code="unused-setting", message=message))
    chosen: dict[str, Any] = {"attack": None}
    if settings.preset == "quick":
        chosen["noise"] = settings.noise or ["none"]
        message = "--quick: few samples and short attacks only; the robust accuracy is a loose upper bound"
        warnings.append(Warning(code="quick", message=message))
    origin = {**origin, "attack": origin.get("preset", "option")}
    return settings.replace(**chosen), origin, warnings


def chosen_attacks(preset: str | None, norm: str) -> list[str]:
    """The attacks of an audit that names none, with --quick, --full or neither. In l2 and l1 one of them looks for the
    smallest change."""
    minimal = [MINIMAL_NORM[norm]] if norm in MINIMAL_NORM else []
    if preset == "quick":
        return [*QUICK_ATTACKS, *(f"{name}:steps={QUICK_STEPS}" for name in minimal)]
    return [*DEFAULT_ATTACKS, *minimal, *(["autoattack"] if preset == "full" else [])]


def _resolve_names(settings: AuditSettings) -> None:
    """Unknown names fail before the checkpoint is read."""
    kinds = ((ATTACKS, settings.attack), (NOISES, settings.noise), (CORRUPTIONS, settings.corruption))
    for registry, specs in kinds:
        for spec in specs or []:
            if spec != "none":
                registry.get(parse_spec(spec, registry.noun)[0])
    for name in settings.metrics or []:
        METRICS.get(name)
    if settings.norm is not None:
        make_threat(settings.norm, 0)


def _choose_samples(network: Network, settings: AuditSettings, seed: int) -> tuple[np.ndarray, list[Warning]]:
    from lsa_cli.auditing.evidence import empty_classes

    available = len(network.data)
    limit, default = settings.limit, QUICK_LIMIT if settings.preset == "quick" else DEFAULT_LIMIT
    if isinstance(limit, int) and limit > available:
        raise UsageError(
            f"--limit {limit} asks for more samples than the {available} in {network.data.spec}; use --limit all"
        )
    if limit == "all" or (limit is None and available <= default):
        index = np.arange(available)
    else:
        index = stratified_subset(network.labels, int(limit or default), seed)
    counts = np.bincount(network.labels[index], minlength=network.classes)
    missing_anyway = (np.bincount(network.labels, minlength=network.classes) == 0).any()
    return index, empty_classes(counts, list(network.class_names), subset=not missing_anyway)


def _threat(network: Network, warnings: list[Warning]) -> tuple[Threat, str, str]:
    settings, origin = network.settings, network.origin
    norm = make_threat(settings.norm or "linf", 0, network.bounds).norm
    eps = settings.eps
    # A checkpoint's radius belongs to the checkpoint's norm.
    if (
        eps is not None
        and origin.get("eps") == "the checkpoint"
        and origin.get("norm", "the checkpoint") != "the checkpoint"
    ):
        own = network.description.norm if network.description else None
        eps = eps if own == norm else None
    if eps is not None:
        return make_threat(norm, eps, network.bounds), eps_as_text(eps), origin.get("eps", "option")
    name = (network.description.data_name if network.description else None) or network.data.name
    usual = usual_radius(name, norm)
    if usual is not None:
        return make_threat(norm, parse_number(usual), network.bounds), usual, f"usual for {name}"
    if norm != "linf" or network.bounds is None:
        raise UsageError(f"no usual {norm} radius is known for this data; give one with --eps")
    warnings.append(
        Warning(
            code="eps-assumed",
            message=f"no usual radius is known for this data; linf {ASSUMED_LINF} was taken, say --eps for another",
        )
    )
    return make_threat("linf", parse_number(ASSUMED_LINF), network.bounds), ASSUMED_LINF, "assumed"


def _specs(given: list[str] | None, default: Sequence[str], option: str) -> list[str]:
    if given is None:
        return list(default)
    if "none" in given:
        if len(given) > 1:
            raise UsageError(f"{option} none stands alone, or not at all")
        return []
    return given


def _answers_by_chance(network: Network, rows: np.ndarray, threat: Threat) -> bool:
    """Whether two passes over the samples at these places differ."""
    from lsa_cli.auditing.evidence import Probe, random_forward

    x = check_inputs(network.data.read(rows), rows, network.bounds, network.data.spec).to(network.device)
    y, places = (torch.from_numpy(array).to(network.device) for array in (network.labels[rows], rows))
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        return bool(random_forward(Probe(network.classifier, x, y, places, threat)).findings)


def climbing_means(named: Named) -> Named:
    """An attack on a network that answers by chance climbs the mean of several passes, unless its spec says how many."""
    eot = getattr(named.attack, "eot", None)
    if eot is None or "eot" in parse_spec(named.spec, "attack")[1]:
        return named
    return dataclasses.replace(named, attack=dataclasses.replace(named.attack, eot=EOT))  # type: ignore[call-arg]


def _attacks(settings: AuditSettings, threat: Threat, is_random: bool) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    """Attacks for layer scan and verdict, and those of the cascade: AutoAttack is taken apart into its members.

    is_random: single passes mislead, so that what the user leaves open is EoT (our choice of passes) and AutoAttack's
    version for random networks.
    """
    specs = _specs(settings.attack, chosen_attacks(None, threat.norm), "--attack")
    ours = settings.attack is None or settings.preset is not None
    general = {
        name: getattr(settings, name)
        for name in ("steps", "step_size", "restarts")
        if getattr(settings, name) is not None
    }
    used: set[str] = set()
    made: list[tuple[str, str, Attack]] = []
    for spec in specs:
        name, options = parse_spec(spec, "attack")
        factory = ATTACKS.get(name)
        fields = {field.name for field in dataclasses.fields(factory)}
        given: dict[str, Any] = {}
        if "threat" in fields:
            norm, eps = options.pop("norm", threat.norm), options.pop("eps", None)
            if eps is None and make_threat(norm, 0, threat.bounds).norm != threat.norm:
                raise UsageError(f"attack '{spec}': give eps with another norm, for example {name}:norm={norm},eps=1")
            radius = threat.eps if eps is None else parse_number(eps, f"attack '{spec}': eps")
            given["threat"] = make_threat(norm, radius, threat.bounds)
        # --steps and its like are for attacks that people tune; AutoAttack is what it is, and so is the minimal-norm
        # attack that nobody named: a step of PGD's length would cripple it.
        as_is = factory is AutoAttack or (ours and factory.kind == "minimal")
        applicable = {} if as_is else {key: value for key, value in general.items() if key in fields}
        used |= set(applicable)
        merged = {**applicable, **options}
        if is_random and factory is AutoAttack and not {"version", "targets", "queries"} & options.keys():
            merged["version"] = "rand"
        made.append((name, spec, build(factory, merged, f"attack '{spec}'", **given)))
    for key in general:
        if key not in used:
            raise UsageError(f"--{key.replace('_', '-')}: none of the attacks ({', '.join(specs) or 'none'}) takes it")
    scan = _label([entry for entry in made if not isinstance(entry[2], AutoAttack)])
    if is_random:
        scan = tuple(map(climbing_means, scan))
    return scan, _members(
        [entry for entry in made if isinstance(entry[2], AutoAttack)], {named.label for named in scan}
    )


def _members(ensembles: list[tuple[str, str, Attack]], taken: set[str]) -> tuple[Named, ...]:
    names = {ATTACKS.get(name): name for name in ATTACKS.names()}
    found: list[Named] = []
    for _, spec, ensemble in ensembles:
        assert isinstance(ensemble, AutoAttack)
        if any(named.spec == spec for named in found):
            raise UsageError(f"'{spec}' is asked for twice; give it once, or with other settings")
        for member in ensemble.members:
            name = names[type(member)]
            label = name if name not in taken else f"{spec} {name}"
            taken.add(label)
            found.append(Named(label, name, spec, member))
    return tuple(found)


def _without_square(cascade: Sequence[Named]) -> list[Warning]:
    """Where Square belongs beside FAB-T, and could not be."""
    kinds: dict[str, set[type[Attack]]] = {}
    for named in cascade:
        kinds.setdefault(named.spec, set()).add(type(named.attack))
    lacking = [spec for spec, found in kinds.items() if FABT in found and Square not in found]
    if not lacking:
        return []
    message = f"{lacking[0]} runs without Square, which is not built for l1: no attack without gradients stands behind its number"
    return [Warning(code="no-square", message=message)]


def _noises(settings: AuditSettings, bounds: Bounds) -> list[tuple[str, str, Attack]]:
    # Salt and pepper need a range; without one they are left out of the default, not asked for in vain.
    usable = [
        name for name in NOISES.names() if bounds is not None or not getattr(NOISES.get(name), "needs_range", False)
    ]
    made = []
    for spec in _specs(settings.noise, usable, "--noise"):
        name, options = parse_spec(spec, "noise")
        made.append((name, spec, build(NOISES.get(name), options, f"noise '{spec}'", bounds=bounds)))
    return made


def _corruptions(settings: AuditSettings, network: Network) -> list[tuple[str, str, Attack]]:
    if settings.corruption and len(network.input_shape) != 3:
        raise UsageError(f"--corruption takes images; {network.data.spec} gives inputs of shape {network.input_shape}")
    made = []
    for spec in settings.corruption or []:
        name, options = parse_spec(spec, "corruption")
        corruption = build(CORRUPTIONS.get(name), options, f"corruption '{spec}'", bounds=network.bounds)
        made.append((name, spec, corruption))
    return made


def _label(made: list[tuple[str, str, Attack]]) -> tuple[Named, ...]:
    names = [name for name, _, _ in made]
    labels = [name if names.count(name) == 1 else spec for name, spec, _ in made]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"'{label}' is asked for twice; give it once, or with other settings")
    return tuple(Named(label, *entry) for label, entry in zip(labels, made, strict=True))
