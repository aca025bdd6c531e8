"""The files that other tools read: the GitHub action, the pre-commit hooks, the GitLab component, the Dockerfile."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
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


@pytest.mark.parametrize(
    "name",
    ["action.yml", "templates/audit.yml", ".pre-commit-hooks.yaml", "Dockerfile", "docs/ci/repository/.gitlab-ci.yml"],
)
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


@pytest.fixture
def job(tmp_path):
    """Runs the script of the action's audit step, or of the GitLab job, with an lsa that notes what it is given and ends
    as told: the process that ran, and the arguments of each call."""

    def run(kind, arguments="", *, checkpoint="my model.pt", baseline="", audit=0, compare=0):
        if shutil.which("bash") is None:
            pytest.skip("needs bash")
        home = tmp_path / "a home"
        tools = home / ".cache" / "lsa-venv" / "bin"
        tools.mkdir(parents=True)
        (tools / "python").symlink_to(sys.executable)
        (tools / "lsa").write_text(
            f'#!/bin/bash\nprintf "%s\\0" "$@" $\'\\n\' >> calls\n[ "$1" = audit ] && exit {audit}\nexit {compare}\n'
        )
        (tools / "lsa").chmod(0o755)
        env = {**os.environ, "HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}
        given = {"CHECKPOINT": checkpoint, "ARGUMENTS": arguments}
        if kind == "action":
            steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
            script = next(step["run"] for step in steps if step.get("id") == "audit")
            shell = ["bash", "-e", "-o", "pipefail"]
            env |= {
                **given,
                "BASELINE": baseline,
                "HISTORY": "",
                "REPORTS": "my reports",
                "GITHUB_OUTPUT": "out",
                "GITHUB_STEP_SUMMARY": "sum",
            }
        else:
            _, content = yaml.safe_load_all((ROOT / "templates" / "audit.yml").read_text())
            (content,) = content.values()
            script, shell = "\n".join(content["script"]), ["sh", "-e"]
            env |= {f"LSA_{name}": value for name, value in given.items()}
        done = subprocess.run([*shell, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True)
        noted = tmp_path / "calls"
        calls = noted.read_text().split("\0\n\0")[:-1] if noted.exists() else []
        return done, [call.split("\0") for call in calls]

    return run


@pytest.mark.parametrize("kind", ["action", "component"])
@pytest.mark.parametrize(
    ("arguments", "reach_lsa"),
    [
        ("", []),
        ("  \n", []),
        ("--gate-only", ["--gate-only"]),
        ("--data 'npz:a b.npz' -n 100", ["--data", "npz:a b.npz", "-n", "100"]),
        ("--data npz:a.npz\n-n 100\n", ["--data", "npz:a.npz", "-n", "100"]),
        ("--attack \"pgd:steps=5\" --arch '' '*' \"it's\" 'two\nlines'", ["--attack", "pgd:steps=5", "--arch", "", "*", "it's", "two\nlines"]),
        ("--plugin $(touch hacked) ; `touch hacked`", ["--plugin", "$(touch", "hacked)", ";", "`touch", "hacked`"]),
    ],
)  # fmt: skip
def test_arguments_reach_lsa_as_a_shell_would_split_them(tmp_path, job, kind, arguments, reach_lsa):
    """Quotes and line breaks mean what they mean in a shell; nothing in the arguments is run, and none is made up."""
    done, calls = job(kind, arguments)
    assert done.returncode == 0, done.stderr
    (call,) = calls
    assert call[: 2 + len(reach_lsa)] == ["audit", "my model.pt", *reach_lsa]
    assert call[2 + len(reach_lsa)] == "--json"
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("kind", ["action", "component"])
def test_arguments_that_cannot_be_split_audit_nothing(job, kind):
    """A quote that is not closed would lose what follows it, a limit for example."""
    done, calls = job(kind, "--data 'npz:a.npz --fail-under robust=0.5")
    assert (done.returncode, calls) == (2, [])
    assert "No closing quotation" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("audit", "compare", "ends"), [(0, 0, 0), (0, 1, 1), (1, 0, 1), (2, 0, 2), (3, 0, 3), (1, 2, 2)]
)
def test_the_audit_step_ends_with_the_worse_code(tmp_path, job, audit, compare, ends):
    done, calls = job("action", baseline="old one.json", audit=audit, compare=compare)
    assert done.returncode == 0, done.stderr
    assert f"exit-code={ends}\n" in (tmp_path / "out").read_text()
    assert [call[:2] for call in calls[1:]] == [["compare", "old one.json"]] * (audit <= 1)


def test_the_action_with_the_real_command(tmp_path):
    """The steps of the action in turn: nothing but the checkpoint; then arguments that a limit breaches, with a baseline and a
    history of one audit."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    tools = tmp_path / ".cache" / "lsa-venv" / "bin"
    tools.mkdir(parents=True)
    for name, words in {"python": "", "lsa": " -m lsa_cli"}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (tools / name).chmod(0o755)
    shutil.copy(ROOT / "sample_models" / "moon_mlp.pt", tmp_path)
    shutil.copy(ROOT / "sample_models" / "moons.npz", tmp_path)
    (tmp_path / "lsa.yaml").write_text("quick: true\nlimit: 40\nthreads: 1\n")
    steps = {step.get("name"): step for step in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]}

    def run(arguments, baseline, reports, history=""):
        (tmp_path / "out").write_text("")
        env = {
            **os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": "out",
            "GITHUB_STEP_SUMMARY": "summary", "CHECKPOINT": "moon_mlp.pt", "ARGUMENTS": arguments, "BASELINE": baseline,
            "REPORTS": reports, "HISTORY": history, "GITHUB_SHA": "0123abc",
        }  # fmt: skip
        shell = {"env": env, "cwd": tmp_path, "capture_output": True, "text": True}
        audited = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", steps["Audit"]["run"]], **shell)
        assert audited.returncode == 0, audited.stderr
        outputs = dict(line.split("=", 1) for line in (tmp_path / "out").read_text().splitlines())
        assert {"report.json", "report.html", "junit.xml", "report.sarif"} <= {
            path.name for path in (tmp_path / reports).iterdir()
        }
        env["CODE"] = outputs["exit-code"]
        return outputs, subprocess.run(["bash", "-e", "-c", steps["Verdict"]["run"]], **shell).returncode

    outputs, code = run("", "", "lsa-reports")
    assert (outputs["exit-code"], outputs["passed"], code) == ("0", "true", 0)
    assert 0 <= float(outputs["robust-accuracy"]) <= 1
    assert outputs["report"] == "lsa-reports/report.json"
    (tmp_path / "my audits").mkdir()
    shutil.copy(tmp_path / "lsa-reports" / "report.json", tmp_path / "my audits" / "older.audit.json")
    assert not (tmp_path / "lsa-reports" / "site").exists()
    outputs, code = run("--fail-under robust=0.99", "lsa-reports/report.json", "more reports", "my audits")
    assert (outputs["exit-code"], outputs["passed"], code) == ("1", "false", 1)
    pages = sorted(path.name for path in (tmp_path / "more reports" / "site" / "models").iterdir())
    assert pages == ["0001-0123abc.html", "0002-older.html"]
    assert (tmp_path / "more reports" / "compare.txt").read_text()
    assert (tmp_path / "more reports" / "compare.txt").read_text() in (tmp_path / "summary").read_text()


