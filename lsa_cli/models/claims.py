"""The clean accuracy that a training script stored beside the weights: a claim, which the audit checks."""

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lsa_cli.models.pickles.symbols import Call, TensorSpec

if TYPE_CHECKING:
    import torch

# The names that training scripts use, the most telling first.
_ACCURACIES = (
    "clean_accuracy", "test_acc", "test_accuracy", "best_acc", "best_acc1", "best_prec1", "best_top1", "val_acc",
    "val_accuracy", "acc", "acc1", "accuracy", "top1", "prec1",
)  # fmt: skip
_ERRORS = (
    "test_error", "test_err", "best_error", "best_err", "best_err1", "val_error", "val_err", "error", "err", "err1",
)  # fmt: skip


def claim(root: Any, load: Callable[[TensorSpec], "torch.Tensor"] | None = None) -> tuple[float, str] | None:
    """The claimed clean accuracy as a share, and its name in the file ("metrics.val_acc"); None without a claim.

    load: reads numbers that are stored as tensors; without it they are ignored. A number up to 1 is a share, a larger one
    is in percent. An error rate e claims an accuracy of 1 - e; one between 0.5 and 1 is no claim, because 0.9 can be 90% or
    0.9%.
    """
    for name, value, is_error in _candidates(root) if isinstance(root, dict) else ():
        number = _number(value, load)
        if number is None or not 0 < number <= 100 or (is_error and (0.5 < number <= 1 or number == 100)):
            continue
        share = number if number <= 1 else number / 100
        return 1 - share if is_error else share, name
    return None


def _candidates(root: dict[Any, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Name, value, and whether it is an error rate, of each entry that can be a claim."""
    for names in (_ACCURACIES, _ERRORS):
        for prefix, holder in (("", root), ("metrics.", root.get("metrics"))):
            if isinstance(holder, dict):
                yield from ((prefix + name, holder.get(name), names is _ERRORS) for name in names)
    callbacks = root.get("callbacks")  # Lightning: the metric by which a callback chose this file
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        if isinstance(state, dict) and "acc" in str(state.get("monitor")):
            yield str(state["monitor"]), state.get("current_score"), False


def _number(value: Any, load: Callable[[TensorSpec], "torch.Tensor"] | None) -> float | None:
    """A number, a tensor of one number, or a number of numpy; otherwise None. The integer 1 may be a count, so it is None."""
    if isinstance(value, TensorSpec):
        value = load(value).item() if load is not None and value.numel == 1 else None
    elif isinstance(value, Call) and value.class_name.endswith(".multiarray.scalar"):
        value = _numpy_number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (value == 1 and isinstance(value, int)):
        return None
    return float(value)


def _numpy_number(call: Call) -> float | None:
    """The number in a pickled scalar of numpy, which is a dtype and its bytes."""
    try:
        kind, content = call.arguments
        return struct.unpack({"f8": "<d", "f4": "<f"}[kind.arguments[0]], content)[0]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error):
        return None
