"""The loop of a worker: claim an audit, run it in a process of its own, settle it; until all audits are settled."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from lsa_cli.errors import EXIT_OK
from lsa_cli.fleet.claims import Claim, Claims, remove_claims
from lsa_cli.fleet.folder import FAILURE, LOG, Audit

_TICK = 1.0  # seconds between two looks at the folder
_TRIES = 3  # of an audit whose process dies; each goes on from the journal (our choice)
Work = Callable[[Audit, int | None], None]  # ends its process with an exit code; saves the report or the failure


@dataclass
class _Running:
    process: BaseProcess
    claim: Claim | None
    place: int
    tries: int = 1


class Worker:
    """Runs audits, at most `places` at once. claims: None where no other worker gets the same audits.

    since: as in `Audit.failure`. devices: the number of CUDA devices, of which each process gets one. tell: gets each audit
    that is settled.
    """

    def __init__(
        self, audits: Sequence[Audit], work: Work, tell: Callable[[Audit], None], *, places: int, devices: int,
        claims: Claims | None, since: int, fail_fast: bool,
    ) -> None:  # fmt: skip
        self.waiting, self.work, self.tell = list(audits), work, tell
        self.places, self.devices, self.claims, self.since, self.fail_fast = places, devices, claims, since, fail_fast
        self.running: dict[str, tuple[Audit, _Running]] = {}
        # A fork starts at once; after a fork CUDA cannot be used.
        self._context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" and not devices else "spawn")
        self._stops = False

    def run(self) -> None:
        """Return when every audit is settled, by this worker or another one; with fail_fast at the first failure."""
        try:
            while (self.waiting or self.running) and not self._stops:
                for name in list(self.running):
                    self._look(*self.running[name])
                self._start()
                if self.waiting or self.running:
                    wait([run.process.sentinel for _, run in self.running.values()], timeout=_TICK)
        finally:
            self._stop()

    # ---- one audit -------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the audits that can start, and report those that another worker has finished."""
        for audit in list(self.waiting):
            if self._stops:
                return
            if self.claims is not None and self.claims.is_held(audit.file("")):
                continue
            if self._is_settled(audit):
                if remove_claims(audit.file("")):  # of a worker that died after it had saved the report
                    audit.remove_temporaries()
                self._settled(audit)
            elif len(self.running) < self.places:
                self._claim(audit)

    def _claim(self, audit: Audit) -> None:
        audit.file("").parent.mkdir(parents=True, exist_ok=True)
        claim = None
        if self.claims is not None:
            claim = self.claims.take(audit.file(""))
            if claim is None:
                return
            if self._is_settled(audit):  # by a worker that was faster
                claim.settle()
                self._settled(audit)
                return
        audit.file(FAILURE).unlink(missing_ok=True)
        taken = {run.place for _, run in self.running.values()}
        place = next(place for place in range(self.places) if place not in taken)
        self.waiting.remove(audit)
        self.running[audit.name] = audit, _Running(self._process(audit, place), claim, place)

    def _process(self, audit: Audit, place: int) -> BaseProcess:
        device = place % self.devices if self.devices else None
        process: BaseProcess = self._context.Process(target=self.work, args=(audit, device), name=audit.name)
        process.start()
        return process

    def _look(self, audit: Audit, run: _Running) -> None:
        """Renew the claim of a running audit; settle one that has ended; start one again whose process was killed."""
        code = run.process.exitcode
        if run.claim is not None and not run.claim.renew():
            run.process.kill()
            run.process.join()
            self._forget(audit)
            self.waiting.append(audit)
        elif code is not None and (self._is_settled(audit) or run.tries == _TRIES):
            if not self._is_settled(audit):
                audit.fail(f"its process {_how(code)} {_TRIES} times; {audit.file(LOG)} has what it printed")
            audit.remove_temporaries()  # before others may judge the report anew
            if run.claim is not None:
                run.claim.settle()
            self._forget(audit)
            self._settled(audit)
        elif code is not None:
            run.process = self._process(audit, run.place)
            run.tries += 1

    def _forget(self, audit: Audit) -> None:
        del self.running[audit.name]

    def _is_settled(self, audit: Audit) -> bool:
        return audit.report() is not None or audit.failure(self.since) is not None

    def _settled(self, audit: Audit) -> None:
        if audit in self.waiting:
            self.waiting.remove(audit)
        self.tell(audit)
        self._stops |= self.fail_fast and audit.report() is None

    def _stop(self) -> None:
        """End what still runs. Its journal stays, and its claim is released."""
        for _, run in self.running.values():
            run.process.terminate()
        for audit, run in self.running.values():
            run.process.join()
            if run.claim is not None and self._is_settled(audit):
                run.claim.settle()
            elif run.claim is not None:
                run.claim.release()
        self.running.clear()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def end_with_parent(parent: int) -> None:
    """End this process soon after the process that started it: what it measured is in the journal."""
    import threading
    import time

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(EXIT_OK)

    threading.Thread(target=watch, daemon=True).start()
