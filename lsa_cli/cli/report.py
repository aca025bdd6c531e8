"""`lsa report`: print or convert a saved report."""

from typing import Annotated

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, emit, note, print_to_stdout, tell_findings
from lsa_cli.cli.outputs import split_stdout, tell_github
from lsa_cli.settings import AuditSettings

ReportFile = Annotated[str, typer.Argument(metavar="FILE.json", help="A saved report; - is stdin.", show_default=False)]


@o.takes(*o.REPORT, "quiet")
def report(file: ReportFile, given: AuditSettings) -> None:
    """Print a saved report, or convert it."""
    from lsa_cli.report.outputs import Outputs
    from lsa_cli.report.storage import read_report
    from lsa_cli.report.terminal import print_decision

    saved = read_report(file)
    wanted, to_stdout = split_stdout(given.files or {})
    outputs = Outputs(wanted, given.csv, given.samples)
    outputs.check([file])
    if to_stdout:
        emit(saved.to_json())
    outputs.write(saved)
    tell_github(saved, {**wanted, "json": wanted.get("json", file)}, bool(given.github))
    if outputs.paths() and not given.quiet:
        note(f"written: {', '.join(outputs.paths())}")
    is_printed = not (outputs.paths() or to_stdout or given.github)
    if is_printed:
        print_to_stdout(saved, bool(given.quiet))
    if given.quiet or to_stdout:
        tell_findings(saved)
    if saved.gates and is_printed:
        print_decision(saved.gates, data_console())
