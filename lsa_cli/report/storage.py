"""Reports on disk: a reader for untrusted files, and writers that replace a file as a whole."""

import json
import os
from pathlib import Path

from pydantic import ValidationError

from lsa_cli.errors import RunError, UsageError
from lsa_cli.files import is_irregular, read_regular, temporary_beside, write_irregular
from lsa_cli.report.schema import SCHEMA_VERSION, AuditReport

_LARGEST_REPORT = 1 << 29  # bytes


def read_report(path: str | Path) -> AuditReport:
    """A saved report. Raises UsageError when the file is missing, no report, or of a later major version.

    path: a regular file, or a pipe that the shell has opened, such as /dev/stdin, for which - stands, and
    `<(git show main:r.json)`.
    """
    path = "/dev/stdin" if str(path) == "-" else path
    try:
        text = read_regular(path, _LARGEST_REPORT, pipes=True).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a report: it is not JSON ({error})") from error
    version = str(content.get("schema_version", "")) if isinstance(content, dict) else ""
    if not version:
        raise UsageError(f"{path} is not a report of `lsa audit`: it has no schema_version")
    if {"old", "new"} <= content.keys():
        raise UsageError(f"{path} is a comparison of two reports; give one of the reports")
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise UsageError(
            f"{path} has report version {version}, and this lsa reads {SCHEMA_VERSION}; install the lsa that wrote it"
        )
    try:
        return AuditReport.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path} is not a valid report: {where}: {first['msg']}") from error


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write through a temporary name in the same folder: readers see the old file or the whole new one.

    A device or pipe (/dev/stderr) is written to, never replaced; a link keeps pointing at what is written.
    Raises RunError when it cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = temporary_beside(target)
    try:
        if is_irregular(path):  # by the name that was given: /dev/stdout leads to a name that does not exist
            write_irregular(path, content)
            return
        try:
            temporary.write_bytes(content)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror or error}") from error
