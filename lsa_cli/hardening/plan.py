"""HardenPlan: all settings of a hardening, resolved and checked before the first audit."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from lsa_cli.attacks.threat import Threat, make_threat
from lsa_cli.auditing.layer_scan import refuse_more
from lsa_cli.auditing.named_attacks import with_eot
from lsa_cli.auditing.network import Built, Network, Say, build_network, on_data
from lsa_cli.auditing.plan import AuditPlan, make_plan
from lsa_cli.auditing.presets import MINIMAL_NORM
from lsa_cli.data import stratified_subset
from lsa_cli.data.base import TEST_SPLITS
from lsa_cli.errors import CheckpointError, DataError, SplitError, UsageError
from lsa_cli.hardening.layer_selection import check_gamma, gammas, named_layers
from lsa_cli.hardening.method_settings import (
    ATTACK_SETTINGS,
    REGULARIZED,
    attack_settings_used,
    base_of,
    method_of,
    needs_layers,
)
from lsa_cli.hardening.methods import HARDENINGS, Hardening, Task
from lsa_cli.hardening.recipes import Recipe, recipe_for, trainable_names, training_threat, with_rate
from lsa_cli.hardening.validation import split_validation
from lsa_cli.layers import plain_modules
from lsa_cli.models.architectures import runs_user_code
from lsa_cli.registry import build
from lsa_cli.settings import AuditSettings, HardenSettings

DEFAULT_GAMMA, DEFAULT_HOLD = 0.5, "first"
_AUDIT_ATTACKS = ["fgsm", "pgd"]  # of norms for which an audit needs no minimal-norm attack
_GRID = 5  # radii of the R&G score: 0 to 5/3 eps in steps of a third, which are the source paper's for MNIST's 0.3
_VALIDATION_SHARE, _MOST_VALIDATION = 0.1, 1000  # of the training samples; --val-fraction has no upper limit


@dataclass(frozen=True)
class HardenPlan:
    """The resolved settings of a hardening.

    audit: the audits before and after. network: the network to train, with its training data. train, validation: indices
    into the training data. threat: of the training attack; the held-out samples are attacked like those of the audit. budget:
    seconds of the training, which then decide the epochs. layers: the named layers, empty where the rule `hold` chooses them.
    top_k: the number of layers that the scan flags.
    """

    audit: AuditPlan
    network: Network
    train: np.ndarray
    validation: np.ndarray
    threat: Threat
    recipe: Recipe
    budget: float | None
    method: str
    options: dict[str, str]
    layers: tuple[str, ...]
    hold: str
    top_k: int | None
    gamma: str
    detach_clean: bool
    attack_mode: str
    steps: int
    step_size: float | None
    freeze: tuple[str, ...]
    train_only_flagged: bool
    given: AuditSettings
    origin: dict[str, str]
    notes: tuple[str, ...]

    @property
    def kind(self) -> type[Hardening]:
        return HARDENINGS.get(self.method)

    @property
    def layer_by_place(self) -> str:
        """The last scanned layer, or the first one with trained weights in it or before it.

        The regularizer cannot change the layers before those weights.
        """
        layers = self.audit.layers
        if self.hold == "last":
            return layers[-1].name
        named = dict(plain_modules(self.network.classifier.body))
        trained = self.parameters(self._trainable(None))
        for layer in layers:
            own = [_module_of(layer.name)] if layer.is_learnable else []
            modules = [named[name] for name in (*self._weighted_before(layer.name), *own)]
            if any(id(parameter) in trained for module in modules for parameter in module.parameters()):
                return layer.name
        return layers[0].name

    @property
    def needs_layers(self) -> bool:
        return needs_layers(self.method, self.options, "flagged" if self.train_only_flagged else None)

    def task(self, layers: tuple[str, ...]) -> Task:
        return Task(
            threat=self.threat, steps=self.steps, step_size=self.step_size, layers=layers,
            gammas=gammas(self.gamma, layers) if self.kind.regularizes else (), measure=self.audit.measure,
            detach_clean=self.detach_clean, attack_mode=self.attack_mode,
            label_smoothing=self.recipe.label_smoothing, awp=self.recipe.awp, classes=self.network.classes,
            samples=len(self.train), held_out=len(self.validation), input_shape=self.network.input_shape,
        )  # fmt: skip

    def make_method(self, layers: tuple[str, ...]) -> Hardening:
        """The method for these layers. Raises UsageError for options that it does not have."""
        return build(self.kind, self.options, f"method '{self.method}'", task=self.task(layers))

    def with_epochs(self, epochs: int) -> "HardenPlan":
        """The plan for so many epochs, with the learning rate for them."""
        own, base = self.given.harden or HardenSettings(), base_of(self.method, self.options)
        recipe = replace(self.recipe, epochs=epochs)
        return replace(self, recipe=with_rate(recipe, own, self.network.input_shape, base, len(self.train)))

    def trainable(self, layers: tuple[str, ...]) -> frozenset[str]:
        return self._trainable(self.weights_of(layers) if self.train_only_flagged else None)

    def _trainable(self, only: list[str] | None) -> frozenset[str]:
        return trainable_names(self.network.classifier, self.freeze, only, none_left=self.kind.adds_weights)

    def parameters(self, names: frozenset[str]) -> set[int]:
        """The ids of the parameters with these names."""
        return {id(parameter) for name, parameter in self.network.classifier.named_parameters() if name in names}

    def _weighted_before(self, name: str) -> list[str]:
        """Modules with weights that run before the layer `name`, in order."""
        place = [layer.name for layer in self.network.layers].index(name)
        return [_module_of(layer.name) for layer in self.network.layers[:place] if layer.is_learnable]

    def weights_of(self, layers: tuple[str, ...]) -> list[str]:
        """Modules with the weights of these layers. For a layer without weights, the last module with weights before it."""
        named = dict(plain_modules(self.network.classifier.body))
        found: list[str] = []
        for name in layers:
            module, is_call = _module_of(name), ":" in name  # the weights of a module are not those of a call in it
            own = not is_call and any(True for _ in named[module].parameters())
            found += [module] if own else self._weighted_before(name)[-1:]
        return list(dict.fromkeys(found))


def _module_of(name: str) -> str:
    return name.partition("#")[0].partition(":")[0]


def make_harden_plan(
    target: str | Path, settings: AuditSettings, origin: dict[str, str], say: Say = lambda message: None
) -> HardenPlan:
    """Resolve every setting. Raises an LsaError for settings that are invalid or contradict each other.

    settings: those of the audits, with those of the training under `harden`.
    """
    own = settings.harden or HardenSettings()
    method, options = method_of(own)
    built = build_network(target, settings, say, hardening=settings.harden_to is None)
    network, notes = _training_network(built, settings, origin)
    if network.arch == "onnx":
        raise CheckpointError(
            f"{target} is an ONNX graph, which is not made for training; harden the PyTorch network that it was exported "
            "from, or give --arch with that network, if the graph has kept the names of its weights"
        )
    if not network.shows_layers or network.arch == "torch-export":
        raise CheckpointError(
            f"{target} is a program ({network.arch}) and cannot be trained; give --arch to harden its weights"
        )
    audit = _audit_plan(built, settings, origin, network, say)
    if not float(audit.threat.eps) > 0:
        raise UsageError("--eps 0 allows no adversarial examples; give a radius, for example 8/255")
    share, most = _VALIDATION_SHARE, _MOST_VALIDATION
    if own.val_fraction is not None:
        share, most = own.val_fraction, len(network.labels)
    train, validation = split_validation(network.labels, share, most, audit.seed)
    if audit.network.data.spec == network.data.spec and audit.network.data.split == network.data.split:
        notes.append("there is no other split: the audits before and after use the held-out training samples")
        index = _at_most(settings.limit, validation, network.labels, audit.seed)
        audit = replace(audit, network=audit.network.with_data_of(network), index=index)
    missing = np.setdiff1d(np.unique(network.labels), np.unique(network.labels[train]))
    if len(missing):
        raise DataError(f"class {network.class_names[missing[0]]} has no training sample left; lower --val-fraction")
    kind = HARDENINGS.get(method)
    recipe, steps = recipe_for(own, kind.recipe, network.input_shape, network.classifier, network.device)
    chosen = named_layers(own, network.layers)
    plan = HardenPlan(
        audit=audit, network=network, train=train, validation=validation,
        threat=training_threat(own, audit.threat, network.input_shape, base_of(method, options)), recipe=recipe,
        budget=own.budget, method=method, options=options, layers=chosen,
        hold=own.hold or (DEFAULT_HOLD if own.top_k is None and options.get("sites") != "mvl" else "mvl"), top_k=own.top_k,
        gamma=own.gamma or str(DEFAULT_GAMMA), detach_clean=bool(own.detach_clean),
        attack_mode=own.attack_mode or "eval", steps=own.steps or steps, step_size=own.step_size,
        freeze=tuple(own.freeze or ()), train_only_flagged=kind.chooses or own.train_only == "flagged",
        given=settings, origin=origin, notes=tuple(notes),
    )  # fmt: skip
    _refuse_unused(own, plan)
    made = _try_method(plan)
    if made.averages and recipe.average != "none":
        if own.average is not None:
            raise UsageError(
                f"{method} averages the weights itself; leave out --{recipe.average}, or the average of {method}"
            )
        plan = replace(plan, recipe=replace(recipe, average="none"))
    if not plan.train_only_flagged or chosen:
        _refuse_lone_samples(plan, plan.trainable(chosen))
    return plan


def _at_most(limit: object, rows: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """So many of the rows, by class; all of them without a number or with a larger one."""
    if not isinstance(limit, int) or limit >= len(rows):
        return rows
    return rows[stratified_subset(labels[rows], limit, seed)]


def _training_network(built: Built, settings: AuditSettings, origin: dict[str, str]) -> tuple[Network, list[str]]:
    """The network with its training split, or with all data where the source has no splits; and notes on that choice.

    A test split that a settings file names is for the audits. Raises DataError where there is no training data.
    """
    notes = []
    if settings.split in TEST_SPLITS and origin.get("split") != "option":
        notes.append(f"split {settings.split} of {origin.get('split')} is for audits; training takes the split train")
        settings = settings.replace(split=None)
    if settings.split is not None:
        return on_data(built, settings, origin), []
    try:
        return on_data(built, settings.replace(split="train"), origin), notes
    except SplitError as error:
        without = error
    network = on_data(built, settings, origin)
    if network.data.split in TEST_SPLITS:
        raise DataError(
            f"there is no training data: {without}; a network is never trained on its test samples; give --data "
            "SOURCE:PATH with a train split, or --split"
        )
    return network, [*notes, f"{network.data.spec} has no splits: all of it is training data"]


def _audit_plan(
    built: Built, settings: AuditSettings, origin: dict[str, str], trained: Network, say: Say = lambda message: None
) -> AuditPlan:
    """The plan of the audits: on test data, with the attacks of the settings. Without any, they are FGSM and PGD, and in norms
    where these say too little, all that an audit runs there.

    trained: the network with its training data. Where the source has no test split, the audits use that of the training.
    """
    split, norm = trained.data.split, make_threat(trained.settings.norm or "linf", 0, trained.bounds).norm
    attack = settings.attack or (None if norm in MINIMAL_NORM else _AUDIT_ATTACKS)
    settings = settings.replace(
        harden=None, preset=None, full_on=None, gate=None, gate_only=None, alpha=None, baseline=None, split=None,
        attack=attack, noise=settings.noise or ["none"],
    )  # fmt: skip
    try:
        plan = make_plan(built.target, settings, origin, None, say, built)
    except SplitError:
        plan = make_plan(built.target, settings.replace(split=split or None), origin, None, say, built)
    if plan.eps_grid or not plan.attacks:
        return plan
    eps = float(plan.threat.eps)
    bounds = plan.network.bounds
    largest = bounds[1] - bounds[0] if bounds is not None else np.inf
    grid = tuple(round(eps * third / 3, 10) for third in range(_GRID + 1))
    return replace(plan, eps_grid=tuple(radius for radius in grid if radius <= largest))


def plan_after(plan: HardenPlan, out: Path) -> AuditPlan:
    """The same audit of the new checkpoint `out`, which is read like any other."""
    given = plan.given.replace(weights=None, normalize=None, returns=None, output_index=None)
    if not plan.network.is_pickled:
        given = given.replace(trust_code=None)
    if plan.network.described is not None or not runs_user_code(plan.network.arch):
        given = given.replace(arch=None, arch_args=None)
    origin = {name: value for name, value in plan.origin.items() if getattr(given, name, None) is not None}
    after = _audit_plan(build_network(out, given), given, origin, plan.network)
    before = plan.audit
    attacks = tuple(map(with_eot, before.attacks)) if after.is_stochastic else before.attacks
    return replace(
        after, network=after.network.with_data_of(before.network), index=before.index, threat=before.threat,
        attacks=attacks, eps_grid=before.eps_grid, batch_size=before.batch_size,
    )  # fmt: skip


def _try_method(plan: HardenPlan) -> Hardening:
    """Build the method once, so that wrong options raise UsageError now and not after an audit and a scan.

    Where a scan will choose the layers, the first hidden one takes their place.
    """
    hidden = tuple(layer.name for layer in plan.network.layers if not layer.is_output)
    if plan.layers or plan.kind.chooses or not plan.needs_layers:
        return plan.make_method(plan.layers or hidden[:1])
    if not plan.audit.layers:
        raise UsageError(
            "the layers to regularize are chosen from those that the audits scan, and they scan none; name layers with --layers"
        )
    if plan.top_k is not None:
        refuse_more(plan.top_k, len(plan.audit.layers), "the scan")
    if plan.hold != "mvl":
        return plan.make_method((plan.layer_by_place,))
    check_gamma(plan.gamma, [layer.name for layer in plan.audit.layers])
    return replace(plan, gamma=str(DEFAULT_GAMMA)).make_method(hidden[:1])


def _refuse_lone_samples(plan: HardenPlan, moving: frozenset[str]) -> None:
    """Raise UsageError where BatchNorm trains on one sample: it needs two values for each channel."""
    if plan.recipe.batch_size > 1:
        return
    trained = plan.parameters(moving)
    for layer in plan.network.layers:
        if isinstance(layer.module, nn.modules.batchnorm._BatchNorm) and math.prod(layer.shape[1:]) == 1:
            name = _module_of(layer.name)
            own = {id(parameter) for parameter in layer.module.parameters()}
            if not own or own & trained:
                raise UsageError(
                    f"--batch-size 1: {name} is {layer.kind}, which needs the mean over a batch; give at least 2, or "
                    f"--freeze {name}"
                )


def _refuse_unused(own: HardenSettings, plan: HardenPlan) -> None:
    """Raise UsageError for an option that would change nothing."""
    method, base = plan.method, base_of(plan.method, plan.options)
    regularized = f"{method}-lr" if f"{method}-lr" in HARDENINGS else REGULARIZED

    def given(*names: str) -> list[str]:
        return [name for name in names if getattr(own, name) is not None]

    for name in given("gamma", "detach_clean") if not plan.kind.regularizes else ():
        has = "has none"
        if name == "gamma" and hasattr(plan.kind, "gamma"):
            has = f"has a gamma of its own: --method {method}:gamma={own.gamma}"
        raise UsageError(f"{_option(name)} is for methods with the regularizer, such as {regularized}; {method} {has}")
    for name in given("mvl", "hold", "top_k", "train_only") if plan.kind.chooses else ():
        raise UsageError(
            f"{_option(name)}: {method} chooses layers by a rule of its own and trains only them; leave it out, or name layers "
            "with --layers"
        )
    for name in given("mvl", "layers", "hold", "top_k") if not plan.needs_layers else ():
        raise UsageError(
            f"{_option(name)} names layers to regularize, and {method} regularizes none; use {regularized}"
        )
    if own.layers is not None and own.top_k is not None:
        raise UsageError("--layers names layers, and --top-k takes those that a scan flags; give one of them")
    if own.budget is not None and own.epochs is not None:
        raise UsageError("--budget decides how many epochs there are; give --budget or --epochs")
    if plan.layers and own.hold is not None:
        raise UsageError("--hold chooses layers, and --layers or --mvl names them; give one of them")
    if own.hold in ("first", "last") and own.top_k is not None:
        raise UsageError("--top-k takes layers that a scan flags; use it with --hold mvl, or leave --hold out")
    used = attack_settings_used(method, plan.options)
    if own.warmup is not None and not used and not plan.kind.regularizes and base is None:
        raise UsageError(f"--warmup raises eps and gamma, and {method} without a base uses neither; leave it out")
    for name in given(*ATTACK_SETTINGS):
        if name not in used:
            if not plan.kind.attacks:
                raise UsageError(f"{_option(name)}: {method} trains on clean samples; leave it out")
            why = f"{method} without a base attacks nothing" if base is None else f"base {base} does not use it"
            raise UsageError(f"{_option(name)}: {why}; leave it out, or use --base pgd")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
