"""Clean accuracy as evidence: is the network used as it was trained?

A network that gets another normalisation, or whose classes are numbered in another order, is right less often, and
every number of the audit is then about a network that nobody uses. No check here attacks anything.
"""

from collections.abc import Callable, Sequence

import numpy as np

from lsa_cli.auditing.evidence.judge import ALPHA, Checked, doubt, exceeds
from lsa_cli.models.classifier import PRESETS, Normalization, parse_input_range, parse_normalize, rescaled
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import Finding
from lsa_cli.stats import binomial_tail

SAMPLES, WRONG = 1000, 300  # at most so many samples, and so many wrong ones, try other normalisations
_ENOUGH_FOR_CHANCE = 20
CLAIM_TOLERANCE = 0.01  # one point between the makers' test and this one is no finding (our choice)
_RANGES = ("0,1", "0,255", "-1,1")
_SHOWN = 5
_EQUAL = 2  # samples; of normalisations as good as this the first one is named
# What the moved classes must reach in another order: five times chance, from 20% to 50% (our choice). Untrained
# networks, whose outputs follow the classes a little by accident, stay below.
_TIMES_CHANCE, _LEAST_MOVED, _ENOUGH_MOVED = 5, 0.2, 0.5
_NEAR_ZERO, _FINE = 0.05, 0.5  # accuracy of a class that is lost, and of those that are fine


def near_chance(clean: Rate, classes: int) -> Checked:
    """Is the network right more often than a guess? A finding where chance lies in the interval of clean accuracy.

    Of fewer than 20 samples the interval says too little (our choice).
    """
    checked = clean.n if clean.n >= _ENOUGH_FOR_CHANCE and clean.low is not None else 0
    finding = doubt(
        "clean-accuracy-near-chance",
        f"clean accuracy is {clean.value or 0:.1%} of {clean.n} samples, no more than guessing among {classes} classes "
        "reaches: the network is not used as it was trained, or these are not its weights or its data",
        "check --arch, --weights, --normalize, --input-range, --data and the order of the classes (--match-classes)",
    )
    found = checked and clean.low is not None and clean.low <= 1 / classes
    return Checked("accuracy above chance", checked, {"chance": 1 / classes}, (finding,) if found else ())


def claim(clean: Rate, claimed: tuple[float, str] | None) -> Checked:
    """Is clean accuracy what the checkpoint states? claimed: the share, and the name it stands under.

    A finding where the upper end of the 95% interval is more than a point below the claim.
    """
    if claimed is None or clean.high is None:
        return Checked("claimed accuracy", 0, {})
    share, name = claimed
    finding = doubt(
        "clean-accuracy-below-claim",
        f"clean accuracy is {clean.value:.1%} [{100 * (clean.low or 0):.1f}, {100 * clean.high:.1f}], and the "
        f"checkpoint states {share:.1%} ({name}): the network is not used as it was trained, or these are other data",
        "check --normalize and --input-range, the order of the classes (--match-classes), --data and --arch; if the "
        "claim is about other data, read the numbers as those of this data",
    )
    found = clean.high < share - CLAIM_TOLERANCE
    saw = {"clean accuracy": clean.value or 0.0, "claimed": share}
    return Checked("claimed accuracy", clean.n, saw, (finding,) if found else ())


# ---- normalisation -------------------------------------------------------------------------------------


def usual_normalizations(channels: int) -> dict[str, Normalization]:
    """Normalisations of images in [0, 1] by the options that ask for them; each once, under its shortest name.

    Every preset for so many channels, none, and 0.5/0.5, each on inputs in [0, 1], [0, 255] and [-1, 1].
    """
    names = ["none", *(name for name, (mean, _) in PRESETS.items() if len(mean) == channels), "0.5/0.5"]
    found: dict[str, Normalization] = {}
    for range_text in _RANGES:
        for name in names:
            scale = parse_input_range(range_text)
            numbers = "/".join(",".join(map(str, part)) for part in PRESETS[name]) if name in PRESETS else name
            option = name if scale == (0.0, 1.0) else numbers
            normalization = rescaled(parse_normalize(option, scale), scale)
            if not any(is_same(normalization, known, channels) for known in found.values()):
                found[f"--normalize {option}" + (f" --input-range {range_text}" if scale != (0.0, 1.0) else "")] = (
                    normalization
                )
    return found


def is_same(one: Normalization, other: Normalization, channels: int) -> bool:
    """Whether both do the same to images of so many channels, to the third digit."""
    pairs = [value if value is not None else ((0.0,), (1.0,)) for value in (one, other)]
    first, second = (
        np.stack([np.broadcast_to(np.asarray(part, dtype=float), channels) for part in pair]) for pair in pairs
    )
    return bool(np.allclose(first, second, rtol=1e-3, atol=1e-6))


