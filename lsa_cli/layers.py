"""The layers of a network, and a tap that reads or replaces their outputs during a forward pass.

A layer is one call of a module or of an activation function: `relu`, `relu#2` for the second call of the same module,
`layer1.0:relu` for the first call of relu() in the code of module layer1.0, and `:relu#2` for the second one in the
network's own forward(). Layers keep these names inside a `Wrapper`.
"""

import fnmatch
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lsa_cli.errors import LayerError
from lsa_cli.registry import Registry, unknown

Visit = Callable[[str, torch.Tensor], torch.Tensor | None]

# fmt: off
_FUNCTIONS = (
    "relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "leaky_relu", "prelu",
    "rrelu", "softplus", "softsign", "logsigmoid", "hardswish", "hardsigmoid", "hardtanh", "hardshrink", "softshrink",
    "tanhshrink", "threshold", "glu", "tanh", "sigmoid",
)
# fmt: on
_PLACES = (F, torch, torch.Tensor, torch._C._nn, torch.ops.aten)  # the last: in programs of torch.export
_ACTIVATION_CALLS: dict[Any, str] = {
    getattr(found, "default", found): name
    for name in _FUNCTIONS
    for place in _PLACES
    for spelled in (name, name + "_")
    if (found := getattr(place, spelled, None)) is not None
}
_ACTIVATION_WORDS = ("relu", "elu", "gelu", "silu", "swish", "mish", "tanh", "sigmoid", "activation")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """One call whose output can be observed. shape: of the output for one sample."""

    name: str
    kind: str
    shape: tuple[int, ...]
    module: nn.Module | None = None
    is_activation: bool = False
    is_learnable: bool = False
    is_block: bool = False
    is_output: bool = False


SELECTORS: Registry[Callable[[Layer], bool]] = Registry("layer selector")


@SELECTORS.register("activations")
def activations(layer: Layer) -> bool:
    """Outputs of activation functions, as modules or functional calls: the layers of arXiv 2202.02626."""
    return layer.is_activation


@SELECTORS.register("learnable")
def learnable(layer: Layer) -> bool:
    """Outputs of layers with weights (convolutions, linear layers, attention), before normalisation and activation."""
    return layer.is_learnable


@SELECTORS.register("blocks")
def blocks(layer: Layer) -> bool:
    """Outputs of building blocks: residual blocks, transformer blocks, inception modules."""
    return layer.is_block


def first_tensor(output: Any) -> torch.Tensor | None:
    """The tensor in a layer's output: itself, or the first one in a tuple, list or dict."""
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next((found for item in output if (found := first_tensor(item)) is not None), None)
    return None


# ---- names ----------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """A network around another one, `network`, whose modules keep the names that they have without the wrapper."""

    network: nn.Module


def plain_name(network: nn.Module, path: str) -> str:
    """The name that users see for the module or parameter at `path`: the path in the wrapped network.

    What a wrapper adds keeps its path in the wrapper, with "outer_" before it if the wrapped network has that name too.
    """
    if not isinstance(network, Wrapper):
        return path
    first, dot, rest = path.partition(".")
    if first == "network":
        return plain_name(network.network, rest)
    while _shows(network.network, first):
        first = f"outer_{first}"
    return first + dot + rest


def _shows(network: nn.Module, first: str) -> bool:
    """Whether a name in the network starts with this part."""
    if not isinstance(network, Wrapper):
        return hasattr(network, first)
    own = (name for name in (*network._modules, *network._parameters) if name != "network")
    return _shows(network.network, first) or any(plain_name(network, name) == first for name in own)


