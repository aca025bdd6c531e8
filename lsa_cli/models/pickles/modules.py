"""The weights of a network that was pickled whole or scripted, under the names of its state_dict."""

from collections.abc import Iterable, Iterator
from typing import Any

from lsa_cli.errors import CheckpointError
from lsa_cli.models.pickles.symbols import Call, Members, TensorSpec

_DEEPEST = 200
_MOST_ENTRIES = 200_000
_LONGEST_NAME = 1000
_ENDLESS = "the module in the file is nested without end; damaged or hostile"


def tensors_of(root: Any) -> dict[str, TensorSpec]:
    """The weights of a module that was pickled whole or scripted, by their names in its state_dict.

    For an eager module: parameters and persistent buffers. For a TorchScript module: every tensor attribute. Raises
    CheckpointError for a module that is nested without end.
    """
    found: dict[str, TensorSpec] = {}
    _collect(root, "", found, 0, iter(range(_MOST_ENTRIES)))
    return found


def _collect(module: Any, prefix: str, found: dict[str, TensorSpec], depth: int, budget: Iterator[int]) -> None:
    state = module.state if isinstance(module, Call) else None
    if isinstance(state, tuple) and state and isinstance(state[0], dict):
        state = state[0]
    if not isinstance(state, dict):
        return
    if depth > _DEEPEST:
        raise CheckpointError(_ENDLESS)
    groups, children = [state], [state]
    hidden: set[Any] = set()
    if is_module(module):
        groups = [state["_parameters"], state["_buffers"]]
        children = [state["_modules"]]
        listed = state.get("_non_persistent_buffers_set")
        if isinstance(listed, Members):
            hidden = {name for name in _charged(listed.items, budget) if isinstance(name, str)}
    for group in groups:
        for name, value in _charged(_items(group), budget):
            if isinstance(value, TensorSpec) and name not in hidden:
                found[_joined(prefix, name)] = value
    for group in children:
        for name, child in _charged(_items(group), budget):
            if isinstance(child, Call):
                _collect(child, _joined(prefix, name) + ".", found, depth + 1, budget)


def _joined(prefix: str, name: Any) -> str:
    text = str(name)
    if len(prefix) + len(text) > _LONGEST_NAME:
        raise CheckpointError(_ENDLESS)
    return prefix + text


def _charged(items: Iterable[Any], budget: Iterator[int]) -> Iterator[Any]:
    """Count every entry against one budget, because modules can hold each other or themselves."""
    for item in items:
        if next(budget, None) is None:
            raise CheckpointError(_ENDLESS)
        yield item


def _items(mapping: Any) -> Iterable[tuple[Any, Any]]:
    return mapping.items() if isinstance(mapping, dict) else ()


def is_module(symbol: Any) -> bool:
    """Whether a symbol stands for a torch.nn.Module that was pickled whole."""
    state = symbol.state if isinstance(symbol, Call) else None
    return isinstance(state, dict) and all(name in state for name in ("_parameters", "_buffers", "_modules"))