def rows_to_try(right: np.ndarray, seed: int) -> np.ndarray:
    """Samples that other normalisations are tried on: in random order up to SAMPLES, or up to WRONG wrong ones."""
    order = np.random.default_rng([seed, 19]).permutation(len(right))[:SAMPLES]
    wrong = np.cumsum(~right[order])
    return order[wrong <= WRONG]


def normalization(
    right: np.ndarray, alternatives: Sequence[str], right_under: Callable[[str, np.ndarray], np.ndarray], used: str
) -> Checked:
    """Is another usual normalisation right more often, beyond noise?

    right (N,) bool: of the samples as they were audited. right_under(alternative, rows) -> (len(rows),) bool. used: the
    normalisation of the audit, in words. The test is paired: one-sided sign test on the samples that only one of the two
    classifies correctly, at ALPHA over the number of alternatives. What is right already cannot be gained, so the wrong
    samples are tried first, and the right ones only where enough was gained to matter.
    """
    wrong, kept = np.flatnonzero(~right), np.flatnonzero(right)
    level = ALPHA / max(1, len(alternatives))
    gained: dict[str, int] = {}
    if binomial_tail(len(wrong), len(wrong), 0.5) < level:
        gained = {name: int(right_under(name, wrong).sum()) for name in alternatives}
    promising = [name for name in gained if binomial_tail(gained[name], gained[name], 0.5) < level]
    better: dict[str, tuple[int, int]] = {}
    for name in sorted(promising, key=lambda name: -gained[name])[:3]:
        lost = int((~right_under(name, kept)).sum())
        if binomial_tail(gained[name], gained[name] + lost, 0.5) < level:
            better[name] = gained[name], lost
    saw = {"alternatives": len(gained), "right": len(kept)}
    if not better:
        return Checked("usual normalisations", len(right), saw)
    most = max(gain - loss for gain, loss in better.values())
    best = next(name for name in alternatives if name in better and better[name][0] - better[name][1] >= most - _EQUAL)
    more, fewer = better[best]
    after = len(kept) + more - fewer
    finding = doubt(
        "another-normalization",
        f"with {best} the network classifies {after} of {len(right)} samples correctly, with {used} {len(kept)}: it was "
        "trained on images that are normalised in another way, and every number here is about other inputs",
        f"audit with {best}",
    )
    saw |= {"right under the best alternative": after}
    return Checked("usual normalisations", len(right), saw, (finding,))


# ---- classes -------------------------------------------------------------------------------------------


