"""All checks that query the network, in order, on one probe.

A defect is what can make attacks find too little: outputs that round or saturate, a gradient that is lost, outputs that
differ from pass to pass. The scale of the logits is no defect: attacks increase log-odds, so logits a million times larger
or smaller give the same steps.
"""

from collections.abc import Sequence

import torch
from torch import nn

from lsa_cli.attacks import Attack
from lsa_cli.attacks.gradient import PGD
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.square import Square
from lsa_cli.auditing.evidence.attacks import (
    STEPS,
    full_range,
    loss_along_steps,
    noise_of_equal_size,
    rounding,
)
from lsa_cli.auditing.evidence.decision import Checked
from lsa_cli.auditing.evidence.dummy_outputs import dummy_outputs
from lsa_cli.auditing.evidence.hidden import hidden_network
from lsa_cli.auditing.evidence.network import (
    BLOCKS,
    IN_BLOCKS,
    JUMPS,
    batch_dependence,
    directions,
    gradients,
    random_forward,
    slopes,
    train_mode_layers,
)
from lsa_cli.auditing.evidence.outputs import bare_logits, features_of_others, fresh_head, inner_networks
from lsa_cli.auditing.evidence.planted import passes as planted_passes
from lsa_cli.auditing.evidence.planted import planted
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.repeatability import PASSES as REPEATED
from lsa_cli.auditing.evidence.repeatability import SAMPLES as ASKED_AGAIN
from lsa_cli.auditing.evidence.repeatability import Beginning, history, modes
from lsa_cli.auditing.evidence.searches import (
    MANY,
    QUERIES,
    inner_network,
    label_alone,
    on_the_grid,
    other_head,
    parts_of_image,
    random_search,
    smoothed_surrogate,
    straight_through,
    through_inactive,
    towards_features,
    without_rest,
)
from lsa_cli.auditing.evidence.special_attacks import OnGrid
from lsa_cli.auditing.evidence.straight_through import has_jumps_or_ripples
from lsa_cli.auditing.evidence.stronger import PASSES, Survivors, stronger_attack

FORWARD = 0.35  # of a forward + gradient pass
_USUALLY_TRIED = 121  # by the stronger attack, where most samples are robust
# Findings that gradients are wrong.
_OF_GRADIENTS = (
    "vanishing-gradient",
    "wrong-gradient",
    "rugged-loss",
    "misaligned-gradient",
    "loss-does-not-rise",
    "full-range-survived",
)
SMALLEST_IMAGE = 8  # pixels in a row, for attacks on a part of an image
SURVIVORS = 32  # at most so many get the most expensive attacks


