"""Killed workers lose nothing: many small checkpoints, several workers on one folder, kill -9 at random.

    python -m benchmarks.fleet [--checkpoints 200] [--workers 4] [--kill-every 4]

The networks are that of sample_models/moon_mlp.pt with noise in the weights. They are audited once without a disturbance, and once
by workers that start again whenever they are killed: every few seconds, at random, either a worker or the process of one of
its audits is killed. Then the reports of both folders are compared, without what no two runs share (times and dates).
"""

import argparse
import json
import os
import random
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


def disturbed(place, output, workers, every, draw):
    """Returns the numbers of killed workers and audits."""
    killed = {"workers": 0, "audits": 0}
    running = [start(place, output) for _ in range(workers)]
    next_kill = time.monotonic() + every
    while any(process.poll() is None for process in running):
        time.sleep(0.1)
        if time.monotonic() < next_kill:
            continue
        next_kill = time.monotonic() + draw.uniform(0.5, 1.5) * every
        chosen = draw.randrange(workers)
        if running[chosen].poll() is not None:
            continue
        audits = children(running[chosen].pid)
        if audits and draw.random() < 0.5:
            os.kill(audits[0], 9)
            killed["audits"] += 1
        else:
            running[chosen].kill()
            running[chosen].wait()
            running[chosen] = start(place, output)
            killed["workers"] += 1
    assert [process.returncode for process in running] == [0] * workers
    return killed


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
    parser.add_argument("--kill-every", type=float, default=4.0, help="seconds between two kills, on average")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_checkpoints(place / "models", options.checkpoints)
        begin = time.monotonic()
        assert start(place, "undisturbed", "--jobs", "2").wait() == 0
        middle = time.monotonic()
        killed = disturbed(place, "disturbed", options.workers, options.kill_every, random.Random(0))
        end = time.monotonic()
        one, other = reports(place / "undisturbed"), reports(place / "disturbed")
        left = [path for pattern in ("*.claim-*", "*.journal", "*.failed.json") for path in place.rglob(pattern)]
        equal = sum(report == other.get(name) for name, report in one.items())
    print(
        "| checkpoints | workers | killed workers | killed audits | equal reports | lost | left over | undisturbed | disturbed |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    lost = len(one.keys() - other.keys())
    print(
        f"| {len(one)} | {options.workers} | {killed['workers']} | {killed['audits']} | {equal} | {lost} | {len(left)} "
        f"| {middle - begin:.0f} s | {end - middle:.0f} s |"
    )


if __name__ == "__main__":
    main()
