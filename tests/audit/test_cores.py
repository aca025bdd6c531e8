"""How many threads an audit takes: affinity, quotas of control groups, and what other processes keep busy."""

import json
import os
import subprocess
import sys
import time

import pytest

from lsa_cli.auditing import cores


def system(root, groups, files):
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "least"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/a\n", {"a/cpu.max": "400000 100000\n", "cpu.max": "200000 100000\n"}, 2.0),
        ("0::/of/the/host\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("4:cpu,cpuacct:/x\n0::/\n", {"cpu/x/cpu.cfs_quota_us": "250000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 2.5),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, None),
        ("3:cpuset:/x\n", {}, None),
    ],
)  # fmt: skip
def test_the_smallest_quota_of_the_groups_around_this_process(tmp_path, groups, files, least):
    assert min(cores._quotas(system(tmp_path, groups, files)), default=None) == least


@pytest.mark.parametrize(
    ("affinity", "quotas", "machine", "runnable", "ranks", "takes", "is_said"),
    [
        (8, [], 8, 1, 1, 8, False),  # alone on the machine
        (8, [], 8, 4, 1, 5, True),
        (8, [], 8, 30, 1, 1, True),
        (8, [2.5], 8, 4, 1, 2, False),  # the quota is the narrower bound
        (4, [], 64, 33, 1, 2, True),  # half of a large machine is busy, and so are half of the four
        (8, [], 8, 4, 4, 2, False),  # the others are ranks of the same run
        (8, [], 8, 8, 4, 1, True),
        (1, [], 1, 1, 1, 1, False),
        (1, [], 1, 3, 1, 1, True),
        (2, [0.5], 2, 1, 1, 1, False),
    ],
)  # fmt: skip
def test_threads_are_the_free_cores(monkeypatch, affinity, quotas, machine, runnable, ranks, takes, is_said):
    monkeypatch.setattr(cores, "affinity", lambda: affinity)
    monkeypatch.setattr(cores, "_quotas", lambda root: iter(quotas))
    monkeypatch.setattr(cores, "_running", lambda: float(runnable))
    monkeypatch.setattr(cores.distributed, "local_world", lambda: ranks)
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    threads, said = cores.choose_threads(None)
    assert (threads, said is not None) == (takes, is_said)
    assert cores.choose_threads(1) == (1, None)
    threads, said = cores.choose_threads(64)
    assert threads == 64
    assert (said is not None) == (runnable > ranks)


def test_where_the_run_queue_is_not_shown_the_load_average_counts(monkeypatch):
    monkeypatch.setattr(cores, "_running", lambda: None)
    monkeypatch.setattr(cores, "affinity", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.5, 0.0, 0.0))
    assert cores.others_load() == 2.5


@pytest.mark.skipif(cores._running() is None, reason="this system does not show its run queue")
def test_busy_processes_count_and_this_one_does_not():
    before = cores.others_load()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    assert cores.others_load() < before + 1.5  # what this process did is no load of others; other tests may run beside
    code = "import time\nend = time.monotonic() + 20\nprint(flush=True)\nwhile time.monotonic() < end: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(8)]
    try:
        for process in busy:
            process.stdout.readline()
        share = len(os.sched_getaffinity(0)) / os.cpu_count()
        assert cores.others_load() >= 7 * share
        if cores.affinity() <= 8:
            threads, said = cores.choose_threads(None)
            assert threads == 1
            assert "busy" in said
    finally:
        for process in busy:
            process.kill()
            process.communicate()


def test_a_run_goes_on_with_other_threads(tmp_path):
    """They decide no number that is counted, and a machine may be busier when a run goes on than when it began."""
    import torch

    from lsa_cli.auditing.plan import make_plan
    from lsa_cli.auditing.provenance import identity_of
    from lsa_cli.settings import settings_from

    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    data = (torch.rand(6, 1, 2, 2), torch.tensor([0, 1] * 3))
    one, two = (
        identity_of(make_plan(body, settings_from({"eps": 0.1, "threads": threads}), {}, data)) for threads in (1, 2)
    )
    assert json.dumps(one) == json.dumps(two)
