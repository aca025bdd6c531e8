"""Clean accuracy as evidence: is the network used as it was trained?

A network with another normalisation, or with its classes in another order, is correct less often, and every number of the
audit is then about a network that nobody uses. No check here attacks anything.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lsa_cli.auditing.evidence.decision import ALPHA, Checked, doubt, exceeds
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import Finding
from lsa_cli.stats import binomial_tail
from lsa_cli.wording import first_of

UNDER_ANOTHER, IN_ANOTHER_ORDER = "right under the best alternative", "right in another order"
SAMPLES, WRONG = 1000, 300  # other normalisations are tried on at most so many samples, and so many misclassified ones
_ENOUGH_FOR_CHANCE = 20
CLAIM_TOLERANCE = 0.01  # one point between the authors' test set and this one is no finding (our choice)
_EQUAL = 2  # samples; of normalisations that differ by less the first one is named
# The accuracy that moved classes must reach in another order: five times chance, from 20% to 50% (our choice). Untrained
# networks, whose outputs match the classes a little by accident, stay below.
_TIMES_CHANCE, _LEAST_MOVED, _ENOUGH_MOVED = 5, 0.2, 0.5
_NEAR_ZERO, _FINE = 0.05, 0.5  # accuracy of a class that is never recognised, and of one that is


def near_chance(clean: Rate, classes: int) -> Checked:
    """Is clean accuracy above chance? A finding if chance lies in its interval, for 20 samples and more (our choice)."""
    checked = clean.n if clean.n >= _ENOUGH_FOR_CHANCE and clean.low is not None else 0
    finding = doubt(
        "clean-accuracy-near-chance",
        f"clean accuracy is {clean.value or 0:.1%} of {clean.n} samples, no better than guessing among {classes} classes: the "
        "network is not used as it was trained, or these are not its weights or its data",
        "check --arch, --weights, --normalize, --input-range, --data and the order of the classes (--match-classes)",
    )
    found = checked and clean.low is not None and clean.low <= 1 / classes
    return Checked("accuracy above chance", checked, {"chance": 1 / classes}, finding if found else None)


def claim(clean: Rate, claimed: tuple[float, str] | None) -> Checked:
    """Does clean accuracy reach what the checkpoint states? claimed: the share, and its name in the checkpoint.

    A finding if the upper end of the 95% interval is more than a point below the claim.
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
    saw = {"clean accuracy": clean.value or 0.0, "claimed": share}
    return Checked("claimed accuracy", clean.n, saw, finding if clean.high < share - CLAIM_TOLERANCE else None)


def reconstruction(clean: Rate, is_confirmed: bool, writes: str) -> Checked:
    """Is a network that was put together from its weights confirmed by something else than its accuracy?

    Weights do not show what a forward pass does between layers. Another pass can have nearly the same accuracy and another
    robustness. writes: the command that writes the network as Python.
    """
    finding = doubt(
        "network-reconstructed",
        "the network was put together from its weights, and neither statistics of BatchNorm nor an accuracy that the file states "
        "confirm it: the forward pass of the training may be another one, with another robustness",
        f"is clean accuracy {clean.value or 0:.1%} what you know of this network? write it with {writes}, compare it with the code "
        "of the training, and audit with --arch net.py:build",
    )
    return Checked(
        "reconstructed network", clean.n, {"confirmed": float(is_confirmed)}, None if is_confirmed else finding
    )


def dequantised(weights: int, n: int, right: int, rounded: int, same: int, placed: int, known: int) -> Checked:
    """Is the network that is audited the one that is used? Never, where its weights were quantised.

    weights: quantised ones. Of n samples, right: classified correctly; rounded: with the activations rounded as the file says,
    at `placed` of the `known` places; same: given the same class by both.
    """
    compared = (
        f"; with activations rounded at {placed} of the {known} places of the file, clean accuracy is {rounded / n:.1%} instead of "
        f"{right / n:.1%} of {n} samples, and {same / n:.1%} get the same class"
        if n
        else ""
    )
    finding = doubt(
        "weights-dequantised",
        f"the file holds {weights} quantised weights, and the float network with their values was audited: its activations are not "
        f"rounded, so these are not the numbers of the quantised network{compared}",
        "read the numbers as those of the float network, or audit the float checkpoint from before the quantisation",
    )
    saw = {"quantised weights": weights, "right": right, "right with rounded activations": rounded, "same class": same}
    return Checked("dequantised weights", n, saw, finding if weights else None)


