"""`lsa fleet`: audit many checkpoints, on any number of machines; one table, one exit code."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.console import data_console, emit, note
from lsa_cli.cli.fleet_run import FleetRun
from lsa_cli.cli.outputs import output_folder, split_stdout
from lsa_cli.errors import EXIT_BROKEN, EXIT_GATE, UsageError
from lsa_cli.settings import AuditSettings
from lsa_cli.settings.declare import settings_of

if TYPE_CHECKING:
    from lsa_cli.fleet.folder import Audit
    from lsa_cli.report.fleet import Fleet
    from lsa_cli.report.schema import AuditReport

# The settings of an audit that a fleet does not take: they name the files of one audit, or decide how it runs.
_OF_ONE_AUDIT = (
    "samples", "files", "csv", "github", "output", "gate_only", "alpha", "baseline", "resume", "nproc", "harden_to", "dry_run",
    "verbose",
)  # fmt: skip
OF_AUDITS = tuple(one.name for one in settings_of(AuditSettings) if one.options and one.name not in _OF_ONE_AUDIT)


@o.takes(*OF_AUDITS, limit="Number of samples of each audit, stratified by class. Default: 1000; with --quick 200.")
def fleet(
    patterns: Annotated[
        list[str], typer.Argument(metavar="PATTERN...", help="Model files, or globs such as 'models/**/*.pt'.", show_default=False)
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder for the reports and fleet.json.", show_default=False)],
    given: AuditSettings,
    jobs: Annotated[
        str,
        typer.Option(
            "--jobs", "-j", metavar="N|auto",
            help="Number of audits at once on this machine. auto: one for each CUDA device, otherwise one for each core, at most 8.",
        ),
    ] = "1",
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", metavar="I/N|auto|auto/N",
            help="Audit part I of N, counted from 1, without claims. auto: from the array index of SLURM; auto/N: from JOB_COMPLETION_INDEX of Kubernetes.",
        ),
    ] = None,
    triage: Annotated[
        bool,
        typer.Option("--triage", help="First audit all with --quick; then, as the options say, those that can still be the best one, or hold their limits."),
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first audit that fails.")] = False,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="The table as JSON, beside fleet.json; - is stdout.")] = None,
    table: Annotated[str | None, typer.Option("--table", metavar="FILE.csv|.parquet", help="One row per model.")] = None,
    junit: Annotated[str | None, typer.Option("--junit", metavar="FILE.xml", help="JUnit XML with a suite per model.")] = None,
) -> None:  # fmt: skip
    """Audit many checkpoints with the same settings, and compare them: which is the best, and which is ahead beyond noise.

    The folder is the state. A report of the same file and settings is not made again, and an interrupted audit is resumed.
    So the same command continues, and any number of workers may run it at once on a folder that they share. A failed audit is
    a row of the table, and the next run tries it again. Settings of single checkpoints stand under `checkpoints:` in lsa.yaml.

    Exit codes: 1 a limit of any model is breached or not decided; otherwise 3 if an audit failed.
    """
    from lsa_cli.fleet.folder import checkpoints, time_of
    from lsa_cli.report.outputs import Outputs
    from lsa_cli.report.tables import check_table_file

    named = {"json": json, "junit": junit, "table": table}
    files, to_stdout = split_stdout({name: path for name, path in named.items() if path is not None})
    part = _part(shard)
    places = _places(jobs, given)
    folder = output_folder(output)
    since = time_of(folder)
    audits = _audits(checkpoints(patterns)[part[0] - 1 :: part[1]], folder, given, places)
    if triage and any(audit.settings.preset == "quick" for audit in audits):
        raise UsageError("--triage begins with quick audits of all models; leave out --quick")
    if table is not None:
        check_table_file("table", table)
    Outputs(files).check([one.checkpoint for one in audits])
    run = FleetRun(audits, given.device, places, since, shard is None, fail_fast, bool(given.quiet))
    found, reports = _ran(run, triage, folder)
    _write(found, reports, files, folder / ("fleet.json" if shard is None else f"fleet.{part[0]}-of-{part[1]}.json"))
    _print(found, to_stdout, bool(given.quiet))
    _end(found, exit_zero=bool(audits and audits[0].settings.exit_zero))


def _ran(run: FleetRun, triage: bool, folder: Path) -> "tuple[Fleet, dict[str, AuditReport]]":
    try:
        return run.triage() if triage else run.full()
    except KeyboardInterrupt:
        note(f"finished audits are in {folder}, and begun ones are resumed: run the same command again to continue")
        raise


def _end(found: "Fleet", exit_zero: bool) -> None:
    if found.breached and not exit_zero:
        raise typer.Exit(EXIT_GATE)
    if found.failed:
        raise typer.Exit(EXIT_BROKEN)


# ---- what is audited, and where ------------------------------------------------------------------------


def _part(shard: str | None) -> tuple[int, int]:
    """The part and the number of parts. Raises UsageError for a wrong one, and where auto finds no index."""
    if shard is None:
        return 1, 1
    first, _, count = shard.partition("/")
    if shard == "auto" and "SLURM_ARRAY_TASK_ID" in os.environ:
        place, least, step = (
            int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1))
        )
        return (place - least) // step + 1, int(os.environ["SLURM_ARRAY_TASK_COUNT"])
    if first == "auto" and "JOB_COMPLETION_INDEX" in os.environ:
        first = str(int(os.environ["JOB_COMPLETION_INDEX"]) + 1)
    elif first == "auto":
        raise UsageError(f"--shard {shard}: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set; give I/N")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise UsageError(f"--shard {shard}: give I/N with I from 1 to N, such as 1/4")
    return int(first), int(count)


def _places(jobs: str, given: AuditSettings) -> int:
    from lsa_cli.cli.launch import processes
    from lsa_cli.cli.ranks import is_rank

    if is_rank():
        raise UsageError("lsa fleet does not run under torchrun: start the same command on each machine, without it")
    return processes("--jobs", jobs, given.device)


def _audits(found: Sequence[str], folder: Path, given: AuditSettings, places: int) -> "list[Audit]":
    """The audits of the checkpoints. Raises UsageError for settings that no audit takes."""
    from lsa_cli.auditing.cores import usable_cores
    from lsa_cli.auditing.names import refuse_unknown_names
    from lsa_cli.auditing.presets import with_preset
    from lsa_cli.fleet.folder import Audit, name_of

    if given.threads is None and places > 1:
        given = given.replace(threads=max(1, usable_cores() // places))
    audits = []
    told: set[str] = set()

    def say_once(message: str) -> None:
        if message not in told:
            note(message)
        told.add(message)

    for checkpoint in found:
        settings, origin = o.with_config(given, checkpoint, say_once)
        if settings.gate_only:
            raise UsageError("a fleet compares whole audits, and the configuration says gate-only; leave it out")
        refuse_unknown_names(settings)
        with_preset(settings, origin)
        settings = settings.replace(files=None, csv=None, samples=None, output=None, baseline=None, checkpoints=None)
        audits.append(Audit(name_of(checkpoint), checkpoint, settings, origin, folder, limits=settings.gate or {}))
    return audits


# ---- the result ---------------------------------------------------------------------------------------


def _write(found: "Fleet", reports: "dict[str, AuditReport]", files: dict[str, str], own: Path) -> None:
    from lsa_cli.report.fleet_view import rows
    from lsa_cli.report.junit import render_fleet
    from lsa_cli.report.storage import write_text
    from lsa_cli.report.tables import write_rows

    write_text(own, found.to_json())
    if "json" in files:
        write_text(files["json"], found.to_json())
    if "table" in files:
        write_rows("fleet", rows(found), files["table"])
    if "junit" in files:
        failures = {row.model: row.reason or "the audit did not run" for row in found.rows if row.state != "audited"}
        write_text(files["junit"], render_fleet(reports, failures))


def _print(found: "Fleet", to_stdout: bool, quiet: bool) -> None:
    from rich.text import Text

    from lsa_cli.report.fleet_view import one_line, tables
    from lsa_cli.report.terminal import print_table

    if to_stdout:
        emit(found.to_json())
        return
    console = data_console()
    for table in tables(found) if not quiet else ():
        print_table(table, console)
    console.print(Text(one_line(found), "bold"), soft_wrap=not console.is_terminal)
