"""`lsa check`: read configurations, and run nothing."""

from typing import Annotated

import typer

from lsa_cli.cli.console import emit
from lsa_cli.errors import printable
from lsa_cli.wording import plural


def check(
    files: Annotated[list[str], typer.Argument(metavar="LSA.YAML...", help="Configurations.", show_default=False)],
) -> None:
    """Check lsa.yaml files and run nothing. Exit 2 for the first mistake."""
    from pathlib import Path

    from lsa_cli.auditing.checking import refuse_alone
    from lsa_cli.auditing.names import refuse_unknown_in_file
    from lsa_cli.config import read_config

    for file in files:
        settings = read_config(Path(file), check=refuse_unknown_in_file)
        refuse_alone(settings, file)
        emit(f"{printable(file)}: {plural(len(settings.gate or {}), 'limit')}\n")
