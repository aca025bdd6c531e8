"""`lsa init`: write a commented lsa.yaml from a checkpoint and a short audit."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lsa_cli.cli import options as o
from lsa_cli.cli.console import emit, foreign_code, note, progress_bar
from lsa_cli.errors import UsageError
from lsa_cli.settings import AuditSettings

if TYPE_CHECKING:
    from lsa_cli.report.row import Rate
    from lsa_cli.report.schema import AuditReport

SAMPLES = 200
SCHEMA_NAME = "lsa.schema.json"


@o.takes(*o.NETWORK, "norm", "eps", "device", "threads", "quiet")
def init(
    checkpoint: o.Checkpoint,
    given: AuditSettings,
    output: Annotated[
        str, typer.Option("--output", metavar="FILE", help="File to write.", rich_help_panel="Output")
    ] = "lsa.yaml",
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.", rich_help_panel="Output")] = False,
) -> None:
    """Write a commented lsa.yaml: the given options, the threat model, and limits that this checkpoint satisfies now.

    The limits come from a short audit by the default attacks. The JSON Schema for editors is written beside it.
    """
    from lsa_cli.auditing.plan import make_plan
    from lsa_cli.auditing.run import run_audit
    from lsa_cli.report.outputs import check_writable
    from lsa_cli.report.storage import write_text
    from lsa_cli.report.terminal import one_line
    from lsa_cli.settings.schema import config_schema

    files = [Path(output), Path(output).with_name(SCHEMA_NAME)]
    for file in files:
        check_writable("output", str(file))
        if file.exists() and not force:
            raise UsageError(f"{file} exists; give --force to replace it, or --output to write elsewhere")
    short = given.replace(noise=["none"], limit=SAMPLES)
    with foreign_code():
        try:
            plan = make_plan(checkpoint, short, {}, say=note)
        except UsageError as error:
            if f"--limit {SAMPLES}" not in str(error):
                raise
            plan = make_plan(checkpoint, short.replace(limit="all"), {}, say=note)
        with progress_bar(not given.quiet) as progress:
            report = run_audit(plan, progress=progress)
    write_text(files[0], config_text(report, given))
    write_text(files[1], json.dumps(config_schema(), indent=1) + "\n")
    if not given.quiet:
        note(one_line(report))
    emit(f"written: {', '.join(map(str, files))}\n")


def config_text(report: "AuditReport", given: AuditSettings) -> str:
    """The text of the file. given: the options of the user, which it repeats."""
    from lsa_cli.report.measurement import worst_class

    subject, threat, verdict = report.subject, report.protocol.threat, report.verdict
    origin = {"option": "as given", "the checkpoint": "from the checkpoint"}.get(threat.origin, threat.origin)
    # Settings of this machine are left out, and so is trust: each user gives it again.
    left_out = {"norm", "eps", "device", "threads", "trust_code"}
    said = {name: value for name, value in given.given().items() if name not in left_out}
    found = {
        "arch": f"# arch: {subject.architecture}  # as found; without this line it is found again",
        "data": "# data: imagefolder:DIR  # without this line, the data that the checkpoint names",
    }
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_NAME}",
        "# Settings of `lsa audit` in this folder. Every option works here under its name; an option on the command line comes first.",
        f"# Made by {report.tool} from a short audit of {subject.checkpoint}:",
        f"# {report.data.n} samples, the worst of {', '.join(verdict.attacks)}.",
        "version: 1",
        "",
        "# The model and its data.",
        *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in said.items()),
        *(line for name, line in found.items() if name not in said),
        "",
        "# The threat model; eps is in units of images in [0, 1].",
        f"norm: {threat.norm}",
        f"eps: {threat.text}  # {origin}",
        "",
        "# How much is audited: 1000 samples and these attacks unless said otherwise; `lsa list attacks` has more.",
        "# limit: all",
        "# attack: [fgsm, pgd, t-pgd]",
        "# preset: full",
        "",
        "# If a limit does not hold, `lsa audit` and `lsa gate` exit 1. A limit holds if the whole 95% interval does.",
        "# Each limit here is a full interval below the measured value, so chance alone does not breach it.",
        "# In full:  robust: {min: 0.4, severity: warning, by: point, allow_not_run: true}; see `lsa list metrics`.",
        "gate:",
        _limit("clean", verdict.clean),
        _limit("robust", verdict.robust),
        _limit("class.min", worst_class(report), severity="warning"),
        _evidence(report),
        "  # layer.max-error: {max: 1.0, severity: warning, allow_not_run: true}",
        "  # seconds: {max: 600, severity: warning}",
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _limit(metric: str, rate: "Rate | None", severity: str | None = None) -> str:
    """A line of `gate:`. The limit is 2 low - value: as far below the interval as the interval is below the value."""
    if rate is None or rate.value is None or rate.low is None or rate.high is None:
        return f"  # {metric}: 0.4  # not measured"
    value = math.floor(100 * (2 * rate.low - rate.value)) / 100
    measured = f"# measured {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}], n = {rate.n}"
    if value <= 0:
        return f"  # {metric}: 0.4  {measured}: too little to hold"
    text = f"{value:.2f}" if severity is None else f"{{min: {value:.2f}, severity: {severity}}}"
    return f"  {metric}: {text}  {measured}"


def _evidence(report: "AuditReport") -> str:
    line = "evidence.invalid: {max: 0, allow_not_run: true}"
    if report.evidence is not None and report.evidence.verdict == "invalid":
        return f"  # {line}  # it is invalid now: see the findings of `lsa audit`"
    return f"  {line}  # it was {report.evidence.verdict if report.evidence else 'not checked'}"
