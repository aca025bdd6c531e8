"""Streams and files in every state: the documented exit code, no traceback, and 1 for a breached gate alone."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lsa_cli.__main__ import app
from lsa_cli.files import IrregularFile, read_regular
from tests.cli.conftest import ROOT

SAVED = ROOT / "tests" / "gold" / "report.json"
MOON = ROOT / "sample_models" / "moon_mlp.pt"
MNIST = ROOT / "sample_models" / "mnist_cnn.pt"
QUICK = ["-n", "40", "--attack", "fgsm", "--noise", "none", "--threads", "1"]
COMMANDS = {
    "audit": [MOON, *QUICK],
    "init": [MOON, "--threads", "1"],
    "harden": [MOON, "--epochs", "1", "-n", "40", "--threads", "1"],
    "inspect": [MOON],
    "layers": [MOON],
    "list": ["attacks"],
    "report": [SAVED],
    "compare": [SAVED, SAVED],
    "gate": [SAVED, "--fail-under", "clean=0.1"],
    "check": ["settings.yaml"],
    "schema": ["report"],
    "doctor": [],
    "plot": [SAVED],
    "fleet": [MOON, "-o", "audits", *QUICK],
    "history": [SAVED.parent / "audits", "-o", "site"],
}
SLOW = ("harden", "doctor", "fleet")
STATES = {"closed": ">&-", "full": ">/dev/full", "file": ""}


def ended(folder, arguments, out="file", err="file"):
    """Exit code and stderr of the command, with its streams closed, on a device without room, or as they are."""
    command = shlex.join([sys.executable, "-m", "lsa_cli", *map(str, arguments)])
    redirected = f"{command} {STATES[out]} {f'2{STATES[err]}' if STATES[err] else ''}"
    done = subprocess.run(
        ["bash", "-c", redirected], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "settings.yaml").write_text("eps: 0.1\n")
    return tmp_path


def test_every_command_is_tried():
    from typer.main import get_command

    assert set(get_command(app).commands) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_stdout_is_refused_before_anything_is_begun(folder, name):
    code, said = ended(folder, [name, *COMMANDS[name]], out="closed")
    assert (code, said.count("\n"), "stdout is closed" in said) == (2, 1, True)
    assert {path.name for path in folder.iterdir()} == {"settings.yaml"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in COMMANDS]
)
def test_a_full_stdout_breaks_the_run_even_where_nothing_can_be_said(folder, name):
    code, _ = ended(folder, [name, *COMMANDS[name]], out="full", err="closed")
    assert code == (0 if name in ("plot", "history") else 3)  # these print nothing


@pytest.mark.parametrize("arguments", [["--help"], ["audit", "--help"]])
def test_help_with_closed_or_full_streams(folder, arguments):
    assert ended(folder, arguments, out="closed", err="closed")[0] == 2
    assert ended(folder, arguments, err="closed")[0] == 0
    code, said = ended(folder, arguments, out="full")
    assert (code, "Traceback" in said) == (3, False)


@pytest.mark.parametrize("arguments", [["--help"], ["schema", "report"], ["report", SAVED]])
def test_a_reader_that_leaves_early_is_no_breached_gate(folder, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lsa_cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, stdout=writer, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)  # fmt: skip
    os.close(writer)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)


@pytest.mark.parametrize("err", ["closed", "full"])
def test_a_lost_message_changes_no_exit_code(folder, err):
    assert ended(folder, ["gate", SAVED, "--fail-under", "robust=0.9"], err=err)[0] == 1
    assert ended(folder, ["report", "gone.json"], err=err)[0] == 2
    assert ended(folder, ["report", "--no-such-option"], err=err)[0] == 2


def test_a_file_never_gets_the_number_of_a_closed_stream(shell, tmp_path):
    command = shlex.join([sys.executable, "-m", "lsa_cli", "report", str(SAVED), "--html", "page.html"])
    done = subprocess.run(
        ["bash", "-c", f"{command} 2>&- 0<&-"], cwd=tmp_path, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"")
    assert (tmp_path / "page.html").read_text().rstrip().endswith("</html>")


def test_the_traceback_that_was_asked_for_is_no_breached_gate(lsa, monkeypatch):
    monkeypatch.setenv("LSA_TRACEBACK", "1")
    monkeypatch.setattr("lsa_cli.report.storage.read_report", lambda path: 1 / 0)
    result = lsa("report", SAVED)
    assert (result.code, "Traceback" in result.err, "ZeroDivisionError" in result.err) == (3, True, True)


@pytest.mark.skipif(os.name != "posix", reason="named pipes and /dev/stdout")
def test_a_pipe_gets_one_complete_report(folder):
    audit = [
        sys.executable,
        "-m",
        "lsa_cli",
        "audit",
        MOON,
        "-n",
        "20",
        "--attack",
        "fgsm",
        "--noise",
        "none",
        "--quiet",
    ]
    options = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stderr": subprocess.PIPE}
    done = subprocess.run([*audit, "--json", "/dev/stdout"], stdout=subprocess.PIPE, **options)
    assert done.returncode == 0, done.stderr
    assert b'"status"' in done.stdout
    assert json.loads(done.stdout[: done.stdout.rindex(b"}") + 1])["status"] == "complete"
    os.mkfifo(folder / "report")
    with subprocess.Popen(["cat", "report"], cwd=folder, stdout=subprocess.PIPE) as reader:
        done = subprocess.run([*audit, "--json", "report"], stdout=subprocess.DEVNULL, **options)
        assert done.returncode == 0, done.stderr
        assert json.loads(reader.communicate(timeout=60)[0])["status"] == "complete"


# ---- what is read --------------------------------------------------------------------------------------


@pytest.fixture
def odd(folder, monkeypatch):
    """Names of files that are none: a pipe, a device, a socket, a link to itself, a folder."""
    monkeypatch.chdir(folder)
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    os.symlink("/dev/zero", "zero")
    (folder / "directory").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("socket")
    yield ["pipe", "zero", "socket", "loop", "directory"]
    listening.close()


def test_what_is_no_regular_file_is_refused_at_once(lsa, odd):
    def hang(*_):
        raise AssertionError("it was opened")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(60)
    try:
        for name in odd:
            for arguments in (
                ["report", name],
                ["gate", name],
                ["compare", name, SAVED],
                ["compare", SAVED, name],
                ["plot", name],
                ["check", name],
                ["inspect", name],
                ["audit", name],
                ["gate", SAVED, "--config", name],
                ["audit", MOON, "--config", name],
                ["audit", MOON, "--plugin", name],
                ["audit", MOON, "--data", f"npz:{name}"],
                ["audit", MOON, "--data", f"csv:{name}"],
                ["audit", MOON, "--data", f"webdataset:{name}"],
                ["audit", MOON, "--arch", f"./{name}:build"],
                ["harden", MOON, "--mvl", name],
            ):
                result = lsa(*arguments)
                assert result.code == 2, (arguments, result.err)
                assert "lsa: error:" in result.err, (arguments, result.err)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_settings_that_are_no_regular_file_are_not_left_out(lsa, folder):
    os.mkfifo(folder / "lsa.yaml")
    result = lsa("gate", SAVED, "--fail-under", "clean=0.1")
    assert (result.code, "lsa.yaml cannot be read: it is a pipe" in result.err) == (2, True)


def test_a_pipe_among_the_images(lsa, folder):
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(folder / "images" / name / "1.png")
    os.mkfifo(folder / "images" / "b" / "2.png")
    result = lsa("audit", MNIST, "--data", "imagefolder:images", "--match-classes", "number", *QUICK[2:])
    assert result.code in (2, 3), result.err
    assert "2.png cannot be read as an image: it is a pipe" in result.err


def test_a_pipe_that_the_shell_has_opened_is_read(folder):
    command = f"{shlex.quote(sys.executable)} -m lsa_cli"
    script = f"{command} report - -q < <(cat {SAVED}) && {command} gate <(cat {SAVED}) --fail-under clean=0.1 -q"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "PASSED: 1 of 1 limit holds"


def test_a_file_without_an_end(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 1,000 bytes"):
        read_regular(tmp_path / "huge", 1000)
    reader, writer = os.pipe()
    os.write(writer, bytes(2000))
    with pytest.raises(OSError, match="larger than 1,000 bytes"):
        read_regular(f"/dev/fd/{reader}", 1000, pipes=True)
    with pytest.raises(IrregularFile):
        read_regular(f"/dev/fd/{reader}", 1000)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([2**63] * 40, dtype=np.uint64),
        np.array([2**31] * 40),
        np.array([-1] * 40),
        np.array([0.5] * 40),
        np.array([np.nan] * 40),
        np.array([np.inf] * 40),
        np.array([1e300] * 40),
        np.array([1j] * 40),
        np.array(["a"] * 40),
    ],
    ids=lambda labels: str(labels[0]),
)
def test_labels_that_are_no_class_numbers(refused, tmp_path, labels):
    np.savez(tmp_path / "data.npz", x=np.zeros((40, 28, 28), np.uint8), y=labels)
    refused("audit", MNIST, "--data", "npz:data.npz", *QUICK, says="npz:data.npz")


@pytest.mark.parametrize("label", ["9223372036854775808", "99999999999999999999", "-1", "0.5", "nan", "1e400"])
def test_labels_in_a_table(refused, tmp_path, label):
    Image.new("L", (28, 28)).save(tmp_path / "1.png")
    (tmp_path / "table.csv").write_text(f"path,label\n1.png,0\n1.png,{label}\n")
    refused("audit", MNIST, "--data", "csv:table.csv", *QUICK[2:], says=["csv:table.csv", label])


# ---- what is written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loop", "directory", "gone/file", "x" * 300])
def test_outputs_that_cannot_be_made_are_refused_before_anything_runs(refused, odd, name):
    ending = "" if name in odd else ".parquet"
    for option in ("--json", "--html", "--md", "--junit", "--badge"):
        refused("audit", MOON, *QUICK, option, name, says=option)
        refused("report", SAVED, option, name, says=option)
    refused("audit", MOON, *QUICK, "--samples", f"{name}.csv" if ending else name, says="--samples")
    if name != "directory":
        refused("init", MOON, "--output", name, says="--output")
        refused("compare", SAVED, SAVED, "--json", name, says="--json")
    if name == "loop":
        refused("audit", MOON, *QUICK, "--csv", name, says="--csv")
        refused("plot", SAVED, "--output", name, says="--output")


def test_a_pipe_that_nobody_reads(lsa, odd):
    result = lsa("report", SAVED, "--html", "pipe")
    assert (result.code, "pipe could not be written: no process reads this pipe" in result.err) == (3, True)


def test_a_full_report_outlives_what_comes_after_it(lsa, folder):
    """An interrupted rerun leaves it, and says where its part is; a quick one takes another name, or says what it replaces."""
    whole = ["audit", MOON, "-n", "60", "--attack", "fgsm", "--noise", "none", "--threads", "1"]
    assert lsa(*whole).code == 0
    report = folder / "moon_mlp.audit.json"
    before = report.read_bytes()
    (folder / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom lsa_cli.attacks import ATTACKS, Attack, Threat\n"
        "@ATTACKS.register('stops')\n@dataclass(frozen=True)\nclass Stops(Attack):\n    threat: Threat\n"
        "    def perturb(self, model, x, y):\n        raise KeyboardInterrupt\n"
    )
    (folder / "page.html").write_text("of the full report")
    stopped = lsa(*whole, "--attack", "stops", "--plugin", "mine.py", "--html", "page.html", "--junit", "r.xml")
    assert stopped.code == 130
    assert report.read_bytes() == before
    assert (folder / "page.html").read_text() == "of the full report"
    assert "not complete" in (folder / "page.partial.html").read_text()
    assert "not complete" in (folder / "r.xml").read_text()  # a server would take old results for new ones
    part = json.loads((folder / "moon_mlp.audit.partial.json").read_text())
    assert (part["status"], [outcome["name"] for outcome in part["outcomes"]]) == ("interrupted", ["fgsm"])
    assert "moon_mlp.audit.partial.json" in stopped.err
    assert "moon_mlp.audit.json is a complete report and is kept" in stopped.err
    assert lsa(*whole).code == 0  # a complete one replaces it, and its part is gone
    assert not (folder / "moon_mlp.audit.partial.json").exists()

    before = report.read_bytes()
    quick = lsa("audit", MOON, "--quick", "--threads", 1, "-q")
    assert (quick.code, report.read_bytes()) == (0, before)
    assert "moon_mlp.audit.quick.json" in quick.err
    assert (folder / "moon_mlp.audit.quick.json").exists()
    named = lsa("audit", MOON, "--quick", "--threads", 1, "-q", "--json", "moon_mlp.audit.json")
    assert named.code == 0
    assert "60 samples, fgsm" in named.err
    assert "replaces it" in named.err
    again = lsa("audit", MOON, "--quick", "--threads", 1, "-q")
    assert (again.err, report.read_bytes() != before) == ("", True)
