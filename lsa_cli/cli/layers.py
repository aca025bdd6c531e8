"""`lsa layers`: the layers of a checkpoint."""

from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, foreign_code, note
from lsa_cli.errors import printable
from lsa_cli.settings import AuditSettings


@o.takes(*(name for name in o.NETWORK if name != "returns"), "plugin", "config")
def layers(checkpoint: o.Checkpoint, given: AuditSettings) -> None:
    """List the layers of a checkpoint that can be scanned, in the order they run, and which selectors take them."""
    from rich.table import Table
    from rich.text import Text

    from lsa_cli.auditing.network import open_network, refuse_without_layers
    from lsa_cli.config import merged
    from lsa_cli.layers import SELECTORS

    settings, origin, _ = merged(given, given.config, checkpoint)
    with foreign_code():
        network = open_network(checkpoint, settings, origin, say=note)
    refuse_without_layers(network)
    table = Table(box=None, pad_edge=False)
    for title in ("layer", "kind", "output", "selectors"):
        table.add_column(title, overflow="fold")
    for layer in network.layers:
        rules = ["(output)"] if layer.is_output else [name for name in SELECTORS.names() if SELECTORS.get(name)(layer)]
        shape = "x".join(map(str, layer.shape)) or "1"
        table.add_row(Text(printable(layer.name)), Text(printable(layer.kind)), shape, Text(", ".join(rules)))
    data_console().print(table)
