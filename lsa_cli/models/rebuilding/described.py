"""A network that was put together again, as plain values in a file, and built from them: nothing of a file runs.

The names `lsa:chain` and `lsa:transformer` stand for them, with the argument `parts`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from lsa_cli.models.rebuilding.attention import LayerParts, TransformerParts
from lsa_cli.models.rebuilding.chain import OWN, Part, Sum, build
from lsa_cli.models.rebuilding.variants import ACTIVATIONS

_KINDS = {
    "Conv2d", "Linear", "BatchNorm1d", "BatchNorm2d", "GroupNorm", "LayerNorm", "PReLU", "MaxPool2d", "AvgPool2d",
    "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "Flatten", *(kind for kind, _, _ in ACTIVATIONS.values()),
}  # fmt: skip
_LARGEST = 10**6  # number among the arguments of a part
_MOST = 10_000  # parts

Plain = dict[str, Any]


def described(parts: Sequence[Part | Sum] | TransformerParts) -> tuple[str, Plain]:
    """The name of the network and its arguments, as plain values."""
    if not isinstance(parts, TransformerParts):
        return "lsa:chain", {"parts": [_plain(part) for part in parts]}
    rest = [_plain(part) for part in parts.rest]
    whole = {"patches": [_plain(part) for part in parts.patches], "token": _listed(parts.token), "rest": rest}
    return "lsa:transformer", {"parts": {**whole, "positions": _listed(parts.positions)}}


def _plain(part: Part | Sum | LayerParts) -> Plain:
    several: dict[str, Sequence[Part]]
    if isinstance(part, Part):
        options = {name: _listed(value) for name, value in part.options}
        return {"name": part.name, "kind": part.kind, "arguments": _listed(part.arguments), "options": options,
                "has_weights": part.has_weights}  # fmt: skip
    if isinstance(part, Sum):
        several = {"shared": part.shared, "main": part.main, "side": part.side, "gate": part.gate}
        join = {} if part.join == "sum" else {"join": part.join}
        return {"name": part.name, **{name: [_plain(one) for one in group] for name, group in several.items()}, **join}
    several = {"norms": part.norms, "attention": part.attention, "perceptron": part.perceptron}
    inside = {name: [_plain(one) for one in group] for name, group in several.items()}
    return {"name": part.name, **inside, "norm_first": part.norm_first}


def _listed(value: Any) -> Any:
    return [_listed(one) for one in value] if isinstance(value, (list, tuple)) else value


def chain(parts: Any = ()) -> nn.Module:
    """A chain of layers and residual blocks, as `described` writes it."""
    return build([_read(one) for one in _items(parts)])


def transformer(parts: Any = None) -> nn.Module:
    """A vision transformer, as `described` writes it."""
    if not isinstance(parts, Mapping):
        raise ValueError("its parts are no mapping")
    token, positions = (_parameter(parts.get(name)) for name in ("token", "positions"))
    if positions is None:
        raise ValueError("it has no positions")
    patches = tuple(_part(one) for one in _items(parts.get("patches")))
    rest = tuple(_layer(one) if "attention" in one else _part(one) for one in _items(parts.get("rest")))
    return TransformerParts(patches, token, positions, rest).build()


def _items(parts: Any) -> list[Mapping[str, Any]]:
    if not isinstance(parts, (list, tuple)) or len(parts) > _MOST or not all(isinstance(one, Mapping) for one in parts):
        raise ValueError("its parts are no list of parts")
    return list(parts)


def _read(one: Mapping[str, Any]) -> Part | Sum:
    if "main" not in one:
        return _part(one)
    groups = (one.get("shared"), one.get("main"), one.get("side"), one.get("gate", []))
    shared, main, side, gate = (tuple(_part(part) for part in _items(several)) for several in groups)
    join = str(one.get("join", "sum"))
    if join not in ("sum", "side", "main"):
        raise ValueError(f"a block has the unknown join {join[:40]!r}")
    return Sum(str(one.get("name")), shared, main, side, gate, join)


def _layer(one: Mapping[str, Any]) -> LayerParts:
    norms, attention, perceptron = (
        tuple(_part(part) for part in _items(one.get(name))) for name in ("norms", "attention", "perceptron")
    )
    if len(norms) != 2:
        raise ValueError("a layer has not two norms")
    return LayerParts(
        str(one.get("name")), (norms[0], norms[1]), attention, perceptron, one.get("norm_first") is not False
    )


def _part(one: Mapping[str, Any]) -> Part:
    """Raises ValueError for a module of another kind, or arguments that no network needs."""
    kind, options = one.get("kind"), one.get("options")
    if kind not in _KINDS and kind not in OWN:
        raise ValueError(f"it has a part of the kind {str(kind)[:40]!r}")
    if not isinstance(options, Mapping):
        raise ValueError("the options of a part are no mapping")
    arguments = _tupled(one.get("arguments"))
    if not isinstance(arguments, tuple):
        raise ValueError("the arguments of a part are no list")
    named = tuple((str(name), _tupled(value)) for name, value in options.items())
    return Part(str(one.get("name")), str(kind), arguments, named, one.get("has_weights") is True)


def _parameter(value: Any) -> tuple[str, tuple[int, ...]] | None:
    if value is None:
        return None
    name, shape = _tupled(value)
    return str(name), shape


def _tupled(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(value) <= _MOST:
        return tuple(_tupled(one) for one in value)
    if isinstance(value, (bool, float, str)) or value is None:
        return value
    if isinstance(value, int) and 0 <= value <= _LARGEST:
        return value
    raise ValueError("a part has an argument that no network needs")


FACTORIES: dict[str, Callable[..., nn.Module]] = {"chain": chain, "transformer": transformer}
