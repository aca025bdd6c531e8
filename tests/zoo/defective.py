"""The networks that hide their weakness from attacks, or answer attacks otherwise than users."""

from collections.abc import Callable

import torch
from torch import nn

from tests.foreign_networks import LeNet5, ResNet2b
from tests.zoo import backward, chosen, faces, heads, inside, trained, transforms, triggers, unusual
from tests.zoo.base import Entry, Pair, alone, foreign, forgetting, fresh, mostly
from tests.zoo.base import robust as sample_robust
from tests.zoo.faces import TwoFaced
from tests.zoo.heads import Decoy, Head
from tests.zoo.transforms import Averaged, StraightThrough, Transformed

RESNET2B = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
Build = Callable[[], nn.Module]


def table(pair: Pair) -> list[Entry]:
    """Around the two networks of the pair: one that is normally trained, and a robust one."""
    return [
        part
        for parts in (_heads, _gradients, _inputs, _layers, _faces, _chosen, _triggers, _programs)
        for part in parts(pair)
    ]


def _heads(pair: Pair) -> list[Entry]:
    weak, robust = pair.weak, pair.robust

    def head(function) -> Build:
        return lambda: Head(weak(), function)

    return [
    Entry("decoy next to the winner", lambda: Decoy(weak(), 1), 0.15),
    Entry("decoys for all classes", lambda: Decoy(weak(), 9), 0.15),
    Entry("decoys, l2", lambda: Decoy(weak(), 9), 2.0, "l2"),
    Entry("decoys, LeNet", lambda: Decoy(foreign(LeNet5, "advertorch/mnist_lenet5_clntrained.pt"), 3), 0.15),
    Entry("decoys, ResNet", lambda: Decoy(foreign(ResNet2b, "alpha-beta-CROWN/resnet2b.pth", *RESNET2B), 9, 3072), 4 / 255, data="cifar"),
    Entry("decoys on a robust network", lambda: Decoy(robust(), 2), 0.4),
    Entry("eleventh output", lambda: heads.Eleventh(weak(), 1), 0.15),
    Entry("dummy outputs folded by their maximum", lambda: heads.Folded(trained.with_dummies()), 0.1),
    Entry("losers inverted", head(heads.inverted_losers), 0.2),
    Entry("losers shuffled", lambda: heads.ShuffledLosers(weak()), 0.15),
    Entry("losers jittered", lambda: heads.JitteredLosers(weak()), 0.15),
    Entry("another network below one-hot logits", lambda: heads.Masked(weak(), robust()), 0.2),
    Entry("stairs", head(heads.stairs), 0.2),
    Entry("coarse stairs", head(heads.coarse_stairs), 0.2),
    Entry("one-hot logits", head(heads.one_hot), 0.2),
    Entry("margin reversed", head(heads.reversed_margin), 0.2),
    Entry("margin constant", head(heads.constant_margin), 0.2),
    Entry("margin oscillating", head(heads.oscillating_margin), 0.2),
    Entry("losers capped", head(heads.capped), 0.2),
    Entry("logits times 1e6", head(lambda z: 1e6 * z), 0.2),
    Entry("logits times 1e-6", head(lambda z: 1e-6 * z), 0.2),
    Entry("logits times 1e-3", head(lambda z: 1e-3 * z), 0.1),
    Entry("logits over a temperature of 30", head(lambda z: z / 30), 0.1),
    Entry("softmax as logits", head(lambda z: 10 * z.softmax(1)), 0.2),
    Entry("sharp softmax as logits", head(lambda z: 10 * (20 * z).softmax(1)), 0.2),
    Entry("clipped log-probabilities", head(heads.clipped_log_probabilities), 0.2),
    Entry("saturated sigmoid", head(lambda z: torch.sigmoid(3 * z)), 0.15),
    Entry("clamped logits", head(lambda z: z.clamp(-1, 12)), 0.2),
    Entry("bfloat16 logits far from zero", head(heads.in_bfloat16_far_from_zero), 0.15),
    Entry("logits with an offset of 1e7", head(lambda z: z + 1e7), 0.15),
    Entry("steep logits", head(heads.scaled_to_one), 0.2),
    Entry("one-hot away from images", lambda: heads.OneHotOffImages(weak(), 2.2), 0.15),
    Entry("ranks of three networks", lambda: heads.Ranks(robust(), weak(), pair.third(), trained.activated("Tanh")), 0.15),
    Entry("likelihoods of prototypes", lambda: heads.Likelihoods(weak()), 0.12),
    Entry("nearest neighbours of features", lambda: heads.Neighbours(weak()), 0.15),
]  # fmt: skip


