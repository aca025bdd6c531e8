"""`lsa report`, `lsa gate`, `lsa compare`: from saved reports, without torch."""

import json as json_module
from typing import Annotated

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, emit, note, print_to_stdout
from lsa_cli.errors import EXIT_GATE, UsageError

ReportFile = Annotated[str, typer.Argument(metavar="FILE.json", help="A saved report.", show_default=False)]


def report(
    file: Annotated[str | None, typer.Argument(metavar="FILE.json", help="A saved report.", show_default=False)] = None,
    json: o.JsonFile = None,
    csv: o.CsvFolder = None,
    md: o.MdFile = None,
    html: o.HtmlFile = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of reports and exit.")] = False,
    quiet: o.Quiet = False,
) -> None:
    """Print a saved report, or convert it."""
    from lsa_cli.report.schema import AuditReport, read_report

    if schema:
        emit(json_module.dumps(AuditReport.model_json_schema(), indent=1) + "\n")
        return
    if file is None:
        raise UsageError("give the report to print, for example lsa report mnist_cnn.audit.json")
    saved = read_report(file)
    files = {name: path for name, path in (("json", json), ("md", md), ("html", html)) if path not in (None, "-")}
    if "-" in (md, html):
        raise UsageError("only --json can go to stdout with -")
    if json == "-":
        emit(saved.to_json())
    if files or csv is not None:
        from lsa_cli.report.exporters import check_writable, export

        check_writable(files, csv)
        export(saved, files, csv)
        if not quiet:
            note(f"written: {', '.join([*map(str, files.values()), *([csv] if csv else [])])}")
    elif json != "-":
        print_to_stdout(saved, quiet)


def gate(
    file: ReportFile,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Limits under `gate:`; default: lsa.yaml in this folder."),
    ] = None,
    fail_under: o.FailUnder = None,
    quiet: o.Quiet = False,
) -> None:
    """Decide from a saved report: exit 0 if every limit holds, 1 if one is breached or cannot be decided."""
    from lsa_cli.config import find_config, read_config
    from lsa_cli.report.gate import check, parse_limits
    from lsa_cli.report.schema import read_report

    saved = read_report(file)
    limits: dict[str, float] = {}
    path, chosen = find_config(config, file)
    if path is not None:
        limits = read_config(path, chosen).gate or {}
    limits = {**limits, **parse_limits(fail_under or [])}
    if not limits:
        raise UsageError(
            "there is nothing to decide: give limits under `gate:` in lsa.yaml (--config FILE), or --fail-under robust=0.40"
        )
    results = check(saved, limits)
    if not quiet:
        for result in results:
            state = "pass" if result.passed else "FAIL" if result.measured is not None else "UNDECIDED"
            emit(f"{state:9} {result.message}\n")
    failed = [result for result in results if not result.passed]
    if quiet:
        emit(f"{len(results) - len(failed)} of {len(results)} limits hold\n")
    if failed:
        raise typer.Exit(EXIT_GATE)


def compare(old: ReportFile, new: ReportFile) -> None:
    """Two reports side by side; refuses reports of different protocols, and names the difference."""
    from lsa_cli.report.compare import print_comparison
    from lsa_cli.report.schema import read_report

    print_comparison(read_report(old), read_report(new), data_console())
