"""Claims: one worker for an audit at any time, and dead workers hold nothing."""

import json
import subprocess
import sys

import pytest

from lsa_cli.fleet.claims import Claims, remove_claims
from tests.fleet.conftest import ROOT


def of_another_machine(claim):
    """Make a claim look as if another machine had made it."""
    claim.file.write_text(json.dumps({**json.loads(claim.file.read_text()), "machine": "another one"}))


def test_a_claim_is_taken_once(tmp_path):
    report = tmp_path / "model.pt"
    mine, yours = Claims(), Claims()
    claim = mine.take(report)
    assert claim is not None
    assert yours.is_held(report)
    assert yours.take(report) is None
    claim.release()
    assert not yours.is_held(report)
    second = yours.take(report)
    assert (second.number, mine.take(report)) == (2, None)
    second.settle()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_without_renewals_is_taken_over_and_its_owner_notices(tmp_path):
    report = tmp_path / "model.pt"
    claim = Claims(lease=0.0).take(report)
    of_another_machine(claim)
    assert Claims().take(report) is None  # the first look: it may be alive
    impatient = Claims(lease=0.0)
    assert claim.renew()
    second = impatient.take(report)
    assert second.number == 2
    assert not claim.renew()
    assert second.renew()
    remove_claims(report)
    assert not second.renew()


def test_a_renewal_keeps_a_claim_alive_for_another_lease(tmp_path):
    report = tmp_path / "model.pt"
    claim = Claims(lease=0.0).take(report)
    of_another_machine(claim)
    other = Claims(lease=1000.0)
    assert other.is_held(report)
    file, (renewed, since) = next(iter(other._seen.items()))
    other._seen[file] = renewed, since - 2000.0  # as if it had waited for two leases
    assert not other.is_held(report)
    other._seen[file] = renewed - 1.0, since - 2000.0  # the same wait, with a renewal since the last look
    assert other.is_held(report)


RACE = """
import sys, time
from pathlib import Path
from lsa_cli.fleet.claims import Claims
folder = Path(sys.argv[1])
(folder / f"ready-{sys.argv[2]}").touch()
while not (folder / "go").exists():
    pass
won = [n for n in range(200) if Claims().take(folder / f"model-{n}.pt")]
print(*won)
sys.stdin.read()
"""


def test_of_workers_that_claim_at_once_one_wins_and_a_process_that_ended_holds_nothing(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, tmp_path, str(number)], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(3)
    ]  # fmt: skip
    while len(list(tmp_path.glob("ready-*"))) < len(workers):
        pass
    (tmp_path / "go").touch()
    won = [worker.stdout.readline().split() for worker in workers]
    assert sorted(int(number) for numbers in won for number in numbers) == list(range(200))
    claims = Claims()
    assert claims.take(tmp_path / "model-0.pt") is None
    for worker in workers:
        worker.communicate("")
    assert {claims.take(tmp_path / f"model-{number}.pt").number for number in range(200)} == {2}


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OSError, match="model"):
        Claims().take(tmp_path / "absent" / "model.pt")