def class_order(y: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Checked:
    """Would another order of the classes be right more often, beyond noise? y, predicted: (N,), predicted -1 for none.

    The order is the assignment of classes to outputs with the most correct samples. It is found on one half of each
    class and judged on the other, and the reverse, so that the choice among all orders costs nothing. A finding where the
    sign test over the samples that only one order makes right passes ALPHA, the classes that move come out well above
    chance, and the whole is better than always naming the commonest class.
    """
    classes = len(names)
    second = _second_halves(y)
    after = np.zeros(len(y), dtype=bool)
    moved = np.zeros(len(y), dtype=bool)
    for half in (second, ~second):
        order = best_order(y[~half], predicted[~half], classes)
        after[half] = order[y[half]] == predicted[half]
        moved[half] = order[y[half]] != y[half]
    right = predicted == y
    gained, lost = int((after & ~right).sum()), int((right & ~after).sum())
    enough = max(_LEAST_MOVED, min(_ENOUGH_MOVED, _TIMES_CHANCE / classes))
    commonest = float(np.bincount(y, minlength=1).max()) / max(1, len(y))
    found = (
        binomial_tail(gained, gained + lost, 0.5) < ALPHA
        and after[moved].mean() >= enough
        and exceeds(int(after.sum()), len(y), commonest)
    )
    saw = {"right": int(right.sum()), "right in another order": int(after.sum())}
    finding = _order_finding(y, predicted, names) if found else None
    return Checked("order of classes", len(y), saw, (finding,) if finding else ())


def _order_finding(y: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Finding:
    order = best_order(y, predicted, len(names))
    present = np.unique(y)
    moved = [k for k in present if order[k] != k]
    shown = ", ".join(f"'{names[k]}' is output {order[k]}, not {k}" for k in moved[:_SHOWN])
    more = f" and {len(moved) - _SHOWN} more" if len(moved) > _SHOWN else ""
    right, after = int((predicted == y).sum()), int((order[y] == predicted).sum())
    as_text = np.array([sorted(names).index(name) for name in names])
    if all(name.isdecimal() for name in names) and (order[present] == as_text[present]).all():
        advice = (
            "the network has the classes in the order of their names as text (0, 1, 10, 2, ...), in which torchvision's "
            "ImageFolder reads them: add order=text to --data imagefolder:DIR, and leave --match-classes out"
        )
    else:
        advice = (
            "number the classes of the data as the network does: --match-classes number where label k is output k, "
            "--match-classes name with a checkpoint that names its classes, or labels in the right order"
        )
    return doubt(
        "class-order",
        f"{right} of {len(y)} samples are classified correctly, and {after} would be if the classes stood in another order "
        f"({shown}{more})",
        advice,
    )


def lost_classes(y: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Checked:
    """Is a class hardly ever right while most others are fine?

    At most 5% of its samples right, significantly (ALPHA over the number of classes) less than half the accuracy of the
    others, and at least half of two or more other classes right on half of their samples: a network that names one
    class for everything loses no class, it knows none.
    """
    present = np.unique(y)
    counts = {int(k): (int((y == k).sum()), int((predicted[y == k] == k).sum())) for k in present}
    lost = []
    for k, (n, right) in counts.items():
        others = [(m, r) for other, (m, r) in counts.items() if other != k]
        fine = sum(r >= _FINE * m for m, r in others)
        if len(others) < 2 or fine < len(others) / 2 or fine < 2 or right > _NEAR_ZERO * n:
            continue
        share = sum(r for _, r in others) / sum(m for m, _ in others) / 2
        if binomial_tail(n - right, n, 1 - share) < ALPHA / len(present):
            lost.append(k)
    saw = {"classes": len(present), "lost": len(lost)}
    if not lost:
        return Checked("accuracy by class", len(y), saw)
    shown = ", ".join(f"'{names[k]}' ({counts[k][1]} of {counts[k][0]})" for k in lost[:_SHOWN])
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    finding = doubt(
        "class-without-accuracy",
        f"of {len(lost)} of {len(present)} classes hardly any sample is classified correctly, even unchanged, while most other "
        f"classes are fine: {shown}{more}",
        "check that the network was trained on these classes and has them in this order (--match-classes), and that "
        "their labels and images are right",
    )
    return Checked("accuracy by class", len(y), saw, (finding,))


def _second_halves(y: np.ndarray) -> np.ndarray:  # (N,) -> (N,) bool
    """Every second sample of each class."""
    order = np.argsort(y, kind="stable")
    _, starts = np.unique(y[order], return_index=True)
    place = np.arange(len(y)) - np.repeat(starts, np.diff([*starts, len(y)]))
    second = np.zeros(len(y), dtype=bool)
    second[order] = place % 2 == 1
    return second


def best_order(y: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:  # (N,), (N,) -> (classes,)
    """For each class the output that fits it: the assignment with the most correct samples, itself where nothing tells."""
    order = np.arange(classes)
    answered = predicted >= 0
    rows, columns = np.unique(y[answered]), np.union1d(y[answered], predicted[answered])
    if not len(rows):
        return order
    table = np.zeros((len(rows), len(columns)), dtype=np.int64)
    np.add.at(table, (np.searchsorted(rows, y[answered]), np.searchsorted(columns, predicted[answered])), len(rows) + 1)
    table[np.arange(len(rows)), np.searchsorted(columns, rows)] += 1  # of equals, the class's own output
    order[rows] = columns[assign(-table)]
    return order


def assign(cost: np.ndarray) -> np.ndarray:  # (R, C) with R <= C -> (R,) columns
    """The columns, one for each row and none twice, with the smallest sum of costs.

    The Hungarian method with potentials, by shortest augmenting paths (Jonker and Volgenant 1987), O(R^2 C).
    """
    rows, columns = cost.shape
    of_rows, of_columns = np.zeros(rows), np.zeros(columns)
    row_of = np.full(columns, -1)
    for start in range(rows):
        distance, before = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        visited, row, reached, column = [(start, 0.0)], start, 0.0, -1
        while row >= 0:  # grow a shortest path until it ends in a column that is free
            step = reached + cost[row] - of_rows[row] - of_columns
            closer = ~done & (step < distance)
            distance[closer], before[closer] = step[closer], column
            column = int(np.where(done, np.inf, distance).argmin())
            reached, row = float(distance[column]), int(row_of[column])
            done[column] = True
            if row >= 0:
                visited.append((row, reached))
        for row, at in visited:
            of_rows[row] += reached - at
        of_columns[done] -= reached - distance[done]
        while column >= 0:  # and turn it over
            previous = int(before[column])
            row_of[column] = start if previous < 0 else row_of[previous]
            column = previous
    return np.array([int(np.flatnonzero(row_of == row)[0]) for row in range(rows)])
