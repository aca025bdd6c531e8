"""Labels of the data in the network's order of classes."""

import numpy as np

from lsa_cli.data import LabelledData
from lsa_cli.errors import DataError


def match_classes(
    data: LabelledData, own: tuple[str, ...] | None, classes: int, how: str | None, notes: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels in the network's order of classes, and the names of the classes.

    own: the names that the checkpoint gives its outputs. how "number" takes labels as they are, and "2,0,1" names the output
    for each class of the data. By name, every class
    of the data must be one of the network's: spelling may differ in case, spaces, dashes and underscores, or, where
    that decides, in all but the first word ("3 - three"). Raises DataError where the order cannot be known.
    """
    from lsa_cli.auditing.evidence.preflight import check_labels

    labels, names = data.labels.astype(np.int64), data.class_names
    if own is not None and len(own) != classes:
        raise DataError(f"the checkpoint names {len(own)} classes, and the network has {classes} outputs")
    if how not in (None, "name", "number"):
        return _in_order(data, [int(part) for part in how.split(",")], own, classes, notes)
    if how == "number" and names is not None:
        labels = _as_numbers(labels, names, classes, notes)
    if how == "number" or names is None:
        check_labels(labels, classes, data.spec)
        fits = names is not None and len(names) == classes
        return labels, own or (names if fits and names else tuple(str(number) for number in range(classes)))
    if len(names) > classes:
        raise DataError(
            f"{data.spec} has {len(names)} classes and the network has {classes}; "
            "give the data set that the network was trained for, or another --arch-args num_classes"
        )
    if own is None:
        if len(names) < classes:
            raise DataError(
                f"{data.spec} has {len(names)} classes, the network has {classes} and names none of them, so their "
                "order is unknown; give the data set it was trained for, or, where label k is output k, "
                "--match-classes number"
            )
        check_labels(labels, classes, data.spec)
        return labels, names
    order = _by_name(names, own)
    if order is None:
        strange = next((name for name in names if _key(name) not in {_key(other) for other in own}), names[0])
        raise DataError(
            f"the classes of {data.spec} are not those of the network: it has no '{strange}' among {', '.join(own[:5])}"
            f"{', ...' if len(own) > 5 else ''}; give the data set it was trained for, or, where label k is output k, "
            "--match-classes number"
        )
    check_labels(labels, len(names), data.spec)
    if order != list(range(len(names))):
        notes.append("labels of the data were put into the network's order of classes, by name")
    return np.array(order)[labels], own


def _in_order(
    data: LabelledData, order: list[int], own: tuple[str, ...] | None, classes: int, notes: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """`match_classes` with the output for each class of the data."""
    labels, names = data.labels.astype(np.int64), data.class_names
    known = len(names) if names is not None else int(labels.max()) + 1
    if len(order) != known or labels.min() < 0 or max(order) >= classes:
        raise DataError(
            f"--match-classes {','.join(map(str, order))}: give one output below {classes} for each of the {known} classes of "
            f"{data.spec}"
        )
    shown = [str(number) for number in range(classes)]
    if names is not None:
        for name, output in zip(names, order, strict=True):
            shown[output] = name
    notes.append("labels of the data were put into the order of --match-classes")
    return np.array(order)[labels], own or tuple(shown)


def _as_numbers(labels: np.ndarray, names: tuple[str, ...], classes: int, notes: list[str]) -> np.ndarray:
    """Labels for which label k is output k: where all names are whole numbers, these numbers, else as they are.

    Numbers from 1 to the number of classes count from 1.
    """
    if not all(name.isdecimal() and len(name) < 19 for name in names):
        return labels
    numbers = np.array([int(name) for name in names], dtype=np.int64)
    if numbers.min() == 1 and numbers.max() == classes:
        notes.append(f"classes are named 1 to {classes}: the class named k is output k - 1")
        numbers -= 1
    return numbers[labels]


def _key(name: str) -> str:
    return "".join(character for character in name.casefold() if character not in " -_")


def _by_name(names: tuple[str, ...], own: tuple[str, ...]) -> list[int] | None:
    """For each class of the data its place among the network's; None where that is not certain."""
    for key in (_key, lambda name: name.casefold().split()[0] if name.split() else ""):
        theirs = {key(name): number for number, name in enumerate(own)}
        keys = [key(name) for name in names]
        if len(theirs) == len(own) and len(set(keys)) == len(keys) and all(name in theirs for name in keys):
            return [theirs[name] for name in keys]
    return None
