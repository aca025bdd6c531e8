"""Cascades: attacks in a row, each on the samples that are still robust. AutoAttack, and a grid of Temperature-PGD."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lsa_cli.attacks.apgd import APGD, APGDDLR, TargetedAPGD
from lsa_cli.attacks.base import ATTACKS, Attack, Model, expected_logits, undisturbed
from lsa_cli.attacks.fab import FAB, FABT
from lsa_cli.attacks.gradient import TemperaturePGD
from lsa_cli.attacks.losses import decision_margin
from lsa_cli.attacks.randomness import drawn_for
from lsa_cli.attacks.search import Goal, Search
from lsa_cli.attacks.square import Square
from lsa_cli.attacks.threat import Threat, as_rows
from lsa_cli.errors import UsageError
from lsa_cli.registry import parse_number

EOT = 20  # passes per gradient of AutoAttack "rand"
PLUS_RESTARTS = 5


@dataclass(frozen=True)
class Cascaded:
    """The result of a cascade for each sample: (N, ...) or (N,).

    x_adv: the adversarial example of the attack that broke the sample, or else the strongest input. margin: of x_adv,
    positive where the sample is broken. broken_by: the position of that attack, -1 where there is none. found_at: the query
    of that attack, from 1 (always 1 for an attack without a `Search`); 0 where there is none.
    """

    x_adv: torch.Tensor
    margin: torch.Tensor
    broken_by: torch.Tensor
    found_at: torch.Tensor


def cascade(
    attacks: Sequence[Attack],
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    index: torch.Tensor | None = None,
    seed: int = 0,
    goal: Goal = "break",
    copy: Model | None = None,
) -> Cascaded:
    """Run the attacks in order on x (N, ...) with labels y (N,). Each draws the random numbers that it draws alone.

    Goals "break" and "patient": an attack runs on the samples that the earlier ones have not broken. Goal "worst": every
    attack runs to its end on every sample, and the strongest input of all counts.

    One more forward pass of `model` decides whether an attack broke a sample within its budget. Inputs outside of the budget
    are projected first; minimal-norm attacks return such. copy: see `Attack.run`.
    """
    x = x.detach()
    index = torch.arange(len(x), device=x.device) if index is None else index.to(x.device)
    found = Cascaded(
        x_adv=x.clone(),
        margin=torch.full((len(x),), -torch.inf, device=x.device),
        broken_by=torch.full((len(x),), -1, dtype=torch.int32, device=x.device),
        found_at=torch.zeros(len(x), dtype=torch.int32, device=x.device),
    )
    for position, attack in enumerate(attacks):
        rows = torch.arange(len(x), device=x.device) if goal == "worst" else (found.broken_by < 0).nonzero().flatten()
        if len(rows) == 0:
            break
        member = for_rows(attack, rows)
        x_adv, found_at = member.run(model, x[rows], y[rows], index=index[rows], seed=seed, goal=goal, copy=copy)
        x_adv = confined(member, x_adv, x[rows])
        with undisturbed(model):
            value = decision_margin(expected_logits(model, x_adv, getattr(member, "eot", 1)), y[rows], x_adv).float()
        stronger = value > found.margin[rows]
        found.margin[rows[stronger]], found.x_adv[rows[stronger]] = value[stronger], x_adv[stronger]
        first = (value > 0) & (found.broken_by[rows] < 0)
        found.broken_by[rows[first]], found.found_at[rows[first]] = position, found_at[first].clamp_min(1)
    return found


def confined(attack: Attack, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The inputs x_adv (N, ...), those outside of the attack's budget projected into it."""
    threat: Threat | None = getattr(attack, "threat", None)
    if threat is None:
        return x_adv
    return torch.where(as_rows(threat.contains(x_adv, x), x), x_adv, threat.project(x_adv, x))


