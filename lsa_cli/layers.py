"""The layers of a network, and a tap that reads or replaces their outputs while the network runs.

A layer is one call of a module or of an activation function: `relu`, `relu#2` for the second call of the same
module, `layer1.0:relu` for the first relu() that the code of module layer1.0 calls itself, and `:relu#2` for the
second one that the network's own forward calls. In a network that is wrapped (`Wrapper`) layers keep these names.
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
_PLACES = (F, torch, torch.Tensor, torch._C._nn)
_ACTIVATION_CALLS: dict[Any, str] = {
    getattr(place, spelled): name
    for name in _FUNCTIONS
    for place in _PLACES
    for spelled in (name, name + "_")
    if hasattr(place, spelled)
}
_ACTIVATION_WORDS = ("relu", "elu", "gelu", "silu", "swish", "mish", "tanh", "sigmoid", "activation")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """One place in a network where a representation can be seen. shape: of one sample's output."""

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
    """Outputs of activation functions, modules and functional calls alike: the layers of arXiv 2202.02626."""
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
    """A network around another one, which it holds as `network`: users know what is inside by the names it had alone."""

    network: nn.Module


def plain_name(network: nn.Module, path: str) -> str:
    """What users call the module or parameter at `path`: without the places of wrapped networks in their wrappers.

    What a wrapper adds has its own path there, with "outer_" before it where something inside has that name.
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
    """Whether a name inside starts with this part."""
    if not isinstance(network, Wrapper):
        return hasattr(network, first)
    own = (name for name in (*network._modules, *network._parameters) if name != "network")
    return _shows(network.network, first) or any(plain_name(network, name) == first for name in own)


def plain_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its name; a wrapped network is nameless, as the one around it is."""
    for path, module in network.named_modules():
        yield plain_name(network, path), module


# ---- the tap -------------------------------------------------------------------------------------------


class _FunctionalCalls(TorchFunctionMode):
    """Sees the activation functions that a module's code calls itself: their outputs, or what they are given."""

    def __init__(self, seen: Callable[[str, Any], Any], inputs: bool) -> None:
        super().__init__()
        self._seen, self._inputs = seen, inputs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _ACTIVATION_CALLS.get(func)
        if name is not None and self._inputs and args:
            args = (self._replaced(func, name, args[0]), *args[1:])
        output = func(*args, **(kwargs or {}))
        return output if name is None or self._inputs else self._seen(name, output)

    def _replaced(self, func: Any, name: str, tensor: Any) -> Any:
        found = self._seen(name, tensor)
        if found is not tensor and getattr(func, "__name__", "").endswith("_"):
            return tensor.copy_(found)  # in place: whoever called may go on with its own tensor
        return found


class _Calls:
    """The calls of one forward pass under `tap`, numbered; those that are wanted are shown to `visit`."""

    def __init__(self, visit: Visit, wanted: set[str] | None, inputs: bool) -> None:
        self.visit, self.wanted, self.inputs = visit, wanted, inputs
        self.with_functional = wanted is None or any(":" in name for name in wanted)
        self.counts: Counter[str] = Counter()
        self.inside: list[tuple[str, nn.Module]] = []  # the modules that run now, outermost first

    def may_want(self, path: str) -> bool:
        """Whether a call of the module at `path` may be wanted."""
        if self.wanted is None or self.with_functional:
            return True
        return any(name.partition("#")[0] == path for name in self.wanted)

    def begin(self, module: nn.Module, args: Any) -> None:
        self.counts.clear()
        self.inside.clear()

    def enter(self, path: str, module: nn.Module, args: Any) -> None:
        self.inside.append((path, module))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside.pop()

    def before(self, path: str, module: nn.Module, args: Any) -> Any:
        return (self.meet(path, args[0]), *args[1:]) if args else args

    def after(self, path: str, module: nn.Module, args: Any, output: Any) -> Any:
        return self.meet(path, output)

    def functional(self, function: str, output: Any) -> Any:
        if self.inside and _is_activation(self.inside[-1][1]):
            return output  # the module around it is the layer
        return self.meet(f"{self.inside[-1][0] if self.inside else ''}:{function}", output)

    def meet(self, name: str, output: Any) -> Any:
        """Show one call to `visit` if it is wanted; returns the output, or what replaces it."""
        self.counts[name] += 1
        numbered = name if self.counts[name] == 1 else f"{name}#{self.counts[name]}"
        if self.wanted is not None and numbered not in self.wanted:
            return output
        tensor = first_tensor(output)
        replacement = None if tensor is None else self.visit(numbered, tensor)
        if replacement is None:
            return output
        if tensor is not output:
            what = "input" if self.inputs else "output"
            raise LayerError(f"the {what} of {numbered} is no plain tensor and cannot be replaced")
        return replacement


