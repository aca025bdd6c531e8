import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
NAMES = ("a/one", "a/two", "three")
OPTIONS = [
    "--attack", "logged", "--noise", "none", "--layers", "none", "-n", "40", "--batch-size", "8", "--threads", "1",
    "--plugin", str(Path(__file__).with_name("logged_attack.py")), "--data", "npz:models/moons.npz",
]  # fmt: skip


class Done:
    def __init__(self, process, out, err):
        self.code, self.out, self.err = process.returncode, out, err


class Place:
    """A working directory with small checkpoints, in which `lsa` runs."""

    def __init__(self, folder):
        self.folder = folder
        self.met = folder / "met.txt"

    def start(self, *arguments, env=None):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MET": str(self.met), **(env or {})}
        return subprocess.Popen(
            [sys.executable, "-m", "lsa_cli", *map(str, arguments)], cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments, env=None):
        process = self.start(*arguments, env=env)
        return Done(process, *process.communicate(timeout=120))

    def reports(self, folder="audits"):
        """Each report without what no two runs share, by model."""
        found = {}
        for path in (self.folder / folder).rglob("*.audit.json"):
            report = json.loads(path.read_text())
            for timed in (report, *report["outcomes"], *report["cascade"]):
                timed.pop("seconds", None)
                timed.pop("created", None)
            found[str(path.relative_to(self.folder / folder))] = report
        return found

    def fleet(self, folder="audits"):
        return json.loads((self.folder / folder / "fleet.json").read_text())

    def samples_met(self):
        return sum(int(line.split()[1]) for line in self.met.read_text().splitlines())


def make_place(folder):
    """Networks on the moons, of the shipped one with more and more noise in its weights."""
    shipped = torch.load(ROOT / "sample_models" / "moon_mlp.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for place, name in enumerate(NAMES):
        weights = {
            key: value + 0.03 * place * torch.randn(value.shape, generator=generator)
            for key, value in shipped["state_dict"].items()
        }
        path = folder / "models" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**shipped, "state_dict": weights}, path)
    shutil.copy(ROOT / "sample_models" / "moons.npz", folder / "models")
    return Place(folder)


@pytest.fixture
def place(tmp_path):
    return make_place(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A fleet that nobody disturbed."""
    place = make_place(tmp_path_factory.mktemp("undisturbed"))
    place.done = place.run("fleet", "models/**/*.pt", "-o", "audits", *OPTIONS)
    return place
