"""`lsa compare`: what changed between saved reports."""

from typing import TYPE_CHECKING, Annotated

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, emit
from lsa_cli.cli.outputs import split_stdout
from lsa_cli.errors import EXIT_GATE, UsageError

if TYPE_CHECKING:
    from lsa_cli.report.schema import AuditReport


def compare(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE.json FILE.json ...", help="Saved reports, the old one first.")
    ],
    consistency: Annotated[
        bool, typer.Option("--consistency", help="Compare which classes are weak. With three reports or more, always.")
    ] = False,
    fail_on_regression: Annotated[
        bool,
        typer.Option(
            "--fail-on-regression", help="Exit 1 if an accuracy fell beyond noise, or the evidence verdict fell."
        ),
    ] = False,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="As JSON; - is stdout.")] = None,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="One page, before and after.")] = None,
    quiet: o.Quiet = False,
) -> None:
    """Compare two reports: changes beyond noise first. Reports of different settings or samples are refused.

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
