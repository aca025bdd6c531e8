"""The recipe of docs/fleet.md for submitit, run as it stands there with the processes of one machine."""

import re
import sys

import pytest

from tests.fleet.conftest import OPTIONS, ROOT

submitit = pytest.importorskip("submitit", reason="submitit is not installed")


def test_workers_of_submitit_share_the_audits(place, undisturbed, monkeypatch, capsys):
    (recipe,) = re.findall(r"```python\n([^`]*import submitit[^`]*)```", (ROOT / "docs" / "fleet.md").read_text())
    command = [sys.executable, "-m", "lsa_cli", "fleet", "models/**/*.pt", "-o", "audits", *OPTIONS]
    recipe = re.sub(r"fleet = \[.*\]", f"fleet = {command!r}", recipe).replace("range(8)", "range(2)")
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MET", str(place.met))
    exec(recipe, {})
    assert capsys.readouterr().out.strip() == "[0, 0]"
    assert place.reports() == undisturbed.reports()
