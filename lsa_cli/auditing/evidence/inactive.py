"""An attack on parts of the network that no image makes active: a dead unit, a saturated one, the other side of a comparison.

No gradient leads there, and a network can keep a part there that decides once an image within the budget makes it active.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lsa_cli.attacks.base import Model
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.attacks.search import Search
from lsa_cli.auditing.evidence.conditions import DECISIONS, Conditions
from lsa_cli.auditing.evidence.guided import Guided, increase

# fmt: off
_FLAT = frozenset((  # functions of one input with a zero slope somewhere
    "relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "leaky_relu", "softplus", "hardswish", "hardsigmoid", "hardtanh",
    "hardshrink", "softshrink", "threshold", "tanh", "sigmoid", "clamp", "clip", "clamp_min", "clamp_max", "round", "floor",
    "ceil", "trunc", "sign",
))
# fmt: on
_CHOICES = {"maximum": (0, 1), "minimum": (0, 1), "where": (1, 2)}  # and the places of what they choose from
_LARGEST = frozenset(("argmax", "max", "topk", "sort", "argsort", "softmax", "log_softmax"))
_SMALLEST = frozenset(("argmin", "min", "softmin"))
_FIRST = 1e6  # the weight of a comparison, relative to its distance, beside the cross-entropy
_BEYOND = 0.02  # of the distance of the image, by which a comparison is to be on the other side
_STEPS = 40  # where there are comparisons or choices; their length falls from
_LONGEST, _SHORTEST = 0.25, 0.01  # of eps


def _carrying(output: torch.Tensor, *inputs: Any) -> torch.Tensor:
    """The output, with a gradient that also passes unchanged to each of the inputs that has its shape."""
    for one in inputs:
        if isinstance(one, torch.Tensor) and one.requires_grad and one.shape == output.shape:
            output = output + (one - one.detach()).nan_to_num(0).to(output.dtype)
    return output


class _Passing(TorchFunctionMode):
    """Gradients pass flat functions and branches. compared: the difference (N,) of each comparison of one number each.
    chosen: where one of R numbers of each sample is the largest or smallest, the lead (N, R) of each number over the others.
    asks: whether the code of the network asks for the outcome of a condition."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.conditions = Conditions(lambda func, args, kwargs: self.__torch_function__(func, (), args, kwargs))
        self.compared: list[torch.Tensor] = []
        self.chosen: list[torch.Tensor] = []
        self.asks = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").split(".")[0].strip("_")
        if name in _FLAT and args and isinstance(args[0], torch.Tensor) and args[0].requires_grad:
            given = args[0].clone()  # the function may work in place
            output = func(*args, **kwargs)
            return _carrying(output, given) if isinstance(output, torch.Tensor) else output
        output = self.conditions.follow(name, func, args, kwargs, func(*args, **kwargs))
        if name in _CHOICES and isinstance(output, torch.Tensor) and output.is_floating_point():
            return _carrying(output, *(args[place] for place in _CHOICES[name] if place < len(args)))
        self.asks |= isinstance(output, bool) and bool(args) and self.conditions.score(args[0]) is not None
        condition = self.conditions.score(output)
        if condition is not None and name in DECISIONS and output.numel() == self.count:
            self.compared.append(condition.flatten())
        is_of_one = len(args) == 1 or (len(args) > 1 and not isinstance(args[1], torch.Tensor))
        if is_of_one and (name in _LARGEST or name in _SMALLEST):
            self._choose(args[0], name in _SMALLEST)
        return output

    def _choose(self, scores: Any, is_smallest: bool) -> None:
        """Note a choice by scores (N, R): the lead of each over the best other one."""
        is_choice = isinstance(scores, torch.Tensor) and scores.requires_grad and scores.ndim == 2
        if is_choice and len(scores) == self.count and scores.shape[1] > 1:
            scores = -scores if is_smallest else scores
            (first, second), top = scores.topk(2, 1).values.split(1, 1), scores.detach().argmax(1, keepdim=True)
            is_top = torch.arange(scores.shape[1], device=scores.device) == top
            self.chosen.append(scores - torch.where(is_top, second, first))


def _passed(model: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits (N, K), the differences (N, C) of the comparisons of one number for each sample, and the leads (N, R) of what
    is chosen from."""
    with _Passing(len(x)) as passing:
        logits = model(x)
    if passing.asks and len(x) > 1:  # for each sample by itself
        rows = [_passed(model, one) for one in x.split(1)]
        fewest = [min(part.shape[1] for part in parts) for parts in zip(*rows, strict=True)]
        logits, compared, chosen = (
            torch.cat([part[:, :few] for part in parts])
            for parts, few in zip(zip(*rows, strict=True), fewest, strict=True)
        )
        return logits, compared, chosen
    nothing = logits.new_zeros(len(x), 0)
    compared = torch.stack(passing.compared, 1) if passing.compared else nothing
    return logits, compared, torch.cat([nothing, *passing.chosen], 1)


def _asks(model: Model, x: torch.Tensor) -> bool:
    """Whether the code of the network asks for the outcome of a condition in a pass."""
    with _Passing(len(x)) as passing:
        model(x.detach().clone().requires_grad_())
    return passing.asks


@dataclass(frozen=True)
class ThroughInactive(Guided):
    """On the cross-entropy, with a gradient that also passes inactive and saturated units and the branch that is not chosen.

    First each comparison of one number for each sample, which has the same outcome for all samples here, is brought to the
    other side, and where one of several numbers is the largest or smallest, it is to be another one. Forward passes are those
    of the network itself. Where there is any of these, the attack takes more steps, and they shrink. The extra slope of 1 and
    the steps are our choice.
    """

    steps: int = 12

    def aims(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The label, and the differences and leads at the sample: (N, 1 + C + R), 0 for those that are left out."""
        with torch.enable_grad():
            _, compared, chosen = (part.detach() for part in _passed(model, x.detach().clone().requires_grad_()))
        same = (compared > 0).all(0) | (compared <= 0).all(0)
        return torch.cat([y[:, None].to(compared), compared * same, chosen.clamp_min(0)], 1)

    def _run(self, model: Model, search: Search) -> None:
        aims = self.aims(model, search.x, search.y)
        if bool((aims[:, 1:] != 0).any()):
            steps = self.steps if _asks(model, search.x[:1]) else _STEPS  # then each sample takes passes of its own
            increase(model, search, steps, self.loss, aims, (_LONGEST, _SHORTEST))
        else:
            increase(model, search, self.steps, self.loss, aims)

    def loss(self, network: Model, x: torch.Tensor, aims: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, compared, chosen = _passed(network, x)
        found = cross_entropy(logits, aims[:, 0].long())
        at_first, now = aims[:, 1:], torch.cat([compared, chosen], 1)
        if now.shape == at_first.shape:  # else the network takes another way
            distance = now / at_first.abs().clamp_min(1e-12) * at_first.sign()  # 1 at the sample, below 0 beyond
            found = found - _FIRST * (distance + _BEYOND).clamp_min(0).sum(1)
        return found, logits.detach()
