"""Where a report goes: files, stdout, and GitHub's own files."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lsa_cli.cli.console import note
from lsa_cli.errors import UsageError
from lsa_cli.settings import AuditSettings

if TYPE_CHECKING:
    from lsa_cli.report.outputs import Outputs
    from lsa_cli.report.schema import AuditReport


def split_stdout(files: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """The formats that go to files, and whether the JSON goes to stdout. Raises UsageError for another format there."""
    other = [name for name, path in files.items() if path == "-" and name != "json"]
    if other:
        raise UsageError(f"--{other[0]} - : only --json can go to stdout with -; give a file name")
    return {name: path for name, path in files.items() if path != "-"}, files.get("json") == "-"


def output_folder(path: str, formats: Iterable[str] = ()) -> Path:
    """The folder of --output, created if it does not exist. formats: formats that have an option of their own. Raises
    UsageError where it cannot be created, or for what looks like the name of a file."""
    from lsa_cli.report.outputs import refuse_file_name

    folder = Path(path)
    refuse_file_name("output", folder, formats)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder} cannot be created: {error.strerror or error}") from error
    return folder


def tell_github(report: "AuditReport", files: Mapping[str, str], asked: bool | None) -> None:
    """Write annotations and outputs for GitHub. asked: None means only in a workflow. Commands go to stderr, which the
    runner reads too, because stdout is for data."""
    from lsa_cli.report.github import in_workflow, tell

    if asked or (asked is None and in_workflow()):
        sys.stderr.write(tell(report, files))
        sys.stderr.flush()


def audit_outputs(checkpoint: str, settings: AuditSettings, to_stdout: bool) -> "Outputs":
    """The files that an audit writes. The report itself is always saved, unless it goes to stdout."""
    from lsa_cli.report.formats import FORMATS
    from lsa_cli.report.outputs import Outputs, check_writable

    files = {name: path for name, path in (settings.files or {}).items() if path != "-"}
    default = f"{Path(checkpoint).stem}.{'gate' if settings.gate_only else 'audit'}.json"
    if to_stdout:
        pass
    elif settings.output is not None:
        if "json" in files:
            raise UsageError("--json and --output both name the report; give one of them")
        files = {"json": str(output_folder(settings.output, FORMATS.names()) / default), **files}
    elif "json" not in files:
        try:
            check_writable("json", default)
        except UsageError as error:
            note(f"the report is not saved here ({error}); give --json FILE to save it elsewhere")
        else:
            files = {"json": default, **files}
    return Outputs(files, settings.csv, settings.samples)
