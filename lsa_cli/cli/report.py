"""`lsa report`, `lsa gate`, `lsa check`, `lsa compare`, `lsa schema`: from saved reports, without torch."""

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, emit, note, print_to_stdout, tell_findings
from lsa_cli.cli.outputs import split_stdout, tell_github
from lsa_cli.errors import EXIT_GATE, UsageError, printable
from lsa_cli.registry import unknown
from lsa_cli.settings import AuditSettings
from lsa_cli.wording import plural

if TYPE_CHECKING:
    from lsa_cli.report.schema import AuditReport

ReportFile = Annotated[str, typer.Argument(metavar="FILE.json", help="A saved report.", show_default=False)]


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
    from lsa_cli.config import configurations
    from lsa_cli.report.gate import check, is_breach
    from lsa_cli.report.origin import RADIUS_CODE, is_of_others
    from lsa_cli.report.storage import read_report
    from lsa_cli.report.terminal import print_decision, print_gates
    from lsa_cli.settings import merge

    saved = read_report(file)
    settings, origin = merge(("option", given), *configurations(config, file))
    limits = settings.gate or {}
    if not limits:
        raise UsageError(
            "there is nothing to decide: give limits under `gate:` in lsa.yaml (--config FILE), or --fail-under robust=0.40"
        )
    if saved.early is not None:
        raise UsageError(
            f"{file} is of a --gate-only run, which decided its own limits alone; run it again with others"
        )
    for finding in saved.evidence.findings if saved.evidence is not None else ():
        if finding.code == RADIUS_CODE:
            raise UsageError(
                f"{file}: {finding.message}, and no limit is decided by that; audit again, and {finding.advice}"
            )
    for name in origin.get("gate", "").split(", "):
        if is_of_others(name):
            note(f"limits set by {name}, which you did not name")
    results = check(saved, limits)
    console = data_console()
    if not settings.quiet:
        print_gates(results, console)
    print_decision(results, console)
    if is_breach(results) and not settings.exit_zero:
        raise typer.Exit(EXIT_GATE)


def check(
    files: Annotated[list[str], typer.Argument(metavar="LSA.YAML...", help="Configurations.", show_default=False)],
) -> None:
    """Read configurations as `lsa audit` would, so that a mistake shows before anything runs. Exit 2 for the first one."""
    from pathlib import Path

    from lsa_cli.config import read_config

    for file in files:
        limits = read_config(Path(file)).gate or {}
        emit(f"{printable(file)}: {plural(len(limits), 'limit')}\n")


def compare(
    files: Annotated[list[str], typer.Argument(metavar="FILE.json FILE.json ...", help="Saved reports: old, new.")],
    consistency: Annotated[
        bool,
        typer.Option(
            "--consistency", help="Whether the same classes are weak everywhere; with three reports or more, always."
        ),
    ] = False,
    fail_on_regression: Annotated[
        bool,
        typer.Option("--fail-on-regression", help="Exit 1 if an accuracy fell beyond noise, or the evidence did."),
    ] = False,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="As JSON; - is stdout.")] = None,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="One page, before and after.")] = None,
    quiet: o.Quiet = False,
) -> None:
    """What changed between two reports, beyond noise first; refuses other protocols, and names the difference.

    Accuracies are compared sample by sample (exact McNemar test) where both reports hold the same samples. More than two
    reports, of several models: whether the same classes are weak under every attack and in every model.
    """
    from lsa_cli.report.storage import read_report

    if len(files) < 2 and not consistency:
        raise UsageError("give two reports to compare, or one with --consistency to compare its attacks")
    reports = [read_report(file) for file in files]
    if not consistency and len(reports) == 2:
        _compare_two(reports[0], reports[1], files, json, html, fail_on_regression, quiet)
        return
    asked = {"--fail-on-regression": fail_on_regression, "--html": html is not None}
    for which in [option for option, given in asked.items() if given][:1]:
        raise UsageError(f"{which} is for two reports of one protocol, old and new; leave it out here")
    _compare_classes(reports, files, json)


def _compare_two(
    old: "AuditReport", new: "AuditReport", files: list[str], json: str | None, html: str | None,
    fail_on_regression: bool, quiet: bool,
) -> None:  # fmt: skip
    """What changed between two reports of one protocol. files: they were read from these."""
    from lsa_cli.report.compare import compare as compare_reports
    from lsa_cli.report.comparison import one_line, print_comparison
    from lsa_cli.report.outputs import Outputs
    from lsa_cli.report.storage import write_text

    named = {name: path for name, path in (("json", json), ("html", html)) if path is not None}
    wanted, to_stdout = split_stdout(named)
    Outputs(wanted).check(files)
    found = compare_reports(old, new)
    if "json" in wanted:
        write_text(wanted["json"], found.to_json())
    if "html" in wanted:
        from lsa_cli.report.comparison_html import render

        write_text(wanted["html"], render(old, new, found))
    if to_stdout:
        emit(found.to_json())
    elif quiet:
        emit(one_line(found) + "\n")
    else:
        print_comparison(old, new, found, data_console())
    if fail_on_regression and found.regressions:
        raise typer.Exit(EXIT_GATE)


def _compare_classes(reports: list["AuditReport"], files: list[str], json: str | None) -> None:
    """Whether the same classes are weak in all reports. files: they were read from these."""
    from lsa_cli.report.consistency import consistency, print_consistency
    from lsa_cli.report.outputs import Outputs
    from lsa_cli.report.storage import write_text

    wanted, to_stdout = split_stdout({} if json is None else {"json": json})
    Outputs(wanted).check(files)
    study = consistency(reports)
    if "json" in wanted:
        write_text(wanted["json"], study.to_json())
    if to_stdout:
        emit(study.to_json())
    else:
        print_consistency(study, data_console())


def schema(
    kind: Annotated[str, typer.Argument(metavar="report|comparison|config", help="Of what.", show_default=False)],
) -> None:
    """Print a JSON Schema: of reports, of comparisons, of lsa.yaml."""
    emit(schema_of(kind))


def schema_of(kind: str) -> str:
    from lsa_cli.report.compare import Comparison
    from lsa_cli.report.schema import AuditReport
    from lsa_cli.settings.schema import config_schema

    schemas = {
        "report": AuditReport.model_json_schema, "comparison": Comparison.model_json_schema, "config": config_schema,
    }  # fmt: skip
    if kind not in schemas:
        raise UsageError(unknown("schema", kind, schemas))
    return json_module.dumps(schemas[kind](), indent=1) + "\n"
