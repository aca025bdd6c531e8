"""`lsa gate`: decide limits from a saved report."""

from typing import Annotated

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, note
from lsa_cli.cli.report import ReportFile
from lsa_cli.errors import EXIT_GATE, UsageError
from lsa_cli.settings import AuditSettings


@o.takes(*o.GATE, "quiet")
def gate(
    file: ReportFile,
    given: AuditSettings,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Limits under `gate:`. Default: lsa.yaml beside the report, otherwise in the working directory.",
        ),
    ] = None,
) -> None:
    """Decide from a saved report: exit 0 if every limit holds, 1 if one is breached or cannot be decided."""
    from lsa_cli.config import merged
    from lsa_cli.report.gate import check, is_breach
    from lsa_cli.report.origin import RADIUS_CODE, is_of_others
    from lsa_cli.report.storage import read_report
    from lsa_cli.report.terminal import print_decision, print_gates

    saved = read_report(file)
    settings, origin, _ = merged(given, config, file)
    limits = settings.gate or {}
    if not limits:
        raise UsageError(
            "there is nothing to decide: give limits under `gate:` in lsa.yaml (--config FILE), or --fail-under robust=0.40"
        )
    if saved.early is not None:
        raise UsageError(
            f"{file} is the report of a --gate-only run, which decides only its own limits; run it again with other limits"
        )
    for finding in saved.evidence.findings if saved.evidence is not None else ():
        if finding.code == RADIUS_CODE:
            raise UsageError(
                f"{file}: {finding.message}, so no limit can be decided; audit again, and {finding.advice}"
            )
    for name in origin.get("gate", "").split(", "):
        if is_of_others(name):
            note(f"the limits come from {name}, which you did not name")
    results = check(saved, limits)
    console = data_console()
    if not settings.quiet:
        print_gates(results, console)
    print_decision(results, console)
    if is_breach(results) and not settings.exit_zero:
        raise typer.Exit(EXIT_GATE)
