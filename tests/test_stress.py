"""What goes wrong around an audit: others beside it, a full disk, no right to write, a stop, data that is gone, the clock."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lsa_cli.auditing.journal import Journal, JournalInUse
from lsa_cli.report.storage import read_report
from tests.cli.conftest import ROOT

MOON = ROOT / "sample_models" / "moon_mlp.pt"
MNIST = ROOT / "sample_models" / "mnist_cnn.pt"
SHORT = ("-n", "60", "--attack", "fgsm", "--noise", "none", "--threads", "1")
LONG = ("-n", "60", "--attack", "fgsm", "--attack", "pgd:steps=100000", "--noise", "none", "--threads", "1")


def start(folder, *arguments, prelude="", **options):
    """The command as a process of its own, with the working directory `folder`."""
    code = f"{prelude}\nimport sys; sys.argv[0] = 'lsa'\nfrom lsa_cli.__main__ import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **options,
    )  # fmt: skip


def end(process, timeout=300):
    out, err = process.communicate(timeout=timeout)
    assert "Traceback" not in err
    return process.returncode, out, err


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def leftovers(folder):
    return [path.name for path in folder.rglob("*") if path.suffix in (".tmp", ".part")]


# ---- many at once -----------------------------------------------------------------------------------------------


def test_a_journal_has_one_owner(tmp_path):
    first = Journal(tmp_path / "j", {"a": 1}, resume=False)
    first.put("clean", 0, {"x": np.arange(3)})
    for resume in (False, True):
        with pytest.raises(JournalInUse, match="another running audit"):
            Journal(tmp_path / "j", {"a": 1}, resume=resume)
    assert first.get("clean", 0) is not None
    first.close()
    assert Journal(tmp_path / "j", {"a": 1}, resume=True).get("clean", 0) is not None


def test_a_journal_that_is_removed_while_another_waits_is_made_anew(tmp_path):
    first = Journal(tmp_path / "j", {}, resume=False)
    first.remove()
    second = Journal(tmp_path / "j", {}, resume=False)
    second.put("clean", 0, {"x": np.arange(3)})
    assert second.get("clean", 0) is not None


MANY = """
import os, sys
from lsa_cli import audit  # loads torch once, so that all begin at the same moment
from lsa_cli.__main__ import main
processes = []
for number in range(20):
    processes.append(os.fork())
    if not processes[-1]:
        sys.argv = ["lsa", *sys.argv[1:], "--seed", str(number % 3)]
        main()
for process in processes:
    _, status = os.waitpid(process, 0)
    if status:
        sys.exit(f"exit code {os.waitstatus_to_exitcode(status)}")
"""


def test_audits_of_one_model_in_one_folder_at_once(tmp_path):
    """Same command, same folder, no names given: each ends right, in a report of its own or the same one whole."""
    arguments = [sys.executable, "-c", MANY, "audit", str(MOON), *SHORT]
    done = subprocess.run(
        arguments, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.count("robust accuracy") >= 20
    reports = [read_report(tmp_path / name) for name in names(tmp_path)]
    assert 1 <= len(reports) <= 20
    assert all(report.status == "complete" for report in reports)
    by_seed = {}
    for report in reports:
        by_seed.setdefault(report.protocol.seed, set()).add((report.verdict.robust.count, report.data.fingerprint))
    assert all(len(found) == 1 for found in by_seed.values())


def test_a_second_audit_takes_the_next_name_and_a_named_one_is_refused(tmp_path):
    held = Journal(tmp_path / "moon_mlp.audit.json.journal", {}, resume=False)
    code, _, err = end(start(tmp_path, "audit", MOON, *SHORT))
    assert (code, "this one writes moon_mlp.audit.2.json" in err) == (0, True)
    assert names(tmp_path) == ["moon_mlp.audit.2.json", "moon_mlp.audit.json.journal"]
    code, _, err = end(start(tmp_path, "audit", MOON, *SHORT, "--json", "moon_mlp.audit.json"))
    assert (code, "another running audit" in err) == (2, True)
    held.remove()


# ---- the disk -----------------------------------------------------------------------------------------------------


def test_a_file_that_may_not_grow(tmp_path):
    """As a full disk, where none can be mounted: files end at 8 kB, so the report does not fit."""
    limit = 8_000

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    (tmp_path / "old.json").write_text("{}")
    code, _, err = end(
        start(tmp_path, "audit", MOON, *SHORT, "-n", "400", "--json", "old.json", preexec_fn=small_files)
    )
    assert code == 3
    assert "could not be written" in err or "cannot be written" in err
    assert leftovers(tmp_path) == []
    kept = (tmp_path / "old.json").read_text()
    assert kept == "{}" or json.loads(kept)["schema_version"]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(small_disk):
    (small_disk / "ballast").write_bytes(b"0" * 60_000)
    code, _, err = end(start(small_disk, "audit", MOON, *SHORT, "-n", "400"))
    assert code == 3
    assert "No space left on device" in err
    assert leftovers(small_disk) == []
    for path in small_disk.glob("*.json"):
        read_report(path)


def test_a_read_only_folder(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, out, err = end(start(small_disk, "audit", MOON, *SHORT))
    assert (code, "the report is not saved here" in err, "robust accuracy" in out) == (0, True, True)
    code, _, err = end(start(small_disk, "audit", MOON, *SHORT, "--json", "r.json"))
    assert (code, "Read-only file system" in err) == (2, True)
    assert names(small_disk) == []


# ---- stopped ------------------------------------------------------------------------------------------------------


def test_a_stop_before_anything_is_measured(tmp_path):
    """While torch is loaded: no report yet, no traceback, and the same exit code."""
    tells = """
import sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == 'torch':
            open('ready', 'w').close()
sys.meta_path.insert(0, Finder)"""
    process = start(tmp_path, "audit", MOON, *LONG, prelude=tells)
    wait_for((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process)
    assert (code, err.strip().endswith("interrupted")) == (130, True)
    assert [name for name in names(tmp_path) if name.endswith(".json")] == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_c_code_replaces_is_an_interrupt(tmp_path, name):
    """As PyCapsule_Import does: an import that is interrupted ends in an ImportError without a cause."""
    replaces = f"""
import os, signal, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == 'torch':
            try:
                os.kill(os.getpid(), signal.{name})
                while True: pass
            except KeyboardInterrupt:
                pass
            raise ImportError('could not import module') from None
sys.meta_path.insert(0, Finder)"""
    code, _, err = end(start(tmp_path, "audit", MOON, *LONG, prelude=replaces))
    assert (code, err.strip()) == (130, "lsa: interrupted")


def test_a_stop_in_the_middle_then_on(tmp_path):
    process = start(tmp_path, "audit", MOON, *LONG)
    report = tmp_path / "moon_mlp.audit.json"
    wait_for(lambda: report.exists() and read_report(report).outcomes, process)
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process)
    assert (code, "--resume" in err) == (130, True)
    assert read_report(report).status == "interrupted"
    assert leftovers(tmp_path) == []
    assert names(tmp_path) == ["moon_mlp.audit.json", "moon_mlp.audit.json.journal"]


def test_a_stopped_gate_only_run(tmp_path):
    (tmp_path / "waiting.py").write_text(
        "import time\nfrom dataclasses import dataclass\nfrom lsa_cli.attacks import ATTACKS, Attack, Threat\n"
        "@ATTACKS.register('waits')\n@dataclass(frozen=True)\nclass Waits(Attack):\n    threat: Threat\n"
        "    def perturb(self, model, x, y):\n        open('ready', 'w').close()\n        time.sleep(600)\n"
    )
    options = ("--attack", "waits", "--plugin", "waiting.py", "--gate-only", "--fail-under", "robust=0.5")
    process = start(tmp_path, "audit", MOON, "-n", "60", "--noise", "none", "--threads", "1", *options)
    wait_for((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process)
    assert (code, "Traceback" in err) == (130, False)
    assert leftovers(tmp_path) == []


# ---- the world changes ----------------------------------------------------------------------------------------------


def test_data_that_vanishes(tmp_path):
    """An image folder that is deleted in the first block of samples: exit 3, and the results of the block are kept."""
    from PIL import Image

    with np.load(ROOT / "sample_models" / "mnist.npz") as saved:
        x, y = saved["x_test"][:400], saved["y_test"][:400]
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        folder = tmp_path / "data" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(folder / f"{i}.png")
    process = start(
        tmp_path, "audit", MNIST, "--data", "imagefolder:data?mode=gray", "--attack", "fgsm", "--attack", "pgd:steps=120",
        "--noise", "none", "--batch-size", "16", "--threads", "1", "--json", "r.json",
    )  # fmt: skip
    report = tmp_path / "r.json"
    wait_for(lambda: report.exists() and read_report(report).outcomes, process)
    shutil.rmtree(tmp_path / "data")
    code, _, err = end(process)
    assert code == 3, err
    assert "could be read when the audit began" in err
    saved = read_report(report)
    assert (saved.status, [outcome.name for outcome in saved.outcomes]) == ("failed", ["fgsm", "pgd"])
    assert saved.data.n == 64
    assert leftovers(tmp_path) == []


def test_a_clock_that_jumps(tmp_path):
    """Days forward and back at every look at it: durations and the time budget come from a clock that does not."""
    jumps = "import time, random; _t = time.time; time.time = lambda: _t() + random.uniform(-1e6, 1e6)"
    code, _, err = end(start(tmp_path, "audit", MOON, *SHORT, "--budget", "10m", prelude=jumps))
    assert code == 0, err
    report = read_report(tmp_path / "moon_mlp.audit.json")
    assert (report.status, report.not_run) == ("complete", [])
    assert 0 <= report.seconds < 600
    assert all(0 <= outcome.seconds < 600 for outcome in report.outcomes)