# ---- normalisation -------------------------------------------------------------------------------------


def rows_to_try(right: np.ndarray, seed: int) -> np.ndarray:
    """The samples that other normalisations are tried on: random ones, up to SAMPLES, or until WRONG are misclassified."""
    order = np.random.default_rng([seed, 19]).permutation(len(right))[:SAMPLES]
    wrong = np.cumsum(~right[order])
    return order[wrong <= WRONG]


def normalization(
    right: np.ndarray, alternatives: Sequence[str], right_under: Callable[[str, np.ndarray], np.ndarray], used: str,
    most_frequent: float,
) -> Checked:  # fmt: skip
    """Is the network correct more often with another usual normalisation, beyond noise, and better than guessing with it?

    right (N,) bool: the samples that are classified correctly in the audit. right_under(alternative, rows) ->
    (len(rows),) bool. used: the normalisation of the audit, as text. most_frequent: the share of samples of the most
    frequent class, which an alternative must exceed: inputs that tell nothing raise an accuracy that is below chance. The test is paired: one-sided sign test on the samples
    that only one of the two classifies correctly, at ALPHA over the number of alternatives. Only misclassified samples can
    be gained, so they are tried first, and the others only where the gain is large enough.
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
        is_better = binomial_tail(gained[name], gained[name] + lost, 0.5) < level
        if is_better and exceeds(len(kept) + gained[name] - lost, len(right), most_frequent):
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
        "trained with another normalisation, and every number here is about other inputs",
        f"audit with {best}",
    )
    return Checked("usual normalisations", len(right), {**saw, UNDER_ANOTHER: after}, finding)


def without_second_cause(normalization: Checked, order: Checked) -> Checked:
    """The check of normalisations, without its finding where another order of the classes makes a larger share correct.

    The classes are then put right first, and an audit with them checks the normalisation again.
    """
    share = normalization.saw.get(UNDER_ANOTHER, 0.0) / max(1, normalization.n)
    if order.finding is None or order.saw[IN_ANOTHER_ORDER] / max(1, order.n) <= share:
        return normalization
    return dataclasses.replace(normalization, finding=None)


# ---- classes -------------------------------------------------------------------------------------------


def class_order(
    y: np.ndarray, predicted: np.ndarray, names: Sequence[str], in_data: np.ndarray | None = None
) -> Checked:
    """Is the network correct more often with another order of the classes, beyond noise? y, predicted: (N,), -1 for none.

    in_data (N,): the labels as the data number them; None: y. The order is proposed and not taken.

    The best order assigns classes to outputs with the most correct samples. It is found on one half of each class and
    tested on the other half, and the reverse, so that the choice among all orders needs no correction. A finding if the sign
    test over the samples that only one order makes correct passes ALPHA, the classes that move are well above chance, and
    the whole is better than always predicting the most frequent class.
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
    most_frequent = float(np.bincount(y, minlength=1).max()) / max(1, len(y))
    found = (
        binomial_tail(gained, gained + lost, 0.5) < ALPHA
        and after[moved].mean() >= enough
        and exceeds(int(after.sum()), len(y), most_frequent)
    )
    saw = {"right": int(right.sum()), IN_ANOTHER_ORDER: int(after.sum())}
    return Checked(
        "order of classes",
        len(y),
        saw,
        _order_finding(y, predicted, names, y if in_data is None else in_data) if found else None,
    )


