import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lsa_cli.__main__ import app

ROOT = Path(__file__).parent.parent.parent


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def lsa(tmp_path, monkeypatch):
    """Run the command in an empty working directory, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="lsa")
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def shell(tmp_path):
    """Run the command as a process of its own, in an empty working directory."""

    def run(*arguments, env=None, cwd=None):
        import os

        done = subprocess.run(
            [sys.executable, "-m", "lsa_cli", *map(str, arguments)],
            cwd=cwd or tmp_path, capture_output=True, text=True, timeout=300,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def refused(lsa):
    """Run the command, which must end in one sentence that holds these words, and write nothing."""

    def run(*arguments, says, code=2, leaves=()):
        before = set(Path.cwd().rglob("*"))
        result = lsa(*arguments)
        assert result.code == code, (result.out, result.err)
        lines = [line for line in result.err.splitlines() if line.startswith("lsa: error:")]
        assert len(lines) == 1, result.err
        assert "Traceback" not in result.err
        for word in [says] if isinstance(says, str) else says:
            assert word in lines[0], lines[0]
        assert result.out == ""
        assert {path.name for path in set(Path.cwd().rglob("*")) - before} == set(leaves)
        return lines[0]

    return run
