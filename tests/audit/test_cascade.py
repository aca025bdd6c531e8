"""The cascade in an audit: who meets whom, the per-sample record, the two-phase estimate, time budgets."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.attacks import ATTACKS, Attack, Threat
from lsa_cli.attacks.ensemble import AutoAttack
from lsa_cli.attacks.ranked import rounds_of
from lsa_cli.attacks.square import Square
from lsa_cli.attacks.square_pgd import SquarePGD
from lsa_cli.auditing import limits
from lsa_cli.auditing.journal import Journal
from lsa_cli.auditing.named_attacks import without_square
from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.run import run_audit
from lsa_cli.errors import RunError, UsageError
from lsa_cli.settings import settings_from
from tests.fitting import fitted


@pytest.fixture(scope="module")
def report(task):
    return run(task)


@pytest.fixture(scope="module")
def task():
    """A small network on images that some attacks break and some do not."""
    torch.manual_seed(0)
    x = torch.rand(150, 1, 6, 6)
    y = (x.flatten(1)[:, :18].mean(1) > x.flatten(1)[:, 18:].mean(1)).long()
    body = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 2))
    return fitted(body, x, y, 200), x, y


def run(task, **options):
    body, x, y = task
    given = {"eps": 0.02, "noise": "none", "threads": 1, "attack": [FIRST, CASCADE], **options}
    return audit(body, data=(x, y), **given)


FIRST = "pgd:steps=1,step_size=0.002"  # so weak that it leaves something for the cascade to break
CASCADE = "autoattack:steps=5,queries=20,targets=1"


def test_each_attack_sees_only_what_is_still_robust(report):
    assert [outcome.name for outcome in report.outcomes] == ["pgd"]
    assert [stage.attack for stage in report.cascade] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    left = report.outcomes[0].robust.count
    for stage in report.cascade:
        assert stage.tried == left
        left -= stage.broke
        assert stage.robust.count == left
    assert left < report.outcomes[0].robust.count
    assert report.verdict.robust.count == left
    assert report.verdict.attacks == ["pgd", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert sum(row.robust.count for row in report.verdict.classes) == left
    assert 0 < left < report.verdict.clean.count


def test_the_record_names_for_each_sample_what_broke_it(task, report):
    _, x, y = task
    rows = report.samples
    assert rows.index == list(range(len(x)))
    assert rows.label == y.tolist()
    broken = np.array([name is not None for name in rows.broken_by])
    right = np.array(rows.clean) == np.array(rows.label)
    assert (right & ~broken).sum() == report.verdict.robust.count
    assert rows.broken_by.count("pgd") == report.outcomes[0].success.count
    for stage in report.cascade:
        assert rows.broken_by.count(stage.attack) == stage.broke
    for position in np.flatnonzero(right):
        assert (rows.margin[position] < 0) == broken[position]  # as the glossary says
        assert (rows.distance[position] is not None) == broken[position]
        if broken[position]:
            assert rows.distance[position] <= 0.02 * 1.0001
    by_apgd = [look for name, look in zip(rows.broken_by, rows.look, strict=True) if name == "apgd-ce"]
    assert by_apgd
    assert all(look is not None and 1 <= look <= 6 for look in by_apgd)


def test_batches_do_not_change_who_is_broken(task, report):
    other = run(task, batch_size=16)
    assert report.samples.broken_by == other.samples.broken_by
    assert report.verdict.robust == other.verdict.robust


def test_a_part_of_the_survivors_gives_an_estimate_and_an_upper_bound(task, report):
    whole, part = report, run(task, full_on=40)
    survivors = part.outcomes[0].robust.count
    estimate = part.verdict.estimate
    assert part.cascade[0].tried == estimate.checked == 40
    assert estimate.survivors == survivors
    assert part.verdict.robust.count == survivors - estimate.broken
    assert part.verdict.robust.value >= whole.verdict.robust.value
    assert estimate.low <= whole.verdict.robust.value <= estimate.high
    rows = estimate.strata
    assert [sum(counts) for counts in zip(*((row.size, row.checked, row.broken) for row in rows), strict=True)] == [
        survivors, 40, estimate.broken
    ]  # fmt: skip
    assert estimate.value == pytest.approx(sum(row.size * (1 - row.broken / row.checked) for row in rows) / part.data.n)
    everyone = run(task, full_on=10_000)
    assert everyone.verdict.robust == whole.verdict.robust
    assert everyone.verdict.estimate.value == pytest.approx(whole.verdict.robust.value)
    assert everyone.verdict.estimate.low == everyone.verdict.robust.low


def test_the_nearest_samples_meet_the_cascade(task, report, monkeypatch):
    """Of the samples that the first attack leaves robust, those with the smallest margins.

    Without the evidence, which would add attacks to the first one.
    """
    monkeypatch.setattr("lsa_cli.auditing.run.examine", lambda *given: [])
    rows = run(task, attack=[FIRST]).samples
    places = zip(rows.index, rows.margin, rows.clean, rows.label, rows.broken_by, strict=True)
    margin = {index: margin for index, margin, clean, label, by in places if by is None and clean == label}
    nearest = sorted(margin, key=margin.get)[:10]
    whole, part = report.samples.broken_by, run(task, full_on=40)
    assert [part.samples.broken_by[index] for index in nearest] == [whole[index] for index in nearest]
    assert part.verdict.estimate.strata[0].broken == sum(whole[index] is not None for index in nearest) > 0
    assert "10 of the nearest 10, 12 of the next" in part.verdict.statement
    assert "unbiased, 95% interval" in part.verdict.statement


def test_a_stratum_in_which_nothing_broke_is_told(task):
    """A cascade of one step breaks nothing that forty steps leave."""
    part = run(task, attack=["pgd:steps=40", "autoattack:steps=1,queries=1,targets=1"], full_on=20)
    far = part.verdict.estimate.strata[-1]
    assert (far.checked, far.broken) == (9, 0)
    assert (
        f"none of the 9 checked of the farthest {far.size}, which still allows that it breaks about 33%"
        in part.verdict.statement
    )
    assert part.verdict.estimate.low < part.verdict.robust.low


def test_an_interrupted_draw_goes_on_as_the_same(task, tmp_path):
    body, x, y = task
    settings = settings_from({"eps": 0.02, "noise": "none", "threads": 1, "attack": [FIRST, CASCADE], "full_on": 90})

    def stop_in_the_cascade(report):
        if report.verdict.estimate is not None and report.status == "running":
            raise KeyboardInterrupt

    first = Journal(tmp_path / "journal", {}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        run_audit(make_plan(body, settings, {}, (x, y)), on_update=stop_in_the_cascade, journal=first)
    first.close()
    again = Journal(tmp_path / "journal", {}, resume=True)
    found = run_audit(make_plan(body, settings, {}, (x, y)), journal=again)
    whole = run(task, full_on=90)
    assert found.verdict == whole.verdict
    assert found.samples == whole.samples


def test_an_estimate_is_of_samples_that_met_the_whole_cascade(task):
    body, x, y = task
    settings = settings_from({"eps": 0.02, "noise": "none", "threads": 1, "attack": [FIRST, CASCADE], "full_on": 90})
    seen = []

    def stop_at_the_first_estimate(report):
        seen.append(report)
        if report.verdict.estimate is not None and report.status == "running":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(make_plan(body, settings, {}, (x, y)), on_update=stop_at_the_first_estimate)
    *before, _, last = seen
    assert max(len(report.cascade) for report in before) == 3
    assert all(report.verdict.estimate is None for report in before)
    assert (last.status, last.verdict.estimate.checked, last.cascade[0].tried) == ("interrupted", 64, 64)
    whole = run(task, full_on=90).verdict.estimate
    assert whole.checked == 90
    assert whole.survivors == last.verdict.estimate.survivors


@dataclass(frozen=True)
class Careless(Attack):
    """Returns NaN for three samples of a batch, and leaves its budget with the others."""

    threat: Threat

    def perturb(self, model, x, y):
        return torch.cat([x[:3] * torch.nan, 1 - x[3:]])


@dataclass(frozen=True)
class CarelessCascade(AutoAttack):
    @property
    def members(self):
        return (Careless(self.threat),)


@pytest.fixture
def careless():
    bad = {"test-careless": Careless, "test-careless-cascade": CarelessCascade}
    for name, attack in bad.items():
        ATTACKS.register(name)(attack)
    yield
    for name in bad:
        del ATTACKS._entries[name]


@pytest.mark.usefixtures("careless")
def test_an_attack_of_the_cascade_that_misbehaves_is_told(task):
    report = run(task, attack=["fgsm", "test-careless-cascade"], batch_size=150)
    (stage,) = report.cascade
    assert stage.broke == 0
    told = {warning.code: warning.message for warning in report.warnings}
    assert told["attack-not-finite"].startswith("test-careless: 9 perturbed inputs")  # of three blocks
    assert told["out-of-budget"].startswith(f"test-careless: {stage.tried - 9} perturbed inputs are outside the budget")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attack": "fgsm", "full_on": 5}, "full_on"),
        ({"preset": "full"}, "leave out attack"),
        ({"attack": [CASCADE, CASCADE]}, "asked for twice"),
        ({"preset": "slow", "attack": None}, "quick or full"),
        ({"budget": "soon"}, "90s, 10m or 1h30m"),
        ({"budget": "1h30"}, "90s, 10m or 1h30m"),
        ({"budget": "0s"}, "90s, 10m or 1h30m"),
        ({"batch_size": "many"}, "a whole number of at least 1, or auto"),
    ],
)
def test_settings_that_make_no_sense(task, options, says):
    with pytest.raises(UsageError, match=says):
        run(task, **options)


def test_a_spent_budget_leaves_the_rest_out_and_names_it(task):
    report = run(task, budget="0.000001s", noise="gaussian", eps_grid="0.01", batch_size=10)
    assert report.status == "complete"
    assert report.not_run == ["pgd", "apgd-ce", "apgd-t", "fab-t", "square", "evidence", "gaussian", "pgd curve"]
    assert report.verdict.robust is None
    assert report.verdict.clean.count > 0
    assert run(task, budget="1h").not_run == []
    assert run(task, attack="none").not_run == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("10min", 600), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800), (45, 45)]
)  # fmt: skip
def test_times(text, seconds):
    assert settings_from({"budget": text}).budget == seconds


class Slow(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.passes = body, 0

    def forward(self, x):
        self.passes += 1
        time.sleep(0.02)
        return self.body(x)


def test_a_budget_ends_within_an_attack(task):
    """The attack's one batch would take 1,000 passes, which are 20 seconds."""
    body, x, y = task
    slow = Slow(body)
    report = audit(
        slow, data=(x, y), eps=0.02, noise="none", threads=1, attack=["pgd:steps=1000"], budget="1s", fast=False
    )
    assert report.not_run == ["pgd", "evidence"]
    assert slow.passes < 200