def probe_size(available: int) -> int:
    """The number of samples for the checks: one in 16 of the audit's, from 32 to 128 (our choice)."""
    return min(available, max(32, min(128, available // 16)))


def probe_passes(count: int, available: int, robust: float = 1.0) -> float:
    """Forward + gradient passes of `examine` for a probe of `count` of the `available` samples; robust: the share that is.

    For 62 of 1,000 samples about 110 each, and about 60 where most of them break. For progress and estimates.
    """
    forward = 9 + 12 + 3 + 4  # checks of the network, random directions, checks by attacks, other batches
    each = FORWARD * forward + 4 + STEPS + STEPS / 3  # four gradients, PGD, the full range, where most break early
    # The random search, the smoothed surrogate, and nine times the STEPS of an attack, on half of the samples.
    searched = STEPS + (FORWARD * QUERIES + 22 + 9 * STEPS) / 2
    tried = min(robust * available, _USUALLY_TRIED)
    again = min(count, ASKED_AGAIN) * REPEATED + min(count, IN_BLOCKS) * (1 + FORWARD * 2 * BLOCKS)
    return count * each + min(robust * count, SURVIVORS) * searched + tried * PASSES + again + planted_passes(count)


def examine(
    probe: Probe,
    *,
    broken: torch.Tensor | None = None,
    survivors: Survivors | None = None,
    last: nn.Module | None = None,
    hidden: Sequence[str] = (),
    beginning: Beginning | None = None,
    attack: Attack | None = None,
    labelled: torch.Tensor | None = None,
) -> list[Checked]:
    """Every check that queries the network.

    broken (N,) bool: the samples that the audit's attacks broke; None where none ran. survivors: those of the whole
    audit; None for those of the probe. last: the last layer with weights. hidden: the most vulnerable layers, worst first. beginning: the network as it was before the audit;
    None for now. attack: the one that is tested on planted adversarial examples; None for a PGD.
    labelled (K,) bool: the outputs that some sample has as its label; None if that is not known.

    A network whose outputs are random or depend on the batch gets no further checks, as their numbers would be random. If
    eps is 0, nothing is attacked.
    """
    with torch.random.fork_rng(devices=[probe.x.device] if probe.x.is_cuda else []):
        made = [train_mode_layers(probe.model)]
        for check in (random_forward, batch_dependence):
            made.append(check(probe))
            if made[-1].finding is not None:
                return made
        if probe.threat.eps:
            since = beginning or Beginning.of(probe.model)
            made += [history(probe, since), modes(probe, since)]
            made.append(planted(probe, last, attack or PGD(probe.threat)))
            made += [check(probe) for check in (gradients, slopes, directions)]
            made += _attacked(probe, broken, survivors, last, hidden, labelled, made)
        return made


def _attacked(
    probe: Probe,
    broken: torch.Tensor | None,
    survivors: Survivors | None,
    last: nn.Module | None,
    hidden: Sequence[str],
    labelled: torch.Tensor | None,
    before: list[Checked],
) -> list[Checked]:
    """The checks by attacks, on samples that are classified correctly. The last ones, which search for what gradients hide,
    get samples that neither the audit nor two runs of PGD broke. before: the checks before these."""
    is_correct = margin(probe.clean, probe.y) <= 0
    correct = probe.select(is_correct)
    has_gradient = bool(probe.gradient[is_correct].any())
    is_image = probe.threat.bounds == (0.0, 1.0)
    unbroken = is_correct if broken is None else ~broken.to(is_correct.device)
    unbroken = unbroken[is_correct]
    made = []
    if has_gradient:
        if broken is not None:
            made.append(stronger_attack(survivors or Survivors.of(correct.select(unbroken), len(probe))))
        x_adv, increase = loss_along_steps(correct)
        unbroken = unbroken & (correct.margin(x_adv) <= 0)
        made += [increase, full_range(correct), noise_of_equal_size(correct, x_adv)]
        if is_image:
            made.append(rounding(correct, x_adv, len(probe)))
    left = correct.select(unbroken).first(SURVIVORS)
    stand_for = round(len(correct) * len(left) / max(1, int(unbroken.sum())))  # correct samples
    if has_gradient and len(left):
        left = left.unbroken_by(PGD(threat=probe.threat, steps=STEPS))
    if not len(left):
        return made
    wrong = any(
        JUMPS in check.saw or (check.finding is not None and check.finding.code in _OF_GRADIENTS)
        for check in (*before, *made)
    )
    made += _searched(probe, left, stand_for, last, hidden, has_gradient, wrong)
    if has_gradient and labelled is not None:
        made.append(dummy_outputs(left, probe, labelled, last, stand_for))
    return made


def _searched(
    probe: Probe, left: Probe, stand_for: int, last: nn.Module | None, hidden: Sequence[str], has_gradient: bool, wrong: bool
) -> list[Checked]:  # fmt: skip
    """The checks of `searches`. wrong: gradients are found to be wrong."""
    made = []
    if probe.threat.norm in Square.norms:
        made.append(random_search(left, stand_for, MANY if wrong else QUERIES))
    made.append(through_inactive(left, stand_for))
    if has_jumps_or_ripples(left.model, left.x[:1]):
        made.append(straight_through(left, stand_for))
    if not has_gradient:
        return made
    made.append(hidden_network(left, probe))
    made += [smoothed_surrogate(left, stand_for), label_alone(left, stand_for)]
    if left.x.ndim == 4 and min(left.x.shape[2:]) >= SMALLEST_IMAGE:
        made.append(parts_of_image(left, stand_for))
    if probe.threat.bounds == (0.0, 1.0) and OnGrid.fits(probe.threat):
        made.append(on_the_grid(left, stand_for))
    if last is not None:
        for check, attack in ((other_head, fresh_head), (without_rest, bare_logits), (inner_network, inner_networks)):
            made += [check(left, guided, stand_for) for guided in [attack(probe, last)] if guided is not None]
    towards = features_of_others(probe, last, hidden)
    return [*made, towards_features(left, towards, stand_for)] if towards is not None else made
