"""What the attacks missed: attacks on samples that are still robust, each past something that hides adversarial examples.

Each one takes half of the samples, and the other half only where it breaks one of them. Where it breaks so many that the
attacks of the audit must have failed, it is part of the result, and runs on all samples that are still robust.
"""

import torch

from lsa_cli.attacks import Attack
from lsa_cli.attacks.square import Square
from lsa_cli.auditing.evidence.decision import Checked, beats, doubt
from lsa_cli.auditing.evidence.guided import Guided, LabelAlone, Smoothed, TowardsFeatures
from lsa_cli.auditing.evidence.inactive import ThroughInactive
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.special_attacks import OnGrid, PartsOfImage
from lsa_cli.auditing.evidence.straight_through import StraightThrough
from lsa_cli.report.schema import Finding

QUERIES, MANY = 100, 300  # of the random search: usually, and where gradients are found to be wrong
# In each check: survivors are the samples that it takes, correct is the number of correct samples that they stand for.


def random_search(survivors: Probe, correct: int, queries: int = QUERIES) -> Checked:
    """Does an attack that sees logits only break survivors of gradient attacks? Then gradients are masked."""
    attack = Square(survivors.threat, queries, at_once=4)
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "random-search-wins",
        f"a short random search breaks {broken} of {n} samples that are still robust after the gradient attacks: "
        "the gradients are masked, and the robust accuracy is too high",
        "add attacks without gradients (square with thousands of queries), or attack through a smooth replacement",
    )
    return _missed("random search", attack, broken, n, correct, finding)


def smoothed_surrogate(survivors: Probe, correct: int) -> Checked:
    """Does PGD on the mean over noisy copies of the input, see `Smoothed`, break survivors of direct attacks?

    On an honest network the noise only blurs the gradient, and the attack is weaker.
    """
    attack = Smoothed(survivors.threat)
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "smoothed-surrogate-wins",
        f"an attack on a smoothed copy of the network breaks {broken} of {n} samples that are still robust after "
        "attacks on the network itself: its loss surface is rugged, which hides adversarial examples from gradients",
        "attack the mean over noisy inputs, or without gradients (square with thousands of queries)",
    )
    return _missed("smoothed surrogate", attack, broken, n, correct, finding)


def label_alone(survivors: Probe, correct: int) -> Checked:
    """Does PGD on the logit of the label alone break survivors of attacks on its distance to the others?"""
    attack = LabelAlone(survivors.threat)
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "label-logit-wins",
        f"an attack on the logit of the label alone breaks {broken} of {n} samples that are still robust after attacks on its "
        "distance to the other logits: the others hide how near their classes are",
        "attack the network without what changes the logits of the classes that lose",
    )
    return _missed("label alone", attack, broken, n, correct, finding)


def parts_of_image(survivors: Probe, correct: int) -> Checked:
    """Does PGD that leaves the frame or the background as it is, or what all images have in common, break survivors?"""
    attack = PartsOfImage(survivors.threat)
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "part-of-image-wins",
        f"an attack that changes no pixel of the frame, or of the background, or that keeps channels or squares of pixels equal where "
        f"all images have them equal, breaks {broken} of {n} samples that are still robust after attacks on all pixels: the network "
        "treats images with other changes differently",
        "attack the network without what recognises such changes",
    )
    return _missed("parts of the image", attack, broken, n, correct, finding)


def on_the_grid(survivors: Probe, correct: int) -> Checked:
    """Does PGD among images with 8 bits break survivors of attacks among all inputs? Then the network differs on images."""
    attack = OnGrid(survivors.threat)
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "grid-attack-wins",
        f"a short attack on images with 8 bits per channel breaks {broken} of {n} samples that are still robust "
        "after attacks on all inputs: the network treats images differently from the inputs between them, and only "
        "images occur in use",
        "attack images: make the network round its inputs, with a gradient that passes through the rounding",
    )
    return _missed("grid attack", attack, broken, n, correct, finding)


