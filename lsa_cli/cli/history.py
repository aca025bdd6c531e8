"""`lsa history`: a folder of reports as a static site."""

from typing import Annotated, cast, get_args

import typer

from lsa_cli.cli.console import note
from lsa_cli.cli.outputs import output_folder
from lsa_cli.errors import UsageError
from lsa_cli.wording import plural


def history(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder of reports, such as that of `lsa fleet`.", show_default=False)
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder for the site.")] = "site",
    order: Annotated[
        str,
        typer.Option(
            "--order",
            metavar="name|date",
            help="Order of the models in the trends: by name, or by the date of the audit.",
        ),
    ] = "name",
) -> None:
    """Make a static site of the reports in a folder: a leaderboard, trends, any two models side by side, a page a model.

    The site opens from disk and from any web server. It takes the complete reports *.audit.json in the folder and below.
    """
    from pathlib import Path

    from lsa_cli._version import __version__
    from lsa_cli.report.history import Order, site
    from lsa_cli.report.schema import AuditReport
    from lsa_cli.report.storage import read_report, write_text

    if order not in get_args(Order):
        raise UsageError(f"--order {order}: there are {', '.join(get_args(Order))}")
    reports: dict[str, AuditReport] = {}
    for path in sorted(Path(folder).rglob("*.audit.json")):
        name = path.relative_to(folder).as_posix().removesuffix(".audit.json")
        try:
            report = read_report(path)
        except UsageError as error:
            note(f"{path} is left out: {error}")
            continue
        if report.status == "complete":
            reports[name] = report
        else:
            note(f"{path} is left out: its audit is {report.status}")
    if not reports:
        raise UsageError(
            f"{folder} holds no complete report (*.audit.json); make some with lsa fleet or lsa audit --output"
        )
    target = output_folder(output)
    (target / "models").mkdir(exist_ok=True)
    for page, text in site(f"lsa {__version__}", reports, cast("Order", order)):
        write_text(target / page, text)
    note(f"{plural(len(reports), 'model')}: {target / 'index.html'}")