def test_the_scripts_pass_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    _, component = yaml.safe_load_all((ROOT / "templates" / "audit.yml").read_text())
    scripts = [("bash", step["run"]) for step in steps if "run" in step]
    scripts += [("sh", "\n".join(job["script"])) for job in component.values()]
    for shell, script in [*scripts, ("bash", (ROOT / ".ci" / "run").read_text())]:
        done = subprocess.run(
            ["shellcheck", "-S", "warning", "-s", shell, "-"], input=script, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, "")


def test_the_example_repository():
    """Its lsa.yaml is valid, the inputs of the action and of the component exist, and so do the hooks."""
    from lsa_cli.config import read_config

    example = ROOT / "docs" / "ci" / "repository"
    assert set(read_config(example / "lsa.yaml").gate) == {"clean", "robust", "class.min"}
    workflow = yaml.safe_load((example / ".github" / "workflows" / "robustness.yml").read_text())
    (step,) = (step for step in workflow["jobs"]["audit"]["steps"] if "lsa-robustness" in step["uses"])
    assert set(step["with"]) <= set(yaml.safe_load((ROOT / "action.yml").read_text())["inputs"])
    assert set(re.findall(r"--[a-z-]+", step["with"]["arguments"])) <= options("audit")
    gitlab = yaml.safe_load((example / ".gitlab-ci.yml").read_text())
    spec, _ = yaml.safe_load_all((ROOT / "templates" / "audit.yml").read_text())
    assert set(gitlab["include"][0]["inputs"]) <= set(spec["spec"]["inputs"])
    assert gitlab["compare"]["needs"] == [spec["spec"]["inputs"]["job-name"]["default"]]
    hooks = {hook["id"] for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    (repo,) = yaml.safe_load((example / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["id"] for hook in repo["hooks"]} <= hooks


def test_the_component_ends_with_the_code_of_the_audit(job):
    done, _ = job("component", audit=3)
    assert done.returncode == 3


def test_the_name_of_the_distribution():
    """The package index has another project under the command's and the import's name: no file sends a user there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    other = "lsa" + "-cli"
    assert project["name"] not in (other, "lsa")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: which files are the project's is not known")
    texts = {}
    for name in filter(None, tracked.stdout.split("\0")):
        if Path(name).suffix in {"", ".cff", ".json", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}:
            texts[name] = (ROOT / name).read_text(encoding="utf-8", errors="replace")
    assert {"pyproject.toml", "README.md", "Dockerfile", "action.yml", "lsa_cli/cli/plot.py"} <= set(texts)
    assert [name for name, text in texts.items() if other in text] == []
    for name, text in texts.items():
        for package, extra in re.findall(r"""pip install(?: -\S+)* ["']([\w.-]+)\[(\w+)\]""", text):
            assert (package in (".", project["name"]), extra in project["optional-dependencies"]) == (True, True), name


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
    assert not any("$[[" in line for line in content["script"])  # an input pasted into a script would be run as one
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