class Counting(nn.Module):
    """Counts the samples that it has seen; a pass without a gradient is a third of one."""

    def __init__(self, body):
        super().__init__()
        self.body, self.seen = body, 0.0

    def forward(self, x):
        self.seen += len(x) * (1 if torch.is_grad_enabled() else 0.35)
        return self.body(x)


def test_with_a_budget_there_are_fewer_samples_and_time_for_the_evidence(task, monkeypatch):
    """The clock of this test counts the samples that the network sees."""
    body, x, y = task
    counting = Counting(body)
    monkeypatch.setattr(limits.time, "monotonic", lambda: counting.seen)
    options = {"eps": 0.02, "noise": "none", "threads": 1, "fast": False, "attack": ["pgd:steps=400", CASCADE]}
    report = audit(counting, data=(x, y), **options, budget=40_000)
    assert (report.status, report.not_run) == ("complete", [])
    assert 64 <= report.data.n < 150
    assert report.data.n == report.verdict.robust.n == report.cascade[0].robust.n == len(report.samples.index)
    assert report.data.selection == f"the first {report.data.n} of 150 in random order, seed 0"
    assert [warning.code for warning in report.warnings].count("fewer-samples") == 1
    assert report.evidence.verdict == "trusted"
    assert report.seconds < 40_000
    whole = audit(counting, data=(x, y), **options)
    assert whole.data.selection == "all"
    broken = dict(zip(whole.samples.index, whole.samples.broken_by, strict=True))
    assert [broken[index] for index in report.samples.index] == report.samples.broken_by


