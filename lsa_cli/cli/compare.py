"""`lsa compare`: what changed between saved reports."""

from typing import TYPE_CHECKING, Annotated

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, emit
from lsa_cli.cli.outputs import split_stdout
from lsa_cli.errors import EXIT_GATE, UsageError

if TYPE_CHECKING:
    from lsa_cli.report.compare import Comparison
    from lsa_cli.report.consistency import Consistency
    from lsa_cli.report.schema import AuditReport


def compare(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE.json FILE.json ...", help="Saved reports, the old one first.")
    ],
    consistency: Annotated[
        bool, typer.Option("--consistency", help="Compare which classes are weak. It is on with three or more reports.")
    ] = False,
    fail_on_regression: Annotated[
        bool,
        typer.Option(
            "--fail-on-regression", help="Exit 1 if an accuracy fell beyond noise, or the evidence verdict fell."
        ),
    ] = False,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential",
            help="Say how few of the samples, taken in random order, decide which report is better. It changes no exit code.",
        ),
    ] = False,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="As JSON; - is stdout.")] = None,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="One page, before and after.")] = None,
    quiet: o.Quiet = False,
) -> None:
    """Compare two reports: changes beyond noise first. Reports with different settings or samples are refused.

    Where both reports have the same samples, accuracies are compared sample by sample (exact McNemar test). With more than
    two reports, of several models: whether the same classes are weak under every attack and in every model.
    """
    from lsa_cli.report.compare import Comparison
    from lsa_cli.report.compare import compare as compare_reports
    from lsa_cli.report.comparison_html import render
    from lsa_cli.report.consistency import consistency as compare_classes
    from lsa_cli.report.outputs import Outputs
    from lsa_cli.report.sequential import decide_in_order
    from lsa_cli.report.storage import read_report, write_text

    if len(files) < 2 and not consistency:
        raise UsageError("give two reports to compare, or one with --consistency to compare its attacks")
    reports = [read_report(file) for file in files]
    two = len(reports) == 2 and not consistency
    asked = {"--fail-on-regression": fail_on_regression, "--sequential": sequential, "--html": html is not None}
    for option in [option for option, given in asked.items() if given and not two][:1]:
        raise UsageError(f"{option} needs two reports with the same settings, old and new; leave it out here")
    wanted, to_stdout = split_stdout(
        {name: path for name, path in (("json", json), ("html", html)) if path is not None}
    )
    Outputs(wanted).check(files)
    old, new = reports[0], reports[-1]
    found = compare_reports(old, new) if two else compare_classes(reports)
    if isinstance(found, Comparison) and sequential:
        found.sequential = decide_in_order(old, new)
    if "json" in wanted:
        write_text(wanted["json"], found.to_json())
    if isinstance(found, Comparison) and "html" in wanted:
        write_text(wanted["html"], render(old, new, found))
    _print(old, new, found, to_stdout, quiet)
    if isinstance(found, Comparison) and fail_on_regression and found.regressions:
        raise typer.Exit(EXIT_GATE)


def _print(
    old: "AuditReport", new: "AuditReport", found: "Comparison | Consistency", to_stdout: bool, quiet: bool
) -> None:
    from lsa_cli.report.compare import Comparison
    from lsa_cli.report.comparison import one_line, print_comparison
    from lsa_cli.report.consistency import print_consistency

    if to_stdout:
        emit(found.to_json())
    elif not isinstance(found, Comparison):
        print_consistency(found, data_console())
    elif quiet:
        emit(one_line(found) + "\n")
    else:
        print_comparison(old, new, found, data_console())
