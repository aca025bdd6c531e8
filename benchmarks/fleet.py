"""Killed workers lose nothing: many small checkpoints, several workers on one folder, kill -9 at random.

    python -m benchmarks.fleet [--checkpoints 200] [--workers 4] [--kill-every 6]

The networks are that of sample_models/moon_mlp.pt with noise in the weights. They are audited once without a disturbance, and once
by workers that start again whenever they are killed: each time some more audits are finished, after a random moment, either a
worker or the process of its audit is killed. Then the reports of both folders are compared, without what no two runs share (times
and dates). A report that is replaced after it was complete counts as written twice.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
OPTIONS = ["--quick", "-n", "50", "--threads", "1", "--data", "npz:models/moons.npz", "-q"]


def make_checkpoints(folder, count):
    shipped = torch.load(ROOT / "sample_models" / "moon_mlp.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    for number in range(count):
        noise = {key: torch.randn(value.shape, generator=generator) for key, value in shipped["state_dict"].items()}
        weights = {key: value + 0.1 * number / count * noise[key] for key, value in shipped["state_dict"].items()}
        torch.save({**shipped, "state_dict": weights}, folder / f"epoch-{number}.pt")
    shutil.copy(ROOT / "sample_models" / "moons.npz", folder)


def start(place, output, *more):
    command = [sys.executable, "-m", "lsa_cli", "fleet", "models/*.pt", "-o", output, *OPTIONS, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def children(pid):
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


class Watch:
    """The complete reports of a folder, each with the time at which it was first seen so."""

    def __init__(self, folder):
        self.folder, self.written, self.twice = folder, {}, set()

    def look(self):
        for path in self.folder.rglob("*.audit.json"):
            time_of = path.stat().st_mtime_ns
            if path in self.written:
                if time_of != self.written[path]:
                    self.twice.add(path)
            elif json.loads(path.read_text())["status"] == "complete":
                self.written[path] = time_of
        return len(self.written)


def disturbed(place, output, workers, every, draw):
    """Returns the numbers of killed workers, of killed audits, and of reports that were written twice."""
    killed = {"workers": 0, "audits": 0}
    running = [start(place, output) for _ in range(workers)]
    watch, next_kill = Watch(place / output), every
    while any(process.poll() is None for process in running):
        time.sleep(0.1)
        if watch.look() < next_kill:
            continue
        next_kill += every
        time.sleep(draw.uniform(0, 2))
        alive = [worker for worker in running if worker.poll() is None]
        if not alive:
            break
        chosen = draw.choice(alive)
        audits = children(chosen.pid)
        if audits and draw.random() < 0.5:
            os.kill(audits[0], 9)
            killed["audits"] += 1
        else:
            chosen.kill()
            chosen.wait()
            running[running.index(chosen)] = start(place, output)
            killed["workers"] += 1
    watch.look()
    assert [process.returncode for process in running] == [0] * workers
    return killed, len(watch.twice)


def processor_time():
    """Seconds of the processes that have ended; of killed workers, without the audits that they ran."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reports(folder):
    found = {}
    for path in sorted(folder.rglob("*.audit.json")):
        report = json.loads(path.read_text())
        for timed in (report, *report["outcomes"], *report["cascade"]):
            timed.pop("seconds", None)
            timed.pop("created", None)
        found[path.name] = report
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kill-every", type=int, default=6, help="finished audits between two kills")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_checkpoints(place / "models", options.checkpoints)
        assert start(place, "undisturbed", "--jobs", "2").wait() == 0
        undisturbed_time = processor_time()
        killed, twice = disturbed(place, "disturbed", options.workers, options.kill_every, random.Random(0))
        disturbed_time = processor_time() - undisturbed_time
        one, other = reports(place / "undisturbed"), reports(place / "disturbed")
        left = [path for pattern in ("*.claim-*", "*.journal", "*.failed.json") for path in place.rglob(pattern)]
        equal = sum(report == other.get(name) for name, report in one.items())
    columns = {
        "checkpoints": len(one), "workers": options.workers, "killed workers": killed["workers"], "killed audits": killed["audits"],
        "equal reports": equal, "lost": len(one.keys() - other.keys()), "written twice": twice, "left over": len(left),
        "processor time undisturbed": f"{undisturbed_time:.0f} s", "disturbed": f"{disturbed_time:.0f} s",
    }  # fmt: skip
    for row in (columns, ["---"] * len(columns), columns.values()):
        print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
