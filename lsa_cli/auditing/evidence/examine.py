"""All checks that spend passes of their own, in order, on one probe.

What is a defect here is what can make the attacks find too little. A scale is none: logits a million times larger
give the attacks, which climb log-odds, the same steps. A head that rounds, saturates or forgets its gradient is one,
and so is a network that answers differently when asked again.
"""

import torch

from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.square import Square
from lsa_cli.auditing.evidence.judge import Checked
from lsa_cli.auditing.evidence.network import batch_dependence, gradients, random_forward, slopes, train_mode_layers
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.trials import (
    DRAWN_STEPS,
    DRAWS,
    STEPS,
    STRONGER_STEPS,
    climbing,
    direct_again,
    full_range,
    noise_of_equal_size,
    random_search,
    rounding,
    smoothed_surrogate,
    stronger_attack,
)

FORWARD = 0.35  # of a forward + gradient pass
QUERIES = 100
SURVIVORS = 48  # at most so many get the searches, which cost most


def probe_size(available: int) -> int:
    """How many of the audit's samples to spend the checks on: an eighth, from 32 to 128 (our choice)."""
    return min(available, max(32, min(128, available // 8)))


def probe_passes(count: int) -> float:
    """Forward + gradient passes that `examine` costs for a probe of `count` samples when all of them are robust.

    With 128 it is 60 for each, and about 17 where most of them break. For progress and estimates.
    """
    looks = 9 + 3 + 2  # forward passes of the network checks, of the trials, of batches put otherwise
    each = FORWARD * looks + 1 + STEPS + STEPS / 3  # one gradient, the climb, the full range, where most break early
    searched = STEPS + STRONGER_STEPS + FORWARD * QUERIES + DRAWS * (DRAWN_STEPS + FORWARD)
    return count * each + min(count, SURVIVORS) * searched


def examine(probe: Probe, *, broken: torch.Tensor | None = None) -> list[Checked]:
    """Every check that needs the network. broken (N,) bool: what the audit's attacks broke, where they have run.

    A network that answers by chance or by batch gets no further than that: every other number would be half chance.
    A stronger attack meets samples right clean that the audit left whole; the searches for what gradients hide meet those
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
            made += [gradients(probe), slopes(probe), *_attacked(probe, broken)]
        return made


def _attacked(probe: Probe, broken: torch.Tensor | None) -> list[Checked]:
    is_right = margin(probe.clean, probe.y) <= 0
    right = probe.select(is_right)
    has_gradient = bool(probe.gradient[is_right].any())
    survives = torch.ones_like(is_right) if broken is None else ~broken.to(is_right.device)
    survives = survives[is_right]
    made = []
    if has_gradient:
        if broken is not None and survives.any():
            made.append(stronger_attack(*_left(right, survives)))
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
    return made


def _left(right: Probe, survives: torch.Tensor) -> tuple[Probe, int]:
    """The survivors that get a search, and how many of the right samples they stand for."""
    survivors = right.select(survives).first(SURVIVORS)
    return survivors, round(len(right) * len(survivors) / max(1, int(survives.sum())))
