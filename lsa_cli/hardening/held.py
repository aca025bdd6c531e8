"""Which layers a hardening holds as far as they are named, and the weight of each."""

from collections.abc import Sequence

from lsa_cli.auditing.layer_scan import refuse_more
from lsa_cli.errors import UsageError
from lsa_cli.layers import Layer, select_layers
from lsa_cli.registry import parse_number, unknown
from lsa_cli.settings import HardenSettings


def named_layers(own: HardenSettings, layers: list[Layer]) -> tuple[str, ...]:
    """Those that --layers or a saved report names, of the network's; empty where a rule is to choose."""
    if own.mvl is not None and own.layers is not None:
        raise UsageError("--mvl and --layers both name the layers to hold; give one of them")
    if own.mvl is not None:
        return _from_report(own.mvl, layers, own.top_k)
    return tuple(layer.name for layer in select_layers(layers, own.layers)) if own.layers else ()


def _from_report(path: str, layers: list[Layer], top_k: int | None) -> tuple[str, ...]:
    """The most vulnerable layers of a saved report, under its strongest budget attack that scanned any."""
    from lsa_cli.report.storage import read_report
    from lsa_cli.report.tables import strongest

    outcome = strongest(read_report(path), scanned=True)
    if outcome is None or outcome.layers is None or not outcome.layers.mvl:
        raise UsageError(f"--mvl {path}: this report scanned no layers under an attack; audit without --layers none")
    found = outcome.layers.mvl
    if top_k is not None:
        ranked = sorted(
            (row for row in outcome.layers.rows if row.mean is not None), key=lambda row: -(row.mean or 0.0)
        )
        refuse_more(top_k, len(ranked), path)
        found = [row.name for row in ranked[:top_k]]
    unknown_here = [name for name in found if name not in {layer.name for layer in layers}]
    if unknown_here:
        raise UsageError(
            f"--mvl {path}: this network has no layer {unknown_here[0]}; is it the report of another model?"
        )
    return tuple(found)


def gammas(text: str, layers: Sequence[str]) -> tuple[float, ...]:
    """ "0.5" for every layer, or "relu1=0.5,relu2=0.1" with one for each. Raises UsageError otherwise."""
    said = _parsed(text)
    if isinstance(said, float):
        return (said,) * len(layers)
    if set(said) != set(layers):
        raise UsageError(f"--gamma '{text}' should give one weight of 0 or more to each of {', '.join(layers)}")
    return tuple(said[name] for name in layers)


def check_gamma(text: str, layers: Sequence[str]) -> None:
    """Before it is known which of `layers` are held: weights are numbers, names those of layers."""
    said = _parsed(text)
    for name in said if isinstance(said, dict) else ():
        if name not in layers:
            raise UsageError(f"--gamma '{text}': {unknown('layer', name, layers)}")


def _parsed(text: str) -> float | dict[str, float]:
    if "=" not in text:
        value = parse_number(text, "--gamma")
        if value < 0:
            raise UsageError(f"--gamma {text} is negative; the regularizer would tear the layers apart")
        return value
    said = {
        name.strip(): parse_number(value, "--gamma")
        for name, _, value in (part.rpartition("=") for part in text.split(","))
    }
    if min(said.values()) < 0:
        raise UsageError(f"--gamma '{text}' should give weights of 0 or more")
    return said
