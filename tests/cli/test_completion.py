"""What TAB offers after an option, asked as the scripts of the shells ask; and by the shells that are installed."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys

import pytest

from lsa_cli.attacks import ATTACKS, CORRUPTIONS, NOISES, NORMS
from lsa_cli.hardening.methods import HARDENINGS
from tests.cli.conftest import ROOT

CODE = "import sys; sys.argv[0] = 'lsa'; from lsa_cli.__main__ import main; main()"
SELECTED = ["activations", "learnable", "blocks", "none"]
MOON = str(ROOT / "sample_models" / "moon_mlp.pt")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A folder with the command `lsa` of this checkout."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "lsa").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{CODE}" "$@"\n')
    (folder / "lsa").chmod(0o755)
    return folder


def environment(program, **others):
    return {**os.environ, "PATH": f"{program}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **others}


def offered(program, line, shell="bash"):
    """What is offered for the last word of the line."""
    words = line.split(" ")
    asked = {"_LSA_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        asked |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    else:
        asked |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(["lsa"], env=environment(program, **asked), capture_output=True, text=True)
    assert done.stderr == ""
    if shell == "zsh":
        return re.findall(r'"([^"]+)"', done.stdout)
    return [each.partition("\t")[0] for each in done.stdout.splitlines()]


def test_every_name_is_offered(program):
    assert offered(program, "lsa audit x.pt --attack ") == [*ATTACKS.names(), "none"]
    assert offered(program, "lsa audit x.pt --noise ") == [*NOISES.names(), "none"]
    assert offered(program, "lsa fleet x.pt --corruption f") == [n for n in CORRUPTIONS.names() if n.startswith("f")]
    assert offered(program, "lsa audit x.pt --norm ") == list(NORMS)
    assert offered(program, "lsa harden x.pt --method ") == HARDENINGS.names()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lsa audit x.pt --attack pg", ["pgd"]),
        ("lsa audit x.pt --metrics eni,b", ["eni,boundary"]),
        ("lsa audit x.pt --sigma ", ["samples", "layers"]),
        ("lsa audit x.pt --fail-on ", ["doubtful", "invalid"]),
        ("lsa gate x.json --fail-under clea", ["clean="]),
        ("lsa list me", ["measures", "methods", "metrics"]),
        ("lsa schema co", ["comparison", "config"]),
        ("lsa history a --order e", ["epoch"]),
        ("lsa plot a.json --format p", ["png", "pdf"]),
        ("lsa harden x.pt --schedule co", ["cosine", "constant"]),
    ],
)
def test_words_of_an_option(program, line, expected):
    assert offered(program, line) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_ask_in_their_own_way(program, shell):
    assert offered(program, "lsa audit x.pt --attack apgd", shell) == ["apgd-ce", "apgd-dlr", "apgd-t"]


def test_layers_are_those_of_the_checkpoint_on_the_line(program):
    layers = offered(program, f"lsa audit {MOON} --layers ")[len(SELECTED) :]
    done = subprocess.run(
        [sys.executable, "-m", "lsa_cli", "layers", MOON], capture_output=True, text=True, env=environment(program)
    )
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert layers
    assert layers == [row[0] for row in rows if "(output)" not in row]
    assert offered(program, f"lsa audit {MOON} --layers activations,lea") == ["activations,learnable"]
    assert offered(program, "lsa audit nowhere.pt --layers ") == SELECTED


def test_completion_runs_no_code_of_the_user(program, tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "net.py").write_text(f"open({str(mark)!r}, 'w')\ndef make(): pass\n")
    line = f"lsa audit {MOON} --arch {tmp_path}/net.py:make --layers "
    assert offered(program, line) == SELECTED
    assert not mark.exists()


def script_of(program, shell):
    """What `lsa --show-completion` prints in this shell, which must be installed."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    asked = environment(program, _LSA_COMPLETE=f"source_{shell}")
    return subprocess.run(["lsa"], env=asked, capture_output=True, text=True).stdout


def test_bash_completes(program):
    script = script_of(program, "bash")
    function = re.search(r"-F (\S+) lsa", script)[1]
    asked = f'COMP_WORDS=(lsa audit x.pt --attack t-); COMP_CWORD=4; {function} lsa; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{asked}"], env=environment(program), capture_output=True, text=True
    )
    assert (done.stdout.split(), done.stderr) == (["t-pgd", "t-pgd-grid"], "")


def test_fish_completes(program, tmp_path):
    script = script_of(program, "fish")
    (tmp_path / "own_model.pt").touch()

    def ask(line):
        done = subprocess.run(
            ["fish", "--no-config", "-c", f'{script}\ncomplete -C "{line}"'], env=environment(program), cwd=tmp_path,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.stderr == ""
        return [each.partition("\t")[0] for each in done.stdout.splitlines()]

    assert ask("lsa audit x.pt --attack apgd") == ["apgd-ce", "apgd-dlr", "apgd-t"]
    assert ask("lsa audit own") == ["own_model.pt"]


def test_zsh_completes(program, tmp_path):
    """In an interactive shell behind a pseudo-terminal, after compinit, with TAB."""
    (tmp_path / "lsa.zsh").write_text(script_of(program, "zsh"))
    (tmp_path / "own_model.pt").touch()
    master, slave = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path, start_new_session=True,
        env=environment(program, TERM="dumb", PS1="READY>"),
    )  # fmt: skip
    os.close(slave)

    def send(keys, shows):
        os.write(master, keys)
        seen = b""
        while shows not in seen:
            readable, _, _ = select.select([master], [], [], 120)
            assert readable, seen
            seen += os.read(master, 65536)

    try:
        send(b"", b"READY>")
        send(b"autoload -Uz compinit; compinit -u -D; source ./lsa.zsh\n", b"READY>")
        send(b"lsa audit x.pt --attack apgd-d\t", b"apgd-dlr ")
        send(b"\x15\n", b"READY>")  # empties the line
        send(b"lsa audit own_model.pt --sigma la\t", b"layers ")
    finally:
        shell.kill()
        shell.wait()
        os.close(master)