def other_head(survivors: Probe, attack: Guided, correct: int) -> Checked:
    """Does PGD on a new last layer, see `fresh_head`, break survivors of attacks on the logits? Then logits mislead."""
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "fresh-head-wins",
        f"an attack on a new last layer behind the network's features breaks {broken} of {n} samples that are still "
        "robust after attacks on its logits: what follows the features hides how near the other classes are",
        "attack the network without what follows its last layer, or with the loss of each other class",
    )
    return _missed("fresh head", attack, broken, n, correct, finding)


def without_rest(survivors: Probe, attack: Guided, correct: int) -> Checked:
    """Does PGD on the output of the last layer with weights, see `bare_logits`, break survivors of attacks on the logits?"""
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "bare-logits-win",
        f"an attack on the output of the last layer with weights breaks {broken} of {n} samples that are still robust after "
        "attacks on the logits: what follows this layer hides how near the other classes are",
        "attack the network without what follows its last layer",
    )
    return _missed("bare logits", attack, broken, n, correct, finding)


def inner_network(survivors: Probe, attack: Guided, correct: int) -> Checked:
    """Does an attack on networks inside of the network, see `inner_networks`, break survivors of attacks on the logits?"""
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "inner-network-wins",
        f"an attack on other networks inside of the network breaks {broken} of {n} samples that are still robust after "
        "attacks on the logits: the network answers with another one of its parts where attacks do not lead",
        "attack each of the networks that it holds, without what chooses among them",
    )
    return _missed("inner network", attack, broken, n, correct, finding)


def through_inactive(survivors: Probe, correct: int) -> Checked:
    """Does PGD whose gradient passes inactive units and comparisons, see `ThroughInactive`, break survivors?"""
    attack = ThroughInactive(survivors.threat)
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "inactive-part-wins",
        f"an attack whose gradient also passes inactive and saturated units and comparisons breaks {broken} of {n} samples that "
        "are still robust after attacks along the gradient: a part of the network that these images do not make active decides there",
        "look for units that are never active on images, and for conditions that images never meet, and audit without them",
    )
    return _missed("inactive parts", attack, broken, n, correct, finding)


def straight_through(survivors: Probe, correct: int) -> Checked:
    """Does PGD past jumps and ripples, see `StraightThrough`, break survivors?"""
    attack = StraightThrough(survivors.threat)
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "straight-through-wins",
        f"an attack that takes the average slope of rounding, comparisons and ripples breaks {broken} of {n} samples that are still "
        "robust after attacks along the gradient: they hide how near the other classes are",
        "attack the network without its rounding, its masks and its ripples",
    )
    return _missed("straight through", attack, broken, n, correct, finding)


def towards_features(survivors: Probe, attack: TowardsFeatures, correct: int) -> Checked:
    """Does an attack towards hidden features of other classes, see `features_of_others`, break survivors?"""
    broken, n = _broken(survivors, attack)
    finding = doubt(
        "feature-attack-wins",
        f"an attack that moves hidden features ({attack.settings['layers']}) towards those of samples of other classes breaks "
        f"{broken} of {n} samples that are still robust after attacks on the logits: what follows these features hides how near "
        "the other classes are",
        "attack the network through a smooth replacement for what follows its features, or without gradients (square)",
    )
    return _missed("feature attack", attack, broken, n, correct, finding)


def _broken(survivors: Probe, attack: Attack) -> tuple[int, int]:
    """How many of how many samples the attack breaks. If nothing breaks in every second one, the others are not tried."""
    even = torch.arange(len(survivors), device=survivors.x.device) % 2 == 0
    half = survivors.select(even)
    broken = len(half) - len(half.unbroken_by(attack))
    if not broken:
        return 0, len(half)
    other = survivors.select(~even)
    return broken + len(other) - len(other.unbroken_by(attack)), len(survivors)


def _missed(name: str, attack: Attack, broken: int, n: int, correct: int, finding: Finding) -> Checked:
    if not beats(broken, n, correct):
        return Checked(name, n, {"broken": broken})
    return Checked(name, n, {"broken": broken}, finding, attacks={name.replace(" ", "-"): attack})
