"""The attacks, noises and corruptions of an audit, made from the specs that a user gives."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from lsa_cli.attacks import ATTACKS, CORRUPTIONS, NOISES, Attack, Threat, make_threat
from lsa_cli.attacks.ensemble import AutoAttack
from lsa_cli.attacks.fab import FABT
from lsa_cli.attacks.ranked import RankedCascade, Round, rounds_of
from lsa_cli.attacks.square import Square
from lsa_cli.attacks.square_pgd import SquarePGD
from lsa_cli.auditing.network import Network
from lsa_cli.auditing.presets import chosen_attacks
from lsa_cli.errors import UsageError
from lsa_cli.registry import build, parse_number, parse_spec
from lsa_cli.report.schema import Warning
from lsa_cli.settings import AuditSettings

EOT = 10  # passes whose mean gradient attacks on a stochastic network follow
_CASCADES = (AutoAttack, RankedCascade)
TUNED = ("steps", "step_size", "restarts")  # settings that options give to all attacks


@dataclass(frozen=True)
class NamedAttack:
    """An attack or noise with its label: its name, or its whole spec if the name is there twice.

    round: where it is one of a ranked cascade.
    """

    label: str
    name: str
    spec: str
    attack: Attack
    round: Round | None = None


def make_attacks(
    settings: AuditSettings, threat: Threat, is_stochastic: bool
) -> tuple[tuple[NamedAttack, ...], tuple[NamedAttack, ...]]:
    """Attacks that run on all samples, and those of the cascade: the members of AutoAttack, the rounds of the ranked cascade.

    is_stochastic: gradients of single passes mislead, so attacks use EoT, and both cascades are AutoAttack's version for
    stochastic networks, unless their specs say otherwise (our choice).
    """
    specs = _listed(settings.attack, chosen_attacks(None, threat.norm), "--attack")
    is_named = settings.attack is not None and settings.preset is None
    tuned = {name: value for name in TUNED if (value := getattr(settings, name)) is not None}
    used: set[str] = set()
    scan: list[tuple[str, str, Attack]] = []
    ensembles: list[tuple[str, AutoAttack | RankedCascade]] = []
    for spec in specs:
        name, options = parse_spec(spec, "attack")
        factory = ATTACKS.get(name)
        fields = {field.name for field in dataclasses.fields(factory)}
        given = {"threat": _own_threat(spec, name, options, threat)} if "threat" in fields else {}
        # The cascades have no settings to tune. A minimal-norm attack that the user did not name keeps its own as well: a
        # step size that suits PGD makes it useless.
        is_tuned = factory not in _CASCADES and (is_named or factory.kind != "minimal")
        applicable = {key: value for key, value in tuned.items() if key in fields} if is_tuned else {}
        used |= set(applicable)
        if is_stochastic and factory is AutoAttack and not {"version", "targets", "queries"} & options.keys():
            options["version"] = "rand"
        attack = build(factory, {**applicable, **options}, f"attack '{spec}'", **given)
        if is_stochastic and isinstance(attack, RankedCascade):
            attack = AutoAttack(attack.threat, version="rand")
        if isinstance(attack, _CASCADES):
            ensembles.append((spec, attack))
        else:
            scan.append((name, spec, attack))
    for key in tuned:
        if key not in used:
            raise UsageError(f"--{key.replace('_', '-')}: none of the attacks ({', '.join(specs) or 'none'}) takes it")
    attacks = tuple(map(with_eot, _labelled(scan))) if is_stochastic else _labelled(scan)
    return attacks, _members(ensembles, attacks)


def _own_threat(spec: str, name: str, options: dict[str, str], threat: Threat) -> Threat:
    """The threat model of the audit with the norm and eps of the spec, which are taken out of `options`."""
    norm, eps = options.pop("norm", threat.norm), options.pop("eps", None)
    if eps is None and make_threat(norm, 0, threat.bounds).norm != threat.norm:
        raise UsageError(f"attack '{spec}': give eps with another norm, for example {name}:norm={norm},eps=1")
    return make_threat(norm, threat.eps if eps is None else parse_number(eps, f"attack '{spec}': eps"), threat.bounds)


def with_eot(named: NamedAttack) -> NamedAttack:
    """The attack with gradients averaged over several passes, unless its spec gives a number of passes."""
    eot = getattr(named.attack, "eot", None)
    if eot is None or "eot" in parse_spec(named.spec, "attack")[1]:
        return named
    return dataclasses.replace(named, attack=dataclasses.replace(named.attack, eot=EOT))  # type: ignore[call-arg]


def _members(
    ensembles: Sequence[tuple[str, AutoAttack | RankedCascade]], attacks: Sequence[NamedAttack]
) -> tuple[NamedAttack, ...]:
    """The attacks of the cascades, without rounds that repeat an attack on all samples that are still robust."""
    names = {ATTACKS.get(name): name for name in ATTACKS.names()}
    found: list[NamedAttack] = []
    taken = {named.label for named in attacks}
    _refuse_repeated([spec for spec, _ in ensembles])
    for spec, ensemble in ensembles:
        rounds = rounds_of(ensemble.threat) if isinstance(ensemble, RankedCascade) else ()
        on_all = [named.attack for named in (*attacks, *found) if named.round is None]
        ranked = [(one.name, one.attack, one) for one in rounds if one.attack not in on_all]
        of_all = [(names[type(member)], member, None) for member in ensemble.members]
        for name, member, one in ranked or of_all:
            label = name if name not in taken else f"{spec} {name}"
            taken.add(label)
            found.append(NamedAttack(label, name, spec, member, one))
    return tuple(found)


def without_square(cascade: Sequence[NamedAttack]) -> list[Warning]:
    """A warning where a cascade has FAB-T and no random search."""
    kinds: dict[str, set[type[Attack]]] = {}
    for named in cascade:
        kinds.setdefault(named.spec, set()).add(type(named.attack))
    lacking = [spec for spec, found in kinds.items() if FABT in found and not found & {Square, SquarePGD}]
    if not lacking:
        return []
    message = f"{lacking[0]} runs without Square, which does not support l1: no gradient-free attack checks its result"
    return [Warning(code="no-square", message=message)]


def refuse_no_cascade(settings: AuditSettings, cascade: Sequence[NamedAttack]) -> None:
    """Raises UsageError for --full-on without a cascade."""
    if settings.full_on is not None and not cascade:
        raise UsageError("--full-on sets how many samples run through the cascade, and there is none; add --full")


def make_noises(settings: AuditSettings, network: Network) -> tuple[NamedAttack, ...]:
    """The noises and corruptions."""
    bounds = network.bounds
    if settings.corruption and len(network.input_shape) != 3:
        raise UsageError(f"--corruption takes images; {network.data.spec} gives inputs of shape {network.input_shape}")
    usable = [name for name in NOISES.names() if bounds or not NOISES.get(name).needs_range]
    made: list[tuple[str, str, Attack]] = []
    for registry, specs in (
        (NOISES, _listed(settings.noise, usable, "--noise")),
        (CORRUPTIONS, settings.corruption or []),
    ):
        for spec in specs:
            name, options = parse_spec(spec, registry.noun)
            made.append((name, spec, build(registry.get(name), options, f"{registry.noun} '{spec}'", bounds=bounds)))
    return _labelled(made)


def _listed(given: list[str] | None, default: Sequence[str], option: str) -> list[str]:
    """The specs given, or the default ones; "none" stands for no spec."""
    if given is None:
        return list(default)
    if "none" in given and len(given) > 1:
        raise UsageError(f"{option} none cannot be combined with other values")
    return [] if given == ["none"] else given


def _labelled(made: Sequence[tuple[str, str, Attack]]) -> tuple[NamedAttack, ...]:
    """(name, spec, attack) with labels that differ."""
    names = [name for name, _, _ in made]
    labels = [name if names.count(name) == 1 else spec for name, spec, _ in made]
    _refuse_repeated(labels)
    return tuple(NamedAttack(label, *entry) for label, entry in zip(labels, made, strict=True))


def _refuse_repeated(labels: Sequence[str]) -> None:
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"'{label}' is asked for twice; give it once, or with other settings")