def for_rows(attack: Attack, rows: torch.Tensor) -> Attack:
    """The attack for some samples of a batch, with their radii where each sample has its own."""
    threat: Threat | None = getattr(attack, "threat", None)
    if threat is None or not isinstance(threat.eps, torch.Tensor) or threat.eps.ndim == 0:
        return attack
    eps = threat.eps[rows.to(threat.eps.device)]
    return dataclasses.replace(attack, threat=dataclasses.replace(threat, eps=eps))  # type: ignore[call-arg]


@dataclass(frozen=True)
class Ensemble(Attack):
    """Base of the attacks that are a cascade of others. The result is the worst case over the members."""

    threat: Threat

    @property
    def members(self) -> tuple[Attack, ...]:
        raise NotImplementedError

    @property
    def passes(self) -> float:
        return sum(member.passes for member in self.members)

    @property
    def begins_on_copy(self) -> bool:
        return any(member.begins_on_copy for member in self.members)

    def perturb(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._all_members(Search(x, y, self.threat), model, x, y)

    def _all_members(self, search: Search, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The worst case over the members. `Attack.run` reads the result from the search."""
        seed, index = drawn_for()
        found = cascade(self.members, model, x, y, index=index, seed=seed, goal=search.goal, copy=search.copy)
        search.x_adv, search.value, search.found_at = found.x_adv, found.margin, found.found_at
        return found.x_adv


@ATTACKS.register("autoattack")
@dataclass(frozen=True)
class AutoAttack(Ensemble):
    """Ensemble of APGD-CE, APGD-T, FAB-T and Square (arXiv 2003.01690), which have no step size to tune.

    version "standard": these. "plus": restarts, and the untargeted APGD-DLR and FAB. "rand", for stochastic networks:
    APGD-CE and APGD-DLR on the mean of several passes. With at most `targets` wrong classes, each one is a target. steps,
    targets, queries: the published ones; fewer make a weaker attack. In l1 there is no Square, whose l1 form (arXiv
    2103.01208) is not implemented.
    """

    version: str = "standard"
    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.members  # noqa: B018  raises UsageError for settings that a member refuses

    @property
    def settings(self) -> dict[str, Any]:
        unused = ("targets", "queries") if self.version == "rand" else ()
        return {name: value for name, value in super().settings.items() if name not in unused}

    @property
    def members(self) -> tuple[Attack, ...]:
        threat, steps, targets = self.threat, self.steps, self.targets
        apgd_t, fab_t = TargetedAPGD(threat, steps, targets=targets), FABT(threat, steps, targets=targets)
        square = (Square(threat, self.queries),) if threat.norm in Square.norms else ()
        if self.version == "standard":
            return APGD(threat, steps), apgd_t, fab_t, *square
        if self.version == "plus":
            untargeted = (kind(threat, steps, PLUS_RESTARTS) for kind in (APGD, APGDDLR, FAB))
            return *untargeted, *square, apgd_t, fab_t
        if self.version == "rand":
            return APGD(threat, steps, eot=EOT), APGDDLR(threat, steps, eot=EOT)
        raise UsageError(f"autoattack: unknown version '{self.version}'; choose standard, plus or rand")


@ATTACKS.register("t-pgd-grid")
@dataclass(frozen=True)
class TemperatureGrid(Ensemble):
    """Ensemble of Temperature-PGD (arXiv 2105.14240) at several temperatures: the worst case of each sample.

    temperatures: numbers separated by spaces. The grid is our choice, since the paper's grid could not be read. All begin at
    the same random starts.
    """

    role = "gradient"
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    temperatures: str = "1 1/2 1/5 1/10 1/50 2 5"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.members:
            raise UsageError("t-pgd-grid: temperatures must name at least one temperature")

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "step_size": self.members[0].settings["step_size"]}

    @property
    def members(self) -> tuple[Attack, ...]:
        return tuple(
            TemperaturePGD(
                self.threat, self.steps, self.step_size, self.restarts, temperature=parse_number(text, "temperatures")
            )
            for text in self.temperatures.split()
        )