class Small(nn.Module):
    """Runs out of memory with more than `most` samples, as torch on the CPU says it."""

    def __init__(self, body, most):
        super().__init__()
        self.body, self.most = body, most

    def forward(self, x):
        if len(x) > self.most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried")
        return self.body(x)


def test_where_memory_runs_out_batches_halve_and_the_numbers_stay(task):
    body, (x, y) = task[0], (images[:48] for images in task[1:])
    options = {
        "eps": 0.02,
        "threads": 1,
        "noise": "gaussian",
        "attack": [FIRST, CASCADE],
        "metrics": ["intensity", "eni", "boundary"],
    }
    whole, small = (audit(net, data=(x, y), **options) for net in (body, Small(body, 20)))
    assert 0 < whole.verdict.robust.count < whole.outcomes[0].robust.count
    assert small.verdict == whole.verdict
    assert [o.robust for o in small.outcomes] == [o.robust for o in whole.outcomes]
    assert small.evidence.verdict == whole.evidence.verdict
    assert [row.name for row in small.metrics] == [row.name for row in whole.metrics]
    with pytest.raises(RunError, match="out of memory with 32 samples at once; use a smaller batch_size"):
        audit(Small(body, 20), data=(x, y), **options, batch_size=32)


def test_full_on_alone_is_of_the_full_cascade(task):
    body, x, y = task
    plan = make_plan(body, settings_from({"eps": 0.02, "full_on": 7, "threads": 1}), {}, (x, y))
    assert [named.label for named in plan.cascade] == [one.name for one in rounds_of(plan.threat)]
    assert plan.rounds == ()
    assert plan.settings.full_on == 7