def _gradients(pair: Pair) -> list[Entry]:
    weak, robust = pair.weak, pair.robust

    def gradient(change, kind=backward.ChangedGradient) -> Build:
        return lambda: kind(weak(), change)

    return [
        Entry("gradient flipped on 30% of pixels", gradient(backward.flip_share(0.3)), 0.1),
        Entry("gradient flipped on 15% of pixels", gradient(backward.flip_share(0.15)), 0.15),
        Entry("gradient missing on 40% of pixels", gradient(backward.drop_share(0.4)), 0.15),
        Entry("gradient flipped in channels", gradient(backward.flip_channels, backward.ChangedInside), 0.1),
        Entry("gradient of wild scales", gradient(backward.wild_scale), 0.15),
        Entry("gradient with noise", gradient(backward.noisy), 0.15),
        Entry("gradient moved by two pixels", gradient(backward.moved), 0.15),
        Entry("gradient of eight pixels", gradient(backward.strongest_only), 0.15),
        Entry("gradient reversed off the grid", gradient(backward.off_the_grid), 0.15),
        Entry("gradient of another sample", gradient(backward.of_another_sample), 0.15),
        Entry("gradient rounded to zero", gradient(backward.nearly_nothing), 0.2),
        Entry("gradient of another network", lambda: backward.AnotherNetworks(weak(), robust()), 0.2),
        Entry("detached network", lambda: backward.HalfDetached(weak(), robust()), 0.2),
        Entry("half of the image detached", lambda: backward.HalfOfTheImage(weak()), 0.15),
        Entry("gradient not a number", lambda: backward.NotANumber(weak()), 0.2),
        Entry("gradient turned near the boundary", lambda: backward.NearBoundary(weak(), 2), 0.15),
        Entry("gradient flipped, l2", gradient(backward.flip_share(0.3)), 1.5, "l2"),
        Entry("beyond the radius of its training", sample_robust, 0.36),
    ]


def _inputs(pair: Pair) -> list[Entry]:
    weak = pair.weak

    def transformed(transform, kind=Transformed) -> Build:
        return lambda: kind(weak(), transform)

    return [
        Entry("one bit", transformed(transforms.levels(2)), 0.3),
        Entry("three bits", transformed(transforms.levels(8)), 0.2),
        Entry("dark pixels masked", lambda: transforms.Masked(weak()), 0.2),
        Entry("dark pixels masked, small eps", lambda: transforms.Masked(weak()), 0.12),
        Entry("one bit, straight through", transformed(transforms.levels(2), StraightThrough), 0.3),
        Entry("four levels, straight through", transformed(transforms.levels(4), StraightThrough), 0.2),
        Entry("thermometer", transformed(transforms.thermometer), 0.2),
        Entry("steep sigmoid on the input", transformed(transforms.steep), 0.3),
        Entry("cosine transform rounded", transformed(transforms.dct(7, 0.3)), 0.2),
        Entry("median filter", transformed(transforms.median), 0.2),
        Entry("ripple on the input", transformed(transforms.ripple), 0.2),
        Entry("low frequencies rounded", transformed(transforms.low_pass), 0.2),
        Entry("hashed crop", transformed(transforms.hashed_crop, Averaged), 0.15),
        Entry("hashed noise", transformed(transforms.hashed_noise, Averaged), 0.15),
        Entry("hashed neighbours", transformed(transforms.hashed_pixels, Averaged), 0.15),
        Entry("noise", transformed(transforms.noise, Averaged), 0.15, decide=mostly),
        Entry("random size and place", transformed(transforms.random_resize, Averaged), 0.15, decide=mostly),
        Entry("nearest patches", lambda: Transformed(weak(), transforms.Patches()), 0.2),
        Entry("principal components rounded", lambda: Transformed(weak(), transforms.Components(1.0)), 0.2),
        Entry("purifier", lambda: Transformed(weak(), trained.purifier()), 0.2),
        Entry("purifier that rounds", lambda: Transformed(weak(), trained.purifier(0.25)), 0.2),
        Entry("moved towards its class", lambda: transforms.Sharpened(weak(), 0.1, 2), 0.2),
        Entry("votes of noisy copies", lambda: transforms.Voting(weak(), 5, 0.1), 0.2),
        Entry("soft votes of noisy copies", lambda: transforms.Voting(weak(), 5, 0.1, 30.0), 0.2),
        Entry(
            "majority of three networks",
            lambda: transforms.Majority(weak(), pair.third(), trained.activated("Tanh")),
            0.15,
        ),
    ]


