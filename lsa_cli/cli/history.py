"""`lsa history`: a folder of reports as a static site."""

import re
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from lsa_cli.cli.completion import words
from lsa_cli.cli.console import note
from lsa_cli.cli.outputs import output_folder
from lsa_cli.errors import UsageError
from lsa_cli.wording import plural

if TYPE_CHECKING:
    from lsa_cli.report.schema import AuditReport

_ENDINGS = ".audit.quick.json", ".audit.json"  # a full audit replaces the quick one of `lsa fleet --triage`


def history(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder of reports, such as that of `lsa fleet`.", show_default=False)
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder for the site.")] = "site",
    order: Annotated[
        str,
        typer.Option(
            "--order",
            metavar="name|date|epoch|commit|key",
            autocompletion=words("name", "date", "epoch", "commit", "key"),
            help="Order of the models in the trends: by name, by the date of the audit, by the epoch or last number in the "
            "name, by git (commit): the commit that is named in the name, or the last one that changed the report, or by the key "
            "`history` in lsa.yaml.",
        ),
    ] = "name",
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="FILE", help="File with the key `history`. Default: lsa.yaml in the working directory."
        ),
    ] = None,
) -> None:
    """Make a static site of the reports in a folder: a leaderboard, trends, any two models side by side, a page a model.

    The site opens from disk and from any web server. It takes the complete reports *.audit.json in the folder and below, and of models that `lsa fleet --triage` audited quickly alone, *.audit.quick.json.
    """
    from lsa_cli._version import __version__
    from lsa_cli.report.history import Order, site
    from lsa_cli.report.storage import write_text

    if order not in get_args(Order):
        raise UsageError(f"--order {order}: there are {', '.join(get_args(Order))}")
    if not Path(folder).is_dir():
        what = "is a file" if Path(folder).exists() else "does not exist"
        raise UsageError(f"{folder} {what}; give a folder of reports, such as the one that lsa fleet -o writes to")
    reports = _complete(folder)
    if not reports:
        raise UsageError(
            f"{folder} holds no complete report (*.audit.json); make some with lsa fleet or lsa audit --output"
        )
    target = output_folder(output)
    (target / "models").mkdir(exist_ok=True)
    places = {"commit": partial(_commits, Path(folder)), "key": partial(_keys, config)}
    given = places[order](list(reports)) if order in places else None
    for page, text in site(f"lsa {__version__}", reports, cast("Order", order), given):
        write_text(target / page, text)
    note(f"{plural(len(reports), 'model')}: {target / 'index.html'}")


def _complete(folder: str) -> dict[str, "AuditReport"]:
    """The complete reports in a folder and below, by the name of the model; a line says which others are left out."""
    from lsa_cli.report.storage import read_report

    reports: dict[str, AuditReport] = {}
    for path in [path for ending in _ENDINGS for path in sorted(Path(folder).rglob(f"*{ending}"))]:
        name = path.relative_to(folder).as_posix()
        for ending in _ENDINGS:
            name = name.removesuffix(ending)
        try:
            report = read_report(path)
        except UsageError as error:
            note(f"{path} is left out: {error}")
            continue
        if report.status == "complete":
            reports[name] = report
        else:
            note(f"{path} is left out: its audit is {report.status}")
    return reports


def _keys(config: str | None, names: list[str]) -> dict[str, tuple[Any, str]]:
    """Of each model its place by the key `history` of lsa.yaml. Raises UsageError for a model that no glob fits."""
    from lsa_cli.config import CONFIG_NAME, find_config, fits, read_config

    path, _ = find_config(config, CONFIG_NAME)
    globs = {} if path is None else read_config(path).history or {}
    found: dict[str, tuple[Any, str]] = {}
    for name in names:
        own = [place for glob, place in globs.items() if fits(glob, name)]
        if not own:
            raise UsageError(
                f"--order key: no glob of `history` in {path or CONFIG_NAME} fits {name}; write history: {{{name!r}: 1}}, "
                "or use --order name, date, epoch or commit"
            )
        found[name] = own[-1], str(own[-1])
    return found


def _commits(folder: Path, names: list[str]) -> dict[str, tuple[int, str]]:
    """Of each model the place of its commit in the log, and its short name. Raises UsageError for a model without one."""
    places = {commit: place for place, commit in enumerate(_git(Path(), "rev-list", "--reverse", "HEAD"))}
    found = {name: commit for name in names if (commit := _named(name, places)) is not None}
    if len(found) < len(names):
        found = {
            name: next(
                iter(_git(folder, "log", "-1", "--format=%H", "--", *(name + ending for ending in _ENDINGS))), ""
            )
            for name in names
        }
        places = {commit: place for place, commit in enumerate(_git(folder, "rev-list", "--reverse", "HEAD"))}
    for name, commit in found.items():
        if commit not in places:
            raise UsageError(
                f"--order commit: {name} names no commit of the repository here, and git has no commit of its report; "
                "use --order name, date or epoch"
            )
    return {name: (places[commit], commit[:7]) for name, commit in found.items()}


def _named(name: str, commits: Iterable[str]) -> str | None:
    """The one commit whose hash the name holds, by at least seven digits."""
    parts = re.findall(r"(?<![0-9a-z])[0-9a-f]{7,40}(?![0-9a-z])", name)
    found = [commit for commit in commits if any(commit.startswith(part) for part in parts)]
    return found[0] if len(found) == 1 else None


def _git(folder: Path, *arguments: str) -> list[str]:
    """The lines that git prints; none where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except OSError:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
