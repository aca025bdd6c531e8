"""Checks by attacking: attacks that have to work on any honest network, and searches for what attacks missed."""

import dataclasses
import math

import torch

from lsa_cli.attacks import Attack, make_threat
from lsa_cli.attacks.base import Model, undisturbed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.evidence.concealed import OnGrid
from lsa_cli.auditing.evidence.judge import Checked, beats, doubt, exceeds
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.stats import binomial_tail

STEPS = 10  # of PGD
DRAWS, DRAWN_STEPS = 8, 5  # of the smoothed surrogate

# Shares that honest networks may show, for `exceeds`; our choices, with what they stand on.
ALLOWED_STUCK = 0.02  # steps that overshoot; honest networks trained on digits show 0.8% at most, the shipped ones 0
ALLOWED_NOISE = 0.05  # below, noise breaks too little to be compared with anything
ALLOWED_ROUNDED = 0.1  # adversarials at the very edge of their class; l1 changes of half a level, spread thin

_LEVELS = 255


def climbing(probe: Probe) -> tuple[torch.Tensor, Checked]:
    """PGD from samples that are right: its strongest inputs (N, ...), and whether the margin rose along the steps.

    From the sample itself, ten steps of a quarter of eps: the last one should stand higher than the first for all but
    2%. How many single steps lead down is told, and no finding: large steps overshoot on honest networks too.
    """
    heights = []
    attack = PGD(threat=probe.threat, steps=STEPS, random_start=False)
    strongest = []
    with undisturbed(probe.model):
        for x, y, index in zip(*(t.split(probe.batch_size) for t in (probe.x, probe.y, probe.index)), strict=True):
            seen: list[torch.Tensor] = []

            def noted(inputs: torch.Tensor, y: torch.Tensor = y, seen: list[torch.Tensor] = seen) -> torch.Tensor:
                logits = probe.model(inputs)
                seen.append(margin(logits.detach(), y))
                return logits

            strongest.append(attack(noted, x, y, index=index, seed=probe.seed, goal="worst"))
            heights.append(torch.stack(seen))
    path = torch.cat(heights, 1)  # (steps + 1, N)
    stuck = int((path[-1] <= path[0] + probe.resolution).sum())
    down = float((path[1:] < path[:-1]).float().mean())
    finding = doubt(
        "loss-does-not-rise",
        f"after {STEPS} steps along the gradient the margin is no nearer to the boundary for {stuck} of {len(probe)} "
        "samples: the gradient does not lead uphill, and attacks that follow it find too little",
        "attack without gradients (square), or through a smooth stand-in for the step that breaks them",
    )
    saw = {"not risen": stuck, "share of steps downhill": down}
    found = exceeds(stuck, len(probe), ALLOWED_STUCK)
    return torch.cat(strongest), Checked("loss along the steps", len(probe), saw, (finding,) if found else ())


def full_range(probe: Probe) -> Checked:
    """PGD with the whole input range as its budget: it could paint any picture, so no more than chance may stay right.

    Chance is one class's share: 1 / K, or that of the commonest class here where it is larger.
    """
    threat = make_threat("linf", probe.full_range, probe.threat.bounds)
    attack = PGD(threat=threat, steps=STEPS, random_start=False)
    right = int((probe.margin(probe.run(attack)) <= 0).sum())
    chance = max(1 / probe.clean.shape[1], float(torch.bincount(probe.y).max()) / len(probe))
    finding = doubt(
        "full-range-survived",
        f"{right} of {len(probe)} samples stay right when PGD may change every input at will, where chance would be "
        f"{chance:.0%}: the attack does not work on this network, and so says nothing at eps either",
        "look at the other findings for why; attack without gradients (square), or through a smooth stand-in",
    )
    saw = {"stay right": right, "chance": chance}
    return Checked("full range", len(probe), saw, (finding,) if exceeds(right, len(probe), chance) else ())


def noise_of_equal_size(probe: Probe, x_adv: torch.Tensor) -> Checked:
    """Does the attack do better than random noise exactly as large, on samples that are right?

    A finding in two cases. Noise breaks too many of those that the attack left, as in `beats`. Or noise breaks a real
    share (more than 5%), the attack leaves one too, and what only the attack breaks does not outnumber what only the
    noise breaks (one-sided sign test, 5%): it then was not worth its gradients. That noise breaks nothing proves
    nothing.
    """
    with per_sample(probe.seed, probe.index, "evidence"):
        moved = probe.threat.random_direction(probe.x, probe.threat.distance(x_adv, probe.x))
    attacked, shaken = probe.margin(x_adv) > 0, probe.margin(moved) > 0
    n, by_attack, by_noise = len(probe), int(attacked.sum()), int(shaken.sum())
    only_noise, only_attack = int((shaken & ~attacked).sum()), int((attacked & ~shaken).sum())
    worthless = (
        exceeds(by_noise, n, ALLOWED_NOISE)
        and exceeds(n - by_attack, n, ALLOWED_NOISE)
        and binomial_tail(only_attack, only_attack + only_noise, 0.5) > 0.05
    )
    finding = doubt(
        "noise-as-strong",
        f"random noise as large as the attack's steps breaks {by_noise} of {n} samples, {only_noise} of which the "
        f"attack left whole; the attack breaks {by_attack}: its gradients are worth little here",
        "look at the other findings for why; attack without gradients (square)",
    )
    saw = {"broken by noise": by_noise, "broken by the attack": by_attack, "by noise alone": only_noise}
    found = worthless or beats(only_noise, n - by_attack, n)
    return Checked("noise of equal size", n, saw, (finding,) if found else ())