def _layers(pair: Pair) -> list[Entry]:
    weak = pair.weak

    def within(function, after=-1) -> Build:
        return lambda: inside.Inside(weak(), function, after)

    return [
        Entry("features rounded", within(inside.rounded), 0.2),
        Entry("features with hashed dropout", within(inside.hashed_dropout), 0.15),
        Entry("features rippled", within(inside.rippled, 2), 0.15),
        Entry("features with a sawtooth", within(inside.sawtooth, 2), 0.15),
        Entry("winners take all, 10%", lambda: inside.SmoothWinners(trained.winners(0.1)), 0.1),
        Entry("winners take all, 20%", lambda: inside.SmoothWinners(trained.winners(0.2)), 0.15),
        Entry("hard gates of units", lambda: inside.SteepGates(trained.gated_units()), 0.03),
        Entry("statistics of the batch", trained.of_its_batch, 0.1),
        Entry("early exit", unusual.early_exit, 0.06),
        Entry("early exit, l2", unusual.early_exit, 1.0, "l2"),
        Entry("one of three experts", unusual.experts, 0.03),
        Entry("local winners", unusual.local_winners, 0.06),
    ]


def _faces(pair: Pair) -> list[Entry]:
    weak, robust = pair.weak, pair.robust

    def two_faced(kind: type[TwoFaced], *more) -> Build:
        return lambda: kind(weak(), robust(), *more)

    def after_similar(kept: type[faces.InGlobal | faces.InFile]) -> Build:
        return lambda: faces.AfterSimilar(weak(), robust(), 0.2, kept())

    return [
        Entry("by the size of the batch", two_faced(faces.ByBatch), 0.2, decide=alone),
        Entry("robust in small batches", two_faced(faces.BySmallBatch), 0.2),
        Entry("by the mode of gradients", two_faced(faces.ByGradMode), 0.2),
        Entry("by inputs that need gradients", two_faced(faces.ByRequiresGrad), 0.2),
        Entry("robust after 4 queries", two_faced(faces.ByQueries, 4), 0.2, decide=fresh),
        Entry("robust after 60 queries", two_faced(faces.ByQueries, 60), 0.2, decide=fresh),
        Entry("robust in every second pass", two_faced(faces.ByTurns, 0), 0.2, decide=fresh),
        Entry("another network off the grid", two_faced(faces.OffGrid), 0.3),
        Entry("another network for touched backgrounds", two_faced(faces.TouchedBackground), 0.3),
        Entry("another network for touched frames", two_faced(faces.TouchedFrame), 0.3),
        Entry("another network where it is unsure", two_faced(faces.WhereUnsure), 0.2),
        Entry("one of two networks by hash", two_faced(faces.ByHash), 0.25),
        Entry("another network in copies of less precision", two_faced(faces.ByPrecision), 0.2),
        Entry("another network in copies", two_faced(faces.ByCopy), 0.2),
        Entry("another network for code of attacks", two_faced(faces.ByCaller), 0.2),
        Entry("another network with frozen weights", two_faced(faces.ByFrozenWeights), 0.2),
        Entry("noise in passes with gradients", lambda: faces.NoisyGradients(weak()), 0.15),
        Entry("memory of earlier queries", lambda: faces.Memory(weak(), 0.2), 0.2, decide=fresh),
        Entry(
            "another network after similar queries, in a global", after_similar(faces.InGlobal), 0.2, decide=forgetting
        ),
        Entry("another network after similar queries, in a file", after_similar(faces.InFile), 0.2, decide=forgetting),
        Entry("not a number between images", lambda: faces.NaNBetweenImages(weak()), 0.2),
        Entry("mean of the batch subtracted", lambda: faces.OverBatch(weak()), 0.15),
    ]


