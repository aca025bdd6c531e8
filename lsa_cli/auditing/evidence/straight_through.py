"""An attack past jumps and ripples: BPDA (arXiv 1802.00420) with the slope that such functions have on average.

A rounded layer has no slope, and neither has what a comparison chooses by, as a mask on pixels. A layer with ripples of steep
slopes and small height, as x + 0.1 sin(300 x), has a slope that leads nowhere. Each hides from gradients how near the other
classes are.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lsa_cli.attacks.base import Model
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.attacks.search import Search
from lsa_cli.auditing.evidence.conditions import Conditions
from lsa_cli.auditing.evidence.guided import Guided, increase

_STEPPED = frozenset(("round", "floor", "ceil", "trunc", "sign"))
_PERIODIC = frozenset(("sin", "cos", "frac", "remainder", "fmod"))
_BLUR = 0.1  # of the spread of the arguments of a periodic function
_RIPPLES = 0.5  # a periodic function has ripples where less of its slope is left
_LONGEST, _SHORTEST = 0.25, 0.01  # steps, in eps


def _slope_left(turns: torch.Tensor) -> torch.Tensor:
    """The slope of the mean of a periodic function over a Gaussian, relative to its own slope; turns: its arguments in periods.

    The standard deviation is _BLUR times that of all arguments. For a sine and a Gaussian of s radians it is exp(-s^2 / 2); the
    same factor for other functions is our choice. Ripples of many periods have no slope on average.
    """
    return torch.exp(-0.5 * (2 * math.pi * _BLUR * turns.float()).std(correction=0) ** 2).nan_to_num(1)


class _OnAverage(TorchFunctionMode):
    """Gradients pass with the average slope: 1 for rounding, and for comparisons that of a smooth step, see `Conditions`.

    replaced: whether a slope was replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replaced = False
        self.conditions = Conditions(lambda func, args, kwargs: self.__torch_function__(func, (), args, kwargs))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").split(".")[0].strip("_")
        given = args[0] if args else None
        if not isinstance(given, torch.Tensor) or not given.requires_grad or name not in _STEPPED | _PERIODIC:
            return self._follow(func, name, args, kwargs)
        if name in _STEPPED:
            self.replaced = True
            given = given.clone()  # the function may work in place
            return func(*args, **kwargs).detach() + (given - given.detach())
        period = 2 * math.pi if name in ("sin", "cos") else args[1] if len(args) > 1 else 1.0
        left = _slope_left((given / period).detach())
        self.replaced |= bool(left < _RIPPLES)
        output = func(*args, **kwargs)
        return output.detach() + left.to(output.dtype) * (output - output.detach())

    def _follow(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Of other functions: those of what a comparison gave get a slope."""
        given = func(*args, **kwargs)
        output = self.conditions.follow(name, func, args, kwargs, given)
        self.replaced |= output is not given
        return output


def has_jumps_or_ripples(model: Model, x: torch.Tensor) -> bool:
    """Whether the network rounds or compares what depends on x (N, ...), or has ripples there."""
    with torch.enable_grad(), _OnAverage() as average:
        model(x.detach().clone().requires_grad_())
    return average.replaced


@dataclass(frozen=True)
class StraightThrough(Guided):
    """On the cross-entropy, past jumps and ripples. Forward passes are those of the network itself."""

    steps: int = 40

    def _run(self, model: Model, search: Search) -> None:
        increase(model, search, self.steps, self.loss, search.y, (_LONGEST, _SHORTEST))

    def loss(self, network: Model, x: torch.Tensor, aims: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with _OnAverage():
            logits = network(x)
        return cross_entropy(logits, aims), logits.detach()
