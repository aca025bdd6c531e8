"""Remove wrappers of a network that change where it runs and not what it computes."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _LazyConvXdMixin
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim.swa_utils import AveragedModel

from lsa_cli.errors import CheckpointError

_HOLDERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)  # each holds the network as `module`


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, AveragedModel and what torch.compile returns."""
    while True:
        if isinstance(network, _HOLDERS) and type(network).forward in [holder.forward for holder in _HOLDERS]:
            network = network.module
        elif _is_compiled(network):
            network = network._orig_mod
        else:
            return network


def unwrap_parts(network: nn.Module) -> nn.Module:
    """The network without wrappers around it or around any part of it. Parts are replaced in place."""
    network = unwrapped(network)
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            inner = unwrapped(part)
            if inner is not part:
                setattr(module, name, inner)
    return network


def _is_compiled(network: nn.Module) -> bool:
    return type(network).__name__ == "OptimizedModule" and isinstance(getattr(network, "_orig_mod", None), nn.Module)


def is_script(network: nn.Module) -> bool:
    """Whether the network is a TorchScript program: hooks do not see what runs inside."""
    return isinstance(network, torch.jit.ScriptModule)


@contextmanager
def eager() -> Iterator[None]:
    """A context in which compiled parts of a network run uncompiled, so that hooks inside them are called."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def copy_network(network: nn.Module, share_weights: bool = False) -> nn.Module:
    """A deep copy, also of a network that keeps tensors of its last forward pass. share_weights: its parameters are the same."""
    memo: dict[int, Any] = {id(one): one for one in network.parameters()} if share_weights else {}
    for module in network.modules():
        for value in vars(module).values():
            items = (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            )
            kept = [item for item in items if isinstance(item, torch.Tensor) and not item.is_leaf]
            memo.update((id(item), item.detach().clone()) for item in kept)
    return copy.deepcopy(network, memo)


def unasked_copy(network: nn.Module) -> nn.Module | None:
    """A copy with the same weights, for later comparison with the network; None where its own code does not allow a copy."""
    try:
        return copy_network(network, share_weights=True)
    except Exception:  # of any kind: user's code runs
        return None


def finish_lazy_layers(network: nn.Module) -> None:
    """Turn lazy layers whose weights have sizes into plain ones, as a first forward pass does: LazyLinear into Linear.

    Raises CheckpointError for a weight whose other sizes are not those of the layer.
    """
    for name, module in network.named_modules():
        if not isinstance(module, LazyModuleMixin) or module.has_uninitialized_params():
            continue
        sizes = {key: tuple(item.shape) for key, item in module.state_dict().items() if item.ndim}
        wanted = _sizes_of_lazy(module, sizes)
        wrong = next((key for key, size in sizes.items() if wanted.get(key, size) != size), None)
        if wrong is not None:
            raise CheckpointError(
                f"the network has lazy layers, and {name or type(module).__name__} cannot have a {wrong} of {sizes[wrong]}"
            )
        module._infer_parameters(module, (None,))


def _sizes_of_lazy(module: Any, sizes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The sizes that the tensors of a lazy layer must have. Sets the sizes of the layer that its weights decide."""
    weight = (*sizes.get("weight", ()), 0, 0)
    if isinstance(module, nn.LazyLinear):
        module.in_features = weight[1]
        return {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    if isinstance(module, _LazyConvXdMixin):
        module.in_channels = weight[0] if module.transposed else weight[1] * module.groups
        channels = [module.out_channels, module.in_channels]
        first, second = reversed(channels) if module.transposed else channels
        return {"weight": (first, second // module.groups, *module.kernel_size), "bias": (module.out_channels,)}
    if hasattr(module, "num_features") and sizes:
        module.num_features = next(iter(sizes.values()))[0]
        return dict.fromkeys(sizes, (module.num_features,))
    return {}
