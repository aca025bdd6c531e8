"""Reads the graph of a network from the operations that torch computes in one forward pass."""

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from lsa_cli.errors import LsaError, summary_of
from lsa_cli.proofs.aten import HANDLERS
from lsa_cli.proofs.builder import AT_END, BATCH, Builder, End, Ref, Shares, kernel_of, refusal
from lsa_cli.proofs.graph import Graph, NotProvable
from lsa_cli.proofs.watching import Watch

Model = Callable[[torch.Tensor], torch.Tensor]
# The largest difference between the network in float32 and its graph in float64, relative to the largest logit.
AGREEMENT = 2.0**-14
LEAST_SHARE = 1e-30  # of a class, that is compared
# Linear operations without negative coefficients: moving, copying, leaving out and averaging.
AVERAGES = {"avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "mean", "sum"}
REARRANGEMENTS = AVERAGES | {
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "slice", "select", "flip",
    "roll", "pixel_shuffle", "pixel_unshuffle", "upsample_nearest2d", "index_select",
}  # fmt: skip
SAME = {"clone", "detach", "alias", "contiguous", "lift_fresh"}
FILLED = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}  # do not depend on the values


def read(model: Model, example: torch.Tensor) -> Graph:
    """The graph of `model`, which maps images (N, ...) to logits (N, K) in eval mode.

    example (N, ...): inputs on which the graph is compared with the network.

    Raises NotProvable, with the name of the operation that has no bound.
    """
    graph = _Reader(_trace(model, example)).graph()
    _compare(graph, model, example)
    return graph


def _trace(model: Model, example: torch.Tensor) -> torch.fx.GraphModule:
    """The operations of one forward pass, without changes in place."""
    x = example[:1].detach().expand(BATCH, *example.shape[1:]).clone()
    read, usual = Watch(), Watch()
    run = functionalize(lambda x: read.run(model, x), remove="mutations_and_views")
    try:
        with torch.no_grad():
            traced = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    except Exception as error:
        _run(model, x, usual)
        raise _unreadable(read.asked or summary_of(error)) from error
    _run(model, x, usual)
    if read.asked:
        raise _unreadable(read.asked)
    if read.calls != usual.calls:
        raise _unreadable("it computes something else while it is read")
    return traced


def _unreadable(why: str) -> NotProvable:
    return NotProvable(
        "the operations of the network cannot be read, because its forward pass depends on values of the input or "
        f"leaves torch ({why})"
    )


def _run(model: Model, x: torch.Tensor, watch: Watch) -> None:
    """An ordinary pass. Raises NotProvable where the network fails on these inputs, whether its operations are read or not."""
    try:
        with torch.no_grad():
            watch.run(model, x)
    except Exception as error:
        raise NotProvable(
            f"the network fails on {len(x)} images, and a proof needs one that takes any number ({summary_of(error)})"
        ) from error


def _compare(graph: Graph, model: Model, example: torch.Tensor) -> None:
    """Raises NotProvable where the differences of logits are not those that the graph computes."""
    floor = math.log(LEAST_SHARE) if graph.gives_shares else -math.inf
    noise = torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    with torch.no_grad():
        for x in (example, example[:1], (example + noise) / 2, noise, example.flip(0)):
            wanted = graph.evaluate(x)
            try:
                found = model(x).double()
                found = found.clamp_min(LEAST_SHARE).log() if graph.gives_shares else found
            except LsaError as error:
                raise NotProvable(f"the network fails on {len(x)} images, and its graph does not: {error}") from error
            tolerance = AGREEMENT * torch.maximum(wanted.abs().amax(), found.abs().amax())
            if found.shape != wanted.shape or not bool(
                ((_shifted(found, floor) - _shifted(wanted, floor)).abs() <= tolerance).all()
            ):
                raise NotProvable(
                    "the network does not return what its operations give in exact arithmetic: it is random, depends "
                    "on the batch, leaves torch, or computes with less precision than float32"
                )


def _shifted(logits: torch.Tensor, floor: float) -> torch.Tensor:
    return (logits - logits.amax(1, keepdim=True)).clamp_min(floor)


