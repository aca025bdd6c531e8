"""The pages that people read: links lead somewhere, code blocks run, the site builds. Commands: see test_ci_files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from lsa_cli.cli.fleet import OF_AUDITS as OF_FLEETS
from lsa_cli.cli.harden import OF_AUDITS
from lsa_cli.data import open_data, runs_user_code
from lsa_cli.settings.reference import keywords, reference

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "benchmarks/**/*.md", "sample_models/*.md") for path in ROOT.glob(pattern)
)


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.S | re.M)


def anchors(path):
    """The anchor of each heading, as GitHub and the site make it."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:", link)]
    for link in links:
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_in_the_site_and_in_the_readme():
    entries = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = set()
    for entry in entries:
        for _, value in entry.items():
            listed |= {value} if isinstance(value, str) else set(value)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert listed == pages
    readme = (ROOT / "README.md").read_text()
    assert {name for name in pages - {"index.md"} if f"docs/{name}" not in readme} == set()


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_the_first_python_block_runs(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(blocks(ROOT / name, "python")[0], name, "exec"), {})
    assert 0 <= float(capsys.readouterr().out.split()[0]) <= 1


def test_the_plugin_of_the_docs_runs(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("\n".join(blocks(ROOT / "docs" / "plugins.md", "python")))
    command = ["audit", str(ROOT / "sample_models" / "moon_mlp.pt"), "--plugin", str(plugin), "--attack", "sign-noise"]
    command += ["-n", "40", "--noise", "none", "--layers", "none", "--one-line", "line.txt", "--json", "-"]
    done = subprocess.run([sys.executable, "-m", "lsa_cli", *command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, '"sign-noise"' in done.stdout) == (0, True), done.stderr
    assert (tmp_path / "line.txt").read_text().startswith("robust accuracy ")


def test_the_data_source_of_the_docs_opens():
    exec(compile(blocks(ROOT / "docs" / "plugins.md", "python")[2], "plugins.md", "exec"), {})
    data = open_data("rings:6")
    assert data.read(np.arange(6)).norm(dim=1).tolist() == pytest.approx([1, 2, 1, 2, 1, 2])
    assert not runs_user_code("rings:6")


def test_the_configuration_of_the_docs_is_valid(tmp_path):
    (tmp_path / "lsa.yaml").write_text(blocks(ROOT / "docs" / "ci.md", "yaml")[0])
    command = [sys.executable, "-m", "lsa_cli", "check", str(tmp_path / "lsa.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'lsa.yaml'}: 7 limits\n"), done.stderr


@pytest.mark.parametrize(
    ("file", "made"),
    [("docs/reference.md", lambda: reference(OF_AUDITS, OF_FLEETS)), ("lsa_cli/settings/keywords.pyi", keywords)],
)
def test_what_is_made_from_the_settings_is_current(file, made, request):
    if request.config.getoption("--update-gold"):
        (ROOT / file).write_text(made())
    assert (ROOT / file).read_text() == made(), "run pytest tests/test_docs.py --update-gold and look at the change"
