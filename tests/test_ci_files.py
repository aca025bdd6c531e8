"""The files that other tools read: the GitHub action, the pre-commit hooks, the GitLab component, the Dockerfile."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml

from lsa_cli.__main__ import app

ROOT = Path(__file__).parent.parent
COMMANDS = typer.main.get_command(app).commands


def options(command):
    return {flag for parameter in COMMANDS[command].params for flag in (*parameter.opts, *parameter.secondary_opts)}


def calls(text):
    """The lsa commands in a text, each with its options; `lsa` may be a variable."""
    for found in re.finditer(r'(?<![\w/-])"?\$?lsa"? (audit|compare|gate|check)\b((?:\\\n|[^\n|&(])*)', text):
        yield found[1], set(re.findall(r"(?<=\s)--[a-z-]+", found[2]))


@pytest.mark.parametrize("name", ["action.yml", "templates/audit.yml", ".pre-commit-hooks.yaml", "Dockerfile"])
def test_every_option_exists(name):
    found = list(calls((ROOT / name).read_text()))
    assert found
    for command, used in found:
        assert used <= options(command), (command, used - options(command))


def test_action_is_whole():
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    steps = action["runs"]["steps"]
    assert all("shell" in step for step in steps if "run" in step)
    # An input pasted into a script would be run as one: scripts read their environment alone.
    assert not any("${{" in step["run"] for step in steps if "run" in step)
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"inputs\.([a-z-]+)", text)) == set(action["inputs"])
    identifiers = {step["id"] for step in steps if "id" in step}
    assert set(re.findall(r"steps\.([a-z]+)\.", text)) <= identifiers


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("audit", "compare", "ends"), [(0, 0, 0), (0, 1, 1), (1, 0, 1), (2, 0, 2), (3, 0, 3), (1, 2, 2)]
)
def test_the_audit_step_ends_with_the_worse_code(tmp_path, audit, compare, ends):
    """The script of the step, with an lsa that notes what it is given and ends as told."""
    lsa = tmp_path / ".cache" / "lsa-venv" / "bin" / "lsa"
    lsa.parent.mkdir(parents=True)
    lsa.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >> calls\n[ "$1" = audit ] && exit {audit}\nexit {compare}\n')
    lsa.chmod(0o755)
    step = next(
        step for step in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"] if step.get("id") == "audit"
    )
    env = {
        **os.environ, "HOME": str(tmp_path), "GITHUB_OUTPUT": "out", "GITHUB_STEP_SUMMARY": "summary", "REPORTS": "r",
        "CHECKPOINT": "my model.pt", "ARGUMENTS": "--data 'npz:a b.npz' -n 100 --plugin $(touch hacked) ;", "BASELINE": "old.json",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step["run"]], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"exit-code={ends}\n" in (tmp_path / "out").read_text()
    given = (tmp_path / "calls").read_text().splitlines()
    assert given[:7] == ["audit", "my model.pt", "--data", "npz:a b.npz", "-n", "100", "--plugin"]
    assert not (tmp_path / "hacked").exists()
    assert ("compare" in given) == (audit <= 1)


def test_pre_commit_hooks():
    hooks = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    assert re.search(hooks["lsa-policy"]["files"], "models/lsa.yaml")
    assert not re.search(hooks["lsa-policy"]["files"], "models/otherlsa.yaml")
    assert re.search(hooks["lsa-gate"]["files"], "model.audit.json")


def test_gitlab_component():
    spec, job = yaml.safe_load_all((ROOT / "templates" / "audit.yml").read_text())
    text = (ROOT / "templates" / "audit.yml").read_text()
    assert set(re.findall(r"\$\[\[ inputs\.([a-z-]+) \]\]", text)) == set(spec["spec"]["inputs"])
    (content,) = job.values()
    assert content["artifacts"]["when"] == "always"
    written = set(re.findall(r"lsa-reports/[\w.]+", " ".join(content["script"])))
    assert set(content["artifacts"]["reports"].values()) <= written


def test_dockerfile():
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER 1000$", text, flags=re.M)
    copied = [source for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.M) for source in line.split()]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert all((ROOT / source).exists() for source in copied)
    if shutil.which("hadolint"):
        done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")


def test_configurations_are_checked(tmp_path):
    from typer.testing import CliRunner

    good, bad = tmp_path / "lsa.yaml", tmp_path / "bad.yaml"
    good.write_text("gate: {robust: 0.4}\n")
    bad.write_text("gate: {rubost: 0.4}\n")
    assert CliRunner().invoke(app, ["check", str(good)]).stdout == f"{good}: 1 limit\n"
    refused = CliRunner().invoke(app, ["check", str(good), str(bad)])
    assert (refused.exit_code, "did you mean 'robust'" in refused.stderr) == (2, True)


def test_docs_name_only_what_exists():
    """Every lsa command in README and docs, with its options."""
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert len(texts) > 1
    for path in texts:
        for block in re.findall(r"```(?:\w*)\n(.*?)```", path.read_text(), flags=re.S):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.match(r"(?:\$ )?lsa (\w+)(.*)", line.partition("#")[0])
                if found:
                    assert found[1] in COMMANDS, (path.name, line)
                    used = set(re.findall(r"(?<=\s)--[a-z-]+", found[2]))
                    assert used <= options(found[1]), (path.name, line, used - options(found[1]))
