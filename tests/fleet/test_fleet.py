"""`lsa fleet`: the folder is the state; killed workers, several workers, parts, failures."""

import json
import os
import re
import signal
import time
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pandas as pd
import pytest
import torch

from lsa_cli.cli.schema import schema_of
from tests.cli.conftest import lsa  # noqa: F401
from tests.fleet.conftest import NAMES, OPTIONS

FLEET = ["fleet", "models/**/*.pt", "-o", "audits"]
FILES = {f"models/{name}.pt.audit.json" for name in NAMES}
LEFT = ("*.claim-*", "*.journal", "*.log", "*.failed.json", "*.tmp")


@pytest.fixture
def here(lsa, place, monkeypatch):  # noqa: F811
    """Run the command in the place, in this process, which the audits fork."""

    def run(*arguments):
        monkeypatch.chdir(place.folder)
        monkeypatch.setenv("MET", str(place.met))
        return lsa(*arguments)

    return run


def left_over(place):
    return [path.name for pattern in LEFT for path in (place.folder / "audits").rglob(pattern)]


def children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def read(folder):
    """The reports, by their paths in the folder."""
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in folder.rglob("*.audit.json")}


def complete(place):
    """The complete reports."""
    paths = (place.folder / "audits").rglob("*.audit.json")
    return [path for path in paths if json.loads(path.read_text())["status"] == "complete"]


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_every_checkpoint_is_audited_and_the_best_comes_first(undisturbed):
    assert undisturbed.done.code == 0, undisturbed.done.err
    assert set(undisturbed.reports()) == FILES
    assert left_over(undisturbed) == []
    fleet = undisturbed.fleet()
    jsonschema.validate(fleet, json.loads(schema_of("fleet")))
    rows = fleet["rows"]
    shares = [row["robust"]["value"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) > 1
    for row in rows:
        report = json.loads((undisturbed.folder / "audits" / row["report"]).read_text())
        assert (row["robust"], row["sha256"]) == (report["verdict"]["robust"], report["subject"]["sha256"])
        assert (row["behind"], row["ahead_of"]) != (None, None)
    assert rows[0]["model"] in undisturbed.done.out
    assert undisturbed.done.out.splitlines()[-1].startswith("3 models audited; best: models/")


def test_what_is_done_is_not_done_again_and_limits_are_decided_anew(undisturbed, lsa, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.chdir(undisturbed.folder)
    met, before = undisturbed.met.read_text(), undisturbed.reports()
    monkeypatch.setenv("MET", str(undisturbed.met))
    outputs = ["--table", tmp_path / "t.csv", "--junit", tmp_path / "j.xml", "--json", tmp_path / "f.json"]
    again = lsa(*FLEET, *OPTIONS, *outputs, "--fail-under", "robust=0.999")
    assert again.code == 1, again.err
    assert undisturbed.met.read_text() == met
    assert lsa(*FLEET, *OPTIONS, "--fail-under", "robust=0.999", "--exit-zero").code == 0
    table = pd.read_csv(tmp_path / "t.csv")
    assert list(table.model) == [row["model"] for row in json.loads((tmp_path / "f.json").read_text())["rows"]]
    assert set(table.not_held) == {"robust"}
    suites = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert {suite.get("name") for suite in suites} == {f"lsa.models/{name}.pt" for name in NAMES}
    assert {suite.get("failures") for suite in suites} == {"1"}
    assert lsa(*FLEET, *OPTIONS, "-q").code == 0
    assert undisturbed.reports() == before  # the limits are gone from them, too
    pytest.importorskip("pyarrow")
    assert lsa(*FLEET, *OPTIONS, "--table", tmp_path / "t.parquet").code == 0
    assert list(pd.read_parquet(tmp_path / "t.parquet").model) == list(table.model)


def test_reports_table_and_site_have_the_decision_of_the_last_limits(place, here):
    """Reports that are reused get the new limits; a report of other settings is replaced, and a line counts them."""
    audits = place.folder / "audits"
    site = place.folder / "site" / "index.html"
    quick = ["--data", "npz:models/moons.npz", "--quick", "--threads", "1", "--layers", "none", "-n", "20"]
    fleet = ["fleet", "models/a/*.pt", "-o", "audits", *quick]
    assert here(*fleet, "--fail-under", "clean=0.1", "-q").code == 0
    created = {name: report["created"] for name, report in read(audits).items()}
    assert here("history", "audits", "-o", "site").code == 0
    assert "limits hold" in site.read_text()
    again = here(*fleet, "--fail-under", "robust=1")
    assert again.code == 1
    assert again.err.count("gates not held: robust") == 2
    reports = read(audits)
    assert {name: report["created"] for name, report in reports.items()} == created
    for row in place.fleet()["rows"]:
        report = reports[row["report"]]
        assert row["gates"] == report["gates"]
        assert [(gate["metric"], gate["limit"], gate["passed"]) for gate in row["gates"]] == [("robust", 1, False)]
        assert list(report["protocol"]["settings"]["gate"]) == ["robust"]
    assert here("history", "audits", "-o", "site").code == 0
    assert "limits do not hold for 2 models" in site.read_text()
    other = here(*fleet[:-1], "10", "-q")
    assert (
        "2 reports in audits are of other settings, code or data, and replaced when their new audits are complete"
        in other.err
    )
    assert {report["data"]["n"] for report in read(audits).values()} == {10}
    assert "other settings" not in again.err


def test_killed_workers_lose_nothing(place, undisturbed, here):
    """A process of an audit is killed, then the worker; another one completes the fleet."""
    worker = place.start(*FLEET, *OPTIONS, "--jobs", 2)
    audits = place.folder / "audits"
    wait_for(worker, lambda: list(audits.rglob("*.journal/*.npz")))
    for child in children(worker.pid)[:1]:
        os.kill(child, signal.SIGKILL)
    wait_for(worker, lambda: complete(place))
    worker.kill()
    worker.communicate()
    before = {path: path.stat().st_mtime_ns for path in complete(place)}
    met = place.samples_met()
    assert 0 < len(before) < len(NAMES)
    for name in NAMES:  # as if a process had been killed before it could rename what it had written
        report = audits / "models" / f"{name}.pt.audit.json"
        if report not in before:
            report.with_name(f".{report.name}.99999999.tmp").write_text("{")
    done = here(*FLEET, *OPTIONS)
    assert done.code == 0, done.err
    assert place.reports() == undisturbed.reports()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert place.samples_met() - met < undisturbed.samples_met() * (len(NAMES) - len(before)) / len(NAMES) + 1
    assert left_over(place) == []


def test_two_workers_share_a_folder(place, undisturbed):
    workers = [place.start(*FLEET, *OPTIONS) for _ in range(2)]
    ends = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ends
    assert place.reports() == undisturbed.reports()
    assert place.samples_met() == undisturbed.samples_met()
    assert len({line.split()[0] for line in place.met.read_text().splitlines()}) == 2  # both worked
    assert ends[0][0] == ends[1][0]  # and both know the whole result
    assert left_over(place) == []


def test_parts_add_up(place, undisturbed, here, monkeypatch):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    parts = [["--shard", "1/2"], ["--shard", "auto/2"]]
    done = [here(*FLEET, *OPTIONS, *part, "-q") for part in parts]
    assert [one.code for one in done] == [0, 0], done[0].err
    rows = [json.loads((place.folder / "audits" / f"fleet.{i}-of-2.json").read_text())["rows"] for i in (1, 2)]
    assert [len(part) for part in rows] == [2, 1]
    assert place.reports() == undisturbed.reports()
    assert place.samples_met() == undisturbed.samples_met()


def test_a_failure_is_a_row_and_settings_of_single_files_hold(place, here):
    (place.folder / "models" / "a" / "bad.pt").write_text("no network")
    (place.folder / "lsa.yaml").write_text(
        "data: npz:models/moons.npz\nquick: true\nthreads: 1\nseed: 3\ncheckpoints:\n  three.pt: {eps: 0.1}\n  'a/*.pt': {seed: 5}\n  a/two.pt: {seed: 6}\n"
    )
    done = here(*FLEET, "--junit", "j.xml")
    assert done.code == 3, done.err
    rows = {row["model"]: row for row in place.fleet()["rows"]}
    assert list(rows)[-1] == "models/a/bad.pt"
    assert rows["models/a/bad.pt"]["state"] == "failed"
    assert "is in no format that lsa reads" in rows["models/a/bad.pt"]["reason"]
    settings = {name: report["protocol"] for name, report in place.reports().items()}
    found = {name: (one["threat"]["eps"], one["seed"]) for name, one in settings.items()}
    eps = pytest.approx(0.3, abs=1e-6)
    assert found == {
        "models/three.pt.audit.json": (pytest.approx(0.1), 3),
        "models/a/one.pt.audit.json": (eps, 5), "models/a/two.pt.audit.json": (eps, 6),
    }  # fmt: skip
    assert len({row["group"] for row in rows.values()}) > 2  # other samples are not compared
    suites = ElementTree.parse(place.folder / "j.xml").getroot()
    assert [suite.get("name") for suite in suites if suite.get("errors") == "1"] == ["lsa.models/a/bad.pt"]
    made = {path: path.stat().st_mtime_ns for path in complete(place)}
    (place.folder / "models" / "a" / "bad.pt").unlink()
    (place.folder / "lsa.yaml").write_text((place.folder / "lsa.yaml").read_text().replace("0.1", "0.2"))
    assert here(*FLEET, "-q").code == 0
    again = {path.name for path in complete(place) if path.stat().st_mtime_ns != made[path]}
    assert again == {"three.pt.audit.json"}  # the one whose settings have changed


def test_fail_fast_stops_and_an_interrupted_fleet_goes_on(place, undisturbed, here):
    (place.folder / "models" / "a" / "bad.pt").write_text("no network")
    done = here(*FLEET, *OPTIONS, "--fail-fast", "-q")
    states = [row["state"] for row in place.fleet()["rows"]]
    assert (done.code, states.count("failed")) == (3, 1)
    assert states.count("not run") >= 2
    (place.folder / "models" / "a" / "bad.pt").unlink()
    worker = place.start(*FLEET, *OPTIONS)
    wait_for(worker, lambda: list((place.folder / "audits").rglob("*.journal/*.npz")))
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    assert worker.returncode == 130
    assert list((place.folder / "audits").rglob("*.journal"))
    assert here(*FLEET, *OPTIONS, "-q").code == 0
    assert place.reports() == undisturbed.reports()
    assert set(left_over(place)) == {"bad.pt.failed.json", "bad.pt.log"}


def test_triage_audits_in_full_only_what_can_still_matter(place, here):
    """The weights of the third model are noise, so it cannot be the best; with a limit that it breaches it needs no more either."""
    state = torch.load(place.folder / "models" / "three.pt", weights_only=True)
    noise = torch.Generator().manual_seed(1)
    state["state_dict"] = {
        key: value + 0.3 * torch.randn(value.shape, generator=noise) for key, value in state["state_dict"].items()
    }
    torch.save(state, place.folder / "models" / "three.pt")
    options = [
        "--data",
        "npz:models/moons.npz",
        "--attack",
        "pgd:steps=3",
        "--noise",
        "none",
        "--threads",
        "1",
        "-n",
        "60",
    ]
    options += ["--no-fast", "--layers", "none", "--eps", "0.1"]
    done = here(*FLEET, *options, "--triage")
    assert done.code == 0, done.err
    rows = {row["model"]: row for row in place.fleet()["rows"]}
    assert {name: row["audit"] for name, row in rows.items()} == {
        "models/a/one.pt": "full", "models/a/two.pt": "full", "models/three.pt": "quick",
    }  # fmt: skip
    for row in rows.values():
        report = json.loads((place.folder / "audits" / row["report"]).read_text())
        assert report["data"]["n"] == 60
        assert report["verdict"]["robust"] == row["robust"]
    assert "triage: 2 of 3 models need a full audit" in done.err
    assert re.search(r"; best: models/a/\w+\.pt, robust", done.out.splitlines()[-1])
    limited = here(*FLEET, *options, "--triage", "--fail-under", "robust=0.7")
    assert limited.code == 1  # the third model breaches it, by an upper bound
    assert [row["audit"] for row in place.fleet()["rows"]] == ["full", "full", "quick"]


def test_a_file_that_names_no_data_says_how_to_give_them(here, place, samples):
    done = here("fleet", samples / "custom_cnn.pth", "-o", "audits")
    assert (done.code, "give images with labels as --data imagefolder:DIR" in " ".join(done.out.split())) == (3, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["none/*.pt"], "'none/*.pt' names no checkpoint"),
        (["--attack", "pdg"], "did you mean 'pgd'"),
        (["--jobs", "0"], "--jobs '0': give a number of processes from 1"),
        (["--shard", "3/2"], "give I/N with I from 1 to N"),
        (["--shard", "auto"], "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"),
        (["--table", "t.txt"], "must end in .csv or .parquet"),
        (["--quick", "--attack", "pgd"], "--quick chooses the attacks"),
        (["--quick", "--triage"], "leave out --quick"),
    ],
)
def test_what_a_fleet_refuses_before_it_starts(lsa, tmp_path, samples, options, says):  # noqa: F811
    patterns = [] if options[0].endswith(".pt") else [str(samples / "moon_mlp.pt")]
    result = lsa("fleet", *patterns, *options, "-o", tmp_path / "audits")
    assert (result.code, says in result.err) == (2, True), result.err
    assert not list((tmp_path / "audits").rglob("*.json"))