def _order_finding(y: np.ndarray, predicted: np.ndarray, names: Sequence[str], in_data: np.ndarray) -> Finding:
    order = best_order(y, predicted, len(names))
    present = np.unique(y)
    moved = [f"'{names[k]}' is output {order[k]}, not {k}" for k in present if order[k] != k]
    right, after = int((predicted == y).sum()), int((order[y] == predicted).sum())
    as_text = np.array([sorted(names).index(name) for name in names])
    if all(name.isdecimal() for name in names) and (order[present] == as_text[present]).all():
        advice = (
            "the network has the classes in the order of their names as text (0, 1, 10, 2, ...), in which torchvision's "
            "ImageFolder reads them: add order=text to --data imagefolder:DIR, and leave --match-classes out"
        )
    elif (outputs := _outputs(order[y], in_data)) is not None:
        advice = f"if that is the order of the network's training, add --match-classes {','.join(map(str, outputs))}"
    else:
        advice = (
            "number the classes of the data as the network does: --match-classes with the output for each class, number where "
            "label k is output k, or name with a checkpoint that names its classes"
        )
    return doubt(
        "class-order",
        f"{right} of {len(y)} samples are classified correctly, and {after} would be with the classes in another order "
        f"({first_of(moved, 5)})",
        advice,
    )


def _outputs(best: np.ndarray, in_data: np.ndarray) -> list[int] | None:
    """The best output for each class of the data, for --match-classes; None where a class has no samples."""
    first = {int(label): int(output) for label, output in zip(in_data[::-1], best[::-1], strict=True)}
    return [first[label] for label in range(len(first))] if set(first) == set(range(len(first))) else None


def lost_classes(y: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Checked:
    """Is a class almost never recognised while most others are?

    At most 5% of its samples are correct, significantly (ALPHA over the number of classes) less than half the accuracy of
    the others, and at least half of two or more other classes are correct on half of their samples: a network that always
    predicts one class recognises none.
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
            lost.append(f"'{names[k]}' ({right} of {n})")
    finding = doubt(
        "class-without-accuracy",
        f"for {len(lost)} of {len(present)} classes almost no sample is classified correctly, even without an attack, and most "
        f"other classes are fine: {first_of(lost, 5)}",
        "check that the network was trained on these classes and has them in this order (--match-classes), and that "
        "their labels and images are right",
    )
    saw = {"classes": len(present), "lost": len(lost)}
    return Checked("accuracy by class", len(y), saw, finding if lost else None)


def _second_halves(y: np.ndarray) -> np.ndarray:  # (N,) -> (N,) bool
    """Every second sample of each class."""
    order = np.argsort(y, kind="stable")
    _, starts = np.unique(y[order], return_index=True)
    place = np.arange(len(y)) - np.repeat(starts, np.diff([*starts, len(y)]))
    second = np.zeros(len(y), dtype=bool)
    second[order] = place % 2 == 1
    return second


def best_order(y: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:  # (N,), (N,) -> (classes,)
    """The output for each class: the assignment with the most correct samples; of equal outputs, the class's own."""
    order = np.arange(classes)
    known = predicted >= 0
    rows, columns = np.unique(y[known]), np.union1d(y[known], predicted[known])
    if not len(rows):
        return order
    table = np.zeros((len(rows), len(columns)), dtype=np.int64)
    np.add.at(table, (np.searchsorted(rows, y[known]), np.searchsorted(columns, predicted[known])), len(rows) + 1)
    table[np.arange(len(rows)), np.searchsorted(columns, rows)] += 1
    order[rows] = columns[assign(-table)]
    return order


def assign(cost: np.ndarray) -> np.ndarray:  # (R, C) with R <= C -> (R,) columns
    """One column for each row, all different, with the smallest sum of costs.

    The Hungarian method with potentials, by shortest augmenting paths (Jonker and Volgenant 1987), O(R^2 C).
    """
    rows, columns = cost.shape
    of_rows, of_columns = np.zeros(rows), np.zeros(columns)
    row_of = np.full(columns, -1)
    for start in range(rows):
        distance, before = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        visited, row, reached, column = [(start, 0.0)], start, 0.0, -1
        while row >= 0:  # extend a shortest path until it ends in a free column
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
        while column >= 0:  # and invert the assignments along it
            previous = int(before[column])
            row_of[column] = start if previous < 0 else row_of[previous]
            column = previous
    return np.array([int(np.flatnonzero(row_of == row)[0]) for row in range(rows)])
