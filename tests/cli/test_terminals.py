"""The same report in a narrow terminal, a dumb one, and a log file; through a pseudo-terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from rich.cells import cell_len

from tests.cli.conftest import ROOT

SAVED = ROOT / "tests" / "gold" / "report.json"
MOON = ROOT / "sample_models" / "moon_mlp.pt"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def terminal(folder, *arguments, columns=60, term="xterm-256color", module=True, **env):
    """Exit code and all that a terminal of so many columns gets. module: the arguments are those of lsa, not of Python."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    plain = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    }
    process = subprocess.Popen(
        [sys.executable, *("-m", "lsa_cli") * module, *map(str, arguments)], stdin=slave, stdout=slave, stderr=slave, cwd=folder,
        env={**plain, "PYTHONPATH": str(ROOT), "TERM": term, **env}, close_fds=True,
    )  # fmt: skip
    os.close(slave)
    out = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        out += part
    os.close(master)
    return process.wait(), out.decode().replace("\r\n", "\n")


def words(text):
    return " ".join(text.split())


def test_sixty_columns(tmp_path):
    code, out = terminal(tmp_path, "report", SAVED)
    assert code == 0
    text = ESCAPE.sub("", out)
    assert max(cell_len(line) for line in text.splitlines()) <= 60
    assert "…" not in text  # nothing is cut: what has no room is left out, and named
    assert "columns left out because the terminal is narrow: time, settings, median distance" in words(text)
    assert re.search(r"pgd +30\.0% +\[25\.0, 35\.0\] +60/90", text)
    assert re.search(r"relu2 +0\.800 .*MVL", text)
    assert "Gate BREACHED: robust: measured 0.3000 [0.2500, 0.3500], at least 0.5 required" in words(text)


def test_room_for_all(tmp_path):
    _, out = terminal(tmp_path, "report", SAVED, columns=120)
    text = ESCAPE.sub("", out)
    assert "left out" not in text
    assert "median distance" in text
    assert "\x1b[" in out


@pytest.mark.parametrize(("term", "env"), [("dumb", {}), ("xterm-256color", {"NO_COLOR": "1"})])
def test_a_terminal_without_colours(tmp_path, term, env):
    code, out = terminal(tmp_path, "gate", SAVED, "--fail-under", "robust=0.9", term=term, **env)
    assert code == 1
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", out)
    assert ESCAPE.sub("", out).startswith("Gate BREACHED: robust")
    if term == "dumb":
        assert "\x1b" not in out


def test_an_audit_in_a_terminal_ends_clean(tmp_path):
    """The progress bar is gone when the report stands there; in a dumb terminal there is none."""
    short = ("audit", MOON, "-n", 40, "--attack", "fgsm", "--noise", "none", "--threads", 1)
    for term in ("xterm-256color", "dumb"):
        code, out = terminal(tmp_path, *short, term=term)
        assert code == 0
        assert ("\x1b" in out) == (term != "dumb")
        last = ESCAPE.sub("", out).rstrip().splitlines()[-1]
        assert "report saved: moon_mlp.audit.json" in words(ESCAPE.sub("", out))[-60:], last


def test_a_log_file(shell):
    result = shell("audit", MOON, "-n", 40, "--attack", "fgsm", "--noise", "none", "--threads", 1)
    assert result.code == 0
    assert "\x1b" not in result.out + result.err
    assert "\r" not in result.out + result.err
    assert "…" not in result.out


def test_quiet_is_one_line(shell):
    result = shell("audit", MOON, "-n", 40, "--attack", "fgsm", "--noise", "none", "--threads", 1, "--quiet")
    assert (result.code, result.out.count("\n"), result.err) == (0, 1, "")
