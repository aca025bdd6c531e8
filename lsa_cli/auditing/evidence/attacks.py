"""Checks by attacks that must succeed on every honest network."""

import torch

from lsa_cli.attacks import make_threat
from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.evidence.decision import Checked, beats, doubt, exceeds
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.special_attacks import on_grid
from lsa_cli.stats import binomial_tail

STEPS = 10  # of PGD
DRAWN_AT_WILL = 48  # samples that PGD may change without limit

# Shares that honest networks may show, for `exceeds`; our choices, with their reasons.
ALLOWED_STUCK = 0.02  # steps that overshoot: at most 0.8% for networks trained on digits, 0 for the sample networks
ALLOWED_NOISE = 0.05  # noise that breaks less is too weak for a comparison
ALLOWED_ROUNDED = 0.1  # adversarial examples at the boundary; l1 changes of less than half a level


def loss_along_steps(probe: Probe) -> tuple[torch.Tensor, Checked]:
    """PGD on samples that are classified correctly: its best inputs (N, ...), and whether it increases the margin.

    From the sample itself, in ten steps of a quarter of eps: the last margin must be larger than the first, except for 2%
    of the samples. The share of single steps that decrease it is reported and is no finding, as large steps overshoot on
    honest networks too.
    """
    attack = PGD(threat=probe.threat, steps=STEPS, random_start=False)
    margins = []

    def perturb(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def observed(inputs: torch.Tensor) -> torch.Tensor:
            logits = probe.model(inputs)
            seen.append(margin(logits.detach(), y))
            return logits

        x_adv = attack(observed, x, y, index=index, seed=probe.seed, goal="worst")
        margins.append(torch.stack(seen))
        return x_adv

    with undisturbed(probe.model):
        x_adv = probe.by_batch(perturb, probe.x, probe.y, probe.index)
    path = torch.cat(margins, 1)  # (steps + 1, N)
    stuck = int((path[-1] <= path[0] + probe.resolution).sum())
    down = float((path[1:] < path[:-1]).float().mean())
    finding = doubt(
        "loss-does-not-rise",
        f"{STEPS} steps along the gradient do not increase the margin for {stuck} of {len(probe)} samples: the gradient "
        "does not increase the loss, and attacks that follow it find too little",
        "attack without gradients (square), or through a smooth replacement for the operation that breaks the gradient",
    )
    saw = {"not risen": stuck, "share of steps downhill": down}
    found = exceeds(stuck, len(probe), ALLOWED_STUCK)
    return x_adv, Checked("loss along the steps", len(probe), saw, finding if found else None)


def full_range(probe: Probe) -> Checked:
    """Does more than chance stay correct when PGD may change the whole input range, and so can draw any image?

    Chance is the share of one class: 1 / K, or that of the most frequent class here where it is larger.
    """
    probe = probe.first(DRAWN_AT_WILL)
    threat = make_threat("linf", probe.full_range, probe.threat.bounds)
    correct = len(probe.unbroken_by(PGD(threat=threat, steps=STEPS, random_start=False), copy=False))
    chance = max(1 / probe.clean.shape[1], float(torch.bincount(probe.y).max()) / len(probe))
    finding = doubt(
        "full-range-survived",
        f"{correct} of {len(probe)} samples stay correct when PGD may change every input without limit, and chance is "
        f"{chance:.0%}: the attack fails on this network, so its result at eps has no meaning",
        "read the other findings for the reason; attack without gradients (square), or through a smooth replacement",
    )
    saw = {"stay right": correct, "chance": chance}
    return Checked("full range", len(probe), saw, finding if exceeds(correct, len(probe), chance) else None)


def noise_of_equal_size(probe: Probe, x_adv: torch.Tensor) -> Checked:
    """Is random noise of exactly the same size as strong as the attack, on samples that are classified correctly?

    A finding in two cases. Noise breaks too many of the samples that the attack did not break, as in `beats`. Or noise breaks
    more than 5%, the attack leaves more than 5%, breaks at most 5% more than noise, and the samples that only the attack breaks
    do not outnumber those that only noise breaks (one-sided sign test, 5%): gradients then gain nothing. Noise that breaks
    nothing proves nothing.
    """
    with per_sample(probe.seed, probe.index, "evidence"):
        noisy = probe.threat.random_direction(probe.x, probe.threat.distance(x_adv, probe.x))
    attacked, by_chance = probe.margin(x_adv) > 0, probe.margin(noisy) > 0
    n, by_attack, by_noise = len(probe), int(attacked.sum()), int(by_chance.sum())
    only_noise, only_attack = int((by_chance & ~attacked).sum()), int((attacked & ~by_chance).sum())
    gains_nothing = (
        exceeds(by_noise, n, ALLOWED_NOISE)
        and exceeds(n - by_attack, n, ALLOWED_NOISE)
        and by_attack - by_noise <= ALLOWED_NOISE * n
        and binomial_tail(only_attack, only_attack + only_noise, 0.5) > 0.05
    )
    finding = doubt(
        "noise-as-strong",
        f"random noise of the same size as the perturbations of PGD breaks {by_noise} of {n} samples, {only_noise} of which "
        f"PGD does not break; PGD breaks {by_attack}: its gradients gain little on this network",
        "read the other findings for the reason; attack without gradients (square)",
    )
    saw = {"broken by noise": by_noise, "broken by the attack": by_attack, "by noise alone": only_noise}
    found = gains_nothing or beats(only_noise, n - by_attack, n)
    return Checked("noise of equal size", n, saw, finding if found else None)


def rounding(probe: Probe, x_adv: torch.Tensor, samples: int) -> Checked:
    """Do adversarial examples stay adversarial when they are saved with 8 bits per channel?

    samples: their number, classified correctly or not. Rounding changes a pixel by half a level at most. More than 10%
    lost is a finding: the attack then uses values that no image file holds.
    """
    before = probe.margin(x_adv) > 0
    after = probe.margin(on_grid(x_adv)) > 0
    n, lost = int(before.sum()), int((before & ~after).sum())
    finding = doubt(
        "lost-in-8-bits",
        f"{lost} of {n} adversarial examples are classified correctly after rounding to 8 bits: saved as images, they do no harm",
        "quote robust accuracy after rounding, or attack with a radius of whole levels",
    )
    saw = {
        "lost": lost,
        "robust accuracy": (len(probe) - n) / samples,
        "robust accuracy after rounding": (len(probe) - int(after.sum())) / samples,
    }
    return Checked("rounding to 8 bits", n, saw, finding if exceeds(lost, n, ALLOWED_ROUNDED) else None)
