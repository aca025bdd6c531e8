"""One audit of a fleet, in a process of its own: it saves the report, or the sentence why there is none."""

import os
import signal
import sys
import time
from functools import partial
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any

import typer

from lsa_cli.cli import streams
from lsa_cli.cli.boundary import boundary
from lsa_cli.cli.console import note
from lsa_cli.fleet.folder import LOG, REPORT, Audit
from lsa_cli.fleet.workers import end_with_parent

if TYPE_CHECKING:
    from lsa_cli.auditing.journal import Journal
    from lsa_cli.auditing.plan import AuditPlan

_PATIENCE = 10.0  # seconds for the process of a dead worker to end


def audit_alone(audit: Audit, device: int | None) -> None:
    """Audit and end this process. device: the number of its CUDA device among those that are visible."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker ends this process
    parent = parent_process()
    assert parent is not None
    assert parent.pid is not None
    end_with_parent(parent.pid)
    _print_to(audit)
    if device is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device) if visible is None else visible.split(",")[device]

    def say(message: str, error: BaseException) -> None:
        note(message)
        if not isinstance(error, KeyboardInterrupt):
            audit.fail(message.removeprefix("error: "))

    code = 0
    try:
        with boundary(say):
            signal.signal(signal.SIGTERM, _once)
            _audit(audit)
    except typer.Exit as end:
        code = end.exit_code
    streams.flush()
    if code == 0:
        audit.file(LOG).unlink(missing_ok=True)
    os._exit(code)


def _once(*_: Any) -> None:
    """A batch system signals every process of a job, and so does the worker: the second one must not interrupt the saving."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _print_to(audit: Audit) -> None:
    sys.stdout.flush()
    log = os.open(audit.file(LOG), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    streams.prepare()


def _audit(audit: Audit) -> None:
    from lsa_cli.auditing.plan import make_plan
    from lsa_cli.auditing.run import run_audit
    from lsa_cli.cli.saving import run_and_save
    from lsa_cli.report.outputs import Outputs

    plan = make_plan(audit.checkpoint, audit.settings, audit.origin, say=note)
    outputs = Outputs({"json": str(audit.file(REPORT))})
    journal = _journal(plan, audit)
    if audit.report() is not None:  # the process of a dead worker has completed it meanwhile
        journal.remove()
        return
    run_and_save(partial(run_audit, journal=journal), plan, outputs, journal, github=False, to_stdout=False, quiet=True)


def _journal(plan: "AuditPlan", audit: Audit) -> "Journal":
    """The journal of a worker that was killed, if it is of the same plan; otherwise a new one."""
    from lsa_cli.auditing.journal import Journal, JournalInUse
    from lsa_cli.auditing.provenance import identity_of
    from lsa_cli.errors import UsageError

    folder, identity = audit.file(f"{REPORT}.journal"), identity_of(plan)
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return Journal(folder, identity, resume=(folder / "plan.json").exists())
        except JournalInUse:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        except UsageError:
            return Journal(folder, identity, resume=False)
