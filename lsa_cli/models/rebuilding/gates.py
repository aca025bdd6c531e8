"""Squeeze-and-excitation (Hu et al., arXiv 1709.01507) among the layers of a file."""

from itertools import pairwise

from lsa_cli.models.rebuilding.layers import Layer, Modules


def gates_of(modules: Modules) -> list[tuple[Layer, Layer]]:
    """Pairs of layers without norms, each behind the other, that reduce a number of channels and restore it, as
    squeeze-and-excitation has them."""
    follows = dict(pairwise(modules.names))
    found = []
    for name, other in follows.items():
        one, two = modules.layers.get(name), modules.layers.get(other)
        behind = follows.get(other, "")
        is_normed = behind in modules.norms and behind.rpartition(".")[0] == other.rpartition(".")[0]
        if one is None or two is None or is_normed:
            continue
        small = max((*one.kernel, *two.kernel, 1)) == 1 and one.is_linear == two.is_linear
        if small and one.outer < one.inner and (two.inner, two.outer) == (one.outer, one.inner):
            found.append((one, two))
    return found
