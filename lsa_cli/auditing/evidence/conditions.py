"""What stands for booleans, whole numbers and detached numbers in a pass: floating point numbers that have a gradient.

A network may decide by a condition on many pixels: by comparisons, rounded numbers, and how many or whether all of them hold.
No gradient passes these, and none passes what is detached or computed without gradients. Here each such tensor has a score
of the same shape: of a boolean one that rises with what makes it true, and is above 0 where it is; of whole numbers what
they were rounded from; of detached numbers the same numbers with a gradient.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import relu

from lsa_cli.failures import is_out_of_memory

_COMPARED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "gt": lambda a, b: a - b,
    "ge": lambda a, b: a - b,
    "lt": lambda a, b: b - a,
    "le": lambda a, b: b - a,
    "eq": lambda a, b: 0.5 - (a - b).abs(),
    "ne": lambda a, b: (a - b).abs() - 0.5,
}
_JOINED = {
    "and": torch.minimum, "logical_and": torch.minimum, "bitwise_and": torch.minimum,
    "or": torch.maximum, "logical_or": torch.maximum, "bitwise_or": torch.maximum,
}  # fmt: skip
_NEGATED = frozenset(("invert", "logical_not", "bitwise_not"))
_VIEWS = frozenset(
    ("flatten", "reshape", "view", "getitem", "squeeze", "unsqueeze", "transpose", "permute", "expand", "expand_as")
)
_CASTS = frozenset(("float", "double", "half", "to", "type", "long", "int"))
_SUMS = frozenset(("sum", "mean", "mul", "add", "sub", "rsub", "div", "truediv"))
_CHOICES = frozenset(("where", "masked_fill"))
_CUTS = frozenset(("detach", "get"))  # the latter is the attribute `data`
_STEEP = 8.0  # of gates; half and twice that break nearly as much
DECISIONS = frozenset((*_COMPARED, *_JOINED, "all", "any", "prod"))


class Conditions:
    """Scores of the tensors of a pass. It keeps the tensors, so that none gets the place of another in memory.

    run: (function, args, kwargs) -> the output of a function of the pass, as an attack sees it.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self._scores: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def score(self, tensor: Any) -> torch.Tensor | None:
        found = self._scores.get(id(tensor))
        return None if found is None else found[1]

    def follow(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The output of a function of the pass: with a gradient where it is a floating point number that depends on a
        condition; else its score is kept. name: of the function."""
        if not isinstance(output, torch.Tensor) or not any(self._matters(one) for one in _each(args)):
            return output
        is_cut = self._is_cut(name, args, output)
        with torch.enable_grad():
            score = self._cut(name, func, args, kwargs) if is_cut else self._of(name, func, args, kwargs, output)
        if score is None or score.shape != output.shape or not score.requires_grad:
            return output
        if output.is_floating_point() and not is_cut:
            output = output.detach() + (score - score.detach()).nan_to_num(0).to(output.dtype)
        self._scores[id(output)] = (output, score)
        return output

    def _matters(self, one: Any) -> bool:
        return self.score(one) is not None or (isinstance(one, torch.Tensor) and one.requires_grad)

    def _is_cut(self, name: str, args: tuple[Any, ...], output: torch.Tensor) -> bool:
        """Whether the output has no gradient because it is detached, or comes from what is, or of a pass without gradients."""
        if not output.is_floating_point() or output.requires_grad:
            return False
        numbers = [one for one in _each(args) if isinstance(one, torch.Tensor) and one.is_floating_point()]
        if name in _CUTS or not torch.is_grad_enabled():
            return any(map(self._matters, numbers))
        return any(self.score(one) is not None and not one.requires_grad for one in numbers)

    def _cut(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor | None:
        """The numbers of such an output, with a gradient; None where the function works in place, or takes no numbers for
        booleans or whole numbers."""
        if name in _CUTS:
            return self._number(args[0])
        if _is_in_place(func):
            return None
        if name in _CHOICES and len(args) == 3:
            chosen = self._run(func, tuple(one if _is_boolean(one) else self._number(one) for one in args), kwargs)
            by_condition = self._chosen(name, args, chosen)
            return chosen if by_condition is None else by_condition
        try:
            return self._run(func, tuple(map(self._number, args)), kwargs)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            return None

    def _number(self, one: Any) -> Any:
        """The argument itself, or the numbers (with a gradient) that it stands for."""
        if isinstance(one, (list, tuple)):
            return type(one)(self._number(each) for each in one) if type(one) in (list, tuple) else one
        score = self.score(one)
        if score is None or one.requires_grad:
            return one
        if one.is_floating_point():
            return score
        score = _gate(score) if one.dtype == torch.bool else score
        return one.to(score.dtype) + (score - score.detach())

    def _of(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor | None:
        """The score of the output; None where the function is not known."""
        first, is_whole = self.score(args[0]), not output.is_floating_point()
        if name in _CHOICES and len(args) == 3 and not is_whole:
            return None if _is_in_place(func) else self._chosen(name, args, output)
        if name in _COMPARED and len(args) == 2 and is_whole:
            return self._compared(name, args)
        if name in _JOINED and len(args) == 2:
            scores = [score for one in args for score in [self.score(one)] if score is not None]
            return _JOINED[name](*scores) if len(scores) == 2 else scores[0] if scores else None
        if name in _CASTS:
            return self._number(args[0]) if first is not None or (is_whole and args[0].is_floating_point()) else None
        if name in _SUMS:
            return func(*(self._number(one) for one in args), **kwargs) if any(map(self._is_known, args)) else None
        if first is None:
            return None
        if name in _NEGATED:
            return -first
        if name in _VIEWS:
            return func(first, *args[1:], **kwargs)
        if name in ("all", "any", "prod"):
            return _held(first, name != "any", {**dict(zip(("dim", "keepdim"), args[1:], strict=False)), **kwargs})
        return None

    def _chosen(self, name: str, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Of a choice between two numbers by a condition: torch.where(condition, one, other), and methods of one or the other."""
        condition, one, other = args
        if not _is_boolean(condition):
            condition, one, other = (one, condition, other) if name == "where" else (one, other, condition)
        score = self.score(condition)
        if score is None:
            return None
        gate, apart = _gate(score), torch.as_tensor(one).detach() - torch.as_tensor(other).detach()
        return output + (apart * (gate - gate.detach())).nan_to_num(0).to(output.dtype)

    def _is_known(self, one: Any) -> bool:
        return self.score(one) is not None

    def _compared(self, name: str, args: tuple[Any, ...]) -> torch.Tensor:
        """Of a comparison. Where a condition is compared with known booleans, it is the score of the condition or its negative."""
        one, other = args
        if name in ("eq", "ne"):
            for condition, known in ((one, other), (other, one)):
                score = self.score(condition)
                is_known = _is_boolean(known) and not self._is_known(known)
                if score is not None and is_known:
                    return torch.where(known == (name == "eq"), score, -score)
        return _COMPARED[name](*(torch.as_tensor(self._number(each)).float() for each in args))


def _is_boolean(one: Any) -> bool:
    return isinstance(one, torch.Tensor) and one.dtype == torch.bool


def _each(args: tuple[Any, ...]) -> Iterator[Any]:
    """The arguments, and those in lists and tuples."""
    for one in args:
        yield from one if type(one) in (list, tuple) else (one,)


def _gate(score: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, ...)
    """A smooth step from 0 to 1 in place of a condition: the steeper, the smaller the scores of the sample are (our choice).

    Its gradient is large where a condition can change, and nowhere 0. Hard gates of hidden units need both.
    """
    size = score.detach().abs() if score.ndim < 2 else score.detach().flatten(1).square().mean(1).sqrt()
    size = size.reshape(size.shape + (1,) * (score.ndim - size.ndim)).clamp_min(1e-12)
    return torch.atan(_STEEP * score / size) / math.pi


def _is_in_place(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "").split(".")[0]
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def _held(score: torch.Tensor, of_all: bool, given: dict[str, Any]) -> torch.Tensor:
    """Of `all` (or the product) or `any` of conditions: the sum of what is lacking or of what is more than enough, so that each of them has a
    gradient; where nothing is, the smallest or largest one. given: dim and keepdim, if any."""
    sign = 1 if of_all else -1
    lacking = -relu(-sign * score).sum(**given)
    nearest = (sign * score).amin(**given)
    return sign * torch.where(lacking < 0, lacking, nearest)