def test_autoattack_in_l1_has_no_square_and_says_so(task):
    without = run(task, norm="l1", eps=0.5, attack=["autoattack:version=rand,steps=5"])
    assert not [warning for warning in without.warnings if "Square" in warning.message]
    report = run(task, norm="l1", eps=0.5)
    assert [stage.attack for stage in report.cascade] == ["apgd-ce", "apgd-t", "fab-t"]
    assert [warning.code for warning in report.warnings if "Square" in warning.message] == ["no-square"]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_only_a_full_cascade_without_random_search_warns(task, norm):
    body, x, y = task
    plan = make_plan(body, settings_from({"norm": norm, "eps": 0.02, "full": True, "threads": 1}), {}, (x, y))
    searches = [one for one in plan.cascade if isinstance(one.attack, (Square, SquarePGD))]
    assert bool(searches) == (norm != "l1")
    assert [warning.code for warning in without_square(plan.cascade)] == ([] if searches else ["no-square"])


def test_evidence_is_a_verdict_and_a_gate(task):
    _, x, y = task
    report = run(task, gate={"evidence.doubtful": 0})
    assert report.evidence.verdict == "trusted"
    assert [gate.passed for gate in report.gates if gate.metric == "evidence.doubtful"] == [True]

    class Rounds(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner((x * 50).round() / 50)

    rounded = audit(
        Rounds(task[0]), data=(x, y), eps=0.1, noise="none", attack="pgd", threads=1, gate={"evidence.doubtful": 0}
    )
    assert rounded.evidence.verdict == "doubtful"
    assert all(finding.advice for finding in rounded.evidence.findings)
    assert [gate.passed for gate in rounded.gates if gate.metric == "evidence.doubtful"] == [False]


def test_a_minimal_attack_gives_the_whole_curve_and_counts_within_the_radius(task):
    report = run(task, attack="fmn:steps=60", eps_grid=[0.005, 0.02, 0.08], eps=0.02)
    outcome = report.outcomes[0]
    assert outcome.kind == "minimal"
    values = [point.robust.count for point in report.curves[0].points]
    assert values == sorted(values, reverse=True)
    assert values[1] == outcome.robust.count == report.verdict.robust.count
    assert outcome.distance.largest > 0.02  # found beyond the radius too, and not counted there
    assert outcome.discarded == 0
