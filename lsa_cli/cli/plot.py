"""`lsa plot`: figures of saved reports for papers and slides."""

from typing import Annotated

import typer

from lsa_cli.cli.completion import words
from lsa_cli.cli.console import note
from lsa_cli.cli.outputs import output_folder
from lsa_cli.errors import RunError, UsageError
from lsa_cli.wording import plural


def plot(
    files: Annotated[list[str], typer.Argument(metavar="FILE.json...", help="Saved reports.", show_default=False)],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder for the figures.")] = "plots",
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="svg|png|pdf", help="Format of the figures.", autocompletion=words("svg", "png", "pdf")
        ),
    ] = "svg",
) -> None:
    """Draw figures of saved reports: layer and robustness curves, classes, maps, before and after.

    Several reports, such as a network's before and after hardening, are also drawn into one figure. Needs matplotlib:
    pip install matplotlib.
    """
    from lsa_cli.report.plots import FORMATS, draw
    from lsa_cli.report.storage import read_report, write_bytes

    if form not in FORMATS:
        raise UsageError(f"--format {form}: there are {', '.join(FORMATS)}")
    reports = [read_report(file) for file in files]
    figures = list(draw(reports, form))  # first, so that no folder is left where matplotlib is missing
    if not figures:
        raise RunError("the reports have nothing to draw: no attack or noise has finished in them")
    folder = output_folder(output)
    for name, content in figures:
        write_bytes(folder / name, content)
    note(f"{plural(len(figures), 'figure')} written to {output}: {', '.join(name for name, _ in figures)}")