def rounding(probe: Probe, x_adv: torch.Tensor, samples: int) -> Checked:
    """Do adversarial images outlive being saved with 8 bits a channel? samples: how many there are, right clean or not.

    Rounding moves a pixel by half a level; an attack whose finds do not outlive that leans on numbers that no picture
    can hold. More than 10% lost is a finding: an adversarial at the very edge may fall back.
    """
    before = probe.margin(x_adv) > 0
    after = probe.margin((x_adv * _LEVELS).round() / _LEVELS) > 0
    n, lost = int(before.sum()), int((before & ~after).sum())
    finding = doubt(
        "lost-in-8-bits",
        f"{lost} of {n} adversarial images are right again after rounding to 8 bits: as pictures they are no attack",
        "quote robust accuracy after rounding, or attack with a radius of whole levels",
    )
    saw = {
        "lost": lost,
        "robust accuracy": (len(probe) - n) / samples,
        "robust accuracy after rounding": (len(probe) - int(after.sum())) / samples,
    }
    return Checked("rounding to 8 bits", n, saw, (finding,) if exceeds(lost, n, ALLOWED_ROUNDED) else ())


# ---- what the attacks missed ---------------------------------------------------------------------------


def direct_again(probe: Probe) -> torch.Tensor:  # (N,) bool
    """Which samples stay right under one more PGD, from a random start: what follows should beat more than luck."""
    return probe.margin(probe.run(PGD(threat=probe.threat, steps=STEPS))) <= 0


def on_the_grid(survivors: Probe, samples: int) -> Checked:
    """PGD among pictures of 8 bits, on samples that attacks among all inputs left: where it wins, others met another network.

    samples: how many right ones the survivors were left over from.
    """
    return _missed(
        "grid-attack-wins", survivors, samples, survivors.run(OnGrid(threat=survivors.threat)),
        "a short attack on pictures of 8 bits a channel breaks", "attacks on all inputs",
        "the network answers pictures otherwise than the inputs between them, which pictures are the only ones to reach",
        "attack pictures: have the network round its inputs, with a gradient that passes through the rounding",
    )  # fmt: skip


def other_head(survivors: Probe, head: Model, samples: int) -> Checked:
    """PGD on the features behind a fresh last layer: where that breaks what attacks on the logits left, the logits mislead.

    head: see `fresh_head`. samples: as above.
    """
    x_adv = survivors.run(PGD(threat=survivors.threat, steps=STEPS, random_start=False), head)
    return _missed(
        "fresh-head-wins", survivors, samples, x_adv, "attacking a fresh last layer on the network's features breaks",
        "attacking its logits", "what follows the features conceals how near the other classes are",
        "attack the network without what follows its last layer, or by the loss of each other class",
    )  # fmt: skip


def random_search(survivors: Probe, attack: Attack, samples: int) -> Checked:
    """An attack that sees logits only, on samples that gradient attacks left: where it wins, gradients are masked.

    samples: how many right ones the survivors were left over from.
    """
    return _missed(
        "random-search-wins", survivors, samples, survivors.run(attack), "a short random search breaks", "the gradient attacks",
        "the gradients are masked, and the robust accuracy is too high",
        "add attacks without gradients (square with thousands of queries), or attack through a smooth stand-in",
    )  # fmt: skip


def smoothed_surrogate(survivors: Probe, samples: int) -> Checked:
    """PGD on the mean over noisy copies of the input, and what that breaks of samples that direct attacks left.

    Eight draws of normal noise about as long as half of the budget, log-odds of the mean logits, five steps. Noise
    smooths over kinks and jumps; on an honest network it only blurs the gradient, and the attack is weaker for it.
    samples: as above.
    """
    size = survivors.x[:1].numel()
    sigma = survivors.threat.eps / 2 / {"linf": 1, "l2": math.sqrt(size), "l1": 0.8 * size}[survivors.threat.norm]
    devices = [survivors.x.device] if survivors.x.device.type == "cuda" else []

    def smooth(x: torch.Tensor) -> torch.Tensor:
        answers = [survivors.model(x + sigma * torch.randn_like(x)) for _ in range(DRAWS)]
        return torch.stack(answers).mean(0)

    attack = PGD(threat=survivors.threat, steps=DRAWN_STEPS, random_start=False)
    with torch.random.fork_rng(devices=devices):
        few = dataclasses.replace(survivors, batch_size=max(1, survivors.batch_size // DRAWS))  # as much memory
        x_adv = few.run(attack, smooth)
    return _missed(
        "smoothed-surrogate-wins", survivors, samples, x_adv, "attacking a smoothed copy of the network breaks",
        "attacking the network itself",
        "its loss surface is shattered, which hides adversarial inputs from gradients",
        "attack the mean over noisy inputs, or without gradients (square with thousands of queries)",
    )  # fmt: skip


def _missed(
    code: str, survivors: Probe, samples: int, x_adv: torch.Tensor, breaks: str, left_by: str, means: str, advice: str
) -> Checked:  # fmt: skip
    """A finding where x_adv breaks more of what others left whole than luck explains."""
    broken = int((survivors.margin(x_adv) > 0).sum())
    said = f"{breaks} {broken} of {len(survivors)} samples that {left_by} left whole: {means}"
    found = beats(broken, len(survivors), samples)
    name = code.removesuffix("-wins").replace("-", " ")
    return Checked(name, len(survivors), {"broken": broken}, (doubt(code, said, advice),) if found else ())
