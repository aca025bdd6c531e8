"""All checks that spend passes of their own, in order, on one probe.

What is a defect here is what can make the attacks find too little. A scale is none: logits a million times larger
give the attacks, which climb log-odds, the same steps. A head that rounds, saturates or forgets its gradient is one,
and so is a network that answers differently when asked again.
"""

import torch
from torch import nn

from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.square import Square
from lsa_cli.auditing.evidence.concealed import OnGrid, bare_logits, fresh_head
from lsa_cli.auditing.evidence.judge import Checked
from lsa_cli.auditing.evidence.network import (
    batch_dependence,
    directions,
    gradients,
    random_forward,
    slopes,
    train_mode_layers,
)
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.stronger import PASSES, Survivors, stronger_attack
from lsa_cli.auditing.evidence.trials import (
    DRAWN_STEPS,
    DRAWS,
    STEPS,
    climbing,
    direct_again,
    full_range,
    noise_of_equal_size,
    on_the_grid,
    other_head,
    random_search,
    rounding,
    smoothed_surrogate,
)

FORWARD = 0.35  # of a forward + gradient pass
QUERIES = 100
_USUALLY_TRIED = 108  # by the stronger attack
SURVIVORS = 48  # at most so many get the searches, which cost most


def probe_size(available: int) -> int:
    """How many of the audit's samples to spend the checks on: an eighth, from 32 to 128 (our choice)."""
    return min(available, max(32, min(128, available // 8)))


def probe_passes(count: int) -> float:
    """Forward + gradient passes that `examine` costs for a probe of `count` samples when all of them are robust.

    With 128 it is about 110 for each, and about 20 where most of them break. For progress and estimates.
    """
    looks = (
        9 + 12 + 3 + 2
    )  # forward passes of the network checks, of random directions, of the trials, of other batches
    each = FORWARD * looks + 4 + STEPS + STEPS / 3  # four gradients, the climb, the full range, where most break early
    searched = STEPS + FORWARD * QUERIES + DRAWS * (DRAWN_STEPS + FORWARD) + 2 * STEPS  # on the grid, with a fresh head
    return count * each + min(count, SURVIVORS) * searched + min(count, _USUALLY_TRIED) * PASSES


def examine(
    probe: Probe,
    *,
    broken: torch.Tensor | None = None,
    survivors: Survivors | None = None,
    last: nn.Module | None = None,
) -> list[Checked]:
    """Every check that needs the network. broken (N,) bool: what the audit's attacks broke, where they have run.

    survivors: what the audit left whole of all its samples; None: of the probe. last: the last layer with weights.

    A network that answers by chance or by batch gets no further than that: every other number would be half chance.
    A stronger attack meets samples right clean that the audit left whole, until it tells; the searches for what gradients hide meet those
    that two runs of PGD did not break either. Without a radius nothing is attacked.
    """
    devices = [probe.x.device] if probe.x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        made = [train_mode_layers(probe.model)]
        for unsteady in (random_forward, batch_dependence):
            made.append(unsteady(probe))
            if made[-1].findings:
                return made
        if probe.threat.eps:
            made += [gradients(probe), slopes(probe), directions(probe), *_attacked(probe, broken, survivors, last)]
        return made


def _attacked(
    probe: Probe, broken: torch.Tensor | None, all_left: Survivors | None, last: nn.Module | None
) -> list[Checked]:
    is_right = margin(probe.clean, probe.y) <= 0
    right = probe.select(is_right)
    has_gradient = bool(probe.gradient[is_right].any())
    survives = torch.ones_like(is_right) if broken is None else ~broken.to(is_right.device)
    survives = survives[is_right]
    made = []
    if has_gradient:
        if broken is not None:
            bare = bare_logits(probe, last) if last is not None else None
            made.append(stronger_attack(all_left or Survivors.of(right.select(survives), len(probe)), bare))
        x_adv, climb = climbing(right)
        survives &= right.margin(x_adv) <= 0
        made += [climb, full_range(right), noise_of_equal_size(right, x_adv)]
        if probe.threat.bounds == (0.0, 1.0):
            made.append(rounding(right, x_adv, len(probe)))
    survivors, samples = _left(right, survives)
    if has_gradient and len(survivors):
        survivors = survivors.select(direct_again(survivors))
    if len(survivors) and probe.threat.norm in Square.norms:
        made.append(random_search(survivors, Square(threat=probe.threat, queries=QUERIES), samples))
    if len(survivors) and has_gradient:
        made.append(smoothed_surrogate(survivors, samples))
        if probe.threat.bounds == (0.0, 1.0) and OnGrid.fits(probe.threat):
            made.append(on_the_grid(survivors, samples))
        head = fresh_head(probe, last) if last is not None else None
        if head is not None:
            made.append(other_head(survivors, head, samples))
    return made


def _left(right: Probe, survives: torch.Tensor) -> tuple[Probe, int]:
    """The survivors that get a search, and how many of the right samples they stand for."""
    survivors = right.select(survives).first(SURVIVORS)
    return survivors, round(len(right) * len(survivors) / max(1, int(survives.sum())))