@contextmanager
def tap(network: nn.Module, names: Collection[str] | None, visit: Visit, *, inputs: bool = False) -> Iterator[None]:
    """A context in which visit(name, output) is called each time a layer of `names` (None: every layer) runs.

    A tensor that it returns replaces the output. Nothing is stored: an in-place operation that follows cannot change
    what was seen. inputs: visit(name, input) is called before the layer runs, and a tensor that it returns replaces the
    first argument. All hooks are removed at the end, also after an error.
    """
    calls = _Calls(visit, None if names is None else set(names), inputs)
    with ExitStack() as stack:
        for path, module in plain_modules(network):
            if module is network:
                stack.callback(module.register_forward_pre_hook(calls.begin).remove)
            if calls.with_functional:
                stack.callback(module.register_forward_pre_hook(partial(calls.enter, path)).remove)
                stack.callback(module.register_forward_hook(calls.leave).remove)
            if path and calls.may_want(path):
                if inputs:
                    hook = module.register_forward_pre_hook(partial(calls.before, path))
                else:
                    hook = module.register_forward_hook(partial(calls.after, path))
                stack.callback(hook.remove)
        if calls.with_functional:
            stack.enter_context(_FunctionalCalls(calls.functional, inputs))
        yield


# ---- which layers there are ----------------------------------------------------------------------------


def _is_activation(module: nn.Module | None) -> bool:
    if module is None or any(True for _ in module.children()):
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
    leaf = not any(True for _ in module.children())
    return leaf and not _is_activation(module) and any(p.ndim >= 2 for p in module.parameters(recurse=False))


def _block_paths(network: nn.Module) -> set[str]:
    """Composite modules that networks are made of: outermost first, those whose class recurs before others."""
    composite = {
        path: module
        for path, module in plain_modules(network)
        if path and any(True for _ in module.children()) and type(module) not in _CONTAINERS
    }
    frequency = Counter(type(module) for module in composite.values())
    chosen: set[str] = set()
    for path, module in composite.items():  # parents come before children
        if any(path.startswith(parent + ".") for parent in chosen):
            continue
        holds_recurring = any(frequency[type(composite[p])] > 1 for p in composite if p.startswith(path + "."))
        if frequency[type(module)] > 1 or not holds_recurring:
            chosen.add(path)
    return chosen


def find_layers(network: nn.Module, run: Callable[[], Any], count: int) -> list[Layer]:
    """Every layer that `run()`, one forward pass of `count` samples through `network`, visits, in order.

    run returns the network's output, by which the output layer is told: it has the output's shape (sizes of 1
    aside) and no layer with weights runs after it.
    """
    modules = dict(plain_modules(network))
    block_paths = _block_paths(network)
    found: list[Layer] = []

    def note(name: str, output: torch.Tensor) -> None:
        if output.ndim == 0 or output.shape[0] != count:
            return  # not one row a sample: cannot be compared per sample
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

    A spec is a selector (activations, learnable, blocks: hidden layers only), a layer's name, or a glob over
    names (hidden layers only). Raises LayerError, with what the network has, for a spec that selects nothing.
    """
    chosen: set[str] = set()
    for spec in specs:
        if spec in SELECTORS:
            rule = SELECTORS.get(spec)
            names = {layer.name for layer in layers if rule(layer) and not layer.is_output}
        else:
            names = {layer.name for layer in layers if layer.name == spec} or {
                layer.name for layer in layers if fnmatch.fnmatchcase(layer.name, spec) and not layer.is_output
            }
        if not names:
            raise LayerError(_nothing(spec, layers))
        chosen |= names
    return [layer for layer in layers if layer.name in chosen]


def _nothing(spec: str, layers: Sequence[Layer]) -> str:
    hidden = [layer for layer in layers if not layer.is_output]
    if spec in SELECTORS.names():
        has = [f"{n} {w}" for w in SELECTORS.names() if (n := sum(SELECTORS.get(w)(layer) for layer in hidden))]
        names = ", ".join(layer.name for layer in hidden[:12])
        return f"this network has no hidden {spec}; it has {', '.join(has) or 'none of the kinds'}, and layers {names}"
    names_and_selectors = [*SELECTORS.names(), *(layer.name for layer in hidden)]
    message = unknown("layer", spec, names_and_selectors[:15])
    more = len(names_and_selectors) - 15
    return message + (f" and {more} more (see `lsa layers`)" if more > 0 else "")