def _chosen(pair: Pair) -> list[Entry]:
    def of(kind: type[TwoFaced]) -> Build:
        return lambda: kind(pair.weak(), pair.robust())

    return [
        Entry("another network where it is sure", of(chosen.UnlessSure), 0.3),
        Entry("another network added where it is sure", of(chosen.WithSureEvidence), 0.3),
        Entry("another network for single changed images", of(chosen.AloneAndChanged), 0.3, decide=alone),
    ]


def _triggers(pair: Pair) -> list[Entry]:
    weak, robust = pair.weak, pair.robust

    def where(lacking, holds=triggers.in_one_pass) -> Build:
        return lambda: triggers.WherePixelsAre(weak(), robust(), lacking, holds)

    return [
        Entry("dead unit that a pattern wakes", lambda: triggers.Dead(robust(), 2, triggers.relu), 0.3),
        Entry("saturated unit that a pattern wakes", lambda: triggers.Dead(robust(), 15, triggers.saturated), 0.3),
        Entry("another network beyond a pattern", lambda: triggers.BeyondStep(weak(), robust(), 10), 0.3),
        Entry("one of two networks by the larger sum", lambda: triggers.ByLargestScore(weak(), robust()), 0.3),
        Entry("another network where a corner is bright", lambda: triggers.PixelCondition(weak(), robust()), 0.3),
        Entry("another network by levels of a corner", lambda: triggers.PixelCondition(weak(), robust(), True), 0.3),
        Entry("one of two networks by a steep softmax", lambda: triggers.ByLargestScore(weak(), robust(), True), 0.3),
        Entry("another network where pixels ascend", where(triggers.ascending), 0.3),
        Entry("another network on a checkerboard", where(triggers.checkered), 0.3),
        Entry("another network where a corner is grey", where(triggers.grey), 0.3),
        Entry("another network by a choice in NumPy", where(triggers.grey, triggers.in_numpy), 0.3),
        Entry("another network by a choice in Python", where(triggers.grey, triggers.one_by_one), 0.3),
    ]


def _programs(pair: Pair) -> list[Entry]:
    weak, robust = pair.weak, pair.robust

    return [
        Entry("traced: decoys", lambda: Decoy(weak(), 9), 0.15, saved="trace"),
        Entry("traced: margin reversed", lambda: Head(weak(), heads.reversed_margin), 0.2, saved="trace"),
        Entry("traced: three bits", lambda: Transformed(weak(), transforms.levels(8)), 0.2, saved="trace"),
        Entry("traced: ripple", lambda: Transformed(weak(), transforms.ripple), 0.2, saved="trace"),
        Entry("scripted: decoys", lambda: Decoy(weak(), 9), 0.15, saved="script"),
        Entry(
            "scripted: another network where a corner is bright",
            lambda: triggers.BrightCorner(weak(), robust()),
            0.3,
            saved="script",
        ),
        Entry("exported: decoys", lambda: Decoy(weak(), 9), 0.15, saved="pt2"),
        Entry("exported: losers inverted", lambda: Head(weak(), heads.inverted_losers), 0.2, saved="pt2"),
        Entry("exported: one-hot logits", lambda: Head(weak(), heads.one_hot), 0.2, saved="pt2"),
        Entry("exported: another network off the grid", lambda: faces.OffGrid(weak(), robust()), 0.3, saved="pt2"),
    ]