class _Reader:
    """Values that do not depend on the input are computed by torch, in the precision of the network."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        traced.graph.eliminate_dead_code()
        self._traced = traced

    def graph(self) -> Graph:
        for node in self._traced.graph.nodes:
            if "attention" in name_of(node.target):
                raise refusal(name_of(node.target), "has no bound")
        values: dict[torch.fx.Node, Any] = {}
        for node in self._traced.graph.nodes:
            if node.op == "placeholder":
                seen = node.meta["val"]
                self._build = Builder(tuple(seen.shape[1:]), seen.device)
                values[node] = self._build.input
            elif node.op == "get_attr":
                values[node] = _constant(operator.attrgetter(node.target)(self._traced))
            elif node.op == "output":
                values[node] = self._build.graph(values[node.args[0]])
            else:
                values[node] = self._read(node, values)
        return values[node]

    def _read(self, node: torch.fx.Node, values: dict[torch.fx.Node, Any]) -> Any:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        name = name_of(node.target)
        if not any(isinstance(item, Ref) for item in _leaves((args, kwargs))):
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise NotProvable(f"the network draws random numbers ({name}) in eval mode")
            return node.target(*args, **kwargs)
        if name == "getitem":
            if args[1] >= len(args[0]):
                raise refusal(name_of(node.args[0].target), "has a second output")
            return args[0][args[1]]
        if name in SAME:
            return args[0]
        if name in FILLED:
            return node.target(
                torch.zeros(BATCH, *self._build.shape(args[0]), device=self._build.device), *args[1:], **kwargs
            )
        ends = [item for item in _leaves((args, kwargs)) if isinstance(item, End)]
        if ends and name not in ("slice", "_to_copy"):
            return self._after_end(name, ends[0], args[1:])
        if name not in HANDLERS and name not in REARRANGEMENTS:
            raise refusal(name, "has no bound")
        out = node.meta.get("val")
        if isinstance(out, torch.Tensor):
            if out.dtype not in (torch.float32, torch.float64):
                raise refusal(name, f"computes with {str(out.dtype).removeprefix('torch.')} numbers")
            if not out.ndim or len(out) != BATCH:
                raise refusal(name, "mixes the samples of a batch")
        if name in REARRANGEMENTS:
            return self._rearranged(node, name, args, kwargs)
        return HANDLERS[name](self._build, *args, **kwargs)

    def _after_end(self, name: str, end: End, others: Sequence[Any]) -> End:
        """The logarithm of the shares, which keeps their order; before it a lower limit that the largest share never meets."""
        if isinstance(end, Shares):
            (classes,) = self._build.shape(end)
            if name == "log":
                return End(end)
            if name == "clamp_min" and isinstance(others[0], float) and others[0] < 0.5 / classes:
                return end
        raise refusal("softmax" if isinstance(end, Shares) else "log_softmax", AT_END)

    def _rearranged(self, node: torch.fx.Node, name: str, args: Any, kwargs: Any) -> Ref:
        """An operation of torch that is linear in its first argument and has no negative coefficients."""
        first, *rest = args
        if any(isinstance(item, Ref) for item in _leaves((rest, kwargs))):
            raise refusal(name, "has sizes that depend on the input")
        target: Any = node.target
        shape = tuple(node.meta["val"].shape[1:])
        if name == "slice" and (not rest or rest[0] == 0):  # all samples: every output has as many as the input
            return first
        if name in ("view", "reshape", "_unsafe_view"):  # the argument holds the size of the batch that was read
            return self._build.rearrange(first, lambda z: z.reshape(-1, *shape))
        if name == "expand":
            return self._build.rearrange(first, lambda z: z.expand(len(z), *shape))
        terms = 0
        if name in AVERAGES:
            terms = math.prod(self._build.shape(first)) // math.prod(shape)
            if name.startswith("avg_pool"):
                terms = math.prod(kernel_of(rest[0], len(shape) - 1))
            elif name.startswith("_adaptive") and any(
                a % b for a, b in zip(self._build.shape(first)[1:], shape[1:], strict=True)
            ):
                raise refusal(name, "has windows of different sizes")
        return self._build.rearrange(first, lambda z: target(z, *rest, **kwargs), terms)


def name_of(target: Any) -> str:
    """aten.view_copy.default -> view."""
    name = getattr(target, "_opname", None) or getattr(target, "__name__", str(target))
    return str(name).removesuffix("_copy") if not str(name).startswith("_to") else str(name)


def module_that_runs(operation: str, network: nn.Module, run: Callable[[], Any]) -> str | None:
    """The name of the first module in which `run()`, a pass through `network`, computes this operation; None where none does.

    It is "" for the code of the network itself.
    """
    inside: list[str] = [""]
    found: list[str] = []

    def leave(*_: Any) -> None:
        inside.pop()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if name_of(function).rstrip("_") == operation.rstrip("_"):
                found.append(inside[-1])
            return function(*args, **(kwargs or {}))

    with ExitStack() as stack:
        for name, module in network.named_modules():
            before = module.register_forward_pre_hook(lambda *_, name=name: inside.append(name))
            for handle in (before, module.register_forward_hook(leave)):
                stack.callback(handle.remove)
        with torch.no_grad(), Watch():
            run()
    return found[0] if found else None


def _leaves(values: Any) -> list[Any]:
    return list(torch.utils._pytree.tree_leaves(values))


def _constant(value: Any) -> Any:
    if isinstance(value, FakeTensor):
        raise NotProvable("the network computes a value outside torch, which has no bound")
    return value.detach() if isinstance(value, torch.Tensor) else value