def plain_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its name, which is "" for the network and for a wrapped one."""
    for path, module in network.named_modules():
        yield plain_name(network, path), module


# ---- the tap -------------------------------------------------------------------------------------------


class _Calls(TorchFunctionMode):
    """The numbered calls of one forward pass under `tap`; wanted ones (None: all) are shown to `visit`.

    Hooks report the calls of modules. Those of activation functions are seen where the mode is entered.
    """

    def __init__(self, visit: Visit, wanted: Collection[str] | None, inputs: bool) -> None:
        super().__init__()
        self.visit, self.wanted, self.inputs = visit, wanted, inputs
        self.counts: Counter[str] = Counter()
        self.inside: list[tuple[str, nn.Module]] = []  # the modules that run now, outermost first

    def begin(self, module: nn.Module, args: Any) -> None:
        self.counts.clear()
        self.inside.clear()

    def enter(self, path: str, module: nn.Module, args: Any) -> None:
        self.inside.append((path, module))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside.pop()

    def before(self, path: str, module: nn.Module, args: Any) -> Any:
        return (self.show(path, args[0]), *args[1:]) if args else args

    def after(self, path: str, module: nn.Module, args: Any, output: Any) -> Any:
        return self.show(path, output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function, kwargs = _ACTIVATION_CALLS.get(func), kwargs or {}
        path, module = self.inside[-1] if self.inside else ("", None)
        if function is None or _is_activation(module):  # in an activation module, the module is the layer
            return func(*args, **kwargs)
        name = f"{path}:{function}"
        if not self.inputs:
            return self.show(name, func(*args, **kwargs))
        if args:
            found = self.show(name, args[0])
            if found is not args[0] and getattr(func, "__name__", "").endswith("_"):
                found = args[0].copy_(found)  # in place, since the caller may continue with its own tensor
            args = (found, *args[1:])
        return func(*args, **kwargs)

    def show(self, name: str, value: Any) -> Any:
        """Show one call to `visit` if it is wanted; returns the output (or input), or what replaces it."""
        self.counts[name] += 1
        numbered = name if self.counts[name] == 1 else f"{name}#{self.counts[name]}"
        if self.wanted is not None and numbered not in self.wanted:
            return value
        tensor = first_tensor(value)
        replacement = None if tensor is None else self.visit(numbered, tensor)
        if replacement is None:
            return value
        if tensor is not value:
            what = "input" if self.inputs else "output"
            raise LayerError(f"the {what} of {numbered} is not a single tensor and cannot be replaced")
        return replacement


@contextmanager
def tap(network: nn.Module, names: Collection[str] | None, visit: Visit, *, inputs: bool = False) -> Iterator[None]:
    """A context in which visit(name, output) is called each time a layer of `names` (None: every layer) runs.

    A tensor that it returns replaces the output. Later in-place operations do not change what was seen, as nothing is
    stored. inputs: visit(name, input) is called before the layer runs, and a tensor that it returns replaces the first
    argument. All hooks are removed at the end, also after an error.
    """
    wanted = None if names is None else set(names)
    paths = None if wanted is None else {name.partition("#")[0] for name in wanted}
    with_functional = paths is None or any(":" in path for path in paths)
    calls = _Calls(visit, wanted, inputs)
    with ExitStack() as stack:
        for path, module in plain_modules(network):
            handles = []
            if module is network:
                handles.append(module.register_forward_pre_hook(calls.begin))
            if with_functional:
                handles.append(module.register_forward_pre_hook(partial(calls.enter, path)))
                handles.append(module.register_forward_hook(calls.leave))
            if path and (paths is None or path in paths):
                if inputs:
                    handles.append(module.register_forward_pre_hook(partial(calls.before, path)))
                else:
                    handles.append(module.register_forward_hook(partial(calls.after, path)))
            for handle in handles:
                stack.callback(handle.remove)
        if with_functional:
            stack.enter_context(calls)
        yield


# ---- which layers there are ----------------------------------------------------------------------------


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _is_activation(module: nn.Module | None) -> bool:
    if module is None or not _is_leaf(module):
        return False
    name = type(module).__name__.lower()
    if type(module).__module__ == "torch.nn.modules.activation":
        return "softmax" not in name and "attention" not in name and "softmin" not in name
    return any(word in name for word in _ACTIVATION_WORDS)


def _is_learnable(module: nn.Module | None) -> bool:
    if module is None or "norm" in type(module).__name__.lower():
        return False
    if isinstance(module, nn.MultiheadAttention):
        return True
    has_weights = any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))
    return has_weights and _is_leaf(module) and not _is_activation(module)


def _block_paths(network: nn.Module) -> set[str]:
    """The building blocks: outermost modules with children whose class recurs, or that hold no such module."""
    composite = {
        path: module
        for path, module in plain_modules(network)
        if path and not _is_leaf(module) and type(module) not in _CONTAINERS
    }
    frequency = Counter(type(module) for module in composite.values())
    chosen: set[str] = set()
    for path, module in composite.items():  # parents come before children
        if any(path.startswith(parent + ".") for parent in chosen):
            continue
        inner = [composite[other] for other in composite if other.startswith(path + ".")]
        holds_recurring = any(frequency[type(each)] > 1 for each in inner)
        if frequency[type(module)] > 1 or not holds_recurring:
            chosen.add(path)
    return chosen


def find_layers(network: nn.Module, run: Callable[[], Any], count: int) -> list[Layer]:
    """Every layer that `run()`, one forward pass of `count` samples through `network`, visits, in order.

    run returns the output of the network. The output layers have its shape, apart from sizes of 1, and no layer with
    weights runs after them.
    """
    modules = dict(plain_modules(network))
    block_paths = _block_paths(network)
    found: list[Layer] = []

    def note(name: str, output: torch.Tensor) -> None:
        if output.ndim == 0 or output.shape[0] != count:
            return  # not one row for each sample
        path, colon, function = name.partition("#")[0].partition(":")
        module = None if colon else modules[path]
        found.append(
            Layer(
                name=name,
                kind=function if colon else type(module).__name__,
                shape=tuple(output.shape[1:]),
                module=module,
                is_activation=bool(colon) or _is_activation(module),
                is_learnable=_is_learnable(module),
                is_block=not colon and path in block_paths,
            )
        )

    with torch.no_grad(), tap(network, None, note):
        output = first_tensor(getattr(result := run(), "logits", result))
    shape = None if output is None else _without_ones(output.shape[1:])
    last_weights = max((i for i, layer in enumerate(found) if layer.is_learnable), default=len(found))
    return [
        replace(layer, is_output=position >= last_weights and _without_ones(layer.shape) == shape)
        for position, layer in enumerate(found)
    ]


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def select_layers(layers: Sequence[Layer], specs: Iterable[str]) -> list[Layer]:
    """The layers that the specs name, in the order in which they run, each once.

    A spec is the name of a layer, or, for hidden layers, a selector (activations, learnable, blocks) or a glob over names.
    Raises LayerError for a spec that selects nothing, with what the network has.
    """
    hidden = [layer for layer in layers if not layer.is_output]
    chosen: set[str] = set()
    for spec in specs:
        if spec in SELECTORS:
            rule = SELECTORS.get(spec)
            names = {layer.name for layer in hidden if rule(layer)}
        else:
            names = {layer.name for layer in layers if layer.name == spec} or {
                layer.name for layer in hidden if fnmatch.fnmatchcase(layer.name, spec)
            }
        if not names:
            raise LayerError(_nothing(spec, hidden))
        chosen |= names
    return [layer for layer in layers if layer.name in chosen]


def default_selector(layers: Sequence[Layer] | None) -> tuple[str, str]:
    """What is scanned where nothing is chosen, and why it is not the usual choice; "" where it is.

    The layers of arXiv 2202.02626 are activations. A network without hidden ones has its layers with weights taken, and one
    without these none (our choice). layers: None where the network shows none.
    """
    if layers is None:
        why = (
            "no layer is scanned, as this network shows none; --arch with the network as Python code shows them, and so does an "
            "export of torch.export or ONNX for batches of any size"
        )
        return "none", why
    hidden = [layer for layer in layers if not layer.is_output]
    if any(map(activations, hidden)):
        return "activations", ""
    absent = "this network calls no activation function that is known before its output"
    if any(map(learnable, hidden)):
        return "learnable", f"{absent}, so its hidden layers with weights are scanned, as with --layers learnable"
    return "none", f"{absent}, and has no hidden layer with weights as a module of its own, so no layer is scanned"


def _nothing(spec: str, hidden: Sequence[Layer]) -> str:
    names = [layer.name for layer in hidden]
    if not names:
        return f"this network has no layer '{spec}', as no module runs before its output; --layers none audits it without a scan"
    if spec in SELECTORS.names():
        counts = {kind: sum(map(SELECTORS.get(kind), hidden)) for kind in SELECTORS.names()}
        has = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "none of the other kinds"
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        return (
            f"this network has no hidden {spec}; it has {has}, and its hidden layers are {', '.join(names[:12])}{more}"
        )
    known = [*SELECTORS.names(), *names]
    more = f" and {len(known) - 15} more (see `lsa layers`)" if len(known) > 15 else ""
    return unknown("layer", spec, known[:15]) + more
