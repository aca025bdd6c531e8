"""The network of an ONNX graph, node by node, as modules and functions of torch. Nothing of the file is run as code."""

from lsa_cli.models.graphs.opening import network_of

__all__ = ["network_of"]
